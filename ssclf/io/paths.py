"""What lies at a path that somebody typed, without ever waiting or raising; and where results may be written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Literal

from ssclf.errors import OutputError
from ssclf.io.image_hints import image_hint
from ssclf.io.records.tables import TABLE_ENDINGS
from ssclf.io.volumes.endings import DICOM_ENDINGS, volume_ending

#: What a file system says of one name, however healthy the disk is.
_ABOUT_THE_NAME = frozenset(
    {
        errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ,
        # something else has the name, or that of a folder in it
        errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP,
    }
)  # fmt: skip


def is_about_the_name(exc: OSError) -> bool:
    """Whether an error belongs to one file and its name: the next file may well be written."""
    return exc.errno in _ABOUT_THE_NAME


def why_missing(path: Path) -> str:
    """Why nothing can be looked at under a path, "" where something can."""
    try:
        path.stat()
    except PermissionError:
        return "may not be looked at by this user."
    except OSError as exc:
        if is_link(path):
            return "is a link to nothing."
        return "is not there." if exc.errno in (errno.ENOENT, errno.ENOTDIR) else f"{exc.strerror or exc}."
    except ValueError:  # a NUL in the name
        return "is no name that a file can have."
    return ""


def is_file(path: Path) -> bool:
    """As `Path.is_file`, for any name."""
    return os.path.isfile(path)  # noqa: PTH113 - answers where a Path raises, for a name that is too long


def is_link(path: Path) -> bool:
    """As `Path.is_symlink`, for any name."""
    return os.path.islink(path)  # noqa: PTH114


def is_folder(path: Path) -> bool:
    """As `Path.is_dir`, for any name."""
    return os.path.isdir(path)  # noqa: PTH112


def is_there(path: Path) -> bool:
    """As `Path.exists`, for any name."""
    return os.path.exists(path)  # noqa: PTH110


def real_path(path: Path | str) -> Path:
    """As `Path.resolve`, for any name: what cannot be followed stands as it is."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):  # a NUL in the name
        return Path(os.path.abspath(path))  # noqa: PTH100


def file_size(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


Kind = Literal["link", "folder", "file", "other"]


def kind_of(entry: os.DirEntry[str]) -> Kind:
    """What an entry of a listed folder is; a folder that is not searchable tells of its names, and of no more."""
    try:
        if entry.is_symlink():
            return "link"
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "file" if entry.is_file(follow_symlinks=False) else "other"
    except OSError:
        return "file"  # what it is cannot be asked: it is opened, and that fails with the reason


def names_a_file(path: Path) -> bool:
    """Whether a name, of which nothing more is known, is that of one volume, slice or archive.

    A manifest is none: what it lists is not known without it. Nor is a name without an ending: it may be a
    folder's.
    """
    name = path.name.lower()
    return bool(volume_ending(name)) or name.endswith((".zip", *DICOM_ENDINGS))


def is_manifest(path: Path) -> bool:
    return path.name.lower().endswith(TABLE_ENDINGS)


def holds_something(path: Path) -> bool:
    """Whether a folder can be listed and has something in it."""
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def watched_folder(path: Path) -> Path:
    """The folder without which an input has gone as a whole: itself, or that of a file."""
    return path if is_folder(path) else path.parent


def check_output_file(option: str, path: Path) -> None:
    """A result must have a name of its own, in a folder that is there, and lie there as a plain file.

    Args:
        option: for messages, such as "out".

    Raises:
        OutputError: it names a folder, a link, a pipe or a device, or nothing at all.
    """
    if path.name in ("", ".."):
        raise OutputError(f'"{path}": --{option} names the file to write, found a folder; add a file name.')
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = 0
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise OutputError(f"{path}: --{option} cannot be written ({why}).") from exc
    if stat.S_ISLNK(mode):
        raise OutputError(
            f"{path}: --{option} names the file to write, found a link; give the name of the file itself."
        )
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path}: --{option} names the file to write, found a folder; add a file name.")
    if mode and not stat.S_ISREG(mode):
        raise OutputError(
            f"{path}: --{option} names the file to write, found a pipe or a device; choose another."
        )
    if not is_folder(path.parent):
        raise OutputError(
            f"{path}: the folder {path.parent} does not exist; make it first.{image_hint('out')}"
        )


def check_output_folder(option: str, path: Path) -> None:
    """A folder to write is one already, or can come to be one: nothing else has its name or that of a folder above.

    Args:
        option: for messages, such as "out".

    Raises:
        OutputError: a file, a pipe or a link to nothing is in the way, or no folder can have that name.
    """
    for place in (path, *path.parents):
        try:
            place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # what is above it tells
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or exc
            raise OutputError(f"{path}: --{option} cannot be written ({why}).") from exc
        if not is_folder(place):
            raise OutputError(
                f"{path}: --{option} names the folder to write, found something else at {place}; choose another."
            )
        return
