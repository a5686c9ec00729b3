"""One writer at a time: advisory locks on files, which the system lets go when their process ends, however."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ssclf.errors import OutputError


def _no_link(path: str, flags: int) -> int:
    """A lock planted as a link would make a file wherever it leads."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


class Lock:
    """A lock file, for what is held beyond a block, or needs a message of its own; else see `lock`.

    Once taken it is held until it is closed, or this process ends, however it ends.
    """

    def __init__(self, path: Path) -> None:
        """Open a lock file, which is created in a folder that exists, and stays behind, empty.

        Raises:
            OSError: it cannot be written.
        """
        self._path = path
        self._file = self._open()

    def take(self, *, wait: bool = False, shared: bool = False) -> bool:
        """Whether it is ours now; never False where we wait.

        Args:
            wait: until other processes let go, instead of giving up.
            shared: with others that share it; they keep away who wants it alone.

        Raises:
            OSError: the file system has no locks, or the folder of the file has gone.
        """
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            try:
                fcntl.flock(self._file, how)
            except BlockingIOError:
                return False
            if self._is_in_place():
                return True
            # Who held it before has removed it with its folder, as a run does that ends; a lock on that keeps nobody
            # away, and another process may have made, and taken, the next one.
            self._file.close()
            self._file = self._open()

    def _open(self) -> IO[str]:
        # to read and to write: over NFS a shared lock asks for the one, an exclusive lock for the other
        return open(self._path, "a+", encoding="utf-8", opener=_no_link)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let go; what was never taken is only closed."""
        self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def hold(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file or folder itself, until its descriptor is closed or this process ends.

    Returns:
        False where another process has it, which it never is where we wait.

    Raises:
        OSError: the file system has no locks, or none on folders.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def lock(path: Path, *, wait: bool = False, remove: bool = False) -> Iterator[bool]:
    """Hold a lock file while the block runs.

    Args:
        path: created, in a folder that exists; stays behind, empty.
        wait: until another process lets go, instead of giving up.
        remove: leave no file behind; who waits for it makes another.

    Yields:
        False where another process has it.

    Raises:
        OutputError: the file cannot be written, or its file system has no locks.
    """
    try:
        file = Lock(path)
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written ({exc.strerror or exc}).") from exc
    with file:
        try:
            ours = file.take(wait=wait)
        except OSError as exc:
            raise OutputError(f"{path}: cannot be locked ({exc.strerror or exc}).") from exc
        try:
            yield ours
        finally:
            if ours and remove:
                path.unlink(missing_ok=True)
