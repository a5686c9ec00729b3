"""A trained network as ONNX and TorchScript, and the gate that lets only equal ones through."""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ssclf.config import Architecture, ExportPrecision
from ssclf.domain.scores import softmax
from ssclf.errors import ParityError
from ssclf.io.files import whole_path
from ssclf.io.models.onnx_session import open_session
from ssclf.learning.networks import VolumeNetwork
from ssclf.learning.planar import PlanarNetwork, PlanarStem

#: In probability. Contract, "What must always hold", 3.
PARITY_TOLERANCE = 1e-4
#: The same for half precision, whose numbers have 11 bits, computed with or stored: untrained networks differ by up to
#: 2e-4.
HALF_TOLERANCE = 2e-3
#: Where 2-D convolutions alone are faster on CPUs: by 16 % (mc3) and 12 % (r2plus1d), but 5 % for r3d, within the
#: scatter, at four times the memory (scripts/bench_engines.py).
PLANAR: tuple[Architecture, ...] = ("mc3", "r2plus1d")
#: (N, D, H, W): one and several volumes, even and odd sizes, fewer voxels than the strides, flat and long ones.
PARITY_SHAPES = ((1, 24, 30, 26), (3, 17, 40, 33), (2, 5, 9, 12), (1, 1, 3, 2), (2, 9, 64, 31))
OUTPUTS = ("logits", "cam", "features")

Run = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], ...]]


