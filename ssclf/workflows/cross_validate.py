"""`ssclf cv`: every fold of every network, each a run of its own that any process may take on.

A cell (network, start, fold) is a run folder, so it is resumed and scored as `ssclf train` does it, and is trained
in a process of its own (`workflows.cells`), so that whatever ends it leaves the others alone. Processes share a folder
without talking to each other: the first draws the folds, each cell has a lock, and whoever finds a cell locked leaves
it to its owner.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ssclf import __version__
from ssclf.config import (
    Architecture,
    PaperArchitecture,
    Scheme,
    TrainConfig,
    check_choice,
    config_from_dict,
    config_to_dict,
)
from ssclf.domain.splits import Split, check_leakage, cut_validation, disjoint_folds, holdout_splits
from ssclf.errors import ConfigError, DatasetError, OutputError, SsclfError
from ssclf.io.alone import WorkTraceback
from ssclf.io.locks import lock
from ssclf.io.models.checksums import file_sha256
from ssclf.io.records.cv_run import (
    Cell,
    forget_failure,
    has_cost,
    holds_training_run,
    is_cv_run,
    planned_cells,
    read_cv_run,
    read_folds,
    read_settings,
    write_failure,
    write_folds,
    write_settings,
)
from ssclf.io.records.preprocessed import (
    Folders,
    PreparedCohort,
    count_sources,
    fingerprint,
    read_prepared_cohort,
)
from ssclf.io.records.training_run import LOCK, is_finished, process_count, read_trackers, write_trackers
from ssclf.learning.networks import build_network
from ssclf.learning.pretrained import load_pretrained
from ssclf.workflows.audit import audit_confounds
from ssclf.workflows.cells import CellTask, train_cell
from ssclf.workflows.interruption import exit_code, note_signals
from ssclf.workflows.train import Machine, Watch

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


@dataclass(frozen=True, kw_only=True)
class CvPlan:
    """What is to be trained.

    Attributes:
        variants: networks with their starts, such as mc3/pretrained; each is trained on every fold.
        config: settings for all of them, the paper's by default; architecture and pretrained are each cell's own,
            and its seed is the config's plus the fold's number.
        scheme: "paper" draws `folds` independent divisions with the config's `holdout` as the test share;
            "kfold" makes `folds` disjoint test parts.
        only: one cell, such as mc3/pretrained/2, whatever `variants` says.
    """

    variants: Sequence[str]
    config: TrainConfig = field(default_factory=TrainConfig)
    scheme: Scheme = "paper"
    folds: int = 3
    only: str | None = None

    def __post_init__(self) -> None:
        check_choice("scheme", self.scheme, Scheme)
        if not self.variants:
            raise ConfigError("cv: expected at least one network and one start, found none.")
        if len(set(self.variants)) != len(self.variants):
            raise ConfigError("cv: expected every network and start once.")
        if not 2 <= self.folds <= 100:
            raise ConfigError(f"folds: expected 2 to 100, found {self.folds}.")
        if self.scheme == "paper" and not self.config.holdout:
            raise ConfigError("holdout: expected a share above 0 for the test parts, found 0.")
        if self.chosen and self.chosen.fold > self.folds:
            raise ConfigError(f"cell {self.chosen.name}: expected a fold from 1 to {self.folds}.")
        if self.chosen:
            object.__setattr__(self, "variants", (self.chosen.variant,))
        for name in self.variants:
            pretrained = Cell.parse(f"{name}/1").pretrained
            dataclasses.replace(self.config, pretrained=pretrained).check_frozen(started=False)

    @property
    def chosen(self) -> Cell | None:
        return Cell.parse(self.only) if self.only else None

    @property
    def cells(self) -> list[Cell]:
        """Fold by fold, so that after a while all networks can be compared on the folds so far."""
        if self.chosen:
            return [self.chosen]
        return [Cell.parse(f"{name}/{fold}") for fold in range(1, self.folds + 1) for name in self.variants]

    @staticmethod
    def of(
        models: Sequence[Architecture] = get_args(PaperArchitecture),
        pretrained: Sequence[bool] = (False,),
        **settings: Any,
    ) -> CvPlan:
        """Every pair of a network and a start.

        Raises:
            ConfigError: a value out of range.
        """
        for model in models:
            check_choice("model", model, Architecture)
        variants = [Cell(model, start, 1).variant for start in pretrained for model in models]
        return CvPlan(variants=variants, **settings)

    @staticmethod
    def stored(run: Path, only: str | None = None) -> CvPlan:
        """All that a folder was begun for.

        Raises:
            ModelError: it is no cross-validation.
        """
        found = read_cv_run(run)
        variants = [cell.variant for cell in found.cells if cell.fold == 1]
        return CvPlan(
            variants=variants, config=found.config, scheme=found.scheme, folds=found.folds, only=only
        )


@dataclass(frozen=True, kw_only=True)
class CvWatch(Watch):
    """Attributes:
    on_cell: called with a cell, its number from 1 and their number; before it is trained with None, after it, or
        instead of it, with what became of it.
    """

    on_cell: Callable[[Cell, int, int, State | None], None] = lambda cell, number, total, state: None


def cross_validate(
    data: Folders,
    out: Path,
    plan: CvPlan | None = None,
    *,
    resume: bool = False,
    machine: Machine | None = None,
    watch: CvWatch | None = None,
) -> CvResult:
    """Train every cell that is not finished yet and that no other process works on.

    Args:
        data: folder that `ssclf preprocess` wrote, or several to join.
        out: new, or of an earlier call with the same data, settings and folds; networks may be added.
        plan: None for the paper's networks and settings.
        resume: go on with all that `out` was begun for; of the plan only `only` counts.

    Raises:
        SsclfError: data, settings or folder cannot be used; with `only` also what stopped that cell.
            Without it, a cell that fails, or whose process dies, costs itself: see `CvResult.errors`.
    """
    plan, machine, watch = plan or CvPlan.of(), machine or Machine(), watch or CvWatch()
    if resume:
        plan = CvPlan.stored(out, plan.only)
        machine = _same_weights(machine, read_settings(out))
    _check_processes()
    _check_weights(plan, machine.weights)
    cohort = read_prepared_cohort(data)
    splits = _open(out, cohort, plan, machine.weights)
    _audit(out, cohort, splits)
    trackers = machine.trackers or tuple(read_trackers(out))
    machine = dataclasses.replace(machine, trackers=trackers, store=out)
    write_trackers(out, dict.fromkeys(trackers, ""))
    tasks = [
        CellTask(
            cell=cell,
            out=out,
            data=cohort.folders,
            config=plan.config,
            split=splits[cell.fold - 1],
            machine=machine,
        )
        for cell in plan.cells
    ]
    with note_signals("saving; run again with --resume to go on") as signals:
        states, errors = _train_cells(tasks, watch, signals, alone=plan.chosen is not None)
    if plan.chosen and states.get(plan.chosen) == "busy":
        raise OutputError(
            f"{plan.chosen.folder(out)}: another ssclf process is training this cell; leave it to finish."
        )
    missing = tuple(c for c in planned_cells(read_settings(out)) if not is_finished(c.folder(out)))
    stopped = len(states) < len(tasks) or "interrupted" in states.values()
    interrupted = signals[0] if signals and stopped else 0
    return CvResult(out, states, missing, errors, interrupted)


def _train_cells(
    tasks: Sequence[CellTask], watch: CvWatch, signals: Sequence[int], *, alone: bool
) -> tuple[dict[Cell, State], dict[Cell, str]]:
    """One after the other; what became of each, and why it failed.

    Args:
        alone: it was asked for one cell, so that its failure is the caller's.
    """
    states: dict[Cell, State] = {}
    errors: dict[Cell, str] = {}
    for number, task in enumerate(tasks, 1):
        if signals:
            break

        def begin(task: CellTask = task, number: int = number) -> None:
            watch.on_cell(task.cell, number, len(tasks), None)

        try:
            states[task.cell] = _take(task, watch, signals, begin)
        except SsclfError as exc:
            with contextlib.suppress(OutputError):  # a full disk, of which the reason itself speaks
                write_failure(task.cell.folder(task.out), str(exc), _trace(exc))
            if alone:
                raise
            log.error("%s: %s", task.cell.name, exc)
            states[task.cell], errors[task.cell] = "failed", str(exc)
        watch.on_cell(task.cell, number, len(tasks), states[task.cell])
    return states, errors


def _audit(out: Path, cohort: PreparedCohort, splits: Sequence[Split]) -> None:
    """A part of the report, which never costs the trainings; without one, the next call makes it."""
    try:
        audit_confounds(out, cohort, splits)
    except Exception as exc:
        text = str(exc) if isinstance(exc, SsclfError) else f"unexpected {type(exc).__name__} ({exc})"
        log.error("no audit: %s", text)


def _trace(exc: SsclfError) -> str:
    """Where it went wrong, for an error that has no message of ours."""
    return str(exc.__cause__) if isinstance(exc.__cause__, WorkTraceback) else ""


def _take(task: CellTask, watch: Watch, signals: Sequence[int], begin: Callable[[], None]) -> State:
    """Do a cell's work unless it is done or another process is at it."""
    folder = task.cell.folder(task.out)
    if is_finished(folder) and has_cost(folder):
        return "finished"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK) as ours:
        if not ours:
            return "busy"
        if is_finished(folder) and has_cost(folder):  # by another process, meanwhile
            return "finished"
        begin()
        forget_failure(folder)
        stopped = train_cell(task, watch, signals)
    return "interrupted" if stopped else "trained"


