"""Sessions of ONNX Runtime, with its telemetry off.

onnxruntime's wheels send telemetry unless told not to before the import: every import of it goes through here.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from ssclf.errors import MissingDependencyError, ModelError

log = logging.getLogger(__name__)


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
    """Load a network.

    Args:
        threads: 0 for every core that this process may use.
        keep_memory: whether the memory of a run is kept for the next one: faster by a tenth.

    Raises:
        ModelError: not a network that this onnxruntime can run.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.enable_cpu_mem_arena = keep_memory
    # A thread that spins for work steals the core that prepares the next volume.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # onnxruntime prints where CUDA does not start and takes the CPU; callers look at what it took.
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model), options, providers=providers
            )
    except Exception as exc:  # onnxruntime's exceptions share no public base
        name = model.name if isinstance(model, Path) else "model"
        raise ModelError(
            f"{name}: ONNX Runtime {ort.__version__} cannot load it ({type(exc).__name__}); "
            "the file is damaged or newer than this onnxruntime."
        ) from exc
    if printed.getvalue():
        log.debug("%s", printed.getvalue())
    return session


def read_metadata(path: Path) -> dict[str, str]:
    """Key-value pairs stored in an ONNX file.

    Raises:
        ModelError: not an ONNX file.
    """
    session = open_session(path, ["CPUExecutionProvider"], 1)
    metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return metadata
