"""The folder that training writes, `runs/<model>-<time>/`: where it lies, and every file of it, writer beside reader.

config.json         settings of the run
data.json           what it was begun with: volumes, classes, preprocessing, starting weights
split.json          who trains and who tests
metrics.csv         a row per epoch
checkpoints/        last.pt (to go on from), chosen.pt (the weights that `ssclf export` takes)
tensorboard/        the same numbers as events
trackers.json       which others are told of the run, and by what names, where it is not TensorBoard alone
mlflow/, wandb/     what these keep
curves.png          the same as a picture
predictions.csv     of volumes that did not fit the weights
features.npz        of the training volumes
provenance.json     what the weights came from; the last file that training writes
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from ssclf.config import PreprocessConfig, TrackerName, TrainConfig, config_from_dict, config_to_dict
from ssclf.domain.provenance import Calibration, Provenance
from ssclf.domain.run_data import RunData
from ssclf.domain.splits import Split, splits_from_dict, splits_to_dict
from ssclf.errors import ConfigError, DatasetError, ModelError, OutputError
from ssclf.io.files import sweep
from ssclf.io.locks import lock
from ssclf.io.records.sealed import mark_table, read_sealed, read_sealed_rows, write_sealed
from ssclf.io.records.tables import write_table

RUNS = Path("runs")
CONFIG = "config.json"
DATA = "data.json"
SPLIT = "split.json"
EPOCHS = "metrics.csv"
PREDICTIONS = "predictions.csv"
PROVENANCE = "provenance.json"
LAST = "checkpoints/last.pt"
CHOSEN = "checkpoints/chosen.pt"
LOCK, _TRAINING = ".lock", ".lock-training"
EVENTS, CURVES, FEATURES = "tensorboard", "curves.png", "features.npz"
#: Of `provenance.json`: the marks of the tables beside it; and the columns that name their rows.
_TABLES = "tables"
TRACKERS = "trackers.json"
_KEYS = {EPOCHS: "epoch", PREDICTIONS: "path"}
_OTHERWISE = "copy the run again, or remove its folder and train it again."


def new_run_folder(model: str, runs: Path = RUNS) -> Path:
    """A new folder: named by local time to the second, numbered where two start at once. To make it is to own the name.

    Processes that were started together (torchrun, srun) get one name, after their job: their clocks differ.

    Raises:
        OutputError: it cannot be made.
    """
    if process_count() > 1:
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID") or "job"
        return runs / f"{model}-{''.join(c for c in job if c.isalnum() or c == '-')[:16]}"
    name = f"{model}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder, number = runs / name, 2
    while True:
        try:
            runs.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError:
            if not runs.is_dir():
                raise OutputError(
                    f"{runs}: expected a folder for runs, found a file; name one with --out."
                ) from None
            folder, number = runs / f"{name}-{number}", number + 1
        except OSError as exc:
            raise OutputError(
                f"{folder}: cannot be written ({exc.strerror or exc}); choose another --out."
            ) from exc
        else:
            return folder


@contextlib.contextmanager
def keep_folder(run: Path) -> Iterator[None]:
    """Make a folder for a run, where there is none; one that is still empty afterwards goes.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{run}: cannot be written ({exc.strerror or exc}); choose another --out.") from exc
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it holds something
            run.rmdir()


@contextlib.contextmanager
def own_folder(run: Path) -> Iterator[None]:
    """As `keep_folder`, and keep other trainings out while the block runs; of several processes the first does so.

    What a killed one has left half written goes.

    Raises:
        OutputError: it cannot be written, or another process is training there.
    """
    with keep_folder(run):
        if not is_first_process():
            yield
            return
        with lock(run / _TRAINING, remove=True) as ours:
            if not ours:
                raise OutputError(
                    f"{run}: another ssclf process is training in this folder; wait for it, or choose another --out."
                )
            for folder in (run, (run / LAST).parent):
                sweep(folder)
            yield


def process_count() -> int:
    """How many processes were started together to train one network: by torchrun, or by srun, one a task."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return 1 if idle_tasks() else int(os.environ.get("SLURM_NTASKS", "1"))


def idle_tasks() -> int:
    """How many tasks a Slurm job has that were not started, since no srun stands before this command; else 0.

    sbatch and salloc name the tasks of the job, and start one process. Only a step of srun is as many, and says so of
    itself; a script that was submitted from within a step finds that step's number.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    step = os.environ.get("SLURM_STEP_NUM_TASKS") if "SLURM_STEP_ID" in os.environ else None
    return int(tasks) if tasks != "1" and step != tasks and "WORLD_SIZE" not in os.environ else 0


