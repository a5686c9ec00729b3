from __future__ import annotations

import numpy as np
import pytest

from ssclf.domain.comparison import (
    FoldPredictions,
    bootstrap_scores,
    compare,
    cross_fitted_temperatures,
    interval,
    mean_and_sd,
    pool,
    reliability,
    score_folds,
)
from ssclf.domain.metrics import fit_temperature

CLASSES = ("a", "b")


def fold(targets: list[int], said: list[int], start: int = 0, sure: float = 2.0) -> FoldPredictions:
    names = tuple(f"s{start + k}" for k in range(len(targets)))
    return FoldPredictions(names, names, np.array(targets), sure * np.eye(2)[said])


@pytest.mark.needs("scipy")
def test_the_corrected_t_test_by_hand() -> None:
    """Macro F1 of the first network is 1, 1, 1; of the second 1, 1/3 (all said to be a) and 2/3·… by hand below."""
    first = {k: fold([0, 0, 1, 1], [0, 0, 1, 1], 4 * k) for k in (1, 2, 3)}
    second = {
        1: fold([0, 0, 1, 1], [0, 0, 1, 1], 4),
        2: fold([0, 0, 1, 1], [0, 0, 0, 0], 8),  # F1 2/3 and 0
        3: fold([0, 0, 1, 1], [0, 0, 0, 1], 12),  # F1 4/5 and 2/3
    }
    (found,) = compare({"one": first, "two": second}, {1: 8, 2: 8, 3: 8}, CLASSES)
    differences = np.array([0, 1 - 1 / 3, 1 - 11 / 15])
    assert found.difference == pytest.approx(differences.mean())
    assert found.sd == pytest.approx(differences.std(ddof=1))
    t = differences.mean() / (differences.std(ddof=1) * np.sqrt(1 / 3 + 4 / 8))
    # Student's t with two degrees of freedom in closed form
    assert found.p == pytest.approx(1 - t / np.sqrt(2 + t * t))
    assert found.folds == 3 and found.low >= 0


@pytest.mark.needs("scipy")
def test_equal_networks_have_no_p_and_no_difference() -> None:
    folds = {1: fold([0, 1], [0, 1]), 2: fold([0, 1], [0, 0], 2)}
    (found,) = compare({"one": folds, "two": folds}, {1: 2, 2: 2}, CLASSES)
    assert (found.difference, found.p, found.low, found.high) == (0, None, 0, 0)


@pytest.mark.needs("scipy")
def test_networks_are_compared_on_the_folds_that_both_have() -> None:
    one = {1: fold([0, 1], [0, 1]), 2: fold([0, 1], [0, 1], 2)}
    two = {2: fold([0, 1], [0, 0], 2), 3: fold([0, 1], [0, 1], 4)}
    (found,) = compare({"one": one, "two": two}, {1: 4, 2: 4, 3: 4}, CLASSES)
    assert found.folds == 1 and found.p is None
    assert found.difference == pytest.approx(1 - 1 / 3)
    assert compare({"one": {1: one[1]}, "two": {3: two[3]}}, {1: 4, 3: 4}, CLASSES) == []


@pytest.mark.needs("sklearn")
def test_resampled_scores_are_those_of_the_metrics_and_spread_as_a_proportion_does() -> None:
    random = np.random.default_rng(1)
    targets = np.repeat([0, 1], 100)
    said = np.where(random.random(200) < 0.8, targets, 1 - targets)
    one = fold(targets.tolist(), said.tolist())
    drawn = bootstrap_scores([one], 2)
    (metrics,) = score_folds([one], [1.0], CLASSES)
    assert drawn["accuracy"].mean() == pytest.approx(metrics.accuracy, abs=0.005)
    assert drawn["macro_f1"].mean() == pytest.approx(metrics.macro_f1, abs=0.005)
    assert drawn["specificity"].mean(axis=0)[1] == pytest.approx(
        metrics.per_class["b"].specificity, abs=0.005
    )
    accuracy = metrics.accuracy
    assert drawn["accuracy"].std() == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 200), rel=0.1)
    low, high = interval(drawn["accuracy"])
    assert low < accuracy < high


def test_subjects_not_volumes_are_drawn() -> None:
    """A hundred volumes of one subject a class tell no more than two volumes."""
    targets, said = np.repeat([0, 1], 50), np.repeat([0, 0], 50)
    one = fold(targets.tolist(), said.tolist())
    same = FoldPredictions(one.keys, tuple("ab"[t] for t in targets), one.targets, one.logits)
    assert bootstrap_scores([same], 2)["accuracy"].std() == 0


