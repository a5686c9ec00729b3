"""From scans to rows: what every way of running prediction shares."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssclf import __version__
from ssclf.config import PredictConfig, PreprocessConfig, SkullStrip, config_to_dict
from ssclf.domain.explanation import BrainGrid, map_to_scan
from ssclf.domain.flags import FLAGS, REFERENCE_MODEL
from ssclf.domain.preprocessing import PreparedVolume, preprocess
from ssclf.domain.trust import trust_flags
from ssclf.domain.volume import Volume
from ssclf.errors import OutputError, SsclfError, VolumeError
from ssclf.io.discovery.scans import Scan, stored_files
from ssclf.io.extraction.deepbet import MASK_SIZE
from ssclf.io.extraction.owner import NetworkOwner, OwnerAddress, lend
from ssclf.io.memory import share_of_memory
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.ensemble import Ensemble, Verdict
from ssclf.io.models.runtime import cuda_if_built
from ssclf.io.own_output import MAP_MARK
from ssclf.io.paths import is_about_the_name, is_file
from ssclf.io.preparation import brain_extractor, prepare_scan
from ssclf.io.records.map_names import map_name
from ssclf.io.records.results import ResultRow
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.io.volumes.dicomweb import ServerSeries
from ssclf.io.volumes.nifti import write_nifti
from ssclf.io.workers import Outcome, Workers, run_in_batches
from ssclf.reporting.results_page import THUMBNAIL
from ssclf.reporting.thumbnails import thumbnail

if TYPE_CHECKING:
    from ssclf.workflows.dicom_out import DicomOut

Key = tuple[str, str]
log = logging.getLogger(__name__)

#: How long a volume waits for others, where a network takes several at once. A GPU that would wait has time.
_PATIENCE_S = 0.05


@dataclass(frozen=True)
class NetworkInputs:
    """What a worker makes of one scan: network input for every preprocessing that the models ask for.

    Attributes:
        volumes: at least one; each is what the models with that preprocessing see.
        extraction: what removed the skull, "none" where it was gone already.
        grid: where the brain lies in the scan's own space; only for maps.
        seconds: that the worker took.
    """

    volumes: Mapping[PreprocessConfig, PreparedVolume]
    extraction: str
    grid: BrainGrid | None
    seconds: float

    @property
    def first(self) -> PreparedVolume:
        return next(iter(self.volumes.values()))


def make_network_inputs(
    scan: Scan,
    *,
    settings: Sequence[PreprocessConfig],
    skull_strip: str,
    extraction: tuple[Path, ...],
    scratch: Path,
    with_grid: bool = False,
    owner: OwnerAddress | None = None,
) -> NetworkInputs:
    """Runs in a worker: read a scan and find its brain once, preprocess it for each model.

    Args:
        settings: of the models, each once.
        skull_strip: see `SkullStrip.parse`.
        extraction: deepbet's networks, or nothing.
        scratch: existing folder for what has to be unpacked or converted.
        with_grid: whether a map will be drawn.
        owner: the process that runs deepbet's networks, if another does.

    Raises:
        SsclfError: this scan cannot be read, or is no brain volume.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=scratch) as work:
        first = prepare_scan(
            scan,
            settings[0],
            skull_strip=skull_strip,
            extractor=brain_extractor(extraction, owner=owner),
            work=Path(work),
        )
    volumes = {settings[0]: first.volume}
    for other in settings[1:]:
        volumes[other] = preprocess(first.original, other, first.brain)
    grid = BrainGrid.of(first.original, first.brain) if with_grid else None
    return NetworkInputs(volumes, first.engine, grid, time.perf_counter() - begin)


