"""Watched folders: each entry of one is a study, which has arrived when nothing of it has changed for a while."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssclf.io.junk import junk_name
from ssclf.service.spool import Spool


@dataclass(frozen=True)
class Arrival:
    """An entry that is to be classified.

    Attributes:
        name: keyed hash of its folder and name.
        digest: what it was when it was looked at.
    """

    path: Path
    name: str
    digest: str


class Watch:
    """What has arrived in some folders and has no rows yet."""

    def __init__(self, folders: Sequence[Path], spool: Spool, quiet_s: float) -> None:
        self._folders, self._spool, self._quiet = folders, spool, quiet_s
        self._since: dict[str, tuple[str, float]] = {}
        self._looked = -quiet_s

    def arrived(self) -> list[Arrival]:
        """Entries that are complete, as far as time tells; looks at the folders four times in a quiet time."""
        now = time.monotonic()
        if now - self._looked < self._quiet / 4:
            return []
        self._looked = now
        found, there = [], set()
        for path in self._entries():
            name = self._spool.name(f"watched {os.fspath(path)}")
            there.add(name)
            digest = self._spool.name(_state(path))
            before, since = self._since.get(name, ("", now))
            if digest != before:
                self._since[name] = digest, now
            elif now - since >= self._quiet and digest != self._spool.seen(name):
                found.append(Arrival(path, name, digest))
        self._since = {name: state for name, state in self._since.items() if name in there}
        return found

    def _entries(self) -> Iterator[Path]:
        for folder in self._folders:
            try:
                with os.scandir(folder) as entries:
                    names = sorted(entry.name for entry in entries if not junk_name(entry.name))
            except OSError:  # a file server that is away: it may come back
                continue
            yield from (folder.absolute() / name for name in names if not name.startswith("."))


def _state(path: Path) -> str:
    """What changes when anything in an entry does: names, sizes and times of its files."""
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            digest.update(_line(f"{parent}/{name}"))
    digest.update(_line(os.fspath(path)))
    return digest.hexdigest()


def _line(path: str) -> bytes:
    try:
        found = os.lstat(path)
    except OSError:
        return b"gone\n"
    # a folder's own time changes when a reader leaves a file of its own, and says nothing of the scans
    facts = "" if stat.S_ISDIR(found.st_mode) else f" {found.st_size} {found.st_mtime_ns}"
    return os.fsencode(path) + facts.encode() + b"\n"
