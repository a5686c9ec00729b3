"""Files and folders that are there whole or not at all.

What is being written lies beside its place, hidden, with `.partial` in its name: what a killed process leaves is
known for what it is, and taken for nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ssclf.errors import OutputError

#: Bytes of a name that its partial file repeats: file systems take 255, and the mark needs some of them.
_LONGEST = 150


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(text)


@contextlib.contextmanager
def whole_file(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file to write, which takes its place when the block ends well, and leaves nothing otherwise.

    Raises:
        OutputError: it cannot be written.
    """
    # "x": what somebody has put at that name, a link above all, is not written to
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    try:
        with whole_path(path) as partial, partial.open("xb") if binary else partial.open("x", **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written ({exc.strerror or exc}).") from exc


@contextlib.contextmanager
def whole_path(path: Path, *, ending: str = "") -> Iterator[Path]:
    """As `whole_file`, for writers that open their files themselves: a name to write to.

    Args:
        ending: that this name needs, where the writer goes by it.

    Raises:
        OSError: it cannot be written; the caller knows what that means.
    """
    partial = _beside(path, ending)
    try:
        yield partial
        _take_place(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_json(path: Path, values: Any) -> None:
    """Write JSON that people may read, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, private to this user, which takes its place when the block ends well; else nothing is left.

    Args:
        replace: what is there goes, in favour of the new one. Else a folder that another process has put there
            meanwhile stays, and this one goes: for content that is the same whoever makes it.

    Raises:
        OSError: it cannot be made, or cannot take its place.
    """
    partial = _beside(path)
    partial.mkdir(mode=0o700)
    try:
        yield partial
        if replace and path.exists():
            shutil.rmtree(path)
        try:
            _take_place(partial, path)
        except OSError:  # no folder takes the place of one that holds something
            if replace or not path.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
    """A name that nobody else writes to: processes on two nodes may have one number, and write one file."""
    name = path.name
    while len(os.fsencode(name)) > _LONGEST:
        name = name[:-1]
    return path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}.partial{ending}")


def _take_place(partial: Path, path: Path) -> None:
    """The one place where something comes to be: a rename on one file system, which nobody sees half done."""
    partial.replace(path)
