"""Scores over folds: their spread, how sure they are, and whether two networks differ. scikit-learn and scipy are
imported where they are used, since prediction does without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.metrics import (
    Metrics,
    bin_by_confidence,
    confusion_scores,
    fit_temperature,
    score_predictions,
)
from ssclf.domain.scores import softmax

Values = NDArray[np.float64]
DRAWS = 2000
#: Scores are sums of ratios, exact to some 1e-16: differences that spread by no more than this are equal.
ROUNDING = 1e-12


@dataclass(frozen=True)
class FoldPredictions:
    """What a network said of the test part of one fold.

    Attributes:
        keys, subjects: N names.
        targets: (N,) class indices.
        logits: (N, K), not calibrated.
    """

    keys: tuple[str, ...]
    subjects: tuple[str, ...]
    targets: NDArray[np.int64]
    logits: Values


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence: mean of it, share that is right, number."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class PairedTest:
    """First minus second network.

    Attributes:
        difference, sd: of macro F1 over the folds that both have; 0 where rounding alone makes them.
        p: two-sided, None where nothing can be told: with fewer than two folds, or where the differences are the same
            in all of them but for rounding, so that their spread says nothing of chance.
        low, high: 95 % interval of the difference from resampling subjects; it leaves out that another training
            would have given another network.
    """

    first: str
    second: str
    folds: int
    difference: float
    sd: float
    p: float | None
    low: float
    high: float

    @property
    def told(self) -> str:
        """What the test says, for people."""
        if self.p is not None:
            return f"{self.p:.3f}" if self.p >= 0.001 else "below 0.001"
        if self.folds < 2:
            return "none: one fold"
        return "none: no difference measurable" if self.difference == 0 else "none: equal in all folds"


def pool(folds: Sequence[FoldPredictions]) -> FoldPredictions:
    """All folds as one; a volume in several test parts counts as often."""
    return FoldPredictions(
        keys=tuple(key for fold in folds for key in fold.keys),
        subjects=tuple(subject for fold in folds for subject in fold.subjects),
        targets=np.concatenate([fold.targets for fold in folds]),
        logits=np.concatenate([fold.logits for fold in folds]),
    )


def cross_fitted_temperatures(folds: Sequence[FoldPredictions]) -> list[float]:
    """For each fold a temperature fitted on the others, without the volumes that it tests itself.

    A temperature that scores must not have seen what it scores. 1 where nothing is left to fit it on.
    """
    temperatures = []
    for own in folds:
        rest = [fold for fold in folds if fold is not own]
        if not rest:
            temperatures.append(1.0)
            continue
        others = pool(rest)
        free = ~np.isin(others.keys, own.keys)
        temperatures.append(fit_temperature(others.logits[free], others.targets[free]))
    return temperatures


def score_folds(
    folds: Sequence[FoldPredictions], temperatures: Sequence[float], class_names: Sequence[str]
) -> list[Metrics]:
    return [
        score_predictions(fold.targets, softmax(fold.logits, temperature), class_names)
        for fold, temperature in zip(folds, temperatures, strict=True)
    ]


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None without values, no deviation of one."""
    known = [v for v in values if v is not None]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def bootstrap_scores(
    folds: Sequence[FoldPredictions], classes: int, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Values]:
    """Scores of the same networks on other subjects: those in the test parts, drawn again within each class.

    Calls with equal subjects and seed draw equal samples, so that differences between networks are paired.

    Returns:
        what `confusion_scores` gives of each draw, of shape (draws,) or (draws, K): the mean over the folds of which
        subjects were drawn.
    """
    owner = {s: int(t) for fold in folds for s, t in zip(fold.subjects, fold.targets, strict=True)}
    names = sorted(owner)
    random = np.random.default_rng(seed)
    weights = np.zeros((draws, len(names)))
    for c in sorted(set(owner.values())):
        members = np.array([k for k, name in enumerate(names) if owner[name] == c])
        drawn = random.integers(len(members), size=(draws, len(members)))
        np.add.at(weights, (np.arange(draws)[:, None], members[drawn]), 1)
    position = {name: k for k, name in enumerate(names)}
    scores = []
    for fold in folds:
        cell = np.eye(classes * classes)[fold.targets * classes + fold.logits.argmax(axis=1)]
        mine = weights[:, [position[s] for s in fold.subjects]]
        scores.append(confusion_scores((mine @ cell).reshape(draws, classes, classes)))
    tested = ~np.isnan([s["accuracy"] for s in scores])  # (folds, draws)
    means = {}
    for name in scores[0]:
        values = np.array([s[name] for s in scores])
        kept = tested.reshape(tested.shape + (1,) * (values.ndim - 2))
        means[name] = np.where(kept, values, 0).sum(axis=0) / kept.sum(axis=0)
    return means


