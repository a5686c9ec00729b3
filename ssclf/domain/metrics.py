"""How good probabilities are, given the truth. scikit-learn counts; it is imported where it is used, since
prediction does without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.scores import softmax

Targets = NDArray[np.integer]
CALIBRATION_BINS = 15
#: A temperature that was fitted on fewer volumes says little: in 300 simulations with three classes and a true
#: temperature of 1, the fitted one had a standard deviation of 0.63 on 10 volumes, 0.36 on 20, 0.20 on 50.
ENOUGH_TO_CALIBRATE = 50


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest. A ratio of nothing to nothing is 0; an area that is undefined is None.

    Attributes:
        support: volumes that truly are of this class.
        roc_auc: None where the volumes are all of this class, or none is.
    """

    precision: float
    recall: float
    specificity: float
    f1: float
    support: int
    roc_auc: float | None


@dataclass(frozen=True)
class Metrics:
    """Scores of one set of predictions, by `confusion_scores`. Source: Chatterjee et al., Sec. 2.6, and calibration.

    Attributes:
        per_class: by class name.
        accuracy: share of volumes classified right.
        macro_f1, macro_specificity, macro_roc_auc: mean over the classes that these volumes have, each counting the
            same; an external cohort may lack some.
        weighted_f1: mean over classes, weighted by support.
        confusion: (K, K) counts, rows the truth, columns the prediction.
        log_loss: mean negative log probability of the true class.
        calibration_error: expected calibration error over 15 bins of confidence.
        brier: mean squared distance to the one-hot truth, 0 to 2.
    """

    per_class: Mapping[str, ClassMetrics]
    accuracy: float
    macro_f1: float
    weighted_f1: float
    macro_specificity: float
    macro_roc_auc: float | None
    confusion: tuple[tuple[int, ...], ...]
    log_loss: float
    calibration_error: float
    brier: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def score_predictions(
    targets: Targets, probabilities: NDArray[np.floating], class_names: Sequence[str]
) -> Metrics:
    """Score probabilities.

    Args:
        targets: (N,) class indices, N >= 1.
        probabilities: (N, K), each row summing to 1; the prediction is the largest.
        class_names: K names.
    """
    from sklearn.metrics import confusion_matrix, roc_auc_score

    classes = np.arange(len(class_names))
    confusion = confusion_matrix(targets, probabilities.argmax(axis=1), labels=classes)
    scores = confusion_scores(confusion.astype(float))
    support = confusion.sum(axis=1)
    areas = [
        float(roc_auc_score(targets == c, probabilities[:, c])) if 0 < support[c] < len(targets) else None
        for c in classes
    ]
    defined = [area for area in areas if area is not None]
    return Metrics(
        per_class={
            name: ClassMetrics(
                **{
                    metric: float(scores[metric][c])
                    for metric in ("precision", "recall", "specificity", "f1")
                },
                support=int(support[c]),
                roc_auc=areas[c],
            )
            for c, name in enumerate(class_names)
        },
        accuracy=float(scores["accuracy"]),
        macro_f1=float(scores["macro_f1"]),
        weighted_f1=float(scores["weighted_f1"]),
        macro_specificity=float(scores["macro_specificity"]),
        macro_roc_auc=float(np.mean(defined)) if defined else None,
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        log_loss=_log_loss(targets, probabilities),
        calibration_error=_calibration_error(targets, probabilities),
        brier=float(((probabilities - np.eye(len(classes))[targets]) ** 2).sum(axis=1).mean()),
    )


def confusion_scores(confusion: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Scores from counts: the one function for estimates and for the intervals around them.

    Means over classes are over those that truly occur, as scikit-learn's `f1_score` gives them with these classes as
    `labels`: an external cohort may lack some, and what nothing could be right about is no zero. A ratio of nothing
    to nothing is 0, scikit-learn's `zero_division=0`.

    Args:
        confusion: (..., K, K) counts or weights, rows the truth, columns the prediction.

    Returns:
        accuracy, macro_f1, weighted_f1, macro_specificity of shape (...) and precision, recall, specificity, f1 of
        shape (..., K). The four are NaN where nothing was counted.
    """

    def ratio(top: NDArray[np.float64], bottom: NDArray[np.float64], empty: float = 0) -> NDArray[np.float64]:
        return np.divide(top, bottom, out=np.full_like(top, empty), where=bottom > 0)

    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = true.sum(axis=-1)
    present = true > 0
    f1 = ratio(2 * right, true + predicted)
    negative = total[..., None] - true
    specificity = ratio(negative - predicted + right, negative)
    classes = present.sum(axis=-1).astype(float)
    return {
        "accuracy": ratio(right.sum(axis=-1), total, np.nan),
        "macro_f1": ratio((f1 * present).sum(axis=-1), classes, np.nan),
        "weighted_f1": ratio((f1 * true).sum(axis=-1), total, np.nan),
        "macro_specificity": ratio((specificity * present).sum(axis=-1), classes, np.nan),
        "precision": ratio(right, predicted),
        "recall": ratio(right, true),
        "specificity": specificity,
        "f1": f1,
    }


def fit_temperature(logits: NDArray[np.floating], targets: Targets) -> float:
    """The temperature at which probabilities fit unseen volumes best.

    Platt's targets (counts plus one) stand in for certain ones: few volumes, all classified right, must not
    drive the temperature to 0. Sources: Guo et al. 2017 (temperature scaling); Platt 1999, Sec. 2.2.

    Args:
        logits: (N, K) on volumes that did not fit the weights.
        targets: (N,) class indices.

    Returns:
        0.05 to 20; 1 for no volumes.
    """
    count, classes = logits.shape
    if count == 0:
        return 1.0

    from scipy.optimize import minimize_scalar

    wanted = np.full((count, classes), 1 / (count + classes))
    wanted[np.arange(count), targets] = (count + 1) / (count + classes)

    def cost(log_temperature: float) -> float:
        probabilities = softmax(logits, float(np.exp(log_temperature)))
        return -float((wanted * np.log(np.maximum(probabilities, 1e-300))).sum() / count)

    found = minimize_scalar(cost, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def _log_loss(targets: Targets, probabilities: NDArray[np.floating]) -> float:
    return float(-np.log(np.maximum(probabilities[np.arange(len(targets)), targets], 1e-12)).mean())


def bin_by_confidence(
    targets: Targets, probabilities: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.intp]]:
    """For each of N predictions its confidence, whether it is right, and its bin of confidence, (a, b], from 0."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.intp) - 1, 0, CALIBRATION_BINS - 1)
    return confidence, right, bins


def _calibration_error(targets: Targets, probabilities: NDArray[np.floating]) -> float:
    """|confidence - accuracy| per bin, weighted by volumes. Source: Guo et al. 2017, eq. 5 (bins (a, b])."""
    confidence, right, bins = bin_by_confidence(targets, probabilities)
    gap = np.bincount(bins, confidence, CALIBRATION_BINS) - np.bincount(bins, right, CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(targets))
