"""`report.html` and `tables.csv` of cross-validations and evaluations: the paper's tables, ours beside them."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ssclf.config import PreprocessConfig
from ssclf.domain import paper
from ssclf.domain.comparison import compare, reliability
from ssclf.domain.network_scores import PER_CLASS, Network, Score
from ssclf.domain.scores import softmax
from ssclf.io.records.cv_run import CvRun, read_cv_run, summarise
from ssclf.io.records.tables import write_table
from ssclf.reporting.figures import draw_confusions, draw_fold_curves, draw_heat_maps, draw_reliability
from ssclf.reporting.html import write_page

REPORT, TABLES, FIGURES = "report.html", "tables.csv", "figures"
TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "macro_specificity": "mean specificity",
    "macro_roc_auc": "mean ROC AUC",
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "roc_auc": "ROC AUC",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "brier": "Brier score",
}
_COLUMNS = (
    "network", "class", "metric", "probabilities", "mean", "sd", "ci_low", "ci_high", "folds", "paper", "paper_sd",
    "data",
)  # fmt: skip


def write_cv_report(out: Path) -> Path:
    """Write `report.html`, `tables.csv` and `figures/` of a cross-validation, whatever of it is finished.

    Args:
        out: folder that `ssclf cv` wrote.

    Returns:
        the page.

    Raises:
        ModelError: no cross-validation, or a damaged one.
        OutputError: it cannot be written.
    """
    run = read_cv_run(out)
    networks = summarise(run)
    sizes = {
        cell.fold: sum(result.training.volumes["train"].values()) for cell, result in run.results.items()
    }
    curves = {
        network.title: {fold: result.epochs for fold, result in run.of(network.name).items()}
        for network in networks
    }
    pairs = compare({network.name: network.folds for network in networks}, sizes, run.class_names)
    titles = {network.name: network.title for network in networks}
    how = (
        f"{run.folds} random divisions into training and test part, test share {run.config.holdout:g}, as in the paper"
        if run.scheme == "paper"
        else f"{run.folds} disjoint folds"
    )
    return _write(
        out,
        networks,
        title="Cross-validation" + _unlike_paper(run.preprocess),
        synthetic=run.synthetic,
        class_names=run.class_names,
        curves=curves,
        facts=[
            ("folds", f"{how}; stratified by class, grouped by subject, the same for all networks"),
            ("training", _describe(run)),
            ("preprocessing", f"{_by(run.preprocess.spacing)} mm, {run.preprocess.hash}"),
        ],
        missing=[cell.name for cell in run.missing],
        failures=[(cell.name, reason) for cell, reason in run.failures.items()],
        cohort=run.cohort,
        audit=run.audit,
        audited=True,
        pairs=[
            {**vars(pair), "told": pair.told, "first": titles[pair.first], "second": titles[pair.second]}
            for pair in pairs
        ],
        costs=[_cost(run, network) for network in networks],
        overlap=run.scheme == "paper",
        seen=0,
    )


def write_evaluation_report(
    out: Path,
    network: Network,
    *,
    synthetic: bool,
    cohort: Mapping[str, Mapping[str, int]],
    facts: Sequence[tuple[str, str]],
    seen: int,
) -> Path:
    """The same page for a bundle on a cohort that it has not seen.

    Args:
        network: with a single fold.
        synthetic: whether the volumes, or those the model was trained on, are synthetic.
        cohort: class → source → number of volumes.
        facts: lines for the head of the page.
        seen: volumes left out because the model was trained on them.
    """
    return _write(
        out,
        [network],
        title="Evaluation",
        synthetic=synthetic,
        class_names=network.class_names,
        curves={},
        facts=facts,
        missing=[],
        failures=[],
        cohort=cohort,
        audit=None,
        audited=False,
        pairs=[],
        costs=[],
        overlap=False,
        seen=seen,
    )


def _write(
    out: Path,
    networks: Sequence[Network],
    *,
    synthetic: bool,
    class_names: tuple[str, ...],
    curves: Mapping[str, Any],
    **values: Any,
) -> Path:
    note = "synthetic volumes: nothing here says anything about patients" if synthetic else ""
    figures = _draw(out / FIGURES, networks, class_names, curves, note) if networks else []
    _write_tables(out / TABLES, networks, synthetic)
    comparable = set(class_names) == set(paper.CLASSES) and any(n.name in paper.NETWORKS for n in networks)
    write_page(
        "cv_report.html",
        out / REPORT,
        networks=networks,
        synthetic=synthetic,
        class_names=class_names,
        figures=figures,
        metric_titles=TITLES,
        per_class=PER_CLASS,
        paper_networks=paper.NETWORKS,
        paper_tables=paper.TABLES,
        accuracy_note=paper.ACCURACY_NOTE,
        comparable=comparable,
        number=_number,
        spread=_spread,
        limits=_limits,
        **values,
    )
    return out / REPORT


def _draw(
    folder: Path,
    networks: Sequence[Network],
    class_names: tuple[str, ...],
    curves: Mapping[str, Any],
    note: str,
) -> list[dict[str, str]]:
    """Figures as files, and as data URIs with their captions."""
    comparable = set(class_names) == set(paper.CLASSES)
    rows = []
    for network in networks:
        ours = {
            name: [network.score(metric, name).mean or 0.0 for metric in PER_CLASS] for name in class_names
        }
        rows.append((network.title, ours))
        if comparable and network.name in paper.NETWORKS:
            published = paper.NETWORKS[network.name].per_class
            rows.append(
                (
                    "the paper's",
                    {name: [getattr(published[name], m) for m in PER_CLASS] for name in class_names},
                )
            )
    calibration = {}
    for network in networks:
        folds = list(network.folds.values())
        targets = np.concatenate([fold.targets for fold in folds])
        lines = {}
        for label, temperatures in (
            ("as trained", [1.0] * len(folds)),
            ("calibrated", network.temperatures.values()),
        ):
            shares = np.concatenate([softmax(f.logits, t) for f, t in zip(folds, temperatures, strict=True)])
            lines[label] = [(b.confidence, b.accuracy, b.count) for b in reliability(targets, shares)]
        calibration[network.title] = lines
    draw_confusions({n.title: n.pooled.confusion for n in networks}, class_names, folder / "confusion", note)
    draw_heat_maps(rows, class_names, [TITLES[m] for m in PER_CLASS], folder / "per-class", note)
    draw_reliability(calibration, folder / "reliability", note)
    captions = {
        "confusion": "Confusion matrices over all test parts (the paper's Figs. 4 to 6): counts, shares of rows.",
        "per-class": "Scores of each class, mean over folds (the paper's Fig. 7).",
        "reliability": "Reliability: share of right predictions by confidence, before and after calibration with a "
        "temperature that was fitted on other volumes.",
    }
    if curves:
        draw_fold_curves(curves, folder / "learning-curves", note)
        captions["learning-curves"] = "Learning curves: weighted cross-entropy on augmented training volumes."
    return [
        {"name": name, "caption": caption, "uri": _data_uri(folder / f"{name}.svg")}
        for name, caption in captions.items()
    ]


def _data_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _write_tables(path: Path, networks: Sequence[Network], synthetic: bool) -> None:
    scores = (score for network in networks for score in network.scores)
    rows = [
        (
            *(score.network, score.class_name, score.metric, score.probabilities),
            *(score.mean, score.sd, score.low, score.high),
            score.folds,
            *(score.paper, score.paper_sd),
            "synthetic" if synthetic else "as given",
        )
        for score in scores
    ]
    ours = dict.fromkeys(("mean", "sd", "ci_low", "ci_high"), ".6f")
    write_table(path, _COLUMNS, rows, formats={**ours, "folds": "d", "paper": "g", "paper_sd": "g"})


def _unlike_paper(ours: PreprocessConfig) -> str:
    """What of the preprocessing is not as published, for the title."""
    published = PreprocessConfig()
    told = {
        "spacing": f"{_by(ours.spacing)} mm",
        "percentiles": _by(ours.percentiles, " to "),
        "plane": ours.plane,
        "contrasts": " and ".join(ours.contrasts),
        "crop": ours.crop,
    }
    others = [
        f"{name} {text}" for name, text in told.items() if getattr(ours, name) != getattr(published, name)
    ]
    return f", not preprocessed as in the paper: {', '.join(others)}" if others else ""


def _by(numbers: Sequence[float], between: str = " x ") -> str:
    return between.join(f"{number:g}" for number in numbers)


def _describe(run: CvRun) -> str:
    c = run.config
    choice = (
        f"epoch chosen on {c.validation:.0%} of the training subjects" if c.validation else "last epoch kept"
    )
    return (
        f"{c.epochs} epochs, {choice}; Adam, learning rate {c.learning_rate:g} ({c.schedule}), weight decay "
        f"{c.weight_decay:g}, batch {c.batch_size * c.accumulate}, augmentation {c.augmentation}, "
        f"dropout {c.dropout:g}, class weights {c.class_weights}, seed {c.seed}"
    )


def _cost(run: CvRun, network: Network) -> dict[str, Any]:
    """What a network cost, over its finished folds: times as medians, memory as the least.

    A process that trained before keeps some memory, so the least is nearest to what training needs.
    """
    results = list(run.of(network.name).values())
    costs = [result.cost for result in results if result.cost]
    seconds = [
        epoch["seconds"] / sum(result.training.volumes["train"].values())
        for result in results
        for epoch in result.epochs
        if epoch["seconds"] is not None
    ]
    peaks = [cost["peak_training_mb"] for cost in costs if cost["peak_training_mb"]]
    published = paper.NETWORKS.get(network.name)
    return {
        "title": network.title,
        "parameters": costs[0]["parameters"] if costs else None,
        "paper_parameters": published.parameters if published else None,
        "gflops": costs[0]["gflops"] if costs else None,
        "shape": " x ".join(map(str, costs[0]["shape"])) if costs else "",
        "seconds": median(cost["seconds_per_volume"] for cost in costs) if costs else None,
        "training_seconds": median(seconds) if seconds else None,
        "peak_mb": min(peaks) if peaks else None,
        "peak_of": costs[0]["peak_of"] if costs else "",
        "device": ", ".join(Counter(cost["device"] for cost in costs)),
    }


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _spread(score: Score) -> str:
    """`0.854 ± 0.049`, the deviation over folds where there are several."""
    return _number(score.mean) + ("" if score.sd is None else f" ± {score.sd:.3f}")


def _limits(score: Score) -> str:
    return "" if score.low is None or score.high is None else f"{score.low:.3f} to {score.high:.3f}"
