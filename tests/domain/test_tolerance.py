"""What headers round is rounded and compared as if they did not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssclf.domain import tolerance
from ssclf.domain.fitness import geometry_flags
from ssclf.domain.geometry import nearest_axes, orientation, reorient
from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError

#: By how much a 32-bit float, or a decimal of seven digits, misses a length.
MISSES = st.floats(-3e-7, 3e-7)


@given(st.integers(1, 600), st.floats(0.3, 10), MISSES)
def test_a_whole_number_of_voxels_is_whole_however_it_is_stored(count: int, mm: float, miss: float) -> None:
    ratio = count * mm / (mm * (1 + miss))
    assert tolerance.whole_down(ratio) == tolerance.whole_up(ratio) == tolerance.whole_near(ratio) == count


@given(st.integers(0, 600), MISSES)
def test_the_middle_between_two_goes_one_way(count: int, miss: float) -> None:
    middle = (count + 0.5) * (1 + miss)
    assert tolerance.whole_near(middle) == round(count + 0.5)
    assert tolerance.nearest_voxels(np.array([middle])).tolist() == [count + 1]


@given(st.floats(0, 600))
def test_other_numbers_are_rounded_as_ever(ratio: float) -> None:
    distances = [abs(ratio * 2 - whole) / 2 for whole in (np.floor(ratio * 2), np.ceil(ratio * 2))]
    if min(distances) > 2 * tolerance.VOXEL_SHARE:
        assert tolerance.whole_down(ratio) == np.floor(ratio)
        assert tolerance.whole_up(ratio) == np.ceil(ratio)
        assert tolerance.whole_near(ratio) == round(ratio)


@given(st.sampled_from([0.05, 0.1, 4.0, 10.0, 60.0, 100.0, 600.0]), MISSES)
def test_a_limit_is_within_itself(limit: float, miss: float) -> None:
    assert tolerance.length_at_most(limit * (1 + miss), limit)
    assert tolerance.length_at_least(limit * (1 + miss), limit)
    assert not tolerance.length_at_most(limit * 1.001, limit)
    assert not tolerance.length_at_least(limit * 0.999, limit)
    assert tolerance.angle_at_most(20 + miss, 20) and not tolerance.angle_at_most(20.1, 20)


def turned(*degrees: float) -> np.ndarray:
    affine = np.eye(4)
    for axis, angle in enumerate(degrees):
        others = [n for n in range(3) if n != axis]
        cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        step = np.eye(4)
        step[np.ix_(others, others)] = [[cosine, -sine], [sine, cosine]]
        affine = step @ affine
    return affine


@pytest.mark.parametrize("miss", [-3e-7, 0.0, 3e-7])
@pytest.mark.parametrize("angle", [0.0, 3.0, 20.0])
def test_limits_of_geometry_do_not_depend_on_the_storage(angle: float, miss: float) -> None:
    """ "At most 10 mm, found 10", and thick_slices on one of two copies of 4 mm."""
    for spacing, shape, flags in (
        ((10, 10, 10), (15, 15, 15), ("thick_slices",)),
        ((4, 2, 2), (40, 80, 80), ()),
        ((2, 2, 2), (50, 80, 80), ()),
        ((2, 2, 2), (30, 80, 80), ("partial_coverage",)),
        ((2, 2, 2), (300, 80, 80), ()),
    ):
        affine = turned(0, 0, angle) @ np.diag([*(np.array(spacing) * (1 + miss)), 1.0])
        assert geometry_flags(affine, shape) == flags
    with pytest.raises(VolumeError, match=r"at most 10 mm, found 10\.02 mm"):
        geometry_flags(np.diag([2, 2, 10.02, 1]), (60, 60, 15))


def stored(affine: np.ndarray, order: tuple[int, ...], flips: tuple[int, ...]) -> np.ndarray:
    result = affine[:, [*order, 3]].copy()
    result[:3, :3] *= np.where(flips, -1.0, 1.0)
    return result


ANGLE = st.floats(-180, 180) | st.sampled_from(
    [0.0, 45.0, -45.0, 90.0, 135.0, 35.264389682754654, 54.735610317245346]
)


@given(
    st.tuples(ANGLE, ANGLE, ANGLE),
    st.permutations(range(3)),
    st.tuples(*[st.integers(0, 1)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_the_order_of_storage_does_not_decide_the_orientation(
    angles: tuple[float, ...], order: list[int], flips: tuple[int, ...], seed: int
) -> None:
    """Where two axes are as near to one body axis, the first one stored took it, or the one that rounding made nearer
    (by nibabel 5.3 already at 54 degrees, where one was nearer: 0.22 in probability)."""
    affine = turned(*angles) @ np.diag([2.0, 2.5, 3.0, 1.0])
    noise = 1 + np.random.default_rng(seed).uniform(-3e-7, 3e-7, (3, 3))
    other = stored(affine, tuple(order), flips)
    other[:3, :3] *= noise
    views = []
    for form in (affine, other):
        volume = Volume(np.zeros((1, 4, 5, 6)), form)
        assert sorted(nearest_axes(form)[0]) == [0, 1, 2]
        again = reorient(volume, "SAR")
        views.append(again.affine[:3, :3])
    np.testing.assert_allclose(views[0], views[1], atol=1e-5)


@pytest.mark.parametrize("codes", ["SAR", "LPI", "AIR"])
def test_codes_are_nibabels(codes: str) -> None:
    from nibabel.orientations import aff2axcodes

    rng = np.random.default_rng(3)
    for _ in range(50):
        affine = turned(*rng.uniform(-30, 30, 3)) @ np.diag([*rng.uniform(0.5, 6, 3), 1.0])
        volume = reorient(Volume(np.zeros((1, 4, 5, 6)), affine), codes)
        assert orientation(volume) == codes == "".join(aff2axcodes(volume.affine))
