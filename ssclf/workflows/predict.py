"""`ssclf predict`: whatever is in the folder in, one row per volume out.

Worker processes read, strip and preprocess; this process classifies what they hand over and writes each
finished row to the journal before it takes the next. The CSV is written whole at the end.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf import __version__
from ssclf.config import PredictConfig, PreprocessConfig, config_to_dict
from ssclf.domain.preprocessing import PreparedVolume, preprocess
from ssclf.domain.scores import softmax
from ssclf.domain.shards import Shard
from ssclf.errors import DatasetError, ModelError, OutputError
from ssclf.io.bundle import Bundle, open_bundle
from ssclf.io.dicom import DicomSeries
from ssclf.io.extraction import BrainExtractor
from ssclf.io.preparation import prepare_scan
from ssclf.io.results import Journal, ResultRow, read_rows, row_to_json, write_csv, write_whole
from ssclf.io.runtime import Classifier, open_classifier
from ssclf.io.scans import Scan, VoxelSource
from ssclf.io.sources import Discovery, discover
from ssclf.io.workers import run_in_processes

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
        if self.interrupted:
            return 128 + self.interrupted
        return 3 if self.failed else 0


@dataclass(frozen=True)
class Preparation:
    """What a worker hands over: network input for every preprocessing that the models ask for."""

    volumes: Mapping[PreprocessConfig, PreparedVolume]
    seconds: float

    @property
    def first(self) -> PreparedVolume:
        return next(iter(self.volumes.values()))


def prepare_for_models(
    scan: Scan,
    settings: Sequence[PreprocessConfig],
    skull_strip: str,
    extraction: tuple[Path, ...],
    scratch: Path,
) -> Preparation:
    """Runs in a worker: read a scan and find its brain once, preprocess it for each model."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=scratch) as work:
        first = prepare_scan(
            scan,
            settings[0],
            skull_strip=skull_strip,
            extractor=_extractor(extraction) if extraction else None,
            work=Path(work),
        )
    volumes = {settings[0]: first.volume}
    for other in settings[1:]:
        volumes[other] = preprocess(first.original, other, first.brain)
    return Preparation(volumes, time.perf_counter() - begin)


@lru_cache(maxsize=1)
def _extractor(models: tuple[Path, ...]) -> BrainExtractor:
    """Kept for the life of a worker, with the networks that it has loaded."""
    return BrainExtractor(models)


class Ensemble:
    """One or several models that agree on classes and contrasts; their probabilities are averaged."""

    def __init__(self, bundles: Sequence[Bundle], config: PredictConfig) -> None:
        first = bundles[0].spec
        for bundle in bundles[1:]:
            for what in ("class_names", "preprocess.contrasts"):
                ours, theirs = (_attribute(spec, what) for spec in (first, bundle.spec))
                if ours != theirs:
                    raise ModelError(
                        f"{bundle.path.name}: models given together must agree on {what.split('.')[-1]}; "
                        f"{bundles[0].path.name} has {', '.join(ours)}, this one {', '.join(theirs)}."
                    )
        self.class_names = first.class_names
        self.contrasts = first.preprocess.contrasts
        self.bundles = tuple(bundles)
        self.name = "+".join(bundle.spec.name for bundle in bundles)
        self.sha256 = "+".join(bundle.sha256 for bundle in bundles)
        self.settings = tuple(dict.fromkeys(bundle.spec.preprocess for bundle in bundles))
        self._config = config
        self._classifiers: list[Classifier] = []

    @property
    def device(self) -> str:
        """Where the networks really run; empty until they are loaded."""
        return "+".join(dict.fromkeys(classifier.device for classifier in self._classifiers))

    def load(self) -> None:
        config = self._config
        self._classifiers = [
            open_classifier(bundle, engine=config.engine, device=config.device, threads=config.threads)
            for bundle in self.bundles
        ]

    def probabilities(self, prepared: Mapping[PreprocessConfig, PreparedVolume]) -> NDArray[np.float64]:
        """(K,) calibrated probabilities, averaged over models and, where asked for, left and right."""
        results = []
        for classifier in self._classifiers:
            spec = classifier.spec
            batch = prepared[spec.preprocess].data[None]
            for view in [batch, flip_left_right(batch, spec.preprocess)][: 2 if self._config.flip else 1]:
                output = classifier.classify(view)
                results.append(softmax(output.logits[0], spec.temperature))
        mean: NDArray[np.float64] = np.mean(results, axis=0)
        return mean


