"""Save and load a run's state: state dicts and plain values only, so that loading runs no code."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ssclf.errors import ModelError, OutputError
from ssclf.io.files import disk_trouble, whole_path


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a state; the file appears whole or stays as it was, also when the machine stops.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_path(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as exc:  # torch's own, about positions, for a disk that is full
        trouble = exc if isinstance(exc, OSError) else disk_trouble(exc)
        if trouble is None:
            raise
        raise OutputError(
            f"{path}: cannot be written ({trouble.strerror or trouble}); what was saved before is still there."
        ) from exc


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state onto the CPU, refusing anything but tensors and plain values.

    Raises:
        ModelError: missing, damaged, or with other content.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that it then refuses
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as exc:
        raise ModelError(f"{path}: expected a checkpoint, found none; train first.") from exc
    except Exception as exc:  # bytes that are no pickle fail in any way
        raise ModelError(
            f"{path}: expected a checkpoint of tensors and plain values, found something else or a damaged file; "
            "nothing in it was run."
        ) from exc
    if not isinstance(state, dict):
        raise ModelError(f"{path}: expected a dictionary of tensors, found {type(state).__name__}.")
    return state
