"""A disk that is full says so, in one line, and costs nothing that was there before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)
TRAIN = [
    "train",
    "--model",
    "mc3",
    "--epochs",
    "1",
    "--batch-size",
    "4",
    "--holdout",
    "0",
    "--workers",
    "0",
    "--device",
    "cpu",
]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (TRAIN, 1),
        (["cv", "--models", "mc3", "--folds", "2", *TRAIN[3:7], "--scheme", "kfold", "--workers", "0"], 3),
    ],
    ids=["train", "cv"],
)
def test_a_full_disk_says_so(
    command: list[str], code: int, preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    """Torch speaks of positions in its file: `unexpected pos 768 vs 662`."""
    data, disk = preprocessed(), tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=20m tmpfs {disk} && exec "$@"', "-"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here; it takes root")
    done = subprocess.run(
        [*mount, sys.executable, "-m", "ssclf", *command, "--data", str(data), "--out", str(disk / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == code, done.stderr
    assert "last.pt: cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
