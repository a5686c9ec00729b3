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
from ssclf.domain.series_rules import SeriesRule
from ssclf.domain.shards import Shard
from ssclf.errors import DatasetError
from ssclf.io.dicom_out.fhir import check_fhir_extra
from ssclf.io.dicom_out.write import check_extra
from ssclf.io.discovery.scans import Scan, with_own_keys
from ssclf.io.discovery.sources import Discovery, discover
from ssclf.io.inside import is_inside
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.paths import holds_something, is_file, real_path, watched_folder, why_missing
from ssclf.io.records.results import Journal, ResultRow, read_rows, write_csv, write_details
from ssclf.io.volumes.dicom_files import Limits
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.io.volumes.dicomweb import ServerSeries
from ssclf.reporting.results_page import write_results_page
from ssclf.workflows.classification import (
    Key,
    RowMaker,
    key_of,
    method_digest,
    open_models,
    reviewed,
    scan_fingerprint,
)
from ssclf.workflows.dicom_out import DicomOut, StudyPlan, plan_studies, rules_of
from ssclf.workflows.interruption import exit_code, note_signals
from ssclf.workflows.outputs import Outputs

log = logging.getLogger(__name__)
Progress = Callable[[ResultRow], None]
Find = Callable[..., Discovery]


@dataclass(frozen=True)
class PredictSummary:
    """What a run did.

    Attributes:
        interrupted: the signal that stopped it, 0 when it ran to its end.
        notes: what else is to be said, a line each.
        lacking: DICOM reports that were due and could not be written.
    """

    rows: tuple[ResultRow, ...]
    class_names: tuple[str, ...]
    reused: int
    dropped: int
    other_files: Mapping[str, int]
    seconds: float
    device: str
    interrupted: int = 0
    notes: tuple[str, ...] = ()
    lacking: int = 0

    @property
    def failed(self) -> int:
        return sum(row.status == "failed" for row in self.rows)

    @property
    def exit_code(self) -> int:
        """Contract, "Exit codes"."""
        return exit_code(failed=bool(self.failed or self.lacking), interrupted=self.interrupted)


@dataclass(frozen=True)
class DicomRequest:
    """DICOM objects that a user asked for.

    Attributes:
        folder: where they go.
        rules: file that says which series of a study is answered; None: the model says.
        picture: whether the evidence is a picture instead of a map.
        fhir: where the reports go in FHIR's form, if anywhere.
    """

    folder: Path
    rules: Path | None = None
    picture: bool = False
    fhir: Path | None = None

    @property
    def folders(self) -> tuple[Path | None, ...]:
        return self.folder, self.fhir


@dataclass(frozen=True)
class Reuse:
    """What earlier runs, finished or not, leave this one to do.

    Attributes:
        rows: those that are still valid, as this run's settings want them.
        todo: scans that have no such row.
        gone: rows of scans that are no longer there.
    """

    rows: Mapping[Key, ResultRow]
    todo: tuple[Scan, ...]
    gone: tuple[ResultRow, ...]


