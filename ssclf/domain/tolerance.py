"""Comparing and rounding lengths, angles and their ratios that come from headers.

Headers hold 32-bit floats, quaternions and decimals of a few digits, so one scan has spacings of 2 and of
1.99999997 mm, depending on the format that it was stored in last. What is a whole number, a half or a limit in one
storage misses it by a rounding error in another: both have to count as the same. Every rounding and every limit of a
length or an angle that stems from a header goes through this module.
"""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

#: Of a voxel: a ratio of lengths that misses a whole number or a half by no more counts as hitting it. A spacing off
#: by a 32-bit rounding error moves the end of 1,000 voxels by a tenth of it.
VOXEL_SHARE = 1e-3
#: Of a limit: lengths and volumes that exceed it by no more are still within.
LENGTH_SHARE = 1e-4
#: A quaternion of 32-bit floats that turns by 180 degrees tells angles to 0.04 degrees, as its real part is
#: √(1 - b² - c² - d²).
ANGLE_DEGREES = 0.05


def whole_down(ratio: float) -> int:
    """The largest whole number that is no larger than a ratio of lengths."""
    return int(np.floor(ratio + VOXEL_SHARE))


def whole_up(ratio: float) -> int:
    """The smallest whole number that is no smaller than a ratio of lengths."""
    return int(np.ceil(ratio - VOXEL_SHARE))


def whole_near(ratio: float) -> int:
    """The nearest whole number; from the middle between two, the even one."""
    middle = np.floor(ratio) + 0.5
    return round(float(middle if abs(ratio - middle) <= VOXEL_SHARE else ratio))


def nearest_voxels(positions: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the voxel nearest to each fractional position (n,); from the middle between two, the upper one."""
    return np.floor(positions + 0.5 + VOXEL_SHARE).astype(np.intp)


@overload
def length_at_most(length: float, limit: float) -> bool: ...
@overload
def length_at_most(length: NDArray[Any], limit: float) -> NDArray[np.bool_]: ...
def length_at_most(length: float | NDArray[Any], limit: float) -> bool | NDArray[np.bool_]:
    """Whether a length in mm (or a volume), or each of several, is within an upper limit."""
    return length <= limit * (1 + LENGTH_SHARE)


@overload
def length_at_least(length: float, limit: float) -> bool: ...
@overload
def length_at_least(length: NDArray[Any], limit: float) -> NDArray[np.bool_]: ...
def length_at_least(length: float | NDArray[Any], limit: float) -> bool | NDArray[np.bool_]:
    """Whether a length in mm (or a volume), or each of several, is within a lower limit."""
    return length >= limit * (1 - LENGTH_SHARE)


def angle_at_most(degrees: float, limit: float) -> bool:
    """Whether an angle is within an upper limit."""
    return degrees <= limit + ANGLE_DEGREES
