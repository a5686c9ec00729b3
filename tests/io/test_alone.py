"""Work in a process of its own: whatever ends it, who asked for it goes on and knows why."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ssclf.io.alone
from ssclf.errors import ModelError, ResourceError, SsclfError
from ssclf.io.alone import Caller, run_alone

pytestmark = pytest.mark.timeout(120)


def count(to: int, caller: Caller) -> str:
    """Tells each number; SIGTERM is a wish, as it is for a training."""
    wishes: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: wishes.append(number))
    for number in range(to):
        if wishes:
            return f"stopped at {number}"
        caller.tell("number", number)
    return "counted"


def fail(kind: str, caller: Caller) -> None:
    if kind == "ours":
        raise ModelError("file.pt: damaged.")
    if kind == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        bytearray(1 << 31)
    if kind == "exit":
        os._exit(7)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyError("something\nof a library")


def hang(pipe: Path, caller: Caller) -> None:
    """Deaf to signals, and with a process of its own that is so, too; both hold a pipe open."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held = os.open(pipe, os.O_WRONLY)
    os.set_inheritable(held, True)
    subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; sleep 600"], close_fds=False)
    caller.tell("hangs")
    signal.pause()
    signal.pause()


def speak(caller: Caller) -> int:
    logging.getLogger("ssclf.io.alone").warning("from %s", "afar")
    logging.getLogger("ssclf.io.alone").debug("too small")
    return os.getpid()


def wait_for_end(pipe: Path) -> int:
    """A reader of a pipe that hears the end once nobody holds the other side any more."""
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    return reader


def test_what_it_tells_comes_in_order_and_its_result_comes_back() -> None:
    told: list[Any] = []
    assert run_alone(partial(count, 5), on_told=lambda *what: told.append(what)) == "counted"
    assert told == [("number", k) for k in range(5)]
    assert multiprocessing.active_children() == []


def test_its_log_is_ours(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ssclf"):
        assert run_alone(speak, on_told=print) != os.getpid()
    assert [record.getMessage() for record in caplog.records] == ["from afar"]


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("ours", ModelError, r"^file\.pt: damaged\.$"),
        ("memory", SsclfError, "unexpected MemoryError"),
        ("library", SsclfError, r"unexpected KeyError \('something.*of a library'\)"),
        ("exit", ResourceError, "exit code 7"),
        ("kill", ResourceError, "signal 9"),
    ],
)
def test_whatever_ends_it_is_an_error_here(kind: str, error: type[SsclfError], text: str) -> None:
    with pytest.raises(error, match=text) as found:
        run_alone(partial(fail, kind), on_told=print)
    assert ("in fail" in str(found.value.__cause__)) == (kind in ("memory", "library"))
    assert multiprocessing.active_children() == []


def test_a_signal_between_two_steps_stops_it_before_the_next() -> None:
    signals: list[int] = []

    def on_told(kind: str, number: int) -> None:
        if number == 2:
            signals.append(signal.SIGTERM)

    assert run_alone(partial(count, 5), on_told=on_told, signals=signals) == "stopped at 3"


def sit(caller: Caller) -> None:
    caller.tell()
    signal.pause()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_work_that_has_not_said_what_it_means(number: signal.Signals) -> None:
    """Ctrl-C while a cell was starting was a failure of that cell, with a traceback."""
    signals: list[int] = []
    assert run_alone(sit, on_told=lambda: signals.append(number), signals=signals) is None


def test_work_that_hears_no_signal_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssclf.io.alone, "PATIENCE_S", 0.5)
    reader = wait_for_end(tmp_path / "pipe")
    signals: list[int] = []
    hangs = partial(hang, tmp_path / "pipe")
    assert run_alone(hangs, on_told=lambda kind: signals.append(signal.SIGTERM), signals=signals) is None
    assert os.read(reader, 1) == b""
    os.close(reader)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the system tells of a parent's death on Linux"
)
def test_it_ends_with_who_asked_for_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom functools import partial\nfrom pathlib import Path\nfrom test_alone import wait_and_hold\n"
        "from ssclf.io.alone import run_alone\n"
        "run_alone(partial(wait_and_hold, Path(sys.argv[1])), on_told=lambda: print('there', flush=True))"
    )
    reader = wait_for_end(tmp_path / "pipe")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "pipe")], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"there\n"
        process.kill()
    assert os.read(reader, 1) == b""
    os.close(reader)


def wait_and_hold(pipe: Path, caller: Caller) -> None:
    os.open(pipe, os.O_WRONLY)
    caller.tell()
    signal.pause()
