"""Smooth random fields and soft shapes in mm, of which synthetic brains and lesions are made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.volume import Volume

Field = NDArray[np.float32]
#: z, y, x in mm, towards S, A and R; shapes broadcast to (D, H, W).
Grid = tuple[Field, Field, Field]


def grid_of(volume: Volume) -> Grid:
    """Distances along the array's own axes in mm, which for a shape is as good as anatomical ones."""
    z, y, x = (
        (step * np.arange(count)).astype(np.float32)
        for step, count in zip(volume.spacing, volume.shape, strict=True)
    )
    return z[:, None, None], y[:, None], x


def noise(rng: np.random.Generator, grid: Grid, length: float) -> Field:
    """Smooth Gaussian noise (D, H, W), mean about 0, deviation about 1, blobs of about `length` mm."""
    weights = []
    for coordinates in grid:
        line = coordinates.ravel()
        nodes = np.arange(line[0] - 1.5 * length, line[-1] + 2.5 * length, length, dtype=np.float32)
        weight = np.exp(-0.5 * ((line[:, None] - nodes) / (0.6 * length)) ** 2)
        weights.append(weight / np.sqrt((weight**2).sum(axis=1, keepdims=True)))
    result: Field = rng.standard_normal([weight.shape[1] for weight in weights], np.float32)
    for axis, weight in enumerate(weights):
        result = np.moveaxis(np.tensordot(weight, result, (1, axis)), 0, axis)
    return result


def ellipsoid(grid: Grid, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
    """Distance from the centre as a share of the radius: below 1 inside."""
    squares = [((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)]
    result: Field = np.sqrt(squares[0] + squares[1] + squares[2], dtype=np.float32)
    return result


def soft_step(values: Field, width: float) -> Field:
    """From 0 to 1 as values go from below -width to above width."""
    result: Field = (0.5 + 0.5 * values / width).clip(0, 1)
    return result


def mix(base: Field, share: Field, value: float | Field) -> Field:
    result: Field = base + share * (value - base)
    return result
