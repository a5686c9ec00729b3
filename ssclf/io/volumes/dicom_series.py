"""Which DICOM series lie in a folder or an archive, found by content and grouped by SeriesInstanceUID.

dcm2niix would group too, but it merges or drops files of one UID with no more than a warning. Series
descriptions are read to match `--series` and go no further: no header text reaches a message or a file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ssclf.errors import ConfigError
from ssclf.io.junk import junk_name
from ssclf.io.paths import is_file, is_folder, is_link, real_path
from ssclf.io.volumes.dicom_archive import Entry
from ssclf.io.volumes.dicom_files import Archive, HeaderWorkers, LookedAt, look_at_all, what_instead
from ssclf.io.volumes.dicom_grouping import Member, Single, join_single_slices, may_be_slices, split_copies
from ssclf.io.volumes.dicom_headers import SliceFacts, looks_like_dicom

_START_BYTES = 132
_CUT_SHORT = "the DICOM file is cut short before its image, or states no series."
_NO_MATCH = "the series description does not match --series."
_AGAIN = "a slice of a series that lies elsewhere whole."


@dataclass(frozen=True)
class DicomSeries:
    """One series: files of one SeriesInstanceUID, or of one each where a scanner gives every slice its own.

    Attributes:
        name: series number and a short hash of the UID, such as "3-1f0c9a2e"; tells nothing of a person.
        root: folder or zip archive that `files` are relative to.
        files: POSIX paths below `root`, or member names of the archive, which need not differ; sorted.
        uid: the SeriesInstanceUID itself; written out only where the user asks for UIDs.
        entries: where each of `files` lies in the archive; () for a folder.
        other_uids: further ones, where slices have one each.
        place: folder in the archive, where that holds several copies of the series.
        lost: how many files beside these cannot be read and may have been part of the series, share its UID
            and are no MR image, or hold images of it that lie elsewhere only.
    """

    name: str
    root: Path
    files: tuple[str, ...] = field(repr=False)
    uid: str = field(repr=False, default="")
    entries: tuple[Entry, ...] = field(repr=False, default=())
    other_uids: tuple[str, ...] = field(repr=False, default=())
    place: str = ""
    lost: int = 0

    @property
    def location(self) -> Path:
        """What a person would call the place of the series: archive, file, or deepest common folder."""
        if self.in_archive:
            return self.root / self.place
        if len(self.files) == 1:
            return self.root / self.files[0]
        return self.root / _common_folder(self.files)

    @property
    def in_archive(self) -> bool:
        return is_file(self.root)

    def holds(self, uid: str) -> bool:
        """Whether a file of this SeriesInstanceUID can be one of the series."""
        return not self.uid or uid == self.uid or uid in self.other_uids


@dataclass(frozen=True)
class LeftOut:
    """What is no series to classify, and why.

    Attributes:
        path: file, folder or archive.
        reason: one line without header contents.
        files: how many files this stands for.
        broken: the file claims to be DICOM and cannot be read: worth a failed row, not just a count.
        dicom: whether it is DICOM, or claims to be.
    """

    path: Path
    reason: str
    files: int = 1
    broken: bool = False
    dicom: bool = True


@dataclass(frozen=True)
class LoneSlices:
    """Series of one image each, outside archives: with others of their examination they may make a volume.

    Attributes:
        frame: hash of their study and frame of reference, which slices of one volume share.
        path: one of the files.
        count: how many series these are.
    """

    frame: str
    path: Path
    count: int


@dataclass(frozen=True)
class SeriesSearch:
    series: tuple[DicomSeries, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    lone: tuple[LoneSlices, ...] = ()


def series_name(number: int, uids: Iterable[str]) -> str:
    """What a series is called where nothing may tell of a person."""
    return f"{number}-{hashlib.sha256(chr(92).join(uids).encode()).hexdigest()[:8]}"


def is_dicom(path: Path) -> bool:
    """Tell by content: the DICM mark, or (files of old scanners) a data set that starts without one."""
    try:
        if not is_file(path):  # opening a pipe would wait for a writer
            return False
        with path.open("rb") as file:
            return looks_like_dicom(file.read(_START_BYTES))
    except OSError:
        return False


def find_series(
    sources: Path | Iterable[Path], *, matching: str | None = None, workers: HeaderWorkers | None = None
) -> SeriesSearch:
    """Find the MR series in a folder of any nesting, a zip archive, or a list of files and archives.

    A series whose files lie in several folders is one series. A folder that holds all images of a series of
    which others hold all, too, is a copy of its own; one that repeats some of them is known to lack the others.

    Args:
        sources: folder (links are not followed out of it), DICOM file, `.zip`, or several files.
        matching: regular expression searched in the series description, ignoring case.
        workers: who look at the headers; None: this process does, as within a worker.

    Raises:
        ConfigError: `matching` is no regular expression.
        MissingDependencyError: no workers can be started.
    """
    try:
        pattern = re.compile(matching, re.IGNORECASE) if matching else None
    except re.error as exc:
        raise ConfigError(f"--series: {matching!r} is no regular expression ({exc}).") from exc
    walked = isinstance(sources, Path) and is_folder(sources)
    meant = not isinstance(sources, Path)
    if isinstance(sources, Path):
        root = sources if walked else sources.parent
        files = list(_walk(sources)) if walked else [sources]
    else:
        files = sorted(sources)
        root = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    archives = [file for file in files if file.suffix.lower() == ".zip"]
    slices = [file.relative_to(root).as_posix() for file in files if file.suffix.lower() != ".zip"]
    in_folder = _Sorter(root, pattern)
    searches: list[SeriesSearch] = []
    found = look_at_all(slices, root, archives, meant=meant, pattern=pattern, workers=workers)
    for place, looked_at, problem in found:
        if isinstance(place, Archive):
            searches.append(_search_archive(place.root, looked_at, problem, pattern))
        else:
            in_folder.take_all(looked_at)
    searches.insert(0, in_folder.result())
    return SeriesSearch(
        tuple(series for search in searches for series in search.series),
        tuple(left for search in searches for left in search.left_out),
        in_folder.lone(),
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, sorted, without junk; links that leave it are not followed."""
    inside = real_path(folder)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not junk_name(name))
        for name in sorted(names):
            path = Path(parent, name)
            if not junk_name(name) and (not is_link(path) or real_path(path).is_relative_to(inside)):
                yield path


