from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ssclf.config import PreprocessConfig
from ssclf.domain.model_spec import ModelSpec
from ssclf.domain.preprocessing import PreparedVolume, preprocess, voxel_hash
from ssclf.domain.reference import Reference, fit_reference
from ssclf.domain.synthetic import make_synthetic_volume
from ssclf.domain.trust import contrast_profiles, describe_training, trust_flags
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, ModelError

PREPROCESS = PreprocessConfig(spacing=(9.0, 8.0, 10.0), crop="brain")


def draw_features(rng: np.random.Generator, count: int, *, classes: int = 3, noise: float = 0.1) -> Any:
    """Clusters of classes in 64 dimensions, as a network's last features are, with some noise all around."""
    centres = np.random.default_rng(99).random((classes, 64))
    return centres[rng.integers(classes, size=count)] + noise * rng.standard_normal((count, 64))


def prepare(seed: int, change: Callable[[Any], Any] = lambda data: data) -> PreparedVolume:
    """A synthetic volume; `change` acts on the intensities of its brain, scaled to [0, 1]."""
    volume = make_synthetic_volume(("LGG", "HGG", "healthy")[seed % 3], np.random.default_rng(seed))
    data = volume.data
    inside = data > 0
    changed = np.where(inside, 1 + 1000 * change(data / data.max()), 0).astype(np.float32)
    return preprocess(Volume(changed, volume.affine), PREPROCESS)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    """Of a model whose 24 training volumes were synthetic, and whose features are drawn."""
    volumes = [prepare(seed) for seed in range(24)]
    profiles = [contrast_profiles(volume.data, volume.affine) for volume in volumes]
    features = draw_features(np.random.default_rng(0), 24).astype(np.float32)
    held_out = draw_features(np.random.default_rng(1), 12).astype(np.float32)
    return ModelSpec(
        name="m",
        architecture="mc3",
        class_names=("LGG", "HGG", "healthy"),
        preprocess=PREPROCESS,
        training={
            "statistics": describe_training(features, profiles, held_out),
            "voxels": [voxel_hash(volumes[0].data)],
            "extraction": {"deepbet": 24},
        },
    )


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("held_out", [0, 15])
def test_few_volumes_like_the_training_lie_beyond_the_limit_and_others_do(
    count: int, classes: int, held_out: int
) -> None:
    rng = np.random.default_rng(count + classes + held_out)
    draw = lambda n, **how: draw_features(rng, n, classes=classes, **how)  # noqa: E731
    reference = fit_reference(draw(count), draw(held_out), axes=8)
    assert reference is not None
    alike = reference.distances(draw(500))
    assert np.mean(alike > reference.limit) < 0.08
    assert (reference.distances(draw(100, noise=0.5)) > reference.limit).all()
    assert (reference.distances(draw(100) + 1.5) > reference.limit).all()
    # the unit is the training volumes' own spread
    assert 0.4 < np.median(reference.distances(draw(500))) < 2.5


def test_what_was_fitted_counts_less_than_what_was_held_out() -> None:
    """Features of fitted volumes huddle together: their own spread would condemn every new volume."""
    rng = np.random.default_rng(3)
    fitted, fresh = draw_features(rng, 60, noise=0.02), draw_features(rng, 260, noise=0.1)
    alone = fit_reference(fitted, axes=8)
    informed = fit_reference(fitted, fresh[:30], axes=8)
    assert alone is not None and informed is not None
    assert np.mean(alone.distances(fresh[30:]) > alone.limit) > 0.9
    assert np.mean(informed.distances(fresh[30:]) > informed.limit) < 0.08


def test_statistics_need_volumes_and_survive_a_constant_feature() -> None:
    values = draw_features(np.random.default_rng(0), 30)
    assert fit_reference(values[:7], axes=8) is None
    assert describe_training(values[:7], [np.zeros((1, 9))] * 7) == {}
    values[:, 5] = 3.0
    reference = fit_reference(values, axes=8)
    assert reference is not None and not reference.is_far(values[0])
    constant = fit_reference(np.ones((20, 4)), axes=8)
    assert constant is not None and not constant.is_far(np.ones(4)) and constant.is_far(np.zeros(4))