def predict(
    paths: Sequence[Path],
    out: Path,
    models: Sequence[Path],
    config: PredictConfig,
    *,
    shard: Shard | None = None,
    report: Path | None = None,
    maps: Path | None = None,
    dicom: DicomRequest | None = None,
    find: Find = discover,
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
        maps: folder for a map per scan, in its own space, of where the evidence lies; those of scans that are gone go.
        dicom: a DICOM report of every study found.
        find: what is there to classify.
        on_start, on_row: called once with what was found and how many are still to do; with each new row.

    Raises:
        SsclfError: nothing can be done at all: no such path, unusable model. What one volume cannot do is a row.
    """
    begin = time.perf_counter()
    outputs = Outputs(out, report, maps, *(dicom.folders if dicom else ()))
    ensemble, rules = _open(models, config, dicom)
    outputs.check()
    found, everything = _find_scans(paths, ensemble, config, shard, find)
    fingerprints = _fingerprints(found.scans, ensemble, config)
    with Journal(out) as journal:
        # the table before the journal: of one volume, what an interrupted run did later counts
        earlier = [*read_rows(outputs.details), *journal.open()]
        objects = _dicom_out(dicom, rules, everything, ensemble, config, journal.scratch)
        maker = RowMaker(ensemble, config, journal.scratch, maps, report is not None, objects)
        reuse = _decide_reuse(earlier, found.scans, fingerprints, maker)
        on_start(found, len(reuse.todo))
        rows, interrupted = _classify(reuse, maker, fingerprints, journal, paths, on_row)
        summary = PredictSummary(
            rows=tuple(rows[key] for key in sorted(rows)),
            class_names=ensemble.class_names,
            reused=len(reuse.rows),
            dropped=len(reuse.gone),
            other_files=found.other_files,
            seconds=time.perf_counter() - begin,
            device=ensemble.device,
            interrupted=interrupted,
            **(objects.outcome(rows.values()) if objects else {}),
        )
        if not interrupted:
            _report(summary, outputs, describe_run(summary, ensemble, config, shard), reuse.gone, journal)
            if objects:
                objects.remove_stale(earlier, summary.rows)
    return summary


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
    ensemble = open_models(models, config)
    found, _ = _find_scans([Path(path) for path in paths], ensemble, config, None)
    with tempfile.TemporaryDirectory(prefix="ssclf-") as scratch:
        yield from RowMaker(ensemble, config, Path(scratch)).rows(found.scans, lambda: False)


def _find_scans(
    paths: Sequence[Path],
    ensemble: Ensemble,
    config: PredictConfig,
    shard: Shard | None,
    find: Find = discover,
) -> tuple[Discovery, tuple[Scan, ...]]:
    """What is there for these models to classify, of this shard; and the scans of all shards.

    Raises:
        DatasetError: nothing is, in any shard.
    """
    found = find(
        paths,
        contrasts=ensemble.contrasts,
        pattern=config.pattern,
        series=config.series,
        limits=Limits(config.workers, config.timeout_s),
    )
    if not found.scans:
        raise DatasetError(_nothing_found(paths, found))
    everything = _chosen(found.scans, None, config)
    mine = everything if shard is None else _chosen(found.scans, shard, config)
    return replace(found, scans=mine), everything


def _open(
    models: Sequence[Path], config: PredictConfig, dicom: DicomRequest | None
) -> tuple[Ensemble, tuple[SeriesRule, ...]]:
    """The models, and the rules of series; what an extra lacks is found before anything is begun."""
    if dicom is not None:
        check_extra()
        if dicom.fhir:
            check_fhir_extra()
    ensemble = open_models(models, config)
    return ensemble, rules_of(dicom.rules, ensemble) if dicom else ()


def _dicom_out(
    dicom: DicomRequest | None,
    rules: Sequence[SeriesRule],
    everything: Sequence[Scan],
    ensemble: Ensemble,
    config: PredictConfig,
    scratch: Path,
) -> DicomOut | None:
    """What writes the DICOM objects of a run, None where none were asked for.

    Args:
        everything: the scans of all shards: a study may lie in several, and one of them writes its report.
    """
    if dicom is None:
        return None
    plan = plan_studies(everything, rules, config, scratch)
    return DicomOut(dicom.folder, plan, ensemble, config, scratch, dicom.picture, dicom.fhir)


@dataclass(frozen=True)
class Foreseen:
    """What a run would do.

    Attributes:
        found: of this shard.
        rules: by which a study's series is chosen.
        plan: which series are answered.
    """

    found: Discovery
    rules: tuple[SeriesRule, ...]
    plan: StudyPlan


def foresee(
    paths: Sequence[Path],
    models: Sequence[Path],
    config: PredictConfig,
    *,
    shard: Shard | None = None,
    rules: Path | None = None,
) -> Foreseen:
    """Find what there is to classify, and choose the series of every DICOM study; nothing is classified or written.

    Args:
        paths, models, shard: see `predict`.
        rules: see `DicomRequest`.

    Raises:
        SsclfError: see `predict`.
    """
    ensemble = open_models(models, config)
    chosen = rules_of(rules, ensemble)
    found, everything = _find_scans(paths, ensemble, config, shard)
    return Foreseen(found, chosen, plan_studies(everything, chosen, config))


def _fingerprints(scans: Sequence[Scan], ensemble: Ensemble, config: PredictConfig) -> dict[Key, str]:
    """What each row will be made from, looked at before anything is read: a file that changes while it waits is
    newer than its row, and done again by the next run."""
    method = method_digest(ensemble, config)
    return {key_of(scan): scan_fingerprint(scan, method) for scan in scans}


def _decide_reuse(
    earlier: Iterable[ResultRow], scans: Sequence[Scan], fingerprints: Mapping[Key, str], maker: RowMaker
) -> Reuse:
    """Tell the rows that stand from those to be made again.

    Args:
        earlier: what runs before have left; of several rows of one volume the last counts.
        fingerprints: of the scans.
    """
    rows: dict[Key, ResultRow] = {}
    gone: list[ResultRow] = []
    again: Counter[str] = Counter()
    for key, row in {row.key: row for row in earlier}.items():
        if key not in fingerprints:
            gone.append(row)
        elif why := _why_again(row, fingerprints[key], maker):
            again[why] += 1
        else:
            # whether a person should look is asked anew, with this run's limit: no network is needed for that
            kept = reviewed(row, maker.config.review_below)
            rows[key] = maker.dicom.current(kept) if maker.dicom else kept
    for reason, count in again.items():
        log.info("done again: %d volumes %s", count, reason)
    return Reuse(rows, tuple(scan for scan in scans if key_of(scan) not in rows), tuple(gone))


def _why_again(row: ResultRow, fingerprint: str, maker: RowMaker) -> str:
    """Why a row does not stand, as an end for "volumes …"; empty where it does."""
    if row.fingerprint != fingerprint:
        return "whose file, model or settings have changed"
    # the same bytes fail the same way, unless something around them was mended: the user knows, and asks
    if row.status == "failed" and maker.config.retry_failed:
        return "that failed"
    if not maker.is_explained(row):
        return "that lack the picture or map asked for now"
    return ""


def _classify(
    reuse: Reuse,
    maker: RowMaker,
    fingerprints: Mapping[Key, str],
    journal: Journal,
    paths: Sequence[Path],
    on_row: Progress,
) -> tuple[dict[Key, ResultRow], int]:
    """Do what is to be done, each row in the journal before the next is taken.

    Returns:
        rows by key, those that stood among them; and the signal that came before they were all there, or 0.
    """
    rows = dict(reuse.rows)
    remote = {key_of(scan) for scan in reuse.todo if scan.is_remote}
    # a folder that was empty all along has not gone
    given = {watched_folder(path) for path in paths if not why_missing(path)}
    given = {folder for folder in given if holds_something(folder)}
    with note_signals("finishing the volumes in flight; the same command goes on later") as stopped:
        # without anything to do no worker is started and no network loaded
        for made in maker.rows(reuse.todo, lambda: bool(stopped)) if reuse.todo else ():
            if made.status == "failed":
                # when a file server goes, every volume fails: that is no property of the volumes, and no row
                _check_still_there(given)
            # what a server did not give today it may give tomorrow: no fingerprint, so that the next run asks again
            again = made.status == "failed" and made.key in remote
            row = replace(made, fingerprint="" if again else fingerprints[made.key])
            journal.append(row)
            rows[row.key] = row
            on_row(row)
    unfinished = len(rows) < len(reuse.rows) + len(reuse.todo)
    return rows, stopped[0] if stopped and unfinished else 0


def _report(
    summary: PredictSummary,
    outputs: Outputs,
    about: Mapping[str, Any],
    gone: Sequence[ResultRow],
    journal: Journal,
) -> None:
    """Write what people asked for.

    Args:
        about: see `describe_run`.
        gone: rows of scans that are no longer there, whose maps go too.
    """
    write_csv(outputs.out, summary.rows, summary.class_names)
    write_details(outputs.details, about, summary.rows)
    if outputs.maps:
        _remove_maps(outputs.maps, gone, kept=summary.rows)
    journal.finish()  # before the page: where that cannot be written, the rows are in their table all the same
    if outputs.report:
        write_results_page(outputs.report, summary.rows, summary.class_names, about)


def _remove_maps(maps: Path, gone: Iterable[ResultRow], *, kept: Iterable[ResultRow]) -> None:
    """Remove the maps of scans that are gone; a name that another scan's map has now stays."""
    there = {real_path(maps / row.extra["map"]) for row in kept if "map" in row.extra}
    for path in (real_path(maps / row.extra["map"]) for row in gone if "map" in row.extra):
        # the name comes from a file that anybody may have edited
        if is_inside(maps, path) and path not in there and is_file(path):
            path.unlink(missing_ok=True)


def describe_run(
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
                "engine": ensemble.engine,
                "precision": precision,
                "synthetic": bundle.spec.synthetic,
                "training": {
                    k: v for k, v in bundle.spec.training.items() if k not in ("voxels", "statistics")
                },
            }
            for bundle, precision in zip(ensemble.bundles, ensemble.precisions, strict=True)
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
            if scan.series and scan.contrasts and isinstance(scan.contrasts[0], DicomSeries | ServerSeries)
            else scan
            for scan in mine
        ]
    return tuple(with_own_keys(mine))


def _nothing_found(paths: Sequence[Path], discovery: Discovery) -> str:
    places = ", ".join(str(path) for path in paths)
    others = "; ".join(f"{count} {reason}" for reason, count in sorted(discovery.other_files.items()))
    found = f"found none, but left out: {others}" if others else "found no files at all"
    return f"{places}: expected volumes (NIfTI, MGZ, NRRD, MetaImage or DICOM), {found}."
