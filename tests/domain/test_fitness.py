"""Geometry: what passes, what is flagged, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ssclf.domain.fitness import choose_affine, geometry_flags
from ssclf.domain.flags import FLAGS
from ssclf.errors import VolumeError

SHAPE = (60, 70, 80)


def grid(*spacing: float, turn: float = 0.0, shear: float = 0.0) -> NDArray[np.float64]:
    """An affine with the given voxel sizes, turned about one axis and sheared, by degrees."""
    a = np.radians(turn)
    rotation = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    skew = np.eye(3)
    skew[0, 1] = np.tan(np.radians(shear))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ skew @ np.diag(spacing)
    affine[:3, 3] = [-70, -90, -60]
    return affine


@pytest.mark.parametrize(
    ("affine", "shape", "flags"),
    [
        (grid(2, 2.5, 2), SHAPE, ()),
        (grid(2, -2.5, 2)[:, [2, 0, 1, 3]], SHAPE, ()),
        (grid(1, 1, 6.5), (200, 200, 25), ("thick_slices",)),
        (grid(1, 1, 1), (200, 200, 70), ("partial_coverage",)),
        (grid(2, 2, 2, turn=15), SHAPE, ()),
        (grid(2, 2, 2, turn=25), SHAPE, ("oblique",)),
        (grid(2, 2, 2, shear=0.9), SHAPE, ()),
        (grid(2, 2, 2, shear=3), SHAPE, ("shear",)),
        (grid(7, 6, 6.5), (20, 26, 22), ("thick_slices",)),
    ],
)
def test_flags(affine: NDArray[np.float64], shape: tuple[int, int, int], flags: tuple[str, ...]) -> None:
    assert geometry_flags(affine, shape) == flags
    assert set(flags) <= set(FLAGS)


@pytest.mark.parametrize(
    ("affine", "shape", "reason"),
    [
        (grid(1, 1, 1), (200, 200, 18), "whole brain"),
        (grid(10, 10, 10), (7, 20, 20), "whole brain"),
        (grid(1, 1, 11), (200, 200, 20), "at most 10 mm"),
        (grid(5, 5, 5), (130, 60, 60), "650 mm"),
        (grid(2, 2, 2, shear=6), SHAPE, r"shear of 6\.0 degrees"),
        (grid(2, 2, 0), SHAPE, "singular"),
        (grid(2, 2, 0.001), SHAPE, "singular"),
        (np.diag([2.0, np.nan, 2, 1]), SHAPE, "not finite"),
        (np.array([[2.0, 2, 0, 0], [2, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]), SHAPE, "singular"),
    ],
)
def test_refusals(affine: NDArray[np.float64], shape: tuple[int, int, int], reason: str) -> None:
    with pytest.raises(VolumeError, match=reason):
        geometry_flags(affine, shape)


def moved(affine: NDArray[np.float64], mm: float) -> NDArray[np.float64]:
    result = affine.copy()
    result[0, 3] += mm
    return result


NAN = np.full((4, 4), np.nan)


@pytest.mark.parametrize(
    ("sform", "qform", "chosen", "flags"),
    [
        (grid(2, 2, 2), grid(2, 2, 2), "sform", ()),
        (grid(2, 2, 2), None, "sform", ()),
        (None, grid(2, 2, 2), "qform", ()),
        (grid(2, 2, 2), moved(grid(2, 2, 2), 0.5), "sform", ()),
        (grid(2, 2, 2), moved(grid(2, 2, 2), 3), "sform", ("form_conflict",)),
        (grid(2, 2, 2, turn=3), grid(2, 2, 2), "sform", ("form_conflict",)),
        (grid(2, 2, 2.2), grid(2, 2, 2), "sform", ("form_conflict",)),
        (NAN, grid(2, 2, 2), "qform", ("repaired_affine",)),
        (grid(2, 2, 2), NAN, "sform", ("repaired_affine",)),
        (np.zeros((4, 4)), grid(2, 2, 2), "qform", ("repaired_affine",)),
    ],
)
def test_the_two_matrices_of_nifti(
    sform: NDArray[np.float64] | None,
    qform: NDArray[np.float64] | None,
    chosen: str,
    flags: tuple[str, ...],
) -> None:
    affine, found = choose_affine(sform, qform, SHAPE)
    expected = sform if chosen == "sform" else qform
    assert expected is not None
    np.testing.assert_array_equal(affine, expected)
    assert found == flags and set(flags) <= set(FLAGS)


@pytest.mark.parametrize(
    ("sform", "qform", "reason"),
    [
        (None, None, "states no orientation"),
        (grid(-2, 2, 2), grid(2, 2, 2), "contradict"),
        (grid(2, 2, 2, turn=50), grid(2, 2, 2), "contradict"),
        (grid(2, 2, 3), grid(2, 2, 2), "contradict"),
        (NAN, None, "not finite"),
        (None, np.zeros((4, 4)), "singular"),
    ],
)
def test_matrices_beyond_repair(
    sform: NDArray[np.float64] | None, qform: NDArray[np.float64] | None, reason: str
) -> None:
    with pytest.raises(VolumeError, match=reason):
        choose_affine(sform, qform, SHAPE)