class ExportedNetwork(nn.Module):
    """The function that a bundle holds: a volume to its logits, their class activation map and its features.

    With `half` the convolutions compute in 16 bits; what goes in and comes out, and the linear layer, keep 32.
    """

    def __init__(self, network: VolumeNetwork | PlanarNetwork | PlanarStem, *, half: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half() if half else network
        self.network.fc.float()
        self.dtype = torch.float16 if half else torch.float32

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, D, H, W) to logits (N, K), cam (N, K, d, h, w) and features (N, F).

        The map is the linear layer, without its bias, applied at every position of the last feature map. Average
        pooling and that layer end the network, so in eval mode the logits are the map's mean plus the bias.
        """
        maps = self.network.features(volume.to(self.dtype)).float()
        features = maps.mean(dim=(2, 3, 4))
        cam = F.conv3d(maps, self.network.fc.weight[:, :, None, None, None])
        return self.network.fc(features), cam, features


def export_onnx(
    network: VolumeNetwork,
    channels: int,
    path: Path,
    metadata: Mapping[str, str],
    *,
    planar: bool = True,
    precision: ExportPrecision = "fp32",
) -> None:
    """Write one ONNX file with N, D, H and W dynamic, and `metadata` inside.

    Args:
        planar: with 2-D convolutions alone, see `PLANAR`.
        precision: "fp16" is convolutions in 16 bits; "fp16-storage" weights of 16 bits in the file, which ONNX Runtime
            widens as it loads it, so that it computes in 32.

    Raises:
        ParityError: ONNX Runtime computes something else than the network.
    """
    form = PlanarNetwork(network) if planar else network
    written = ExportedNetwork(form, half=precision == "fp16").eval()
    write_onnx(written, network, channels, path, metadata, stored_in_half=precision == "fp16-storage")


def write_onnx(
    written: ExportedNetwork,
    network: VolumeNetwork,
    channels: int,
    path: Path,
    metadata: Mapping[str, str],
    *,
    stored_in_half: bool = False,
) -> None:
    """As `export_onnx`, for any form of a network that is `written` in its place.

    Raises:
        ParityError: what was written computes something else.
    """
    dim = torch.export.Dim
    shapes = {"volume": {0: dim("N"), 2: dim("D"), 3: dim("H"), 4: dim("W")}}
    with _quiet():
        program = torch.onnx.export(
            written,
            (torch.zeros(2, channels, 12, 20, 18),),
            dynamo=True,
            input_names=["volume"],
            output_names=list(OUTPUTS),
            dynamic_shapes=shapes,
            verbose=False,
        )
        assert program is not None
        _forget_origins(program.model)
        program.model.metadata_props.update(metadata)
        program.save(str(path), external_data=False)
    module = ExportedNetwork(network).eval()
    _check_onnx(
        module, channels, path, HALF_TOLERANCE if written.dtype == torch.float16 else PARITY_TOLERANCE
    )
    if stored_in_half:  # of a graph that has passed: all that differs now is the rounding
        _store_in_half(program.model.graph)
        program.save(str(path), external_data=False)
        _check_onnx(module, channels, path, HALF_TOLERANCE)


def _check_onnx(module: ExportedNetwork, channels: int, path: Path, tolerance: float) -> None:
    session = open_session(path, ["CPUExecutionProvider"], torch.get_num_threads())
    check_parity(
        module,
        channels,
        lambda volume: tuple(session.run(list(OUTPUTS), {"volume": volume})),
        path.name,
        tolerance=tolerance,
    )


def _store_in_half(graph: Any) -> None:
    """Put weights into 16 bits, with a Cast behind each that is constant, and so done once, when the file is loaded."""
    from onnxscript import ir

    for value in list(graph.initializers.values()):
        weights = value.const_value.numpy()
        # biases are few
        if weights.dtype != np.float32 or weights.ndim < 2:
            continue
        name = f"{value.name}.half"
        stored = ir.Value(name=name, const_value=ir.tensor(weights.astype(np.float16), name=name))
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[value.name]
        graph.register_initializer(stored)
        graph.insert_before(graph[0], cast)


def export_torchscript(
    network: VolumeNetwork, channels: int, path: Path, metadata: Mapping[str, str]
) -> None:
    """Write the same function for libtorch, with `metadata` as extra files.

    Raises:
        ParityError: libtorch computes something else than the network.
    """
    module = ExportedNetwork(network).eval()
    with _quiet(), torch.inference_mode():
        # not frozen: with its weights by name the file can be trained on (`ssclf train --from`); who loads it freezes
        traced = torch.jit.trace(module, torch.zeros(2, channels, 12, 20, 18), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files=dict(metadata))
        _forget_source_lines(path)
        loaded = torch.jit.freeze(torch.jit.load(str(path), map_location="cpu").eval())

    def run(volume: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        with torch.inference_mode():
            return tuple(output.numpy() for output in loaded(torch.from_numpy(volume)))

    check_parity(module, channels, run, path.name)


def check_parity(
    module: ExportedNetwork, channels: int, run: Run, name: str, *, tolerance: float = PARITY_TOLERANCE
) -> None:
    """Compare an exported network with the trained one on volumes of several shapes.

    Args:
        run: the exported network: volumes (N, C, D, H, W) to `OUTPUTS`.
        name: of the file, for messages.
        tolerance: in probability.

    Raises:
        ParityError: probabilities differ by more than that, or logits, maps or features by more than ten times that
            part of their range.
    """
    random = np.random.default_rng(0)
    for count, *size in PARITY_SHAPES:
        volume = random.random((count, channels, *size), np.float32)
        with torch.inference_mode():
            expected = [output.numpy() for output in module(torch.from_numpy(volume))]
        found = run(volume)
        differences = {"probabilities": np.abs(softmax(found[0]) - softmax(expected[0])).max() / tolerance}
        for output, ours, theirs in zip(OUTPUTS, expected, found, strict=True):
            scale = max(float(np.abs(ours).max()), 1e-6)
            differences[output] = np.abs(ours - theirs).max() / scale / (10 * tolerance)
        for what, difference in differences.items():
            if not difference <= 1:
                raise ParityError(
                    f"{name}: {what} of a volume of shape {volume.shape} differ from the trained network's by "
                    f"{difference:.3g} times what is allowed; nothing was exported. Please report the versions of "
                    "torch, onnx and onnxruntime."
                )


def export_versions() -> dict[str, str]:
    """Packages that decide what an exported file holds."""
    return {name: importlib.metadata.version(name) for name in ("onnx", "onnxscript")}


def _forget_origins(model: Any) -> None:
    """Drop notes of the exporter about each node, among them paths of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _forget_source_lines(path: Path) -> None:
    """Drop TorchScript's debugging files, which hold paths of this machine."""
    with (
        whole_path(path) as partial,
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as target,
    ):
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(entry.filename, source.read(entry))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print and warn about their own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
