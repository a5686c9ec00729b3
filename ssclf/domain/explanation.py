"""Where a network's evidence lies: class activation maps, brought from the network's cells to a scan's voxels.

A map's values are logits. Averaged over all cells, the map of class k plus the bias of the linear layer is
exactly logit k (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016). Only
differences between classes change a probability, so what is shown for one class is its map less the mean over
all classes: positive speaks for it, negative for another, and what speaks for all alike cancels.

A cell is coarse (32 mm at 2 mm voxels), and draws on much more than its own extent. Occlusion asks another question,
and answers it more finely: how much of the evidence goes when a cube of the brain is hidden (Zeiler and Fergus,
"Visualizing and Understanding Convolutional Networks", ECCV 2014). What hides it is the brain's mean or, since a
uniform cube can be a finding of its own, the other side's tissue: which finds more depends on the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.volume import Mask, Volume

#: By how many cells rounding may lead astray over the whole scan.
_MAX_ASTRAY = 1e-3
#: Share of a cube that must be brain to be worth hiding.
_LEAST_BRAIN = 0.1
#: How far the middle plane may lie from the middle of the brain's extent.
_OFF_MIDDLE_MM = 12.0


Cube = tuple[slice, slice, slice]


@dataclass(frozen=True)
class BrainGrid:
    """The voxels that a map is wanted for: a grid without intensities, small enough to hand between processes.

    Attributes:
        shape: (D, H, W)
        affine: (4, 4) from (d, h, w) to RAS+ mm.
        bits: the brain, one bit a voxel.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    bits: NDArray[np.uint8]

    @staticmethod
    def of(volume: Volume, brain: Mask) -> BrainGrid:
        """The grid of a volume with its brain (D, H, W)."""
        return BrainGrid(volume.shape, volume.affine, np.packbits(brain))

    @property
    def brain(self) -> Mask:
        count = int(np.prod(self.shape))
        return np.unpackbits(self.bits, count=count).reshape(self.shape).view(bool)


def class_evidence(cam: NDArray[np.float32], target: int) -> NDArray[np.float32]:
    """What speaks for one class against the mean of all: maps (K, d, h, w) to one map (d, h, w), logits (K,) to one."""
    return cam[target] - cam.mean(axis=0)


