"""Lesions put into brains: where they are told to be, and told by nothing else."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from ssclf.domain.geometry import reorient
from ssclf.domain.lesions import LesionRanges, insert_lesion
from ssclf.domain.synthetic import SyntheticLabel, make_synthetic_volume
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError

pytestmark = pytest.mark.needs("scipy")


@pytest.fixture(scope="module")
def brain() -> Volume:
    return make_synthetic_volume("healthy", np.random.default_rng(0), spacing=(4, 4, 4))


@pytest.mark.parametrize("label", get_args(SyntheticLabel))
@pytest.mark.parametrize("seed", range(5))
def test_brain_and_histogram_stay_as_they_were(label: SyntheticLabel, seed: int, brain: Volume) -> None:
    volume, where = insert_lesion(brain, label, np.random.default_rng(seed))
    assert np.array_equal(volume.data > 0, brain.data > 0)
    assert np.array_equal(np.sort(volume.data, axis=None), np.sort(brain.data, axis=None))
    assert volume.data.dtype == np.float32 and np.array_equal(volume.affine, brain.affine)
    changed = np.abs(volume.data[0] - brain.data[0])
    inside = brain.data[0] > 0
    if label == "healthy":
        assert not where.any() and np.array_equal(volume.data, brain.data)
        return
    assert where[inside].any() and not where[~inside].any()
    assert (
        changed[where].mean() > 5 * changed[inside & ~where].mean()
        or changed[where].mean() > 0.1 * brain.data.max()
    )
    again, _ = insert_lesion(brain, label, np.random.default_rng(seed))
    assert np.array_equal(volume.data, again.data)


def test_the_ring_is_bright_and_the_patch_is_dark(brain: Volume) -> None:
    for seed in range(5):
        means = {}
        for label in get_args(SyntheticLabel):
            volume, where = insert_lesion(brain, label, np.random.default_rng(seed))
            means[label] = volume.data[0]
            if label != "healthy":
                lesion = where
        healthy = means["healthy"][lesion]
        assert np.quantile(means["HGG"][lesion], 0.9) > np.quantile(healthy, 0.9)
        assert np.median(means["LGG"][lesion]) < np.median(healthy)


def test_all_labels_have_their_lesion_at_the_same_place(brain: Volume) -> None:
    """What else differs between the classes of a head would tell them apart."""
    places = [insert_lesion(brain, label, np.random.default_rng(3))[1] for label in ("LGG", "HGG")]
    assert np.array_equal(places[0], places[1])


def test_sizes_are_in_millimetres(brain: Volume) -> None:
    ball = LesionRanges(radius_mm=(20, 20), ragged=(0, 0))
    fine = make_synthetic_volume("healthy", np.random.default_rng(0), spacing=(2, 3, 4))
    for volume in (brain, fine, reorient(fine, "RPI")):
        _, where = insert_lesion(volume, "LGG", np.random.default_rng(1), ball)
        millilitres = where.sum() * volume.voxel_ml
        assert 0.4 < millilitres / (4 / 3 * np.pi * 2**3) < 1.8


def test_what_cannot_be_is_refused(brain: Volume) -> None:
    with pytest.raises(ConfigError, match="expected one of LGG, HGG, healthy"):
        insert_lesion(brain, "GBM", np.random.default_rng(0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="found none"):
        insert_lesion(Volume(np.zeros_like(brain.data), brain.affine), "LGG", np.random.default_rng(0))
    with pytest.raises(ConfigError, match="radius_mm"):
        LesionRanges(radius_mm=(20, 10))
