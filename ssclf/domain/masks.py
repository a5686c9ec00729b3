"""Pure operations on masks (D, H, W): the largest piece, holes, and what tells a brain mask from a bad one.

Connected components are found on runs of voxels along the last axis, not on voxels: a brain mask of five
million voxels has some fifty thousand runs, so that numpy alone is fast enough. The packages that deepbet
uses for this (connected-components-3d, fill_voids, fastremap) are LGPL and take 28 MB: not for prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.geometry import mask_box
from ssclf.domain.volume import Mask, Spacing

Indices = NDArray[np.intp]


def largest_component(mask: Mask) -> Mask:
    """The largest piece of a mask; voxels hang together by faces, edges and corners (26 neighbours).

    Returns:
        (D, H, W); empty where the mask is empty.
    """
    kept = np.zeros_like(mask)
    if mask.any():
        box = mask_box(mask)
        runs = _find_runs(mask[box])
        labels = _label_runs(runs, diagonal=True)
        sizes = np.bincount(labels, weights=runs.stops - runs.starts)
        kept[box] = runs.paint(labels == sizes.argmax())
    return kept


def fill_holes(mask: Mask) -> Mask:
    """The mask without cavities: background that no path over voxel faces connects to the outside."""
    filled = mask.copy()
    if mask.any():
        box = mask_box(mask)  # a cavity lies inside the box, and what touches the box's faces is no cavity
        runs = _find_runs(~mask[box])
        labels = _label_runs(runs, diagonal=False)
        outside = np.zeros(labels.size, bool)
        outside[labels[runs.touch_faces()]] = True
        filled[box] |= runs.paint(~outside[labels])
    return filled


@dataclass(frozen=True)
class _Runs:
    """Unbroken stretches of True along W, as [start, stop) in the flat array of a padded mask.

    One column and one row of padding per slice keep rows apart, also when one is shifted onto the next.
    """

    starts: Indices
    stops: Indices
    shape: tuple[int, int, int]

    def paint(self, chosen: NDArray[np.bool_]) -> Mask:
        """The mask (D, H, W) of some runs."""
        d, h, w = self.shape
        steps = np.zeros(d * (h + 1) * (w + 1) + 1, np.int8)
        steps[self.starts[chosen]] = 1
        steps[self.stops[chosen]] = -1
        flat = np.cumsum(steps[:-1], dtype=np.int8)
        return flat.view(bool).reshape(d, h + 1, w + 1)[:, :h, :w]

    def touch_faces(self) -> NDArray[np.bool_]:
        """Which runs reach a face of the array."""
        d, h, w = self.shape
        row, first = np.divmod(self.starts, w + 1)
        depth, height = np.divmod(row, h + 1)
        last = first + self.stops - self.starts
        ends = (first == 0) | (last == w) | (height == 0) | (height == h - 1)
        return ends | (depth == 0) | (depth == d - 1)


def _find_runs(mask: Mask) -> _Runs:
    d, h, w = mask.shape
    flat = np.zeros(d * (h + 1) * (w + 1) + 1, bool)  # padding first: a run can start at once
    flat[1:].reshape(d, h + 1, w + 1)[:, :h, :w] = mask
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return _Runs(edges[0::2], edges[1::2], (d, h, w))


def _label_runs(runs: _Runs, *, diagonal: bool) -> Indices:
    """For every run the index of the first run of its component."""
    _, h, w = runs.shape
    row, slab = w + 1, (h + 1) * (w + 1)
    # Rows that precede a run's own; runs that only touch at a corner count where diagonal.
    shifts = (row, slab - row, slab, slab + row) if diagonal else (row, slab)
    ends, begins = ("left", "right") if diagonal else ("right", "left")
    pairs = []
    for shift in shifts:
        first = np.searchsorted(runs.stops, runs.starts - shift, side=ends)  # type: ignore[call-overload]
        beyond = np.searchsorted(runs.starts, runs.stops - shift, side=begins)  # type: ignore[call-overload]
        counts = beyond - first
        mine = np.repeat(np.arange(runs.starts.size), counts)
        offset = np.arange(mine.size) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs.append(np.stack([mine, np.repeat(first, counts) + offset]))
    return _join(runs.starts.size, np.concatenate(pairs, axis=1))


def _join(count: int, pairs: Indices) -> Indices:
    """Connected components of a graph: for each of `count` nodes the smallest node of its component.

    Args:
        pairs: (2, E) edges. Every round hooks each root that has a smaller neighbour onto it and flattens the
            trees; an unfinished component loses at least one root, so this ends.
    """
    root = np.arange(count)
    while pairs.shape[1]:
        roots = root[pairs]
        open_edges = roots[0] != roots[1]
        pairs, roots = pairs[:, open_edges], roots[:, open_edges]
        np.minimum.at(root, roots.max(axis=0), roots.min(axis=0))
        while not np.array_equal(root, flatter := root[root]):
            root = flatter
    return root


def depth_mm(inside: Mask, spacing: Spacing) -> NDArray[np.float64]:
    """How far each voxel (D, H, W) lies inside a mask, to the nearest centre outside, which all beyond the array is."""
    from scipy import ndimage  # for synthetic lesions: prediction, which has no scipy, does not come here

    distances: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)
    return distances[1:-1, 1:-1, 1:-1]
