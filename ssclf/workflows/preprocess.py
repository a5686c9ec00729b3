"""`ssclf preprocess`: labelled scans of any source in, volumes that a network can be trained on out.

`io.records.preprocessed` says what is in the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssclf.config import PreprocessConfig, Preset, SkullStrip
from ssclf.domain.equal_volumes import Known, check_labels, equal_pairs, join_subjects
from ssclf.domain.geometry import orientation
from ssclf.domain.likeness import describe_likeness
from ssclf.domain.preprocessing import voxel_hash
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, MissingDependencyError, OutputError
from ssclf.io.discovery.cohorts import Cohort, CohortQuery, find_cases
from ssclf.io.discovery.scans import Case, Scan, stored_files
from ssclf.io.discovery.subjects import list_subjects
from ssclf.io.extraction.engines import available_engines
from ssclf.io.files import own_folder
from ssclf.io.locks import Lock
from ssclf.io.memory import share_of_memory
from ssclf.io.models.checksums import file_sha256
from ssclf.io.own_output import PREPARED_MARK
from ssclf.io.paths import check_output_folder
from ssclf.io.preparation import PreparedScan, SkullError, brain_extractor, prepare_scan
from ssclf.io.records.preprocessed import (
    begin_folder,
    left_over,
    qc_path,
    read_record,
    record_path,
    stored_hash,
    sweep_folder,
    volume_key,
    write_failed,
    write_manifest,
    write_record,
    write_settings,
    write_subjects,
)
from ssclf.io.volumes.dicom_files import Limits
from ssclf.io.volumes.nifti import read_written, write_nifti
from ssclf.io.workers import run_in_processes
from ssclf.reporting.qc import Failure, draw_before_and_after, write_qc
from ssclf.workflows.interruption import exit_code, note_signals

#: Raised when records say something else than before: volumes are then made again.
RECORD_FORMAT = 2
Status = Literal["made", "reused", "failed", "head", "unwritable"]


@dataclass(frozen=True)
class PreprocessSummary:
    """What a run did. `interrupted` is the signal that stopped it, 0 when it ran to its end.

    Attributes:
        rows: cells of the manifest.
        failures: what is in `failed.csv`.
        reused: volumes that were done before.
        left_over: volumes of earlier runs that are no part of this cohort; their files stay.
        notes: of volumes that hold the same voxels, a sentence a pair.
    """

    cohort: Cohort
    rows: tuple[Mapping[str, str], ...]
    failures: tuple[Failure, ...]
    reused: int
    left_over: int
    interrupted: int = 0
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Contract, "Exit codes"."""
        return exit_code(failed=bool(self.failures), interrupted=self.interrupted)


@dataclass(frozen=True)
class _Task:
    case: Case
    name: str


@dataclass(frozen=True)
class _Job:
    """What is the same for all volumes of a run.

    Attributes:
        engine: name and version of what would remove a skull now.
        models: deepbet's networks, where they are at hand.
    """

    config: PreprocessConfig
    skull_strip: str
    engine: str
    models: tuple[Path, ...]
    threads: int
    show_heads: bool
    out: Path
    scratch: Path

    @property
    def key(self) -> str:
        return f"{RECORD_FORMAT} {self.config.hash} {self.skull_strip} {self.show_heads}"

    def volume(self, name: str) -> Path:
        return self.out / volume_key(name)

    def record(self, name: str) -> Path:
        return record_path(self.out, name)


def choose_settings(out: Path, given: Mapping[str, Any], preset: Preset | None) -> PreprocessConfig:
    """What a command is to preprocess with.

    Args:
        out: folder to write.
        given: values that the user has said.
        preset: likewise; None for the usual one.

    Raises:
        ConfigError: a value is out of range.
        OutputError: the folder holds what this command made when the paper's preset was the usual one.
    """
    if preset:
        return PreprocessConfig.preset(preset, **given)
    config, paper = PreprocessConfig.preset("default", **given), PreprocessConfig.preset("paper", **given)
    if config != paper and stored_hash(out) == paper.hash:
        raise OutputError(
            f"{out}: expected a cohort of --preset default, which is meant where none is named, found one of --preset "
            "paper. Say --preset paper to go on with it, --preset default to replace it, or choose another --out."
        )
    return config


