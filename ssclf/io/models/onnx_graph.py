"""What an ONNX file holds, read without running it and without the onnx package, and what is refused in one.

A network that `ssclf export` writes is one flat list of arithmetic. Whatever branches, loops, calls functions of its
own, or lies outside its file could take any time or memory, or is code that nobody here has seen.

Source: onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (field numbers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ssclf.errors import ModelError

#: What the exporters write for the three networks and deepbet's two, planar or not, in 32, 16 and 8 bits, and what
#: older versions of them wrote in its place.
OPERATORS = frozenset(
    (
        "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Constant", "Conv", "ConvTranspose",
        "DequantizeLinear", "Div", "Flatten", "Gather", "Gemm", "GlobalAveragePool", "Identity",
        "InstanceNormalization", "MatMul", "MaxPool", "Mul", "Pad", "QuantizeLinear", "Range", "ReduceMean", "Relu",
        "Reshape", "Shape", "Sigmoid", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze",
    )
)  # fmt: skip
_DOMAINS = ("", "ai.onnx")
#: protobuf's own limit: a message of more cannot be loaded anyway.
MAX_BYTES = (1 << 31) - 1
#: ONNX Runtime's time to load a network grows faster than its number of operators; ours have some hundred.
MAX_NODES = 10_000
#: Of ModelProto; of GraphProto; of NodeProto; of AttributeProto; of TensorProto.
_GRAPH, _METADATA, _TRAINING, _FUNCTIONS = 7, 14, 20, 25
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _SPARSE = 1, 5, 11, 12, 15
_OP_TYPE, _ATTRIBUTE, _DOMAIN = 4, 5, 7
_INT, _TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE_TENSORS = 3, 5, 6, 10, 11, (22, 23)
_DATA_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 2, 13, 14
#: Values of that type.
_INT8, _FLOAT16 = 3, 10


@dataclass(frozen=True)
class OnnxSummary:
    """Attributes:
    metadata: key-value pairs stored in the file.
    inputs, outputs: name → sizes, None where one is dynamic or unknown.
    types: of its weights, as TensorProto numbers them.
    cast_to: types that anything is cast to.
    """

    metadata: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    outputs: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    types: set[int] = field(default_factory=set)
    cast_to: set[int] = field(default_factory=set)

    @property
    def precision(self) -> str:
        """The numbers that it computes in: "int8", "fp16" or "fp32". What has weights alone in 16 bits, and casts them
        to 32, computes in 32; a network in 16 bits casts its volume to them."""
        if _INT8 in self.types:
            return "int8"
        return "fp16" if _FLOAT16 in self.types and _FLOAT16 in self.cast_to else "fp32"


def read_onnx(content: bytes, name: str) -> OnnxSummary:
    """Look through a network before anything loads it.

    Args:
        content: the file.
        name: of the file, for messages.

    Raises:
        ModelError: not ONNX, or with something in it that `ssclf export` does not write.
    """
    summary = OnnxSummary()
    graphs = 0
    try:
        for number, value in _fields(memoryview(content)):
            if number == _GRAPH:
                graphs += 1
                _read_graph(_message(value), summary)
            elif number == _METADATA:
                pair = dict(_fields(_message(value)))
                summary.metadata[_text(pair.get(1))] = _text(pair.get(2))
            elif number in (_TRAINING, _FUNCTIONS):
                raise ModelError("a part that ssclf export does not write (functions or training steps)")
    except ModelError as exc:
        raise ModelError(
            f"{name}: expected a network as `ssclf export` writes it, found {exc}; it is not opened. Use a bundle "
            "whose origin you know."
        ) from exc
    except (ValueError, IndexError) as exc:
        raise ModelError(f"{name}: expected an ONNX file, found something else or a damaged one.") from exc
    if graphs != 1:
        raise ModelError(f"{name}: expected an ONNX file with one network, found {graphs}.")
    return summary


def _read_graph(graph: memoryview, summary: OnnxSummary) -> None:
    nodes = 0
    for number, value in _fields(graph):
        if number == _NODE:
            nodes += 1
            if nodes > MAX_NODES:
                raise ModelError(f"more than {MAX_NODES} operators")
            _check_node(_message(value), summary)
        elif number == _INITIALIZER:
            _check_tensor(_message(value), summary)
        elif number == _SPARSE:
            raise ModelError("sparse weights")
        elif number in (_INPUT, _OUTPUT):
            name, sizes = _read_value(_message(value))
            (summary.inputs if number == _INPUT else summary.outputs)[name] = sizes


def _check_node(node: memoryview, summary: OnnxSummary) -> None:
    operator = domain = ""
    whole: set[int] = set()
    for number, value in _fields(node):
        if number == _OP_TYPE:
            operator = _text(value)
        elif number == _DOMAIN:
            domain = _text(value)
        elif number == _ATTRIBUTE:
            for part, inner in _fields(_message(value)):
                if part in (_SUBGRAPH, _SUBGRAPHS, *_SPARSE_TENSORS):
                    raise ModelError("a network inside an operator, or sparse weights")
                if part in (_TENSOR, _TENSORS):
                    _check_tensor(_message(inner), summary)
                if part == _INT and isinstance(inner, int):
                    whole.add(inner)
    if operator == "Cast":
        summary.cast_to.update(whole)
    if domain not in _DOMAINS or operator not in OPERATORS:
        raise ModelError(f"the operator {f'{domain}.' if domain else ''}{operator}"[:80])


def _check_tensor(tensor: memoryview, summary: OnnxSummary) -> None:
    for number, value in _fields(tensor):
        if number == _DATA_TYPE and isinstance(value, int):
            summary.types.add(value)
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value):
            raise ModelError("weights in another file")


def _read_value(info: memoryview) -> tuple[str, tuple[int | None, ...]]:
    """Name and sizes of an input or output: ValueInfoProto, down to the dimensions of its TensorShapeProto."""
    name, sizes = "", []
    for number, value in _fields(info):
        if number == 1:
            name = _text(value)
        elif number == 2:
            for tensor in _inside(_message(value), 1):
                for shape in _inside(tensor, 2):
                    for dimension in _inside(shape, 1):
                        size = dict(_fields(dimension)).get(1)
                        sizes.append(size if isinstance(size, int) else None)
    return name, tuple(sizes)


def _inside(message: memoryview, wanted: int) -> list[memoryview]:
    return [_message(value) for number, value in _fields(message) if number == wanted]


def _message(value: int | memoryview | None) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("expected a message")
    return value


def _text(value: int | memoryview | None) -> str:
    return bytes(_message(value)).decode("utf-8") if value is not None else ""


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field of a protobuf message; nothing is copied.

    Raises:
        ValueError, IndexError: not a message.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        value: int | memoryview
        if kind == 0:
            value, position = _varint(message, position)
        else:
            if kind == 2:
                size, position = _varint(message, position)
            else:
                size = {1: 8, 5: 4}.get(kind, -1)
            if size < 0 or position + size > len(message):
                raise ValueError("cut short")
            value = message[position : position + size]
            position += size
        yield key >> 3, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("a number of more than 64 bits")
