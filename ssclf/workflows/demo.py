"""`ssclf demo`: the whole way, from volumes to a results table, on synthetic volumes.

Everything is done by the same functions as on real data. Only the volumes are made by a program, and
every number that comes out says so.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from ssclf.config import PredictConfig, PreprocessConfig, TrainConfig
from ssclf.domain.synthetic import SyntheticLabel, make_synthetic_volume, vary_storage
from ssclf.errors import OutputError
from ssclf.io.discovery.cohorts import CohortQuery
from ssclf.io.paths import check_output_folder
from ssclf.io.records.preprocessed import qc_path
from ssclf.io.records.tables import write_table
from ssclf.io.records.training_run import EpochRecord
from ssclf.io.volumes.nifti import write_nifti
from ssclf.io.workers import run_in_processes
from ssclf.workflows.export import export_run
from ssclf.workflows.predict import PredictSummary, predict
from ssclf.workflows.preprocess import preprocess_cohort
from ssclf.workflows.train import Machine, Watch, train

BUNDLE = "synthetic-demo"
MANIFEST = "synthetic-training-volumes.csv"
TRUTH = "synthetic-held-out-truth.csv"

#: As coarse as pictures of it can still be read, so that two cores can train in a minute or two.
PREPROCESS = PreprocessConfig.preset("default", spacing=(6.0, 6.0, 6.0))
#: What `ssclf train` would choose, with fewer steps. Measured on synthetic volumes: scripts/measure_demo repeats it.
TRAIN = TrainConfig.preset("default", architecture="small", epochs=6, holdout=0.0)


@dataclass(frozen=True)
class DemoResult:
    """Attributes:
    results, report: the table of the held-out volumes, and the page.
    qc: the page of the training volumes.
    accuracy: share of them classified right. Synthetic.
    stages: what was done, and the seconds that it took.
    """

    results: Path
    report: Path
    qc: Path
    bundle: Path
    summary: PredictSummary
    accuracy: float
    stages: tuple[tuple[str, float], ...]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    training_volumes: int = 100,
    held_out_volumes: int = 30,
    epochs: int = TRAIN.epochs,
    workers: int = 2,
    on_stage: Callable[[str], None] = lambda title: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> DemoResult:
    """Generate, preprocess, train, export, predict.

    Args:
        out: a new folder.
        training_volumes, held_out_volumes: of each class.

    Raises:
        OutputError: the folder exists and holds something.
    """
    check_output_folder("out", out)
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out}: exists already; remove it, or choose another --out.")
    stages = _Stages(on_stage)
    stages.begin(f"making {3 * (training_volumes + held_out_volumes)} synthetic volumes")
    scans = out / "scans"
    _write_volumes(scans / "training", out / MANIFEST, training_volumes, (seed, 0), workers)
    truth = _write_volumes(scans / "held-out", out / TRUTH, held_out_volumes, (seed, 1), workers)
    stages.begin(f"preprocessing the {3 * training_volumes} to train on (ssclf preprocess)")
    data = out / "preprocessed"
    query = CohortQuery(sources=(out / MANIFEST,), contrasts=PREPROCESS.contrasts)
    preprocess_cohort(query, data, PREPROCESS, workers=workers)
    config = replace(TRAIN, seed=seed, epochs=epochs)
    stages.begin(f"training from scratch, {epochs} epochs (ssclf train --model {config.architecture})")
    train(data, out / "run", config, machine=Machine(workers=0), watch=Watch(on_epoch=on_epoch))
    stages.begin("exporting (ssclf export)")
    bundle = export_run(out / "run", out / "exported" / BUNDLE)
    stages.begin(f"classifying the {len(truth)} held out (ssclf predict)")
    results = out / "results.csv"
    report = out / "results.html"
    options = PredictConfig(workers=workers)
    summary = predict([scans / "held-out"], results, [bundle], options, report=report)
    right = sum(row.prediction == truth[row.path] for row in summary.rows)
    return DemoResult(results, report, qc_path(data), bundle, summary, right / len(truth), stages.end())


class _Stages:
    """Tells of each stage when it begins, and keeps how long it takes."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._begun: list[tuple[str, float]] = []

    def begin(self, title: str) -> None:
        self._begun.append((title, time.monotonic()))
        self._tell(title)

    def end(self) -> tuple[tuple[str, float], ...]:
        """Titles and seconds."""
        ends = [at for _, at in self._begun[1:]] + [time.monotonic()]
        return tuple((title, end - at) for (title, at), end in zip(self._begun, ends, strict=True))


#: Where to, what the brain holds, and the seed of everything else.
_Task = tuple[Path, SyntheticLabel, tuple[int, ...]]


def _write_volumes(
    folder: Path, table: Path, count: int, seed: tuple[int, int], workers: int
) -> dict[str, str]:
    """Volumes in every orientation, spacing and data type, in random order; returns file name → class."""
    labels = np.random.default_rng(seed).permutation(np.repeat(get_args(SyntheticLabel), count))
    tasks: list[_Task] = [
        (folder / f"synthetic-{k:03}.nii.gz", label, (*seed, k)) for k, label in enumerate(labels.tolist())
    ]
    for outcome in run_in_processes(_write_volume, tasks, workers=workers):
        if outcome.error:
            raise OutputError(f"{outcome.item[0].name}: {outcome.error}")
    rows = [
        (path.name.split(".")[0], label, "synthetic", f"scans/{folder.name}/{path.name}")
        for path, label, _ in tasks
    ]
    write_table(table, ("subject", "label", "source", PREPROCESS.contrasts[0]), rows)
    return {path.name: str(label) for path, label, _ in tasks}


def _write_volume(task: _Task) -> None:
    path, label, seed = task
    rng = np.random.default_rng(seed)
    write_nifti(vary_storage(make_synthetic_volume(label, rng), rng), path)


def read_first_rows(path: Path, count: int = 5) -> list[list[str]]:
    """Header and first rows of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row, _ in zip(csv.reader(file), range(count + 1), strict=False)]
