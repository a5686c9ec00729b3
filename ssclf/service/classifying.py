"""From studies to rows, with models and workers that stay: what `ssclf predict` does for a folder, done for ever."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssclf.config import PredictConfig
from ssclf.domain.series_rules import SeriesRule
from ssclf.errors import DatasetError, OutputError, VolumeError
from ssclf.io.discovery.scans import Scan, VoxelSource, with_own_keys
from ssclf.io.discovery.sources import discover
from ssclf.io.memory import share_of_memory
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.paths import check_output_file
from ssclf.io.records.results import Journal, ResultRow, read_rows, write_csv, write_details
from ssclf.io.records.tables import read_table, write_table
from ssclf.io.volumes.dicom_files import HeaderWorkers, Limits
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.io.workers import Workers
from ssclf.service.metrics import Metrics
from ssclf.service.spool import read_identity
from ssclf.workflows.classification import Key, RowMaker, key_of, method_digest, scan_fingerprint
from ssclf.workflows.dicom_out import DicomOut, plan_studies
from ssclf.workflows.outputs import Outputs
from ssclf.workflows.predict import PredictSummary, describe_run

log = logging.getLogger(__name__)
#: The table is written when nothing waits, and at least so often.
_TABLE_S = 30.0
#: Times as long as writing it took, it is left alone.
_SHARE_OF_TABLE = 10
_RESOLVE_COLUMNS = ("path", "source")


@dataclass(frozen=True)
class Study:
    """What is classified together.

    Attributes:
        name: keyed hash; the path of its rows.
        folder: its images.
        missing: how many images it once had and has no more.
        problem: why it is not looked at, "" where it is.
        source: what the name stands for, where no header tells: the path of a watched entry.
    """

    name: str
    folder: Path
    missing: int = 0
    source: str = ""
    problem: str = ""


@dataclass(frozen=True)
class ObjectsAsked:
    """DICOM objects that go with rows.

    Attributes:
        rules: which series of a study is answered.
        picture: whether the evidence is a picture instead of a map.
    """

    rules: tuple[SeriesRule, ...]
    picture: bool = False


class Classifier:
    """Models, workers and the table; use as a context manager."""

    def __init__(
        self,
        ensemble: Ensemble,
        config: PredictConfig,
        out: Path,
        resolve: Path | None,
        metrics: Metrics,
        hash_of: Callable[[str], str],
        objects: ObjectsAsked | None = None,
    ) -> None:
        """Args:
        out, resolve: see `ServeRequest`.
        hash_of: keyed, of a text that no row may hold.
        objects: what leaves as DICOM, if anything does.
        """
        self._asked = objects
        self._hash = hash_of
        self._ensemble, self._config, self._metrics = ensemble, config, metrics
        self._outputs, self._resolve = Outputs(out), resolve
        self._journal = Journal(out)
        self._rows: dict[Key, ResultRow] = {}
        self._sources: dict[str, str] = {}
        self._method = method_digest(ensemble, config)
        self._headers = HeaderWorkers(Limits(config.workers, config.timeout_s))
        self._changed, self._written, self._took, self._begin = False, 0.0, 0.0, time.monotonic()

    def __enter__(self) -> Classifier:
        """Load the models and what an earlier process has written.

        Raises:
            SsclfError: a model cannot be used, or the table is not ours, not of this model, or cannot be written.
        """
        self._outputs.check()
        if self._resolve is not None:
            check_output_file("resolve", self._resolve)
        earlier = [*read_rows(self._outputs.details), *self._journal.open()]
        self._rows = {row.key: row for row in earlier}
        classes = self._ensemble.class_names
        if any(row.status == "ok" and len(row.probabilities) != len(classes) for row in earlier):
            raise OutputError(
                f"{self._outputs.out}: has rows of a model with other classes than {', '.join(classes)}; choose "
                "another --out."
            )
        if self._resolve is not None and self._resolve.exists():
            table = read_table(self._resolve)
            table.require(*_RESOLVE_COLUMNS)
            self._sources = {row["path"]: row["source"] for row in table.rows}
        self._changed = bool(earlier)
        self._ensemble.load()
        self._pool = Workers(self._config.workers, share_of_memory(self._config.workers))
        # objects are made while scans are read: one of the others would have a queue before it
        self._object_pool = Workers(1, share_of_memory(1)) if self._asked else None
        self.objects.mkdir()
        self._maker = RowMaker(self._ensemble, self._config, self._journal.scratch, pool=self._pool)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.write_table()
                self._journal.finish()
        finally:
            self._headers.__exit__()
            for pool in filter(None, (self._pool, self._object_pool)):
                pool.stop()
            self._journal.__exit__()

    @property
    def table_rows(self) -> int:
        return len(self._rows)

    def classify(
        self, studies: Sequence[Study], stop: Callable[[], bool]
    ) -> Iterator[tuple[Study, list[ResultRow]]]:
        """Classify studies; each comes when all of its rows are on the disk, and may then be forgotten.

        Args:
            stop: once true, what is in flight is finished; a study that lacks a row does not come.

        Raises:
            SsclfError: what is no fault of a study.
        """
        waiting: dict[str, dict[Key, Scan]] = {}
        made: dict[str, list[ResultRow]] = {}
        by_name = {study.name: study for study in studies}
        for study in studies:
            scans = {key_of(scan): scan for scan in self._scans(study)}
            self._forget(study, scans)
            if not scans:
                self._metrics.add("ssclf_studies_without_volume_total")
                log.info("study %s: nothing in it to classify", study.name)
                yield study, []
                continue
            waiting[study.name], made[study.name] = scans, []
        owner = {key: name for name, scans in waiting.items() for key in scans}
        prints = {
            key: scan_fingerprint(scan, self._method)
            for scans in waiting.values()
            for key, scan in scans.items()
        }
        todo = [scan for scans in waiting.values() for scan in scans.values()]
        for row in self._with_objects(todo).rows(todo, stop):
            name = owner[row.key]
            row = replace(row, fingerprint=prints[row.key], error=_without_names(row.error, by_name[name]))
            self._journal.append(row)
            self._rows[row.key] = row
            self._changed = True
            self._metrics.add("ssclf_rows_total", f'status="{row.status}"')
            made[name].append(row)
            del waiting[name][row.key]
            if not waiting[name]:
                yield by_name[name], made.pop(name)

    def _with_objects(self, scans: Sequence[Scan]) -> RowMaker:
        """What makes rows of some studies, and the DICOM objects that were asked for."""
        if self._asked is None:
            return self._maker
        work, pool = self._journal.scratch, self._object_pool
        plan = plan_studies(scans, self._asked.rules, self._config, work, pool)
        made = DicomOut(
            self.objects, plan, self._ensemble, self._config, work, self._asked.picture, pool=pool
        )
        return replace(self._maker, dicom=made)

    @property
    def objects(self) -> Path:
        """Where DICOM objects lie until somebody takes them; a row names its own."""
        return self._journal.scratch / "objects"

    def _scans(self, study: Study) -> list[Scan]:
        """What of a study is a volume, named by the study."""
        if study.problem:
            return [Scan(study.name, (study.folder,), problem=study.problem)]
        try:
            found = discover(
                [study.folder],
                contrasts=self._ensemble.contrasts,
                pattern=self._config.pattern if study.source else None,  # what was sent has names of ours
                series=self._config.series,
                limits=self._headers,
            )
        except DatasetError:  # it went while it waited
            return []
        self._note_source(study, found.scans)
        return with_own_keys(
            replace(
                scan,
                path=self._row_path(study, scan.path),
                contrasts=tuple(_with_lost(source, study.missing) for source in scan.contrasts),
            )
            for scan in found.scans
        )

    def _row_path(self, study: Study, path: str) -> str:
        """The study's name, with a hash behind it where a file of a watched folder has a row of its own."""
        alone = not study.source or path == study.folder.as_posix()
        return study.name if alone else f"{study.name}/{self._hash(path)[:8]}"

    def _note_source(self, study: Study, scans: Sequence[Scan]) -> None:
        """What a name stands for; kept only where the user asks for it."""
        if self._resolve is None:
            return
        source = study.source
        for scan in scans if not source else ():
            for series in scan.contrasts:
                if isinstance(series, DicomSeries) and not series.in_archive:
                    try:
                        source = read_identity(series.root / series.files[0]).study
                    except (OSError, VolumeError):
                        continue
        if source:
            self._sources[study.name] = source

    def _forget(self, study: Study, scans: dict[Key, Scan]) -> None:
        """Rows of an earlier version of a study that this one does not have."""
        old = [key for key in self._rows if _is_of(study.name, key[0]) and key not in scans]
        for key in old:
            del self._rows[key]
            self._changed = True

    def write_table_if_due(self, *, idle: bool) -> None:
        """Raises:
        OutputError: it cannot be written.
        """
        since = time.monotonic() - self._written
        # a long table is not written for every row, or nothing else would be done
        if self._changed and since > (_SHARE_OF_TABLE * self._took if idle else _TABLE_S):
            self.write_table()

    def write_table(self) -> None:
        """Raises:
        OutputError: it cannot be written.
        """
        begin = time.monotonic()
        rows = [self._rows[key] for key in sorted(self._rows)]
        summary = PredictSummary(
            rows=tuple(rows),
            class_names=self._ensemble.class_names,
            reused=0,
            dropped=0,
            other_files={},
            seconds=time.monotonic() - self._begin,
            device=self._ensemble.device,
        )
        write_csv(self._outputs.out, rows, self._ensemble.class_names)
        write_details(self._outputs.details, describe_run(summary, self._ensemble, self._config, None), rows)
        if self._resolve is not None:
            write_table(self._resolve, _RESOLVE_COLUMNS, sorted(self._sources.items()), private=True)
        self._journal.empty()
        self._changed, self._written = False, time.monotonic()
        self._took = self._written - begin


def _is_of(name: str, path: str) -> bool:
    return path == name or path.startswith((f"{name}#", f"{name}/"))


def _with_lost(source: VoxelSource, missing: int) -> VoxelSource:
    """A series of which images have been deleted since is as incomplete as one of which they never came."""
    return (
        replace(source, lost=source.lost + missing) if missing and isinstance(source, DicomSeries) else source
    )


def _without_names(error: str, study: Study) -> str:
    """A reason without the names of files and folders, which may hold those of people."""
    if not study.source:
        return error
    for part in sorted(set(_names_below(study.folder)), key=len, reverse=True):
        error = re.sub(rf"(?<!\w){re.escape(part)}(?!\w)", study.name, error)
    return error


def _names_below(folder: Path) -> Iterator[str]:
    yield str(folder)
    yield folder.name
    if folder.is_dir():
        for path in folder.rglob("*"):
            yield path.name
