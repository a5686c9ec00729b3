"""Intensities inside the brain. Source: Chatterjee et al., Sec. 2.5; left open there: over which voxels
(here: the brain) and to which range (here: [0, 1], background 0)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.masks import fill_holes
from ssclf.domain.volume import Array, Mask
from ssclf.errors import VolumeError

#: Segmentations of tumours have 3 labels, of tissues 3 to 6, all small whole numbers; a scan that was stored in 4 bits
#: has 15 values.
MAX_LABELS = 8
_LOOKED_AT = 50_000
#: Of all voxels: a value that so many have is that of the air or of a mask's outside.
_COMMON = 0.01


def check_finite(data: Array) -> None:
    """Raises:
    VolumeError: a voxel is NaN or infinite.
    """
    if not _is_finite(data):
        count = int(data.size - np.isfinite(data).sum())
        raise VolumeError(
            f"expected finite intensities, found {count} NaN or infinite voxels; "
            "write the volume again with a background of 0."
        )


def _is_finite(data: Array) -> bool:
    if data.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        total = data.sum(dtype=np.float64)  # cheap, but that of finite numbers may overflow
    return bool(np.isfinite(total) or np.isfinite(data).all())


def fill_background(data: Array) -> Array:
    """Give the surroundings of a head or brain a number where the file has none.

    Masked maps, and what SPM resliced, hold NaN (or infinity, as the logarithm of 0) outside. Voxels without a number
    that hang together with the outside are background; others would have to be guessed.

    Args:
        data: (C, D, H, W), any real dtype.

    Returns:
        the same array where it is finite; else a copy with the background at 0, or below all other values where those
        are negative too and 0 is none of the common ones.

    Raises:
        VolumeError: a voxel inside is NaN or infinite, or all of them are.
    """
    if _is_finite(data):
        return data
    filled = data.copy()
    for channel in filled:
        finite = np.isfinite(channel)
        lost = int(np.count_nonzero(fill_holes(finite) & ~finite)) if finite.any() else channel.size
        if lost:
            raise VolumeError(
                f"expected finite intensities, found {lost} NaN or infinite voxels inside the volume; "
                "write the volume again with numbers there."
            )
        values = channel[finite]
        low, high = float(values.min()), float(values.max())
        zero = low >= 0 or np.count_nonzero(values == 0) >= _COMMON * values.size
        channel[~finite] = 0 if zero else low - max((high - low) / 100, abs(low) * 1e-6)
    return filled


def check_intensities(data: Array) -> None:
    """Refuse what counts classes instead of measuring signal.

    Args:
        data: (C, D, H, W), finite.

    Raises:
        VolumeError: a channel has so few values that it is a segmentation.
    """
    for channel in data:
        some = channel.ravel()[:: max(1, channel.size // _LOOKED_AT)]
        values = np.unique(some[some != 0])
        few = 1 < values.size <= MAX_LABELS and np.isin(values, np.arange(2 * MAX_LABELS)).all()
        if few and np.isin(channel, [0, *values]).all():
            raise VolumeError(
                f"expected intensities of an MR volume, found only the values {', '.join(f'{v:g}' for v in values)} "
                "besides 0: a mask or a label map."
            )


def background_value(data: Array) -> float | None:
    """The intensity around a stripped brain: the most common value of the outer faces.

    Args:
        data: (D, H, W), finite.

    Returns:
        None where no single value fills half of the faces: such a volume has no clean background.
    """
    # Slices, since np.take would first copy a volume that is not contiguous.
    faces = np.concatenate(
        [face.ravel() for end in (0, -1) for face in (data[end], data[:, end], data[:, :, end])]
    )
    # What fills half of a list lies in the middle of it once sorted; finding that is faster than counting all.
    middle = ((faces.size - 1) // 2, faces.size // 2)
    ordered = np.partition(faces, middle)
    for value in ordered[list(middle)]:
        if np.count_nonzero(faces == value) * 2 >= faces.size:
            return float(value)
    return None


def foreground(data: Array) -> Mask:
    """Voxels (D, H, W) of a (C, D, H, W) volume that differ from the background in any channel."""
    mask = np.zeros(data.shape[1:], bool)
    for channel in data:
        background = background_value(channel)
        mask |= np.ones_like(mask) if background is None else channel != background
    return mask


def percentile_range(values: Array, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles (linear between order statistics, as numpy's) of a 1-D array.

    Integers of up to 16 bits are counted instead of sorted: several times faster, the same result.
    """
    ranks = np.array(percentiles) / 100 * (values.size - 1)
    below = np.floor(ranks).astype(np.intp)
    above = np.minimum(below + 1, values.size - 1)
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        lowest = int(values.min())
        counts = np.bincount(values.astype(np.intp) - lowest).cumsum()
        low, high = (np.searchsorted(counts, r, side="right") + lowest for r in (below, above))
    else:
        ordered = np.partition(values, np.unique([below, above]))
        low, high = ordered[below], ordered[above]
    low, high = low.astype(np.float64), high.astype(np.float64)
    result = low + (high - low) * (ranks - below)
    return float(result[0]), float(result[1])


def scale_inside(data: Array, mask: Mask, percentiles: tuple[float, float]) -> NDArray[np.float32]:
    """Clip one contrast to percentiles of its brain, and scale those to 0 and 1.

    Args:
        data: (D, H, W), any real dtype, finite.
        mask: brain, (D, H, W).

    Returns:
        float32 in [0, 1], exactly 0 outside the brain: scaled before any resampling, so that rounding
        cannot leave a trace of the background.

    Raises:
        VolumeError: the brain is empty or has one intensity only.
    """
    values = data[mask]
    if values.size == 0:
        raise VolumeError("expected a brain, found an empty or constant volume.")
    low, high = percentile_range(values, percentiles)
    if not high > low:
        raise VolumeError(f"expected varying intensities inside the brain, found the constant {low:g}.")
    exact = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
    inside = values.astype(exact, copy=False) - exact(low)
    inside /= exact(high - low)
    scaled = np.zeros(data.shape, np.float32)
    scaled[mask] = np.clip(inside, 0, 1, out=inside)
    return scaled
