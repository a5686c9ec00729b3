"""Which DICOM series lie in a folder or an archive, found by content and grouped by SeriesInstanceUID.

dcm2niix would group too, but it merges or drops files of one UID with no more than a warning. Series
descriptions are read to match `--series` and go no further: no header text reaches a message or a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pydicom

from ssclf.errors import ConfigError, VolumeError
from ssclf.io.volumes.dicom_headers import get, looks_like_dicom, quiet_pydicom, read_header

#: SOP classes with MR pixels on a spatial grid (PS3.4 B.5): classic, enhanced, legacy converted enhanced.
_MR_IMAGES = frozenset(f"1.2.840.10008.5.1.4.1.1.4{end}" for end in ("", ".1", ".4"))
_DIRECTORY = "1.2.840.10008.1.3.10"
#: An archive may hold as much and inflate to as much; a series of 1,000 slices of 512² takes 0.5 GB.
MAX_ARCHIVE_FILES = 100_000
MAX_ARCHIVE_BYTES = 16 << 30
MAX_FILE_BYTES = 2 << 30
#: Enough for the header of nearly every slice; longer ones are read whole.
_HEADER_BYTES = 1 << 16
_MAX_HEADER_BYTES = 1 << 26
_CUT_SHORT = "the DICOM file is cut short before its image, or states no series."
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class DicomSeries:
    """One series: files of one SeriesInstanceUID.

    Attributes:
        name: series number and a short hash of the UID, such as "3-1f0c9a2e"; tells nothing of a person.
        root: folder or zip archive that `files` are relative to.
        files: POSIX paths below `root`, or member names of the archive; sorted.
        uid: the SeriesInstanceUID itself; written out only where the user asks for UIDs.
    """

    name: str
    root: Path
    files: tuple[str, ...] = field(repr=False)
    uid: str = field(repr=False, default="")

    @property
    def location(self) -> Path:
        """What a person would call the place of the series: archive, file, or deepest common folder."""
        if self.in_archive:
            return self.root
        if len(self.files) == 1:
            return self.root / self.files[0]
        return self.root / os.path.commonpath([str(PurePosixPath(name).parent) for name in self.files])

    @property
    def in_archive(self) -> bool:
        return self.root.is_file()


@dataclass(frozen=True)
class LeftOut:
    """What is no series to classify, and why.

    Attributes:
        path: file, folder or archive.
        reason: one line without header contents.
        files: how many files this stands for.
        broken: the file claims to be DICOM and cannot be read: worth a failed row, not just a count.
    """

    path: Path
    reason: str
    files: int = 1
    broken: bool = False


@dataclass(frozen=True)
class SeriesSearch:
    series: tuple[DicomSeries, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def is_dicom(path: Path) -> bool:
    """Tell by content: the DICM mark, or (files of old scanners) a data set that starts without one."""
    try:
        if not path.is_file():  # opening a pipe would wait for a writer
            return False
        with path.open("rb") as file:
            return looks_like_dicom(file.read(132))
    except OSError:
        return False


def find_series(sources: Path | Iterable[Path], *, matching: str | None = None) -> SeriesSearch:
    """Find the MR series in a folder of any nesting, a zip archive, or a list of files and archives.

    A series whose files lie in several folders is one series, unless its instances are there more than
    once: then each folder holds a copy of its own.

    Args:
        sources: folder (links are not followed out of it), DICOM file, `.zip`, or several files.
        matching: regular expression searched in the series description, ignoring case.

    Raises:
        ConfigError: `matching` is no regular expression.
    """
    try:
        pattern = re.compile(matching, re.IGNORECASE) if matching else None
    except re.error as exc:
        raise ConfigError(f"--series: {matching!r} is no regular expression ({exc}).") from exc
    if isinstance(sources, Path):
        root = sources if sources.is_dir() else sources.parent
        files = list(_walk(sources)) if sources.is_dir() else [sources]
    else:
        files = sorted(sources)
        root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    archives = [file for file in files if file.suffix.lower() == ".zip"]
    slices = [file for file in files if file.suffix.lower() != ".zip"]
    searches = [_group(_folder_headers(slices, root), root, pattern)]
    searches += [_search_archive(archive, pattern) for archive in archives]
    return SeriesSearch(
        tuple(series for search in searches for series in search.series),
        tuple(left for search in searches for left in search.left_out),
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, sorted; links that leave it are not followed."""
    inside = folder.resolve()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if not path.is_symlink() or path.resolve().is_relative_to(inside):
                yield path


@dataclass(frozen=True)
class _Found:
    name: str
    header: pydicom.Dataset | None
    reason: str = ""


def _folder_headers(files: Iterable[Path], root: Path) -> Iterator[_Found]:
    for file in files:
        name = file.relative_to(root).as_posix()
        if not is_dicom(file):
            if file.suffix.lower() in _DICOM_ENDINGS:
                yield _Found(name, None, "expected DICOM, found something else under its ending.")
            continue
        try:
            with file.open("rb") as stream, quiet_pydicom():
                yield _Found(name, read_header(stream))
        except OSError as exc:
            yield _Found(name, None, f"cannot be read ({exc.strerror or exc}).")
        except VolumeError as exc:
            yield _Found(name, None, str(exc))