def flip_left_right(batch: NDArray[np.float32], config: PreprocessConfig) -> NDArray[np.float32]:
    """Mirror (N, C, D, H, W) in the body's left-right axis: W, or D where slices are sagittal."""
    return np.ascontiguousarray(np.flip(batch, 2 if config.plane == "sagittal" else 4))


def _attribute(spec: Any, path: str) -> tuple[str, ...]:
    for name in path.split("."):
        spec = getattr(spec, name)
    return tuple(spec)


@dataclass
class _Run:
    """What `predict` and `iterate` share."""

    ensemble: Ensemble
    config: PredictConfig
    scratch: Path
    fingerprints: dict[tuple[str, str], str] = field(default_factory=dict)

    def rows(self, scans: Sequence[Scan], stop: Callable[[], bool]) -> Iterator[ResultRow]:
        """Classify scans; rows come as they are finished."""
        readable = [scan for scan in scans if not scan.problem]
        for scan in scans:
            if scan.problem:
                yield self._failed(scan, scan.problem)
        work = partial(
            prepare_for_models,
            settings=self.ensemble.settings,
            skull_strip=self.config.skull_strip,
            extraction=self.ensemble.bundles[0].extraction,
            scratch=self.scratch,
        )
        outcomes = run_in_processes(
            work, readable, workers=self.config.workers, timeout_s=self.config.timeout_s, stop=stop
        )
        loading = ThreadPoolExecutor(1).submit(self.ensemble.load)  # while the first volumes are being read
        for outcome in outcomes:
            loading.result()
            if outcome.result is None:
                yield self._failed(outcome.item, outcome.error)
            else:
                yield self._classified(outcome.item, outcome.result)

    def _row(self, scan: Scan, status: str, **values: Any) -> ResultRow:
        return ResultRow(
            path=scan.path,
            series=scan.series,
            status=status,
            model=self.ensemble.name,
            model_sha256=self.ensemble.sha256,
            ssclf_version=__version__,
            fingerprint=self.fingerprints.get((scan.path, scan.series), ""),
            **values,
        )

    def _failed(self, scan: Scan, reason: str) -> ResultRow:
        return self._row(scan, "failed", error=" ".join(reason.split()))

    def _classified(self, scan: Scan, preparation: Preparation) -> ResultRow:
        begin = time.perf_counter()
        probabilities = self.ensemble.probabilities(preparation.volumes)
        seconds = preparation.seconds + time.perf_counter() - begin
        flags = list(preparation.first.flags)
        best = int(probabilities.argmax())
        if probabilities[best] < self.config.review_below:
            flags.append("low_confidence")
        return self._row(
            scan,
            "ok",
            prediction=self.ensemble.class_names[best],
            probabilities=tuple(float(p) for p in probabilities),
            flags=tuple(flags),
            brain_ml=preparation.first.brain_ml,
            seconds=seconds,
        )


def predict(
    paths: Sequence[Path],
    out: Path,
    models: Sequence[Path],
    config: PredictConfig,
    *,
    shard: Shard | None = None,
    on_start: Callable[[Discovery, int], None] = lambda discovery, todo: None,
    on_row: Progress = lambda row: None,
) -> PredictSummary:
    """Classify everything found under `paths` and write the table.

    Args:
        paths: files, folders, DICOM, zips or manifests.
        out: the CSV; `results.json` with the same stem is written beside it.
        models: bundles; the probabilities of several are averaged.
        shard: which part of the volumes to take; the others are another job's.
        on_start: called once with what was found and how many volumes are still to do.
        on_row: called with each new row.

    Raises:
        SsclfError: nothing can be done at all: no such path, unusable model, output not writable.
            What one volume cannot do is a row.
    """
    begin = time.perf_counter()
    details = out.with_suffix(".json")
    if details == out:
        raise OutputError(
            f"{out}: --out names the CSV; results.json is written beside it, so choose another ending."
        )
    ensemble = Ensemble([open_bundle(path) for path in models], config)
    _check_output(out, details)
    discovery = discover(paths, contrasts=ensemble.contrasts, pattern=config.pattern, series=config.series)
    if not discovery.scans:
        raise DatasetError(_nothing_found(paths, discovery))
    discovery = replace(discovery, scans=_chosen(discovery.scans, shard, config))
    journal = Journal(out)
    run = _Run(ensemble, config, journal.scratch)
    run.fingerprints = {
        (scan.path, scan.series): _fingerprint(scan, ensemble, config) for scan in discovery.scans
    }
    finished = False
    try:
        kept = {row.key: row for row in [*read_rows(details), *journal.open()]}
        rows = {
            key: row
            for key, row in kept.items()
            if run.fingerprints.get(key) == row.fingerprint
            and (row.status == "ok" or not config.retry_failed)
        }
        todo = [scan for scan in discovery.scans if (scan.path, scan.series) not in rows]
        reused = len(rows)
        on_start(discovery, len(todo))
        with _stop_on_signal() as stopped:
            for row in run.rows(todo, lambda: bool(stopped)) if todo else ():
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
            write_csv(out, ordered, ensemble.class_names)
            write_whole(details, _details(summary, ensemble, config, shard))
            finished = True
        return summary
    finally:
        journal.close(finished=finished)


