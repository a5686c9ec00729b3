"""Who was started together: as Slurm 22.05 says it in a job of two tasks, with and without srun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ssclf.errors import ConfigError
from ssclf.io.records.training_run import idle_tasks, is_first_process, process_count, processes_per_node

BATCH = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train.sh", "SLURM_NTASKS": "2", "SLURM_NPROCS": "2", "SLURM_NNODES": "1",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_GTIDS": "0", "SLURM_TASKS_PER_NODE": "2",
}  # fmt: skip
STEP = {
    **BATCH, "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_GTIDS": "0,1", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2",
}  # fmt: skip
#: Submitted from within a step of one task, whose variables stay.
NESTED = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
ALLOCATED = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}  # salloc
TORCHRUN = {**BATCH, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3"}
MANY = {**STEP, "SLURM_NTASKS": "6", "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}


@pytest.mark.parametrize(
    ("environment", "count", "local", "idle", "first"),
    [
        ({}, 1, 1, 0, True),
        (BATCH, 1, 1, 2, True),
        (NESTED, 1, 1, 2, True),
        (ALLOCATED, 1, 1, 2, True),
        ({**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, 1, 1, 0, True),
        (STEP, 2, 2, 0, False),
        (MANY, 6, 2, 0, False),
        (TORCHRUN, 4, 2, 0, False),
    ],
    ids=[
        "no Slurm",
        "sbatch",
        "sbatch in a step",
        "salloc",
        "srun of one",
        "srun",
        "srun on three",
        "torchrun",
    ],
)
def test_processes_are_those_that_were_started(
    environment: dict[str, str],
    count: int,
    local: int,
    idle: int,
    first: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (process_count(), processes_per_node(), idle_tasks(), is_first_process()) == (
        count,
        local,
        idle,
        first,
    )


def test_tasks_that_are_spread_unevenly_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_STEP_TASKS_PER_NODE": "2,1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        processes_per_node()


@pytest.mark.parametrize("environment", [BATCH, NESTED], ids=["sbatch", "sbatch in a step"])
def test_one_process_of_a_job_of_two_tasks_trains_alone(
    environment: dict[str, str], preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    """It waited for a second one that nobody had started."""
    command = ["train", "--data", str(preprocessed()), "--out", str(tmp_path / "run"), "--epochs", "1"]
    command += ["--batch-size", "2", "--holdout", "0", "--workers", "0", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "ssclf", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "this Slurm job has 2 tasks" in done.stderr
    assert "srun --ntasks-per-node 2 ssclf train" in done.stderr
