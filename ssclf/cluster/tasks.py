"""What the nodes of a Ray cluster do for `ssclf predict --ray`: plan, read, classify, finish partitions.

Each function gets the `Job` and a partition's number, or a batch of Ray Data, and may be repeated at any time: what
it writes is named after what it is about, or is one more copy of rows that are told apart by their keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from ssclf import __version__
from ssclf.cluster.inventory import Selection, Settled, Source, join_series, plan_name, settle, take_inventory
from ssclf.cluster.node_scratch import Files, run_scratch, unpack
from ssclf.cluster.partitions import (
    Planned,
    decode_plan,
    decode_results,
    encode_results,
    plan_digest,
    scan_from_json,
    scan_to_json,
)
from ssclf.cluster.store import Store
from ssclf.config import PredictConfig, PreprocessConfig
from ssclf.errors import DatasetError, OutputError, SsclfError
from ssclf.io.discovery.scans import Scan
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.records.results import ResultRow
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.io.workers import Workers, run_in_processes
from ssclf.workflows.classification import (
    NetworkInputs,
    Origin,
    RowMaker,
    make_network_inputs,
    scan_fingerprint,
)

#: Times that a batch may take its process with it.
_ATTEMPTS = 3


@dataclass(frozen=True)
class Part:
    """A partition that is complete. `first` and `last` are keys, for merging in order."""

    number: int
    volumes: int
    failed: int
    first: tuple[str, str]
    last: tuple[str, str]


@dataclass(frozen=True)
class Unfinished:
    """A partition that is not complete, and how many of its volumes lack a row."""

    volumes: int


@dataclass(frozen=True)
class Refused:
    """A volume that could not be read, and the line that says why."""

    reason: str


@dataclass(frozen=True)
class Lost:
    """Neither input nor reason: the process died with the batch. The volume has another chance, alone."""


@dataclass(frozen=True)
class Fatal:
    """What no volume is to blame for, and ends the run. It travels as a value: raised in a task, it would reach the
    driver as text among Ray's own."""

    error: SsclfError


#: From the reading tasks to the actors, one a volume. Never None: Arrow would make NaN of it.
Handover = NetworkInputs | Refused | Lost | Fatal


@dataclass(frozen=True)
class Staged:
    """From the actors to the driver, one a batch: partition → number of rows that are on the stage now."""

    rows: Mapping[int, int]


@dataclass(frozen=True)
class Job:
    """What every task knows.

    Attributes:
        origin: what every row says of the models.
        models, extraction: references to `Files` in Ray's object store.
        attempts: handle of `Attempts`.
    """

    run: str
    version: str
    source: Source
    out: Store
    selection: Selection
    config: PredictConfig
    settings: tuple[PreprocessConfig, ...]
    class_names: tuple[str, ...]
    method: bytes
    origin: Origin
    bundles: tuple[str, ...]
    models: Any
    extraction: Any
    attempts: Any

    def fingerprint(self, scan: Scan, stamps: tuple[str, ...]) -> str:
        if self.source.base.local:
            return scan_fingerprint(scan, self.method)
        text = json.dumps([*stamps, scan.problem])
        return hashlib.sha256(self.method + text.encode()).hexdigest()[:32]

    @property
    def base(self) -> Path:
        return self.source.base.local or Path("/")


def probe(job: Job, token: str) -> None:
    """See what must be there on a node before volumes are sent to it."""
    _check_version(job)
    if job.out.kind(token) != "file":
        raise OutputError(
            f"{job.out.url}: a node of the cluster does not see it; --out must be on storage that all nodes share."
        )
    Source.at(job.source.text if job.source.base.local is None else str(job.base / job.source.file))


def _check_version(job: Job) -> None:
    if job.version != __version__:
        raise DatasetError(
            f"a node of the cluster has ssclf {__version__}, expected {job.version}; install the same everywhere."
        )


