"""Preprocessed volumes as a torch Dataset, with shuffling and augmentation that repeat exactly."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssclf.config import Augmentation, PreprocessConfig, config_from_dict
from ssclf.errors import ConfigError, DatasetError
from ssclf.io.records.tables import TableRow, read_table
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.augmentation import Augmenter

MANIFEST = "manifest.csv"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Sample:
    """A preprocessed volume.

    Attributes:
        key: its `path` in the manifest, which names it in splits.
        voxels: hash of the voxels it was made from, empty where the manifest has none.
        extraction: what removed the skull.
    """

    key: str
    path: Path
    subject: str
    label: str
    source: str
    voxels: str = ""
    extraction: str = ""


@dataclass(frozen=True)
class PreparedCohort:
    """Preprocessed volumes that belong together: same settings, two classes or more.

    Attributes:
        class_names: sorted; the order of logits.
        synthetic: whether some volumes were made by ssclf's generator.
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    synthetic: bool

    @property
    def subjects(self) -> dict[str, str]:
        """Sample key → subject."""
        return {sample.key: sample.subject for sample in self.samples}

    @property
    def labels(self) -> dict[str, str]:
        """Sample key → class name."""
        return {sample.key: sample.label for sample in self.samples}

    def select(self, keys: Sequence[str]) -> list[Sample]:
        by_key = {sample.key: sample for sample in self.samples}
        return [by_key[key] for key in keys]

    def counts(self, samples: Sequence[Sample]) -> list[int]:
        """Samples per class, in the order of `class_names`."""
        found = Counter(sample.label for sample in samples)
        return [found[name] for name in self.class_names]


def read_prepared_cohort(folder: Path, *, min_classes: int = 2) -> PreparedCohort:
    """Read what `ssclf preprocess` wrote.

    Args:
        folder: with `manifest.csv` and `settings.json`.
        min_classes: 2 to train on it, 1 to score a model on it.

    Raises:
        DatasetError: missing, incomplete, of mixed settings, or of too few classes.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(
            f"{path}: expected the list of preprocessed volumes, found none; make it with `ssclf preprocess`."
        )
    table = read_table(path)
    table.require("subject", "label", "source", "path")
    preprocess, synthetic = _read_settings(folder / SETTINGS)
    samples = tuple(_sample(folder, row, preprocess) for row in table.rows)
    twice = [key for key, count in Counter(sample.key for sample in samples).items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: expected every volume once, found {twice[0]} more than once.")
    class_names = tuple(sorted({sample.label for sample in samples}))
    if len(class_names) < min_classes:
        raise DatasetError(
            f"{path}: expected volumes of {min_classes} classes or more, found {len(samples)} volumes of "
            f"{'the class ' + class_names[0] if class_names else 'no class'}; add the other classes."
        )
    return PreparedCohort(samples, class_names, preprocess, synthetic)


def _sample(folder: Path, row: TableRow, preprocess: PreprocessConfig) -> Sample:
    where = f"{folder / MANIFEST} line {row.line}"
    empty = [name for name in ("subject", "label", "path") if not row[name]]
    if empty:
        raise DatasetError(f"{where}: expected a value for {', '.join(empty)}, found none.")
    if row["settings"] and row["settings"] != preprocess.hash:
        raise DatasetError(
            f"{where}: {row['path']} was preprocessed with other settings ({row['settings']}) than {SETTINGS} "
            f"says ({preprocess.hash}); run `ssclf preprocess` again."
        )
    path = folder / row["path"]
    if not path.is_file():
        raise DatasetError(f"{where}: {row['path']} is missing; run `ssclf preprocess` again.")
    return Sample(
        key=row["path"],
        path=path,
        subject=row["subject"],
        label=row["label"],
        source=row["source"],
        voxels=row["voxels"],
        extraction=row["extraction"],
    )


def _read_settings(path: Path) -> tuple[PreprocessConfig, bool]:
    """The settings, and whether some of the volumes are synthetic."""
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        config = config_from_dict(PreprocessConfig, values["preprocess"])
        written = values["hash"]
        synthetic = bool(values["synthetic"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as exc:
        raise DatasetError(
            f"{path}: expected the settings of the preprocessing, found {exc!r}; run `ssclf preprocess` again."
        ) from exc
    if written != config.hash:
        raise DatasetError(
            f"{path}: these volumes were preprocessed by a version of ssclf that computes other values "
            f"({written}, here {config.hash}); run `ssclf preprocess` again."
        )
    return config, synthetic


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