def _archive_headers(archive: zipfile.ZipFile) -> Iterator[_Found]:
    for member in sorted(archive.infolist(), key=lambda info: info.filename):
        name = member.filename
        if member.is_dir() or name.startswith("__MACOSX/") or member.file_size > MAX_FILE_BYTES:
            continue
        try:
            with archive.open(member) as stream:
                start = stream.read(_HEADER_BYTES)
                if not looks_like_dicom(start[:132]):
                    if name.lower().endswith(_DICOM_ENDINGS):
                        yield _Found(name, None, "expected DICOM, found something else under its ending.")
                    continue
                with quiet_pydicom():
                    yield _Found(name, _read_start(start, stream))
        except VolumeError as exc:
            yield _Found(name, None, str(exc))
        except Exception as exc:  # zipfile's own, and what each of its decompressors raises
            reason = "is encrypted" if "password" in str(exc) else "cannot be read from the archive"
            yield _Found(name, None, f"{reason}.")


def _read_start(start: bytes, rest: Any) -> pydicom.Dataset:
    """A header from the first bytes of a file, or from all of it where it does not end there."""
    if len(start) == _HEADER_BYTES:
        with contextlib.suppress(VolumeError):
            stream = io.BytesIO(start)
            header = read_header(stream)
            if stream.tell() < len(start):
                return header
        start += rest.read(_MAX_HEADER_BYTES)
    return read_header(io.BytesIO(start))


def _search_archive(path: Path, pattern: re.Pattern[str] | None) -> SeriesSearch:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if len(members) > MAX_ARCHIVE_FILES or total > MAX_ARCHIVE_BYTES:
                reason = (
                    f"the archive holds {len(members)} files of {total / 1e9:.3g} GB, more than is opened."
                )
                return SeriesSearch(left_out=(LeftOut(path, reason, broken=True),))
            found = _group(_archive_headers(archive), path, pattern)
    except Exception as exc:  # a damaged list of contents makes zipfile raise nearly anything
        reason = f"expected a zip archive, found a damaged one ({type(exc).__name__})."
        return SeriesSearch(left_out=(LeftOut(path, reason, broken=True),))
    if not found.series and not found.left_out:
        return SeriesSearch(left_out=(LeftOut(path, "the archive holds no DICOM."),))
    return found


def _group(found: Iterable[_Found], root: Path, pattern: re.Pattern[str] | None) -> SeriesSearch:
    left_out: list[LeftOut] = []
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}  # (UID, reason) -> (instance UID, file name)
    numbers: dict[str, str] = {}
    for item in found:
        reason, broken, uid, instance, number = item.reason, True, "", "", ""
        if item.header is not None:
            with quiet_pydicom():
                uid = str(get(item.header, "SeriesInstanceUID", ""))
                instance = str(get(item.header, "SOPInstanceUID", item.name))
                number = str(get(item.header, "SeriesNumber", ""))
                reason = _reason_to_leave_out(item.header, pattern)
                broken = not reason and not (uid and get(item.header, "Rows"))
        if broken or not uid:
            place = root if root.is_file() else root / item.name
            left_out.append(LeftOut(place, reason or _CUT_SHORT, broken=broken))
        else:
            groups.setdefault((uid, reason), []).append((instance, item.name))
            numbers.setdefault(uid, number if number.isdigit() else "0")
    series: list[DicomSeries] = []
    for (uid, reason), instances in groups.items():
        name = f"{numbers[uid]}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
        for files in _copies(instances):
            one = DicomSeries(name, root, tuple(sorted(files)), uid)
            if reason:
                left_out.append(LeftOut(one.location, reason, len(files)))
            else:
                series.append(one)
    return SeriesSearch(tuple(sorted(series, key=lambda s: (s.files[0], s.name))), _gathered(left_out))


def _gathered(left_out: list[LeftOut]) -> tuple[LeftOut, ...]:
    """One entry for all broken files of a folder that share a reason: they would have been one series."""
    together: dict[tuple[Path, str], list[Path]] = {}
    for left in left_out:
        if left.broken:
            together.setdefault((left.path.parent, left.reason), []).append(left.path)
    broken = (
        LeftOut(paths[0] if len(set(paths)) == 1 else folder, reason, len(paths), broken=True)
        for (folder, reason), paths in together.items()
    )
    return (*(left for left in left_out if not left.broken), *broken)


def _copies(instances: list[tuple[str, str]]) -> list[list[str]]:
    """One list of files; one per folder where several folders hold a copy of the same instances."""
    deepest = max(len(PurePosixPath(name).parts) for _, name in instances)
    for depth in range(deepest):
        folders: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for uid, name in instances:
            folders.setdefault(PurePosixPath(name).parts[:-1][:depth], []).append((uid, name))
        if all(len({uid for uid, _ in inside}) == len(inside) for inside in folders.values()):
            break
    return [[name for _, name in inside] for inside in folders.values()]


def _reason_to_leave_out(header: pydicom.Dataset, pattern: re.Pattern[str] | None) -> str:
    """Why a file is no MR image that could be part of a volume; empty where it could be."""
    sop_class = str(get(header, "SOPClassUID", ""))
    modality = str(get(header, "Modality", ""))
    if sop_class == _DIRECTORY or get(header, "DirectoryRecordSequence") is not None:
        return "a DICOMDIR index, no image."
    if not get(header, "Rows"):
        # an MR image without rows is no other kind of object, it is cut short
        return "" if sop_class in _MR_IMAGES or not sop_class else "a DICOM object without an image."
    if modality not in ("MR", ""):
        return f"the modality is {modality if modality.isalnum() else 'unknown'}, not MR."
    if sop_class not in _MR_IMAGES and (sop_class or not modality):
        return "no MR image (a secondary capture or another kind of object)."
    image_type = get(header, "ImageType", ())
    if "LOCALIZER" in {str(value).upper() for value in image_type}:
        return "a localiser."
    if pattern and not pattern.search(str(get(header, "SeriesDescription", ""))):
        return "the series description does not match --series."
    return ""