def interval(values: Values) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def compare(
    networks: Mapping[str, Mapping[int, FoldPredictions]],
    training_sizes: Mapping[int, int],
    class_names: Sequence[str],
) -> list[PairedTest]:
    """Every pair of networks over the folds that both have finished, by macro F1.

    The corrected resampled t-test: folds share training volumes, so their scores vary less than scores of
    independent experiments would, and a plain t-test finds differences that are not there. The variance is
    widened by test size / training size. With three folds there are two degrees of freedom: only large, steady
    differences can reach p < 0.05, and no p says that networks are equal. McNemar's test was no choice, since in
    the paper's scheme a volume is tested several times, by networks of several trainings.

    Source: Nadeau and Bengio, Inference for the Generalization Error, 2003, Sec. 5.

    Args:
        networks: name → fold number → predictions.
        training_sizes: fold number → volumes that trained.
    """
    names = list(networks)
    pairs = [(first, second) for i, first in enumerate(names) for second in names[i + 1 :]]
    found = [_compare_two(networks, first, second, training_sizes, class_names) for first, second in pairs]
    return [test for test in found if test]


def _compare_two(
    networks: Mapping[str, Mapping[int, FoldPredictions]],
    first: str,
    second: str,
    training_sizes: Mapping[int, int],
    class_names: Sequence[str],
) -> PairedTest | None:
    """None without a fold that both have."""
    from scipy.stats import t

    common = sorted(set(networks[first]) & set(networks[second]))
    if not common:
        return None
    one, two = ([networks[name][k] for k in common] for name in (first, second))
    f1 = [
        np.array([m.macro_f1 for m in score_folds(folds, [1.0] * len(folds), class_names)])
        for folds in (one, two)
    ]
    differences = f1[0] - f1[1]
    ratio = float(np.mean([len(f.targets) / training_sizes[k] for f, k in zip(one, common, strict=True)]))
    n = len(common)
    mean = _unless_rounding(float(differences.mean()))
    sd = _unless_rounding(float(np.std(differences, ddof=1)) if n > 1 else 0.0)
    statistic = mean / (sd * np.sqrt(1 / n + ratio)) if sd else None
    drawn = [bootstrap_scores(folds, len(class_names))["macro_f1"] for folds in (one, two)]
    low, high = interval(drawn[0] - drawn[1])
    p = None if statistic is None else float(2 * t.sf(abs(statistic), n - 1))
    return PairedTest(first, second, n, mean, sd, p, low, high)


def _unless_rounding(value: float) -> float:
    return value if abs(value) > ROUNDING else 0.0


def reliability(targets: NDArray[np.int64], probabilities: Values) -> list[Bin]:
    """Predictions in 15 bins of confidence, as in the calibration error; empty ones are left out."""
    confidence, right, index = bin_by_confidence(targets, probabilities)
    return [
        Bin(float(confidence[index == b].mean()), float(right[index == b].mean()), int((index == b).sum()))
        for b in np.unique(index)
    ]
