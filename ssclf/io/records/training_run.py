"""Where training runs lie: `runs/<model>-<time>/`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from ssclf.config import TrainConfig, config_from_dict
from ssclf.errors import ConfigError, DatasetError, ModelError
from ssclf.io.records.tables import write_table

RUNS = Path("runs")
CONFIG = "config.json"
SPLIT = "split.json"
EPOCHS = "metrics.csv"
PREDICTIONS = "predictions.csv"
PROVENANCE = "provenance.json"
LAST = "checkpoints/last.pt"
CHOSEN = "checkpoints/chosen.pt"


def new_run_folder(model: str, runs: Path = RUNS) -> Path:
    """A folder name that is free: by local time to the second, numbered where two start at once.

    Processes that were started together (torchrun, srun) get one name, after their job: their clocks differ.
    """
    if process_count() > 1:
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID") or "job"
        return runs / f"{model}-{''.join(c for c in job if c.isalnum() or c == '-')[:16]}"
    name = f"{model}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder, number = runs / name, 2
    while folder.exists():
        folder, number = runs / f"{name}-{number}", number + 1
    return folder


def process_count() -> int:
    """How many processes were started together to train one network."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))


def is_first_process() -> bool:
    """Whether this is the one of them that speaks."""
    return process_count() == 1 or os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def newest_run(model: str | None = None, runs: Path = RUNS) -> Path:
    """The run that was written to last, of one network or of any.

    Raises:
        DatasetError: there is none.
    """
    found = [path.parent for path in runs.glob(f"*/{CONFIG}") if model in (None, _model(path))]
    if not found:
        what = f"a run of {model}" if model else "a run"
        raise DatasetError(
            f"{runs}: expected {what}, found none; start one with `ssclf train`, or name its folder."
        )
    return max(found, key=lambda folder: (folder / CONFIG).stat().st_mtime)


def _model(config: Path) -> str | None:
    try:
        model: str | None = json.loads(config.read_text("utf-8")).get("architecture")
    except (OSError, ValueError, AttributeError):
        return None
    return model


@dataclass(frozen=True)
class EpochRecord:
    """A row of `metrics.csv`. Validation scores are None without a validation part."""

    epoch: int
    train_loss: float
    learning_rate: float
    seconds: float
    wait_share: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_macro_f1: float | None = None


def read_config(run: Path) -> TrainConfig:
    """The settings that a run began with.

    Raises:
        ModelError: not a run folder.
    """
    try:
        return config_from_dict(TrainConfig, json.loads((run / CONFIG).read_text("utf-8")))
    except (OSError, ValueError, ConfigError) as exc:
        raise ModelError(f"{run / CONFIG}: expected the settings of a run, found {exc!r}.") from exc


def write_epochs(path: Path, records: Sequence[EpochRecord]) -> None:
    columns = [field.name for field in fields(EpochRecord)]
    write_table(path, columns, [[getattr(record, name) for name in columns] for record in records])


def can_resume(folder: Path) -> bool:
    """Whether a run began here; one that was killed while it began is begun anew."""
    if (folder / CONFIG).is_file() and not (folder / SPLIT).is_file():
        (folder / CONFIG).unlink()
    return (folder / CONFIG).is_file()
