"""What a network said of its test parts, as scores: over folds, with intervals, and beside the paper's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ssclf.domain import paper
from ssclf.domain.comparison import (
    FoldPredictions,
    bootstrap_scores,
    interval,
    mean_and_sd,
    pool,
    score_folds,
)
from ssclf.domain.metrics import Metrics, score_predictions
from ssclf.domain.scores import softmax

PER_CLASS = ("precision", "recall", "specificity", "f1")
_ARCHITECTURES = {
    "mc3": "mixed convolution (mc3)",
    "r2plus1d": "R(2+1)D",
    "r3d": "ResNet 3D",
    "small": "small",
}


@dataclass(frozen=True)
class Score:
    """A row of `tables.csv`. Deviation over folds, 95 % interval over subjects, and what the paper has there."""

    network: str
    class_name: str
    metric: str
    probabilities: str
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    folds: int
    paper: float | None = None
    paper_sd: float | None = None


@dataclass(frozen=True)
class Network:
    """What one network, or one bundle, said of one or several test parts.

    Attributes:
        name: as in `--only`, or of the bundle.
        folds: number → predictions.
        sources: fold → source of every volume.
        temperatures: fold → temperature that has not seen what it scores.
        temperature: that a bundle made of it carries.
    """

    name: str
    folds: Mapping[int, FoldPredictions]
    sources: Mapping[int, Sequence[str]]
    temperatures: Mapping[int, float]
    temperature: float
    class_names: tuple[str, ...]

    @property
    def title(self) -> str:
        architecture, _, start = self.name.partition("/")
        known = _ARCHITECTURES.get(architecture, architecture)
        return f"{known}, {'pretrained' if start == 'pretrained' else 'from scratch'}" if start else known

    @cached_property
    def raw(self) -> list[Metrics]:
        return score_folds(list(self.folds.values()), [1.0] * len(self.folds), self.class_names)

    @cached_property
    def calibrated(self) -> list[Metrics]:
        return score_folds(list(self.folds.values()), list(self.temperatures.values()), self.class_names)

    @cached_property
    def pooled(self) -> Metrics:
        found = pool(list(self.folds.values()))
        return score_predictions(found.targets, softmax(found.logits), self.class_names)

    @cached_property
    def scores(self) -> list[Score]:
        return list(self._scores())

    def _scores(self) -> Iterator[Score]:
        drawn = bootstrap_scores(list(self.folds.values()), len(self.class_names))
        published = paper.NETWORKS.get(self.name) if set(self.class_names) == set(paper.CLASSES) else None
        for metric in ("accuracy", "macro_f1", "weighted_f1"):
            value = getattr(published, metric, None)
            yield self._row("", metric, "any", interval(drawn[metric]), value)
        yield self._row("", "macro_specificity", "any")
        yield self._row("", "macro_roc_auc", "raw")
        for kind in ("raw", "calibrated"):
            for metric in ("log_loss", "calibration_error", "brier"):
                yield self._row("", metric, kind)
        for index, name in enumerate(self.class_names):
            ours = published.per_class[name] if published else None
            for metric in PER_CLASS:
                spread = ours.f1_sd if ours and metric == "f1" else None
                limits = interval(drawn[metric][:, index])
                yield self._row(name, metric, "any", limits, getattr(ours, metric, None), spread)
            yield self._row(name, "roc_auc", "raw")

    def _row(
        self,
        class_name: str,
        metric: str,
        probabilities: str,
        limits: tuple[float | None, float | None] = (None, None),
        published: float | None = None,
        published_sd: float | None = None,
    ) -> Score:
        folds = self.calibrated if probabilities == "calibrated" else self.raw
        parts: list[Any] = [fold.per_class[class_name] if class_name else fold for fold in folds]
        mean, sd = mean_and_sd([getattr(part, metric) for part in parts])
        return Score(
            self.name,
            class_name,
            metric,
            probabilities,
            mean,
            sd,
            *limits,
            len(parts),
            published,
            published_sd,
        )

    def score(self, metric: str, class_name: str = "", probabilities: str = "any") -> Score:
        wanted = (class_name, metric, probabilities)
        return next(s for s in self.scores if (s.class_name, s.metric, s.probabilities) == wanted)

    def told(self, class_name: str) -> float:
        """Mean of recall and specificity: on the scale of the confound audit."""
        return float(
            np.mean(
                [(m.per_class[class_name].recall + m.per_class[class_name].specificity) / 2 for m in self.raw]
            )
        )

    @property
    def by_source(self) -> list[dict[str, Any]]:
        """Share of right predictions, pooled over folds, by source and class."""
        found = pool(list(self.folds.values()))
        sources = np.array([s or "not stated" for fold in self.folds for s in self.sources[fold]])
        right = found.logits.argmax(axis=1) == found.targets
        rows = []
        for source in np.unique(sources):
            here = sources == source
            recall = {
                name: float(right[here & (found.targets == k)].mean())
                for k, name in enumerate(self.class_names)
                if (here & (found.targets == k)).any()
            }
            rows.append(
                {
                    "source": str(source),
                    "volumes": int(here.sum()),
                    "accuracy": float(right[here].mean()),
                    "recall": recall,
                }
            )
        return rows
