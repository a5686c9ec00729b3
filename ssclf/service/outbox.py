"""DICOM results on their way: files in a folder that go when the other side has acknowledged them, and not before."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ssclf.errors import SsclfError
from ssclf.io.files import own_folder, sweep, whole_file
from ssclf.service.metrics import Metrics

log = logging.getLogger(__name__)
#: Pauses between tries grow from the one to the other.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 300.0
#: Objects of one association.
_TOGETHER = 50
_IDLE_S = 0.3


class SendError(SsclfError):
    """The other side cannot be reached; no object is to blame."""


#: Sends files one after the other; yields each with what is wrong with it, "" when it was acknowledged.
Send = Callable[[Sequence[Path]], Iterator[tuple[Path, str]]]


class Outbox:
    """The folder of one way."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        OSError, OutputError: it cannot be made, or is somebody else's.
        """
        own_folder(folder)
        sweep(folder)
        self._folder = folder

    def put(self, source: Path) -> None:
        """Add an object; one of the same name, which is the same object, takes its place.

        Raises:
            OutputError: it cannot be written.
        """
        copy_whole(source, self._folder / source.name, private=True)

    def waiting(self) -> list[Path]:
        with os.scandir(self._folder) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.name.startswith("."))

    def oldest_s(self) -> float:
        """Age of the object that has waited longest, 0 without any."""
        times = []
        for path in self.waiting():
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
        return max(0.0, time.time() - min(times)) if times else 0.0


def copy_whole(source: Path, place: Path, *, private: bool) -> None:
    """Copy a file so that it is there whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(place, binary=True, private=private) as file, source.open("rb") as original:
        shutil.copyfileobj(original, file)


class Courier(threading.Thread):
    """Sends what lies in an outbox until it is told to stop."""

    def __init__(self, outbox: Outbox, way: str, send: Send, stop: threading.Event, metrics: Metrics) -> None:
        """Args:
        way: for logs and counts.
        """
        super().__init__(daemon=True, name=f"courier-{way}")
        self._outbox, self._way, self._send, self._stop_event, self._metrics = (
            outbox,
            way,
            send,
            stop,
            metrics,
        )
        self._tries: dict[str, int] = {}
        self._next: dict[str, float] = {}
        self._unreachable = 0

    def run(self) -> None:
        while not self._stop_event.is_set():
            pause = self._round()
            self._stop_event.wait(pause)

    def _round(self) -> float:
        """Send what is due; returns how long to wait."""
        now = time.monotonic()
        due = [path for path in self._outbox.waiting() if self._next.get(path.name, 0.0) <= now][:_TOGETHER]
        if not due:
            return _IDLE_S
        try:
            self._take_answers(self._send(due))
        except SendError as exc:
            return self._note_failure(str(exc))
        except Exception as exc:  # an answer that no library understands: its words may be the other side's
            return self._note_failure(f"unexpected {type(exc).__name__}")
        self._unreachable = 0
        return 0.0

    def _note_failure(self, why: str) -> float:
        """The way itself failed; returns how long to wait."""
        self._unreachable += 1
        self._metrics.add("ssclf_send_failures_total", f'to="{self._way}"')
        pause = _pause(self._unreachable)
        log.warning("%s: %s; tried again in %.0f s", self._way, why, pause)
        return pause

    def _take_answers(self, answers: Iterable[tuple[Path, str]]) -> None:
        for path, problem in answers:
            if problem:
                tries = self._tries[path.name] = self._tries.get(path.name, 0) + 1
                self._next[path.name] = time.monotonic() + _pause(tries)
                self._metrics.add("ssclf_send_failures_total", f'to="{self._way}"')
                log.warning("%s: a result was refused (%s); tried again later", self._way, problem)
            else:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                self._tries.pop(path.name, None)
                self._next.pop(path.name, None)
                self._metrics.add("ssclf_sent_total", f'to="{self._way}"')
            if self._stop_event.is_set():
                return


def _pause(tries: int) -> float:
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(tries - 1, 20))