def _check_processes() -> None:
    if (processes := process_count()) > 1:
        raise ConfigError(
            f"cv: expected one process a cell, found {processes} that were started together; start each on its own "
            "with --only (a job array), or one after the other on one GPU each with the same --out."
        )


def _check_weights(plan: CvPlan, weights: Path | None) -> None:
    """Miss a weights file now, not after a day of training."""
    cells = [Cell.parse(f"{variant}/1") for variant in plan.variants]
    models = list(dict.fromkeys(cell.architecture for cell in cells if cell.pretrained))
    if weights and len(models) > 1:
        raise ConfigError(
            "weights: one file fits one network; import the others with `ssclf weights import` instead."
        )
    for model in models:
        network = build_network(model, channels=1, classes=2)
        load_pretrained(network, model, stem=plan.config.stem, path=weights)


def _same_weights(machine: Machine, stored: Mapping[str, Any]) -> Machine:
    """The weights file that a cross-validation began with, where none is named."""
    file = stored.get("weights", {}).get("file")
    return dataclasses.replace(machine, weights=Path(file)) if file and not machine.weights else machine


def _open(out: Path, cohort: PreparedCohort, plan: CvPlan, weights: Path | None) -> list[Split]:
    """The folds: drawn by the first process, read and compared by all others."""
    folders = [str(path.resolve()) for path in cohort.folders]
    values = {
        "config": {k: v for k, v in config_to_dict(plan.config).items() if k not in _PER_CELL},
        "scheme": plan.scheme,
        "folds": plan.folds,
        "class_names": list(cohort.class_names),
        "preprocess": config_to_dict(cohort.preprocess),
        "synthetic": cohort.synthetic,
        "volumes": fingerprint(cohort),
        "cohort": count_sources(cohort),
        "data": folders[0] if len(folders) == 1 else folders,
        "weights": {"file": str(weights.resolve()), "sha256": file_sha256(weights)} if weights else {},
        "ssclf_version": __version__,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written ({exc.strerror or exc}).") from exc
    with lock(out / LOCK, wait=True):
        if is_cv_run(out):
            stored = read_settings(out)
            _compare(out, stored, values)
            changes = {
                "variants": list(dict.fromkeys([*stored["variants"], *plan.variants])),
                "data": values["data"],  # which may have moved
                "weights": values["weights"] or stored.get("weights", {}),
            }
            values = {**stored, **changes}
            splits = read_folds(out, [s.key for s in cohort.samples])
        else:
            if holds_training_run(out):
                raise OutputError(f"{out}: holds a training run; choose another --out.")
            values["variants"] = list(plan.variants)
            splits = _draw(cohort, plan)
            write_folds(out, splits)
        for split in splits:
            check_leakage(split, cohort.subjects)
            check_leakage(split, {s.key: s.voxels or s.key for s in cohort.samples}, "voxels")
        write_settings(out, values)
    return splits


def _compare(out: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse to mix: cells that differ in more than network, start and fold cannot be compared."""
    began = config_to_dict(
        config_from_dict(TrainConfig, stored["config"])
    )  # with what earlier versions did not have
    different = [key for key, value in asked["config"].items() if began[key] != value]
    different += [key for key in ("scheme", "folds") if stored[key] != asked[key]]
    if different:
        before = {**began, **stored}
        raise ConfigError(
            f"{out}: a cross-validation goes on with the settings it began with, and found others for "
            f"{', '.join(f'{name} (it began with {before.get(name)})' for name in different)}; add --resume to take "
            "its own, or choose another --out."
        )
    file, now = stored.get("weights"), asked["weights"]
    pretrained = any(Cell.parse(f"{variant}/1").pretrained for variant in stored["variants"])
    if now and file is not None and pretrained and file.get("sha256") != now["sha256"]:
        raise ConfigError(
            f"{out}: its pretrained networks began with {file.get('file', 'the weights of this machine')}, so "
            f"--weights {now['file']} cannot be taken any more; leave it out, or choose another --out."
        )
    if any(stored[key] != asked[key] for key in ("class_names", "preprocess", "volumes")):
        raise DatasetError(
            f"{out}: the preprocessed volumes are not those it began with; bring them back, or choose another --out."
        )


def _draw(cohort: PreparedCohort, plan: CvPlan) -> list[Split]:
    subjects, labels, config = cohort.subjects, cohort.labels, plan.config
    if plan.scheme == "paper":
        splits = holdout_splits(subjects, labels, share=config.holdout, count=plan.folds, seed=config.seed)
    else:
        splits = disjoint_folds(subjects, labels, count=plan.folds, seed=config.seed)
    if config.validation:
        splits = [
            cut_validation(split, subjects, labels, share=config.validation, seed=config.seed + number)
            for number, split in enumerate(splits, 1)
        ]
    return splits
