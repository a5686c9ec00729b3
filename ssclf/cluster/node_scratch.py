"""Private folders on the nodes of a cluster, one per run, and what runs that were killed have left there."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssclf.errors import OutputError
from ssclf.io.files import whole_folder
from ssclf.io.locks import Lock

#: Content of files by name, as it travels through Ray's object store.
Files = Mapping[str, NDArray[np.uint8]]
#: Locks on the folders of runs that this process works for. Closed by nobody: they end with the process.
_HELD: list[Lock] = []


def _top() -> Path:
    return Path(tempfile.gettempdir()) / f"ssclf-ray-{os.getuid()}"


@lru_cache(maxsize=4)
def run_scratch(run: str) -> Path:
    """The folder of a run on this node; held as long as this process lives.

    Raises:
        OutputError: the node's temporary folder belongs to somebody else, or cannot be written.
    """
    top = _top()
    try:
        top.mkdir(mode=0o700, exist_ok=True)
        if top.is_symlink() or top.stat().st_uid != os.getuid():
            raise OutputError(f"{top}: belongs to another user; set TMPDIR on the nodes to a private folder.")
        top.chmod(0o700)
        with Lock(top / "lock") as one_at_a_time:
            # what was killed could not clean up: whoever comes next does, before a folder of its own is there to hold
            one_at_a_time.take(wait=True)
            for old in top.iterdir():
                if old.is_dir() and old.name != run:
                    _remove_unless_held(old)
            (top / run).mkdir(exist_ok=True)
            _hold(top / run / "held")
    except OSError as exc:
        raise OutputError(
            f"{top}: cannot be written on this node ({exc.strerror}); set TMPDIR to a place that can."
        ) from exc
    return top / run


def _hold(path: Path) -> None:
    """Keep others from removing the folder for as long as this process lives: all processes of a run share it."""
    lock = Lock(path)
    lock.take(wait=True, shared=True)
    _HELD.append(lock)


def _remove_unless_held(folder: Path) -> None:
    with contextlib.suppress(OSError), Lock(folder / "held") as held:
        if held.take():
            shutil.rmtree(folder, ignore_errors=True)


def remove_run(run: str) -> None:
    """At the end of a run: its folder, whoever held it."""
    shutil.rmtree(_top() / run, ignore_errors=True)


def unpack(files: Files, run: str, name: str) -> Path:
    """Put files into a folder of the run; the first process of a node writes, the others find them."""
    folder = run_scratch(run) / name
    with Lock(folder.with_name(f"{name}.lock")) as lock:
        lock.take(wait=True)
        if not folder.exists():
            with whole_folder(folder) as partial:
                for file, content in files.items():
                    (partial / file).parent.mkdir(parents=True, exist_ok=True)
                    (partial / file).write_bytes(content.tobytes())
    return folder