def _search_archive(
    path: Path, members: Iterable[LookedAt], problem: str, pattern: re.Pattern[str] | None
) -> SeriesSearch:
    if problem:
        return SeriesSearch(left_out=(LeftOut(path, problem, broken=True),))
    sorter = _Sorter(path, pattern)
    sorter.take_all(members)
    found = sorter.result()
    if not found.series and not any(left.broken for left in found.left_out) and not _has_dicom(found):
        return SeriesSearch(left_out=(LeftOut(path, "the archive holds no DICOM."),))
    return found


def _has_dicom(found: SeriesSearch) -> bool:
    return any(left.dicom for left in found.left_out)


@dataclass
class _Group:
    """Files of one SeriesInstanceUID.

    Attributes:
        numbers: series numbers found.
        described: whether one matches `--series`, which is asked of a series: descriptions vary inside of one.
        others: reason to leave them out → names of files with this UID.
        single: where the first image lies, while there is no other.
    """

    members: list[Member] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)
    described: bool = False
    others: dict[str, list[str]] = field(default_factory=dict)
    single: Single | None = None


class _Sorter:
    """Takes files one after the other and keeps of each what a series needs; headers go again."""

    def __init__(self, root: Path, pattern: re.Pattern[str] | None) -> None:
        self._root = root
        self._pattern = pattern
        self._groups: dict[str, _Group] = defaultdict(_Group)
        self._left_out: list[LeftOut] = []
        self._junk: Counter[str] = Counter()
        self._no_dicom: dict[str, list[tuple[str, bytes]]] = defaultdict(list)  # by folder
        self._lost: Counter[str] = Counter()  # by folder: files that may have been slices
        self._lost_of: Counter[str] = Counter()  # by UID

    def take_all(self, items: Iterable[LookedAt]) -> None:
        for item in items:
            self._take(item)

    def _take(self, item: LookedAt) -> None:
        if item.junk:
            self._junk[item.junk] += 1
        elif item.start is not None:
            self._no_dicom[_folder(item.name)].append((item.name.rpartition("/")[2], item.start))
        elif item.facts is None:
            self._break(item.name, item.reason)
        else:
            self._take_facts(item.name, item.entry, item.facts)

    def _take_facts(self, name: str, entry: Entry, facts: SliceFacts) -> None:
        if not facts.reason and not (facts.uid and facts.has_image):
            self._break(name, _CUT_SHORT, facts.uid)
        elif not facts.uid:
            self._left_out.append(LeftOut(self._place(name), facts.reason))
        else:
            group = self._groups[facts.uid]
            if facts.reason:
                group.others.setdefault(facts.reason, []).append(name)
                return
            group.numbers.add(facts.number)
            group.described |= facts.described
            member = Member(name, facts.instance, entry)
            if not group.members:
                group.single = facts.single
            elif group.single and member.instance != group.members[0].instance:
                group.single = None
            group.members.append(member)

    def _break(self, name: str, reason: str, uid: str = "") -> None:
        self._left_out.append(LeftOut(self._place(name), reason, broken=True))
        if uid:
            self._lost_of[uid] += 1
        else:
            self._lost[_folder(name)] += 1

    def _place(self, name: str) -> Path:
        return self._root if is_file(self._root) else self._root / name

    def result(self) -> SeriesSearch:
        self._tell_damaged_slices()
        series: list[DicomSeries] = []
        for uids in self._volumes():
            series += self._series(uids)
        for group in self._groups.values():
            self._left_out += [
                LeftOut(self._common(names), reason, len(names)) for reason, names in group.others.items()
            ]
        self._left_out += [
            LeftOut(self._root, junk, count, dicom=False) for junk, count in self._junk.items()
        ]
        series.sort(key=lambda one: (one.files[0], one.name, one.place))
        return SeriesSearch(tuple(_told_apart(series)), _gathered(self._left_out))

    def lone(self) -> tuple[LoneSlices, ...]:
        """What of one image each was found, by examination."""
        found: dict[str, list[str]] = defaultdict(list)
        for group in self._groups.values():
            if group.single and (group.described or not self._pattern):
                frame = hashlib.sha256(repr(group.single.frame).encode()).hexdigest()[:16]
                found[frame].append(group.members[0].name)
        return tuple(LoneSlices(frame, self._root / names[0], len(names)) for frame, names in found.items())

    def _tell_damaged_slices(self) -> None:
        """Of files that are no DICOM, those with names like the slices beside them were slices."""
        slices: dict[str, list[str]] = defaultdict(list)
        for group in self._groups.values():
            for member in group.members:
                folder, _, name = member.name.rpartition("/")
                slices[folder].append(name)
        others = 0
        for folder, found in self._no_dicom.items():
            lost = set(may_be_slices(slices[folder], found)) if folder in slices else set()
            for name, start in found:
                if name in lost:
                    self._break(f"{folder}/{name}" if folder else name, what_instead(start))
                else:
                    others += 1
        if others and is_file(self._root):
            self._left_out.append(
                LeftOut(self._root, "a file in an archive that is no DICOM.", others, dicom=False)
            )

    def _volumes(self) -> Iterator[list[str]]:
        """UIDs of what is one series: one each, or many where each slice has its own."""
        kept = {}
        for uid, group in self._groups.items():
            if group.members and self._pattern and not group.described:
                names = [member.name for member in group.members]
                self._left_out.append(LeftOut(self._common(names), _NO_MATCH, len(names)))
            elif group.members:
                kept[uid] = group
        joined, loose = join_single_slices(group.single for group in kept.values() if group.single)
        for uids in joined:
            yield uids
        for uids in loose:
            names = [member.name for uid in uids for member in kept[uid].members]
            reason = (
                f"expected the slices of a volume, found {len(uids)} series of one slice each which make no whole "
                "volume together; export them again as one series."
            )
            self._left_out.append(LeftOut(self._common(names), reason, len(names), broken=True))
        told = {uid for uids in (*joined, *loose) for uid in uids}
        yield from ([uid] for uid in kept if uid not in told)

    def _series(self, uids: list[str]) -> Iterator[DicomSeries]:
        groups = [self._groups[uid] for uid in uids]
        members = sorted(
            (member for group in groups for member in group.members), key=lambda one: (one.name, one.entry)
        )
        number = min(number for group in groups for number in group.numbers)
        name = series_name(number, uids)
        copies, again = split_copies(members)
        images = len({member.instance for member in copies[0]})
        elsewhere = sum(self._lost_of[uid] for uid in uids)
        elsewhere += sum(len(names) for group in groups for names in group.others.values())
        in_archive = is_file(self._root)
        for part in (*copies, *again):
            files = tuple(member.name for member in part)
            missing = images - len({member.instance for member in part})
            if missing and missing == images - 1:
                self._left_out.append(LeftOut(self._common(list(files)), _AGAIN, len(files)))
                continue
            lost = sum(self._lost[folder] for folder in {_folder(file) for file in files})
            yield DicomSeries(
                name,
                self._root,
                files,
                uids[0],
                entries=tuple(member.entry for member in part) if in_archive else (),
                other_uids=tuple(uids[1:]),
                place=_common_folder(files) if in_archive and len(copies) + len(again) > 1 else "",
                lost=lost + elsewhere + missing,
            )

    def _common(self, names: list[str]) -> Path:
        """What a person would call the place of some files."""
        if is_file(self._root):
            return self._root
        return self._root / (names[0] if len(names) == 1 else _common_folder(names))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _common_folder(names: Iterable[str]) -> str:
    """The deepest folder that holds all of them, "" where that is the root; never one above it."""
    folders = {_folder(name) for name in names}
    inside = [[part for part in PurePosixPath(one).parts if part not in ("/", "..")] for one in folders]
    return os.path.commonpath(["/".join(parts) for parts in inside])


def _told_apart(series: list[DicomSeries]) -> Iterator[DicomSeries]:
    """Two copies of a series may share a folder with parts of each other; their names must differ all the same."""
    seen: Counter[tuple[Path, str]] = Counter()
    for one in series:
        key = (one.location, one.name)
        seen[key] += 1
        yield one if seen[key] == 1 else replace(one, name=f"{one.name}-{seen[key]}")


def _gathered(left_out: list[LeftOut]) -> tuple[LeftOut, ...]:
    """One entry for all broken files of a folder that share a reason: they would have been one series."""
    together: dict[tuple[Path, str], list[LeftOut]] = {}
    for left in left_out:
        if left.broken:
            together.setdefault((left.path.parent, left.reason), []).append(left)
    broken = (
        LeftOut(
            lost[0].path if len({left.path for left in lost}) == 1 else folder,
            reason,
            sum(left.files for left in lost),
            broken=True,
        )
        for (folder, reason), lost in together.items()
    )
    return (*(left for left in left_out if not left.broken), *broken)
