"""Files and folders that are there whole or not at all.

What is being written lies beside its place, hidden, with `.partial` in its name: what a killed process leaves is
known for what it is, and taken for nothing else. Who writes holds a lock on it. So whoever writes into a folder first
removes what lies there without a lock: its process has died.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from ssclf.errors import OutputError
from ssclf.io.locks import hold

#: Bytes of a name that its partial file repeats: file systems take 255, and the mark needs some of them.
_LONGEST = 150
#: Which kernel wrote (of earlier versions, which process), and a number.
_PARTIAL = re.compile(r"\..*\.([0-9a-f]{8}|\d+)-[0-9a-f]{8}\.partial(?:\..*)?", re.DOTALL)
#: After so long, what another machine began is nobody's: over a network file system, locks may be local.
_FORGOTTEN_S = 24 * 3600
_RENAME_EXCHANGE, _HERE = 2, -100  # linux/fs.h, fcntl.h


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(text)


@contextlib.contextmanager
def whole_file(path: Path, *, binary: bool = False, private: bool = False) -> Iterator[IO[Any]]:
    """A file to write, which takes its place when the block ends well, and leaves nothing otherwise.

    Args:
        private: nobody but this user may read it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with _partial_file(path) as raw:
            if private:
                os.fchmod(raw.fileno(), 0o600)
            if binary:
                yield raw
            else:
                text = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", newline="")
                try:
                    yield text
                finally:  # the file below stays open, and locked, until it has its place
                    text.detach()
            raw.flush()
            os.fsync(raw.fileno())
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written ({exc.strerror or exc}).") from exc


def move(path: Path, place: Path) -> None:
    """Give what is whole its place on the same file system; there it is, or not at all, when the power goes.

    Raises:
        OSError: it cannot be moved.
    """
    _take_place(path, place)
    sync(place.parent)


def sync(path: Path) -> None:
    """Return when a file's bytes, or a folder's names, are on the disk.

    Raises:
        OSError: the disk is full or gone.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_path(path: Path, *, ending: str = "") -> Iterator[Path]:
    """As `whole_file`, for writers that open their files themselves: a name to write to, of an empty file.

    Args:
        ending: that this name needs, where the writer goes by it.

    Raises:
        OSError: it cannot be written; the caller knows what that means.
    """
    with _partial_file(path, ending) as file:
        yield Path(file.name)


def write_json(path: Path, values: Any) -> None:
    """Write JSON that people may read, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_folder(path: Path, *, there: Literal["keep", "refuse", "replace"] = "keep") -> Iterator[Path]:
    """A folder to fill, private to this user, which takes its place when the block ends well; else nothing is left.

    Args:
        there: what becomes of a folder that is there then. "keep": it stays, and this one goes, for content that is
            the same whoever makes it. "replace": it goes, if it was there from the beginning. What appeared meanwhile
            is somebody else's, and is refused as with "refuse".

    Raises:
        OSError: it cannot be made, or cannot take its place.
        OutputError: something appeared there meanwhile.
    """
    before = _identity(path)
    with _partial_folder(path) as partial:
        yield partial
        found = _identity(path)
        if there == "replace" and found is not None and found == before:
            _exchange(partial, path)
        elif there != "keep" and found is not None:
            raise OutputError(
                f"{path}: appeared while it was being made, and was left alone; remove it, or choose another name."
            )
        else:
            try:
                _take_place(partial, path)
            except OSError:  # no folder takes the place of one that holds something
                if there != "keep" or not path.is_dir():
                    raise


def disk_trouble(exc: BaseException) -> OSError | None:
    """What the disk said, of an error or what led to it: full, over its quota, or not to be written."""
    found: BaseException | None = exc
    while found is not None:
        if isinstance(found, OSError) and found.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            return found
        found = found.__cause__ or found.__context__
    return None