@dataclass(frozen=True)
class Origin:
    """What every row of a run says of the models: known without opening one.

    Attributes:
        flags: that every row has, failed ones too.
    """

    model: str
    model_sha256: str
    ssclf_version: str = __version__
    precision: str = "fp32"
    flags: tuple[str, ...] = ()

    @staticmethod
    def of(ensemble: Ensemble) -> Origin:
        return Origin(
            ensemble.name, ensemble.sha256, precision=ensemble.precision, flags=_model_flags(ensemble)
        )

    def row(self, scan: Scan, status: str, *, flags: Iterable[str] = (), **values: Any) -> ResultRow:
        """A row without a fingerprint: whoever planned it knows that, and adds it before the row is kept."""
        return ResultRow(
            path=scan.path,
            series=scan.series,
            status=status,
            model=self.model,
            model_sha256=self.model_sha256,
            ssclf_version=self.ssclf_version,
            precision=self.precision,
            flags=tuple(dict.fromkeys((*self.flags, *flags))),
            **values,
        )

    def failed(self, scan: Scan, reason: str) -> ResultRow:
        return self.row(scan, "failed", error=" ".join(reason.split()))


@dataclass(frozen=True)
class RowMaker:
    """Turns scans into rows: what every way of running prediction shares.

    Attributes:
        scratch: existing folder, by the time that rows are made, for what has to be unpacked or converted.
        maps: folder for a map per scan, if any.
        pictures: whether rows carry a thumbnail.
        dicom: what writes the DICOM objects of a row, if any.
        pool: workers that go on after a call; None: each call of `rows` has its own.
        lent: providers of ONNX Runtime on which this process runs brain extraction for its workers, none of them where
            they do it themselves; None: CUDA, where it is and the settings let it be.
    """

    ensemble: Ensemble
    config: PredictConfig
    scratch: Path
    maps: Path | None = None
    pictures: bool = False
    dicom: DicomOut | None = None
    pool: Workers | None = None
    lent: Sequence[Any] | None = None

    @property
    def origin(self) -> Origin:
        return Origin.of(self.ensemble)

    def rows(self, scans: Sequence[Scan], stop: Callable[[], bool]) -> Iterator[ResultRow]:
        """Classify scans; rows come as they are finished, without fingerprints.

        Args:
            stop: asked before each scan; once true, what is in flight is finished and nothing is begun.
        """
        try:
            yield from self._rows(scans, stop)
        finally:
            if self.dicom is not None:
                self.dicom.close()

    def _rows(self, scans: Sequence[Scan], stop: Callable[[], bool]) -> Iterator[ResultRow]:
        readable = [scan for scan in scans if not scan.problem]
        for scan in scans:
            if scan.problem:
                yield self._failed(scan, scan.problem)
        if not readable:  # no network is loaded for nothing: it would go on loading behind the end of the run
            return
        with self._owner() as owner:
            work = partial(
                make_network_inputs,
                settings=self.ensemble.settings,
                skull_strip=self.config.skull_strip,
                extraction=self.ensemble.bundles[0].extraction,
                scratch=self.scratch,
                with_grid=self.maps is not None or (self.dicom is not None and not self.dicom.picture),
                owner=owner.address if owner else None,
            )
            batches = run_in_batches(
                work,
                readable,
                most=lambda: self.ensemble.together,
                patience_s=_PATIENCE_S,
                workers=self.config.workers,
                timeout_s=self.config.timeout_s,
                stop=stop,
                pool=self.pool,
                memory=share_of_memory(self.config.workers),
            )
            # while the first volumes are being read
            loading = ThreadPoolExecutor(1).submit(self.ensemble.load)
            with closing(batches):
                for outcomes in batches:
                    loading.result()
                    yield from self._classified(outcomes)

    def _owner(self) -> AbstractContextManager[NetworkOwner | None]:
        """Who runs the networks of brain extraction for the workers, if they do not themselves."""
        models = self.ensemble.bundles[0].extraction
        if SkullStrip.parse(self.config.skull_strip).engine != "deepbet":
            models = ()
        lent = self.lent
        if lent is None:
            lent = cuda_if_built() if models and self.config.device != "cpu" else ()
        return lend(models, MASK_SIZE**3, lent, threads=self.config.threads or 1)

    def _classified(self, outcomes: Sequence[Outcome[Scan, NetworkInputs]]) -> Iterator[ResultRow]:
        """Rows of scans that were read at about the same time, in their order."""
        read = [outcome.result for outcome in outcomes if outcome.result is not None]
        begin = time.perf_counter()
        verdicts = iter(self.ensemble.judge_all([inputs.volumes for inputs in read]))
        seconds = (time.perf_counter() - begin) / max(len(read), 1)
        for outcome in outcomes:
            if outcome.result is None:
                yield self._failed(outcome.item, outcome.error)
            else:
                yield self._row(outcome.item, outcome.result, next(verdicts), seconds)

    def is_explained(self, row: ResultRow) -> bool:
        """Whether a row of an earlier run has the map, picture and DICOM objects that this run was asked for."""
        if self.dicom is not None and not self.dicom.stands(row):
            return False
        if row.status != "ok":
            return True
        has_map = self.maps is None or is_file(self.maps / row.extra.get("map", "absent"))
        return has_map and (not self.pictures or THUMBNAIL in row.extra)

    def classified(self, scan: Scan, inputs: NetworkInputs) -> ResultRow:
        """The row of a scan that could be read; failed where the network cannot take it.

        Raises:
            SsclfError: what is no fault of the volume: a model that cannot be used, a map that cannot be written.
        """
        (row,) = self._classified([Outcome(scan, inputs)])
        return row

    def _row(
        self, scan: Scan, inputs: NetworkInputs, verdict: Verdict | Exception, seconds: float
    ) -> ResultRow:
        """Args:
        verdict: or what was raised instead.
        seconds: that it took.
        """
        begin = time.perf_counter() - seconds
        try:
            if isinstance(verdict, Exception):
                raise verdict
            shown_in_dicom = self.dicom is not None and self.dicom.wants(scan)
            explain = self.maps is not None or self.pictures or shown_in_dicom
            evidence = self.ensemble.evidence(verdict) if explain else []
        except VolumeError as exc:
            return self._failed(scan, str(exc))
        except (SsclfError, KeyboardInterrupt):
            raise
        except Exception as exc:  # an engine's own: a volume that does not fit a GPU's memory, mostly
            return self._failed(scan, f"the network cannot take it ({type(exc).__name__}: {exc}).")
        flags = list(inputs.first.flags)
        for bundle, views in zip(self.ensemble.bundles, verdict.views, strict=True):
            prepared = inputs.volumes[bundle.spec.preprocess]
            output = views[0].output
            features = None if output.features is None else output.features[0]
            flags += trust_flags(bundle.spec, prepared, inputs.extraction, features)
        try:
            heat = None
            if evidence and inputs.grid is not None:
                heat = Volume(map_to_scan(evidence, inputs.grid)[None], inputs.grid.affine)
            extra = self._explain(scan, inputs, evidence, heat)
        except VolumeError as exc:
            return self._failed(scan, str(exc))
        row = self.origin.row(
            scan,
            "ok",
            prediction=self.ensemble.class_names[verdict.best],
            probabilities=tuple(float(p) for p in verdict.probabilities),
            flags=flags,
            brain_ml=inputs.first.brain_ml,
            seconds=inputs.seconds + time.perf_counter() - begin,
            extra=extra,
        )
        row = reviewed(row, self.config.review_below)
        if self.dicom is None:
            return row
        picture = extra.get(THUMBNAIL, "")
        if self.dicom.picture and not self.pictures and evidence:
            picture = self._picture(inputs, evidence)
        return self.dicom.write(scan, row, heat, picture)

    def _failed(self, scan: Scan, reason: str) -> ResultRow:
        """The row of a scan without a class, with its DICOM report where one is due."""
        row = self.origin.failed(scan, reason)
        return row if self.dicom is None else self.dicom.write(scan, row)

    def _explain(
        self, scan: Scan, inputs: NetworkInputs, evidence: Sequence[Volume], heat: Volume | None
    ) -> dict[str, Any]:
        """Write the map, draw the picture: what was asked for.

        Args:
            heat: data (1, D, H, W), the evidence on the scan's own voxels.
        """
        extra: dict[str, Any] = {}
        if self.maps is not None and heat is not None:
            name = map_name(scan.path, scan.series)
            path = self.maps / name
            try:
                write_nifti(heat, path, mark=MAP_MARK)
            except OSError as exc:
                if is_about_the_name(exc):
                    raise VolumeError(f"{name}: the map cannot be written ({exc.strerror or exc}).") from exc
                raise OutputError(
                    f"{path}: the map cannot be written ({exc.strerror or exc}); rows finished before are kept, "
                    "run the same command again to continue."
                ) from exc
            extra["map"] = name
        if self.pictures:
            extra[THUMBNAIL] = self._picture(inputs, evidence)
        return extra

    def _picture(self, inputs: NetworkInputs, evidence: Sequence[Volume]) -> str:
        """See `thumbnail`."""
        prepared = inputs.first
        _, d, h, w = prepared.data.shape
        grid = BrainGrid((d, h, w), prepared.affine, np.packbits(prepared.data.any(axis=0)))
        return thumbnail(prepared, map_to_scan(evidence, grid))


