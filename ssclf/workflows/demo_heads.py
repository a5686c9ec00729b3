"""`ssclf demo --heads`: what the reference model says of heads that the user has, with a page and maps to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ssclf.config import PredictConfig
from ssclf.io.discovery.sources import Discovery
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.reference_model import NAME
from ssclf.io.paths import check_output_folder
from ssclf.io.records.results import ResultRow
from ssclf.workflows.predict import PredictSummary, predict

RESULTS, PAGE, MAPS = "results.csv", "results.html", "maps"


def show_heads(
    heads: Path,
    out: Path,
    *,
    workers: int = 1,
    on_start: Callable[[Discovery, int], None] = lambda discovery, todo: None,
    on_row: Callable[[ResultRow], None] = lambda row: None,
) -> PredictSummary:
    """Classify heads with the reference model, into `results.csv`, `results.html` and `maps/`; as `predict`, it goes on
    where it was stopped.

    Args:
        heads: file or folder, as `ssclf predict` takes it.
        out: folder to write.

    Raises:
        SsclfError: the reference model is not here; or see `predict`.
    """
    check_output_folder("out", out)
    model = open_bundle(NAME).path  # before a folder is made
    (out / MAPS).mkdir(parents=True, exist_ok=True)
    return predict(
        [heads],
        out / RESULTS,
        [model],
        PredictConfig(workers=workers, map_method="mirror"),
        report=out / PAGE,
        maps=out / MAPS,
        on_start=on_start,
        on_row=on_row,
    )
