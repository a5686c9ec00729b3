"""Where voxels lie: orientation, resampling, cropping. Shapes are (C, D, H, W) throughout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf.config import Plane
from ssclf.domain.tolerance import nearest_voxels, whole_down
from ssclf.domain.volume import Array, Mask, Spacing, Volume
from ssclf.errors import VolumeError

#: Direction in which each array axis (D, H, W) grows. Axial slices stack from the feet to the head.
PLANE_ORIENTATION: dict[Plane, str] = {"axial": "SAR", "coronal": "ASR", "sagittal": "RSA"}

#: The two ends of each body axis, in the order of the world's axes.
_ENDS = ("LR", "PA", "IS")
#: Cosines count as equal within this: 0.1 degrees, more than any header's rounding.
_SAME_COSINE = 2e-3


def orientation(volume: Volume) -> str:
    """Axis codes of (D, H, W), such as "SAR"; an oblique volume gets those of its nearest axes."""
    axes, signs = nearest_axes(volume.affine)
    return "".join(_ENDS[axis][int(sign > 0)] for axis, sign in zip(axes, signs, strict=True))


def nearest_axes(affine: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which body axis each array axis follows, and which way.

    Args:
        affine: (4, 4) voxel index to RAS+ mm, not singular.

    Returns:
        for each array axis the world axis (0, 1, 2: R, A, S), and 1 or -1.

    Of the six ways to pair them the one with the largest cosine is taken, among those with equal ones the one with
    the largest second, then third (nibabel 5.4 does the same). What still ties, as at 45 degrees, is decided by the
    directions in space and not by the order in which the axes are stored, nor by the last bits of the header.
    """
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    # The rotation (or reflection) nearest to a matrix that may be sheared; a column for each array axis.
    turn = left @ right
    pairings = [np.array(axes) for axes in itertools.permutations(range(3))]  # world axis of each array axis
    pairings = _largest(pairings, [sorted(np.abs(turn[axes, range(3)]), reverse=True) for axes in pairings])
    signs = [_directions(turn, axes) for axes in pairings]
    aligned = [(turn * sign)[:, np.argsort(axes)].ravel() for axes, sign in zip(pairings, signs, strict=True)]
    best = _largest(list(range(len(pairings))), aligned)[0]
    return pairings[best], signs[best]


def _directions(turn: NDArray[np.float64], axes: NDArray[np.intp]) -> NDArray[np.float64]:
    """1 or -1 for each array axis; one at a right angle to its body axis completes a right-handed system."""
    cosines = turn[axes, range(3)]
    signs = np.where(cosines < 0, -1.0, 1.0)
    level = np.abs(cosines) < _SAME_COSINE
    if level.any() and np.linalg.det((turn * signs)[:, np.argsort(axes)]) < 0:
        signs[level.argmax()] *= -1
    return signs


def _largest(choices: list[Any], keys: Sequence[Sequence[float] | NDArray[np.float64]]) -> list[Any]:
    """The choices whose key comes first in falling order, numbers compared with a tolerance."""
    kept = list(zip(choices, keys, strict=True))
    for place in range(len(keys[0])):
        highest = max(key[place] for _, key in kept)
        kept = [(choice, key) for choice, key in kept if key[place] >= highest - _SAME_COSINE]
    return [choice for choice, _ in kept]


def reorient(volume: Volume, codes: str) -> Volume:
    """Permute and flip the array axes; no voxel value changes and an oblique volume stays oblique.

    Args:
        volume: any orientation.
        codes: wanted direction of (D, H, W), e.g. "SAR".

    Returns:
        a view of the same voxels, with the affine that keeps their positions.
    """
    axes, signs = nearest_axes(volume.affine)
    wanted = [next(axis for axis, ends in enumerate(_ENDS) if code in ends) for code in codes]
    order = [int(np.flatnonzero(axes == axis)[0]) for axis in wanted]
    data = volume.data.transpose(0, *(axis + 1 for axis in order))
    affine = volume.affine[:, [*order, 3]].copy()
    for place, (axis, code) in enumerate(zip(wanted, codes, strict=True)):
        if signs[order[place]] != (1 if code == _ENDS[axis][1] else -1):
            affine[:3, 3] += affine[:3, place] * (data.shape[place + 1] - 1)
            affine[:3, place] *= -1
            data = np.flip(data, place + 1)
    return Volume(data, affine, volume.flags)


