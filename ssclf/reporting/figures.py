"""Figures of runs, as PNG or SVG files by their ending. matplotlib is imported where it is used."""

from __future__ import annotations

import contextlib
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssclf.io.files import whole_path


@contextlib.contextmanager
def _plain_text() -> Iterator[None]:
    """What users name is drawn as they wrote it: two dollar signs make no formula, a letter without a shape a box."""
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        yield


@_plain_text()
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
    with whole_path(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=110)


@_plain_text()
def draw_confusions(
    networks: Mapping[str, Sequence[Sequence[float]]], class_names: Sequence[str], stem: Path, note: str = ""
) -> None:
    """A confusion matrix a network. As Figs. 4 to 6 of the paper.

    Args:
        networks: name → counts (K, K), rows the truth.
        stem: path without ending; a PNG and an SVG file are written.
        note: written above, for figures that leave their page.
    """
    figure, panels = _grid(len(networks), 1.6 + len(class_names), 1.3 + len(class_names))
    for axes, (name, counts) in zip(panels, networks.items(), strict=False):
        _fill_confusion(axes, counts, class_names)
        axes.set_title(_fold(name))
    _save(figure, stem, note)


@_plain_text()
def draw_heat_maps(
    rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]],
    class_names: Sequence[str],
    columns: Sequence[str],
    stem: Path,
    note: str = "",
) -> None:
    """One heat map a class, a row a network. As Fig. 7 of the paper.

    Args:
        rows: name → class → values in the order of `columns`.
    """
    figure, panels = _grid(len(class_names), 1.5 + 0.9 * len(columns), 1.4 + 0.4 * len(rows), wrap=3)
    for number, (axes, name) in enumerate(zip(panels, class_names, strict=False)):
        values = np.array([row[name] for _, row in rows], float)
        axes.imshow(values, cmap="viridis", vmin=0.5, vmax=1, aspect="auto")
        axes.set(title=_fold(name), xticks=range(len(columns)), yticks=range(len(rows)))
        axes.set_xticklabels(columns, rotation=20, ha="right")
        axes.set_yticklabels([_fold(title, 40) for title, _ in rows] if number % 3 == 0 else [])
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value < 0.8 else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=8)
    _save(figure, stem, note)


@_plain_text()
def draw_fold_curves(
    networks: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]], stem: Path, note: str = ""
) -> None:
    """Training loss by epoch, a line a fold; validation loss dashed, where there is one.

    Args:
        networks: name → fold → rows of `metrics.csv`.
    """
    figure, panels = _grid(len(networks), 4.2, 3.0)
    for axes, (name, folds) in zip(panels, networks.items(), strict=False):
        for number, (fold, epochs) in enumerate(sorted(folds.items())):
            for column, style in (("train_loss", "-"), ("val_loss", "--")):
                values = [np.nan if row[column] is None else row[column] for row in epochs]
                if not np.isnan(values).all():
                    label = f"fold {fold}" + (", validation" if column == "val_loss" else "")
                    marker = "." if len(values) < 30 else ""
                    axes.plot(
                        [row["epoch"] for row in epochs],
                        values,
                        style,
                        color=f"C{number}",
                        label=label,
                        marker=marker,
                    )
        axes.set(title=_fold(name), xlabel="epoch", ylabel="weighted cross-entropy", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, stem, note)


@_plain_text()
def draw_reliability(
    networks: Mapping[str, Mapping[str, Sequence[tuple[float, float, int]]]], stem: Path, note: str = ""
) -> None:
    """Share of right predictions by confidence; on the diagonal a network is as sure as it should be.

    Args:
        networks: name → line's label → (mean confidence, accuracy, count) a bin; dots grow with the count.
    """
    figure, panels = _grid(len(networks), 3.6, 3.4)
    for axes, (name, lines) in zip(panels, networks.items(), strict=False):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
        for number, (label, bins) in enumerate(lines.items()):
            confidence, accuracy, counts = np.array(bins, float).T
            axes.plot(confidence, accuracy, color=f"C{number}", label=label)
            axes.scatter(
                confidence, accuracy, s=10 + 150 * counts / counts.sum(), color=f"C{number}", alpha=0.5
            )
        axes.set(
            title=_fold(name),
            xlabel="confidence",
            ylabel="share that is right",
            xlim=(0, 1.02),
            ylim=(0, 1.02),
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    _save(figure, stem, note)


def _fill_confusion(axes: Any, confusion: Sequence[Sequence[float]], class_names: Sequence[str]) -> None:
    counts = np.asarray(confusion, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(class_names))
    axes.set(xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks)
    names = [_fold(name, 24) for name in class_names]
    axes.set_xticklabels(names, rotation=30, ha="right")
    axes.set_yticklabels(names)
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


def _fold(name: str, width: int = 30) -> str:
    """A name in lines that do not run into the next panel, without what an SVG file cannot hold."""
    shown = "".join(c if c.isprintable() or c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return textwrap.fill(shown, width)


def _grid(count: int, width: float, height: float, wrap: int = 3) -> tuple[Any, list[Any]]:
    """Panels of that size in inches, at most `wrap` beside each other."""
    from matplotlib.figure import Figure

    columns = min(count, wrap)
    rows = -(-count // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for spare in panels[count:]:
        spare.set_visible(False)
    return figure, panels


def _save(figure: Any, stem: Path, note: str) -> None:
    if note:
        figure.suptitle(note, fontsize=9)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, options in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
        # several processes may report on the same folder
        with whole_path(stem.with_name(f"{stem.name}.{ending}")) as partial:
            figure.savefig(partial, format=ending, **options)


def _figure(columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure outside pyplot, which would keep it in memory and look for a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))
