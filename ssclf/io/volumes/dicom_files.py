"""Files that may be DICOM, looked at one by one: in folders and in archives, here or in worker processes.

What a file says costs that file: whatever goes wrong with one header is its reason, and the next is looked at.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from ssclf.errors import VolumeError
from ssclf.io.junk import LFS_POINTER, is_lfs_pointer, junk_path
from ssclf.io.paths import is_file, why_missing
from ssclf.io.volumes.dicom_archive import DicomArchive, Entry, damage
from ssclf.io.volumes.dicom_elements import Window
from ssclf.io.volumes.dicom_headers import SliceFacts, look_at_header, looks_like_dicom, quiet_pydicom
from ssclf.io.volumes.endings import DICOM_ENDINGS
from ssclf.io.workers import Outcome, Workers, run_in_processes

#: An archive may hold as much and inflate to as much; a series of 1,000 slices of 512² takes 0.5 GB.
MAX_ARCHIVE_FILES = 100_000
MAX_ARCHIVE_BYTES = 16 << 30
MAX_FILE_BYTES = 2 << 30
_START_BYTES = 132
#: Files that one worker looks at in one go: some tenths of a second.
_BATCH = 500
#: Of the time limit, what an archive's members may take; the rest is for handing over what was found.
_SHARE_FOR_MEMBERS = 0.7
#: That a worker may take: its libraries, 4 MiB of a header, and what is kept of 100,000 files.
_MEMORY = 2 << 30


@dataclass(frozen=True)
class Limits:
    """How headers are looked at in worker processes.

    Attributes:
        workers: how many there are.
        timeout_s: what takes longer is stopped: an archive, or some hundred files and then each of them.
    """

    workers: int = 1
    timeout_s: float | None = None


class HeaderWorkers:
    """Worker processes that look at headers, started when they are first asked. Use as a context manager."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._pool: Workers | None = None

    def __enter__(self) -> HeaderWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool = None

    def run(self, function: Callable[[Place], list[LookedAt]], places: list[Place]) -> Outcomes:
        """What became of each place.

        Raises:
            MissingDependencyError: no processes can be started.
        """
        if self._pool is None:
            self._pool = Workers(self.limits.workers, _MEMORY)
        outcomes = run_in_processes(
            function,
            places,
            workers=self.limits.workers,
            timeout_s=self.limits.timeout_s,
            pool=self._pool,
        )
        return {outcome.item: outcome for outcome in outcomes}


@dataclass(frozen=True, slots=True)
class LookedAt:
    """A file that was looked at.

    Attributes:
        name: POSIX path below the folder or in the archive.
        facts: None where there is no header, with the `reason`.
        start: first bytes of a file that is no DICOM and does not claim to be; it may be a damaged slice.
        junk: why the file is not looked at.
    """

    name: str
    facts: SliceFacts | None = None
    reason: str = ""
    entry: Entry = ()
    start: bytes | None = None
    junk: str = ""


@dataclass(frozen=True)
class Files:
    """Files of a folder.

    Attributes:
        names: below `root`, POSIX.
        meant: every file is a slice by what is known of it, whatever its name.
    """

    root: Path
    names: tuple[str, ...]
    meant: bool


@dataclass(frozen=True)
class Archive:
    """Attributes:
    seconds: after so many, members that have not been looked at are left with that reason.
    """

    root: Path
    seconds: float | None = None


Place = Files | Archive
Outcomes = dict[Place, Outcome[Place, list[LookedAt]]]


def look_at_all(
    files: Sequence[str], root: Path, archives: Iterable[Path], *, meant: bool, pattern: re.Pattern[str] | None,
    workers: HeaderWorkers | None,
) -> Iterator[tuple[Place, list[LookedAt], str]]:  # fmt: skip
    """Look at files and archives, in their order.

    Args:
        files: below `root`.
        workers: None: this process looks, as within a worker.

    Yields:
        a place, what was found there, and why it cannot be looked at as a whole, "" where it can.
    """
    timeout_s = workers.limits.timeout_s if workers else None
    seconds = timeout_s * _SHARE_FOR_MEMBERS if timeout_s else None
    places: list[Place] = [
        Files(root, tuple(files[at : at + _BATCH]), meant) for at in range(0, len(files), _BATCH)
    ]
    places += [Archive(path, seconds) for path in archives]
    look = partial(look_at, pattern=pattern)
    if workers is None or not places:
        for place in places:
            try:
                yield place, look(place), ""
            except VolumeError as exc:
                yield place, [], str(exc)
        return
    found = workers.run(look, places)
    for place in places:
        outcome = found[place]
        if outcome.result is None and isinstance(place, Files):
            singles: list[Place] = [Files(root, (name,), meant) for name in place.names]
            alone = workers.run(look, singles)
            names = zip(place.names, singles, strict=True)
            yield place, [_alone(name, alone[single]) for name, single in names], ""
        else:
            yield place, outcome.result or [], outcome.error


