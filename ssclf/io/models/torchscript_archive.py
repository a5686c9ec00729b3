"""The weights and the spec inside a TorchScript file, read without running it: loading one runs its program.

The file is a zip. `data.pkl` says in a small stack language which tensor has which name; it is followed here opcode by
opcode, and only what TorchScript writes for modules of tensors is understood: nothing is imported, called or built.

Source: torch/csrc/jit/serialization/pickler.h and docs/serialization.md of PyTorch.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf.errors import ModelError

#: `data.pkl` of our networks has 15 kB; a spec with its statistics some hundred.
_MAX_TEXT = 1 << 24
_TYPES = {"torch FloatStorage": "<f4", "torch HalfStorage": "<f2", "torch LongStorage": "<i8"}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")


@dataclass(frozen=True)
class _Name:
    """A class or function that the file names; nothing is imported."""

    text: str


@dataclass
class _Module:
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Tensor:
    type: str
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_entry(path: Path, ending: str) -> bytes:
    """A small entry of the archive, found by the end of its name; empty where there is none.

    Raises:
        ModelError: it cannot be read, or is no small one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next((i for i in archive.infolist() if i.filename.endswith(ending)), None)
            if entry is None:
                return b""
            if entry.file_size > _MAX_TEXT:
                raise ModelError(
                    f"{path.name}: {ending} claims {entry.file_size} bytes; the file is no model."
                )
            return archive.read(entry)
    except (OSError, ValueError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile) as exc:
        raise ModelError(f"{path.name}: expected a TorchScript file, found a damaged one.") from exc


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Tensors by the name that `state_dict()` would give them; none where they were merged into the program.

    Raises:
        ModelError: damaged, or not of the kind that `ssclf export` writes.
    """
    wrong = f"{path.name}: expected a TorchScript file as `ssclf export` writes it, found another or a damaged one."
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if entries["data.pkl"].file_size > _MAX_TEXT:
                raise ModelError(wrong)
            named = _named(_follow(archive.read(entries["data.pkl"])))
            size = path.stat().st_size
            weights = {}
            for name, tensor in named.items():
                entry = entries[f"data/{tensor.key}"]
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                    raise ModelError(wrong)
                weights[name] = _array(archive.read(entry), tensor)
            return weights
    except (
        OSError, KeyError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError, RuntimeError,
        EOFError, zipfile.BadZipFile,
    ) as exc:  # fmt: skip
        raise ModelError(wrong) from exc


def _array(raw: bytes, tensor: _Tensor) -> NDArray[Any]:
    """A copy of a tensor in a storage, wherever its strides lead; never beyond.

    Raises:
        ValueError: they lead out of it.
    """
    storage = np.frombuffer(raw, tensor.type)
    if (
        math.prod(tensor.shape) > storage.size
        or min((tensor.offset, *tensor.shape, *tensor.strides), default=0) < 0
    ):
        raise ValueError("a tensor larger than its storage")
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset + last >= storage.size:
        raise ValueError("a tensor beyond its storage")
    steps = tuple(step * storage.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, steps).copy()


def _named(root: Any) -> dict[str, _Tensor]:
    """Tensors of a tree of modules, by their path in it."""
    found: dict[str, _Tensor] = {}
    pending: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    while pending:
        prefix, module = pending.pop()
        if not isinstance(module, _Module) or id(module) in seen:
            raise ValueError("expected a tree of modules")
        seen.add(id(module))
        for name, value in module.attributes.items():
            if isinstance(value, _Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
    return found


def _follow(program: bytes) -> Any:
    """The one object that `data.pkl` describes: modules, tensors and plain values.

    Raises:
        ValueError, KeyError, IndexError, TypeError: something else than modules of tensors.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(program):
        name: str = opcode.name
        if name == "STOP":
            break
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NUMBERS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[int(str(argument))] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif name == "GLOBAL":
            stack.append(_Name(str(argument)))
        elif name != "PROTO":
            _STEPS[name](stack)
    (result,) = stack
    return result


def _marked(stack: list[Any]) -> list[Any]:
    """What lies above the last mark, taken off with it."""
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _new_object(stack: list[Any]) -> None:
    arguments, kind = stack.pop(), stack.pop()
    if arguments != () or not isinstance(kind, _Name) or not kind.text.startswith("__torch__."):
        raise ValueError("expected a module")
    stack.append(_Module())


def _set_items(stack: list[Any]) -> None:
    values = _marked(stack)
    stack[-1].update(zip(values[::2], values[1::2], strict=True))


def _build(stack: list[Any]) -> None:
    state, module = stack.pop(), stack[-1]
    if not isinstance(module, _Module) or not isinstance(state, dict):
        raise ValueError("expected the attributes of a module")
    module.attributes.update(state)


def _storage(stack: list[Any]) -> None:
    kind, storage, key, _, _ = stack.pop()
    if kind != "storage":
        raise ValueError("expected a storage")
    stack.append((_TYPES[storage.text], str(key)))


def _reduce(stack: list[Any]) -> None:
    arguments, function = stack.pop(), stack.pop()
    if function == _Name("collections OrderedDict") and arguments == ():
        stack.append({})
    elif function == _Name(_REBUILD):
        (kind, key), offset, shape, strides = arguments[:4]
        stack.append(_Tensor(kind, key, int(offset), tuple(map(int, shape)), tuple(map(int, strides))))
    else:
        raise ValueError("expected a tensor")


_STEPS: Mapping[str, Any] = {
    "MARK": lambda stack: stack.append(_MARK),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "TUPLE": lambda stack: stack.append(tuple(_marked(stack))),
    "TUPLE1": lambda stack: stack.append((stack.pop(),)),
    "NEWOBJ": _new_object,
    "SETITEMS": _set_items,
    "BUILD": _build,
    "BINPERSID": _storage,
    "REDUCE": _reduce,
}
