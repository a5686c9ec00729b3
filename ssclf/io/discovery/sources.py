"""Discovery: what lies in the places that a person names, and what of it is a volume to classify.

One pass over the names, without reading volumes. Every file ends as a scan, as part of one, or as a count
with a reason; what cannot be looked into becomes a scan with a `problem`, so that it costs a row and is seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ssclf.config import canonical_contrast
from ssclf.errors import DatasetError, SsclfError
from ssclf.io.discovery.folders import FolderContent, matches_pattern, walk_folder
from ssclf.io.discovery.naming import ITSELF, group_contrasts, needs_manifest
from ssclf.io.discovery.scans import Scan, VoxelSource, with_own_keys
from ssclf.io.image_hints import image_hint
from ssclf.io.junk import LFS_POINTER, is_lfs_pointer
from ssclf.io.own_output import START_BYTES, own_volume
from ssclf.io.paths import is_file, is_folder, is_link, is_manifest, names_a_file, real_path, why_missing
from ssclf.io.records.tables import Table, TableRow, read_table
from ssclf.io.volumes.dicom_files import HeaderWorkers, Limits
from ssclf.io.volumes.dicom_headers import looks_like_dicom
from ssclf.io.volumes.dicom_series import DicomSeries, SeriesSearch, find_series
from ssclf.io.volumes.dicomweb import ServerSeries
from ssclf.io.volumes.endings import DICOM_ENDINGS, volume_ending


@dataclass(frozen=True)
class Discovery:
    """Attributes:
    scans: sorted by path, then series; no two share both.
    other_files: reason → number of files that are no scan of their own.
    """

    scans: tuple[Scan, ...]
    other_files: Mapping[str, int]


def discover(
    paths: Sequence[Path],
    *,
    contrasts: tuple[str, ...],
    pattern: str | None = None,
    series: str | None = None,
    limits: Limits | HeaderWorkers | None = None,
    begin: Sequence[str] = ("",),
) -> Discovery:
    """Find the scans to classify.

    A scan's key is its path below the folder where one folder is all that was given, else the path as given.
    Links are not followed out of a folder, and a linked folder is not entered: what it shows is found where
    it lies.

    Args:
        paths: files, folders, zip archives, and manifests (CSV) with one row per subject.
        contrasts: of the model, in channel order; a model of several takes them from files whose names
            differ in the contrast only, or from a manifest.
        pattern: shell pattern on file names, or on paths below the folder; takes matching files only.
        series: regular expression on the series description of DICOM.
        limits: of worker processes that look at DICOM headers, or these themselves, which go on; None: this process
            does.
        begin: the folders below each of `paths` that are looked into, "" for all of it.

    A volume, slice or archive that was named and is not there becomes a scan with a `problem`, as one that goes
    while it is being read does. Where nothing that was named is there, or a name is that of a manifest or of what
    may be a folder, all rows of which would go with it, nothing is classified.

    Raises:
        DatasetError: none of the paths can be looked at, or one that may be a folder or is a manifest cannot.
        ConfigError: `series` is no regular expression.
    """
    with HeaderWorkers(limits) if isinstance(limits, Limits) else nullcontext(limits) as workers:
        return _discover(paths, contrasts, pattern, series, workers, begin)


def _discover(
    paths: Sequence[Path],
    contrasts: tuple[str, ...],
    pattern: str | None,
    series: str | None,
    workers: HeaderWorkers | None,
    begin: Sequence[str],
) -> Discovery:
    missing = {path: why for path in paths if (why := why_missing(path))}
    for path, why in missing.items():
        if len(missing) == len(paths) or not names_a_file(path):
            raise DatasetError(_missing(path, why))
    scans: list[Scan] = []
    other: Counter[str] = Counter()
    files: list[Path] = []
    for path in paths:
        if path in missing:
            scans.append(Scan(path.as_posix(), (path,), problem=_missing(path, missing[path])))
        elif is_folder(path):
            content = walk_folder(path, pattern, begin)
            inside = list(folder_scans(path, content, contrasts, series, workers))
            scans += _keyed(path.as_posix(), inside, alone=len(paths) == 1)
            other += content.other
        elif is_manifest(path):
            scans += _manifest_scans(path, contrasts, series, workers, alone=len(paths) == 1)
        else:
            files.append(path)
    scans += _file_scans(files, contrasts, pattern, series, other, workers)
    distinct: dict[object, Scan] = {}
    for scan in sorted(scans, key=_is_link):  # a file is known by its own name rather than by a link's
        identity = (
            (scan.path, scan.problem)
            if scan.problem
            else (scan.series, *map(source_identity, scan.contrasts))
        )
        if distinct.setdefault(identity, scan) is not scan:
            other["the same file or series again"] += 1
    return Discovery(tuple(with_own_keys(distinct.values())), dict(sorted(other.items())))


def _missing(path: Path, why: str) -> str:
    hint = image_hint("user" if "user" in why else "scans")
    return (
        f"{path}: expected a file or a folder, found nothing that can be read: it {why} Check the path.{hint}"
    )


def folder_scans(
    root: Path,
    content: FolderContent,
    contrasts: tuple[str, ...],
    series: str | None,
    workers: HeaderWorkers | None = None,
) -> Iterator[Scan]:
    """The scans in what was found in a folder; their paths are below it."""
    for path, reason in content.problems.items():
        yield Scan(path, (root / path,), problem=reason)
    for key, sources, problem in group_contrasts(content.volumes, contrasts, content.other):
        yield Scan(key, tuple(root / source for source in sources), problem=problem)
    files = [root / path for path in (*content.dicom, *content.archives)]
    yield from series_below(
        root, find_series(files, matching=series, workers=workers), contrasts, content.other
    )


def series_below(
    root: Path, found: SeriesSearch, contrasts: tuple[str, ...], other: Counter[str]
) -> Iterator[Scan]:
    """The scans in the DICOM of a folder; their paths are below it.

    Args:
        other: counts what is left out.
    """
    for scan in _series_scans(found, contrasts, other):
        yield replace(scan, path=PurePosixPath(scan.path).relative_to(root.as_posix()).as_posix())


def _series_scans(found: SeriesSearch, contrasts: tuple[str, ...], other: Counter[str]) -> Iterator[Scan]:
    problem = "" if len(contrasts) == 1 else needs_manifest(contrasts, "a DICOM series")
    for one in found.series:
        yield Scan(one.location.as_posix(), (one,), one.name, problem)
    broken: dict[str, Scan] = {}
    for left in found.left_out:
        if left.broken:
            key = left.path.as_posix()
            broken.setdefault(key, Scan(key, (left.path,), problem=left.reason))
        else:
            other[left.reason.rstrip(".")] += left.files
    yield from broken.values()


def _keyed(prefix: str, scans: list[Scan], *, alone: bool) -> Iterator[Scan]:
    """Turn paths below a folder into keys: as they are, or behind the folder where others were given too."""
    taken = {scan.path for scan in scans}
    for scan in scans:
        if scan.path == ITSELF:
            yield scan if alone and prefix in taken else replace(scan, path=prefix)
        else:
            yield scan if alone else replace(scan, path=(PurePosixPath(prefix) / scan.path).as_posix())


def _file_scans(
    files: list[Path],
    contrasts: tuple[str, ...],
    pattern: str | None,
    series: str | None,
    other: Counter[str],
    workers: HeaderWorkers | None,
) -> Iterator[Scan]:
    """Files that were named one by one: all of them are meant, so what is no volume is a problem."""
    volumes, slices = [], []
    for path in files:
        if pattern and not matches_pattern(path.as_posix(), path.name, pattern):
            other["not matching --pattern"] += 1
        elif problem := _unfit(path):
            yield Scan(path.as_posix(), (path,), problem=problem)
        elif volume_ending(path.name):
            volumes.append(path)
        else:
            slices.append(path)
    if len(contrasts) == 1:
        yield from (Scan(path.as_posix(), (path,)) for path in volumes)
    else:
        for key, sources, problem in group_contrasts([p.as_posix() for p in volumes], contrasts, other):
            yield Scan(key, tuple(Path(source) for source in sources), problem=problem)
    found = find_series(slices, matching=series, workers=workers) if slices else SeriesSearch()
    reasons = {left.path: left for left in found.left_out}
    for path in slices:
        # what an archive holds besides a series is its own affair, but not what may have been part of it
        left = reasons.get(path)
        if left and (left.broken or not any(series.root == path for series in found.series)):
            yield Scan(path.as_posix(), (path,), problem=left.reason)
    yield from _series_scans(SeriesSearch(found.series), contrasts, other)


def _unfit(path: Path) -> str:
    """Why a file that was named is no volume or slice, "" where it may be one."""
    if not is_file(path):
        return "expected a file, found a pipe or a device."
    if path.name.lower().endswith(".zip"):
        return ""
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
    except OSError as exc:
        return f"cannot be read ({exc.strerror or exc})."
    if is_lfs_pointer(start):
        return f"expected a volume, found something else: {LFS_POINTER}"
    if volume_ending(path.name):
        ours = own_volume(path.name, start)
        return f"expected a scan, found {ours}; give the scan it was made from." if ours else ""
    if looks_like_dicom(start) or path.name.lower().endswith(DICOM_ENDINGS):
        return ""
    return "expected a volume (NIfTI, MGZ, NRRD, MHA, DICOM), found another kind of file."


def _manifest_scans(
    path: Path,
    contrasts: tuple[str, ...],
    series: str | None,
    workers: HeaderWorkers | None,
    *,
    alone: bool,
) -> Iterator[Scan]:
    table = read_table(path)
    columns = manifest_columns(table, contrasts)
    for row, name in named_rows(table):
        yield manifest_scan(path, row, name, columns, series, alone=alone, workers=workers)


def manifest_columns(table: Table, contrasts: tuple[str, ...]) -> tuple[str, ...]:
    """The column of each contrast, in channel order.

    Raises:
        DatasetError: a contrast has none.
    """
    columns = contrast_columns(table, contrasts)
    missing = [contrast for contrast in contrasts if contrast not in columns]
    if missing:
        raise DatasetError(
            f"{table.path.name}: expected a column for each of {', '.join(contrasts)}"
            f"{' (or a column path)' if len(contrasts) == 1 else ''}, found {', '.join(table.columns)}."
        )
    return tuple(columns[contrast] for contrast in contrasts)


def named_rows(table: Table) -> Iterator[tuple[TableRow, str]]:
    """Rows and what to call them: the subject where no other row has it, else the line."""
    subjects = Counter(row["subject"] for row in table.rows)
    for row in table.rows:
        yield row, row["subject"] if subjects[row["subject"]] == 1 and row["subject"] else f"line {row.line}"


def manifest_scan(
    path: Path,
    row: TableRow,
    name: str,
    columns: tuple[str, ...],
    series: str | None,
    *,
    alone: bool = True,
    workers: HeaderWorkers | None = None,
) -> Scan:
    """What a row of a manifest stands for; what cannot be found is a scan with a `problem`."""
    cells = [row[column] for column in columns]
    key = f"{path.as_posix()}#{name}"
    if len(columns) == 1 and cells[0]:
        key = cells[0] if alone else (path.parent / cells[0]).as_posix()
    try:
        sources = [table_source(path, row, column, series, workers) for column in columns]
    except SsclfError as exc:
        return Scan(key, (path,), problem=str(exc))
    names = "+".join(source.name for source in sources if isinstance(source, DicomSeries))
    return Scan(key, tuple(sources), names)


def contrast_columns(table: Table, contrasts: tuple[str, ...]) -> dict[str, str]:
    """Which column of a manifest holds which contrast: of its name, of another word for it, or `path` where there is
    one contrast.

    Raises:
        DatasetError: several columns hold it under other words.
    """
    found = {}
    for contrast in contrasts:
        same = [c for c in table.columns if canonical_contrast(c) == canonical_contrast(contrast)]
        if contrast in same or len(same) == 1:
            found[contrast] = contrast if contrast in same else same[0]
        elif same:
            raise DatasetError(
                f"{table.path.name}: expected one column for {contrast}, found {', '.join(same)}, which mean the same; "
                f"call the one that is wanted {contrast}."
            )
        elif "path" in table.columns and len(contrasts) == 1:
            found[contrast] = "path"
    return found


def table_source(
    table: Path,
    row: TableRow,
    column: str,
    series: str | None = None,
    workers: HeaderWorkers | None = None,
) -> VoxelSource:
    """What a cell of a manifest names: a volume, or a folder or archive with one DICOM series.

    Args:
        table: the manifest; a path that is not absolute starts at its folder.

    Raises:
        DatasetError: an empty cell, nothing there, or not exactly one volume there.
    """
    place = f"{table.name} line {row.line}"
    cell = row[column]
    if not cell:
        raise DatasetError(f"{place}: expected a path in column {column}, found an empty cell.")
    path = table.parent / cell
    if why := why_missing(path):
        what = f"no file {cell}" if why == "is not there." else f"{cell}, which {why.rstrip('.')}"
        raise DatasetError(f"{place}: expected a volume in column {column}, found {what}.")
    if is_file(path) and volume_ending(path.name):
        return path
    found = find_series(path, matching=series, workers=workers)
    if len(found.series) != 1:
        raise DatasetError(
            f"{place}: expected a volume or one DICOM series in column {column}, found {len(found.series)} "
            f"series in {cell}."
        )
    return found.series[0]


def source_identity(source: VoxelSource) -> str:
    """Equal for two names of one file or series."""
    if isinstance(source, DicomSeries):
        return f"{source_identity(source.root / source.files[0])} {source.name}"
    if isinstance(source, ServerSeries):
        return f"{source.server} {source.uid}"
    if is_link(source):
        return str(real_path(source))
    return f"{_real_folder(str(source.parent))}/{source.name}"


def _is_link(scan: Scan) -> bool:
    return any(isinstance(source, Path) and is_link(source) for source in scan.contrasts)


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return str(real_path(folder))