def preprocess_cohort(
    query: CohortQuery,
    out: Path,
    config: PreprocessConfig,
    *,
    skull_strip: str = "auto",
    workers: int = 1,
    timeout_s: float | None = None,
    show_heads: bool = False,
    on_start: Callable[[Cohort], None] = lambda cohort: None,
    on_case: Callable[[Case, str], None] = lambda case, error: None,
) -> PreprocessSummary:
    """Preprocess a cohort into a folder; what is there already and would come out the same is kept.

    Args:
        query: which volumes; its contrasts are those of the config.
        out: folder to write; created.
        skull_strip: see `SkullStrip.parse`.
        workers: processes; the voxels do not depend on their number.
        timeout_s: a volume that takes longer fails.
        show_heads: draw whole heads in `qc.html`, not the brain alone.
        on_start: called with what was found, before work begins.
        on_case: called for each finished case, with its error or "".

    Raises:
        ConfigError: the query asks for other contrasts than the config.
        DatasetError: the sources are not understood, see `find_cases`; or the same voxels have two labels.
        OutputError: the folder cannot be written, or another run writes it.
        MissingDependencyError: the brain extraction that was asked for is not installed.
    """
    how = SkullStrip.parse(skull_strip)
    check_output_folder("out", out)
    if query.contrasts != config.contrasts:
        raise ConfigError(
            f"contrasts: expected those of the settings ({', '.join(config.contrasts)}) in the query too, "
            f"found {', '.join(query.contrasts)}."
        )
    cohort = find_cases(query, Limits(workers, timeout_s))
    tasks = [_Task(case, name) for case, name in zip(cohort.cases, _file_names(cohort.cases), strict=True)]
    on_start(cohort)
    with _locked(out) as scratch, note_signals("finishing the volumes in flight") as received:
        engine = _engine(how)
        models = _deepbet_models() if how.engine == "deepbet" and not how.only_heads else ()
        threads = max(len(os.sched_getaffinity(0)) // workers, 1)
        job = _Job(config, skull_strip, engine, models, threads, show_heads, out, scratch)
        write_settings(out, config, skull_strip=skull_strip, synthetic=_is_synthetic(cohort))
        work = _Work({task.name: task for task in tasks}, workers, timeout_s, received, on_case)
        _make_volumes(work, job)
        if received:
            return PreprocessSummary(cohort, (), (), work.reused, 0, received[0])
        finished = [task for task in tasks if task.name not in work.pending]
        return _write_results(job, cohort, finished, work.errors, work.reused)


@dataclass
class _Work:
    """The cases of a run and what became of them.

    Attributes:
        pending: those still to do, by name.
        received: signals; the first of them stops the run.
        errors: of the cases that failed, by name.
        reused: cases that were done before.
    """

    pending: dict[str, _Task]
    workers: int
    timeout_s: float | None
    received: Sequence[int]
    on_case: Callable[[Case, str], None]
    errors: dict[str, str] = field(default_factory=dict)
    reused: int = 0


def _make_volumes(work: _Work, job: _Job) -> None:
    """Do all that is pending. deepbet's networks are fetched at the first head: most cohorts with a skull need them
    once, and stripped ones never."""
    refusal = ""
    while work.pending and not work.received:
        if not _make_until_head(work, job, refusal):
            continue
        try:
            job = replace(job, models=_deepbet_models())
        except MissingDependencyError as exc:
            refusal = str(exc)


def _make_until_head(work: _Work, job: _Job, refusal: str) -> bool:
    """Do what is pending, until a case turns out to be a head that deepbet is needed for.

    Args:
        refusal: why deepbet cannot be had; heads then fail with it, and none stops the others.

    Returns:
        whether there was such a head. It stays pending, and with it what was not begun.
    """
    head_found: list[bool] = []
    outcomes = run_in_processes(
        partial(_preprocess_case, job=job),
        list(work.pending.values()),
        workers=work.workers,
        timeout_s=work.timeout_s,
        memory=share_of_memory(work.workers),
        stop=lambda: bool(work.received or head_found),
    )
    for outcome in outcomes:
        status, error = outcome.result or ("failed", outcome.error)
        if status == "head" and not refusal:
            head_found.append(True)
            continue
        if status == "unwritable":
            raise OutputError(error)
        task = work.pending.pop(outcome.item.name)
        work.reused += status == "reused"
        if status in ("failed", "head"):
            work.errors[task.name] = error = refusal or error
        work.on_case(task.case, error)
    return bool(head_found)


def _preprocess_case(task: _Task, job: _Job) -> tuple[Status, str]:
    """Runs in a worker: one case from its files to its volume and record."""
    record = job.record(task.name)
    scan = task.case.scan
    old = read_record(record)
    stats = _stats(scan)
    valid = old.get("key") == job.key and old.get("engine") in ("none", job.engine)
    if valid and _size(job.volume(task.name)) == old.get("bytes"):
        if old.get("stats") == stats:
            return "reused", ""
        if old.get("content") == _content(scan):
            write_record(record, {**old, "stats": stats})
            return "reused", ""
    try:
        with tempfile.TemporaryDirectory(dir=job.scratch) as work:
            prepared = prepare_scan(
                scan,
                job.config,
                skull_strip=job.skull_strip,
                extractor=brain_extractor(job.models, job.threads),
                work=Path(work),
                threads=job.threads,
            )
    except SkullError as exc:
        return "head", str(exc)
    pictures = draw_before_and_after(
        prepared.original, prepared.brain, prepared.volume, show_heads=job.show_heads
    )
    values = {
        "key": job.key,
        "engine": job.engine if prepared.engine != "none" else "none",
        "stats": stats,
        "content": _content(scan),
        "cells": {**_cells(prepared, job.config), "drawn": "yes" if all(pictures) else ""},
        "pictures": pictures,
    }
    try:
        volume = Volume(prepared.volume.data, prepared.volume.affine)
        write_nifti(volume, job.volume(task.name), mark=PREPARED_MARK)
        write_record(record, {**values, "bytes": _size(job.volume(task.name))})
    except OSError as exc:
        return "unwritable", f"{job.out}: cannot be written ({exc.strerror or exc})."
    except OutputError as exc:
        return "unwritable", str(exc)
    return "made", ""


def _written_cells(job: _Job, name: str) -> dict[str, str]:
    """What the record of a volume says for the manifest, and its likeness, which those of earlier versions lack."""
    cells: dict[str, str] = read_record(job.record(name))["cells"]
    if "likeness" in cells:
        return cells
    made = read_written(job.volume(name))
    return {**cells, "likeness": describe_likeness(made.data, made.affine)}


def _cells(prepared: PreparedScan, config: PreprocessConfig) -> dict[str, str]:
    """What the manifest says of a volume beyond who it is."""
    original, volume = prepared.original, prepared.volume
    return {
        "shape": _by(volume.data.shape[1:]),
        "spacing": _by(config.spacing),
        "brain_ml": f"{volume.brain_ml:.1f}",
        "extraction": prepared.engine,
        "flags": ";".join(volume.flags),
        "voxels": voxel_hash(volume.data),
        "likeness": describe_likeness(volume.data, volume.affine),
        "settings": config.hash,
        # Stored orders read (i, j, k), as in every viewer; ours are (d, h, w).
        "original_shape": _by(original.shape[::-1]),
        "original_spacing": _by(original.spacing[::-1]),
        "original_orientation": orientation(original)[::-1],
        "original_dtype": original.data.dtype.name,
        # inside the brain, of the first contrast: the audit of `ssclf cv` looks whether scales tell the class
        "original_intensity": _by(np.percentile(original.data[0][prepared.brain], (1, 50, 99))),
    }


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _stats(scan: Scan) -> list[list[Any]]:
    """Name, size and time of every file: equal means that nobody wrote to them."""
    found = []
    for path in (path for source in scan.contrasts for path in stored_files(source)):
        stat = path.stat()
        found.append([path.name, stat.st_size, stat.st_mtime_ns])
    return found


def _content(scan: Scan) -> str:
    """Hash of every byte that the scan is read from: equal for a copy in another place."""
    digest = hashlib.sha256()
    for path in (path for source in scan.contrasts for path in stored_files(source)):
        digest.update(file_sha256(path).encode())
    return digest.hexdigest()


def _deepbet_models() -> tuple[Path, ...]:
    from ssclf.learning.extraction_export import cached_brain_extraction

    return tuple(cached_brain_extraction())


def _engine(how: SkullStrip) -> str:
    """Name and version of the engine that this run uses for heads."""
    if how.engine == "none":
        return "none"
    found = next(status for status in available_engines() if status.name == how.engine)
    if not found.available and not how.only_heads:
        raise MissingDependencyError(f"brain extraction with {how.engine}: {found.detail}.")
    return f"{how.engine} {found.version}"


def _file_names(cases: Sequence[Case]) -> Iterator[str]:
    """A file name for each case: the subject where that is a safe name and its only one, else with a hash.

    Names depend on a case and its subject's other cases only, so a cohort that grows keeps them.
    """
    taken = Counter(case.subject.lower() for case in cases)
    for case in cases:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", case.subject).lstrip(".-")[:80]
        if safe != case.subject or taken[case.subject.lower()] > 1:
            text = f"{case.subject}|{case.scan.path}|{case.scan.series}"
            safe += "-" + hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
        yield safe


@contextmanager
def _locked(out: Path) -> Iterator[Path]:
    """Hold the folder for one run and give it a private scratch folder, cleared of leftovers.

    Raises:
        OutputError: it cannot be written, holds another kind of manifest, or another run has it.
    """
    scratch = out / ".work"
    try:
        begin_folder(out)
        with Lock(out / ".lock") as lock:
            if not lock.take():
                raise OutputError(
                    f"{out}: another ssclf run is writing there; wait for it, or choose another --out."
                )
            own_folder(scratch)
            sweep_folder(out)
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o700)
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written ({exc.strerror or exc}).") from exc


