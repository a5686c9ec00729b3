"""A zip archive with DICOM in it, at any depth: members are known by where they lie, never by their names.

Two members may have the same name (the format allows it, and exports do it), so a name finds only one of
them. The place of a member's local header is its own; an archive inside an archive adds one place more.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ssclf.errors import VolumeError
from ssclf.io.junk import junk_path

#: Archives inside an archive are opened to this depth; exports have one inside another, bombs have many.
MAX_DEPTH = 3
#: Inner archives up to this size are unpacked into memory, larger ones into a file without a name.
_SPOOL_BYTES = 64 << 20
#: Characters of a member's name, those of the archives around it included; Linux allows no longer path either.
_MAX_NAME = 1024
#: zip's own ways of packing; bzip2 and LZMA make a gigabyte of some kilobytes in one step.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: The records at the end of an archive and of each entry of its list (APPNOTE.TXT, 4.3.12, 4.3.14 to 4.3.16).
_END, _END_SIZE = b"PK\5\6", 22
_LOCATOR, _LOCATOR_SIZE, _END64_SIZE = b"PK\6\7", 20, 56
_MAX_COMMENT = 0xFFFF
#: Bytes of the list for each file that an archive may hold.
_LIST_BYTES = 512

#: Where a member lies: byte of its header in the archive, behind that of each archive around it.
Entry = tuple[int, ...]


@dataclass(frozen=True)
class ArchiveMember:
    """Attributes:
    name: POSIX path; members of an inner archive lie below its name.
    problem: why it cannot be looked at, "" where it can.
    """

    name: str
    entry: Entry
    problem: str = ""


@dataclass(frozen=True)
class _Layer:
    """An open archive: where it lies, and its members by their places."""

    place: Entry
    members: dict[int, zipfile.ZipInfo]
    archive: zipfile.ZipFile
    resources: contextlib.ExitStack


class DicomArchive:
    """A zip archive, open for reading. Use as a context manager.

    Args:
        path: of the archive.
        max_files, max_bytes: that it may hold in all, inner archives with theirs.
        max_file_bytes: that one member may inflate to.

    Raises:
        OSError: the file cannot be opened.
        VolumeError: it holds more than is opened, or is no archive.
    """

    def __init__(self, path: Path, *, max_files: int, max_bytes: int, max_file_bytes: int) -> None:
        self._files, self._bytes, self._max_file_bytes = max_files, max_bytes, max_file_bytes
        self._counted: set[Entry] = set()
        file = path.open("rb")
        with contextlib.ExitStack() as stack:
            stack.callback(file.close)
            self._layers = [self._layer((), file, stack)]  # of each depth one is open at a time

    def __enter__(self) -> DicomArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_down_to(0)

    def members(self) -> Iterator[ArchiveMember]:
        """Every file in the archive and in those inside it, by name."""
        yield from self._members(self._layers[0], "")

    def open(self, entry: Entry) -> IO[bytes]:
        """A member's bytes.

        Raises:
            KeyError: nothing lies there; the archive has changed.
        VolumeError: it is packed in a way that is not opened.
            Exception: whatever zipfile and its decompressors raise about damage.
        """
        layer = self._at(entry[:-1])
        return _open(layer.archive, layer.members[entry[-1]])

    def _members(self, layer: _Layer, prefix: str) -> Iterator[ArchiveMember]:
        infos = sorted(layer.archive.infolist(), key=lambda one: (one.filename, one.header_offset))
        for info in infos:
            if info.filename.endswith("/"):
                continue
            member = ArchiveMember(prefix + info.filename, (*layer.place, info.header_offset))
            if len(member.name) > _MAX_NAME:
                why = f"has a name of {len(member.name)} characters, more than a path can have."
                yield ArchiveMember(member.name[:_MAX_NAME], member.entry, why)
            elif info.file_size > self._max_file_bytes:
                why = f"inflates to {info.file_size / 1e9:.3g} GB, more than is opened."
                yield replace(member, problem=why)
            elif not info.filename.lower().endswith(".zip") or junk_path(member.name):
                yield member
            elif len(member.entry) > MAX_DEPTH:
                why = f"lies deeper than {MAX_DEPTH} archives inside one another, and is not opened."
                yield replace(member, problem=why)
            else:
                yield from self._inside(member)

    def _inside(self, member: ArchiveMember) -> Iterator[ArchiveMember]:
        try:
            layer = self._at(member.entry)
        except VolumeError as exc:
            yield replace(member, problem=str(exc))
        except Exception as exc:  # zipfile's own, and what each of its decompressors raises
            yield replace(member, problem=damage(exc))
        else:
            yield from self._members(layer, f"{member.name}/")

    def _at(self, place: Entry) -> _Layer:
        """The archive that lies at a place, opened where it is not."""
        depth = len(place)
        if len(self._layers) > depth and self._layers[depth].place == place:
            return self._layers[depth]
        around = self._at(place[:-1])
        self._close_down_to(depth)
        with contextlib.ExitStack() as stack:
            spool = stack.enter_context(tempfile.SpooledTemporaryFile(_SPOOL_BYTES))
            with _open(around.archive, around.members[place[-1]]) as packed:
                copy_member(packed, spool, self._max_file_bytes)
            spool.seek(0)
            self._layers.append(self._layer(place, spool, stack))
        return self._layers[depth]

    def _layer(self, place: Entry, file: Any, resources: contextlib.ExitStack) -> _Layer:
        _check_contents(file, self._files)
        try:
            archive = zipfile.ZipFile(file)
        except Exception as exc:  # a damaged list of contents makes zipfile raise nearly anything
            raise VolumeError(f"expected a zip archive, found a damaged one ({type(exc).__name__}).") from exc
        infos = archive.infolist()
        total = sum(info.file_size for info in infos)
        if place not in self._counted:
            if len(infos) > self._files or total > self._bytes:
                raise VolumeError(
                    f"the archive holds {len(infos)} files of {total / 1e9:.3g} GB, more than is opened."
                )
            self._counted.add(place)
            self._files, self._bytes = self._files - len(infos), self._bytes - total
        return _Layer(place, {info.header_offset: info for info in infos}, archive, resources.pop_all())

    def _close_down_to(self, depth: int) -> None:
        while len(self._layers) > depth:
            self._layers.pop().resources.close()


def _open(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    if member.compress_type not in _METHODS:
        raise VolumeError("is packed in a way that is not opened; pack it again with zip's own (deflate).")
    return archive.open(member)


def _check_contents(file: Any, max_files: int) -> None:
    """Count the entries of an archive's list before zipfile makes an object of each.

    Raises:
        VolumeError: there are more than are opened. Of a damaged list zipfile says so.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _MAX_COMMENT - _END_SIZE))
    end = file.read(_MAX_COMMENT + _END_SIZE)
    at = end.rfind(_END)
    if at < 0 or len(end) - at < _END_SIZE:
        return
    length = int.from_bytes(end[at + 12 : at + 16], "little")
    if end[max(0, at - _LOCATOR_SIZE) : at][:4] == _LOCATOR:
        place = int.from_bytes(end[at - _LOCATOR_SIZE + 8 : at - _LOCATOR_SIZE + 16], "little")
        for start in (place, size - len(end) + at - _LOCATOR_SIZE - _END64_SIZE):
            file.seek(min(start, size))
            length = max(length if length != 0xFFFFFFFF else 0, int.from_bytes(file.read(48)[40:], "little"))
    if length > max_files * _LIST_BYTES:
        raise VolumeError(
            f"the archive's list of contents has {length / 1e6:.3g} MB, that of {max_files} files at most is opened."
        )
    file.seek(max(0, size - len(end) + at - length - _END64_SIZE - _LOCATOR_SIZE))
    listed = file.read(length + _END64_SIZE + _LOCATOR_SIZE)
    count = listed.count(b"PK\1\2")
    if count > max_files:
        raise VolumeError(f"the archive holds {count} files, more than is opened.")


def damage(exc: Exception) -> str:
    """One line on what zipfile and its decompressors said of a member."""
    return "is encrypted." if "password" in str(exc) else "cannot be read from the archive."


def copy_member(member: Any, out: Any, limit: int) -> int:
    """Copy a stream of at most `limit` bytes; how many it had.

    Raises:
        VolumeError: it has more.
    """
    copied = 0
    while part := member.read(1 << 20):
        copied += len(part)
        if copied > limit:
            raise VolumeError("the archive inflates to more than is opened.")
        out.write(part)
    return copied
