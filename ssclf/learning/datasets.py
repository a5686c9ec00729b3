"""Preprocessed volumes as a torch Dataset, with shuffling and augmentation that repeat exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ssclf.config import Augmentation
from ssclf.domain.generator.draw import draw_brain
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.errors import ResourceError, VolumeError
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
#: Epoch and index.
Key = tuple[int, int]


class VolumeDataset(Dataset[Item]):
    """Items are asked for by (epoch, index), so that worker processes need not be told the epoch."""

    def __init__(
        self,
        samples: Sequence[Sample],
        class_names: Sequence[str],
        *,
        augmentation: Augmentation,
        seed: int,
        channels: int = 1,
        generator: GeneratorSettings | None = None,
    ) -> None:
        """Take the samples.

        Args:
            generator: makes another brain of each volume, with or without lesions as its label says, anew in every
                epoch.
        """
        self.channels = channels
        self._seed, self._generator = seed, generator
        self.samples = list(samples)
        self.targets = [class_names.index(sample.label) for sample in samples]
        self._augment = Augmenter(augmentation, seed)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Item:
        """Raises:
        VolumeError: the file is missing or damaged, or cannot be augmented.
        """
        epoch, index = key
        path = self.samples[index].path
        volume = read_written(path)
        if self._generator:
            label: Any = self.samples[index].label
            volume, _ = draw_brain(volume, label, (self._seed, epoch, index), self._generator)
        try:
            data = self._augment(volume.data, volume.affine, epoch=epoch, index=index)
        except (RuntimeError, ValueError, TypeError) as exc:  # TorchIO's and SimpleITK's
            if "memory" in str(exc):
                raise
            raise VolumeError(
                f"{path}: cannot be augmented ({' '.join(str(exc).split())[:200]}); look at it, or choose another "
                "--augmentation."
            ) from exc
        return torch.from_numpy(data), self.targets[index], index

    def load(self, keys: Sequence[Key]) -> Batch:
        """A batch of them.

        Raises:
            VolumeError: see above.
            ResourceError: there is not enough memory.
        """
        try:
            return collate([self[key] for key in keys])
        except (MemoryError, RuntimeError) as exc:
            if isinstance(exc, RuntimeError) and "memory" not in str(exc):
                raise
            raise ResourceError(
                "not enough memory to read a batch; use a smaller --batch-size or fewer --workers."
            ) from exc


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
    """Stack volumes, each in the middle of a background as large as the largest: where all begin at the first voxel, a
    network learns how brains lie in its strides, and fewer held-out lesions (docs/training.md)."""
    volumes = [item[0] for item in items]
    largest = [max(sizes) for sizes in zip(*(volume.shape for volume in volumes), strict=True)]
    batch = torch.zeros(len(volumes), *largest)
    for target, volume in zip(batch, volumes, strict=True):
        where = tuple(
            slice((large - small) // 2, (large - small) // 2 + small)
            for large, small in zip(target.shape, volume.shape, strict=True)
        )
        target[where] = volume
    return Batch(batch, torch.tensor([item[1] for item in items]), torch.tensor([item[2] for item in items]))
