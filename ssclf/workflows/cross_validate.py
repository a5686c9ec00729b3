"""`ssclf cv`: every fold of every network, each a run of its own that any process may take on.

A cell (network, start, fold) is a run folder, so it is resumed and scored as `ssclf train` does it. Processes
share a folder without talking to each other: the first draws the folds, each cell has a lock, and whoever finds
a cell locked leaves it to its owner.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ssclf import __version__
from ssclf.config import Architecture, Device, Scheme, TrainConfig, check_choice, config_to_dict
from ssclf.domain.splits import (
    Split,
    check_leakage,
    cut_validation,
    disjoint_folds,
    holdout_splits,
    splits_from_json,
    splits_to_json,
)
from ssclf.errors import ConfigError, DatasetError, OutputError, SsclfError
from ssclf.io.files import write_whole
from ssclf.io.locks import lock
from ssclf.io.records.cv_run import (
    COST,
    CV,
    FORMAT,
    SPLITS,
    Cell,
    is_finished,
    planned_cells,
    read_cv_run,
    read_settings,
)
from ssclf.io.records.preprocessed import PreparedCohort, count_sources, fingerprint, read_prepared_cohort
from ssclf.io.records.training_run import CONFIG, EpochRecord, can_resume, process_count
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.cost import PeakMemory, measure_cost
from ssclf.learning.networks import build_network
from ssclf.learning.pretrained import load_pretrained
from ssclf.workflows.audit import audit_confounds
from ssclf.workflows.interruption import exit_code
from ssclf.workflows.train import train

LOCK = ".lock"
#: Settings that each cell replaces.
_PER_CELL = ("architecture", "pretrained")
State = Literal["finished", "trained", "busy", "failed", "interrupted"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CvResult:
    """Attributes:
    run: the folder.
    states: of the cells that were looked at: finished before, trained now, busy in another process, failed,
        or interrupted.
    missing: cells asked for, now or before, that are not finished.
    errors: of the failed cells.
    interrupted: signal that stopped the run, 0 when it ran to its end; the same call goes on.
    """

    run: Path
    states: dict[Cell, State]
    missing: tuple[Cell, ...]
    errors: dict[Cell, str] = field(default_factory=dict)
    interrupted: int = 0

    @property
    def exit_code(self) -> int:
        """Contract, "Exit codes", with cells in the place of volumes."""
        return exit_code(failed=bool(self.errors), interrupted=self.interrupted)


def cross_validate(
    data: Path,
    out: Path,
    *,
    models: Sequence[Architecture] = get_args(Architecture),
    pretrained: Sequence[bool] = (False,),
    config: TrainConfig | None = None,
    scheme: Scheme = "paper",
    folds: int = 3,
    only: str | None = None,
    resume: bool = False,
    weights: Path | None = None,
    device: Device = "auto",
    workers: int = 2,
    on_cell: Callable[[Cell, int, int, State | None], None] = lambda cell, number, total, state: None,
    on_step: Callable[[int, int, int, float], None] = lambda epoch, step, steps, loss: None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> CvResult:
    """Train every cell that is not finished yet and that no other process works on.

    Args:
        data: folder that `ssclf preprocess` wrote.
        out: new, or of an earlier call with the same data, settings and folds; networks may be added.
        models, pretrained: networks and starts; every pair of them is trained on every fold.
        config: settings for all of them, None for the paper's; architecture and pretrained are each cell's own,
            and its seed is the config's plus the fold's number.
        scheme: "paper" draws `folds` independent divisions with the config's `holdout` as the test share;
            "kfold" makes `folds` disjoint test parts.
        only: one cell, such as mc3/pretrained/2, whatever `models` and `pretrained` say.
        resume: go on with all that `out` was begun for; networks, settings and folds are its own.
        weights: Kinetics-400 weights instead of those found on this machine, where one network starts from them.
        on_cell: called with a cell, its number from 1 and their number; before it is trained with None, after
            it, or instead of it, with what became of it.
        on_step, on_epoch: see `train`.

    Raises:
        SsclfError: data, settings or folder cannot be used; with `only` also what stopped that cell.
            Without it, a cell that fails costs itself: see `CvResult.errors`.
    """
    config = config or TrainConfig()
    chosen = Cell.parse(only) if only else None
    wanted = [Cell(model, start, 1) for start in pretrained for model in models]
    if resume:
        stored = read_cv_run(out)
        config, scheme, folds = stored.config, stored.scheme, stored.folds
        wanted = [cell for cell in stored.cells if cell.fold == 1]
    if chosen:
        wanted = [dataclasses.replace(chosen, fold=1)]
    if resume or chosen:
        models = tuple(dict.fromkeys(cell.architecture for cell in wanted))
        pretrained = tuple(dict.fromkeys(cell.pretrained for cell in wanted))
    _check(models, pretrained, config, scheme, folds, chosen)
    if any(pretrained):
        _check_weights(models, config, weights)
    cohort = read_prepared_cohort(data)
    variants = [cell.variant for cell in wanted]
    splits = _open(data, out, cohort, config, scheme, folds, variants)
    audit_confounds(out, data, cohort, splits)
    cells = [chosen] if chosen else _in_turn(variants, folds)
    states: dict[Cell, State] = {}
    errors: dict[Cell, str] = {}
    interrupted = 0
    for number, cell in enumerate(cells, 1):

        def train_cell(cell: Cell = cell, number: int = number) -> int:
            on_cell(cell, number, len(cells), None)
            memory = PeakMemory(device)
            result = train(
                data,
                cell.folder(out),
                dataclasses.replace(
                    config,
                    architecture=cell.architecture,
                    pretrained=cell.pretrained,
                    seed=config.seed + cell.fold,
                ),
                resume=can_resume(cell.folder(out)),
                split=splits[cell.fold - 1],
                weights=weights if cell.pretrained else None,
                device=device,
                workers=workers,
                on_step=on_step,
                on_epoch=on_epoch,
            )
            if not result.interrupted:
                _write_cost(cell, out, cohort, device, memory)
            return result.interrupted

        try:
            states[cell], interrupted = _take(cell, out, train_cell)
        except SsclfError as exc:
            if chosen:
                raise
            log.error("%s: %s", cell.name, exc)
            states[cell], errors[cell] = "failed", str(exc)
        on_cell(cell, number, len(cells), states[cell])
        if interrupted:
            break
    if chosen and states[chosen] == "busy":
        raise OutputError(
            f"{chosen.folder(out)}: another ssclf process is training this cell; leave it to finish."
        )
    missing = tuple(c for c in planned_cells(read_settings(out)) if not is_finished(c.folder(out)))
    return CvResult(out, states, missing, errors, interrupted)


def _in_turn(variants: Sequence[str], folds: int) -> list[Cell]:
    """Fold by fold, so that after a while all networks can be compared on the folds so far."""
    return [Cell.parse(f"{variant}/{fold}") for fold in range(1, folds + 1) for variant in variants]


def _take(cell: Cell, out: Path, work: Callable[[], int]) -> tuple[State, int]:
    """Do a cell's work unless it is done or another process is at it."""
    folder = cell.folder(out)
    if is_finished(folder) and (folder / COST).is_file():
        return "finished", 0
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK) as ours:
        if not ours:
            return "busy", 0
        if is_finished(folder) and (folder / COST).is_file():
            return "finished", 0
        interrupted = work()
    return ("interrupted" if interrupted else "trained"), interrupted


