"""Folders of runs on a node: held by living processes, cleaned up after dead ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssclf.cluster import node_scratch

WORKER = """
import sys
import numpy as np
from ssclf.cluster.node_scratch import run_scratch, unpack
run = sys.argv[1]
unpack({"one": np.arange(3, dtype=np.uint8), "folder/two": np.zeros(0, np.uint8)}, run, "models")
print(run_scratch(run), flush=True)
sys.stdin.read()
"""


def start(run: str, temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, run],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
        text=True,
    )
    assert worker.stdout
    return worker, Path(worker.stdout.readline().strip())


def test_a_run_is_cleaned_up_once_its_last_process_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [start("first", tmp_path), start("first", tmp_path)]
    (first, folder), (second, same) = workers
    try:
        assert folder == same and folder.parent.stat().st_mode & 0o077 == 0
        assert (folder / "models" / "one").read_bytes() == bytes([0, 1, 2])
        assert sorted(path.name for path in folder.iterdir()) == ["held", "models", "models.lock"]
        first.kill()
        first.wait()
        workers.append(start("next", tmp_path))
        assert (folder / "models" / "folder" / "two").is_file(), "the second process still works for the run"
        second.kill()
        second.wait()
        workers.append(start("another", tmp_path))
        assert sorted(path.name for path in folder.parent.iterdir()) == ["another", "lock", "next"]
    finally:
        for worker, _ in workers:
            worker.kill()
            worker.communicate()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    node_scratch.remove_run("next")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["another", "lock"]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"ssclf-ray-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    worker, _ = start("run", tmp_path)
    worker.communicate()
    assert worker.returncode == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []
