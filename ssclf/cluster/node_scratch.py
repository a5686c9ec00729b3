"""Private folders on the nodes of a cluster, one per run, and what runs that were killed have left there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssclf.errors import OutputError

#: Content of files by name, as it travels through Ray's object store.
Files = Mapping[str, NDArray[np.uint8]]


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
        with _lock(top / "lock", fcntl.LOCK_EX):
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
    """A lock that ends with this process, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_SH)


def _remove_unless_held(folder: Path) -> None:
    with contextlib.suppress(OSError), _lock(folder / "held", fcntl.LOCK_EX | fcntl.LOCK_NB):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path, how: int) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def remove_run(run: str) -> None:
    """At the end of a run: its folder, whoever held it."""
    shutil.rmtree(_top() / run, ignore_errors=True)


def unpack(files: Files, run: str, name: str) -> Path:
    """Put files into a folder of the run; the first process of a node writes, the others find them."""
    folder = run_scratch(run) / name
    with _lock(folder.with_name(f"{name}.lock"), fcntl.LOCK_EX):
        if not folder.exists():
            partial = folder.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            for file, content in files.items():
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                (partial / file).write_bytes(content.tobytes())
            partial.rename(folder)
    return folder
