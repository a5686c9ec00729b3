"""No program outlives who asked for it: its worker, or the run that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssclf.io.children import run_child
from ssclf.io.workers import run_in_processes

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="the system tells of a parent's death on Linux"
    ),
]
#: Holds a pipe open as long as it and what it has started live: reading its other end waits for all of them.
_LONG = "exec 9>{pipe}; sleep 600 & sleep 600"


def call(pipe: str) -> int:
    """What a worker does; it does not come back by itself."""
    return run_child(
        ["/bin/sh", "-c", _LONG.format(pipe=pipe)], environment=dict(os.environ), folder=None, timeout_s=600
    ).code


def test_output_and_exit_code_come_back(tmp_path: Path) -> None:
    done = run_child(
        ["/bin/sh", "-c", "echo out; echo err >&2; exit 4"], environment={}, folder=tmp_path, timeout_s=60
    )
    assert done.code == 4 and done.said == b"out\nerr\n"
    only = run_child(
        ["/bin/sh", "-c", "echo out; echo err >&2"],
        environment={},
        folder=None,
        timeout_s=60,
        errors_only=True,
    )
    assert only.code == 0 and only.said == b"err\n"
    assert run_child([str(tmp_path / "no")], environment={}, folder=None, timeout_s=60).never_began
    killed = run_child(["/bin/sh", "-c", "kill -9 $$"], environment={}, folder=None, timeout_s=60)
    assert killed.code == 128 + signal.SIGKILL


def test_after_its_time_a_program_ends_with_what_it_started(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    words = ["/bin/sh", "-c", _LONG.format(pipe=tmp_path / "pipe")]
    with pytest.raises(TimeoutError):
        run_child(words, environment=dict(os.environ), folder=None, timeout_s=2)
    assert os.read(reader, 1) == b""  # comes when nobody holds the other end any more
    os.close(reader)


def test_a_worker_that_is_stopped_takes_its_program_with_it(tmp_path: Path) -> None:
    """dcm2niix went on after --timeout."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    (outcome,) = run_in_processes(call, [str(tmp_path / "pipe")], workers=1, timeout_s=4)
    assert "--timeout" in outcome.error
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_a_run_that_is_killed_takes_its_programs_with_it(tmp_path: Path) -> None:
    """dcm2niix went on after SIGKILL of the main process."""
    os.mkfifo(tmp_path / "pipe")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_children import call\nfrom ssclf.io.workers import run_in_processes\n"
        f"list(run_in_processes(call, [{str(tmp_path / 'pipe')!r}], workers=1))\n"
    )
    with (
        subprocess.Popen([sys.executable, "-c", code]) as run,
        (tmp_path / "pipe").open("rb", buffering=0) as reader,  # opens when the program is there
    ):
        run.kill()
        assert reader.read(1) == b""
