"""`ssclf doctor --bench`: what one volume takes here, part by part, on one core (and on the GPU)."""

from __future__ import annotations

import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ssclf.config import Device, Engine, PredictConfig, PreprocessConfig
from ssclf.domain.volume import Volume
from ssclf.errors import DatasetError
from ssclf.io.discovery.scans import Scan, stored_files
from ssclf.io.discovery.sources import discover
from ssclf.io.models.bundle import Bundle, open_bundle
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.volumes.nifti import write_nifti
from ssclf.io.workers import Workers, run_in_processes
from ssclf.workflows.classification import NetworkInputs, make_network_inputs
from ssclf.workflows.plan import Rates

#: Slices, rows and columns of a BraTS volume at 1 mm, read where no typical scans are given.
_SHAPE = (155, 240, 240)
_SCANS = 10


@dataclass(frozen=True)
class _Read:
    prepared: NetworkInputs
    peak_bytes: int


def measure_rates(
    model: Path, *, device: Device = "auto", engine: Engine = "auto", typical: Sequence[Path] = ()
) -> Rates:
    """Time one volume after the other; ten seconds, or a minute where there is brain extraction to time.

    Args:
        typical: stripped scans, or folders of them, like those to come (ten are read); none: a synthetic volume
            of BraTS size.

    Raises:
        SsclfError: the model cannot be used, or a scan cannot be read.
    """
    bundle = open_bundle(model)
    with tempfile.TemporaryDirectory(prefix="ssclf-") as folder:
        paths = list(typical) or [_write_synthetic(Path(folder) / "synthetic.nii.gz")]
        scans = discover(paths, contrasts=bundle.spec.preprocess.contrasts).scans[:_SCANS]
        if not scans:
            raise DatasetError("--typical: expected volumes, found none.")
        reads = _read_all(scans, bundle, Path(folder), "none")
        read_s = statistics.median(read.prepared.seconds for read in reads)
        strip_s = None
        if bundle.extraction:
            heads = _read_all(scans[:1], bundle, Path(folder), "deepbet")
            strip_s = max(statistics.median(read.prepared.seconds for read in heads) - read_s, 0.0)
        file_bytes = [
            sum(path.stat().st_size for source in scan.contrasts for path in stored_files(source))
            for scan in scans
        ]
    inputs = [read.prepared for read in reads]
    before = _resident_bytes()
    ensemble = Ensemble([bundle], PredictConfig(device="cpu", engine=engine, threads=1))
    infer_core_s = _time_network(ensemble, inputs)
    model_bytes = _resident_bytes() - before
    infer_gpu_s = None
    if device != "cpu":
        fast = Ensemble([bundle], PredictConfig(device=device, engine=engine))
        fast.load()
        infer_gpu_s = _time_network(fast, inputs) if fast.device == "cuda" else None
    sizes = sorted({prepared.first.data.shape for prepared in inputs})
    return Rates(
        read_s=read_s,
        strip_s=strip_s,
        infer_core_s=infer_core_s,
        infer_gpu_s=infer_gpu_s,
        file_bytes=round(statistics.mean(file_bytes)),
        input_bytes=round(
            statistics.mean(sum(v.data.nbytes for v in one.volumes.values()) for one in inputs)
        ),
        reader_bytes=max(read.peak_bytes for read in reads),
        model_bytes=max(model_bytes, 0),
        typical=f"{len(scans)} scans" if typical else f"synthetic, {'×'.join(map(str, _SHAPE))} voxels",
        input_shape="×".join(map(str, sizes[len(sizes) // 2])),
        model=bundle.spec.name,
        machine=f"{platform.machine()}, {platform.system()}",
    )


def _write_synthetic(path: Path) -> Path:
    """A stripped, textured ellipsoid."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in _SHAPE), indexing="ij"))
    texture = 400 + 100 * np.sin(7 * grid).sum(axis=0) + np.random.default_rng(0).normal(0, 20, _SHAPE)
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = affine[3, 3] = 1.0
    inside = (grid**2).sum(axis=0) < 0.6
    write_nifti(Volume(np.where(inside, texture, 0).astype(np.int16)[None], affine), path)
    return path


def _read_all(scans: Sequence[Scan], bundle: Bundle, folder: Path, skull_strip: str) -> list[_Read]:
    """Every scan in a worker process, as prediction does it; the first one twice, since it warms up."""
    work = partial(
        _read,
        settings=(bundle.spec.preprocess,),
        skull_strip=skull_strip,
        extraction=bundle.extraction,
        scratch=folder,
    )
    pool = Workers(1)
    try:
        outcomes = list(run_in_processes(work, [scans[0], *scans], workers=1, pool=pool))
    finally:
        pool.stop()
    for outcome in outcomes:
        if outcome.result is None:
            raise DatasetError(f"{outcome.item.path}: {outcome.error}")
    return [outcome.result for outcome in outcomes[1:] if outcome.result is not None]


def _read(
    scan: Scan,
    settings: tuple[PreprocessConfig, ...],
    skull_strip: str,
    extraction: tuple[Path, ...],
    scratch: Path,
) -> _Read:
    prepared = make_network_inputs(
        scan, settings=settings, skull_strip=skull_strip, extraction=extraction, scratch=scratch
    )
    return _Read(prepared, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _time_network(ensemble: Ensemble, inputs: Sequence[NetworkInputs], repeats: int = 5) -> float:
    """Median seconds of a volume."""
    seconds = []
    ensemble.judge(inputs[0].volumes)
    for index in range(max(repeats, len(inputs))):
        begin = time.perf_counter()
        ensemble.judge(inputs[index % len(inputs)].volumes)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize()