@pytest.mark.needs("scipy")
def test_a_temperature_never_sees_what_it_scores() -> None:
    random = np.random.default_rng(2)
    targets = random.integers(0, 2, 60).tolist()
    said = [t if random.random() < 0.8 else 1 - t for t in targets]
    folds = [fold(targets[:30], said[:30], sure=9), fold(targets[30:], said[30:], 20, sure=1)]  # ten overlap
    found = cross_fitted_temperatures(folds)
    assert found[0] == fit_temperature(folds[1].logits[10:], folds[1].targets[10:])
    assert found[1] == fit_temperature(folds[0].logits[:20], folds[0].targets[:20])
    assert found[1] > 2 * found[0]
    assert cross_fitted_temperatures(folds[:1]) == [1.0]
    assert len(pool(folds).keys) == 60


def test_reliability_counts_every_prediction_in_its_bin() -> None:
    probabilities = np.array([[0.9, 0.1], [0.92, 0.08], [0.45, 0.55], [1.0, 0.0]])
    bins = reliability(np.array([0, 1, 1, 0]), probabilities)
    assert [(b.count, b.accuracy) for b in bins] == [(1, 1), (2, 0.5), (1, 1)]
    assert bins[1].confidence == pytest.approx(0.91)


def test_mean_and_sd_of_what_is_there() -> None:
    assert mean_and_sd([1.0, None, 3.0]) == pytest.approx((2.0, np.sqrt(2)))
    assert mean_and_sd([1.0]) == (1.0, None)
    assert mean_and_sd([None]) == (None, None)


@pytest.mark.parametrize("count", range(2, 12))
@pytest.mark.needs("scipy")
def test_equal_differences_have_no_p_whatever_their_last_bits(count: int) -> None:
    """One error a fold, each time in another class, gave differences equal but for 6e-17, and p = 1e-31."""
    classes = ("a", "b", "c")

    def part(number: int, wrong: int | None) -> FoldPredictions:
        targets = np.repeat([0, 1, 2], count)
        said = targets.copy()
        if wrong is not None:
            said[np.flatnonzero(targets == wrong)[0]] = (wrong + 1) % 3
        names = tuple(f"{number}-{k}" for k in range(3 * count))
        return FoldPredictions(names, names, targets, np.eye(3)[said] * 3.0)

    networks = {
        name: {k: part(k, k - 1 if name == "two" else None) for k in (1, 2, 3)} for name in ("one", "two")
    }
    (found,) = compare(networks, dict.fromkeys((1, 2, 3), 6 * count), classes)
    assert (found.p, found.sd) == (None, 0) and found.difference > 0
    assert found.told == "none: equal in all folds"
    (same,) = compare(
        {"one": networks["two"], "two": networks["two"]}, dict.fromkeys((1, 2, 3), 6 * count), classes
    )
    assert same.told == "none: no difference measurable"


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.needs("sklearn")
def test_an_estimate_lies_in_its_interval_whatever_classes_are_there(seed: int) -> None:
    """An external cohort of one class had macro F1 1.000, with an interval from 0.333 to 0.333."""
    random = np.random.default_rng(seed)
    classes = tuple("abcd")[: random.integers(2, 5)]
    present = random.choice(len(classes), random.integers(1, len(classes) + 1), replace=False)
    folds = []
    for number in range(random.integers(1, 4)):
        targets = np.repeat(present, random.integers(1, 6, len(present)))
        said = np.where(
            random.random(len(targets)) < random.uniform(0.3, 1), targets, random.integers(len(classes))
        )
        names = tuple(f"{number}-{k}" for k in range(len(targets)))
        folds.append(FoldPredictions(names, names, targets, 2.0 * np.eye(len(classes))[said]))
    estimates = score_folds(folds, [1.0] * len(folds), classes)
    drawn = bootstrap_scores(folds, len(classes), draws=400)
    for metric in ("accuracy", "macro_f1", "weighted_f1", "macro_specificity"):
        low, high = interval(drawn[metric])
        estimate = np.mean([getattr(each, metric) for each in estimates])
        assert low - 1e-9 <= estimate <= high + 1e-9, (metric, low, estimate, high)
