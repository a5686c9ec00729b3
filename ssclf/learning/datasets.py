"""Preprocessed volumes as a torch Dataset, with shuffling and augmentation that repeat exactly."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssclf.config import Augmentation
from ssclf.io.records.preprocessed import Sample
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.augmentation import Augmenter


class Batch(NamedTuple):
    """Attributes:
    volumes: (N, C, D, H, W) float32.
    targets: (N,) class indices.
    indices: (N,) positions in the dataset.
    """

    volumes: Tensor
    targets: Tensor
    indices: Tensor


Item = tuple[Tensor, int, int]


class VolumeDataset(Dataset[Item]):
    """Items are asked for by (epoch, index), so that worker processes need not be told the epoch."""

    def __init__(
        self, samples: Sequence[Sample], class_names: Sequence[str], *, augmentation: Augmentation, seed: int
    ) -> None:
        self.samples = list(samples)
        self.targets = [class_names.index(sample.label) for sample in samples]
        self._augment = Augmenter(augmentation, seed)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        volume = read_written(self.samples[index].path)
        data = self._augment(volume.data, volume.affine, epoch=epoch, index=index)
        return torch.from_numpy(data), self.targets[index], index


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) pairs for one process: shuffled by (seed, epoch), shared out among the processes.

    The last indices repeat from the start where the number does not divide, so that all processes take the same
    number of steps.
    """

    def __init__(self, size: int, *, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        self._size, self._seed, self._shuffle = size, seed, shuffle
        self._rank, self._world = rank, world
        self.epoch = 0
        #: Items of this process to leave out at the start, when an interrupted epoch goes on.
        self.skip = 0

    def __len__(self) -> int:
        return -(-self._size // self._world) - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self._size)
        if self._shuffle:
            np.random.default_rng([self._seed, self.epoch]).shuffle(order)
        padded = np.resize(order, len(self) * self._world + self.skip * self._world)
        for index in padded[self._rank :: self._world][self.skip :]:
            yield self.epoch, int(index)


def collate(items: Sequence[Item]) -> Batch:
    """Stack volumes; smaller ones are filled with background at the end of each axis."""
    volumes = [item[0] for item in items]
    largest = [max(sizes) for sizes in zip(*(volume.shape for volume in volumes), strict=True)]
    batch = torch.zeros(len(volumes), *largest)
    for target, volume in zip(batch, volumes, strict=True):
        _, d, h, w = volume.shape
        target[:, :d, :h, :w] = volume
    return Batch(batch, torch.tensor([item[1] for item in items]), torch.tensor([item[2] for item in items]))


def make_loader(
    dataset: VolumeDataset, sampler: EpochSampler, *, batch_size: int, workers: int, pin_memory: bool
) -> DataLoader[Item]:
    """A DataLoader whose processes outlive the epoch."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        # workers draw a seed from torch's global state, which must not depend on their number
        generator=torch.Generator(),
    )


def _start_worker(worker: int) -> None:
    # A terminal and Slurm send signals to every process. The main one decides what they mean; the others end with
    # their queue, or when they find it gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # TorchIO resamples with SimpleITK, which would start as many threads as there are cores in each worker.
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
