"""One writer at a time: advisory locks on files, which the system lets go when their process ends, however."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssclf.errors import OutputError


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file while the block runs.

    Args:
        path: created, in a folder that exists; stays behind, empty.
        wait: until another process lets go, instead of giving up.

    Yields:
        False where another process has it.

    Raises:
        OutputError: the file cannot be written, or its file system has no locks.
    """
    try:
        file = path.open("a")
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written ({exc.strerror or exc}).") from exc
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as exc:
            raise OutputError(f"{path}: cannot be locked ({exc.strerror or exc}).") from exc
        yield True