def processes_per_node() -> int:
    """How many of these run on each machine.

    Raises:
        ConfigError: not the same number on all of them.
    """
    if "LOCAL_WORLD_SIZE" in os.environ:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    stated = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "") if process_count() > 1 else ""
    if not stated:
        return process_count()
    same = re.fullmatch(r"(\d+)(\(x\d+\))?", stated)
    if not same:
        raise ConfigError(
            f"srun: expected the same number of tasks on every node, found {stated}; write --ntasks-per-node."
        )
    return int(same[1])


def is_first_process() -> bool:
    """Whether this is the one of them that speaks."""
    return process_count() == 1 or os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def newest_run(model: str | None = None, runs: Path = RUNS) -> Path:
    """The run that was written to last, of one network or of any.

    Raises:
        DatasetError: there is none.
    """
    found = [path.parent for path in runs.glob(f"[!.]*/{CONFIG}") if model in (None, _model(path))]
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


@dataclass(frozen=True)
class VolumePrediction:
    """A row of `predictions.csv`.

    Attributes:
        path: key of the volume in its cohort.
        part: "validation" or "test".
        probabilities: calibrated, one a class; empty where the table that was read has none.
        logits: one a class, not calibrated.
    """

    path: str
    subject: str
    source: str
    part: str
    label: str
    prediction: str
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What `provenance.json` says: all that a bundle needs beside the weights."""

    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    calibration: Calibration
    training: Provenance
    versions: Mapping[str, str]


def write_beginning(run: Path, config: TrainConfig, split: Split) -> None:
    """Settings first: a folder that has them alone was left before anything was trained, see `can_resume`."""
    write_sealed(run / CONFIG, config_to_dict(config))
    write_sealed(run / SPLIT, splits_to_dict([split]))


def write_data(run: Path, data: RunData) -> None:
    write_sealed(run / DATA, data.to_dict())


def write_trackers(run: Path, ids: Mapping[TrackerName, str]) -> None:
    """Where the numbers go, and what the run is called there; of a cross-validation, what its cells take."""
    if ids.keys() != {"tensorboard"} or (run / TRACKERS).exists():
        write_sealed(run / TRACKERS, {str(name): run_id for name, run_id in ids.items()})


def read_trackers(run: Path) -> dict[TrackerName, str]:
    """Raises:
    ModelError: the file is damaged, or was changed.
    """
    path = run / TRACKERS
    try:
        found = read_sealed(path, _OTHERWISE, ModelError) if path.exists() else {"tensorboard": ""}
        return {name: str(found[name]) for name in get_args(TrackerName) if name in found}
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path}: expected the trackers of a run, found {exc!r}; {_OTHERWISE}") from exc


def read_data(run: Path) -> RunData | None:
    """What a run was begun with; None where a version of ssclf began it that did not write it down.

    Raises:
        ModelError: the file is damaged, or was changed.
    """
    path = run / DATA
    try:
        return RunData.from_dict(read_sealed(path, _OTHERWISE, ModelError)) if path.exists() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"{path}: expected what a run was begun with, found {exc!r}.") from exc


def reopen(run: Path) -> None:
    """Take back that a run is finished."""
    (run / PROVENANCE).unlink(missing_ok=True)


def read_config(run: Path) -> TrainConfig:
    """The settings that a run began with.

    Raises:
        ModelError: not a run folder, or its settings were changed.
    """
    otherwise = (
        "put back what it began with: only more epochs can be asked for, with --epochs. Or start a new run."
    )
    if not (run / CONFIG).is_file():
        raise ModelError(f"{run}: expected the folder of a run, with {CONFIG} in it, found none.")
    try:
        return config_from_dict(TrainConfig, read_sealed(run / CONFIG, otherwise, ModelError))
    except (OSError, ValueError, ConfigError) as exc:
        raise ModelError(f"{run / CONFIG}: expected the settings of a run, found {exc!r}.") from exc


def read_split(run: Path, keys: Sequence[str]) -> Split:
    """Who trains and who tests, of the volumes with these keys.

    Raises:
        DatasetError: the split is of other volumes, damaged, or was changed.
    """
    splits = read_splits(run / SPLIT, keys)
    if len(splits) != 1:
        raise DatasetError(f"{run / SPLIT}: expected one split, found {len(splits)}; {_OTHERWISE}")
    return splits[0]


def read_splits(path: Path, keys: Sequence[str]) -> list[Split]:
    """Raises:
    DatasetError: they are of other volumes, damaged, or were changed.
    """
    try:
        values = read_sealed(path, "bring it back, or start a new run.", DatasetError)
    except (OSError, ValueError) as exc:
        raise DatasetError(f"{path}: expected splits as ssclf writes them, found {exc!r}.") from exc
    return splits_from_dict(values, str(path), keys)


def write_epochs(run: Path, records: Sequence[EpochRecord]) -> None:
    columns = [field.name for field in fields(EpochRecord)]
    write_table(run / EPOCHS, columns, [[getattr(record, name) for name in columns] for record in records])


def read_epochs(run: Path) -> tuple[dict[str, float | None], ...]:
    """Rows of `metrics.csv`, empty cells as None.

    Raises:
        KeyError, ValueError, ModelError: see `read_predictions`.
    """
    return tuple(
        {name: float(text) if text else None for name, text in row.items()} for row in _read_rows(run, EPOCHS)
    )


def write_predictions(run: Path, class_names: Sequence[str], rows: Iterable[VolumePrediction]) -> None:
    columns = ["path", "subject", "source", "part", "label", "prediction"]
    cells = [[getattr(row, name) for name in columns] + [*row.probabilities, *row.logits] for row in rows]
    columns += [f"p_{name}" for name in class_names] + [f"logit_{name}" for name in class_names]
    write_table(run / PREDICTIONS, columns, cells)


def read_predictions(run: Path, class_names: Sequence[str]) -> list[VolumePrediction]:
    """Raises:
    KeyError, ValueError: the table is another one.
    ModelError: it is not the one that the finished run wrote.
    """
    return [
        VolumePrediction(
            **{name: row[name] for name in ("path", "subject", "source", "part", "label", "prediction")},
            probabilities=tuple(float(row[f"p_{name}"]) for name in class_names if f"p_{name}" in row),
            logits=tuple(float(row[f"logit_{name}"]) for name in class_names),
        )
        for row in _read_rows(run, PREDICTIONS)
    ]


def _read_rows(run: Path, name: str) -> list[dict[str, str]]:
    marks = _read_provenance(run).get(_TABLES, {}).get(name)
    return read_sealed_rows(run / name, _KEYS[name], marks, _OTHERWISE, ModelError)


def write_record(run: Path, record: RunRecord) -> None:
    """At the end, when the tables are there."""
    values = {
        "class_names": record.class_names,
        "preprocess": config_to_dict(record.preprocess),
        "calibration": asdict(record.calibration),
        "training": record.training.to_dict(),
        "versions": dict(record.versions),
        _TABLES: {name: mark_table(run / name, key) for name, key in _KEYS.items() if (run / name).is_file()},
    }
    write_sealed(run / PROVENANCE, values)


def _read_provenance(run: Path) -> dict[str, Any]:
    return read_sealed(run / PROVENANCE, _OTHERWISE, ModelError)


def read_record(run: Path) -> RunRecord:
    """Raises:
    ModelError: the run is unfinished or damaged.
    """
    with _understood(run):
        values = _read_provenance(run)
        return RunRecord(
            class_names=tuple(values["class_names"]),
            preprocess=config_from_dict(PreprocessConfig, values["preprocess"]),
            calibration=Calibration(**values["calibration"]),
            training=Provenance.from_dict(values["training"]),
            versions=values["versions"],
        )


def read_training(run: Path) -> tuple[tuple[str, ...], Provenance]:
    """The class names of a finished run, and what it says of its training.

    Raises:
        ModelError: the run is unfinished or damaged.
    """
    with _understood(run):
        values = _read_provenance(run)
        return tuple(values["class_names"]), Provenance.from_dict(values["training"])


@contextlib.contextmanager
def _understood(run: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as exc:
        raise ModelError(f"{run / PROVENANCE}: expected what a run came from, found {exc!r}.") from exc


def is_finished(run: Path) -> bool:
    return (run / PROVENANCE).is_file()


def can_resume(folder: Path) -> bool:
    """Whether a run began here; one that was killed while it began is begun anew."""
    if (folder / CONFIG).is_file() and not (folder / SPLIT).is_file():
        (folder / CONFIG).unlink()
    return (folder / CONFIG).is_file()