def occlusion_cubes(brain: Mask, spacing: tuple[float, float, float], width_mm: float) -> list[Cube]:
    """Overlapping cubes, half a width apart, that cover a brain.

    Args:
        brain: (D, H, W).
        spacing: of its voxels, in mm.
        width_mm: of a cube; at least two voxels are taken.

    Returns:
        those that hold brain in at least a tenth, cut off at the ends of the grid.
    """
    widths = [max(round(width_mm / step), 2) for step in spacing]
    z, y, x = (
        [slice(max(start, 0), start + width) for start in range(width // 2 - width, length, width // 2)]
        for width, length in zip(widths, brain.shape, strict=True)
    )
    cubes = itertools.product(z, y, x)
    return [cube for cube in cubes if brain[cube].mean() >= _LEAST_BRAIN]


def without_structure(data: NDArray[np.float32]) -> NDArray[np.float32]:
    """A network's input (C, D, H, W) with each contrast's mean in all of the brain: what hidden parts can show."""
    flat = data.copy()
    for channel in flat:
        inside = channel > 0
        channel[inside] = channel[inside].mean()
    return flat


def other_side(data: NDArray[np.float32], axis: int, spacing_mm: float) -> NDArray[np.float32]:
    """A network's input with every voxel of the brain showing the opposite one: what hidden parts can show.

    The middle plane is where the mirror image is most like the brain, near the middle of the brain's extent. Where the
    opposite voxel is background, the contrast's mean in all of the brain stands in.

    Args:
        data: (C, D, H, W).
        axis: of (D, H, W), which runs from left to right.
        spacing_mm: of voxels along it.
    """
    brain: Mask = np.any(data > 0, axis=0)
    if not brain.any():
        return data.copy()
    turned = np.moveaxis(data, axis + 1, -1)
    count = turned.shape[-1]
    extent = np.flatnonzero(np.moveaxis(brain, axis, -1).any(axis=(0, 1)))
    middle = int(extent[0] + extent[-1])  # as a sum of two opposite places, of which the middle plane is half
    reach = round(2 * _OFF_MIDDLE_MM / spacing_mm)

    def opposite(total: int) -> NDArray[np.float32]:
        places = total - np.arange(count)
        there = (places >= 0) & (places < count)
        mirrored = np.zeros_like(turned)
        mirrored[..., there] = turned[..., places[there]]
        return mirrored

    sums = sorted(range(middle - reach, middle + reach + 1), key=lambda total: abs(total - middle))
    best = max(sums, key=lambda total: float((opposite(total) * turned).sum()))
    mirrored = np.ascontiguousarray(np.moveaxis(opposite(best), -1, axis + 1)) * brain
    for channel, original in zip(mirrored, data, strict=True):
        channel[brain & (channel <= 0)] = original[brain].mean()
    return mirrored


def hide(data: NDArray[np.float32], other: NDArray[np.float32], cube: Cube) -> NDArray[np.float32]:
    """A copy of a network's input in which a cube shows what `without_structure` or `other_side` made of it."""
    where = (slice(None), *cube)
    hidden = data.copy()
    hidden[where] = other[where]
    return hidden


def lost_evidence(
    lost: Sequence[float], cubes: Sequence[Cube], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """(D, H, W): what hiding a voxel cost, the mean over the cubes that it lies in; 0 where there is none."""
    total, count = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for cost, cube in zip(lost, cubes, strict=True):
        total[cube] += cost
        count[cube] += 1
    total /= np.maximum(count, 1)
    return total


def cell_stride(length: int, cells: int) -> int:
    """Voxels from one cell of the last feature map to the next, along an axis of the network's input.

    Every layer of the three networks pads by half its kernel and has stride 1 or 2, so that `length` voxels
    make ceil(length / stride) cells, stride is a power of two, and two or more cells tell which one.
    (One cell has no next: the stride that comes back is then at least the length.)
    """
    stride = 1
    while -(-length // stride) > cells:
        stride *= 2
    assert -(-length // stride) == cells, "not a feature map of this input"
    return stride


def place_map(
    evidence: NDArray[np.float32],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    *,
    mirrored: int | None = None,
) -> Volume:
    """Say where the cells of a map lie.

    The receptive field of cell i is centred on voxel i * stride of the network's input: each layer's first
    kernel is centred on the first voxel of what it reads.

    Args:
        evidence: (d, h, w), over the network's cells.
        shape: (D, H, W) of the network's input.
        affine: (4, 4) of the network's input before any mirroring, from (d, h, w) to RAS+ mm.
        mirrored: the axis (0 to 2) in which the input was flipped before the network saw it.

    Returns:
        data (1, d, h, w) on the grid of the cells' centres.
    """
    placed = affine.copy()
    strides = [cell_stride(length, cells) for length, cells in zip(shape, evidence.shape, strict=True)]
    if mirrored is not None:
        placed[:3, 3] += placed[:3, mirrored] * (shape[mirrored] - 1)
        strides[mirrored] *= -1
    placed[:3, :3] *= strides
    return Volume(evidence[None], placed)


def map_to_scan(maps: Sequence[Volume], grid: BrainGrid) -> NDArray[np.float32]:
    """Interpolate maps at the voxels of a brain, and average them.

    Args:
        maps: one or more, data (1, d, h, w), each on its own grid (several models, mirror images) whose axes
            run along those of the scan, in any order and direction: preprocessing turns no volume.
        grid: any orientation, obliquity and spacing.

    Returns:
        (D, H, W), linear between cells, the outermost cell's value beyond them, 0 outside the brain.
    """
    result = _interpolate(maps[0], grid)
    for other in maps[1:]:
        result += _interpolate(other, grid)
    result *= grid.brain
    result /= np.float32(len(maps))
    return result


def _interpolate(single: Volume, grid: BrainGrid) -> NDArray[np.float32]:
    """Values of a map (1, d, h, w) at every voxel (D, H, W), axis by axis as a matrix product each."""
    to_cells = np.linalg.inv(single.affine) @ grid.affine
    order = np.abs(to_cells[:3, :3]).argmax(axis=0)  # of cell axes, as the voxel axes follow each other
    steps = to_cells[order, [0, 1, 2]]
    astray = np.abs(to_cells[order, :3] - np.diag(steps)) @ grid.shape
    assert sorted(order) == [0, 1, 2] and astray.max() < _MAX_ASTRAY, "map and scan lie askew"
    data = single.data[0].transpose(order)
    taps = [
        _taps(step * np.arange(count) + start, cells)
        for step, count, start, cells in zip(steps, grid.shape, to_cells[order, 3], data.shape, strict=True)
    ]
    rows = np.matmul(taps[1], data @ taps[2].T)
    return (taps[0] @ rows.reshape(len(rows), -1)).reshape(grid.shape)


def _taps(positions: NDArray[np.float64], cells: int) -> NDArray[np.float32]:
    """Weights (n, cells) of linear interpolation at fractional cell indices (n,)."""
    positions = np.clip(positions, 0, cells - 1)
    weights = 1 - np.abs(positions[:, None] - np.arange(cells))
    return np.maximum(weights, 0).astype(np.float32)
