"""Programs of others, run so that none outlives who asked for it.

A worker may be killed: by its time limit, or with the run. What it had started went on, on cores and files that
nobody waited for. So a small process stands between the two. The system tells it when the worker dies, and it ends
the program with all that the program has started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Runs alone: `python -I -S -c`, which takes some hundredths of a second. PR_SET_PDEATHSIG (1) is Linux's own.
_GUARD = """
import ctypes, os, signal, sys
parent, program = int(sys.argv[1]), sys.argv[2:]
child = 0
def end(number, frame):
    if child:
        try:
            os.killpg(child, signal.SIGKILL)
        except OSError:
            pass
    os._exit(1)
signal.signal(signal.SIGTERM, end)
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(1, signal.SIGTERM)
if os.getppid() != parent:
    os._exit(1)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        os.execvp(program[0], program)
    except OSError as exc:
        os._exit(126 if exc.errno == 13 else 127)
try:
    os.setpgid(child, child)
except OSError:
    pass
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
status = os.waitpid(child, 0)[1]
try:
    os.killpg(child, signal.SIGKILL)
except OSError:
    pass
code = os.waitstatus_to_exitcode(status)
os._exit(code if code >= 0 else 128 - code)
"""
#: What a guard takes to end its program.
_PATIENCE_S = 5


@dataclass(frozen=True)
class Ended:
    """How a program ended: 128 and more are signals, as in a shell."""

    code: int
    said: bytes

    @property
    def never_began(self) -> bool:
        return self.code in (126, 127)


def run_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path | None,
    timeout_s: float,
    errors_only: bool = False,
) -> Ended:
    """Run a program to its end; with this process, or after the time limit, it and all it has started end too.

    Args:
        command: the program by its path, and its arguments.
        environment: all of it.
        folder: to run it in.
        errors_only: keep what it writes to its errors, not its output.

    Returns:
        its exit code, and what it wrote to its output and its errors.

    Raises:
        TimeoutError: it was ended.
        OSError: no process can be started.
    """
    guard = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command]
    with subprocess.Popen(
        guard,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if errors_only else subprocess.PIPE,
        stderr=subprocess.PIPE if errors_only else subprocess.STDOUT,
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException as exc:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise TimeoutError(f"had not ended after {timeout_s:g} s.") from exc
            raise
    return Ended(process.returncode, errors if errors_only else output)
