"""Discovery: what lies in the places that a person names, and what of it is a volume to classify.

One pass over the names, without reading volumes. Every file ends as a scan, as part of one, or as a count
with a reason; what cannot be looked into becomes a scan with a `problem`, so that it costs a row and is seen.
"""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Protocol

from ssclf.errors import DatasetError, SsclfError
from ssclf.io.discovery.naming import MASK, canonical_contrast, parse_name, volume_ending
from ssclf.io.discovery.scans import Scan, VoxelSource
from ssclf.io.image_hints import image_hint
from ssclf.io.records.tables import TABLE_ENDINGS, Table, TableRow, read_table
from ssclf.io.volumes.dicom_series import DicomSeries, SeriesSearch, find_series, is_dicom

#: Names that `ssclf preprocess` gives to what it writes, by which later runs know it below their sources.
PREPROCESSED = frozenset({"settings.json", "records", "volumes"})
OTHER_CONTRAST = "another contrast of a case"
MASK_BESIDE = "a mask beside a volume"
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".aria2", "~")
_NOT_READ = (".mnc", ".par", ".rec", ".head", ".brik", ".brik.gz", ".gipl", ".vtk", ".vti", ".mif")
_LEAVES = "a link that leads out of the folder is not followed; name its target as an input instead."
#: The folder that was given, seen from itself.
_ITSELF = "."
PREPROCESSED_FOLDER = "a folder that ssclf preprocess wrote"


@dataclass(frozen=True)
class Discovery:
    """Attributes:
    scans: sorted by path, then series; no two share both.
    other_files: reason → number of files that are no scan of their own.
    """

    scans: tuple[Scan, ...]
    other_files: Mapping[str, int]


@dataclass
class FolderContent:
    """What a walk over a folder found. Paths are below the folder, POSIX; in no particular order.

    Attributes:
        volumes: files with the ending of a volume; the header of a .hdr/.img pair.
        dicom: files that are DICOM by content.
        archives: zip files.
        tables: CSV and TSV files.
        problems: path → why a volume, link or folder cannot be looked at.
        other: reason → number of files.
    """

    volumes: list[str] = field(default_factory=list)
    dicom: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    other: Counter[str] = field(default_factory=Counter)

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
        if pattern and not _matches(path, name, pattern):
            self.other["not matching --pattern"] += 1
        elif lower.endswith(_UNFINISHED):
            self.other["an unfinished or temporary file"] += 1
        elif ending := volume_ending(lower):
            stem = lower[: -len(ending)]
            if not ending.startswith(".img"):
                self.volumes.append(path)
            elif not names & {stem + ".hdr", stem + ".hdr.gz"}:
                (self.dicom if file.is_dicom() else self.volumes).append(path)
        elif lower.endswith(".zip"):
            self.archives.append(path)
        elif lower.endswith(_NOT_READ):
            self.other[f"a volume in a format that is not read ({PurePosixPath(lower).suffix})"] += 1
        elif file.is_dicom():
            self.dicom.append(path)
        elif not file.is_readable():
            self.other["a file that may not be read"] += 1
        else:
            suffix = PurePosixPath(lower).suffix
            if suffix in TABLE_ENDINGS:
                self.tables.append(path)
            kind = suffix if 1 < len(suffix) <= 6 and suffix[1:].isalnum() else "no ending of a volume"
            self.other[f"not a volume ({kind})"] += 1


