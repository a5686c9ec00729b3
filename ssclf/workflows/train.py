"""`ssclf train`: a folder of preprocessed volumes in, a run folder out.

`io.records.training_run` says what is in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ssclf import __version__
from ssclf.config import Device, TrackerName, TrainConfig, config_to_dict
from ssclf.domain.likeness import SeenVolumes
from ssclf.domain.metrics import Metrics, fit_temperature, score_predictions
from ssclf.domain.provenance import Calibration, Provenance
from ssclf.domain.run_data import RunData, differences, other_versions, random_versions
from ssclf.domain.scores import softmax
from ssclf.domain.splits import Split, check_leakage, cut_validation, holdout_splits
from ssclf.errors import ConfigError, DatasetError, LeakageError, ModelError, OutputError
from ssclf.io.alone import PATIENCE_S
from ssclf.io.files import whole_file
from ssclf.io.models.checksums import file_sha256
from ssclf.io.records.preprocessed import (
    Folders,
    PreparedCohort,
    Sample,
    describe_data,
    read_prepared_cohort,
)
from ssclf.io.records.training_run import (
    CHOSEN,
    CONFIG,
    CURVES,
    EVENTS,
    FEATURES,
    LAST,
    SPLIT,
    EpochRecord,
    RunRecord,
    VolumePrediction,
    own_folder,
    processes_per_node,
    read_config,
    read_data,
    read_split,
    read_trackers,
    reopen,
    write_beginning,
    write_data,
    write_epochs,
    write_predictions,
    write_record,
    write_trackers,
)
from ssclf.learning.abandoning import Stopped
from ssclf.learning.checkpoints import load_checkpoint, save_checkpoint
from ssclf.learning.failures import resource_errors
from ssclf.learning.finetuning import Start, adopt_weights, tell_other_preprocessing
from ssclf.learning.loops import Predictions, Trainer, seed_everything, start_fabric
from ssclf.learning.networks import VolumeNetwork, build_network
from ssclf.learning.pretrained import load_pretrained
from ssclf.learning.run_log import LoggedRun, RunLog, check_trackers
from ssclf.learning.statistics import training_statistics
from ssclf.reporting.figures import draw_learning_curves
from ssclf.workflows.interruption import end_at_last, exit_code, note_signals
from ssclf.workflows.lesions import with_lesions
from ssclf.workflows.reports import try_report

#: A look at the validation part that has taken longer when a signal comes is left to the next call.
VALIDATE_FOR_S = 5.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Attributes:
    run: the folder.
    epochs: a record each.
    chosen_epoch: whose weights are exported, from 1.
    test: scores of the test part, None without one; calibrated where a validation part gave the temperature.
    temperature: that calibrates the logits; 1 where nothing was held out to fit it on.
    calibrated_on: volumes that the temperature was fitted on.
    interrupted: signal that stopped the run, 0 when it ran to its end. It goes on with `resume`.
    reported: False where the picture of its curves could not be drawn.
    """

    run: Path
    epochs: tuple[EpochRecord, ...]
    chosen_epoch: int
    test: Metrics | None
    temperature: float
    calibrated_on: int = 0
    interrupted: int = 0
    reported: bool = True

    @property
    def exit_code(self) -> int:
        """Contract, "Exit codes"."""
        return exit_code(failed=not self.reported, interrupted=self.interrupted)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a training runs on; the numbers do not depend on it, `weights` aside.

    Attributes:
        workers: processes that read volumes, and draw or change them where the device does not; 0 does so in the one
            that trains. None: `reading_workers`.
        weights: file to start from instead of the Kinetics-400 weights found on this machine.
        trackers: where the numbers go; None: where they went before, TensorBoard for a new run.
        store: folder for what MLflow and W&B keep; None for the run's own.
        save_every_s: epochs shorter than this share a checkpoint. A signal always saves; only a killed process loses
            so much.
    """

    device: Device = "auto"
    workers: int | None = None
    weights: Path | None = None
    trackers: tuple[TrackerName, ...] | None = None
    store: Path | None = None
    save_every_s: float = 10.0

    def __post_init__(self) -> None:
        check_trackers(self.trackers or ())


def reading_workers() -> int:
    """One for each core that this process may use; processes that train together share them. Each holds batches, so
    that there are 16 at most."""
    cores = len(os.sched_getaffinity(0)) // processes_per_node()
    return min(max(cores, 1), 16)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told of a training while it runs.

    Attributes:
        on_step: called with epoch (from 1), steps done in it, steps in it and its mean loss so far.
        on_epoch: called after every epoch.
    """

    on_step: Callable[[int, int, int, float], None] = lambda epoch, step, steps, loss: None
    on_epoch: Callable[[EpochRecord], None] = lambda record: None


