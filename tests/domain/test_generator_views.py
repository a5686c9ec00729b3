"""Heads as other scanners would have stored them: repeatable, stripped, still the same head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ssclf.config import PreprocessConfig
from ssclf.domain.generator.views import ViewSettings, see_again
from ssclf.domain.preprocessing import preprocess
from ssclf.domain.synthetic import make_synthetic_volume
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import ConfigError

pytestmark = pytest.mark.needs("scipy")

#: The head as it is, on a grid of its own.
PLAIN = ViewSettings(
    pitch_degrees=0, turn_degrees=0, scale=(1, 1),
    stretch=(1, 1), plane_mm=(3, 3), thick_chance=0, sharp_chance=0, blur_chance=0,
    bias=(0, 0), noise=(0, 0), mask_chance=0, peel_chance=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def head() -> tuple[Volume, Mask]:
    """A brain within a bright shell, brighter on one side."""
    brain = make_synthetic_volume("healthy", np.random.default_rng(5), spacing=(4, 3, 5))
    inside = brain.data[0] > 0
    data = np.where(inside, brain.data[0], np.float32(0.8 * brain.data.max()))
    data = data * np.linspace(1, 1.5, data.shape[2], dtype=np.float32)
    return Volume(data[None].astype(np.float32), brain.affine), inside


def brain_ml(volume: Volume) -> float:
    return float((volume.data > 0).sum()) * volume.voxel_ml


def test_a_view_is_its_seed_and_no_other(head: tuple[Volume, Mask]) -> None:
    before = head[0].data.copy()
    views = [see_again(*head, (1, k)) for k in range(8)]
    again = [see_again(*head, (1, k)) for k in reversed(range(8))][::-1]
    assert np.array_equal(head[0].data, before)
    for one, two in zip(views, again, strict=True):
        assert np.array_equal(one.data, two.data) and np.array_equal(one.affine, two.affine)
    assert len({view.data.tobytes() for view in views}) == 8
    assert len({view.spacing for view in views}) == 8


@pytest.mark.parametrize("seed", range(6))
def test_a_view_is_a_stripped_brain_that_preprocessing_takes(seed: int, head: tuple[Volume, Mask]) -> None:
    view = see_again(*head, (2, seed))
    assert view.data.dtype == np.float32 and view.data.shape[0] == 1 and np.isfinite(view.data).all()
    assert view.data.min() == 0 and (view.data > 0).any()
    full = float(head[1].sum()) * head[0].voxel_ml
    assert 0.4 * full < brain_ml(view) < 1.8 * full
    prepared = preprocess(view, PreprocessConfig(spacing=(6, 6, 6), crop="brain"))
    assert 0.5 < prepared.data.max() <= 1


def test_with_nothing_drawn_size_and_sides_stay(head: tuple[Volume, Mask]) -> None:
    view = see_again(*head, (3,), PLAIN)
    assert brain_ml(view) == pytest.approx(float(head[1].sum()) * head[0].voxel_ml, rel=0.03)
    for volume in (view, Volume(np.where(head[1], head[0].data, 0), head[0].affine)):
        data = volume.data[0]
        right = (
            np.arange(data.shape[2]) * volume.affine[0, 2]
            > np.median(np.nonzero(data)[2]) * volume.affine[0, 2]
        )
        assert (
            data[..., right][data[..., right] > 0].mean()
            > 1.05 * data[..., ~right][data[..., ~right] > 0].mean()
        )


def test_thick_slices_are_thick_along_one_axis(head: tuple[Volume, Mask]) -> None:
    settings = replace(PLAIN, thick_chance=1, slice_mm=(6, 6), gap=(0.5, 0.5))
    found = [sorted(see_again(*head, (4, k), settings).spacing) for k in range(4)]
    np.testing.assert_allclose(found, [[3, 3, 9]] * 4)


def test_masks_are_wrong_either_way_and_lose_the_fluid(head: tuple[Volume, Mask]) -> None:
    right = brain_ml(see_again(*head, (5,), PLAIN))
    wrong = [
        brain_ml(see_again(*head, (5, k), replace(PLAIN, mask_chance=1, mask_mm=(5, 5)))) for k in range(8)
    ]
    assert min(wrong) < 0.95 * right and max(wrong) > 1.05 * right
    assert brain_ml(see_again(*head, (5,), replace(PLAIN, peel_chance=1))) < right


def test_no_brain_is_an_error(head: tuple[Volume, Mask]) -> None:
    with pytest.raises(ConfigError, match="brain"):
        see_again(head[0], np.zeros_like(head[1]), (0,))
