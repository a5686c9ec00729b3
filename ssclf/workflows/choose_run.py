"""Where `ssclf train` and `ssclf cv` begin or go on, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssclf.config import Preset, TrainConfig
from ssclf.errors import ConfigError
from ssclf.io.records.cv_run import newest_cv_run, read_settings
from ssclf.io.records.training_run import is_finished, new_run_folder, newest_run, read_config
from ssclf.learning.finetuning import Start
from ssclf.workflows.export import open_start


@dataclass(frozen=True)
class ChosenRun:
    """Attributes:
    folder: of the run, new or to go on with.
    config: its settings; a run that goes on keeps those that it began with.
    start: the trained network that it begins with instead of a new one.
    finished: it goes on, and nothing is left to do.
    """

    folder: Path
    config: TrainConfig
    start: Start | None = None
    finished: bool = False


def choose_run(
    out: Path | None,
    settings: Mapping[str, Any],
    *,
    preset: Preset,
    weights: Path | None = None,
    start: Path | None = None,
    resume: bool = False,
) -> ChosenRun:
    """Choose what to train.

    Args:
        out: the folder; None for a new one under `runs/`, with `resume` for the newest there.
        settings: what differs from the preset; with `resume`, its architecture says which of the runs.
        weights: Kinetics-400 weights to start from: the same as the setting `pretrained`.
        start: bundle or run to go on from; its architecture is taken where the settings name none.

    Raises:
        ConfigError: settings that do not go together or are out of range.
        SsclfError: no run to go on with, or no model to start from.
    """
    architecture = settings.get("architecture")
    if resume:
        folder = out or newest_run(architecture)
        return ChosenRun(folder, read_config(folder), finished=is_finished(folder))
    begin = open_start(start) if start else None
    pretrained = settings.get("pretrained", False) or weights is not None
    if begin and pretrained:
        raise ConfigError("--from: expected it alone, found --pretrained or --weights beside it.")
    architecture = architecture or (begin.spec.architecture if begin else TrainConfig().architecture)
    given = {**settings, "architecture": architecture, "pretrained": pretrained}
    return ChosenRun(out or new_run_folder(architecture), TrainConfig.preset(preset, **given), begin)


def choose_cv_run(out: Path | None, data: Path | None, *, resume: bool = False) -> tuple[Path, Path | None]:
    """The folder of a cross-validation, and the preprocessed volumes: those named, else those it began with.

    Raises:
        SsclfError: there is none to go on with.
    """
    folder = out or (newest_cv_run() if resume else new_run_folder("cv"))
    if resume and data is None:
        data = Path(read_settings(folder)["data"])
    return folder, data