def open_models(models: Sequence[Path | str], config: PredictConfig) -> Ensemble:
    """The models that are to judge together; says of each that has seen no patient that it has not.

    Raises:
        ModelError: see `open_bundle` and `Ensemble`.
    """
    bundles = [open_bundle(Path(path)) for path in models]
    for bundle in bundles:
        if bundle.spec.pretrained_on_lesions:
            log.warning("%s: %s; every row is flagged", bundle.spec.name, FLAGS[REFERENCE_MODEL])
    return Ensemble(bundles, config)


def _model_flags(ensemble: Ensemble) -> tuple[str, ...]:
    """What the models themselves say against every row."""
    lesions_alone = any(bundle.spec.pretrained_on_lesions for bundle in ensemble.bundles)
    return (REFERENCE_MODEL,) if lesions_alone else ()


def key_of(scan: Scan) -> Key:
    """The key that a scan's row will have."""
    return scan.path, scan.series


def reviewed(row: ResultRow, below: float) -> ResultRow:
    """The row with `low_confidence` where a person is to look at it, whatever limit it was made with."""
    flags = [flag for flag in row.flags if flag != "low_confidence"]
    if row.confidence is not None and row.confidence < below:
        flags.append("low_confidence")
    return replace(row, flags=tuple(flags))