def walk(job: Job, size: int) -> tuple[int, dict[str, int]]:
    count, other = take_inventory(job.source, job.out, job.selection, size=size)
    return count, dict(other)


def settle_units(job: Job, number: int) -> Settled:
    return settle(job.source, job.out, number, job.selection, job.fingerprint)


def join_folders(job: Job, numbers: list[int]) -> list[Settled]:
    return join_series(job.source, job.out, numbers, job.selection, job.fingerprint)


def _plan_of(job: Job, number: int) -> list[Planned]:
    return decode_plan(job.out.read(plan_name(number)), job.base)


def part_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _finished(job: Job, number: int, planned: list[Planned]) -> Part | None:
    """The partition, where it is complete and made from what is planned now."""
    try:
        rows, digest = decode_results(job.out.read(part_name(number)), part_name(number))
    except FileNotFoundError:
        return None
    if digest != plan_digest(planned) or (
        job.config.retry_failed and any(r.status == "failed" for r in rows)
    ):
        return None
    return _as_part(number, rows)


def _as_part(number: int, rows: Sequence[ResultRow]) -> Part:
    failed = sum(row.status == "failed" for row in rows)
    first, last = (rows[0].key, rows[-1].key) if rows else (("", ""), ("", ""))
    return Part(number, len(rows), failed, first, last)


def _rows_for(
    job: Job, number: int, planned: Sequence[Planned], *, without: str = ""
) -> dict[tuple[str, str], ResultRow]:
    """Rows that are there already for what is planned, by key: staged, or in a partition of an earlier plan.

    The plan asks for rows, not the stage: what is staged twice is one row, and what was made of a volume that has
    gone or changed since, or by other models, is none, wherever it stands among the others.

    Args:
        without: run whose rows do not count.
    """
    wanted = {one.key: one.fingerprint for one in planned}
    rows: dict[tuple[str, str], ResultRow] = {}
    names = [f"_stage/part={number:05d}/{e.name}" for e in job.out.entries(f"_stage/part={number:05d}")]
    for name in [part_name(number), *names]:
        own = without and name.rpartition("/")[2].startswith(without)
        if own or not name.endswith(".parquet"):
            continue
        with contextlib.suppress(FileNotFoundError):
            for row in decode_results(job.out.read(name), name)[0]:
                if row.fingerprint != wanted.get(row.key):
                    continue
                # a volume that failed and was tried again is the better row, whichever name comes first
                if row.status != "failed" or row.key not in rows:
                    rows[row.key] = row
    return rows


def _todo(job: Job, number: int) -> list[Planned]:
    """Volumes of a partition that earlier runs have not done."""
    planned = _plan_of(job, number)
    # Ray may ask again after a node was lost, and what it then repeats must fall into the same batches: what this run
    # has staged meanwhile does not count, so the answer is the same whenever it asks.
    rows = _rows_for(job, number, planned, without=job.run)
    retry = job.config.retry_failed
    return [
        one for one in planned if (row := rows.get(one.key)) is None or (retry and row.status == "failed")
    ]


def look_at(job: Job, number: int) -> Part | Unfinished:
    """What an earlier run has left of a partition."""
    return _finished(job, number, _plan_of(job, number)) or Unfinished(len(_todo(job, number)))


def read_todo(row: dict[str, Any], job: Job) -> list[dict[str, Any]]:
    """Ray Data: a partition's number to its volumes."""
    number = int(row["part"])
    return [
        {"part": number, "scan": scan_to_json(one.scan, job.base), "fingerprint": one.fingerprint}
        for one in _todo(job, number)
    ]


