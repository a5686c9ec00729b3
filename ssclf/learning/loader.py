"""Batches that other processes read, in an order that does not depend on how many there are.

Not torch's own loader: that one passes batches through /dev/shm, whose size containers limit to 64 MB, drops a batch
that does not fit and waits for it for ever, and cannot be told to stop while it waits. Here a batch lies in memory that
the processes share since they began, which has no such limit, or comes through a pipe where it is larger than expected.
A process that dies closes its pipe; one that hangs is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import mmap
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch

from ssclf import errors
from ssclf.domain.augmentation import Transform
from ssclf.errors import ResourceError, SsclfError
from ssclf.io.decoded import manifest_shape
from ssclf.io.records.preprocessed import Sample
from ssclf.io.workers import end_with_parent, how_it_died
from ssclf.learning.datasets import Batch, EpochSampler, Key, VolumeDataset

#: Batches that each process is ahead of the network.
_AHEAD = 4
#: How often who waits for a batch looks whether to stop, and after how long the log says that it waits.
_LOOK_S, _SLOW_S = 0.2, 60.0
log = logging.getLogger(__name__)


class VolumeLoader:
    """The batches of a data set, epoch after epoch."""

    def __init__(
        self, dataset: VolumeDataset, sampler: EpochSampler, *, batch_size: int, workers: int
    ) -> None:
        """Processes start with the first epoch and stay until `close`.

        Args:
            workers: 0 reads in this process.
        """
        self._dataset, self._sampler, self._batch_size = dataset, sampler, batch_size
        self._count = workers if "fork" in multiprocessing.get_all_start_methods() else 0
        self._readers: list[_Reader] = []
        self._asked = 0  # in all epochs: an epoch that was left early has batches under way

    def batches(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """One epoch, or as much of it as is read before `stop`.

        Args:
            stop: looked at while this waits for a batch.

        Raises:
            VolumeError: a volume cannot be read.
            ResourceError: a process that reads volumes died.
        """
        keys = iter(self._sampler)
        groups = iter(lambda: list(itertools.islice(keys, self._batch_size)), [])
        if not self._count:
            yield from map(self._dataset.load, groups)
            return
        under_way: deque[list[Key] | tuple[_Reader, int]] = deque()
        while True:
            for group in itertools.islice(groups, _AHEAD * self._count - len(under_way)):
                # what lies in memory is copied once here, and would be three times through a reader
                under_way.append(group if self._dataset.at_hand(group) else self._ask(group))
            if not under_way:
                return
            asked = under_way.popleft()
            if isinstance(asked, list):
                yield self._dataset.load(asked)
            elif (batch := asked[0].receive(asked[1], stop)) is None:
                return
            else:
                yield batch

    def _ask(self, group: list[Key]) -> tuple[_Reader, int]:
        """Have a batch read; returns by whom, and its number."""
        if not self._readers:
            self._readers = _start_readers(self._dataset, self._count, self._batch_size)
        number = self._asked
        reader = self._readers[number % self._count]
        reader.ask(number, number // self._count % _AHEAD, group)
        self._asked += 1
        return reader, number

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def close(self) -> None:
        """End the processes, also one that hangs."""
        for reader in self._readers:
            reader.end()
        self._readers = []


@dataclass(frozen=True)
class _Reader:
    """A process that reads, as seen from the one that trains.

    Attributes:
        slots: memory that both see, a place for each batch that it may be ahead.
    """

    process: BaseProcess
    pipe: Connection
    slots: Sequence[mmap.mmap]

    def ask(self, number: int, slot: int, keys: list[Key]) -> None:
        with contextlib.suppress(OSError):  # it has died, which is noticed when its answer is waited for
            self.pipe.send((number, slot, keys))

    def receive(self, number: int, stop: Callable[[], bool]) -> Batch | None:
        """The batch of that number; None where `stop` came first. What was asked for earlier and left is dropped."""
        began, told = time.monotonic(), False
        while True:
            if not wait([self.pipe], _LOOK_S):
                if stop():
                    return None
                if not told and time.monotonic() - began > _SLOW_S:
                    log.warning("waiting for volumes for %d s", _SLOW_S)
                    told = True
                continue
            try:
                answered, answer = self.pipe.recv()
            except (EOFError, OSError):
                raise self._died() from None
            if answered < number:
                continue
            if isinstance(answer, _Failure):
                raise getattr(errors, answer.kind, SsclfError)(answer.text)
            return answer.batch(self.slots)

    def _died(self) -> ResourceError:
        self.process.join()
        code = self.process.exitcode or 0
        hint = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        return ResourceError(
            f"a process that reads volumes died ({how_it_died(code)}){hint}. Use fewer --workers or a smaller "
            "--batch-size."
        )

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


@dataclass(frozen=True)
class _Failure:
    kind: str
    text: str


@dataclass(frozen=True)
class _Answer:
    """Attributes:
    slot: where the voxels are, None where they are in `volumes`.
    """

    shape: tuple[int, ...]
    targets: list[int]
    indices: list[int]
    slot: int | None
    transforms: tuple[Transform | None, ...]
    volumes: Any = None

    def batch(self, slots: Sequence[mmap.mmap]) -> Batch:
        volumes = self.volumes
        if self.slot is not None:  # copied, since the next batch will lie there
            volumes = _view(slots[self.slot], self.shape).copy()
        return Batch(
            torch.from_numpy(volumes),
            torch.tensor(self.targets),
            torch.tensor(self.indices),
            self.transforms,
        )


def _start_readers(dataset: VolumeDataset, count: int, batch_size: int) -> list[_Reader]:
    """Raises:
    ResourceError: no process can be started.
    """
    context = multiprocessing.get_context("fork")
    size = 4 * batch_size * math.prod(largest_shape(dataset.samples) or (0,)) * dataset.channels
    readers: list[_Reader] = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        slots = _shared_memory(size)
        others = [ours, *(reader.pipe for reader in readers)]
        process = context.Process(target=_read, args=(dataset, theirs, slots, others), daemon=True)
        try:
            process.start()
        except OSError as exc:
            for reader in readers:
                reader.end()
            raise ResourceError(
                f"no process that reads volumes can be started ({exc.strerror or exc}); use fewer --workers."
            ) from exc
        theirs.close()
        readers.append(_Reader(process, ours, slots))
    return readers


def largest_shape(samples: Sequence[Sample]) -> tuple[int, int, int] | None:
    """(D, H, W) of a batch item that holds any of these, as the manifest says; None where it does not say."""
    shapes = [shape for sample in samples if (shape := manifest_shape(sample))]
    if not shapes or len(shapes) < len(samples):
        return None
    d, h, w = (max(sizes) for sizes in zip(*shapes, strict=True))
    return d, h, w


def _shared_memory(size: int) -> list[mmap.mmap]:
    """Places for batches of that many bytes; none where the system gives none, and all goes through the pipe."""
    try:
        return [mmap.mmap(-1, size) for _ in range(_AHEAD)] if size else []
    except (OSError, ValueError, OverflowError):
        return []


def _view(slot: mmap.mmap, shape: tuple[int, ...]) -> Any:
    return np.frombuffer(slot, np.float32, math.prod(shape)).reshape(shape)


def _read(
    dataset: VolumeDataset, pipe: Connection, slots: Sequence[mmap.mmap], others: Sequence[Connection]
) -> None:
    """In a process that reads: answer one question after the other, until nobody asks."""
    # A terminal and Slurm send signals to every process. The main one decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    for other in others:  # held open here, it would hide the death of who holds its other end
        other.close()
    end_with_parent()
    torch.set_num_threads(1)
    # TorchIO resamples with SimpleITK, which would start as many threads as there are cores in each worker.
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            number, slot, keys = pipe.recv()
            pipe.send((number, _answer(dataset, keys, slots, slot)))


def _answer(
    dataset: VolumeDataset, keys: list[Key], slots: Sequence[mmap.mmap], slot: int
) -> _Answer | _Failure:
    try:
        batch = dataset.load(keys)
    except SsclfError as exc:
        return _Failure(type(exc).__name__, str(exc))
    volumes = batch.volumes.numpy()
    fits = bool(slots) and volumes.nbytes <= len(slots[slot])
    if fits:
        _view(slots[slot], volumes.shape)[...] = volumes
    return _Answer(
        shape=volumes.shape,
        targets=batch.targets.tolist(),
        indices=batch.indices.tolist(),
        slot=slot if fits else None,
        transforms=batch.transforms,
        volumes=None if fits else volumes,
    )
