"""SIGTERM and Ctrl-C as a wish that long work looks at, so that it stops where nothing is lost, and what a command
then exits with."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


@contextmanager
def note_signals(saying: str) -> Iterator[list[int]]:
    """Collect signals while the block runs; a second Ctrl-C stops at once.

    Args:
        saying: what the log says about what happens now.

    Yields:
        the numbers of the signals received so far; stays empty outside the main thread.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        log.warning("signal %d: %s", number, saying)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def end_at_last(patience_s: float) -> Iterator[None]:
    """So long after SIGTERM or Ctrl-C the process ends, if the block has not: also where it waits inside a library,
    for a process that is gone, and no handler in Python runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(ours, patience_s), daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.shutdown(socket.SHUT_RDWR)  # closing is not enough: forks of ours hold it, too
        watcher.join()
        theirs.close()
        ours.close()


def _watch(numbers: socket.socket, patience_s: float) -> None:
    """Reads the signals that the interpreter writes down as they come, until the other end is closed."""
    stopped = 0
    while True:
        try:
            found = numbers.recv(16)
        except TimeoutError:
            log.error("signal %d: not ended after %g s; ending now, without saving", stopped, patience_s)
            os._exit(128 + stopped)
        if not found:
            return
        wishes = [number for number in found if number in (signal.SIGTERM, signal.SIGINT)]
        if wishes and not stopped:
            stopped = wishes[0]
            numbers.settimeout(patience_s)


@contextmanager
def end_orderly() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, by an exception, so that what is half written is cleared away. A second
    one ends the process at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(*, failed: bool, interrupted: int) -> int:
    """Contract, "Exit codes", of work that does one thing after the other.

    Args:
        failed: whether some of them did.
        interrupted: the signal that stopped it, 0 when it ran to its end.
    """
    if interrupted:
        return 128 + interrupted
    return 3 if failed else 0