class Attempts:
    """Ray repeats what died with its process, for ever; this counts, so that a volume that kills is let go."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, key: str) -> int:
        self._begun[key] += 1
        return self._begun[key]

    def end(self, key: str) -> None:
        del self._begun[key]


@contextlib.contextmanager
def _attempt(job: Job, what: str, batch: Mapping[str, Any]) -> Iterator[bool]:
    """Whether to try: not where a batch has taken its process with it three times."""
    scans = json.dumps([what, *(str(text) for text in batch["scan"])])
    key = hashlib.sha256(scans.encode()).hexdigest()[:32]
    yield ray.get(job.attempts.begin.remote(key)) <= _ATTEMPTS
    job.attempts.end.remote(key)


def prepare_batch(batch: dict[str, Any], job: Job) -> dict[str, Any]:
    """Ray Data: volumes to a `Handover` each."""
    whole: Handover = Lost()
    try:
        _check_version(job)
        with _attempt(job, "prepare", batch) as sensible:
            if sensible:
                return {**batch, "handover": _objects(_read_batch(batch, job))}
    except SsclfError as exc:
        whole = Fatal(exc)
    return {**batch, "handover": _objects([whole] * len(batch["part"]))}


def _read_batch(batch: dict[str, Any], job: Job) -> list[Handover]:
    scans = [scan_from_json(text, job.base) for text in batch["scan"]]
    handovers: list[Handover] = [Refused(scan.problem) for scan in scans]
    with tempfile.TemporaryDirectory(dir=run_scratch(job.run)) as folder:
        extraction = _extraction(job.run, job.extraction)
        read = _ReadNumbered(job.settings, job.config.skull_strip, extraction, Path(folder))
        readable = [index for index, scan in enumerate(scans) if not scan.problem]
        # fetched as they are taken: while one is being read, the next is on its way
        items = ((index, _fetched(scans[index], job, Path(folder) / str(index))) for index in readable)
        timeout = job.config.timeout_s
        for outcome in run_in_processes(read, items, workers=1, timeout_s=timeout, pool=_reading_process()):
            index, _ = outcome.item
            handovers[index] = Refused(outcome.error) if outcome.result is None else outcome.result
    return handovers


def _objects(values: Sequence[object]) -> NDArray[np.object_]:
    """A column of values that numpy does not look into."""
    column = np.empty(len(values), object)
    column[:] = values
    return column


@dataclass(frozen=True)
class _ReadNumbered:
    """`make_network_inputs` for a numbered scan; travels to the process that does it."""

    settings: tuple[PreprocessConfig, ...]
    skull_strip: str
    extraction: tuple[Path, ...]
    scratch: Path

    def __call__(self, item: tuple[int, Scan]) -> NetworkInputs:
        _, scan = item
        return make_network_inputs(
            scan,
            settings=self.settings,
            skull_strip=self.skull_strip,
            extraction=self.extraction,
            scratch=self.scratch,
        )


def _fetched(scan: Scan, job: Job, folder: Path) -> Scan:
    """The scan with its files on this machine; what cannot be fetched becomes its problem."""
    if job.source.base.local:
        return scan
    contrasts: list[Any] = []
    try:
        for one in scan.stored:
            if not isinstance(one, DicomSeries):
                name = one.relative_to("/").as_posix()
                contrasts.append(job.source.base.fetch(name, folder))
                continue
            root = one.root.relative_to("/").as_posix()
            packed = root.lower().endswith(".zip")
            names = [root] if packed else [f"{root}/{file}".removeprefix("./") for file in one.files]
            job.source.base.fetch_all(names, folder)
            contrasts.append(dataclasses.replace(one, root=folder / root))
    except FileNotFoundError:
        return dataclasses.replace(scan, problem="the file is gone, or was never there.")
    except SsclfError as exc:
        return dataclasses.replace(scan, problem=str(exc))
    return dataclasses.replace(scan, contrasts=tuple(contrasts))


@lru_cache(maxsize=1)
def _reading_process() -> Workers:
    """A process that reads, apart from Ray's: a file that crashes or hangs it costs itself."""
    return Workers(1)


@lru_cache(maxsize=1)
def _extraction(run: str, reference: Any) -> tuple[Path, ...]:
    files: Files = ray.get(reference)
    if not files:
        return ()
    folder = unpack(files, run, "extraction")
    return tuple(sorted(folder.iterdir()))


