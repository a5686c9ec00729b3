"""Where voxels lie: orientation, resampling, cropping. Shapes are (C, D, H, W) throughout."""

from __future__ import annotations

import numpy as np
from nibabel.orientations import aff2axcodes, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from ssclf.config import Plane
from ssclf.domain.volume import Array, Mask, Spacing, Volume
from ssclf.errors import VolumeError

#: Direction in which each array axis (D, H, W) grows. Axial slices stack from the feet to the head.
PLANE_ORIENTATION: dict[Plane, str] = {"axial": "SAR", "coronal": "ASR", "sagittal": "RSA"}

#: A field of view may miss a whole voxel by this share of it: headers store spacings as float32.
GRID_TOLERANCE = 1e-3


def orientation(volume: Volume) -> str:
    """Axis codes of (D, H, W), such as "SAR"; an oblique volume gets those of its nearest axes."""
    return "".join(code or "?" for code in aff2axcodes(volume.affine))


def reorient(volume: Volume, codes: str) -> Volume:
    """Permute and flip the array axes; no voxel value changes and an oblique volume stays oblique.

    Args:
        volume: any orientation.
        codes: wanted direction of (D, H, W), e.g. "SAR".

    Returns:
        a view of the same voxels, with the affine that keeps their positions.
    """
    transform = ornt_transform(io_orientation(volume.affine), axcodes2ornt(codes))
    order = np.argsort(transform[:, 0]).astype(int)
    flips = transform[order, 1] < 0
    data = volume.data.transpose(0, *(order + 1))
    affine = volume.affine[:, [*order, 3]].copy()
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis + 1] - 1)
        affine[:3, axis] *= -1
        data = np.flip(data, axis + 1)
    return Volume(data, affine, volume.flags)


def resampled_length(length: int, old_mm: float, new_mm: float) -> int:
    """Number of new voxels that fit in the old extent (the floor, as TorchIO's `Resample`)."""
    return max(int(np.floor(length * old_mm / new_mm + GRID_TOLERANCE)), 1 if length == 1 else 0)


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
        return data.take(np.floor(positions + 0.5).astype(np.intp).clip(0, last), axis)
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
