"""Geometry is judged, not trusted: what an affine and a shape say about a volume, as flags or a refusal.

The limits stand in docs/formats.md with their reasons; a test compares the two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.tolerance import angle_at_most, length_at_least, length_at_most
from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError

#: Voxel sizes in mm. Clinical 2D series have 5 to 7 mm from slice to slice.
MIN_SPACING_MM, THICK_MM, MAX_SPACING_MM = 0.05, 4.0, 10.0
#: An adult's cerebrum is about 140 mm wide, 170 mm long and 130 mm high.
MIN_EXTENT_MM, BRAIN_EXTENT_MM, MAX_EXTENT_MM = 60.0, 100.0, 600.0
MIN_VOXELS = 8
#: Resampling goes along the array axes, so a sheared volume stays sheared: 5° are 13 mm over a brain.
SHEAR_DEGREES, MAX_SHEAR_DEGREES = 1.0, 5.0
OBLIQUE_DEGREES = 20.0
#: How far two matrices of one volume may put a corner apart, in mm and in degrees.
CONFLICT_MM, CONFLICT_DEGREES = 1.0, 2.0
#: Beyond these the two name different body axes, or different sizes.
MAX_CONFLICT_DEGREES, MAX_SIZE_CONFLICT = 45.0, 0.2

Affine = NDArray[np.float64]
Shape = tuple[int, int, int]


def judge_geometry(volume: Volume) -> Volume:
    """The volume with the flags that its geometry deserves.

    Raises:
        VolumeError: millimetres are undefined, or the volume cannot show a brain.
    """
    found = geometry_flags(volume.affine, volume.shape)
    return Volume(volume.data, volume.affine, tuple(dict.fromkeys((*volume.flags, *found))))


def geometry_flags(affine: Affine, shape: Shape) -> tuple[str, ...]:
    """Judge a grid.

    Args:
        affine: (4, 4), voxel index to RAS+ mm.
        shape: of the same three array axes, in any order.

    Raises:
        VolumeError: the affine is not usable, or the grid cannot hold a brain.
    """
    check_affine(affine)
    linear = affine[:3, :3]
    spacing = np.linalg.norm(linear, axis=0)
    extent = spacing * shape
    sizes = " x ".join(f"{size:.3g}" for size in spacing)
    if not length_at_most(spacing, MAX_SPACING_MM).all():
        raise VolumeError(
            f"expected voxels of at most {MAX_SPACING_MM:g} mm, found {spacing.max():.5g} mm; "
            "such slices are too far apart for a classifier of whole brains."
        )
    if min(shape) < MIN_VOXELS or not length_at_least(extent, MIN_EXTENT_MM).all():
        raise VolumeError(
            f"expected a whole brain (at least {MIN_VOXELS} voxels and {MIN_EXTENT_MM:g} mm along each axis), "
            f"found {' x '.join(map(str, shape))} voxels of {sizes} mm."
        )
    if not length_at_most(extent, MAX_EXTENT_MM).all():
        raise VolumeError(
            f"expected a head, found {extent.max():.4g} mm along one axis; check the voxel size in the header."
        )
    shear = shear_degrees(affine)
    if not angle_at_most(shear, MAX_SHEAR_DEGREES):
        raise VolumeError(
            f"expected perpendicular axes, found a shear of {shear:.1f} degrees (a tilted gantry, or a matrix "
            "from an affine registration); resample the volume onto a rectangular grid first."
        )
    flags = {
        "shear": not angle_at_most(shear, SHEAR_DEGREES),
        "oblique": not angle_at_most(oblique_degrees(affine), OBLIQUE_DEGREES),
        "thick_slices": not length_at_most(spacing, THICK_MM).all(),
        "partial_coverage": not length_at_least(extent, BRAIN_EXTENT_MM).all(),
    }
    return tuple(flag for flag, raised in flags.items() if raised)


def choose_affine(sform: Affine | None, qform: Affine | None, shape: Shape) -> tuple[Affine, tuple[str, ...]]:
    """Which of a NIfTI header's two matrices to believe: the sform, unless only the qform can be used.

    Args:
        sform, qform: (4, 4) voxel index to RAS+ mm; None where the header's code is 0.
        shape: of the same array axes.

    Returns:
        the matrix, and `form_conflict` where the other one says something else.

    Raises:
        VolumeError: neither is there, none is usable, or they disagree about which way the axes run.
    """
    stated = [form for form in (sform, qform) if form is not None]
    if not stated:
        raise VolumeError(
            "the header states no orientation (qform_code and sform_code are 0), so left and right, top and "
            "bottom are unknown; set one (for instance with nibabel or fslorient) and try again."
        )
    usable = [form for form in stated if _is_usable(form)]
    if not usable:
        check_affine(stated[0])
    if len(usable) == 1:
        return usable[0], ("repaired_affine",) if len(stated) == 2 else ()
    first, second = usable
    rotation = _rotation_degrees(first, second)
    if not (
        angle_at_most(rotation, MAX_CONFLICT_DEGREES)
        and length_at_most(_size_conflict(first, second), MAX_SIZE_CONFLICT)
    ):
        raise VolumeError(
            "the header's sform and qform contradict each other about which way the axes run or how large a "
            "voxel is; find out which is right and write it into both."
        )
    distance = np.abs(corners(first, shape) - corners(second, shape)).max()
    agree = length_at_most(float(distance), CONFLICT_MM) and angle_at_most(rotation, CONFLICT_DEGREES)
    return first, () if agree else ("form_conflict",)


def check_affine(affine: Affine) -> None:
    """Raises:
    VolumeError: not finite, singular, or with voxels of no size, so that millimetres are undefined.
    """
    if not np.isfinite(affine).all():
        raise VolumeError(
            "the voxel-to-world matrix is not finite, so millimetres are undefined; "
            "convert the volume again from its source."
        )
    if not _is_usable(affine):
        raise VolumeError(
            "the voxel-to-world matrix is singular (a voxel has no size), so millimetres are undefined; "
            "convert the volume again from its source."
        )


def shear_degrees(affine: Affine) -> float:
    """By how much the array axes miss being perpendicular."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(axes.T @ axes - np.eye(3)).max()
    return float(np.degrees(np.arcsin(np.clip(cosines, 0, 1))))


def oblique_degrees(affine: Affine) -> float:
    """The largest angle between an array axis and the body axis nearest to it."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), 0, 1))).max())


def corners(affine: Affine, shape: Shape) -> NDArray[np.float64]:
    """World positions (8, 3) of the corner voxels, in mm."""
    index = np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    positions: NDArray[np.float64] = index @ affine[:3, :3].T + affine[:3, 3]
    return positions


def _is_usable(affine: Affine) -> bool:
    linear = affine[:3, :3]
    if not np.isfinite(affine).all():
        return False
    spacing = np.linalg.norm(linear, axis=0)
    return bool(
        length_at_least(spacing, MIN_SPACING_MM).all() and abs(np.linalg.det(linear)) > 1e-3 * spacing.prod()
    )


def _size_conflict(first: Affine, second: Affine) -> float:
    sizes = [np.linalg.norm(form[:3, :3], axis=0) for form in (first, second)]
    return float(np.abs(np.log(sizes[0] / sizes[1])).max())


def _rotation_degrees(first: Affine, second: Affine) -> float:
    directions = [form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (first, second)]
    cosines = (directions[0] * directions[1]).sum(axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())