def _is_synthetic(cohort: Cohort) -> bool:
    return any("synthetic" in (case.source, *case.extra) for case in cohort.cases)


def _write_results(
    job: _Job, cohort: Cohort, tasks: Sequence[_Task], errors: Mapping[str, str], reused: int
) -> PreprocessSummary:
    failures = [Failure(task.case, errors[task.name]) for task in tasks if task.name in errors]
    cells = {task.name: _written_cells(job, task.name) for task in tasks if task.name not in errors}
    made, notes = _persons([task for task in tasks if task.name in cells], cells)
    rows = [_row(task, cells[task.name], job.config) for task in made]
    records = [job.record(task.name) for task in made]
    write_manifest(job.out, rows)
    write_subjects(job.out, _subject_rows([task.case for task in made], [f.case for f in failures]))
    write_failed(
        job.out,
        (
            (f.case.scan.path, f.case.scan.series, f.case.subject, f.case.label, f.case.source, f.error)
            for f in failures
        ),
    )
    write_qc(
        qc_path(job.out),
        rows,
        lambda index: read_record(records[index])["pictures"],
        failures,
        settings=_describe(job),
        show_heads=job.show_heads,
        synthetic=_is_synthetic(cohort),
    )
    others = left_over(job.out, (task.name for task in tasks))
    return PreprocessSummary(cohort, tuple(rows), tuple(failures), reused, others, notes=notes)