def _check(
    models: Sequence[Architecture],
    pretrained: Sequence[bool],
    config: TrainConfig,
    scheme: Scheme,
    folds: int,
    only: Cell | None,
) -> None:
    check_choice("scheme", scheme, Scheme)
    for model in models:
        check_choice("model", model, Architecture)
    if not models or not pretrained:
        raise ConfigError("cv: expected at least one network and one start, found none.")
    if len(set(models)) != len(models) or len(set(pretrained)) != len(pretrained):
        raise ConfigError("cv: expected every network and start once.")
    if not 2 <= folds <= 100:
        raise ConfigError(f"folds: expected 2 to 100, found {folds}.")
    if only and only.fold > folds:
        raise ConfigError(f"cell {only.name}: expected a fold from 1 to {folds}.")
    if scheme == "paper" and not config.holdout:
        raise ConfigError("holdout: expected a share above 0 for the test parts, found 0.")
    if (processes := process_count()) > 1:
        raise ConfigError(
            f"cv: expected one process a cell, found {processes} that were started together; start each on its own "
            "with --only (a job array), or one after the other on one GPU each with the same --out."
        )


def _check_weights(models: Sequence[Architecture], config: TrainConfig, weights: Path | None) -> None:
    """Miss a weights file now, not after a day of training."""
    if weights and len(models) > 1:
        raise ConfigError(
            "weights: one file fits one network; import the others with `ssclf weights import` instead."
        )
    for model in models:
        network = build_network(model, channels=1, classes=2)
        load_pretrained(network, model, stem=config.stem, path=weights)


