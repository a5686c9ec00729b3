"""SIGTERM and Ctrl-C as a wish that long work looks at, so that it stops where nothing is lost, and what a command
then exits with."""

from __future__ import annotations

import logging
import signal
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
