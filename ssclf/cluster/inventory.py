"""What there is to classify, put down in partitions: discovery for sources too large for one list.

Two steps, both able to run on any node. `take_inventory` walks over names and writes *units*: volumes, whose
scans follow from names alone, and what must be opened to be understood (DICOM folders, archives, manifest rows).
`settle` turns the units of one partition into scans, with the same functions that plain discovery uses. A DICOM
series may lie in several folders: `join_series` finds those that two units share and settles them together.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ssclf.cluster.partitions import Planned, decode_plan, encode_plan
from ssclf.cluster.store import Store
from ssclf.errors import DatasetError, SsclfError
from ssclf.io.discovery.folders import (
    PREPROCESSED_FOLDER,
    FolderContent,
    is_preprocessed,
    walk_folders,
)
from ssclf.io.discovery.naming import group_contrasts
from ssclf.io.discovery.scans import Scan
from ssclf.io.discovery.sources import discover, folder_scans, manifest_columns, manifest_scan, named_rows
from ssclf.io.junk import junk_name, junk_path
from ssclf.io.own_output import START_BYTES
from ssclf.io.records.map_names import MAP_ENDING
from ssclf.io.records.tables import TABLE_ENDINGS, TableRow, read_table
from ssclf.io.volumes.dicom_headers import looks_like_dicom
from ssclf.io.volumes.dicom_series import DicomSeries
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
class Unit:
    """What is settled together.

    Attributes:
        kind: "scan" (ready), "folder" (DICOM files), "row" (of the manifest) or "file" (the source itself).
        files: below the source's base; what must be there to settle it.
        value: the scan, or the row, as JSON values.
        stamps: of `files`, where the storage is remote: local files are looked at when they are settled.
    """

    kind: str
    files: tuple[str, ...] = ()
    value: Any = None
    stamps: tuple[str, ...] = ()

    @property
    def weight(self) -> int:
        return 1 + len(self.files) // _SLICES


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
    number, weight, lines = 0, 0, []
    for unit in _units(source, selection, other):
        lines.append(json.dumps(asdict(unit)))
        weight += unit.weight
        if weight >= size:
            out.write(_units_name(number), "\n".join(lines).encode())
            number, weight, lines = number + 1, 0, []
    if lines:
        out.write(_units_name(number), "\n".join(lines).encode())
        number += 1
    return number, other


def _units(source: Source, selection: Selection, other: Counter[str]) -> Iterator[Unit]:
    if source.is_manifest:
        yield from _manifest_units(source, selection, other)
        return
    if source.file:
        yield Unit("file", (source.file,), stamps=(source.base.stamp(source.file),))
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
            yield _scan_unit(Scan(path, (), problem=reason))
        for key, files, problem in group_contrasts(content.volumes, selection.contrasts, content.other):
            scan = Scan(source.text if key == "." else key, tuple(map(Path, files)), problem=problem)
            yield _scan_unit(scan, files, stamps)
        groups = [[archive] for archive in content.archives]
        if content.dicom:
            groups.append(content.dicom)
        for group in groups:
            yield Unit("folder", tuple(group), stamps=tuple(stamps[f] for f in group if f in stamps))
        other += content.other


def _scan_unit(scan: Scan, files: tuple[str, ...] = (), stamps: Mapping[str, str] | None = None) -> Unit:
    value = {
        "path": scan.path,
        "contrasts": [source.as_posix() for source in scan.contrasts if isinstance(source, Path)],
        "problem": scan.problem,
    }
    return Unit("scan", files, value, tuple((stamps or {}).get(file, "") for file in files))


def _without_links(
    paths: Iterable[str], root: Path, selection: Selection, seen: set[str], other: Counter[str]
) -> Iterator[str]:
    """Leave out links to what is found elsewhere: under its own name, or by an earlier link."""
    top = os.path.realpath(root)
    for path in paths:
        if (root / path).is_symlink():
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
        value = {"line": row.line, "name": name, "cells": dict(row.cells), "columns": columns}
        yield Unit("row", tuple(row[column] for column in columns if row[column]), value)


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
    dicom = False
    local = source.base.local
    base = local or Path("/")
    for unit in _read_units(out, number):
        dicom = dicom or unit.kind == "folder"
        with tempfile.TemporaryDirectory(prefix="ssclf-") as scratch:
            here = local or Path(scratch)
            scans = list(_settle_unit(source, unit, here, selection, other))
            for scan in scans:
                if selection.keep_uids and scan.series and isinstance(scan.contrasts[0], DicomSeries):
                    scan = replace(scan, series=scan.contrasts[0].uid)
                stamps = unit.stamps
                if not local and unit.kind == "row":
                    stamps = tuple(source.base.stamp(file) for file in unit.files)
                mark = fingerprint(scan, stamps)
                planned.append(Planned(_moved(scan, here, base), mark))
    planned.sort(key=lambda one: one.key)
    distinct = {one.key: one for one in reversed(planned)}
    if len(distinct) < len(planned):
        other[_REPEATED] += len(planned) - len(distinct)
    out.write(plan_name(number), encode_plan(sorted(distinct.values(), key=lambda one: one.key), base))
    return Settled(number, len(distinct), dict(other), dicom)


def _read_units(out: Store, number: int) -> list[Unit]:
    units = []
    for line in out.read(_units_name(number)).decode().splitlines():
        values = json.loads(line)
        units.append(Unit(values["kind"], tuple(values["files"]), values["value"], tuple(values["stamps"])))
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
            for one in scan.contrasts
        ),
    )


def _settle_unit(
    source: Source, unit: Unit, here: Path, selection: Selection, other: Counter[str]
) -> Iterator[Scan]:
    if unit.kind == "scan":
        contrasts = tuple(here / path for path in unit.value["contrasts"])
        yield Scan(unit.value["path"], contrasts, problem=unit.value["problem"])
        return
    remote = source.base.local is None
    if unit.kind == "row":
        yield _manifest_row(source, unit, here, selection)
        return
    if remote and unit.kind == "file":
        source.base.fetch(source.file, here)
    elif remote:
        source.base.fetch_all(unit.files, here)
    if unit.kind == "file":
        found = discover(
            [here / source.file],
            contrasts=selection.contrasts,
            pattern=selection.pattern,
            series=selection.series,
        )
        other.update(found.other_files)
        own = (here / source.file).as_posix()
        for scan in found.scans:
            yield replace(scan, path=scan.path.replace(own, source.text, 1))
        return
    archives = [file for file in unit.files if file.lower().endswith(".zip")]
    content = FolderContent(dicom=[file for file in unit.files if file not in archives], archives=archives)
    for scan in folder_scans(here, content, selection.contrasts, selection.series):
        yield replace(scan, path=source.text if scan.path == "." else scan.path)
    other += content.other


def _manifest_row(source: Source, unit: Unit, here: Path, selection: Selection) -> Scan:
    values = unit.value
    row = TableRow(values["line"], values["cells"])
    if source.base.local is None:
        # what must be looked into is fetched; of a volume the name is enough
        for cell in unit.files:
            target = here / cell
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                _fetch_cell(source.base, cell, here)
            except FileNotFoundError:
                continue
            except SsclfError as exc:
                return Scan(cell, (), problem=str(exc))
    table = here / source.file
    scan = manifest_scan(table, row, values["name"], tuple(values["columns"]), selection.series)
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
    """Settle together what holds parts of one DICOM series; memory holds 8 bytes and a place per series.

    Args:
        numbers: partitions with DICOM.

    Returns:
        the partitions that changed.
    """
    places: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for number in numbers:
        for one in decode_plan(out.read(plan_name(number))):
            for series in one.scan.contrasts:
                if isinstance(series, DicomSeries) and not series.root.name.lower().endswith(".zip"):
                    uid = int.from_bytes(hashlib.sha256(series.uid.encode()).digest()[:8], "big")
                    files = PurePosixPath(series.root.as_posix()) / series.files[0]
                    places[uid].append((number, files.as_posix()))
    shared = [where for where in places.values() if len(where) > 1]
    if not shared:
        return []
    return _join(source, out, shared, selection, fingerprint)


def _join(
    source: Source,
    out: Store,
    shared: list[list[tuple[int, str]]],
    selection: Selection,
    fingerprint: Callable[[Scan, tuple[str, ...]], str],
) -> list[Settled]:
    changed = sorted({number for where in shared for number, _ in where})
    units = {number: _read_units(out, number) for number in changed}
    holder = {
        file: (number, index)
        for number in changed
        for index, unit in enumerate(units[number])
        if unit.kind == "folder"
        for file in unit.files
    }
    for where in shared:
        homes = sorted({holder[file.lstrip("/")] for _, file in where if file.lstrip("/") in holder})
        if len(homes) < 2:
            continue
        (first, at), *rest = homes
        parts = [units[number][index] for number, index in homes]
        units[first][at] = Unit(
            "folder",
            tuple(file for part in parts for file in part.files),
            stamps=tuple(stamp for part in parts for stamp in part.stamps),
        )
        for number, index in rest:
            units[number][index] = Unit("folder")
        holder |= dict.fromkeys(units[first][at].files, (first, at))
    for number in changed:
        kept = [unit for unit in units[number] if unit.kind != "folder" or unit.files]
        out.write(_units_name(number), "\n".join(json.dumps(asdict(unit)) for unit in kept).encode())
    return [settle(source, out, number, selection, fingerprint) for number in changed]