def _persons(
    tasks: Sequence[_Task], cells: Mapping[str, Mapping[str, str]]
) -> tuple[list[_Task], tuple[str, ...]]:
    """The volumes by subject, those of equal voxels under one, and what to say of these.

    Args:
        cells: of the manifest, by name of the task.

    Raises:
        DatasetError: the same voxels have two labels.
    """
    known = [
        Known(
            f"{task.case.scan.path} {task.case.scan.series}".rstrip(),
            task.case.subject,
            task.case.label,
            cells[task.name]["voxels"],
            cells[task.name]["likeness"],
        )
        for task in tasks
    ]
    pairs = equal_pairs(known)
    check_labels(pairs)
    joined = join_subjects(pairs)
    notes = tuple(
        f"{one.place} and {two.place} hold the same voxels"
        + (f": {one.subject} and {two.subject} count as one subject" if one.subject != two.subject else "")
        for one, two in pairs
    )
    named = [
        replace(task, case=replace(task.case, subject=joined.get(task.case.subject, task.case.subject)))
        for task in tasks
    ]
    return sorted(named, key=lambda task: task.case.order), notes


def _row(task: _Task, cells: Mapping[str, str], config: PreprocessConfig) -> dict[str, str]:
    """What the manifest says of a volume."""
    case = task.case
    stand_ins = dict(pair.split("=") for pair in case.extra.get("stand_in", "").split(";") if pair)
    return {
        "subject": case.subject,
        "label": case.label,
        "source": case.source,
        "path": volume_key(task.name),
        "contrasts": ";".join(f"{c}={stand_ins[c]}" if c in stand_ins else c for c in config.contrasts),
        "original": case.scan.path,
        "series": case.scan.series,
        **cells,
    }


def _subject_rows(made: Sequence[Case], failed: Sequence[Case]) -> Iterator[tuple[str | int, ...]]:
    """What was understood of who is who, for `write_subjects`."""
    lost = Counter((case.subject, case.label) for case in failed)
    for each in list_subjects([*made, *failed]):
        several = (";".join(words) for words in (each.sources, each.sessions, each.named_by))
        sources, sessions, named_by = several
        count = lost[each.subject, each.label]
        yield (each.subject, each.label, sources, sessions, each.volumes - count, count, named_by)


def _describe(job: _Job) -> str:
    config = job.config
    low, high = config.percentiles
    crop = (
        f"cropped to the brain and {config.crop_margin_mm:g} mm" if config.crop == "brain" else "not cropped"
    )
    return (
        f"{_by(config.spacing)} mm, {config.plane} slices, {crop}; {', '.join(config.contrasts)} clipped to the "
        f"percentiles {low:g} and {high:g} of the brain; skull removal {job.skull_strip}; settings {config.hash}."
    )
