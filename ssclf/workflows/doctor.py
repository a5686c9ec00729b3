"""`ssclf doctor`: what this machine can do, found out by doing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf import __version__
from ssclf.config import Device, Engine, PreprocessConfig
from ssclf.domain.flags import FLAGS, REFERENCE_MODEL
from ssclf.errors import SsclfError
from ssclf.io.extraction.deepbet import BOX_MODEL, BOX_SIZE, MASK_MODEL, MASK_SIZE
from ssclf.io.extraction.engines import available_engines
from ssclf.io.extraction.owner import OwnedNetworks, lend
from ssclf.io.image_hints import image_hint
from ssclf.io.models.batches import TOGETHER, Batches
from ssclf.io.models.bundle import Bundle, choose_bundles, open_bundle
from ssclf.io.models.onnx_session import import_onnxruntime, open_session
from ssclf.io.models.runtime import Classifier, cuda_if_built, cuda_providers, open_classifier

#: y = x + x, as an ONNX file: the smallest thing that shows whether a provider really runs.
_TINY_MODEL = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
#: Slices, rows and columns of a BraTS volume at 2 mm.
_BENCH_SHAPE = (77, 120, 120)


@dataclass(frozen=True)
class Check:
    """Attributes:
    ok: None where the thing is optional and absent.
    detail: version or measurement; where it is absent, the remedy.
    """

    name: str
    ok: bool | None
    detail: str
    required: bool = False

    @property
    def failed(self) -> bool:
        """Whether something that was asked for is not there."""
        return self.required and not self.ok


def bundles_at_hand(models: Sequence[Path], environment: Mapping[str, str]) -> list[Path]:
    """Those that were named or that predict would take; none where there is none, since doctor is what people run
    before they have a model."""
    try:
        return choose_bundles(models, environment)
    except SsclfError:
        return []


def examine(
    models: Sequence[Path] = (), *, device: Device = "auto", engine: Engine = "auto", bench: bool = False
) -> Iterator[Check]:
    """Look at everything that ssclf can use.

    Args:
        models: bundles to open, verify and (with `bench`) time.
        device, engine: what was asked for: a check that fails for it has `required` set.
        bench: time each engine on a volume of BraTS size.
    """
    yield Check("ssclf", True, f"{__version__}, Python {platform.python_version()}, {platform.machine()}")
    cores = len(os.sched_getaffinity(0))
    yield Check("processor", True, f"{cores} cores for this process")
    yield from _onnxruntime(device)
    yield from _torch(device, engine)
    yield _dcm2niix()
    bundles: list[Bundle] = []
    for path in models:
        try:
            bundle = open_bundle(path)
        except SsclfError as exc:
            yield Check(f"model {path}", False, str(exc), required=True)
            continue
        bundles.append(bundle)
        origin = "trained on synthetic volumes" if bundle.spec.synthetic else "intact"
        if bundle.spec.pretrained_on_lesions:
            origin = FLAGS[REFERENCE_MODEL]
        yield Check(
            f"model {bundle.spec.name}",
            True,
            f"{bundle.spec.architecture}, {', '.join(bundle.spec.class_names)}; {origin}",
        )
    extraction = bundles[0].extraction if bundles else ()
    for status in available_engines(extraction):
        words = f"{status.version} {status.detail}".strip()
        yield Check(f"brain extraction {status.name}", status.available or None, words)
    if bench:
        for bundle in bundles:
            yield from _time(bundle, device, engine)
            yield from time_extraction(bundle, cuda_if_built() if device != "cpu" else [])


def _onnxruntime(device: Device) -> Iterator[Check]:
    try:
        ort = import_onnxruntime()
    except SsclfError as exc:
        yield Check("ONNX Runtime", False, str(exc), required=True)
        return
    yield Check("ONNX Runtime", True, f"{ort.__version__} on the CPU")
    wanted = device == "cuda"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        yield Check(
            "ONNX Runtime on CUDA", False if wanted else None,
            f'not in this build; pip install "ssclf[gpu]" instead of [cpu].{image_hint("cuda")}', required=wanted,
        )  # fmt: skip
        return
    session = open_session(_TINY_MODEL, cuda_providers(ort), 1)
    if "CUDAExecutionProvider" in session.get_providers():
        yield Check("ONNX Runtime on CUDA", True, "runs", required=wanted)
    else:
        yield Check(
            "ONNX Runtime on CUDA", False if wanted else None,
            "in this build, but it does not start here: check nvidia-smi, the driver's version (CUDA 13 builds "
            f"need 580 or later) and, in a container, --gpus all.{image_hint('cuda')}", required=wanted,
        )  # fmt: skip


def _torch(device: Device, engine: Engine) -> Iterator[Check]:
    wanted = engine == "torchscript"
    if importlib.util.find_spec("torch") is None:
        remedy = 'not installed (needed to train, and for --engine torchscript): pip install "ssclf[train]"'
        yield Check("torch", False if wanted else None, remedy, required=wanted)
        return
    import torch

    cuda = torch.cuda.is_available()
    words = torch.cuda.get_device_name() if cuda else "CPU only"
    failed = wanted and device == "cuda" and not cuda
    yield Check("torch", not failed, f"{torch.__version__}, {words}", required=wanted)


def _dcm2niix() -> Check:
    try:
        version = importlib.metadata.version("dcm2niix")
    except importlib.metadata.PackageNotFoundError:
        found = shutil.which("dcm2niix")
        return Check("DICOM (dcm2niix)", bool(found) or None, found or "not installed: pip install dcm2niix")
    return Check("DICOM (dcm2niix)", True, version)


def _time(bundle: Bundle, device: Device, engine: Engine) -> Iterator[Check]:
    """Seconds per volume for each engine that the bundle has a file for."""
    preprocess: PreprocessConfig = bundle.spec.preprocess
    batch = np.random.default_rng(0).random((1, len(preprocess.contrasts), *_BENCH_SHAPE), np.float32)
    engines: list[Engine] = ["onnx"] if engine == "auto" else [engine]
    for name in engines:
        if (bundle.onnx if name == "onnx" else bundle.torchscript) is None:
            continue
        try:
            classifier = open_classifier(bundle, engine=name, device=device)
        except SsclfError as exc:
            yield Check(f"speed of {name}", None if engine == "auto" else False, str(exc))
            continue
        seconds = _median_seconds(lambda run=classifier.classify: run(batch))  # type: ignore[misc]
        yield Check(
            f"speed of {name} on {classifier.device}", True,
            f"{seconds:.3f} s a volume of {'×'.join(map(str, _BENCH_SHAPE))} voxels (inference alone)",
        )  # fmt: skip
        if name == "onnx" and classifier.device == "cpu":
            yield _time_in_8_bits(bundle, batch, classifier)
        if (count := TOGETHER.get(classifier.device, 1)) > 1:
            many = list(np.repeat(batch, count, axis=0))
            seconds = _median_seconds(partial(Batches(classifier).classify, many)) / count
            yield Check(
                f"speed of {name} on {classifier.device}, {count} at once", True, f"{seconds:.3f} s a volume"
            )


def _time_in_8_bits(bundle: Bundle, batch: NDArray[np.float32], classifier: Classifier) -> Check:
    """Seconds a volume in 8 bits, and how many times as fast that is; in turn, so that both meet the same load."""
    name = "speed of onnx in 8 bits on cpu"
    try:
        small = open_classifier(bundle.at("int8"), device="cpu")
    except SsclfError as exc:
        return Check(name, None, str(exc))
    times = [
        (
            _median_seconds(lambda: classifier.classify(batch), 1),
            _median_seconds(lambda: small.classify(batch), 1),
        )
        for _ in range(5)
    ]
    seconds = float(np.median([mine for _, mine in times]))
    ratio = float(np.median([plain / mine for plain, mine in times]))
    return Check(
        name, True, f"{seconds:.3f} s a volume, {ratio:.2f} times as fast as in 32 bits (--precision int8)"
    )


def time_extraction(bundle: Bundle, providers: Sequence[Any]) -> Iterator[Check]:
    """Seconds that the process that owns a GPU takes for a head, as a worker sees it.

    Args:
        providers: of ONNX Runtime; none where workers do without.
    """
    name = f"speed of brain extraction on {'cuda' if 'CUDA' in str(providers) else 'cpu'}"
    heads = {BOX_MODEL: BOX_SIZE, MASK_MODEL: MASK_SIZE}
    with lend(bundle.extraction, MASK_SIZE**3, providers) as owner:
        if owner is None:
            return
        networks = OwnedNetworks(owner.address)
        cubes = {
            model: np.random.default_rng(0).random((side,) * 3, np.float32) for model, side in heads.items()
        }
        if any(networks.ask(model, cube) is None for model, cube in cubes.items()):
            yield Check(name, None, "does not run there; workers do it on their processors")
            return
        seconds = _median_seconds(lambda: [networks.ask(model, cube) for model, cube in cubes.items()], 3)
    yield Check(name, True, f"{seconds:.3f} s a head (both networks, one head at a time)")


def _median_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))
