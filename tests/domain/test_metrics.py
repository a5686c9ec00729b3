from __future__ import annotations

import numpy as np
import pytest

from ssclf.domain.metrics import fit_temperature, score_predictions
from ssclf.domain.scores import softmax

NAMES = ("HGG", "LGG", "healthy")
# rows the truth, columns the prediction
CONFUSION = ((5, 2, 0), (1, 3, 1), (0, 1, 7))


def from_confusion() -> tuple[np.ndarray, np.ndarray]:
    pairs = [(t, p) for t, row in enumerate(CONFUSION) for p, count in enumerate(row) for _ in range(count)]
    targets = np.array([t for t, _ in pairs])
    return targets, np.eye(3)[[p for _, p in pairs]] * 0.7 + 0.1


@pytest.mark.needs("sklearn")
def test_every_score_of_a_confusion_matrix_worked_out_by_hand() -> None:
    metrics = score_predictions(*from_confusion(), NAMES)
    assert metrics.confusion == CONFUSION
    assert metrics.accuracy == pytest.approx(15 / 20)
    # right among those predicted so, right among those truly so, right among the others
    expected = {
        "HGG": (5 / 6, 5 / 7, 12 / 13, 10 / 13, 7),
        "LGG": (3 / 6, 3 / 5, 12 / 15, 6 / 11, 5),
        "healthy": (7 / 8, 7 / 8, 11 / 12, 14 / 16, 8),
    }
    for name, values in expected.items():
        found = metrics.per_class[name]
        assert (found.precision, found.recall, found.specificity, found.f1, found.support) == pytest.approx(
            values
        )
    f1 = (10 / 13, 6 / 11, 14 / 16)
    assert metrics.macro_f1 == pytest.approx(sum(f1) / 3)
    assert metrics.weighted_f1 == pytest.approx((7 * f1[0] + 5 * f1[1] + 8 * f1[2]) / 20)
    assert metrics.macro_specificity == pytest.approx((12 / 13 + 12 / 15 + 11 / 12) / 3)
    # every prediction is given 0.8, and 0.75 of them are right
    assert metrics.calibration_error == pytest.approx(0.05)
    # right: 0.2² + 2 · 0.1² = 0.06; wrong: 0.8² + 0.9² + 0.1² = 1.46
    assert metrics.brier == pytest.approx((15 * 0.06 + 5 * 1.46) / 20)
    assert metrics.log_loss == pytest.approx(-(15 * np.log(0.8) + 5 * np.log(0.1)) / 20)


@pytest.mark.needs("sklearn")
def test_the_area_under_the_curve_counts_ordered_pairs() -> None:
    targets = np.array([0, 0, 1, 1, 1])
    p = np.array([0.9, 0.4, 0.6, 0.3, 0.2])
    metrics = score_predictions(targets, np.stack([p, 1 - p], axis=1), ("a", "b"))
    assert metrics.per_class["a"].roc_auc == pytest.approx(5 / 6)
    assert metrics.macro_roc_auc == pytest.approx(5 / 6)


@pytest.mark.needs("sklearn")
def test_a_class_that_is_absent_gives_no_area_and_no_warning() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]])
    metrics = score_predictions(np.array([0, 1]), probabilities, NAMES)
    assert metrics.per_class["healthy"].roc_auc is None
    assert metrics.per_class["healthy"].f1 == 0
    assert metrics.per_class["healthy"].specificity == 1
    assert metrics.macro_roc_auc == 1
    assert metrics.macro_f1 == metrics.macro_specificity == 1, "a class that is not here does not count"
    alone = score_predictions(np.array([1, 1]), probabilities, NAMES)
    assert alone.macro_roc_auc is None
    assert alone.per_class["LGG"].specificity == 0


@pytest.mark.needs("scipy")
def test_the_temperature_is_found_again() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 3))
    targets = np.array([random.choice(3, p=p) for p in softmax(logits)])
    assert fit_temperature(logits * 3, targets) == pytest.approx(3, rel=0.05)
    assert fit_temperature(logits / 2, targets) == pytest.approx(0.5, rel=0.05)


@pytest.mark.needs("scipy")
def test_a_few_right_answers_do_not_make_certainty() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    temperature = fit_temperature(logits, np.array([0, 1, 0]))
    assert 0.5 < temperature < 5
    assert softmax(logits, temperature).max() < 0.95
    assert fit_temperature(np.empty((0, 3)), np.empty(0, int)) == 1


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.needs("sklearn")
def test_scores_are_scikit_learns_over_the_classes_that_are_there(seed: int) -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

    random = np.random.default_rng(seed)
    classes = int(random.integers(2, 6))
    targets = random.choice(random.permutation(classes)[: random.integers(1, classes + 1)], 12)
    said = random.integers(0, classes, 12)
    metrics = score_predictions(targets, np.eye(classes)[said], [str(k) for k in range(classes)])
    there = np.unique(targets)
    assert metrics.accuracy == pytest.approx(accuracy_score(targets, said))
    for kind, mean in (("macro", metrics.macro_f1), ("weighted", metrics.weighted_f1)):
        assert mean == pytest.approx(f1_score(targets, said, labels=there, average=kind, zero_division=0))
    each = precision_recall_fscore_support(targets, said, labels=np.arange(classes), zero_division=0)
    for k, found in enumerate(metrics.per_class.values()):
        assert (found.precision, found.recall, found.f1, found.support) == pytest.approx(
            [row[k] for row in each]
        )
