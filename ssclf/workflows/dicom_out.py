"""`predict --dicom-out`: which rows get DICOM objects, and the objects of one finished row.

For one study from somewhere else (a service that was sent it): discover its scans, `plan_studies`, and give a
`RowMaker` the `DicomOut`; its rows come with their objects written. `DicomOut.write` is what does it, for one row, and
`DicomOut.close` ends the process that it keeps for that: headers are read, and objects made, in processes apart.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ssclf.config import PredictConfig
from ssclf.domain.series_rules import SeriesFacts, SeriesRule, StudyChoice, choose_series
from ssclf.domain.study_report import StudyReport, study_report
from ssclf.domain.volume import Volume
from ssclf.errors import OutputError
from ssclf.io.dicom_out.fhir import FHIR_NAME, write_fhir
from ssclf.io.dicom_out.source import read_facts, read_source
from ssclf.io.dicom_out.write import OWN_NAME, Evidence, write_objects
from ssclf.io.discovery.scans import Scan
from ssclf.io.memory import share_of_memory
from ssclf.io.paths import is_file
from ssclf.io.records.results import ResultRow
from ssclf.io.records.series_rules import read_series_rules
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.io.workers import Outcome, Workers, run_in_processes

if TYPE_CHECKING:
    from ssclf.io.models.ensemble import Ensemble

log = logging.getLogger(__name__)
Key = tuple[str, str]
#: Where a row of `results.json` keeps what was written with it.
OBJECTS = "dicom"
_BAND = 16  # pixels
_NAMED = "named by the manifest"


@dataclass(frozen=True)
class StudyPlan:
    """Which rows of a run carry a study's report.

    Attributes:
        choices: by the key of the row.
        no_series: how many scans are no DICOM series.
        unread: why a series has no part in this, by the key of its row.
    """

    choices: Mapping[Key, StudyChoice] = field(default_factory=dict)
    no_series: int = 0
    unread: Mapping[Key, str] = field(default_factory=dict)


def rules_of(file: Path | None, ensemble: Ensemble) -> tuple[SeriesRule, ...]:
    """Which series of a study is answered: a site's file says, else the first model.

    Raises:
        ConfigError, MissingDependencyError: see `read_series_rules`.
    """
    return read_series_rules(file) if file else ensemble.bundles[0].spec.answered_series


def plan_studies(
    scans: Sequence[Scan],
    rules: Sequence[SeriesRule],
    config: PredictConfig,
    work: Path | None = None,
    pool: Workers | None = None,
) -> StudyPlan:
    """Choose the series of every study that is answered; one header of each series is read, in worker processes.

    Args:
        scans: all of them, whichever part a run takes: a study may lie in several.
        rules: see `ssclf.domain.series_rules`.
        config: how many workers, and how long one header may take.
        work: existing private folder; None: the system's.
        pool: which goes on; None: a call has its own.

    Raises:
        MissingDependencyError: no workers can be started.
    """
    facts: list[SeriesFacts] = []
    choices: list[StudyChoice] = []
    unread: dict[Key, str] = {}
    with_series = [scan for scan in scans if _series_of(scan)]
    with tempfile.TemporaryDirectory(prefix="plan-", dir=work) as folder:
        outcomes = run_in_processes(
            partial(_facts_of, work=Path(folder)),
            with_series,
            workers=config.workers,
            timeout_s=config.timeout_s,
            pool=pool,
            memory=share_of_memory(config.workers),
        )
        for outcome in outcomes if with_series else ():
            key, found = (outcome.item.path, outcome.item.series), outcome.result
            if found is None or not found.study:
                unread[key] = outcome.error or "it states no study."
            elif len(outcome.item.contrasts) > 1:
                choices.append(StudyChoice(found.study, key, _NAMED))
            else:
                facts.append(found)
    facts.sort(key=lambda found: found.key)
    choices += choose_series(facts, rules)
    return StudyPlan({choice.key: choice for choice in choices}, len(scans) - len(with_series), unread)


def _facts_of(scan: Scan, *, work: Path) -> SeriesFacts:
    """Runs in a worker."""
    return read_facts(_series_of(scan)[0], (scan.path, scan.series), work)


@dataclass(frozen=True)
class _Job:
    """The objects of one row, as a worker is told of them."""

    series: tuple[DicomSeries, ...]
    report: StudyReport
    evidence: Evidence | None
    folder: Path
    fhir: Path | None
    work: Path


@dataclass(frozen=True)
class _Done:
    """Names of the files that were written; `trouble` is what cannot be written anywhere."""

    files: tuple[str, ...] = ()
    fhir: str = ""
    trouble: str = ""


def _do(job: _Job) -> _Done:
    """Runs in a worker."""
    sources = [read_source(series, job.work) for series in job.series]
    try:
        files = write_objects(job.report, sources, job.folder, job.evidence)
        return _Done(files, write_fhir(job.report, sources, job.fhir) if job.fhir else "")
    except OutputError as exc:
        return _Done(trouble=str(exc))


@dataclass(frozen=True)
class DicomOut:
    """The DICOM objects of a run.

    Attributes:
        folder: existing.
        plan: of the run's scans.
        ensemble: whose answers they are.
        config: of the run; part of what makes a report the same again.
        work: existing private folder.
        picture: whether the evidence is a picture instead of a map.
        fhir: existing folder for the reports in FHIR's form, if any.
        pool: of one process, which goes on; None: a run has its own.
    """

    folder: Path
    plan: StudyPlan
    ensemble: Ensemble
    config: PredictConfig
    work: Path
    picture: bool = False
    fhir: Path | None = None
    pool: Workers | None = None
    _own: list[Workers] = field(default_factory=list, repr=False, compare=False)

    def wants(self, scan: Scan) -> bool:
        """Whether the row of a scan will show where its evidence lies."""
        choice = self.plan.choices.get((scan.path, scan.series))
        return choice is not None and bool(choice.rule)

    def stands(self, row: ResultRow) -> bool:
        """Whether a row of an earlier run has the objects that this run was asked for."""
        if row.key not in self.plan.choices:
            return True
        written = row.extra.get(OBJECTS, {})
        if written.get("report") != self._digest(row.key):
            return False
        if "problem" in written:  # the same headers fail the same way, unless the user knows better
            return not self.config.retry_failed
        in_fhir = self.fhir is None or is_file(self.fhir / written.get("fhir", ""))
        return in_fhir and all(is_file(self.folder / name) for name in written["files"])

    def current(self, row: ResultRow) -> ResultRow:
        """A row that stands, without the objects of a study that another series answers by now."""
        if row.key in self.plan.choices or OBJECTS not in row.extra:
            return row
        return replace(row, extra={name: value for name, value in row.extra.items() if name != OBJECTS})

    def write(self, scan: Scan, row: ResultRow, heat: Volume | None = None, thumbnail: str = "") -> ResultRow:
        """Write the objects of a finished row; the same row again writes the same files.

        Args:
            scan: that the row is about.
            row: classified or failed.
            heat: data (1, D, H, W), where its evidence lies, on the voxels of the scan as it was read.
            thumbnail: or a picture of that, a data URI, where pictures were asked for.

        Returns:
            the row, which says what was written, or why nothing was; as it is where no report is due.

        Raises:
            OutputError: a file cannot be written.
        """
        choice = self.plan.choices.get(row.key)
        if choice is None:
            return row
        written: dict[str, Any] = {"report": self._digest(row.key)}
        if self.picture:
            evidence = _picture_of(thumbnail)
        else:
            evidence = Evidence(heat.data[0], heat.affine) if heat is not None else None
        report = self._report(row, choice)
        if report.withheld:
            evidence = None
        outcome = self._do_apart(_Job(_series_of(scan), report, evidence, self.folder, self.fhir, self.work))
        if outcome.result is None:
            written["problem"] = " ".join(outcome.error.split())
            log.warning("%s: no DICOM report: %s", row.path, outcome.error)
        elif outcome.result.trouble:
            raise OutputError(
                f"{outcome.result.trouble} Rows finished before are kept, run the same command again to continue."
            )
        else:
            written["files"] = list(outcome.result.files)
            if outcome.result.fhir:
                written["fhir"] = outcome.result.fhir
        return replace(row, extra={**row.extra, OBJECTS: written})

    def close(self) -> None:
        """End the process of our own that objects are made in; the next one begins another."""
        while self._own:
            self._own.pop().stop()

    def _do_apart(self, job: _Job) -> Outcome[_Job, _Done]:
        """Raises:
        ResourceError: no process lives long enough.
        """
        if not (self.pool or self._own):
            self._own.append(Workers(1, share_of_memory(1)))
        timeout_s, pool = self.config.timeout_s, self.pool or self._own[0]
        (outcome,) = run_in_processes(_do, [job], workers=1, timeout_s=timeout_s, pool=pool)
        return outcome

    def _report(self, row: ResultRow, choice: StudyChoice) -> StudyReport:
        bundles = self.ensemble.bundles
        return study_report(
            class_names=self.ensemble.class_names,
            probabilities=row.probabilities,
            prediction=row.prediction,
            status=row.status,
            error=row.error.removeprefix(f"{row.path.rpartition('/')[2]}: "),
            flags=row.flags,
            models=[(bundle.spec.name, bundle.sha256) for bundle in bundles],
            version=row.ssclf_version,
            settings=self._settings(),
            synthetic=any(bundle.spec.synthetic for bundle in bundles),
            rule=choice.rule,
            others=choice.others,
        )

    def outcome(self, rows: Iterable[ResultRow]) -> dict[str, Any]:
        """What a run says in the end: `notes`, a line each, and how many reports are `lacking`."""
        rows = list(rows)
        lacking = sum("problem" in row.extra.get(OBJECTS, {}) for row in rows)
        return {"notes": tuple(self._notes(rows)), "lacking": lacking}

    def _notes(self, rows: Iterable[ResultRow]) -> list[str]:
        said: Counter[str] = Counter()
        for row in rows:
            choice = self.plan.choices.get(row.key)
            if row.key in self.plan.unread:
                said["DICOM series without a report (cannot be read or state no study)"] += 1
            elif choice and "problem" in row.extra.get(OBJECTS, {}):
                said["studies without a DICOM report (the log says why)"] += 1
            elif choice:
                said["studies with a DICOM report" if choice.rule else _NONE_ANSWERED] += 1
        if self.plan.no_series:
            said["volumes without a report (no DICOM series)"] = self.plan.no_series
        return [f"{what}: {count}" for what, count in said.items()]

    def remove_stale(self, earlier: Iterable[ResultRow], kept: Iterable[ResultRow]) -> None:
        """Remove what runs before have written with rows that are gone or were made anew."""
        there = {name for row in kept for name in _names(row)}
        for name in (name for row in earlier for name in _names(row) if name not in there):
            # the name comes from a file that anybody may have edited
            if OWN_NAME.fullmatch(name):
                (self.folder / name).unlink(missing_ok=True)
            elif self.fhir is not None and FHIR_NAME.fullmatch(name):
                (self.fhir / name).unlink(missing_ok=True)

    def _settings(self) -> str:
        config = self.config
        return (
            f"skull-strip {config.skull_strip}, flip {config.flip}, evidence {config.map_method}, "
            f"review below {config.review_below:g}"
        )

    def _digest(self, key: Key) -> str:
        choice = self.plan.choices[key]
        others = [other.said for other in choice.others]
        text = json.dumps([choice.rule, others, self._settings(), self.picture])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_NONE_ANSWERED = "studies with a DICOM report without a class (no series meets a rule)"


def _names(row: ResultRow) -> list[str]:
    """Of all files that were written with a row."""
    written = row.extra.get(OBJECTS, {})
    return [*written.get("files", ()), *filter(None, [written.get("fhir")])]


def _picture_of(uri: str) -> Evidence | None:
    """A row's picture (a data URI, see `thumbnail`) with a band that says what it is for; None without one."""
    if not uri:
        return None
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    canvas = Image.new("RGB", (image.width, image.height + _BAND))
    canvas.paste(image, (0, _BAND))
    ImageDraw.Draw(canvas).text((4, 2), "ssclf - RESEARCH USE ONLY", fill=(255, 255, 255))
    pixels: NDArray[np.uint8] = np.asarray(canvas, np.uint8)
    return Evidence(pixels)


def _series_of(scan: Scan) -> tuple[DicomSeries, ...]:
    """The series of a scan, one a contrast; () where a contrast is something else."""
    series = tuple(source for source in scan.contrasts if isinstance(source, DicomSeries))
    return series if len(series) == len(scan.contrasts) else ()
