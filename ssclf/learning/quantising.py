"""A trained network in 8 bits, for CPUs that multiply these faster than numbers of 32 bits (VNNI, AMX).

Activations are unsigned and weights signed, with a scale for each output channel: ONNX Runtime has its fast kernels for
this pair, and fuses convolutions with their scales, ReLU and sums, so that nothing but 8 bits passes between them. The
linear layer and the map, which end the network, keep 32 bits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ssclf.io.models.onnx_session import import_onnxruntime, open_session
from ssclf.learning.exporting import ExportedNetwork, write_onnx
from ssclf.learning.networks import VolumeNetwork
from ssclf.learning.planar import PlanarStem

#: Where the stem is better off with slices as channels: 7×7 kernels on one channel, not the small network's 3×3×3.
_PLANAR_STEM = ("mc3", "r2plus1d", "r3d")
#: Volumes that tell which convolutions cost most.
_RANKING = 2
#: Operators between which tensors are in 8 bits.
_OPERATORS = ["Add", "Conv", "Gather", "Pad", "Relu", "Reshape", "Transpose"]
log = logging.getLogger(__name__)
Batch = NDArray[np.float32]


class Quantiser:
    """Makes copies of a network in 8 bits, with any of its convolutions left as they are."""

    def __init__(
        self,
        network: VolumeNetwork,
        architecture: str,
        channels: int,
        folder: Path,
        volumes: Callable[[], Iterator[Batch]],
    ) -> None:
        """Find the range of every activation: the smallest and largest value over all volumes.

        Args:
            folder: existing, for the network in 32 bits and the ranges.
            volumes: gives network inputs (1, C, D, H, W), each time it is called.

        Raises:
            ParityError: see `export_onnx`.
        """
        import_onnxruntime()  # with its telemetry off, before anything below loads it
        from onnxruntime.quantization import create_calibrator

        path = folder / "model.onnx"
        form = PlanarStem(network) if architecture in _PLANAR_STEM else network
        write_onnx(ExportedNetwork(form).eval(), network, channels, path, {})
        self._content = path.read_bytes()
        self._volumes = volumes
        calibrator = create_calibrator(path, _OPERATORS, augmented_model_path=str(folder / "ranges.onnx"))
        calibrator.collect_data(_Reader(volumes()))
        self._ranges = calibrator.compute_data()
        graph = onnx.load_from_string(self._content).graph
        #: Name of each convolution, in their order → its operator.
        self._nodes = {
            _layer(node.input[1]): node.name
            for node in graph.node
            if node.op_type == "Conv" and "cam" not in node.output
        }
        self._rest = [node.name for node in graph.node if "cam" in node.output]

    @property
    def layers(self) -> tuple[str, ...]:
        """Convolutions that can be in 8 bits, in their order."""
        return tuple(self._nodes)

    def quantise(self, kept: Sequence[str], metadata: Mapping[str, str] | None = None) -> bytes:
        """The network as an ONNX file, with its convolutions in 8 bits but those in `kept`."""
        layers = [name for name in self._nodes if name not in kept]
        return self._quantise(layers, _OPERATORS, metadata or {})

    def attempts(self) -> Iterator[tuple[str, ...]]:
        """Which convolutions to keep in 32 bits: none, the first, then those that cost most, up to half of them."""
        yield ()
        yield self.layers[:1]
        ranked = self._ranked()
        count = 2
        while count <= len(ranked) // 2:
            yield tuple(name for name in self.layers if name in ranked[:count])
            count *= 2

    def _ranked(self) -> list[str]:
        """Convolutions by what they alone in 8 bits do to the logits, the worst first."""
        batches = [batch for batch, _ in zip(self._volumes(), range(_RANKING), strict=False)]
        expected = [_logits(self._content, batch) for batch in batches]
        errors = {}
        for name in self.layers:
            content = self._quantise([name], ["Conv"], {})
            found = [_logits(content, batch) for batch in batches]
            errors[name] = float(np.abs(np.array(found) - expected).max())
            log.info("8 bits: %s alone moves a logit by up to %.3g", name, errors[name])
        return sorted(errors, key=lambda name: -errors[name])

    def _quantise(
        self, layers: Sequence[str], operators: Sequence[str], metadata: Mapping[str, str]
    ) -> bytes:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        skipped = [node for name, node in self._nodes.items() if name not in layers]
        with _quiet():
            quantiser = QDQQuantizer(
                onnx.shape_inference.infer_shapes(onnx.load_from_string(self._content)),
                True,  # a scale for each channel of the weights
                False,  # all 8 bits of them: `open_session` asks for exact sums
                QuantType.QInt8,
                QuantType.QUInt8,
                self._ranges,
                [],
                [*skipped, *self._rest],
                list(operators),
                {},
            )
            quantiser.quantize_model()
        model = quantiser.model.model
        onnx.helper.set_model_props(model, dict(metadata))
        content: bytes = model.SerializeToString()
        return content


class _Reader:
    """Volumes as onnxruntime's calibrator asks for them."""

    def __init__(self, volumes: Iterator[Batch]) -> None:
        self._volumes = volumes

    def get_next(self) -> dict[str, Batch] | None:
        volume = next(self._volumes, None)
        return None if volume is None else {"volume": volume}


def _layer(weight: str) -> str:
    """The convolution that weights of this name belong to, as `VolumeNetwork` calls it, or nearly so."""
    return weight.removeprefix("network.").removesuffix(".weight").replace(".links", "")


def _logits(content: bytes, batch: Batch) -> Any:
    session = open_session(content, ["CPUExecutionProvider"], 0)
    return session.run(["logits"], {"volume": batch})[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's tools warn about each tensor that they leave as it is, to the root of all loggers."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
