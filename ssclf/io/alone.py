"""One long piece of work in a process of its own, so that what kills it kills nothing else.

Who asked for it hears of every step and answers whether to go on, sees its log as if it were its own, and hands on the
signals that it gets itself. Neither outlives the other's wish: the work ends with who asked for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from logging.handlers import QueueHandler
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar, cast

from ssclf import errors
from ssclf.errors import ResourceError, SsclfError
from ssclf.io.workers import WithoutScript, end_with_parent, how_it_died

Result = TypeVar("Result")
#: How soon a signal is handed on to work that tells of no steps.
_LOOK_S = 0.2
#: What work that was told to stop may take for a step and to save, on a slow processor and a slow disk.
PATIENCE_S = 120.0
_LOGGER = "ssclf"


class WorkTraceback(Exception):  # noqa: N818 (what it holds, as the cause of an error; nobody raises it)
    """Where in the other process something went wrong that has no message of ours."""


class Caller:
    """Who asked for the work, as the work sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._process = os.getpid()
        self._one_at_a_time = threading.Lock()

    def tell(self, *what: Any) -> None:
        """Wait until what is told has been looked at; a wish to stop comes back as a signal, as if sent to us."""
        with self._one_at_a_time:
            self._pipe.send(("told", what))
            wish: int = self._pipe.recv()
        if wish:
            signal.raise_signal(wish)

    def send(self, kind: str, what: Any) -> None:
        if os.getpid() != self._process:  # a fork of ours, whose words would run into our own
            return
        with self._one_at_a_time:
            self._pipe.send((kind, what))


class _Process(WithoutScript, SpawnProcess):
    pass


class _Context(SpawnContext):
    Process = _Process


class _HandOver(QueueHandler):
    """The log goes to who asked for the work, who knows where it is shown."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(cast(Any, None))
        self._caller = caller

    def enqueue(self, record: logging.LogRecord) -> None:
        self._caller.send("log", record)


def run_alone(
    work: Callable[[Caller], Result], *, on_told: Callable[..., None], signals: Sequence[int] = ()
) -> Result | None:
    """Do work in a new process, as clean as if it were started from a shell.

    Args:
        work: a picklable callable: an importable module's function, or a partial of one.
        on_told: called here with whatever the work tells, which waits for it.
        signals: that this process has got so far; the work gets SIGTERM for them, and ends as it sees fit.

    Returns:
        what the work returns; None where a signal ended it before it could.

    Raises:
        SsclfError: of the work, as it was; or one with a `WorkTraceback` as its cause, for any other exception.
        ResourceError: the process died, or could not be started.
    """
    context = _Context()
    ours, theirs = context.Pipe()
    level = logging.getLogger(_LOGGER).getEffectiveLevel()
    process = context.Process(target=_run, args=(theirs, work, level))
    try:
        _start_tracker()
        process.start()
    except OSError as exc:
        raise ResourceError(f"no process can be started ({exc.strerror or exc}).") from exc
    theirs.close()
    try:
        return _Listener(process, ours, on_told, signals).listen()
    finally:
        with contextlib.suppress(OSError):  # with all that it has started, which is in its group
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.kill()
        process.join()
        ours.close()


def _start_tracker() -> None:
    """It clears away semaphores of processes that were killed, and would warn of each at the end."""
    sys.warnoptions.append(quiet := "ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(quiet)


class _Listener:
    """Hears a process until it ends."""

    def __init__(
        self, process: _Process, pipe: Connection, on_told: Callable[..., None], signals: Sequence[int]
    ) -> None:
        self._process, self._pipe, self._on_told, self._signals = process, pipe, on_told, signals
        self._stopped_at: float | None = None

    def listen(self) -> Any:
        while True:
            wait([self._pipe, self._process.sentinel], timeout=_LOOK_S)
            if self._pipe.poll():
                try:
                    kind, what = self._pipe.recv()
                except (EOFError, OSError):
                    return self._died()
                if kind == "done":
                    return what
                if kind == "failed":
                    _raise(*what)
                self._hear(kind, what)
            elif not self._process.is_alive():
                if not self._pipe.poll():  # nothing came between the two looks
                    return self._died()
            elif self._stopped_at is None:
                if self._signals:
                    self._stopped_at = time.monotonic()
                    self._process.terminate()  # whichever it was: Ctrl-C would show a traceback while it starts
            elif time.monotonic() - self._stopped_at > PATIENCE_S:
                return None

    def _hear(self, kind: str, what: Any) -> None:
        if kind == "log":
            logging.getLogger(what.name).handle(what)
            return
        self._on_told(*what)
        wish = 0
        if self._signals and self._stopped_at is None:
            wish, self._stopped_at = int(signal.SIGTERM), time.monotonic()
        with contextlib.suppress(OSError):  # it has died; the next look says how
            self._pipe.send(wish)

    def _died(self) -> None:
        self._process.join()
        code = self._process.exitcode or 0
        if self._signals and -code == signal.SIGTERM:
            return
        hint = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        raise ResourceError(f"its process died ({how_it_died(code)}){hint}.")


def _raise(kind: str, text: str, trace: str) -> None:
    found = getattr(errors, kind, SsclfError)
    raise found(text) from (WorkTraceback(trace) if trace else None)


def _run(pipe: Connection, work: Callable[[Caller], Any], level: int) -> None:
    """In the new process: the work, between a log that is handed over and an end that is told."""
    os.setpgrp()  # a terminal's signals are for who asked for the work, who hands them on
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which ends it, until the work knows better
    end_with_parent()
    caller = Caller(pipe)
    logger = logging.getLogger(_LOGGER)
    logger.handlers[:] = [_HandOver(caller)]
    logger.propagate = False
    logger.setLevel(level)
    try:
        result = work(caller)
    except SsclfError as exc:
        caller.send("failed", (type(exc).__name__, str(exc), ""))
    except Exception as exc:
        line = " ".join(str(exc).split())[:300]
        text = f"unexpected {type(exc).__name__} ({line}); please report it to ssclf."
        caller.send("failed", (SsclfError.__name__, text, traceback.format_exc()))
    else:
        caller.send("done", result)
