"""The queue on disk: what was accepted is in it until it has its row, whatever ends the process.

A study goes through folders, each step a rename: `receiving/` (an object on its way, worth nothing yet), `incoming/`
(objects of a study that may get more), `closed/` (to be classified), `kept/` (classified, for a while). Folders and
files are named by keyed hashes, with a key that lies in the spool: no name tells of a person.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssclf.errors import OutputError, VolumeError
from ssclf.io.files import move, own_folder, sync, whole_file, write_json
from ssclf.io.locks import Lock
from ssclf.io.volumes.dicom_elements import Window, read_elements

log = logging.getLogger(__name__)
_INSTANCE, _PATIENT_NAME, _PATIENT_ID, _STUDY = 0x00080018, 0x00100010, 0x00100020, 0x0020000D
_UID = re.compile(r"[0-9.]{1,64}", re.ASCII)
#: Digits of a study's name; of an instance's in the list of those that a study had.
_NAME, _SHORT = 32, 16
#: A study whose senders have ended their associations waits for this share of the quiet time.
_SHARE_AFTER_RELEASE = 0.1
#: One whose sender broke off, or that was there when this process began, waits for so many: the sender tries again.
_TIMES_AFTER_BREAK = 10
#: Images of a classified study stay for so many quiet times, for those that come late.
_STAY = 10
#: What is on its way for longer has lost its sender.
_FORGOTTEN_S = 900.0


class Taken(enum.Enum):
    """What became of an object that was sent."""

    KEPT = "kept"
    FULL = "full"
    UNREADABLE = "unreadable"
    OTHER_PATIENT = "other_patient"


@dataclass(frozen=True)
class Identity:
    """What an object says of itself; plain text of a header, which goes no further than into a hash."""

    study: str = field(repr=False)
    instance: str = field(repr=False)
    patient: str = field(repr=False)


def read_identity(path: Path) -> Identity:
    """Raises:
    VolumeError: it is no DICOM that states study and instance.
    OSError: it cannot be read.
    """
    with path.open("rb") as file:
        found = read_elements(
            Window(file, seeks=True), frozenset({_INSTANCE, _PATIENT_NAME, _PATIENT_ID, _STUDY})
        )
    study, instance = found.text(_STUDY), found.text(_INSTANCE)
    if not _UID.fullmatch(study) or not _UID.fullmatch(instance):
        raise VolumeError("the DICOM header states no study or no instance.")
    number = found.text(_PATIENT_ID)
    name = found.values.get(_PATIENT_NAME, ("", b""))[1].decode("latin-1").strip("\0 ")
    return Identity(study, instance, f"id {number}" if number else f"name {name}")


@dataclass
class _Open:
    """A study that may get more objects.

    Attributes:
        changed: when the last one came, on the monotonic clock.
        senders: associations that brought some and have not ended.
        released: whether the last of them ended in order.
        broken: the association that broke off and has not come back, -1 where an earlier process had it.
    """

    changed: float
    senders: set[int] = field(default_factory=set)
    released: bool = False
    broken: int | None = None

    @property
    def patience(self) -> float:
        """Quiet times after which nothing more is expected."""
        if self.released:
            return _SHARE_AFTER_RELEASE
        return 1 if self.broken is None else _TIMES_AFTER_BREAK


class Spool:
    """The folder of the queue; one process has it. Safe for threads."""

    def __init__(self, folder: Path, *, limit: int, quiet_s: float, keep: bool) -> None:
        """Args:
        limit: bytes that it may take.
        quiet_s: see `ServeRequest`.
        keep: whether images stay when their study is classified.
        """
        self.folder, self._limit, self._quiet, self._keep = folder, limit, quiet_s, keep
        self._guard = threading.RLock()
        self._open: dict[str, _Open] = {}
        self._bytes = 0
        self._key = b""
        self._lock: Lock | None = None

    @property
    def receiving(self) -> Path:
        return self.folder / "receiving"

    @property
    def outbox(self) -> Path:
        return self.folder / "outbox"

    def __enter__(self) -> Spool:
        """Take the folder, and find what an earlier process has left.

        Raises:
            OutputError: another process serves from it, or it cannot be written.
        """
        try:
            own_folder(self.folder)
            self._lock = Lock(self.folder / "lock")
            if not self._lock.take():
                self._lock.close()
                raise OutputError(
                    f"{self.folder}: another ssclf serve works with this --spool; end it, or choose another."
                )
            shutil.rmtree(self.receiving, ignore_errors=True)
            for name in ("receiving", "incoming", "closed", "kept", "studies", "watched", "begun", "outbox"):
                own_folder(self.folder / name)
            self._key = self._read_key()
        except OSError as exc:
            raise OutputError(
                f"{self.folder}: cannot be written ({exc.strerror or exc}); give --spool a place where this user may "
                "write."
            ) from exc
        now = time.monotonic()
        self._open = {path.name: _Open(now, broken=-1) for path in self._studies("incoming")}
        self.measure()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _read_key(self) -> bytes:
        path = self.folder / "key"
        if not path.exists():
            with whole_file(path, binary=True, private=True) as file:
                file.write(secrets.token_bytes(32))
        key = path.read_bytes()
        if len(key) != 32:
            raise OutputError(
                f"{path}: expected 32 bytes, found {len(key)}; bring the file back, or remove it."
            )
        return key

    def name(self, text: str, digits: int = _NAME) -> str:
        """A name that only who has the key can tell the text of, by trying."""
        return hmac.new(self._key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[
            :digits
        ]

    @property
    def room(self) -> int:
        """Bytes that may still be taken."""
        return max(0, self._limit - self._bytes)

    @property
    def bytes(self) -> int:
        return self._bytes

    def measure(self) -> None:
        """Count again what is there, and forget objects that lost their sender."""
        now = time.time()
        for path in self.receiving.iterdir():
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > _FORGOTTEN_S:
                    path.unlink()
        total = 0
        for name in ("incoming", "closed", "kept", "outbox"):
            for parent, _, files in os.walk(self.folder / name):
                for file in files:
                    with contextlib.suppress(OSError):
                        total += os.lstat(f"{parent}/{file}").st_size
        self._bytes = total

    def count(self, stage: str) -> int:
        """How many studies are in "incoming", "closed" or "kept"."""
        return sum(1 for _ in self._studies(stage))

    def _studies(self, stage: str) -> Iterator[Path]:
        return (path for path in sorted((self.folder / stage).iterdir()) if not path.name.startswith("."))

    def take(self, path: Path, *, sender: int, instance: str) -> Taken:
        """Take an object that was received whole; when this returns KEPT, no kill and no loss of power loses it.

        Args:
            path: in `receiving`; moved away if it is kept.
            sender: the association.
            instance: that the sender says it is.
        """
        try:
            sync(path)
            size = path.stat().st_size
            identity = read_identity(path)
            if identity.instance != instance:
                return Taken.UNREADABLE
            with self._guard:
                if size > self.room:
                    self.expire(everything=True)
                if size > self.room:
                    return Taken.FULL
                return self._take(path, size, identity, sender)
        except VolumeError:
            return Taken.UNREADABLE
        except (OSError, OutputError) as exc:
            log.error("an object cannot be kept (%s)", getattr(exc, "strerror", None) or type(exc).__name__)
            return Taken.FULL

    def _take(self, path: Path, size: int, identity: Identity, sender: int) -> Taken:
        study, patient = self.name(identity.study), self.name(identity.patient)
        record = self._record(study)
        if record.get("patient", patient) != patient:
            return Taken.OTHER_PATIENT
        if "patient" not in record:
            self._write(study, {"patient": patient, "instances": []})
        folder = self.folder / "incoming" / study
        if not folder.is_dir():
            folder.mkdir(mode=0o700)
            sync(folder.parent)
        place = folder / f"{self.name(identity.instance)}.dcm"
        before = place.stat().st_size if place.exists() else 0
        move(path, place)
        self._bytes += size - before
        study_open = self._open.setdefault(study, _Open(0.0))
        study_open.changed, study_open.released, study_open.broken = time.monotonic(), False, None
        study_open.senders.add(sender)
        return Taken.KEPT

    def ended(self, sender: int, *, orderly: bool) -> None:
        """An association is over."""
        with self._guard:
            for study in self._open.values():
                if sender in study.senders or sender == study.broken:
                    study.senders.discard(sender)
                    study.released = orderly and not study.senders
                    study.broken = None if orderly else sender

    def close(self) -> None:
        """Close studies to which nothing more seems to come; they wait in `closed`.

        Raises:
            OutputError: the spool cannot be written.
        """
        now = time.monotonic()
        for study, state in list(self._open.items()):
            with self._guard:
                closed = self.folder / "closed" / study
                if now - state.changed < self._quiet * state.patience or closed.exists():
                    continue
                try:
                    self._bring_back(study)
                    move(self.folder / "incoming" / study, closed)
                except OSError as exc:
                    raise OutputError(f"{self.folder}: cannot be written ({exc.strerror or exc}).") from exc
                del self._open[study]

    def _bring_back(self, study: str) -> None:
        """Images that were classified before belong to the study as it is now."""
        kept, folder = self.folder / "kept" / study, self.folder / "incoming" / study
        if kept.is_dir():
            for path in kept.iterdir():
                if not (folder / path.name).exists():
                    move(path, folder / path.name)
            shutil.rmtree(kept, ignore_errors=True)

    def closed(self) -> list[Path]:
        """Folders of studies to classify."""
        return list(self._studies("closed"))

    def begin(self, name: str) -> None:
        """A study or watched entry is in work: a mark stays, should that end this process.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            (self.folder / "begun" / f"{name}.{self.begun(name) + 1}").touch()
        except OSError as exc:
            raise OutputError(f"{self.folder}: cannot be written ({exc.strerror or exc}).") from exc

    def begun(self, name: str) -> int:
        """How often a process has ended while it was in work."""
        return len(list((self.folder / "begun").glob(f"{name}.*")))

    def leave(self, name: str, *, done: bool) -> None:
        """It is in work no more: done, or put back by a process that ends in order, which a full disk lets it, too."""
        for path in sorted((self.folder / "begun").glob(f"{name}.*"), reverse=True):
            path.unlink(missing_ok=True)
            if not done:
                return

    def missing(self, study: str) -> int:
        """Images that an earlier version of a study had, and that have been deleted since."""
        there = self._instances(self.folder / "closed" / study)
        return len(set(self._record(study).get("instances", ())) - there)

    def finish(self, study: str) -> None:
        """A study has its rows and results: its images may go.

        Raises:
            OutputError: the spool cannot be written.
        """
        folder, kept = self.folder / "closed" / study, self.folder / "kept" / study
        with self._guard:
            record = self._record(study)
            instances = set(record.get("instances", ())) | self._instances(folder)
            self._write(study, {**record, "instances": sorted(instances)})
            try:
                shutil.rmtree(kept, ignore_errors=True)
                os.utime(folder)
                move(folder, kept)
            except OSError as exc:
                raise OutputError(f"{self.folder}: cannot be written ({exc.strerror or exc}).") from exc

    def expire(self, *, everything: bool = False) -> None:
        """Remove images of studies that are classified, unless they are to be kept.

        Args:
            everything: also those that stay for a while, where room is needed.
        """
        if self._keep:
            return
        with self._guard:
            removed = 0
            for path in self._studies("kept"):
                with contextlib.suppress(OSError):
                    if everything or time.time() - path.stat().st_mtime > _STAY * self._quiet:
                        shutil.rmtree(path, ignore_errors=True)
                        removed += 1
            if removed:
                self.measure()

    def _instances(self, folder: Path) -> set[str]:
        return {path.name[:_SHORT] for path in folder.iterdir()}

    def _record(self, study: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "studies" / f"{study}.json").read_text("utf-8"))
            return found
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            raise OutputError(f"{self.folder}: the record of study {study} cannot be read.") from exc

    def _write(self, study: str, record: dict[str, Any]) -> None:
        write_json(self.folder / "studies" / f"{study}.json", record)

    def seen(self, name: str) -> str:
        """What a watched entry was when its rows were made, "" where it has none."""
        try:
            return (self.folder / "watched" / name).read_text("utf-8")
        except FileNotFoundError:
            return ""

    def note_seen(self, name: str, digest: str) -> None:
        """Raises:
        OutputError: it cannot be written.
        """
        with whole_file(self.folder / "watched" / name) as file:
            file.write(digest)
