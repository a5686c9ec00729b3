"""Displacements and small shapes that lesions and other findings are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.generator.head import Head
from ssclf.domain.random_fields import Field

Point = tuple[float, float, float]
#: A place that is pushed apart: where, of which radius, and how far (drawn together below 0), in mm.
Push = tuple[Point, float, float]

#: The skull does not give way: movements end towards the surface within so many mm.
_STIFF_MM = 15.0


def spot(head: Head, centre: Point, radius: float) -> Field:
    """A Gaussian ball, 1 in the middle but where it is smaller than a voxel."""
    result = np.ones((1, 1, 1), np.float32)
    for axis, middle, mm in zip(head.grid, centre, head.spacing, strict=True):
        wide = np.hypot(0.6 * radius, 0.4 * mm)
        result = result * ((0.6 * radius / wide) * np.exp(-0.5 * ((axis - middle) / wide) ** 2))
    return result.astype(np.float32)


def tilted_ellipsoid(
    rng: np.random.Generator, head: Head, centre: Point, radii: NDArray[np.float64]
) -> Field:
    """Distance from the centre as a share of the radius, of an ellipsoid that is turned at random."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    form = (turn / radii**2) @ turn.T
    line = [axis - np.float32(middle) for axis, middle in zip(head.grid, centre, strict=True)]
    square = np.zeros(head.data.shape, np.float32)
    for i in range(3):
        for j in range(i, 3):
            square += np.float32(form[i, j] * (1 if i == j else 2)) * (line[i] * line[j])
    result: Field = np.sqrt(square.clip(0))
    return result


def thin(head: Head, distance: Field, width: float) -> Field:
    """A sheet of that width around distance 0, as a voxel shows it: wider and fainter where the grid is coarse."""
    wide = np.hypot(0.5 * width, 0.4 * head.finest)
    result: Field = np.float32(0.5 * width / wide) * np.exp(np.float32(-0.5 / wide**2) * distance**2)
    return result


def displaced(head: Head, pushes: Sequence[Push], wander: Sequence[Field]) -> Field:
    """The brain's data after its inside was moved; its outline stays.

    Args:
        wander: movement along each axis in mm (D, H, W); none for none.
    """
    from scipy import ndimage

    if not pushes and not wander:
        return head.data
    moved = [np.zeros(head.data.shape, np.float32) for _ in range(3)]
    for total, field in zip(moved, wander, strict=False):
        total += field
    for centre, radius, far in pushes:
        offsets = [axis - np.float32(middle) for axis, middle in zip(head.grid, centre, strict=True)]
        distance = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2)
        # what lies within is stretched, what lies around squeezed less and less
        factor = far * np.exp(-np.maximum(distance - radius, 0) / radius) / np.maximum(distance, radius)
        for total, offset in zip(moved, offsets, strict=True):
            total += factor * offset
    stiff = np.minimum(head.depth / np.float32(_STIFF_MM), 1)
    where = [
        np.arange(count, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        - total * stiff / np.float32(mm)
        for axis, (count, total, mm) in enumerate(zip(head.data.shape, moved, head.spacing, strict=True))
    ]
    result: Field = ndimage.map_coordinates(head.data, where, order=1, mode="constant")
    return result


def random_voxel(rng: np.random.Generator, weights: Field) -> NDArray[np.intp]:
    """One voxel (3,), as likely as its weight; the middle of the array where all are 0."""
    sums = np.cumsum(weights, dtype=np.float64)
    if not sums[-1] > 0:
        return np.array(weights.shape) // 2
    index = int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))
    return np.array(np.unravel_index(min(index, sums.size - 1), weights.shape))