def train(
    data: Folders,
    out: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    split: Split | None = None,
    start: Start | None = None,
    machine: Machine | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train a network.

    Args:
        data: folder that `ssclf preprocess` wrote, or several to join.
        out: the run folder; new, or with `resume` the one to go on with, as it began: more epochs are all that may
            change.
        split: who trains and who tests; None draws it as the config says.
        start: trained network to go on from; subjects that trained it stay in training, since a score on them says
            nothing.

    Raises:
        SsclfError: the data, settings or folder cannot be used. Signals do not raise: they save and return.
    """
    machine, watch = machine or Machine(), watch or Watch()
    with own_folder(out), resource_errors(out):
        return _train(read_cohort(data, config), out, config, split, start, machine, watch, resume=resume)


def read_cohort(data: Folders, config: TrainConfig) -> PreparedCohort:
    """What a run of these settings learns from.

    Raises:
        DatasetError: see `read_prepared_cohort`; or lesions are to be put into volumes that are not healthy.
    """
    if not config.lesions:
        return read_prepared_cohort(data)
    return with_lesions(read_prepared_cohort(data, min_classes=0))


def _train(
    cohort: PreparedCohort,
    out: Path,
    config: TrainConfig,
    split: Split | None,
    start: Start | None,
    machine: Machine,
    watch: Watch,
    *,
    resume: bool,
) -> TrainResult:
    """Train in a folder that is ours alone."""
    data = _compare_data(out, cohort, config, start, machine.weights, resume=resume)
    split = _open_run(out, cohort, config, split, start, resume=resume)
    if resume:
        _refuse_other_draws(out, data)
    state = load_checkpoint(out / LAST) if resume and (out / LAST).is_file() else None
    weights = machine.weights or (Path(data.weights["file"]) if data.weights else None)
    parts = {role: cohort.select(keys) for role, keys in split.roles.items()}
    _check_parts(cohort, parts)
    fabric = start_fabric(config, machine.device)
    main = fabric.global_rank == 0
    seed_everything(config.seed)
    network, progress = _build(cohort, config, start, weights, state)
    workers = reading_workers() if machine.workers is None else machine.workers
    with contextlib.closing(
        Trainer(fabric, network, config, cohort, parts["train"], workers=workers)
    ) as trainer:
        if state:
            _go_on(trainer, progress, state, out)
        elif start and main:  # to go on after a kill must not need the other model again
            _save(trainer, progress, out)
        if main:
            reopen(out)
            write_data(out, data)
            write_beginning(out, config, split)
        with _open_log(out, config, progress, machine) if main else contextlib.nullcontext() as run_log:
            saying = "saving; run again with --resume to go on"
            with end_at_last(PATIENCE_S), note_signals(saying) as signals:
                _run_epochs(
                    trainer, progress, parts["validation"], out, run_log, signals, watch, machine.save_every_s
                )
            rows = [asdict(record) for record in progress.records]
            reported = not main or try_report(
                str(out / CURVES), lambda: draw_learning_curves(rows, out / CURVES)
            )
            if not progress.finished(config):
                return TrainResult(
                    out, tuple(progress.records), progress.best_epoch, None, 1.0, interrupted=signals[0]
                )
            if progress.best is not None:
                network.load_state_dict(progress.best)
            result = _finish(trainer, progress, cohort, parts, out, run_log)
        return dataclasses.replace(result, reported=reported)


@contextlib.contextmanager
def _open_log(out: Path, config: TrainConfig, progress: _Progress, machine: Machine) -> Iterator[RunLog]:
    """The trackers of a run, the same that it had before where it goes on."""
    before = read_trackers(out)
    ids = {name: before.get(name, "") for name in machine.trackers or before}
    store = machine.store or out
    run = LoggedRun(
        name=out.relative_to(store).as_posix() if store != out else out.name,
        folder=out / EVENTS,
        store=store,
        config=config_to_dict(config),
        epoch=len(progress.records) + 1,
    )
    with contextlib.closing(RunLog(run, ids)) as run_log:
        write_trackers(out, run_log.ids)
        yield run_log


def _build(
    cohort: PreparedCohort,
    config: TrainConfig,
    start: Start | None,
    weights: Path | None,
    state: Mapping[str, Any] | None,
) -> tuple[VolumeNetwork, _Progress]:
    """The network as a run begins with it; of one that has begun, the checkpoint brings the weights."""
    network = build_network(
        config.architecture,
        channels=len(cohort.preprocess.contrasts),
        classes=len(cohort.class_names),
        dropout=config.dropout,
    )
    progress = _Progress()
    if state:
        network.random = tuple(state.get("progress", {}).get("random", ()))
    elif start:
        adopt_weights(network, config.architecture, start, cohort.class_names)
        tell_other_preprocessing(start, cohort.preprocess)
        progress.started_from, progress.seen = start.describe(), start.seen.texts
    elif config.pretrained:
        found = load_pretrained(network, config.architecture, stem=config.stem, path=weights)
        progress.initial_weights, progress.starting_weights = found.file, found.about
        progress.random = network.random
    return network, progress


def _go_on(trainer: Trainer, progress: _Progress, state: dict[str, Any], out: Path) -> None:
    try:
        trainer.load_state_dict(state["trainer"])
        progress.load_state_dict(state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError) as exc:  # torch's own for tensors of another shape
        raise ModelError(
            f"{out / LAST}: expected the state of this network on {len(trainer.class_names)} classes, found another; "
            "the data are not those that the run began with, or the file is damaged. Start a new run."
        ) from exc


def _save(trainer: Trainer, progress: _Progress, out: Path) -> None:
    save_checkpoint({"trainer": trainer.state_dict(), "progress": progress.state_dict()}, out / LAST)


class _Progress:
    """What a run remembers beside its trainer: the epochs so far and the best weights among them."""

    def __init__(self) -> None:
        #: File of weights that the run began with, what is known of them, and the modules that it left random.
        self.initial_weights = ""
        self.starting_weights: dict[str, Any] = {}
        self.random: tuple[str, ...] = ()
        #: Model that it began with instead, and hashes and likenesses of the volumes that it has seen.
        self.started_from: dict[str, Any] = {}
        self.seen: list[str] = []
        self.records: list[EpochRecord] = []
        self.best: dict[str, Any] | None = None
        self.best_epoch = 0
        self.best_loss = float("inf")
        #: An epoch that was trained, and whose validation part was not looked at before a signal came.
        self.unscored: dict[str, Any] | None = None

    def finished(self, config: TrainConfig) -> bool:
        waited = len(self.records) - self.best_epoch
        return len(self.records) >= config.epochs or bool(config.patience and waited >= config.patience)

    def add(self, record: EpochRecord, network: dict[str, Any]) -> None:
        self.records.append(record)
        if record.val_loss is None:  # without a validation part, the last epoch it is
            self.best_epoch = record.epoch
        elif record.val_loss < self.best_loss:
            self.best_epoch, self.best_loss = record.epoch, record.val_loss
            self.best = {key: value.detach().cpu().clone() for key, value in network.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "initial_weights": self.initial_weights,
            "starting_weights": self.starting_weights,
            "random": list(self.random),
            "started_from": self.started_from,
            "seen": self.seen,
            "records": [asdict(record) for record in self.records],
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "unscored": self.unscored,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.initial_weights = state["initial_weights"]
        self.starting_weights = state.get("starting_weights", {})  # since 2026-11-27
        self.random = tuple(state.get("random", ()))
        self.started_from = state["started_from"]
        self.seen = state["seen"]
        self.records = [EpochRecord(**record) for record in state["records"]]
        self.best = state["best"]
        self.best_epoch, self.best_loss = state["best_epoch"], state["best_loss"]
        self.unscored = state.get("unscored")


def _run_epochs(
    trainer: Trainer,
    progress: _Progress,
    validation: list[Sample],
    out: Path,
    run_log: RunLog | None,
    signals: list[int],
    watch: Watch,
    save_every_s: float,
) -> None:
    """Train until the last epoch, early stopping or a signal; the last state is on disk afterwards.

    Args:
        run_log: None in all processes but the first, which writes.

    Raises:
        ModelError: numbers ran over; what is on disk is from before.
    """
    saved = -math.inf  # the first epoch is kept, whatever becomes of the next
    while not progress.finished(trainer.config):
        with _what_is_kept(out):
            record = _train_epoch(trainer, progress, validation, signals, watch)
        if record:
            progress.add(record, trainer.network.state_dict())
            if run_log:
                _note(record, progress, run_log, out)
                watch.on_epoch(record)
        over = progress.finished(trainer.config) or bool(signals)
        if run_log and (over or time.monotonic() - saved > save_every_s):
            _save(trainer, progress, out)
            saved = time.monotonic()
        if signals:
            break


def _train_epoch(
    trainer: Trainer, progress: _Progress, validation: list[Sample], signals: list[int], watch: Watch
) -> EpochRecord | None:
    """What an epoch came to, None where a signal ended it, or the look at its validation part, early."""
    if progress.unscored is None:
        epoch = trainer.epoch + 1

        def report(step: int, loss: float) -> None:
            watch.on_step(epoch, step, trainer.steps_per_epoch, loss)

        result = trainer.train_epoch(stop=lambda: bool(signals), on_step=report)
        trainer.check_weights()
        if not result.finished:
            return None
        progress.unscored = {
            "epoch": epoch,
            "train_loss": result.loss,
            "learning_rate": result.learning_rate,
            "seconds": result.seconds,
            "wait_share": result.wait_share,
        }
    began = time.monotonic()
    try:
        scores = _validate(
            trainer, validation, lambda: bool(signals) and time.monotonic() - began > VALIDATE_FOR_S
        )
    except Stopped:
        return None
    trained: dict[str, Any] = progress.unscored
    progress.unscored = None
    return EpochRecord(**{**trained, **scores})


@contextlib.contextmanager
def _what_is_kept(out: Path) -> Iterator[None]:
    """An error of the network says what is left of the run."""
    try:
        yield
    except ModelError as exc:
        left = (
            f"The state before is kept in {out / LAST}"
            if (out / LAST).is_file()
            else "No state was kept before"
        )
        raise ModelError(f"{exc} {left}; what may help are other settings, and with them a new run.") from exc


def _note(record: EpochRecord, progress: _Progress, run_log: RunLog, out: Path) -> None:
    values = asdict(record)
    epoch = values.pop("epoch")
    run_log.note_epoch(epoch, {name: value for name, value in values.items() if value is not None})
    write_epochs(out, progress.records)


def _validate(trainer: Trainer, validation: list[Sample], stop: Callable[[], bool]) -> dict[str, float]:
    """Raises:
    Stopped: `stop` came first.
    """
    if not validation:
        return {}
    trainer.settle(stop=stop)
    found = trainer.predict(validation, "validation", stop=stop)
    metrics = score_predictions(found.targets, softmax(found.logits), trainer.class_names)
    return {"val_loss": found.loss, "val_accuracy": metrics.accuracy, "val_macro_f1": metrics.macro_f1}


def _finish(
    trainer: Trainer,
    progress: _Progress,
    cohort: PreparedCohort,
    parts: dict[str, list[Sample]],
    out: Path,
    run_log: RunLog | None,
) -> TrainResult:
    """Score the test part, once, with the chosen weights; calibrate; write down what the model came from."""
    names = cohort.class_names
    trainer.settle()
    found = {role: trainer.predict(samples, role) for role, samples in parts.items() if samples}
    # The validation part chose the epoch only; the test part is second choice, since it is scored too.
    role = next((role for role in ("validation", "test") if role in found), None)
    temperature = fit_temperature(found[role].logits, found[role].targets) if role else 1.0
    calibration = Calibration(
        temperature=temperature, fitted_on=role, volumes=len(parts[role]) if role else 0
    )
    scores = {
        part: {
            "raw": score_predictions(p.targets, softmax(p.logits), names),
            "calibrated": score_predictions(p.targets, softmax(p.logits, calibration.temperature), names),
        }
        for part, p in found.items()
        if part != "train"
    }
    if run_log:
        # with what gives its scores a meaning, against which `export` holds the rest of the folder
        meaning: dict[str, Any] = {"class_names": list(names), "preprocess": cohort.preprocess.hash}
        meaning["temperature"] = calibration.temperature
        save_checkpoint({"network": trainer.network.state_dict(), **meaning}, out / CHOSEN)
        write_predictions(out, names, _predictions(cohort, parts, found, calibration.temperature))
        train = found["train"]
        with whole_file(out / FEATURES, binary=True) as file:
            np.savez_compressed(file, features=train.features, targets=train.targets)
        training = dataclasses.replace(
            _describe(trainer, progress, cohort, parts, calibration),
            statistics=training_statistics(trainer.volumes(parts["train"]), found),
            scores={part: {kind: m.to_dict() for kind, m in kinds.items()} for part, kinds in scores.items()},
        )
        write_record(
            out,
            RunRecord(
                class_names=names,
                preprocess=cohort.preprocess,
                calibration=calibration,
                training=training,
                versions=package_versions(),
            ),
        )
        run_log.note_end(_by_one_name(scores))
    return TrainResult(
        run=out,
        epochs=tuple(progress.records),
        chosen_epoch=progress.best_epoch,
        # a temperature fitted on the test part would flatter its calibration
        test=scores["test"]["raw" if role == "test" else "calibrated"] if "test" in scores else None,
        temperature=calibration.temperature,
        calibrated_on=calibration.volumes,
    )


def _by_one_name(scores: Mapping[str, Mapping[str, Metrics]]) -> dict[str, float]:
    """Such as test/raw/macro_f1."""
    return {
        f"{part}/{kind}/{name}": value
        for part, kinds in scores.items()
        for kind, metrics in kinds.items()
        for name, value in metrics.to_dict().items()
        if isinstance(value, float)
    }


def _open_run(
    out: Path,
    cohort: PreparedCohort,
    config: TrainConfig,
    split: Split | None,
    start: Start | None,
    *,
    resume: bool,
) -> Split:
    """The split of a new run, or that of the run to resume, whose settings must be the same."""
    exists = (out / CONFIG).is_file()
    if exists and not resume:
        raise OutputError(f"{out}: holds a run already; go on with --resume, or choose another --out.")
    if not exists and resume:
        raise ModelError(f"{out}: expected a run to resume ({CONFIG}), found none; leave --resume out.")
    if not exists:
        split = split or _draw_split(cohort, config)
        return _keep_seen_in_training(split, cohort, start.seen) if start else split
    stored = read_config(out)
    different = [f.name for f in fields(config) if getattr(stored, f.name) != getattr(config, f.name)]
    if config.epochs > stored.epochs:
        different.remove("epochs")
    if different:
        raise ConfigError(
            f"{out}: a run is resumed with the settings it began with; {', '.join(different)} differ. "
            "Leave them out, or start a new run."
        )
    stored_split = read_split(out, [sample.key for sample in cohort.samples])
    if split and split != stored_split:
        raise DatasetError(f"{out / SPLIT}: the run began with another split; start a new run.")
    return stored_split


def _compare_data(
    out: Path,
    cohort: PreparedCohort,
    config: TrainConfig,
    start: Start | None,
    weights: Path | None,
    *,
    resume: bool,
) -> RunData:
    """What a run is begun with, or goes on with after it was found to be the same.

    Raises:
        DatasetError: the run began with other data.
        ModelError: it began with other weights, which it still needs.
    """
    now = dataclasses.replace(describe_data(cohort), drawn_by=random_versions(config))
    stored = read_data(out) if resume else None
    if stored is None:
        if resume:
            log.warning(
                "%s: was begun by a version of ssclf that did not write down its data, so nothing tells whether these "
                "are the same; make sure that they are", out,
            )  # fmt: skip
        taken = {"file": start.spec.name, "sha256": start.sha256} if start else {}
        file = weights.resolve() if weights and config.pretrained and weights.is_file() else None
        found = {"file": str(file), "sha256": file_sha256(file)} if file else {}
        return dataclasses.replace(now, weights=found, start=taken)
    if different := differences(stored, now):
        raise DatasetError(
            f"{out}: a run goes on with the volumes it began with, and these are others: {'; '.join(different)}. Bring "
            "them back or name their folders with --data, or start a new run."
        )
    wanted = weights or (Path(stored.weights["file"]) if stored.weights else None)
    if stored.weights and wanted and wanted.is_file() and file_sha256(wanted) != stored.weights["sha256"]:
        raise ModelError(
            f"{wanted}: expected the weights that {out} began with (SHA-256 {stored.weights['sha256'][:12]}…), found "
            "others; bring them back, or start a new run."
        )
    return dataclasses.replace(now, weights=stored.weights, start=stored.start)


def _refuse_other_draws(out: Path, now: RunData) -> None:
    """Raises:
    ModelError: a run began with volumes that the same seed does not give any more.
    """
    stored = read_data(out)
    if other := other_versions(stored.drawn_by if stored else {}, now.drawn_by):
        raise ModelError(
            f"{out}: a run goes on with the random volumes it began with, and this version of ssclf draws others "
            f"({other}); go on with the version that began it, or start a new run."
        )


def _draw_split(cohort: PreparedCohort, config: TrainConfig) -> Split:
    (split,) = holdout_splits(cohort.subjects, cohort.labels, share=config.holdout, count=1, seed=config.seed)
    if config.validation:
        split = cut_validation(
            split, cohort.subjects, cohort.labels, share=config.validation, seed=config.seed
        )
    return split


def _keep_seen_in_training(split: Split, cohort: PreparedCohort, seen: SeenVolumes) -> Split:
    """Move subjects that trained an earlier model out of the parts that score this one."""
    subjects = {s.subject for s in cohort.samples if seen.hold(s.voxels, s.describe)}
    moved = {
        role: tuple(key for key in keys if cohort.subjects[key] in subjects)
        for role, keys in split.roles.items()
        if role != "train"
    }
    if count := sum(map(len, moved.values())):
        log.info("%d volumes of subjects that trained the model to start from stay in training", count)
    kept = {
        role: tuple(key for key in keys if key not in moved.get(role, ()))
        for role, keys in split.roles.items()
    }
    for role in moved:
        if split.roles[role] and not kept[role]:
            raise LeakageError(
                f"{role}: all {len(split.roles[role])} volumes belong to subjects that trained the model to start "
                "from, so no score on them means anything; add new subjects, or pass --holdout 0."
            )
    return Split(**{**kept, "train": kept["train"] + tuple(key for keys in moved.values() for key in keys)})


def _check_parts(cohort: PreparedCohort, parts: dict[str, list[Sample]]) -> None:
    split = Split(**{role: tuple(s.key for s in samples) for role, samples in parts.items()})
    check_leakage(split, cohort.subjects)
    # the same scan may hide under two names; where the manifest has no hashes, its key stands for itself
    check_leakage(split, {sample.key: sample.voxels or sample.key for sample in cohort.samples}, "voxels")
    for name, count in zip(cohort.class_names, cohort.counts(parts["train"]), strict=True):
        if not count:
            raise DatasetError(f"class {name}: expected volumes in the training part, found none.")


def _describe(
    trainer: Trainer,
    progress: _Progress,
    cohort: PreparedCohort,
    parts: dict[str, list[Sample]],
    calibration: Calibration,
) -> Provenance:
    """What the bundle says about its data and training: counts and hashes, never subjects or paths."""
    train = parts["train"]
    parent = progress.started_from
    seen = SeenVolumes.of(progress.seen)
    described = {sample.describe() for role in ("train", "validation") for sample in parts[role]} - {""}
    return Provenance(
        # a start from lesions in real brains is a start, as Kinetics is, and makes no synthetic model of a real cohort
        synthetic=cohort.synthetic
        or bool(parent.get("synthetic") and not parent.get("pretrained_on_lesions")),
        settings_hash=cohort.preprocess.hash,
        volumes={
            role: dict(zip(cohort.class_names, cohort.counts(samples), strict=True))
            for role, samples in parts.items()
        },
        subjects={role: len({sample.subject for sample in samples}) for role, samples in parts.items()},
        sources=_count(sample.source for sample in train),
        class_sources={
            name: _count(s.source for s in train if s.label == name) for name in cohort.class_names
        },
        extraction=_count(sample.extraction for sample in train),
        voxels=tuple(sorted({sample.voxels for sample in train if sample.voxels} | seen.voxels)),
        likenesses=tuple(sorted(described.union(seen.likenesses))),
        config=config_to_dict(trainer.config),
        initial_weights=progress.initial_weights,
        starting_weights=progress.starting_weights,
        started_from=progress.started_from,
        precision=str(trainer.fabric.strategy.precision.precision),
        epochs=len(progress.records),
        chosen_epoch=progress.best_epoch,
        calibration=calibration,
    )


def _count(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(value or "not stated" for value in values).items()))


def package_versions() -> dict[str, str]:
    """What computed a run."""
    names = ("torch", "torchvision", "torchio", "lightning-fabric", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"ssclf": __version__, "python": platform.python_version(), **found}


def _predictions(
    cohort: PreparedCohort, parts: dict[str, list[Sample]], found: dict[str, Predictions], temperature: float
) -> Iterator[VolumePrediction]:
    """Of every volume that did not fit the weights."""
    for role in ("validation", "test"):
        if role not in found:
            continue
        probabilities = softmax(found[role].logits, temperature)
        for sample, p, logits in zip(parts[role], probabilities, found[role].logits, strict=True):
            yield VolumePrediction(
                path=sample.key,
                subject=sample.subject,
                source=sample.source,
                part=role,
                label=sample.label,
                prediction=cohort.class_names[p.argmax()],
                probabilities=tuple(map(float, p)),
                logits=tuple(map(float, logits)),
            )