def _open(
    data: Path,
    out: Path,
    cohort: PreparedCohort,
    config: TrainConfig,
    scheme: Scheme,
    folds: int,
    variants: Sequence[str],
) -> list[Split]:
    """The folds: drawn by the first process, read and compared by all others."""
    values = {
        "format": FORMAT,
        "config": {k: v for k, v in config_to_dict(config).items() if k not in _PER_CELL},
        "scheme": scheme,
        "folds": folds,
        "class_names": list(cohort.class_names),
        "preprocess": config_to_dict(cohort.preprocess),
        "synthetic": cohort.synthetic,
        "volumes": fingerprint(cohort),
        "cohort": count_sources(cohort),
        "data": str(data.resolve()),
        "ssclf_version": __version__,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written ({exc.strerror or exc}).") from exc
    with lock(out / LOCK, wait=True):
        path = out / SPLITS
        if (out / CV).is_file():
            stored = read_settings(out)
            _compare(out, stored, values)
            values = {**stored, "variants": list(dict.fromkeys([*stored["variants"], *variants]))}
            splits = splits_from_json(path.read_text("utf-8"), str(path), [s.key for s in cohort.samples])
        else:
            if (out / CONFIG).is_file() or any(out.glob("*/checkpoints")):
                raise OutputError(f"{out}: holds a training run; choose another --out.")
            values["variants"] = list(variants)
            splits = _draw(cohort, config, scheme, folds)
            write_whole(path, splits_to_json(splits))
        for split in splits:
            check_leakage(split, cohort.subjects)
            check_leakage(split, {s.key: s.voxels or s.key for s in cohort.samples}, "voxels")
        write_whole(out / CV, json.dumps(values, indent=2) + "\n")
    return splits


def _compare(out: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse to mix: cells that differ in more than network, start and fold cannot be compared."""
    different = [key for key, value in asked["config"].items() if stored["config"].get(key) != value]
    different += [key for key in ("scheme", "folds") if stored[key] != asked[key]]
    if different:
        before = {**stored["config"], **stored}
        raise ConfigError(
            f"{out}: a cross-validation goes on with the settings it began with, and found others for "
            f"{', '.join(f'{name} (it began with {before.get(name)})' for name in different)}; add --resume to take "
            "its own, or choose another --out."
        )
    if any(stored[key] != asked[key] for key in ("class_names", "preprocess", "volumes")):
        raise DatasetError(
            f"{out}: the preprocessed volumes are not those it began with; bring them back, or choose another --out."
        )


def _draw(cohort: PreparedCohort, config: TrainConfig, scheme: Scheme, folds: int) -> list[Split]:
    subjects, labels = cohort.subjects, cohort.labels
    if scheme == "paper":
        splits = holdout_splits(subjects, labels, share=config.holdout, count=folds, seed=config.seed)
    else:
        splits = disjoint_folds(subjects, labels, count=folds, seed=config.seed)
    if config.validation:
        splits = [
            cut_validation(split, subjects, labels, share=config.validation, seed=config.seed + number)
            for number, split in enumerate(splits, 1)
        ]
    return splits


def _write_cost(cell: Cell, out: Path, cohort: PreparedCohort, device: Device, memory: PeakMemory) -> None:
    """Training cost of this cell, and what a forward pass costs on the same volume for every cell."""
    peak = memory.megabytes
    some = [read_written(sample.path).data for sample in sorted(cohort.samples, key=lambda s: s.key)[:9]]
    middle = sorted(some, key=lambda volume: volume.size)[len(some) // 2]
    cost = measure_cost(cell.architecture, middle, classes=len(cohort.class_names), device=device)
    values = {**dataclasses.asdict(cost), "peak_training_mb": peak, "peak_of": memory.what}
    write_whole(cell.folder(out) / COST, json.dumps(values, indent=2) + "\n")
