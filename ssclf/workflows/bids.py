"""`ssclf bids`: prediction as a BIDS App, https://bids-apps.neuroimaging.io."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ssclf.config import PredictConfig
from ssclf.io.discovery.bids import participants
from ssclf.io.discovery.sources import Discovery, discover
from ssclf.io.records.bids_derivative import begin_derivative, write_group, write_participant
from ssclf.io.records.results import ResultRow
from ssclf.workflows.predict import PredictSummary, predict

log = logging.getLogger(__name__)


def classify_participants(
    bids: Path,
    out: Path,
    labels: Sequence[str],
    models: Sequence[Path],
    config: PredictConfig,
    *,
    on_start: Callable[[Discovery, int], None] = lambda discovery, todo: None,
    on_row: Callable[[ResultRow], None] = lambda row: None,
) -> PredictSummary:
    """Classify what lies in `sub-*/anat` and `sub-*/ses-*/anat`, and write a table per participant.

    Several processes may work on one `out`, each on other labels. A run that was stopped writes no table of a
    participant; the same command goes on with it.

    Raises:
        SsclfError: see `participants`, `begin_derivative` and `predict`.
    """
    chosen = participants(bids, labels)
    begin_derivative(out, bids)
    summary = predict(
        [bids],
        _work_table(out, labels),
        models,
        config,
        find=partial(discover, begin=tuple(folder for folders in chosen.values() for folder in folders)),
        on_start=on_start,
        on_row=on_row,
    )
    if not summary.interrupted:
        for participant in chosen:
            rows = [row for row in summary.rows if row.path.startswith(f"{participant}/")]
            if not rows:
                log.warning("%s: no volume in its folders anat", participant)
            write_participant(out, participant, rows, summary.class_names)
    return summary


def join_participants(bids: Path, out: Path, labels: Sequence[str]) -> tuple[Path, int, int]:
    """See `write_group`."""
    begin_derivative(out, bids)
    return write_group(out, participants(bids, labels))


def _work_table(out: Path, labels: Sequence[str]) -> Path:
    """What the next run of the same labels goes on from; hidden, since BIDS has no place for it."""
    names = ",".join(sorted(label.removeprefix("sub-") for label in labels))
    name = f"some-{hashlib.sha256(names.encode()).hexdigest()[:12]}" if names else "all"
    folder = out / ".ssclf"
    folder.mkdir(exist_ok=True)
    return folder / f"{name}.csv"