def test_statistics_travel_as_text(spec: ModelSpec) -> None:
    text = spec.to_json()
    assert len(text) < 150_000
    read = ModelSpec.from_json(text, "spec.json")
    assert read == spec
    assert read.feature_reference is not None and read.feature_reference.centre.shape == (64,)
    values = np.random.default_rng(0).random((50, 512))
    reference = fit_reference(values, axes=8)
    assert reference is not None
    text = json.dumps(reference.to_dict(), indent=2)
    assert len(text) < 60_000
    again = Reference.from_dict(json.loads(text))
    np.testing.assert_allclose(again.distances(values), reference.distances(values), rtol=1e-4)


@pytest.mark.parametrize(
    "damage",
    [{"limit": -1}, {"centre": "1 2"}, {"axes": []}, {"rest": None}, {"variances": "nan"}, {"centre": 5}],
)
def test_damaged_statistics_are_found_when_the_bundle_is_opened(
    spec: ModelSpec, damage: dict[str, Any]
) -> None:
    values = json.loads(spec.to_json())
    values["training"]["statistics"]["features"].update(damage)
    with pytest.raises(ModelError, match=r"spec\.json"):
        ModelSpec.from_json(json.dumps(values), "spec.json")
    contrasts = dict(spec.training["statistics"], contrasts=spec.training["statistics"]["contrasts"] * 2)
    with pytest.raises(ConfigError, match="one for each contrast"):
        dataclasses.replace(spec, training={"statistics": contrasts})


def test_flags_tell_a_volume_from_the_training_volumes(spec: ModelSpec) -> None:
    rng = np.random.default_rng(5)
    like, unlike = draw_features(rng, 1)[0], draw_features(rng, 1)[0] + 1.5
    fresh = prepare(100)
    assert list(trust_flags(spec, fresh, "deepbet", like)) == []
    assert list(trust_flags(spec, fresh, "deepbet", unlike)) == ["unlike_training"]
    assert list(trust_flags(spec, fresh, "bet", None)) == ["other_extraction"]
    assert list(trust_flags(spec, prepare(0), "none", like)) == ["trained_on"]
    inverted = prepare(100, lambda data: 1 - data)
    assert list(trust_flags(spec, inverted, "none", unlike)) == ["wrong_contrast", "unlike_training"]


def test_bundles_without_statistics_give_no_such_flag(spec: ModelSpec) -> None:
    plain = dataclasses.replace(spec, training={"synthetic": True})
    inverted = prepare(100, lambda data: 1 - data)
    assert list(trust_flags(plain, inverted, "deepbet", np.full(64, 1e6, np.float32))) == []


def test_inverted_contrasts_are_wrong_and_the_same_contrast_is_not(spec: ModelSpec) -> None:
    def share(change: Callable[[Any], Any]) -> float:
        flags = [list(trust_flags(spec, prepare(seed, change), "none")) for seed in range(200, 230)]
        return float(np.mean(["wrong_contrast" in found for found in flags]))

    assert share(lambda data: data) <= 0.1
    assert share(lambda data: 1 - data) >= 0.9


def test_a_profile_does_not_depend_on_orientation_or_field_of_view() -> None:
    volume = prepare(7)
    profile = contrast_profiles(volume.data, volume.affine)
    assert profile.shape == (1, 9) and (np.diff(profile[0, :5]) > 0).all()
    turned = np.ascontiguousarray(volume.data.transpose(0, 3, 1, 2))
    affine = volume.affine[:, [2, 0, 1, 3]]
    np.testing.assert_allclose(contrast_profiles(turned, affine), profile, atol=1e-6)
    wider = np.pad(volume.data, ((0, 0), (3, 5), (4, 1), (2, 2)))
    np.testing.assert_allclose(contrast_profiles(wider, volume.affine), profile, atol=1e-6)
    two = contrast_profiles(np.concatenate([volume.data, volume.data * 0.5]), volume.affine)
    np.testing.assert_allclose(two, [profile[0], profile[0] * 0.5], atol=1e-6)
    assert not contrast_profiles(np.zeros((1, 4, 5, 6), np.float32), np.eye(4)).any()
