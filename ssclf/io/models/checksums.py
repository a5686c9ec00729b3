"""SHA-256 of files, and the SHA256SUMS of a folder in the format of `sha256sum`."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ssclf.errors import ModelError
from ssclf.io.image_hints import image_hint

SUMS = "SHA256SUMS"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
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
        text = (folder / SUMS).read_text("utf-8")
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