class Classify:
    """Ray Data's actor: the models in memory; network input to staged rows."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def _maker(self) -> RowMaker:
        """Loaded with the first batch: of what goes wrong earlier, Ray hands on no more than the text."""
        job = self._job
        _check_version(job)
        ensemble = _open_ensemble(job)
        ensemble.load()
        return RowMaker(ensemble, job.config, run_scratch(job.run))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows go to the stage before they are counted.

        Returns:
            one outcome for the batch: `Staged` or `Fatal`.
        """
        outcome: Staged | Fatal
        try:
            rows = self._stage(batch)
            outcome = Staged({number: len(some) for number, some in rows.items()})
        except SsclfError as exc:
            outcome = Fatal(exc)
        return {"outcome": _objects([outcome])}

    def _stage(self, batch: dict[str, Any]) -> dict[int, list[ResultRow]]:
        job = self._job
        if fatal := next((one for one in batch["handover"] if isinstance(one, Fatal)), None):
            raise fatal.error
        with _attempt(job, "classify", batch) as sensible:
            rows = self._rows(batch) if sensible else {}
            for number, some in rows.items():
                # a name of its own: what is staged twice is two files, and neither is ever half written over
                name = f"_stage/part={number:05d}/{job.run}-{uuid.uuid4().hex}.parquet"
                job.out.write(name, encode_results(some, job.class_names))
        return rows

    def _rows(self, batch: dict[str, Any]) -> dict[int, list[ResultRow]]:
        maker, job = self._maker, self._job
        rows: dict[int, list[ResultRow]] = {}
        for number, text, fingerprint, handover in zip(
            *(batch[name] for name in ("part", "scan", "fingerprint", "handover")), strict=True
        ):
            if isinstance(handover, Lost):
                continue
            scan = scan_from_json(text, job.base)
            if isinstance(handover, NetworkInputs):
                row = maker.classified(scan, handover)
            else:
                row = job.origin.failed(scan, handover.reason)
            rows.setdefault(int(number), []).append(dataclasses.replace(row, fingerprint=fingerprint))
        return rows


def finish(job: Job, number: int) -> Part | Unfinished:
    """Write a partition, if every volume of its plan has a row."""
    planned = _plan_of(job, number)
    # asked again, after a repeat or by a count that came twice: what is written stays
    if found := _finished(job, number, planned):
        return found
    rows = _rows_for(job, number, planned)
    if len(rows) < len(planned):
        return Unfinished(len(planned) - len(rows))
    return _write_part(job, number, planned, rows.values())


def finish_anyway(job: Job, number: int) -> Part:
    """Write a partition; what has no row by now has failed."""
    planned = _plan_of(job, number)
    if found := _finished(job, number, planned):
        return found
    rows = _rows_for(job, number, planned)
    reason = "the process that had it died, alone and among others; the node may lack memory."
    lost = [
        dataclasses.replace(job.origin.failed(one.scan, reason), fingerprint=one.fingerprint)
        for one in planned
        if one.key not in rows
    ]
    return _write_part(job, number, planned, [*rows.values(), *lost])


def _write_part(job: Job, number: int, planned: Sequence[Planned], rows: Iterable[ResultRow]) -> Part:
    """The partition first, then the stage goes: killed between the two, nothing is lost and nothing is twice."""
    ordered = sorted(rows, key=lambda row: row.key)
    job.out.write(part_name(number), encode_results(ordered, job.class_names, plan_digest(planned)))
    job.out.remove(f"_stage/part={number:05d}")
    return _as_part(number, ordered)


def _open_ensemble(job: Job) -> Ensemble:
    """The models as they lie on this node, checksums verified."""
    folder = unpack(ray.get(job.models), job.run, "models")
    return Ensemble([open_bundle(folder / name) for name in job.bundles], job.config)
