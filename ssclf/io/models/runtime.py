"""An exported model as something that classifies arrays: ONNX Runtime, TorchScript on request.

onnxruntime lists CUDA on machines without a GPU and falls back to the CPU without an error: what a
classifier reports as its device is what its session really uses.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ssclf.config import Device, Engine
from ssclf.domain.model_spec import ModelSpec
from ssclf.errors import MissingDependencyError, ModelError, VolumeError
from ssclf.io.image_hints import image_hint
from ssclf.io.memory import free_memory, room_for
from ssclf.io.models.bundle import Bundle
from ssclf.io.models.onnx_session import import_onnxruntime, kept_quiet, open_session

log = logging.getLogger(__name__)

#: Memory that a network takes on a CPU, in bytes per voxel of its input; the system kills who takes more than there
#: is. Measured with r2plus1d, which takes most: 1130 (ONNX Runtime, 128 x 192 x 192 voxels), 530 (libtorch).
_ONNX_BYTES, _TORCHSCRIPT_BYTES = 1300, 650


@dataclass(frozen=True)
class ClassifierOutput:
    """Attributes:
    logits: (N, K) float32, not calibrated.
    cam: (N, K, d, h, w) float32; its mean over (d, h, w) plus the bias of the linear layer is the logits.
    features: (N, F) float32, the last feature map averaged over space; None where the model has none.
    """

    logits: NDArray[np.float32]
    cam: NDArray[np.float32]
    features: NDArray[np.float32] | None = None


class Classifier(Protocol):
    """A model in memory. `device` is where it really runs."""

    spec: ModelSpec
    engine: str
    device: str

    def classify(self, batch: NDArray[np.float32]) -> ClassifierOutput:
        """(N, C, D, H, W) float32 in, scores out.

        Raises:
            VolumeError: on a CPU, the volume takes more memory than was free when the model was loaded; the network
                took longer than it may; or the scores are not finite.
            ModelError: the network does not answer what its spec says.
        """
        ...


def open_classifier(
    bundle: Bundle,
    *,
    engine: Engine = "auto",
    device: Device = "auto",
    threads: int = 0,
    timeout_s: float | None = None,
) -> Classifier:
    """Load a bundle's network.

    Args:
        engine: "auto" is ONNX Runtime; TorchScript, which runs code of whoever made the file, only by its name.
        device: "auto" takes CUDA where it really works and says what was taken; "cuda" insists.
        threads: CPU threads; 0 for as many as there are cores.
        timeout_s: limit for one call, asked after each operator of the network; None for none. TorchScript, which
            has no such question, runs to its end.

    Raises:
        ModelError: the bundle has no file for the engine, the file is damaged, or CUDA was asked for
            and is not there.
        MissingDependencyError: the engine is not installed.
    """
    path = model_file(bundle, engine)
    classifier: Classifier
    if engine == "torchscript":
        classifier = TorchScriptClassifier(path, bundle.spec, device, threads)
    else:
        classifier = OnnxClassifier(path, bundle.spec, device, threads, timeout_s)
    log.info("%s: %s on %s", bundle.spec.name, classifier.engine, classifier.device)
    return classifier


def model_file(bundle: Bundle, engine: Engine) -> Path:
    """The file of a bundle that an engine loads.

    Raises:
        ModelError: the bundle has none.
    """
    wanted = "torchscript" if engine == "torchscript" else "onnx"
    path = bundle.onnx if wanted == "onnx" else bundle.torchscript
    if path is None:
        if wanted == "onnx" and bundle.int8:
            raise ModelError(
                f"{bundle.path.name}: holds a network in 8 bits alone; ask for it with --precision int8."
            )
        trust = (
            "; it has TorchScript, which runs code of whoever made it: where you trust them, pass --engine torchscript"
            if wanted == "onnx" and bundle.torchscript
            else ""
        )
        raise ModelError(
            f"{bundle.path.name}: expected a model for --engine {wanted}, found none in the bundle; "
            f"export it with `ssclf export --format {wanted}`{trust}."
        )
    return path


def check_answer(output: ClassifierOutput, spec: ModelSpec, count: int) -> ClassifierOutput:
    """What a network answered for `count` volumes, once it is what the spec promises.

    Raises:
        ModelError: scores or maps of another shape.
        VolumeError: numbers that are not finite.
    """
    classes = len(spec.class_names)
    features = output.features
    if (
        output.logits.shape != (count, classes)
        or output.cam.ndim != 5
        or output.cam.shape[:2] != (count, classes)
        or (features is not None and (features.ndim != 2 or len(features) != count))
    ):
        raise ModelError(
            f"{spec.name}: expected {classes} scores and maps a volume, as many as the spec names classes, found "
            f"scores of shape {output.logits.shape} and maps of {output.cam.shape}; its file and its spec.json do not "
            "belong together."
        )
    for values in (output.logits, output.cam, features):
        if values is not None and not np.isfinite(values).all():
            raise VolumeError(
                f"the network {spec.name} answers with what is no number; its weights are damaged, or it cannot take "
                "this volume in half precision."
            )
    return output


def cuda_providers(ort: Any, **options: str) -> list[Any]:
    """What to ask a session for: CUDA with the CPU behind it. Whether it came, `get_providers()` tells.

    Args:
        options: of the CUDA provider, in the place of ours.
    """
    if hasattr(ort, "preload_dlls"):
        # Finds CUDA and cuDNN in their wheels; prints what it misses, which doctor explains better.
        with kept_quiet():
            ort.preload_dlls()
    # HEURISTIC: an exhaustive search would run again for every new shape of volume. TF32, which is ONNX Runtime's
    # default, keeps 10 bits of a factor's 23: too few for probabilities that agree to 1e-4.
    ours = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0", **options}
    return [("CUDAExecutionProvider", ours), "CPUExecutionProvider"]


def cuda_if_built() -> list[Any]:
    """`cuda_providers` where this onnxruntime is a build for CUDA, whether or not that starts here; else nothing, and
    without the time that importing it takes."""
    spec = importlib.util.find_spec("onnxruntime")
    folders = (spec.submodule_search_locations or []) if spec else []
    if not any(list(Path(folder, "capi").glob("*onnxruntime_providers_cuda*")) for folder in folders):
        return []
    return cuda_providers(import_onnxruntime())


class _Room:
    """Memory, as it was before the first volume: afterwards the engine holds some and takes it again."""

    def __init__(self, bytes_per_voxel: int) -> None:
        self._bytes = free_memory()
        self._per_voxel = bytes_per_voxel

    def check(self, batch: NDArray[np.float32]) -> None:
        """Raises:
        VolumeError: a batch (N, C, D, H, W) does not fit.
        """
        needed = batch[:, 0].size * self._per_voxel
        if needed > self._bytes:
            raise VolumeError(
                f"the network would look at {' x '.join(map(str, batch.shape[2:]))} voxels, which takes about "
                f"{needed / 1e9:.1f} GB of memory, and {self._bytes / 1e9:.1f} GB are free; crop the volume to the "
                "head, or use a machine with more memory."
            )


class OnnxClassifier:
    """`model.onnx` on ONNX Runtime."""

    engine = "onnx"

    def __init__(
        self, path: Path, spec: ModelSpec, device: Device, threads: int, timeout_s: float | None
    ) -> None:
        self.spec = spec
        self._timeout_s = timeout_s
        ort = import_onnxruntime()
        self._run_options = ort.RunOptions
        self._session = None
        cuda_build = "CUDAExecutionProvider" in ort.get_available_providers()
        if device != "cpu" and cuda_build:
            session = open_session(path, cuda_providers(ort), threads)
            if "CUDAExecutionProvider" in session.get_providers():
                self._session = session
        if self._session is None:
            if device == "cuda":
                reason = (
                    "it does not start on this machine: check with nvidia-smi that there is a GPU and its driver is "
                    "new enough (CUDA 13 builds need 580 or later; containers need --gpus all)"
                    if cuda_build
                    else 'this onnxruntime is a build for the CPU: install `pip install "ssclf[gpu]"` instead of [cpu]'
                )
                raise ModelError(
                    f"--device cuda: CUDA is not available to ONNX Runtime; {reason}, or use --device cpu."
                    + image_hint("cuda")
                )
            self._session = open_session(path, ["CPUExecutionProvider"], threads)
        self.device = "cuda" if "CUDA" in self._session.get_providers()[0] else "cpu"
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._room = _Room(_ONNX_BYTES) if self.device == "cpu" else None
        self._dtype = np.float16 if "float16" in self._session.get_inputs()[0].type else np.float32
        if not {"logits", "cam"} <= set(self._outputs):
            raise ModelError(f"{path.name}: expected outputs logits and cam, found {self._outputs}.")

    def classify(self, batch: NDArray[np.float32]) -> ClassifierOutput:
        if self._room:
            self._room.check(batch)
        names = [name for name in ("logits", "cam", "features") if name in self._outputs]
        with room_for(free_memory()) if self._room else contextlib.nullcontext():
            results = self._run(names, {"volume": batch.astype(self._dtype, copy=False)})
        output = ClassifierOutput(*(np.asarray(r, np.float32) for r in results))
        return check_answer(output, self.spec, len(batch))

    def _run(self, names: list[str], inputs: dict[str, NDArray[Any]]) -> Any:
        assert self._session is not None
        if self._timeout_s is None:
            return self._session.run(names, inputs)
        options = self._run_options()
        timer = threading.Timer(self._timeout_s, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return self._session.run(names, inputs, options)
        except Exception as exc:  # onnxruntime's exceptions share no public base
            if options.terminate:
                raise VolumeError(f"the network took longer than {self._timeout_s:g} s (--timeout).") from exc
            raise
        finally:
            timer.cancel()


class TorchScriptClassifier:
    """`model.torchscript.pt` on libtorch; the only place outside ssclf.learning that imports torch."""

    engine = "torchscript"

    def __init__(self, path: Path, spec: ModelSpec, device: Device, threads: int) -> None:
        self.spec = spec
        log.warning("%s: TorchScript runs code of whoever made this file", path)
        try:
            import torch
        except ImportError as exc:
            raise MissingDependencyError(
                '--engine torchscript needs torch; install `pip install "ssclf[train]"`, or use --engine onnx.'
            ) from exc
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise ModelError(
                "--device cuda: torch finds no GPU on this machine; check the driver with nvidia-smi and that "
                "torch is a CUDA build, or use --device cpu."
            )
        self.device = "cuda" if cuda and device != "cpu" else "cpu"
        if threads:
            torch.set_num_threads(threads)
        try:
            module = torch.jit.load(str(path), map_location=self.device).eval()
            # an older export is frozen already, and has no weights by name
            self._module = torch.jit.freeze(module) if module.state_dict() else module
        except (RuntimeError, ValueError) as exc:
            raise ModelError(f"{path.name}: TorchScript cannot load it; the file is damaged.") from exc
        self._room = _Room(_TORCHSCRIPT_BYTES) if self.device == "cpu" else None
        self._torch = torch

    def classify(self, batch: NDArray[np.float32]) -> ClassifierOutput:
        if self._room:
            self._room.check(batch)
        with self._torch.inference_mode():
            outputs = self._module(self._torch.from_numpy(np.ascontiguousarray(batch)).to(self.device))
        if not isinstance(outputs, tuple) or len(outputs) not in (2, 3):
            raise ModelError(f"{self.spec.name}: expected logits, cam and features, found something else.")
        output = ClassifierOutput(*(o.float().cpu().numpy() for o in outputs))
        return check_answer(output, self.spec, len(batch))
