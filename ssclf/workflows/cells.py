"""One cell of a cross-validation, trained in a process of its own: what kills it costs this cell alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssclf.config import Device, TrainConfig
from ssclf.domain.splits import Split
from ssclf.errors import VolumeError
from ssclf.io.alone import Caller, run_alone
from ssclf.io.records.cv_run import Cell, write_cost
from ssclf.io.records.preprocessed import PreparedCohort, read_prepared_cohort
from ssclf.io.records.training_run import can_resume
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.cost import PeakMemory, measure_cost, thread_count, use_threads
from ssclf.workflows.train import Machine, Watch, train


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """Attributes:
    out: folder of the cross-validation.
    data: the preprocessed folders.
    config: of the cross-validation; architecture, start and seed are the cell's own.
    """

    cell: Cell
    out: Path
    data: tuple[Path, ...]
    config: TrainConfig
    split: Split
    machine: Machine


def train_cell(task: CellTask, watch: Watch, signals: Sequence[int]) -> int:
    """Train a cell and measure its cost; the signal that stopped it, or 0.

    Args:
        signals: that this process has got so far: the cell saves and ends.

    Raises:
        SsclfError: see `train` and `run_alone`.
    """

    def on_told(kind: str, *what: Any) -> None:
        if kind == "step":
            watch.on_step(*what)
        else:
            watch.on_epoch(*what)

    stopped = run_alone(partial(_work, task, thread_count()), on_told=on_told, signals=signals)
    return signals[0] if stopped is None else stopped


def _work(task: CellTask, threads: int, caller: Caller) -> int:
    use_threads(threads)
    memory = PeakMemory(task.machine.device)
    cell, config, machine = task.cell, task.config, task.machine
    folder = cell.folder(task.out)
    result = train(
        task.data,
        folder,
        dataclasses.replace(
            config,
            architecture=cell.architecture,
            pretrained=cell.pretrained,
            seed=config.seed + cell.fold,
        ),
        resume=can_resume(folder),
        split=task.split,
        machine=machine if cell.pretrained else dataclasses.replace(machine, weights=None),
        watch=Watch(on_step=partial(caller.tell, "step"), on_epoch=partial(caller.tell, "epoch")),
    )
    if not result.interrupted:
        _measure_cost(cell, folder, read_prepared_cohort(task.data), machine.device, memory)
    return result.interrupted


def _measure_cost(
    cell: Cell, folder: Path, cohort: PreparedCohort, device: Device, memory: PeakMemory
) -> None:
    """Training cost of this cell, and what a forward pass costs on the same volume for every cell."""
    peak = memory.megabytes
    some = []
    for sample in sorted(cohort.samples, key=lambda s: s.key)[:9]:
        with contextlib.suppress(VolumeError):  # of another fold, which it costs
            some.append(read_written(sample.path).data)
    middle = sorted(some, key=lambda volume: volume.size)[len(some) // 2]
    cost = measure_cost(cell.architecture, middle, classes=len(cohort.class_names), device=device)
    write_cost(folder, {**dataclasses.asdict(cost), "peak_training_mb": peak, "peak_of": memory.what})
