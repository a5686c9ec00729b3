"""`ssclf predict`: whatever is in the folder in, one row per volume out.

Worker processes read, strip and preprocess; this process classifies what they hand over and writes each
finished row to the journal before it takes the next. The CSV is written whole at the end.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ssclf import __version__
from ssclf.config import PredictConfig, config_to_dict
from ssclf.domain.shards import Shard
from ssclf.errors import DatasetError, OutputError
from ssclf.io.discovery.scans import Scan, with_own_keys
from ssclf.io.discovery.sources import Discovery, discover
from ssclf.io.image_hints import image_hint
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.paths import check_output_file, holds_something, watched_folder, why_missing
from ssclf.io.records.results import Journal, ResultRow, read_rows, write_csv, write_details
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.reporting.results_page import write_results_page
from ssclf.workflows.classification import RowMaker, method_digest, reviewed, scan_fingerprint
from ssclf.workflows.interruption import exit_code, note_signals

log = logging.getLogger(__name__)
Progress = Callable[[ResultRow], None]


@dataclass(frozen=True)
class PredictSummary:
    """What a run did. `interrupted` is the signal that stopped it, 0 when it ran to its end."""

    rows: tuple[ResultRow, ...]
    class_names: tuple[str, ...]
    reused: int
    dropped: int
    other_files: Mapping[str, int]
    seconds: float
    device: str
    interrupted: int = 0

    @property
    def failed(self) -> int:
        return sum(row.status == "failed" for row in self.rows)

    @property
    def exit_code(self) -> int:
        """Contract, "Exit codes"."""
        return exit_code(failed=bool(self.failed), interrupted=self.interrupted)


def predict(
    paths: Sequence[Path],
    out: Path,
    models: Sequence[Path],
    config: PredictConfig,
    *,
    shard: Shard | None = None,
    report: Path | None = None,
    maps: Path | None = None,
    on_start: Callable[[Discovery, int], None] = lambda discovery, todo: None,
    on_row: Progress = lambda row: None,
) -> PredictSummary:
    """Classify everything found under `paths` and write the table.

    Args:
        paths: files, folders, DICOM, zips or manifests.
        out: the CSV; `results.json` with the same stem is written beside it.
        models: bundles; the probabilities of several are averaged.
        shard: which part of the volumes to take; the others are another job's.
        report: HTML page with a picture and the scores of every volume.
        maps: folder for a map per scan, in the scan's own space, of where the evidence lies; the map of a scan that
            is gone goes too.
        on_start: called once with what was found and how many volumes are still to do.
        on_row: called with each new row.

    Raises:
        SsclfError: nothing can be done at all: no such path, unusable model, output not writable.
            What one volume cannot do is a row.
    """
    begin = time.perf_counter()
    check_output_file("out", out)
    details = out.with_suffix(".json")
    if details == out:
        raise OutputError(
            f"{out}: --out names the CSV; results.json is written beside it, so choose another ending."
        )
    ensemble = Ensemble([open_bundle(path) for path in models], config)
    _check_output(out, details, report, maps)
    discovery = discover(paths, contrasts=ensemble.contrasts, pattern=config.pattern, series=config.series)
    if not discovery.scans:
        raise DatasetError(_nothing_found(paths, discovery))
    discovery = replace(discovery, scans=_chosen(discovery.scans, shard, config))
    journal = Journal(out)
    run = RowMaker(ensemble, config, journal.scratch, maps=maps, pictures=report is not None)
    method = method_digest(ensemble, config)
    run.fingerprints = {(scan.path, scan.series): scan_fingerprint(scan, method) for scan in discovery.scans}
    finished = False
    try:
        kept = {row.key: row for row in [*read_rows(details), *journal.open()]}
        rows: dict[tuple[str, str], ResultRow] = {}
        again: Counter[str] = Counter()
        for key, row in kept.items():
            if key not in run.fingerprints:
                continue
            if run.fingerprints[key] != row.fingerprint:
                again["whose file, model or settings have changed"] += 1
            elif row.status == "failed" and config.retry_failed:
                again["that failed"] += 1
            elif not run.is_explained(row):
                again["that lack the picture or map asked for now"] += 1
            else:
                rows[key] = reviewed(row, config.review_below)
        for reason, count in again.items():
            log.info("done again: %d volumes %s", count, reason)
        todo = [scan for scan in discovery.scans if (scan.path, scan.series) not in rows]
        reused = len(rows)
        given = {watched_folder(path) for path in paths if not why_missing(path)}
        given = {folder for folder in given if holds_something(folder)}
        on_start(discovery, len(todo))
        with note_signals("finishing the volumes in flight; the same command goes on later") as stopped:
            for row in run.rows(todo, lambda: bool(stopped)) if todo else ():
                if row.status == "failed":
                    _check_still_there(given)
                journal.append(row)
                rows[row.key] = row
                on_row(row)
        ordered = tuple(rows[key] for key in sorted(rows))
        summary = PredictSummary(
            rows=ordered,
            class_names=ensemble.class_names,
            reused=reused,
            dropped=sum(key not in run.fingerprints for key in kept),
            other_files=discovery.other_files,
            seconds=time.perf_counter() - begin,
            device=ensemble.device,
            interrupted=stopped[0] if stopped and len(rows) < len(discovery.scans) else 0,
        )
        if not summary.interrupted:
            about = _describe_run(summary, ensemble, config, shard)
            write_csv(out, ordered, ensemble.class_names)
            write_details(details, about, ordered)
            if maps:
                gone = [
                    row for key, row in kept.items() if key not in run.fingerprints and "map" in row.extra
                ]
                kept_maps = {(maps / row.extra["map"]).resolve() for row in ordered if "map" in row.extra}
                for path in ((maps / row.extra["map"]).resolve() for row in gone):
                    if path.is_relative_to(maps.resolve()) and path not in kept_maps:
                        path.unlink(missing_ok=True)
            finished = True
            if report:
                write_results_page(report, ordered, ensemble.class_names, about)
        return summary
    finally:
        journal.close(finished=finished)


def iterate(
    paths: Sequence[Path | str], models: Sequence[Path | str], config: PredictConfig | None = None
) -> Iterator[ResultRow]:
    """Classify everything found under `paths`, for use from Python; writes no file.

    Args:
        paths: files, folders, DICOM, zips or manifests.
        models: bundles; the probabilities of several are averaged.

    Yields:
        a row per volume as it is finished, failed ones included.

    Raises:
        SsclfError: nothing can be done at all.
    """
    config = config or PredictConfig()
    ensemble = Ensemble([open_bundle(Path(path)) for path in models], config)
    places = [Path(path) for path in paths]
    discovery = discover(places, contrasts=ensemble.contrasts, pattern=config.pattern, series=config.series)
    if not discovery.scans:
        raise DatasetError(_nothing_found(places, discovery))
    with tempfile.TemporaryDirectory(prefix="ssclf-") as scratch:
        scans = _chosen(discovery.scans, None, config)
        yield from RowMaker(ensemble, config, Path(scratch)).rows(scans, lambda: False)


def _describe_run(
    summary: PredictSummary, ensemble: Ensemble, config: PredictConfig, shard: Shard | None
) -> dict[str, Any]:
    """Everything about a run but its rows, for `results.json` and the report."""
    return {
        "ssclf_version": __version__,
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "config": config_to_dict(config),
        "models": [
            {
                "name": bundle.spec.name,
                "sha256": bundle.sha256,
                "synthetic": bundle.spec.synthetic,
                "training": {
                    k: v for k, v in bundle.spec.training.items() if k not in ("voxels", "statistics")
                },
            }
            for bundle in ensemble.bundles
        ],
        "class_names": list(ensemble.class_names),
        "shard": [shard.number, shard.count] if shard else None,
        "volumes": len(summary.rows),
        "failed": summary.failed,
        "reused": summary.reused,
        "dropped": summary.dropped,
        "other_files": dict(summary.other_files),
        "device": summary.device,
        "seconds": round(summary.seconds, 2),
        "notice": "Research use only, not a medical device.",
    }


def _check_output(out: Path, details: Path, report: Path | None, maps: Path | None) -> None:
    """A CSV that is not ours is not overwritten, and nothing is begun whose results could not be written."""
    for option, path in (("out", details), ("report", report)):
        if path is not None:
            check_output_file(option, path)
    for option, folder in (("report", report and report.parent), ("maps", maps)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as exc:
            raise OutputError(
                f"{folder}: cannot be written ({exc.strerror or exc}); give --{option} a place where this user "
                f"may write.{image_hint('user')}"
            ) from exc
    if out.exists() and not details.exists():
        with out.open(encoding="utf-8", errors="replace") as file:
            header = file.readline()
        if header.strip() and not header.startswith("path,series,status,"):
            raise OutputError(f"{out}: exists and was not written by ssclf; choose another --out.")


def _check_still_there(folders: Iterable[Path]) -> None:
    """Raises:
    DatasetError: an input has gone since it was listed, as when a file server does: no reason to fail its volumes.
    """
    for folder in folders:
        if not holds_something(folder):
            raise DatasetError(
                f"{folder}: is gone or empty, and was not at the start; rows finished before are kept, bring it back "
                "and run the same command again to continue."
            )


def _chosen(scans: Sequence[Scan], shard: Shard | None, config: PredictConfig) -> tuple[Scan, ...]:
    """The scans of this shard, named by their series' UIDs where the user asked for UIDs."""
    mine = [scan for scan in scans if shard is None or shard.holds(scan.path)]
    if config.keep_uids:
        mine = [
            replace(scan, series=scan.contrasts[0].uid)
            if scan.series and scan.contrasts and isinstance(scan.contrasts[0], DicomSeries)
            else scan
            for scan in mine
        ]
    return tuple(with_own_keys(mine))


def _nothing_found(paths: Sequence[Path], discovery: Discovery) -> str:
    places = ", ".join(str(path) for path in paths)
    others = "; ".join(f"{count} {reason}" for reason, count in sorted(discovery.other_files.items()))
    found = f"found none, but left out: {others}" if others else "found no files at all"
    return f"{places}: expected volumes (NIfTI, MGZ, NRRD, MetaImage or DICOM), {found}."
