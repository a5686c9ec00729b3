"""A signal ends what it is sent to: in good order where that is possible, and in any case."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(120)
DEAF = """
import ctypes, logging
from ssclf.workflows.interruption import end_at_last, note_signals
logging.basicConfig()
with end_at_last({patience}), note_signals("saving") as signals:
    print("there", flush=True)
    libc = ctypes.CDLL(None)
    while True:
        libc.sleep(1)  # a signal may come just before it, and is seen behind it
        {body}
"""


@pytest.mark.parametrize(
    ("body", "patience", "code"), [("pass", 0.5, 143), ("if signals: break", 60, 0)], ids=["deaf", "hears"]
)
def test_who_does_not_end_is_ended(body: str, patience: float, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DEAF.format(body=body, patience=patience)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == code
    assert ("without saving" in errors) == bool(code)