def discover(
    paths: Sequence[Path],
    *,
    contrasts: tuple[str, ...],
    pattern: str | None = None,
    series: str | None = None,
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

    Raises:
        DatasetError: a path does not exist, or a folder or manifest that was given cannot be read.
        ConfigError: `series` is no regular expression.
    """
    for path in paths:
        try:
            path.stat()
        except PermissionError as exc:
            raise DatasetError(f"{path}: may not be looked at by this user.{image_hint('user')}") from exc
        except OSError as exc:
            what = "a link to nothing" if path.is_symlink() else "nothing there"
            raise DatasetError(
                f"{path}: expected a file or a folder, found {what}; check the path.{image_hint('scans')}"
            ) from exc
    scans: list[Scan] = []
    other: Counter[str] = Counter()
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            content = walk_folder(path, pattern)
            inside = list(folder_scans(path, content, contrasts, series))
            scans += _keyed(path.as_posix(), inside, alone=len(paths) == 1)
            other += content.other
        elif path.name.lower().endswith(TABLE_ENDINGS):
            scans += _manifest_scans(path, contrasts, series, alone=len(paths) == 1)
        else:
            files.append(path)
    scans += _file_scans(files, contrasts, pattern, series, other)
    distinct: dict[object, Scan] = {}
    for scan in sorted(scans, key=_is_link):  # a file is known by its own name rather than by a link's
        identity = scan.path if scan.problem else (scan.series, *map(source_identity, scan.contrasts))
        if distinct.setdefault(identity, scan) is not scan:
            other["the same file or series again"] += 1
    ordered = sorted(distinct.values(), key=lambda scan: (scan.path, scan.series))
    return Discovery(tuple(ordered), dict(sorted(other.items())))


def walk_folder(root: Path, pattern: str | None = None) -> FolderContent:
    """Sort the files below a folder by what their names, or for DICOM their first bytes, say.

    Raises:
        DatasetError: the folder itself cannot be read.
    """
    content = FolderContent()
    for part in walk_folders(root, pattern):
        content.add(part)
    return content


def walk_folders(root: Path, pattern: str | None = None) -> Iterator[FolderContent]:
    """As `walk_folder`, one folder after the other, each before those inside it, by name.

    Raises:
        DatasetError: the folder itself cannot be read.
    """
    inside = os.path.realpath(root)
    pending = [""]
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
            if is_hidden(entry.name):
                content.other["hidden"] += 1
            elif entry.is_symlink() and (reason := _bad_link(entry, inside, content.other)) is not None:
                if reason:
                    content.problems[path] = reason
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif not entry.is_file():
                content.other["neither a file nor a folder"] += 1
            else:
                content.sort(path, names, pattern, _LocalFile(Path(entry.path)))
        pending += reversed(folders)
        yield content


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def is_preprocessed(folder: str, names: Set[str]) -> bool:
    """Whether a folder below the one that was given is what `ssclf preprocess` wrote."""
    return bool(folder) and names >= PREPROCESSED


class StoredFile(Protocol):
    """What sorting a file may ask beyond its name."""

    def is_dicom(self) -> bool: ...

    def is_readable(self) -> bool: ...


@dataclass(frozen=True)
class _LocalFile:
    path: Path

    def is_dicom(self) -> bool:
        return is_dicom(self.path)

    def is_readable(self) -> bool:
        return os.access(self.path, os.R_OK)


def _matches(path: str, name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(path, pattern)


def _bad_link(entry: os.DirEntry[str], inside: str, other: Counter[str]) -> str | None:
    """Why a link is not taken: a reason that is worth a row, "" for one that is counted, None to take it."""
    target = os.path.realpath(entry.path)
    if not target.startswith(inside.rstrip("/") + "/") and target != inside:
        if volume_ending(entry.name) or Path(target).is_dir():
            return _LEAVES
        other["a link out of the folder"] += 1
        return ""
    if os.path.isdir(target):  # noqa: PTH112 - answers for a link to itself, where entries raise
        other["a linked folder, found where it lies"] += 1
        return ""
    if not os.path.isfile(target):  # noqa: PTH113
        return "the link leads nowhere: its target is missing (or it leads to itself)."
    return None


def folder_scans(
    root: Path, content: FolderContent, contrasts: tuple[str, ...], series: str | None
) -> Iterator[Scan]:
    """The scans in what was found in a folder; their paths are below it."""
    for path, reason in content.problems.items():
        yield Scan(path, (root / path,), problem=reason)
    for key, sources, problem in group_contrasts(content.volumes, contrasts, content.other):
        yield Scan(key, tuple(root / source for source in sources), problem=problem)
    found = find_series([root / path for path in (*content.dicom, *content.archives)], matching=series)
    for scan in _series_scans(found, contrasts, content.other):
        yield replace(scan, path=PurePosixPath(scan.path).relative_to(root.as_posix()).as_posix())


def _series_scans(found: SeriesSearch, contrasts: tuple[str, ...], other: Counter[str]) -> Iterator[Scan]:
    problem = "" if len(contrasts) == 1 else _needs_manifest(contrasts, "a DICOM series")
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


def _needs_manifest(contrasts: Sequence[str], found: str) -> str:
    return (
        f"the model takes {', '.join(contrasts)} of one case, found {found}; "
        "give a manifest with a column for each contrast."
    )


def cases_by_name(
    paths: Iterable[str], wanted: tuple[str, ...], other: Counter[str]
) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Volumes by the case that their names state.

    Args:
        paths: POSIX paths of volumes.
        wanted: names of contrasts beyond the usual ones.
        other: counts masks that lie beside a volume; a mask alone is taken for a volume, since its name alone is
            no reason to leave it out.

    Returns:
        (folder, case) → contrast, or "" where the name states none → paths, sorted.
    """
    cases: dict[tuple[str, str], dict[str, list[str]]] = {}
    stems: set[tuple[str, str]] = set()
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        parsed = parse_name(name, wanted)
        cases.setdefault((folder, parsed.case), {}).setdefault(parsed.contrast, []).append(path)
        if parsed.contrast != MASK:
            stems.add((folder, parsed.stem))
    for key, case in list(cases.items()):
        masks = case.pop(MASK, [])
        if masks and not case and key not in stems:
            case[""] = masks
        elif masks:
            other[MASK_BESIDE] += len(masks)
            if not case:
                del cases[key]
    return cases


def group_contrasts(
    paths: Iterable[str], contrasts: tuple[str, ...], other: Counter[str]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Choose, from volumes that are contrasts of one case, those that the model takes.

    Args:
        paths: POSIX paths of volumes; those of one folder whose names differ in the contrast belong together.
        contrasts: wanted ones, in channel order.
        other: counts what is left out.

    Yields:
        key, sources in channel order, problem. For one contrast the key is the file itself: the wanted
        contrast of each case that has it, and every volume of a case that does not. For several it is the
        folder, or folder/case where the folder holds more than one case.
    """
    wanted = tuple(canonical_contrast(contrast) for contrast in contrasts)
    cases = cases_by_name(paths, wanted, other)
    named = Counter(folder for (folder, _), case in cases.items() if set(case) - {""})
    for (folder, name), case in cases.items():
        if len(wanted) == 1:
            chosen = case.get(wanted[0]) or [path for group in case.values() for path in group]
            other[OTHER_CONTRAST] += sum(map(len, case.values())) - len(chosen)
            yield from ((path, (path,), "") for path in chosen)
            continue
        for path in case.pop("", []):
            yield path, (path,), _needs_manifest(contrasts, "one file whose name states no contrast")
        if not case:
            continue
        key = folder if named[folder] == 1 or not name else f"{folder}/{name}"
        key = key.lstrip("/") or _ITSELF
        sources = [case.get(contrast, []) for contrast in wanted]
        other[OTHER_CONTRAST] += sum(map(len, case.values())) - sum(map(len, sources))
        if all(len(group) == 1 for group in sources):
            yield key, tuple(group[0] for group in sources), ""
        else:
            have = ", ".join(f"{len(group)} × {contrast}" for contrast, group in sorted(case.items()))
            first = next(path for group in case.values() for path in group)
            yield key, (first,), _needs_manifest(contrasts, have)
    if not other[OTHER_CONTRAST]:
        del other[OTHER_CONTRAST]


def _keyed(prefix: str, scans: list[Scan], *, alone: bool) -> Iterator[Scan]:
    """Turn paths below a folder into keys: as they are, or behind the folder where others were given too."""
    taken = {scan.path for scan in scans}
    for scan in scans:
        if scan.path == _ITSELF:
            yield scan if alone and prefix in taken else replace(scan, path=prefix)
        else:
            yield scan if alone else replace(scan, path=(PurePosixPath(prefix) / scan.path).as_posix())


def _file_scans(
    files: list[Path],
    contrasts: tuple[str, ...],
    pattern: str | None,
    series: str | None,
    other: Counter[str],
) -> Iterator[Scan]:
    """Files that were named one by one: all of them are meant, so what is no volume is a problem."""
    volumes, slices = [], []
    for path in files:
        if pattern and not _matches(path.as_posix(), path.name, pattern):
            other["not matching --pattern"] += 1
        elif volume_ending(path.name):
            volumes.append(path)
        elif path.name.lower().endswith(".zip") or (path.is_file() and is_dicom(path)):
            slices.append(path)
        else:
            reason = "expected a volume (NIfTI, MGZ, NRRD, MHA, DICOM), found another kind of file."
            yield Scan(path.as_posix(), (path,), problem=reason)
    if len(contrasts) == 1:
        yield from (Scan(path.as_posix(), (path,)) for path in volumes)
    else:
        for key, sources, problem in group_contrasts([p.as_posix() for p in volumes], contrasts, other):
            yield Scan(key, tuple(Path(source) for source in sources), problem=problem)
    found = find_series(slices, matching=series) if slices else SeriesSearch()
    reasons = {left.path: left.reason for left in found.left_out}
    for path in slices:
        if path in reasons and not any(scan.root == path for scan in found.series):
            yield Scan(path.as_posix(), (path,), problem=reasons[path])
    yield from _series_scans(SeriesSearch(found.series), contrasts, other)


def _manifest_scans(
    path: Path, contrasts: tuple[str, ...], series: str | None, *, alone: bool
) -> Iterator[Scan]:
    table = read_table(path)
    columns = manifest_columns(table, contrasts)
    for row, name in named_rows(table):
        yield manifest_scan(path, row, name, columns, series, alone=alone)


def manifest_columns(table: Table, contrasts: tuple[str, ...]) -> tuple[str, ...]:
    """The column of each contrast, in channel order.

    Raises:
        DatasetError: a contrast has none.
    """
    columns = contrast_columns(table.columns, contrasts)
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
    path: Path, row: TableRow, name: str, columns: tuple[str, ...], series: str | None, *, alone: bool = True
) -> Scan:
    """What a row of a manifest stands for; what cannot be found is a scan with a `problem`."""
    cells = [row[column] for column in columns]
    key = f"{path.as_posix()}#{name}"
    if len(columns) == 1 and cells[0]:
        key = cells[0] if alone else (path.parent / cells[0]).as_posix()
    try:
        sources = [table_source(path, row, column, series) for column in columns]
    except SsclfError as exc:
        return Scan(key, (path,), problem=str(exc))
    names = "+".join(source.name for source in sources if isinstance(source, DicomSeries))
    return Scan(key, tuple(sources), names)


def contrast_columns(columns: Sequence[str], contrasts: tuple[str, ...]) -> dict[str, str]:
    """Which column of a manifest holds which contrast: of its name, or `path` where there is one contrast."""
    found = {}
    for contrast in contrasts:
        same = [c for c in columns if c == contrast or canonical_contrast(c) == canonical_contrast(contrast)]
        if same:
            found[contrast] = same[0]
        elif "path" in columns and len(contrasts) == 1:
            found[contrast] = "path"
    return found


def table_source(table: Path, row: TableRow, column: str, series: str | None = None) -> VoxelSource:
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
    if not path.exists():
        raise DatasetError(f"{place}: expected a volume in column {column}, found no file {cell}.")
    if path.is_file() and volume_ending(path.name):
        return path
    found = find_series(path, matching=series)
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
    if source.is_symlink():
        return os.path.realpath(source)
    return f"{_real_folder(str(source.parent))}/{source.name}"


def _is_link(scan: Scan) -> bool:
    return any(isinstance(source, Path) and source.is_symlink() for source in scan.contrasts)


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)
