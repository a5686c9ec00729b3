"""SHA-256 of files, and the SHA256SUMS of a folder in the format of `sha256sum`."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ssclf.errors import ModelError
from ssclf.io.image_hints import image_hint

SUMS = "SHA256SUMS"
#: A bundle has ten files; a list of more than this is no such list.
_MAX_SUMS = 1 << 20


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read, and nothing that never ends or never begins: no pipe, device or folder.

    Raises:
        OSError: it cannot be read, or is none.
    """
    # a pipe would wait for its writer before it could be looked at
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


def file_sha256(path: Path) -> str:
    """The hash of a regular file, as hex.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
    """
    with open_regular(path) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_checksums(folder: Path) -> None:
    """List every file of a folder (one level); to be called once all of them are written."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != SUMS)
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def verify_checksums(folder: Path) -> dict[str, str]:
    """Check a folder against its SHA256SUMS.

    Returns:
        file name → SHA-256, for every file listed.

    Raises:
        ModelError: a listed file is missing or differs, or the list itself is missing or malformed.
    """
    try:
        with open_regular(folder / SUMS) as file:
            text = file.read(_MAX_SUMS).decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelError(
            f"{folder.name}: expected a bundle with {SUMS}, found none that can be read; "
            f"export the model again, or copy the whole folder.{image_hint('user')}"
        ) from exc
    sums: dict[str, str] = {}
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name or "/" in name or "\\" in name:
            raise ModelError(f"{folder.name}/{SUMS}: expected lines of `sha256  name`, found {line[:80]!r}.")
        try:
            found = file_sha256(folder / name)
        except OSError as exc:
            raise ModelError(
                f"{folder.name}: {name} is listed in {SUMS} but cannot be read.{image_hint('user')}"
            ) from exc
        if found != digest:
            raise ModelError(
                f"{folder.name}/{name}: expected SHA-256 {digest[:12]}…, found {found[:12]}…; "
                "the file was changed or damaged in copying. Copy the bundle again."
            )
        sums[name] = digest
    return sums