def resampled_length(length: int, old_mm: float, new_mm: float) -> int:
    """Number of new voxels that fit in the old extent (the floor, as TorchIO's `Resample`)."""
    return max(whole_down(length * old_mm / new_mm), 1 if length == 1 else 0)


def resample(volume: Volume, spacing: Spacing, *, order: int = 1) -> Volume:
    """Put a volume on a grid with the given voxel size and the same centre; directions stay.

    Args:
        volume: data (C, D, H, W), any real dtype.
        spacing: (D, H, W) in mm, each > 0.
        order: 1 linear; 0 nearest, for masks, so that no new labels appear.

    Returns:
        data (C, D', H', W'), float32 (order 0: the dtype that came in).

    Raises:
        VolumeError: the volume is smaller than one voxel of the new grid.

    Shape and sample positions are those of TorchIO 1.2 `Resample`. Source: Chatterjee et al., Sec. 2.5.
    """
    data: Array = volume.data
    affine = volume.affine.copy()
    for axis, (old, new) in enumerate(zip(volume.spacing, spacing, strict=True)):
        length = data.shape[axis + 1]
        count = resampled_length(length, old, new)
        if count < 1:
            raise VolumeError(
                f"expected at least one voxel of {new:g} mm along each axis, found {length * old:.3g} mm; "
                "the volume is too small."
            )
        step = new / old
        positions = (length - 1) / 2 + (np.arange(count) - (count - 1) / 2) * step
        data = _sample_axis(data, axis + 1, positions, order)
        affine[:3, 3] += affine[:3, axis] * positions[0]
        affine[:3, axis] *= step
    if order == 1:
        data = np.ascontiguousarray(data, dtype=np.float32)
    return Volume(data, affine, volume.flags)


def _sample_axis(data: Array, axis: int, positions: NDArray[np.float64], order: int) -> Array:
    """Values at fractional positions along one axis; beyond the ends the outermost voxel counts."""
    last = data.shape[axis] - 1
    positions = np.clip(positions, 0, last)
    if order == 0:
        return data.take(nearest_voxels(positions).clip(0, last), axis)
    if np.array_equal(positions, np.arange(last + 1)):
        return data
    lower = np.floor(positions).astype(np.intp).clip(0, max(last - 1, 0))
    upper = np.minimum(lower + 1, last)
    weight = (positions - lower).astype(np.float32)
    if axis == data.ndim - 1:
        # Gathering along the fastest axis is slow; two entries a column in a matrix product are not.
        taps = np.zeros((last + 1, len(positions)), np.float32)
        columns = np.arange(len(positions))
        np.add.at(taps, (lower, columns), 1 - weight)
        np.add.at(taps, (upper, columns), weight)
        flat = np.ascontiguousarray(data, dtype=np.float32).reshape(-1, last + 1)
        return (flat @ taps).reshape(*data.shape[:-1], len(positions))
    shape = [1] * data.ndim
    shape[axis] = -1
    weight = weight.reshape(shape)
    low = data.take(lower, axis).astype(np.float32, copy=False)
    high = data.take(upper, axis).astype(np.float32, copy=False)
    high -= low
    high *= weight
    high += low
    return high


def mask_box(mask: Mask, margin: tuple[int, int, int] = (0, 0, 0)) -> tuple[slice, slice, slice]:
    """Smallest box around a mask (D, H, W), widened by `margin` voxels and cut at the array's edge."""
    box = []
    for axis, extra in enumerate(margin):
        hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(int(hits[0]) - extra, 0), min(int(hits[-1]) + 1 + extra, mask.shape[axis])))
    return box[0], box[1], box[2]


def crop(volume: Volume, box: tuple[slice, slice, slice]) -> Volume:
    """The part of a volume inside a box of (D, H, W) slices; positions stay."""
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    d, h, w = box
    return Volume(volume.data[:, d, h, w], affine, volume.flags)
