"""A walk over a folder: every file is a volume, DICOM, an archive, a table, or a count with a reason.

Names are looked at, and the first bytes where they do not tell; no volume is read.
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from ssclf.errors import DatasetError
from ssclf.io.image_hints import image_hint
from ssclf.io.junk import LFS_POINTER, is_lfs_pointer, junk_name
from ssclf.io.own_output import START_BYTES, own_text, own_volume
from ssclf.io.paths import is_file, is_folder, kind_of, real_path
from ssclf.io.records.preprocessed import MARKS
from ssclf.io.records.tables import TABLE_ENDINGS
from ssclf.io.volumes.dicom_grouping import may_be_slices
from ssclf.io.volumes.dicom_headers import looks_like_dicom
from ssclf.io.volumes.endings import DICOM_ENDINGS, volume_ending

_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".aria2", "~")
_NOT_READ = (".mnc", ".par", ".rec", ".head", ".brik", ".brik.gz", ".gipl", ".vtk", ".vti", ".mif")
_LEAVES = "a link that leads out of the folder is not followed; name its target as an input instead."
PREPROCESSED_FOLDER = "a folder that ssclf preprocess wrote"
_NOT_READABLE = "a file that may not be read"


@dataclass
class FolderContent:
    """What a walk over a folder found. Paths are below the folder, POSIX; in no particular order.

    Attributes:
        volumes: files with the ending of a volume; the header of a .hdr/.img pair.
        dicom: files that are DICOM by content, and those that claim to be and are not.
        archives: zip files.
        tables: CSV and TSV files.
        problems: path → why a volume, link or folder cannot be looked at.
        other: reason → number of files.
        unknown: files of the folder at hand that are nothing known: name, first bytes, reason in `other`.
    """

    volumes: list[str] = field(default_factory=list)
    dicom: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    other: Counter[str] = field(default_factory=Counter)
    unknown: list[tuple[str, bytes, str]] = field(default_factory=list)

    def add(self, part: FolderContent) -> None:
        """Take in what another folder holds."""
        for ours, theirs in (
            (self.volumes, part.volumes),
            (self.dicom, part.dicom),
            (self.archives, part.archives),
            (self.tables, part.tables),
        ):
            ours += theirs
        self.problems |= part.problems
        self.other += part.other

    def sort(self, path: str, names: Set[str], pattern: str | None, file: StoredFile) -> None:
        """Put a file where it belongs.

        Args:
            path: below the folder that was given.
            names: of everything beside it, in lower case.
            pattern: see `discover`.
        """
        name = path.rpartition("/")[2]
        lower = name.lower()
        if pattern and not matches_pattern(path, name, pattern):
            self.other["not matching --pattern"] += 1
        elif lower.endswith(_UNFINISHED):
            self.other["an unfinished or temporary file"] += 1
        elif ending := volume_ending(lower):
            stem = lower[: -len(ending)]
            if not ending.startswith(".img"):
                self._sort_volume(path, file)
            elif not names & {stem + ".hdr", stem + ".hdr.gz"}:
                if file.is_dicom():
                    self.dicom.append(path)
                else:
                    self._sort_volume(path, file)
        elif lower.endswith(".zip"):
            self.archives.append(path)
        elif lower.endswith(_NOT_READ):
            self.other[f"a volume in a format that is not read ({PurePosixPath(lower).suffix})"] += 1
        elif file.is_dicom() or lower.endswith(DICOM_ENDINGS):
            self.dicom.append(path)
        else:
            self._sort_other(path, file)

    def _sort_volume(self, path: str, file: StoredFile) -> None:
        start = file.start()
        if is_lfs_pointer(start):
            self.problems[path] = f"expected a volume, found something else: {LFS_POINTER}"
        elif ours := own_volume(path.rpartition("/")[2], start):
            self.other[ours] += 1
        else:
            self.volumes.append(path)

    def _sort_other(self, path: str, file: StoredFile) -> None:
        name = path.rpartition("/")[2]
        suffix = PurePosixPath(name.lower()).suffix
        start = b""
        if not file.is_readable():
            reason = _NOT_READABLE
        else:
            start = file.start()
            kind = suffix if 1 < len(suffix) <= 6 and suffix[1:].isalnum() else "no ending of a volume"
            reason = own_text(start) or f"not a volume ({kind})"
            if suffix in TABLE_ENDINGS:
                self.tables.append(path)
        self.other[reason] += 1
        self.unknown.append((name, start, reason))

    def close_folder(self, folder: str) -> None:
        """Take what may be damaged slices to the slices beside it; to be called when all files of a folder are in.

        Args:
            folder: its path, "" for the one that was given.
        """
        if self.dicom and self.unknown:
            slices = [path.rpartition("/")[2] for path in self.dicom]
            lost = set(may_be_slices(slices, [(name, start) for name, start, _ in self.unknown]))
            for name, _, reason in self.unknown:
                if name in lost:
                    self.dicom.append(f"{folder}/{name}" if folder else name)
                    self.other[reason] -= 1
            self.other = +self.other
        self.unknown.clear()


def walk_folder(root: Path, pattern: str | None = None, begin: Sequence[str] = ("",)) -> FolderContent:
    """Sort the files below a folder by what their names, or for DICOM their first bytes, say.

    Args:
        begin: the folders below it that are looked into, "" for all of it; none inside another.

    Raises:
        DatasetError: the folder itself cannot be read.
    """
    content = FolderContent()
    for part in walk_folders(root, pattern, begin):
        content.add(part)
    return content


def walk_folders(
    root: Path, pattern: str | None = None, begin: Sequence[str] = ("",)
) -> Iterator[FolderContent]:
    """As `walk_folder`, one folder after the other, each before those inside it, by name.

    Raises:
        DatasetError: the folder itself cannot be read.
    """
    inside = str(real_path(root))
    pending = list(reversed(begin))
    while pending:
        folder = pending.pop()
        content = FolderContent()
        try:
            with os.scandir(root / folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as exc:
            if not folder:
                why = exc.strerror or exc
                raise DatasetError(f"{root}: the folder cannot be read ({why}).{image_hint('user')}") from exc
            content.problems[folder] = f"the folder cannot be read ({exc.strerror or exc})."
            yield content
            continue
        names = {entry.name.lower() for entry in listed}
        folders = []
        if is_preprocessed(folder, names):
            content.other[PREPROCESSED_FOLDER] += 1
            listed = []
        for entry in listed:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if junk := junk_name(entry.name):
                content.other[junk] += 1
            elif (kind := kind_of(entry)) == "link" and (
                reason := _bad_link(entry, inside, content.other)
            ) is not None:
                if reason:
                    content.problems[path] = reason
            elif kind == "folder":
                folders.append(path)
            elif kind == "other":
                content.other["neither a file nor a folder"] += 1
            else:
                content.sort(path, names, pattern, LocalFile(entry.path))
        content.close_folder(folder)
        pending += reversed(folders)
        yield content


def is_preprocessed(folder: str, names: Set[str]) -> bool:
    """Whether a folder below the one that was given is what `ssclf preprocess` wrote."""
    return bool(folder) and names >= MARKS


class StoredFile(Protocol):
    """What sorting a file may ask beyond its name."""

    def start(self) -> bytes:
        """Its first `START_BYTES` bytes; none where it cannot be read."""
        ...

    def is_dicom(self) -> bool: ...

    def is_readable(self) -> bool: ...


class LocalFile:
    """A regular file of this machine, opened at most once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._start: bytes | None = None

    def start(self) -> bytes:
        if self._start is None:
            try:
                with open(self._path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path each costs more than the rest
                    self._start = file.read(START_BYTES)
            except OSError:
                self._start = b""
        return self._start

    def is_dicom(self) -> bool:
        return looks_like_dicom(self.start())

    def is_readable(self) -> bool:
        return os.access(self._path, os.R_OK)


def matches_pattern(path: str, name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(path, pattern)


def _bad_link(entry: os.DirEntry[str], inside: str, other: Counter[str]) -> str | None:
    """Why a link is not taken: a reason that is worth a row, "" for one that is counted, None to take it."""
    target = str(real_path(entry.path))
    if not target.startswith(inside.rstrip("/") + "/") and target != inside:
        if volume_ending(entry.name) or is_folder(Path(target)):
            return _LEAVES
        other["a link out of the folder"] += 1
        return ""
    if is_folder(Path(target)):
        other["a linked folder, found where it lies"] += 1
        return ""
    if not is_file(Path(target)):
        return "the link leads nowhere: its target is missing (or it leads to itself)."
    return None