def method_digest(ensemble: Ensemble, config: PredictConfig) -> bytes:
    """Everything but the scan that decides what is in a row: models and settings. `review_below` is not among them:
    it can be looked at again."""
    specs = [bundle.spec.to_json() for bundle in ensemble.bundles]
    selection: dict[str, Any] = {"pattern": None, "series": None, "keep_uids": False, "retry_failed": False}
    relevant = replace(
        config, **selection, workers=1, threads=0, timeout_s=None, device="auto", review_below=0
    )
    settings = config_to_dict(relevant)
    if config.map_method == "cam":  # as when there was no other: rows of earlier versions stay
        del settings["map_method"]
    if config.precision == "fp32":  # likewise; in 8 bits the checksum is another, too
        del settings["precision"]
    text = json.dumps([ensemble.sha256, specs, settings, *_model_flags(ensemble)])
    return hashlib.sha256(text.encode()).digest()


def scan_fingerprint(scan: Scan, method: bytes) -> str:
    """What a row was made from: equal fingerprints mean that the row need not be made again."""
    digest = hashlib.sha256(method)
    for path in (path for source in scan.contrasts for path in stored_files(source)):
        try:
            stat = path.stat()
        except OSError:
            digest.update(b"gone\n")
            continue
        name = path.name.encode("utf-8", "surrogateescape")
        digest.update(name + f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for source in scan.contrasts:
        if isinstance(source, ServerSeries):
            digest.update(f"{source.server} {source.study} {source.uid} {source.images}\n".encode())
    digest.update(json.dumps(scan.problem).encode())
    if lost := sum(source.lost for source in scan.contrasts if isinstance(source, DicomSeries)):
        digest.update(f"{lost} lost\n".encode())
    return digest.hexdigest()[:32]
