"""Figures of runs, as PNG or SVG files by their ending. matplotlib is imported where it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def draw_learning_curves(epochs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and validation scores by epoch.

    Args:
        epochs: rows of `metrics.csv`; values that are None are left out.
    """
    figure, (losses, scores) = _figure(2, (9, 3.4))
    numbers = [row["epoch"] for row in epochs]
    for axes, column, label in (
        (losses, "train_loss", "training (augmented)"),
        (losses, "val_loss", "validation"),
        (scores, "val_accuracy", "accuracy"),
        (scores, "val_macro_f1", "macro F1"),
    ):
        values = [np.nan if row[column] is None else row[column] for row in epochs]
        if not np.isnan(values).all():
            axes.plot(numbers, values, label=label, marker="." if len(values) < 30 else "")
    losses.set(title="weighted cross-entropy", xlabel="epoch", ylim=(0, None))
    scores.set(title="validation part", xlabel="epoch", ylim=(0, 1.02))
    if not scores.lines:
        scores.text(0.5, 0.5, "no validation part", ha="center", transform=scores.transAxes)
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=110)


def draw_confusion(confusion: Sequence[Sequence[float]], class_names: Sequence[str], path: Path) -> None:
    """Counts, rows the truth, shaded by the share of the row."""
    figure, (axes,) = _figure(1, (1.6 + len(class_names), 1.2 + len(class_names)))
    counts = np.asarray(confusion, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(class_names))
    axes.set(xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks)
    axes.set_xticklabels(class_names, rotation=30, ha="right")
    axes.set_yticklabels(class_names)
    for row, column in np.ndindex(counts.shape):
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{counts[row, column]:g}\n{share:.0%}",
            ha="center",
            va="center",
            color="white" if share > 0.6 else "black",
        )
    figure.savefig(path, dpi=110)


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure outside pyplot, which would keep it in memory and look for a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))