def _alone(name: str, outcome: Outcome[Place, list[LookedAt]]) -> LookedAt:
    gone = "cannot be read (it is no file any more)."
    return outcome.result[0] if outcome.result else LookedAt(name, reason=outcome.error or gone)


def look_at(place: Place, *, pattern: re.Pattern[str] | None) -> list[LookedAt]:
    """Look at files, or at what an archive holds.

    Raises:
        VolumeError: the archive cannot be looked into.
    """
    with quiet_pydicom():
        look = _Look(pattern)
        if isinstance(place, Files):
            found = (look.at_file(place.root, name, meant=place.meant) for name in place.names)
            return [one for one in found if one is not None]
        try:
            with place.root.open("rb") as file:
                if is_lfs_pointer(file.read(_START_BYTES)):
                    raise VolumeError(f"expected a zip archive, found something else: {LFS_POINTER}")
            with open_archive(place.root) as archive:
                return list(look.at_members(archive, place.seconds))
        except OSError as exc:
            raise VolumeError(f"the archive cannot be read ({exc.strerror or exc}).") from exc
        except (VolumeError, MemoryError):
            raise
        except Exception as exc:  # a damaged list of contents makes zipfile raise nearly anything
            raise VolumeError(f"expected a zip archive, found a damaged one ({type(exc).__name__}).") from exc


class _Look:
    """Remembers of which series it is known where an image lies: that takes longest to find out."""

    def __init__(self, pattern: re.Pattern[str] | None) -> None:
        self._pattern = pattern
        self._placed: set[str] = set()

    def at_file(self, root: Path, name: str, *, meant: bool) -> LookedAt | None:
        path = root / name
        try:
            if why := why_missing(path):
                return LookedAt(name, reason=f"expected DICOM, found a file that {why}")
            if not is_file(path):  # opening a pipe would wait for a writer
                return None
            with path.open("rb") as stream:
                return self._at_start(name, stream, (), seeks=True, meant=meant)
        except OSError as exc:
            return LookedAt(name, reason=f"cannot be read ({exc.strerror or exc}).")
        except Exception as exc:
            return LookedAt(name, reason=_reason(exc))

    def at_members(self, archive: DicomArchive, seconds: float | None) -> Iterator[LookedAt]:
        end = None if seconds is None else time.monotonic() + seconds
        for member in archive.members():
            name, entry = member.name, member.entry
            if junk := junk_path(name):
                yield LookedAt(name, entry=entry, junk=junk)
            elif member.problem:
                yield LookedAt(name, None, member.problem, entry)
            elif end is not None and time.monotonic() > end:
                yield LookedAt(
                    name, None, "was not looked at within --timeout, with what comes before it.", entry
                )
            else:
                yield self._at_member(archive, name, entry)

    def _at_member(self, archive: DicomArchive, name: str, entry: Entry) -> LookedAt:
        try:
            with archive.open(entry) as stream:
                return self._at_start(name, stream, entry, seeks=False)
        except VolumeError as exc:
            return LookedAt(name, None, str(exc), entry)
        except MemoryError as exc:
            return LookedAt(name, None, _reason(exc), entry)
        except Exception as exc:  # zipfile's own, and what each of its decompressors raises
            return LookedAt(name, None, damage(exc), entry)

    def _at_start(
        self, name: str, stream: IO[bytes], entry: Entry, *, seeks: bool, meant: bool = False
    ) -> LookedAt:
        start = stream.read(_START_BYTES)
        if not looks_like_dicom(start):
            if meant or name.lower().endswith(DICOM_ENDINGS):
                return LookedAt(name, None, what_instead(start), entry)
            return LookedAt(name, entry=entry, start=start)
        window = Window(stream, start, seeks=seeks)
        facts = look_at_header(window, pattern=self._pattern, placed=self._placed)
        if facts.has_image and not facts.reason:
            self._placed.add(facts.uid)
        return LookedAt(name, facts, entry=entry)


def _reason(exc: Exception) -> str:
    if isinstance(exc, MemoryError):
        return "not enough memory to read its header."
    return (
        str(exc)
        if isinstance(exc, VolumeError)
        else f"the DICOM header cannot be read ({type(exc).__name__})."
    )


def what_instead(start: bytes) -> str:
    """What a file that should be DICOM holds, from its first 132 bytes."""
    if not start:
        return "expected DICOM, found an empty file."
    if is_lfs_pointer(start):
        return f"expected DICOM, found something else: {LFS_POINTER}"
    if not start.strip(b"\0"):
        return "expected DICOM, found nothing but zeros; the file is damaged."
    return "expected DICOM, found something else under its ending."


def open_archive(path: Path) -> DicomArchive:
    """As `DicomArchive`, with our limits."""
    return DicomArchive(
        path, max_files=MAX_ARCHIVE_FILES, max_bytes=MAX_ARCHIVE_BYTES, max_file_bytes=MAX_FILE_BYTES
    )
