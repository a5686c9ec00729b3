"""A scan: what one row of results stands for, and where its voxels lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ssclf.io.paths import is_file
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.io.volumes.dicomweb import ServerSeries

VoxelSource = Path | DicomSeries | ServerSeries

#: Formats that keep header and voxels in files of one stem, compressed or not.
_HALVES = tuple(
    half + packed for half in (".hdr", ".img", ".nhdr", ".mhd", ".raw", ".zraw") for packed in ("", ".gz")
)


@dataclass(frozen=True)
class Scan:
    """Attributes:
    path: key back to the archive: as given, or relative to the scanned folder (POSIX).
    contrasts: one source of voxels per channel, in the model's channel order. A `Path` is a file with one
        volume (or the folder of a series that could not be understood, with `problem` set).
    series: for DICOM, series number and a short hash of its UID; else empty.
    problem: why this scan cannot be read, found out during discovery; empty when none.
    """

    path: str
    contrasts: tuple[VoxelSource, ...]
    series: str = ""
    problem: str = ""

    @property
    def stored(self) -> tuple[Path | DicomSeries, ...]:
        """The sources of voxels that are files."""
        return tuple(source for source in self.contrasts if not isinstance(source, ServerSeries))

    @property
    def is_remote(self) -> bool:
        """Whether a server has its voxels, which may fail without a fault of theirs."""
        return len(self.stored) < len(self.contrasts)


def with_own_keys(scans: Iterable[Scan]) -> list[Scan]:
    """Scans sorted by key, of which no two are equal: of those that were, all but the first get a number.

    A row is found by its key, so of two scans with one key one would vanish from the table.
    """
    ordered = sorted(scans, key=lambda scan: (scan.path, scan.series, str(scan.contrasts)))
    taken = {(scan.path, scan.series) for scan in ordered}
    seen: Counter[tuple[str, str]] = Counter()
    told_apart = []
    for scan in ordered:
        key = scan.path, scan.series
        seen[key] += 1
        if seen[key] > 1:
            number = seen[key]
            while (f"{scan.path}#{number}", scan.series) in taken:
                number += 1
            scan = replace(scan, path=f"{scan.path}#{number}")
            taken.add((scan.path, scan.series))
        told_apart.append(scan)
    return sorted(told_apart, key=lambda scan: (scan.path, scan.series))


@dataclass(frozen=True)
class Case:
    """A labelled scan of a cohort, for training and evaluation.

    Attributes:
        place: where subject and label stand, for messages: a line of a table, or the file.
        session: the subject's visit, "" where nothing names one.
        named_by: what told the subject, for people.
    """

    scan: Scan
    subject: str
    label: str
    source: str
    place: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    named_by: str = ""

    @property
    def order(self) -> tuple[str, str, str]:
        """By which cohorts are sorted."""
        return self.subject, self.scan.path, self.scan.series


def stored_files(source: VoxelSource) -> list[Path]:
    """Every file that holds part of a contrast: slices, their archive, or a header and its voxels."""
    if isinstance(source, DicomSeries):
        return [source.root] if source.in_archive else [source.root / name for name in source.files]
    if isinstance(source, ServerSeries):
        return []
    others = (source.with_name(name) for name in companions(source.name))
    return [source, *(path for path in others if is_file(path))]


def companions(name: str) -> list[str]:
    """Names that the other half of a volume may have, where its format keeps header and voxels apart."""
    ending = next((half for half in _HALVES if name.lower().endswith(half)), "")
    stem = name[: -len(ending)]
    return [stem + half for half in _HALVES if half != ending] if ending else []