def _details(summary: PredictSummary, ensemble: Ensemble, config: PredictConfig, shard: Shard | None) -> str:
    """Everything about a run, as JSON; one row a line, so that it can be read without a parser too."""
    run = {
        "ssclf_version": __version__,
        "config": config_to_dict(config),
        "models": [
            {
                "name": b.spec.name,
                "sha256": b.sha256,
                "synthetic": b.spec.synthetic,
                "training": dict(b.spec.training),
            }
            for b in ensemble.bundles
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
    rows = ",\n".join(row_to_json(row) for row in summary.rows)
    return f'{{"run": {json.dumps(run)},\n"rows": [\n{rows}\n]}}\n'


def _check_output(out: Path, details: Path) -> None:
    """A CSV that is not ours is not overwritten."""
    if out.is_dir():
        raise OutputError(f"{out}: --out names the CSV to write, found a folder; add a file name.")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: the folder {out.parent} does not exist; make it first.")
    if out.exists() and not details.exists():
        with out.open(encoding="utf-8", errors="replace") as file:
            header = file.readline()
        if header.strip() and not header.startswith("path,series,status,"):
            raise OutputError(f"{out}: exists and was not written by ssclf; choose another --out.")


def _fingerprint(scan: Scan, ensemble: Ensemble, config: PredictConfig) -> str:
    """What a row was made from: equal fingerprints mean that the row need not be made again."""
    digest = hashlib.sha256()
    for path in (path for source in scan.contrasts for path in _stored_files(source)):
        try:
            stat = path.stat()
        except OSError:
            digest.update(b"gone\n")
            continue
        name = path.name.encode("utf-8", "surrogateescape")
        digest.update(name + f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    specs = [bundle.spec.to_json() for bundle in ensemble.bundles]
    relevant = replace(config, workers=1, threads=0, timeout_s=None, retry_failed=False, device="auto")
    digest.update(json.dumps([ensemble.sha256, specs, config_to_dict(relevant), scan.problem]).encode())
    return digest.hexdigest()[:32]


def _stored_files(source: VoxelSource) -> list[Path]:
    """Every file that holds part of a contrast: slices, their archive, or both halves of a .hdr/.img pair."""
    if isinstance(source, DicomSeries):
        return [source.root] if source.in_archive else [source.root / name for name in source.files]
    halves = (source.with_suffix(ending) for ending in (".img", ".hdr"))
    return [source, *(half for half in halves if half != source and half.is_file())]


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
    return tuple(mine)


def _nothing_found(paths: Sequence[Path], discovery: Discovery) -> str:
    places = ", ".join(str(path) for path in paths)
    others = "; ".join(f"{count} {reason}" for reason, count in sorted(discovery.other_files.items()))
    found = f"found none, but left out: {others}" if others else "found no files at all"
    return f"{places}: expected volumes (NIfTI, MGZ, NRRD, MetaImage or DICOM), {found}."


@contextmanager
def _stop_on_signal() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C finish what is in flight; a second Ctrl-C stops at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        log.warning("signal %d: finishing the volumes in flight; the same command continues later", number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
