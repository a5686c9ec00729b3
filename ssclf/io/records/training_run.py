"""Where training runs lie: `runs/<model>-<time>/`."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

from ssclf.errors import DatasetError

RUNS = Path("runs")
CONFIG = "config.json"


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