def sweep(folder: Path) -> None:
    """Remove what processes that have died left half written in a folder; what cannot be removed stays."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if match := _PARTIAL.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_dead(Path(entry.path), ours=match[1] == _kernel())


@contextlib.contextmanager
def _partial_file(path: Path, ending: str = "") -> Iterator[io.BufferedWriter]:
    """An empty file beside a place, which it takes in the end."""
    _sweep_once(path.parent.absolute())
    while True:
        # "x": what somebody has put at that name, a link above all, is not written to
        file = _beside(path, ending).open("xb")
        partial = Path(file.name)
        if _is_held(file.fileno(), partial):
            break
        file.close()
    try:
        with file:
            yield file
            _take_place(partial, path)  # under its lock, or a sweep could take it
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    _sweep_once(path.parent.absolute())
    while True:
        partial = _beside(path)
        partial.mkdir(mode=0o700)
        descriptor = os.open(partial, os.O_RDONLY)
        if _is_held(descriptor, partial):
            break
        os.close(descriptor)
    try:
        yield partial
    finally:
        _remove(partial)
        os.close(descriptor)


def own_folder(path: Path) -> None:
    """Make a folder private to this user, or take one that is; what a shared place had planted there is not touched.

    Raises:
        OutputError: there is a link, or something of another user's.
        OSError: it cannot be made.
    """
    if not path.is_symlink():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        # opened once and asked through that: what lies there cannot be exchanged in between
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        raise OutputError(
            f"{path}: expected this user's own working folder, found a link or somebody else's; look who put it there, "
            "remove it, or write to another folder."
        ) from exc
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            raise OutputError(
                f"{path}: expected this user's own working folder, found that of another user; remove it, or "
                "write to another folder."
            )
        os.fchmod(folder, 0o700)
    finally:
        os.close(folder)


def _beside(path: Path, ending: str = "") -> Path:
    """A name that nobody else writes to, and that says on which machine it was begun."""
    name = path.name
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return path.with_name(f".{name}.{_kernel()}-{secrets.token_hex(4)}.partial{ending}")


@functools.cache
def _kernel() -> str:
    """Eight digits for all processes, in containers too, whose locks surely see each other."""
    try:
        known = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        known = platform.node().encode()
    return hashlib.sha256(known).hexdigest()[:8]


@functools.lru_cache(maxsize=4096)
def _sweep_once(folder: Path) -> None:
    sweep(folder)


def _is_held(descriptor: int, partial: Path) -> bool:
    """Whether what was made just now is ours to fill; the sweep of another process may have been quicker."""
    try:
        hold(descriptor, wait=True)
    except OSError:  # no locks here: nobody can sweep
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), partial.stat())
    except FileNotFoundError:
        return False


def _remove_dead(path: Path, *, ours: bool) -> None:
    """Raises:
    OSError: it cannot be opened, or has no lock.
    """
    found = path.lstat()
    if not ours and time.time() - found.st_mtime < _FORGOTTEN_S:
        return
    folder = stat.S_ISDIR(found.st_mode)
    if not (folder or stat.S_ISREG(found.st_mode)):
        return
    # over NFS an exclusive lock asks for a file that may be written
    descriptor = os.open(path, (os.O_RDONLY if folder else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        if hold(descriptor):
            _remove(path)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Whatever it is, if it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file or folder is at a place, None for none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _exchange(partial: Path, path: Path) -> None:
    """Put a folder in the place of another, which then lies where it was. In one step, where the system can do that."""
    libc = ctypes.CDLL(None)
    names = os.fsencode(partial), os.fsencode(path)
    if hasattr(libc, "renameat2") and not libc.renameat2(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE):
        return
    aside = _beside(path).with_suffix(".replaced")  # which no sweep takes: for a moment it is all there is
    _take_place(path, aside)
    try:
        _take_place(partial, path)
    except OSError:
        _take_place(aside, path)
        raise
    _remove(aside)


def _take_place(partial: Path, path: Path) -> None:
    """The one place where something comes to be: a rename on one file system, which nobody sees half done."""
    partial.replace(path)
