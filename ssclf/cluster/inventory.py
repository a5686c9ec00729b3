"""What there is to classify, put down in partitions: discovery for sources too large for one list.

Two steps, both able to run on any node. `take_inventory` walks over names and writes *units*: volumes, whose
scans follow from names alone, and what must be opened to be understood (DICOM folders, archives, manifest rows).
`settle` turns the units of one partition into scans, with the same functions that plain discovery uses. A DICOM
series may lie in several folders, and a volume whose slices have a series each: `join_series` finds what two units
share and settles them together.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from ssclf.cluster.partitions import Planned, decode_plan, encode_plan
from ssclf.cluster.store import Store
from ssclf.errors import DatasetError, SsclfError
from ssclf.io.discovery.folders import PREPROCESSED_FOLDER, FolderContent, is_preprocessed, walk_folders
from ssclf.io.discovery.naming import group_contrasts
from ssclf.io.discovery.scans import Scan
from ssclf.io.discovery.sources import discover, manifest_columns, manifest_scan, named_rows, series_below
from ssclf.io.junk import junk_name, junk_path
from ssclf.io.own_output import START_BYTES
from ssclf.io.paths import is_link
from ssclf.io.records.map_names import MAP_ENDING
from ssclf.io.records.tables import TABLE_ENDINGS, TableRow, read_table
from ssclf.io.volumes.dicom_grouping import FEW_SINGLE_SLICES
from ssclf.io.volumes.dicom_headers import looks_like_dicom
from ssclf.io.volumes.dicom_series import DicomSeries, find_series
from ssclf.io.volumes.endings import volume_ending

_REPEATED = "the same file or series again"
#: A folder of DICOM slices counts as one volume for so many files: reading their headers takes its time.
_SLICES = 200


@dataclass(frozen=True)
class Selection:
    """What of a source is taken; see `discover`."""

    contrasts: tuple[str, ...]
    pattern: str | None = None
    series: str | None = None
    keep_uids: bool = False


@dataclass(frozen=True)
class Source:
    """What the user named.

    Attributes:
        text: as given; where it stands in for a path, keys begin with it.
        base: folder that holds it; the folder itself where it is one.
        file: its name below `base` where it is a manifest, a volume or an archive; else "".
    """

    text: str
    base: Store
    file: str = ""

    @staticmethod
    def at(text: str) -> Source:
        """Raises:
        DatasetError: there is nothing.
        """
        place = Store.at(text)
        kind = place.kind()
        if not kind:
            raise DatasetError(
                f"{text}: expected a folder, a file or a manifest, found nothing there; check the path, and that "
                "every node of the cluster sees it under that name."
            )
        name = Path(text).as_posix() if place.local else text
        return Source(name, place) if kind == "folder" else Source(name, place.parent, place.name)

    @property
    def is_manifest(self) -> bool:
        return self.file.lower().endswith(TABLE_ENDINGS)


@dataclass(frozen=True)
class ScanUnit:
    """A volume whose scan follows from names alone, or a path that can be none.

    Attributes:
        path: the key of its row.
        files: below the source's base, one a contrast; none where there is a problem.
        problem: why it cannot be read.
        stamps: of `files`, where the storage is remote: local files are looked at when they are settled.
    """

    path: str
    files: tuple[str, ...] = ()
    problem: str = ""
    stamps: tuple[str, ...] = ()


@dataclass(frozen=True)
class FolderUnit:
    """DICOM files that must be opened to be understood: those of one folder, or an archive; more once joined.

    Attributes:
        files: below the source's base.
        stamps: of `files`, where the storage is remote.
    """

    files: tuple[str, ...] = ()
    stamps: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowUnit:
    """A row of the manifest.

    Attributes:
        line: where it starts in the file, from 1.
        name: the key of its row where no cell names a volume.
        cells: by column.
        columns: those that name volumes, in the order of the contrasts.
    """

    line: int
    name: str
    cells: Mapping[str, str]
    columns: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """What the row names: files, folders or URLs, not looked at yet."""
        return tuple(self.cells[column] for column in self.columns if self.cells.get(column))


@dataclass(frozen=True)
class FileUnit:
    """The source itself, where it is a volume or an archive."""

    file: str
    stamp: str


#: What is settled together.
Unit = ScanUnit | FolderUnit | RowUnit | FileUnit
_KINDS: dict[str, Callable[..., Unit]] = {
    "scan": ScanUnit,
    "folder": FolderUnit,
    "row": RowUnit,
    "file": FileUnit,
}


@dataclass(frozen=True)
class Settled:
    """A partition of the plan. `dicom`: whether series of other partitions might go on here."""

    number: int
    volumes: int
    other_files: Mapping[str, int]
    dicom: bool


def plan_name(number: int) -> str:
    return f"_plan/part-{number:05d}.parquet"


def _units_name(number: int) -> str:
    return f"_plan/units-{number:05d}.jsonl"


def _lone_name(number: int) -> str:
    return f"_plan/lone-{number:05d}.json"


def take_inventory(
    source: Source, out: Store, selection: Selection, *, size: int
) -> tuple[int, Counter[str]]:
    """Write the units of a source, about `size` volumes to a partition.

    Memory holds one folder's names and one partition at a time; for manifests the table; for links one number
    each.

    Returns:
        number of partitions, and reason → number of files that are no volume, so far.

    Raises:
        DatasetError: the source cannot be read.
    """
    other: Counter[str] = Counter()
    number, weight = 0, 0
    units: list[Unit] = []
    for unit in _units(source, selection, other):
        units.append(unit)
        weight += 1 + len(unit.files) // _SLICES if isinstance(unit, FolderUnit) else 1
        if weight >= size:
            _write_units(out, number, units)
            number, weight, units = number + 1, 0, []
    if units:
        _write_units(out, number, units)
        number += 1
    return number, other


def _units(source: Source, selection: Selection, other: Counter[str]) -> Iterator[Unit]:
    if source.is_manifest:
        yield from _manifest_units(source, selection, other)
        return
    if source.file:
        yield FileUnit(source.file, source.base.stamp(source.file))
        return
    local = source.base.local
    walk = (
        ((content, {}) for content in walk_folders(local, selection.pattern))
        if local
        else _walk_remote(source.base, selection.pattern)
    )
    linked: set[str] = set()
    for content, stamps in walk:
        if local:
            content.volumes = list(_without_links(content.volumes, local, selection, linked, other))
        for path, reason in content.problems.items():
            yield ScanUnit(path, problem=reason)
        for key, files, problem in group_contrasts(content.volumes, selection.contrasts, content.other):
            path = source.text if key == "." else key
            yield ScanUnit(path, tuple(files), problem, _stamps_of(files, stamps))
        groups = [[archive] for archive in content.archives]
        if content.dicom:
            groups.append(content.dicom)
        for group in groups:
            yield FolderUnit(tuple(group), _stamps_of(group, stamps))
        other += content.other


def _stamps_of(files: Iterable[str], stamps: Mapping[str, str]) -> tuple[str, ...]:
    """One a file, from what a walk has seen; none where the storage is local."""
    return tuple(stamps.get(file, "") for file in files) if stamps else ()


def _without_links(
    paths: Iterable[str], root: Path, selection: Selection, seen: set[str], other: Counter[str]
) -> Iterator[str]:
    """Leave out links to what is found elsewhere: under its own name, or by an earlier link."""
    top = os.path.realpath(root)
    for path in paths:
        if is_link(root / path):
            target = os.path.realpath(root / path)
            below = os.path.relpath(target, top)
            own = FolderContent()
            if not junk_path(below) and volume_ending(below):
                own.sort(below, frozenset(), selection.pattern, _Unseen())
            if own.volumes or target in seen:
                other[_REPEATED] += 1
                continue
            seen.add(target)
        yield path


class _Unseen:
    def start(self) -> bytes:
        return b""

    def is_dicom(self) -> bool:
        return False

    def is_readable(self) -> bool:
        return True


@dataclass(frozen=True)
class _RemoteFile:
    store: Store
    path: str

    def start(self) -> bytes:
        # A request each: of a million volumes only those are looked into that have the name of a map.
        if volume_ending(self.path) and not self.path.endswith(MAP_ENDING):
            return b""
        return self._start

    @cached_property
    def _start(self) -> bytes:
        try:
            return self.store.read(self.path, first=START_BYTES)
        except (OSError, DatasetError):
            return b""

    def is_dicom(self) -> bool:
        return looks_like_dicom(self._start)

    def is_readable(self) -> bool:
        return True


def _walk_remote(root: Store, pattern: str | None) -> Iterator[tuple[FolderContent, dict[str, str]]]:
    """As `walk_folders`, with the stamp of each file."""
    pending = [""]
    while pending:
        folder = pending.pop()
        content, stamps = FolderContent(), {}
        listed = root.entries(folder)
        names = {entry.name.lower() for entry in listed}
        if is_preprocessed(folder, names):
            content.other[PREPROCESSED_FOLDER] += 1
            listed = []
        folders = []
        for entry in listed:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if junk := junk_name(entry.name):
                content.other[junk] += 1
            elif entry.is_folder:
                folders.append(path)
            else:
                stamps[path] = entry.stamp
                content.sort(path, names, pattern, _RemoteFile(root, path))
        content.close_folder(folder)
        pending += reversed(folders)
        yield content, stamps


def _manifest_units(source: Source, selection: Selection, other: Counter[str]) -> Iterator[Unit]:
    with tempfile.TemporaryDirectory(prefix="ssclf-") as folder:
        local = source.base.local
        path = local / source.file if local else source.base.fetch(source.file, Path(folder))
        table = read_table(path)
    columns = manifest_columns(table, selection.contrasts)
    seen: set[int] = set()
    for row, name in named_rows(table):
        identity = hash(tuple(os.path.normpath(row[column]) for column in columns))
        if all(row[column] for column in columns) and identity in seen:
            other[_REPEATED] += 1
            continue
        seen.add(identity)
        yield RowUnit(row.line, name, dict(row.cells), tuple(columns))


def settle(
    source: Source,
    out: Store,
    number: int,
    selection: Selection,
    fingerprint: Callable[[Scan, tuple[str, ...]], str],
) -> Settled:
    """Turn the units of a partition into planned scans and write them.

    Args:
        fingerprint: what a scan's row will be made from; gets the scan, with places that can be looked at, and
            the stamps of its files where the storage is remote.

    Raises:
        SsclfError: the storage does not answer.
    """
    other: Counter[str] = Counter()
    planned: list[Planned] = []
    lone: list[tuple[str, str, int]] = []
    dicom = False
    local = source.base.local
    base = local or Path("/")
    for unit in _read_units(out, number):
        dicom = dicom or isinstance(unit, FolderUnit)
        with tempfile.TemporaryDirectory(prefix="ssclf-") as scratch:
            here = local or Path(scratch)
            for scan in list(_settle_unit(source, unit, here, selection, other, lone)):
                if selection.keep_uids and scan.series and isinstance(scan.contrasts[0], DicomSeries):
                    scan = replace(scan, series=scan.contrasts[0].uid)
                # looked at while the files are still here; planned as they lie in the source, where any node finds them
                mark = fingerprint(scan, _stamps(unit, source))
                planned.append(Planned(_moved(scan, here, base), mark))
    # of several with one key the first stands: a stable sort, read from its end
    planned.sort(key=lambda one: one.key)
    distinct = {one.key: one for one in reversed(planned)}
    if len(distinct) < len(planned):
        other[_REPEATED] += len(planned) - len(distinct)
    out.write(plan_name(number), encode_plan(sorted(distinct.values(), key=lambda one: one.key), base))
    if dicom:
        out.write(_lone_name(number), json.dumps(lone).encode())
    return Settled(number, len(distinct), dict(other), dicom)


def _stamps(unit: Unit, source: Source) -> tuple[str, ...]:
    """Of a unit's files, where the storage is remote; a manifest's are looked at only now."""
    match unit:
        case ScanUnit() | FolderUnit():
            return unit.stamps
        case FileUnit():
            return (unit.stamp,)
        case RowUnit():
            return () if source.base.local else tuple(_stamp_below(source.base, file) for file in unit.files)


def _stamp_below(base: Store, file: str) -> str:
    try:
        base.check_inside(file)
    except DatasetError:
        return "gone"
    return base.stamp(file)


def _write_units(out: Store, number: int, units: Iterable[Unit]) -> None:
    kinds: dict[object, str] = {unit: kind for kind, unit in _KINDS.items()}
    lines = (json.dumps({"kind": kinds[type(unit)], **asdict(unit)}) for unit in units)
    out.write(_units_name(number), "\n".join(lines).encode())


def _read_units(out: Store, number: int) -> list[Unit]:
    units = []
    for line in out.read(_units_name(number)).decode().splitlines():
        values = json.loads(line)
        kind = _KINDS[values.pop("kind")]
        units.append(kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}))
    return units


def _moved(scan: Scan, here: Path, base: Path) -> Scan:
    """The scan as it lies below `base` instead of `here`."""
    if here == base:
        return scan

    def move(path: Path) -> Path:
        return base / path.relative_to(here) if path.is_relative_to(here) else path

    return replace(
        scan,
        contrasts=tuple(
            replace(one, root=move(one.root)) if isinstance(one, DicomSeries) else move(one)
            for one in scan.stored
        ),
    )


def _settle_unit(
    source: Source,
    unit: Unit,
    here: Path,
    selection: Selection,
    other: Counter[str],
    lone: list[tuple[str, str, int]],
) -> Iterator[Scan]:
    """The scans of a unit, with their files below `here`: the source's own place, or where they were fetched to.

    Args:
        other: reason → number of files that are no volume; added to.
        lone: `LoneSlices`, with paths below `here`; added to.
    """
    match unit:
        case ScanUnit():
            yield Scan(unit.path, tuple(here / file for file in unit.files), problem=unit.problem)
        case FolderUnit():
            yield from _settle_folder(source, unit, here, selection, other, lone)
        case RowUnit():
            yield _settle_row(source, unit, here, selection)
        case FileUnit():
            yield from _settle_file(source, unit, here, selection, other)


def _settle_folder(
    source: Source,
    unit: FolderUnit,
    here: Path,
    selection: Selection,
    other: Counter[str],
    lone: list[tuple[str, str, int]],
) -> Iterator[Scan]:
    if source.base.local is None:
        source.base.fetch_all(unit.files, here)
    found = find_series([here / file for file in unit.files], matching=selection.series)
    for scan in series_below(here, found, selection.contrasts, other):
        yield replace(scan, path=source.text if scan.path == "." else scan.path)
    lone += [(some.frame, some.path.relative_to(here).as_posix(), some.count) for some in found.lone]


def _settle_file(
    source: Source, unit: FileUnit, here: Path, selection: Selection, other: Counter[str]
) -> Iterator[Scan]:
    if source.base.local is None:
        source.base.fetch(unit.file, here)
    own = here / unit.file
    found = discover([own], contrasts=selection.contrasts, pattern=selection.pattern, series=selection.series)
    other.update(found.other_files)
    for scan in found.scans:
        # keys begin with what the user gave, not with where this node has put it
        yield replace(scan, path=scan.path.replace(own.as_posix(), source.text, 1))


def _settle_row(source: Source, unit: RowUnit, here: Path, selection: Selection) -> Scan:
    if source.base.local is None:
        # what must be looked into is fetched; of a volume the name is enough
        for cell in unit.files:
            try:
                source.base.check_inside(cell)
                (here / cell).parent.mkdir(parents=True, exist_ok=True)
                _fetch_cell(source.base, cell, here)
            except FileNotFoundError:
                continue
            except SsclfError as exc:
                return Scan(cell, (), problem=str(exc))
    table = here / source.file
    row = TableRow(unit.line, unit.cells)
    scan = manifest_scan(table, row, unit.name, unit.columns, selection.series)
    return replace(scan, path=scan.path.replace(table.as_posix(), source.text, 1))


def _fetch_cell(base: Store, cell: str, here: Path) -> None:
    kind = base.kind(cell)
    if not kind:
        raise FileNotFoundError(cell)
    if kind == "file" and volume_ending(cell):
        (here / cell).touch()
    elif kind == "file":
        base.fetch(cell, here)
    else:
        for content, _ in _walk_remote(base.below(cell), None):
            base.fetch_all([f"{cell}/{name}" for name in (*content.dicom, *content.archives)], here)


def join_series(
    source: Source,
    out: Store,
    numbers: Iterable[int],
    selection: Selection,
    fingerprint: Callable[[Scan, tuple[str, ...]], str],
) -> list[Settled]:
    """Settle together what holds parts of one DICOM series, or slices of one volume that have a series each.

    Memory holds 8 bytes and a place per series.

    Args:
        numbers: partitions with DICOM.

    Returns:
        the partitions that changed.
    """
    # A series is known by its UID alone. Of a million series, 8 bytes of a hash and one place each fit into memory;
    # their names, files and stamps would not. Two UIDs with one hash only settle two folders together for nothing.
    places: dict[int, list[_Place]] = defaultdict(list)
    frames: dict[str, _Examination] = defaultdict(_Examination)
    for number in numbers:
        for frame, name, count in json.loads(out.read(_lone_name(number))):
            frames[frame].add(_Place(number, name), count)
        for one in decode_plan(out.read(plan_name(number))):
            for series in one.scan.contrasts:
                # an archive is a source of its own: its series are not joined with what lies beside it
                if isinstance(series, DicomSeries) and not series.root.name.lower().endswith(".zip"):
                    uid = int.from_bytes(hashlib.sha256(series.uid.encode()).digest()[:8], "big")
                    file = PurePosixPath(series.root.as_posix()) / series.files[0]
                    places[uid].append(_Place(number, file.as_posix().lstrip("/")))
    shared = [where for where in places.values() if len(where) > 1]
    shared += [
        one.places for one in frames.values() if len(one.places) > 1 and one.slices > FEW_SINGLE_SLICES
    ]
    if not shared:
        return []
    changed = sorted({place.number for where in shared for place in where})
    units = {number: _read_units(out, number) for number in changed}
    _join(units, shared)
    for number in changed:
        # a folder that has given its files away is no unit any more
        _write_units(out, number, (u for u in units[number] if not isinstance(u, FolderUnit) or u.files))
    return [settle(source, out, number, selection, fingerprint) for number in changed]


@dataclass(frozen=True)
class _Place:
    """Where a series was found: the partition, and one file of it, which leads to the unit that has them all."""

    number: int
    file: str


@dataclass
class _Examination:
    """Where its slices lie that have a series each, and how many these are."""

    places: list[_Place] = field(default_factory=list)
    slices: int = 0

    def add(self, place: _Place, count: int) -> None:
        self.places.append(place)
        self.slices += count


def _join(units: Mapping[int, list[Unit]], shared: Iterable[Sequence[_Place]]) -> None:
    """Put the files of folders that share a series into one of them; the others are left empty.

    Args:
        units: by partition; changed in place.
        shared: for each series that was found more than once, where.
    """
    home = {
        file: (number, index)
        for number, some in units.items()
        for index, unit in enumerate(some)
        if isinstance(unit, FolderUnit)
        for file in unit.files
    }
    for where in shared:
        # Asked anew for every series: an earlier one may have moved the files already, as where three folders hold
        # A and B, B and C. Whole folders move, since all series of a folder are told apart together.
        homes = sorted({home[place.file] for place in where if place.file in home})
        if len(homes) < 2:
            continue
        parts = [part for n, i in homes if isinstance(part := units[n][i], FolderUnit)]
        joined = FolderUnit(
            tuple(file for part in parts for file in part.files),
            tuple(stamp for part in parts for stamp in part.stamps),
        )
        for number, index in homes:
            units[number][index] = FolderUnit()
        # the first home: the same whichever series is looked at first, so a repeated task plans the same
        number, index = homes[0]
        units[number][index] = joined
        home |= dict.fromkeys(joined.files, homes[0])
