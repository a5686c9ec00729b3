from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from ssclf.config import PreprocessConfig
from ssclf.domain.geometry import orientation, reorient
from ssclf.domain.preprocessing import preprocess
from ssclf.domain.stripping import judge_stripping
from ssclf.domain.synthetic import SyntheticLabel, make_synthetic_volume, vary_storage
from ssclf.errors import ConfigError

LABELS: tuple[SyntheticLabel, ...] = get_args(SyntheticLabel)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("spacing", [None, (3.0, 2.5, 4.0), (5.0, 2.0, 2.5)])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_volume_passes_for_a_stripped_brain(
    label: SyntheticLabel, spacing: tuple[float, float, float] | None, difficulty: float
) -> None:
    for seed in range(3):
        volume = make_synthetic_volume(
            label, np.random.default_rng(seed), spacing=spacing, difficulty=difficulty
        )
        assert volume.data.dtype == np.float32
        assert orientation(volume) == "SAR"
        if spacing:
            assert volume.spacing == pytest.approx(spacing)
        for axis in (1, 2, 3):
            assert not np.take(volume.data, [0, -1], axis).any()
        verdict = judge_stripping(volume)
        assert verdict.stripped
        assert 900 < verdict.foreground_ml < 2200
        assert verdict.shell_ratio > 0.6


def test_same_seed_gives_same_volume_and_another_gives_another() -> None:
    first, again, other = (
        make_synthetic_volume("HGG", np.random.default_rng(seed), spacing=(4, 5, 6)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.data, again.data)
    assert first.shape != other.shape or not np.array_equal(first.data > 0, other.data > 0)


def test_label_decides_on_the_lesion_and_on_nothing_else() -> None:
    for seed in range(4):
        healthy, *ill = (
            make_synthetic_volume(label, np.random.default_rng(seed)) for label in ("healthy", "LGG", "HGG")
        )
        for volume in ill:
            assert np.array_equal(volume.affine, healthy.affine)
            assert np.array_equal(volume.data > 0, healthy.data > 0)


@pytest.mark.parametrize("label", ["LGG", "HGG"])
def test_difficulty_makes_lesions_smaller_and_fainter(label: SyntheticLabel) -> None:
    def changed(difficulty: float, seed: int) -> float:
        ill, healthy = (
            make_synthetic_volume(name, np.random.default_rng(seed), difficulty=difficulty).data
            for name in (label, "healthy")
        )
        inside = healthy > 0
        difference = np.abs(ill - healthy)[inside] / np.median(healthy[inside])
        return float((difference > 0.3).mean())

    shares = np.array([[changed(difficulty, seed) for difficulty in (0, 1)] for seed in range(6)])
    easy, hard = shares.mean(axis=0)
    assert 0.04 < easy < 0.4
    assert hard < 0.6 * easy


@pytest.mark.parametrize("arguments", [{"label": "tumour"}, {"label": "LGG", "difficulty": 1.5}])
def test_impossible_requests_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make_synthetic_volume(rng=np.random.default_rng(0), **arguments)  # type: ignore[arg-type]


def test_stored_volumes_vary_but_show_the_same_brain() -> None:
    codes, dtypes, oblique = set(), set(), set()
    volume = make_synthetic_volume("HGG", np.random.default_rng(0), spacing=(6, 5, 7))
    expected = volume.data / volume.data.max()
    for seed in range(60):
        stored = vary_storage(volume, np.random.default_rng(seed))
        codes.add(orientation(stored))
        dtypes.add(str(stored.data.dtype))
        directions = stored.affine[:3, :3] / np.array(stored.spacing)
        oblique.add(bool((np.abs(np.abs(directions).max(axis=0) - 1) > 1e-6).any()))
        np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
        back = reorient(stored, "SAR").data.astype(np.float64)
        assert back.shape == volume.data.shape
        assert np.array_equal(back > 0, volume.data > 0)
        np.testing.assert_allclose(back / back.max(), expected, atol=0.6 / 255)
    assert len(codes) > 30
    assert dtypes == {"uint8", "int16", "uint16", "float32"}
    assert oblique == {True, False}


def test_no_plain_classifier_tells_the_classes() -> None:
    """Intensities, brain volume, field of view and spacing must not give the class away (chance: 1/3)."""
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    config = PreprocessConfig(spacing=(8, 8, 8), crop="brain")
    stored_features, input_features = [], []
    targets = np.arange(150) % 3
    for number, target in enumerate(targets):
        volume = make_synthetic_volume(LABELS[target], np.random.default_rng([7, number]))
        prepared = preprocess(volume, config)
        relative = volume.data[volume.data > 0] / volume.data.max()
        stored_features.append([*_statistics(relative), prepared.brain_ml, *volume.shape, *volume.spacing])
        input_features.append(_statistics(prepared.data[prepared.data > 0]))

    def accuracy(features: list[list[float]]) -> float:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        return float(cross_val_score(classifier, np.array(features), targets, cv=5).mean())

    assert accuracy(stored_features) < 0.5
    assert accuracy(input_features) < 0.72


def _statistics(values: NDArray[np.float32]) -> list[float]:
    return [values.mean(), values.std(), *np.percentile(values, [2, 10, 25, 50, 75, 90, 98])]
