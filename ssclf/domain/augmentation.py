"""What augmentation does to a volume: drawn here, done in `learning/augmentation.py`.

Source: Chatterjee et al., Sec. 2.3 ("light", used; "heavy", tried there and found worse), as TorchIO 1.2 draws them.
Two are ours. "half" leaves every second volume on its own grid: a turned volume is a smoothed one, and a network that
has seen no other takes a sharp edge for a lesion. "flip" is mirror images alone, for runs too short to learn what the
others add.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssclf.config import Augmentation
from ssclf.domain.geometry import nearest_axes

#: Of what the same (seed, epoch, volume) gives: a run goes on with its own only. 1 was drawn by TorchIO itself.
VERSION = 2
#: Tells these random numbers from others of the same seed, epoch and volume.
_STREAM = 0x617567
_SCALES, _DEGREES = (0.9, 1.2), (-10.0, 10.0)
#: Of the elastic deformation: control points that move, in the middle of seven on each axis, and how far in mm.
_MOVING, _BEND_MM, _CELLS = 3, 7.5, 4
#: Its grid is so much larger than the volume on each side, in voxels (ITK's BSplineTransformInitializer).
_MARGIN = 0.125
#: What "heavy" does to the k-space of every fourth volume, in this order.
ARTEFACTS = ("motion", "spike", "ghosting")


@dataclass(frozen=True)
class Transform:
    """What becomes of one volume, in voxels of its own grid. Without anything, it stays as it is.

    Attributes:
        shape: (D, H, W).
        matrix: (3, 4), from where a voxel comes to be to where its value is taken from; mirrored, where it is.
        mirrored: array axis that is reversed, where there is no matrix.
        bend: (3, 3, 3, 3) control points that move: how many voxels along (D, H, W) further away the value is taken
            from, at the place [d, h, w] of the grid. Done after matrix or mirror image.
        masked: what was background moves along, without values in between, and is background again in the end.
        artefacts: of `ARTEFACTS`, done after all that moves.
        seed: of the artefacts.
    """

    shape: tuple[int, int, int]
    matrix: NDArray[np.float64] | None = None
    mirrored: int | None = None
    bend: NDArray[np.float64] | None = None
    masked: bool = False
    artefacts: tuple[str, ...] = ()
    seed: int = 0


def draw_transform(
    kind: Augmentation, shape: tuple[int, int, int], affine: NDArray[np.float64], key: tuple[int, int, int]
) -> Transform | None:
    """What becomes of a volume; the same for the same key, on any machine.

    Args:
        shape: (D, H, W).
        affine: (4, 4), from (d, h, w) to RAS+ mm.
        key: seed, epoch and number of the volume.

    Raises:
        ValueError: the affine is singular.
    """
    if kind == "none":
        return None
    random = np.random.default_rng(np.random.SeedSequence(key, spawn_key=(_STREAM,)))
    scales, degrees = random.uniform(*_SCALES, 3), random.uniform(*_DEGREES, 3)
    turned = random.random() < {"flip": 0.0, "half": 0.5}.get(kind, 1.0)
    flipped = random.random() < (0.5 if kind in ("flip", "half") else 0.25)
    # Of the body, not of the array: which axis runs from left to right depends on the plane of the slices.
    axis = int(np.flatnonzero(nearest_axes(affine)[0] == 0)[0])
    matrix = place_matrix(scales, degrees, shape, affine) if turned else None
    if matrix is not None and flipped:
        matrix[:, 3] += matrix[:, axis] * (shape[axis] - 1)
        matrix[:, axis] *= -1
    moved = Transform(shape, matrix, axis if flipped and not turned else None)
    if kind != "heavy":
        return moved
    bent = random.random() < 0.5
    points = random.uniform(-_BEND_MM, _BEND_MM, (3, _MOVING, _MOVING, _MOVING))
    return replace(
        moved,
        bend=bend_in_voxels(points, affine) if bent else None,
        masked=True,
        artefacts=tuple(name for name in ARTEFACTS if random.random() < 0.25),
        seed=int(random.integers(2**63)),
    )


def place_matrix(
    scales: NDArray[np.float64],
    degrees: NDArray[np.float64],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(3, 4), from an output voxel to where its value is taken from: TorchIO's `Affine` about the volume's middle.

    Args:
        scales: of (R, A, S); 1.1 makes larger.
        degrees: about (R, A, S).

    Raises:
        ValueError: the affine is singular.
    """
    # ITK's Euler3DTransform turns about y first, then x, then z, of axes that point left and to the back.
    x, y, z = np.radians(degrees) * (-1, -1, 1)
    about_x = [[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]]
    about_y = [[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]]
    about_z = [[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]]
    lps = np.diag([-1.0, -1.0, 1.0])
    turn = lps @ np.array(about_z) @ np.array(about_x) @ np.array(about_y) @ lps
    to_mm = affine[:3, :3]
    # turned first, then scaled; values are fetched, so that both are undone
    linear = np.linalg.inv(to_mm) @ turn.T @ np.diag(1 / scales) @ to_mm
    middle = (np.array(shape) - 1) / 2
    return np.column_stack([linear, middle - linear @ middle])


def bend_in_voxels(points_mm: NDArray[np.float64], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Displacements along (R, A, S) in mm, as voxels along (D, H, W); the first axis holds the three."""
    return np.tensordot(np.linalg.inv(affine[:3, :3]), points_mm, 1)


def bend_weights(length: int) -> NDArray[np.float64]:
    """(length, 3): how much each moving control point of an axis counts at each voxel. Cubic B-splines, of which one
    reaches over four cells of the grid."""
    places = (np.arange(length) + 0.5 + _MARGIN) / (length + 2 * _MARGIN) * _CELLS
    # the first of seven points lies a cell before the volume, and the first two and the last two do not move
    away = np.abs(places[:, None] - np.arange(1, 1 + _MOVING))
    near, far = 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6
    return np.where(away < 1, near, far)
