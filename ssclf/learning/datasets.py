"""Preprocessed volumes as a torch Dataset, with shuffling and augmentation that repeat exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ssclf.config import Augmentation
from ssclf.domain.augmentation import Transform, draw_transform
from ssclf.domain.generator.draw import draw_brain
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.domain.volume import Volume
from ssclf.errors import ResourceError, VolumeError
from ssclf.io.decoded import DecodedVolumes
from ssclf.io.records.preprocessed import Sample
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.augmentation import add_artefacts, in_the_middle, move


class Item(NamedTuple):
    """Attributes:
    data: (C, D, H, W) float32.
    target: class index.
    position: in the dataset.
    transform: what is still to be done to it.
    """

    data: NDArray[np.float32]
    target: int
    position: int
    transform: Transform | None = None


class Batch(NamedTuple):
    """Attributes:
    volumes: (N, C, D, H, W) float32.
    targets: (N,) class indices.
    indices: (N,) positions in the dataset.
    transforms: what is still to be done to each, where the network learns (`augmentation.move_batch`).
    """

    volumes: Tensor
    targets: Tensor
    indices: Tensor
    transforms: tuple[Transform | None, ...] = ()


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
        decoded: DecodedVolumes | None = None,
    ) -> None:
        """Take the samples.

        Args:
            generator: makes another brain of each volume, with or without lesions as its label says, anew in every
                epoch.
            decoded: that keeps what was read; None reads anew.
        """
        self.channels = channels
        self._seed, self._generator, self._augmentation = seed, generator, augmentation
        self.samples = list(samples)
        self.targets = [class_names.index(sample.label) for sample in samples]
        self._decoded = decoded

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> Item:
        """Raises:
        VolumeError: the file is missing or damaged, or cannot be augmented.
        """
        index, volume = key[1], self.volume(key)
        try:
            data, transform = self._augment(volume, (self._seed, *key))
        except (RuntimeError, ValueError, TypeError) as exc:  # numpy's, TorchIO's and SimpleITK's
            if "memory" in str(exc):
                raise
            raise VolumeError(
                f"{self.samples[index].path}: cannot be augmented ({' '.join(str(exc).split())[:200]}); look at it, "
                "or choose another --augmentation."
            ) from exc
        return Item(data, self.targets[index], index, transform)

    def volume(self, key: Key) -> Volume:
        """What an item is before augmentation.

        Raises:
            VolumeError: the file is missing or damaged.
        """
        sample = self.samples[key[1]]
        volume = self._decoded.read(sample.path) if self._decoded else read_written(sample.path)
        if self._generator:
            label: Any = sample.label
            volume, _ = draw_brain(volume, label, (self._seed, *key), self._generator)
        return volume

    def _augment(
        self, volume: Volume, key: tuple[int, int, int]
    ) -> tuple[NDArray[np.float32], Transform | None]:
        """A volume, and what is still to be done to it: nothing where artefacts come last."""
        transform = draw_transform(self._augmentation, volume.shape, volume.affine, key)
        if transform is None or not transform.artefacts:
            return volume.data, transform
        moved = move(torch.from_numpy(np.array(volume.data)), transform)
        return add_artefacts(moved.numpy(), volume.affine, transform), None

    def at_hand(self, keys: Sequence[Key]) -> bool:
        """Whether a batch of them is no more work than copying it."""
        if self._generator or self._augmentation == "heavy" or self._decoded is None:
            return False
        return all(self._decoded.at_hand(self.samples[index].path) for _, index in keys)

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
    largest = [max(sizes) for sizes in zip(*(item.data.shape for item in items), strict=True)]
    batch = torch.zeros(len(items), *largest)
    for target, item in zip(batch.numpy(), items, strict=True):
        target[in_the_middle(item.data.shape, largest)] = item.data
    return Batch(
        batch,
        torch.tensor([item.target for item in items]),
        torch.tensor([item.position for item in items]),
        tuple(item.transform for item in items),
    )
