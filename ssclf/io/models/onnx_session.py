"""Sessions of ONNX Runtime, with its telemetry off.

onnxruntime's wheels send telemetry unless told not to before the import: every import of it goes through here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from ssclf.errors import MissingDependencyError, ModelError
from ssclf.io.memory import free_memory, room_for
from ssclf.io.models.checksums import open_regular
from ssclf.io.models.onnx_graph import MAX_BYTES, OnnxSummary, read_onnx

log = logging.getLogger(__name__)

#: Standard output is one for all threads.
_REDIRECTED = threading.Lock()


@functools.cache
def has_vnni() -> bool:
    """Whether this CPU adds products of 8 bits in 32; False where it cannot be told (not Linux)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


def import_onnxruntime() -> ModuleType:
    """onnxruntime with its telemetry off and its warnings quiet.

    Raises:
        MissingDependencyError: neither onnxruntime nor onnxruntime-gpu is installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingDependencyError(
            'ONNX Runtime is not installed; install one of `pip install "ssclf[cpu]"` '
            'or `pip install "ssclf[gpu]"`.'
        ) from exc
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


def open_session(model: Path | bytes, providers: list[Any], threads: int, *, keep_memory: bool = True) -> Any:
    """Load a network, which is looked through first: see `read_onnx`.

    Args:
        threads: 0 for every core that this process may use.
        keep_memory: whether the memory of a run is kept for the next one: faster by a tenth.

    Raises:
        ModelError: not a network that this onnxruntime can run, or one that `ssclf export` does not write.
    """
    name = model.name if isinstance(model, Path) else "model"
    content = _content(model) if isinstance(model, Path) else model
    read_onnx(content, name)
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.enable_cpu_mem_arena = keep_memory
    # One block for all of a run is new to the process each time, and the kernel clears every page of it.
    options.enable_mem_pattern = keep_memory
    # CPUs before VNNI add pairs of 8-bit products in 16 bits, and cut off what is too much. Exact numbers instead take
    # five times as long where VNNI would have been exact anyway. Of no effect on networks that are not in 8 bits.
    options.add_session_config_entry("session.x64quantprecision", "0" if has_vnni() else "1")
    # A thread that spins for work steals the core that prepares the next volume.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with _surroundings(providers):
            # what was looked through is what is loaded: the bytes, whatever happens to the file meanwhile
            return ort.InferenceSession(content, options, providers=providers)
    except Exception as exc:  # onnxruntime's exceptions share no public base
        raise ModelError(
            f"{name}: ONNX Runtime {ort.__version__} cannot load it ({type(exc).__name__}); "
            "the file is damaged or newer than this onnxruntime."
        ) from exc


class _FromThisThread(io.StringIO):
    """Keeps what this thread prints; what others print goes where it did."""

    def __init__(self, others: TextIO) -> None:
        super().__init__()
        self._others, self._thread = others, threading.get_ident()

    def write(self, text: str) -> int:
        return super().write(text) if threading.get_ident() == self._thread else self._others.write(text)


@contextlib.contextmanager
def kept_quiet() -> Iterator[io.StringIO]:
    """What libraries print in the block, one thread at a time: two would leave each other's in place for good."""
    with _REDIRECTED, contextlib.redirect_stdout(_FromThisThread(sys.stdout)) as printed:
        yield printed


@contextlib.contextmanager
def _surroundings(providers: list[Any]) -> Iterator[None]:
    if providers == ["CPUExecutionProvider"]:
        # what is constant in a network is worked out when it is loaded, and may be made to take any memory
        with room_for(free_memory()):
            yield
        return
    # onnxruntime prints where CUDA does not start and takes the CPU; callers look at what it took
    with kept_quiet() as printed:
        yield
    if printed.getvalue():
        log.debug("%s", printed.getvalue())


def describe(path: Path) -> OnnxSummary:
    """What an ONNX file says of itself, without loading it.

    Raises:
        ModelError: not an ONNX file, or one that `ssclf export` does not write.
    """
    return read_onnx(_content(path), path.name)


def _content(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise ModelError(f"{path.name}: cannot be read ({exc.strerror or exc}).") from exc
    if len(content) > MAX_BYTES:
        raise ModelError(f"{path.name}: expected an ONNX file, found more than {MAX_BYTES / 1e9:.1f} GB.")
    return content
