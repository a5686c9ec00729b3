"""Where `ssclf train` and `ssclf cv` begin or go on, and with which settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssclf.config import Device, Preset, TrainConfig
from ssclf.domain.run_data import RunData
from ssclf.errors import ConfigError, DatasetError, OutputError
from ssclf.io.models.checksums import file_sha256
from ssclf.io.paths import is_file, is_folder
from ssclf.io.records.cv_run import newest_cv_run, read_settings, stored_folders
from ssclf.io.records.preprocessed import is_prepared, read_prepared_cohort
from ssclf.io.records.training_run import (
    CONFIG,
    idle_tasks,
    is_finished,
    is_first_process,
    new_run_folder,
    newest_run,
    read_config,
    read_data,
)
from ssclf.learning.finetuning import Start
from ssclf.workflows.cross_validate import CvPlan
from ssclf.workflows.export import open_start
from ssclf.workflows.recipe import choose_recipe
from ssclf.workflows.train import read_cohort

#: Where preprocessed volumes are looked for.
PREPROCESSED = (Path("data/preprocessed"),)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenRun:
    """Attributes:
    folder: of the run, new or to go on with.
    config: its settings; a run that goes on keeps those that it began with.
    data: the preprocessed folders: those named, else those it began with, else the usual one.
    start: the trained network that it begins with instead of a new one.
    finished: it goes on, and nothing is left to do.
    """

    folder: Path
    config: TrainConfig
    data: tuple[Path, ...]
    start: Start | None = None
    finished: bool = False


def choose_run(
    out: Path | None,
    settings: Mapping[str, Any],
    *,
    data: Sequence[Path] = (),
    preset: Preset | None = None,
    weights: Path | None = None,
    start: Path | None = None,
    resume: bool = False,
    device: Device = "auto",
) -> ChosenRun:
    """Choose what to train.

    Args:
        out: the folder; None for a new one under `runs/`, with `resume` for the newest there.
        settings: what differs from the preset; with `resume`, its architecture says which of the runs, and the others
            must be those that it began with, more epochs aside.
        data: preprocessed folders.
        preset: None for the usual one.
        weights: file of weights to start from; brings the setting `pretrained`.
        start: bundle or run to go on from; its architecture is taken where the settings name none.
        device: what the run is to use.

    Raises:
        ConfigError: settings that do not go together, are out of range, or cannot be changed any more.
        SsclfError: no run to go on with, or no model to start from.
    """
    _warn_of_idle_tasks()
    architecture = settings.get("architecture")
    if resume:
        folder = out or newest_run(architecture)
        if preset:
            log.warning("%s: --preset %s is not looked at; a run goes on as it began", folder, preset)
        return _go_on(folder, settings, data, weights, start)
    begin = open_start(start) if start else None
    pretrained = settings.get("pretrained", False) or weights is not None
    if begin and pretrained:
        raise ConfigError("--from: expected it alone, found --pretrained or --weights beside it.")
    given = {**settings, "pretrained": pretrained}
    if begin:
        given.setdefault("architecture", begin.spec.architecture)
    asked = TrainConfig(**given)
    asked.check_frozen(started=begin is not None)
    if out and is_first_process() and not is_file(out / CONFIG) and _holds_files(out):
        raise OutputError(f"{out}: holds other files, and no run; choose another --out, or an empty folder.")
    volumes = tuple(data) or PREPROCESSED
    cohort = read_cohort(volumes, asked)
    if preset == "paper":
        config = TrainConfig.preset(preset, **given)
    else:
        recipe = choose_recipe(cohort, given, device)
        config = recipe.config
        for reason in recipe.reasons:
            log.info("%s", reason)
    return ChosenRun(out or new_run_folder(config.architecture), config, volumes, begin)


def _holds_files(folder: Path) -> bool:
    """Whether there are any but hidden ones, which a run leaves that was killed as it began."""
    return is_folder(folder) and any(not path.name.startswith(".") for path in folder.iterdir())


def _warn_of_idle_tasks() -> None:
    if tasks := idle_tasks():
        each = max(tasks // int(os.environ.get("SLURM_NNODES", "1")), 1)
        log.warning(
            "this Slurm job has %d tasks, and this command was started once, without srun: training with one process. "
            "Write `srun --ntasks-per-node %d ssclf train …` for one on each GPU", tasks, each,
        )  # fmt: skip


def _new_folder(name: str, data: Sequence[Path]) -> Path:
    """A folder of its own for a run, once it is known that there is something to train on."""
    read_prepared_cohort(data)
    return new_run_folder(name)


def _go_on(
    folder: Path, asked: Mapping[str, Any], data: Sequence[Path], weights: Path | None, start: Path | None
) -> ChosenRun:
    """The run of a folder, with what may be changed of it."""
    config, stored = read_config(folder), read_data(folder)
    longer = {"epochs": asked["epochs"]} if asked.get("epochs", 0) > config.epochs else {}
    changed = {name: value for name, value in asked.items() if name not in longer}
    _refuse_changes(folder, vars(config), changed, ", more epochs aside")
    if weights:
        _refuse_other_file(folder, "--weights", weights, file_sha256, stored.weights if stored else None)
    if start:
        _refuse_other_file(
            folder, "--from", start, lambda path: open_start(path).sha256, stored.start if stored else None
        )
    folders = tuple(data) or _remembered(folder, stored)
    return ChosenRun(folder, replace(config, **longer), folders, finished=is_finished(folder) and not longer)


def _remembered(folder: Path, stored: RunData | None) -> tuple[Path, ...]:
    """The data that a run began with, where they lay then."""
    if stored is None:
        return PREPROCESSED
    folders = tuple(Path(name) for name in stored.folders)
    _check_there(folder, folders)
    return folders


def _check_there(run: Path, folders: Sequence[Path]) -> None:
    for path in folders:
        if not is_prepared(path):
            raise DatasetError(
                f"{run}: began with the preprocessed volumes in {path}, and they are not there any more; say where "
                "they are now with --data."
            )


def _refuse_other_file(
    run: Path, option: str, path: Path, sha256: Callable[[Path], str], stored: Mapping[str, str] | None
) -> None:
    """Raises:
    ConfigError: a run began with other weights than those of this file or model.
    """
    if stored is None:
        log.warning("%s: %s %s is not looked at; nothing says what the run began with", run, option, path)
    elif not stored or stored["sha256"] != sha256(path):
        before = f"with {stored['file']}" if stored else f"without {option}"
        raise ConfigError(
            f"{run}: began {before}, so {option} {path} cannot be taken any more; leave it out, or start a new run."
        )


def _refuse_changes(
    folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], unless: str = ""
) -> None:
    """Raises:
    ConfigError: an option asks for something else than what a run began with.
    """
    different = [
        f"{_flag(name)} {value} (it began with {stored[name]})"
        for name, value in asked.items()
        if stored[name] != value
    ]
    if different:
        raise ConfigError(
            f"{folder}: goes on with the settings it began with{unless}; "
            f"{', '.join(different)} cannot be changed any more. Leave that out, or start a new run."
        )


def _flag(name: str) -> str:
    return "--" + {"architecture": "model", "start": "from"}.get(name, name).replace("_", "-")


@dataclass(frozen=True)
class ChosenCv:
    """Attributes:
    folder: of the cross-validation, new or to go on with.
    plan: what is to be trained.
    data: the preprocessed folders: those named, else those it began with, else the usual one.
    """

    folder: Path
    plan: CvPlan
    data: tuple[Path, ...]


def choose_cv_run(
    out: Path | None,
    plan: CvPlan,
    *,
    data: Sequence[Path] = (),
    asked: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> ChosenCv:
    """Choose what to cross-validate, and where.

    Args:
        plan: with `resume`, only its one cell counts, if it names one.
        asked: what the user has said of scheme, folds, variants and settings; with `resume` it must be as it began.

    Raises:
        ConfigError: something that cannot be changed any more.
        SsclfError: there is none to go on with.
    """
    if not resume:
        volumes = tuple(data) or PREPROCESSED
        return ChosenCv(out or _new_folder("cv", volumes), plan, volumes)
    folder = out or newest_cv_run()
    stored = CvPlan.stored(folder)
    before = {**vars(stored.config), "scheme": stored.scheme, "folds": stored.folds}
    wanted = dict(asked or {})
    variants = wanted.pop("variants", None)
    _refuse_changes(folder, before, wanted)
    if variants and set(variants) != set(stored.variants):
        raise ConfigError(
            f"{folder}: goes on with the networks that it was begun for ({', '.join(stored.variants)}), and was asked "
            f"for {', '.join(variants)}. Leave --models and --pretrained out to go on; leave --resume out to add "
            "networks."
        )
    folders = tuple(data) or stored_folders(read_settings(folder))
    if not data:
        _check_there(folder, folders)
    return ChosenCv(folder, CvPlan.stored(folder, plan.only), folders)
