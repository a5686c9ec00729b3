"""Batches from other processes: what may happen to these is an error or an end, never a wait without end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssclf.domain.volume import Volume
from ssclf.errors import ResourceError, VolumeError
from ssclf.io.records.preprocessed import Sample, read_prepared_cohort
from ssclf.io.volumes.nifti import read_written, write_nifti
from ssclf.learning.datasets import Batch, EpochSampler, VolumeDataset
from ssclf.learning.loader import VolumeLoader, largest_shape

pytestmark = pytest.mark.timeout(200)


def loader_of(samples: list[Sample], workers: int, batch_size: int = 2) -> VolumeLoader:
    dataset = VolumeDataset(samples, ("HGG", "LGG", "healthy"), augmentation="none", seed=0)
    sampler = EpochSampler(len(samples), seed=0, shuffle=False)
    return VolumeLoader(dataset, sampler, batch_size=batch_size, workers=workers)


def samples_of(folder: Path, shape: str = "6 x 20 x 18") -> list[Sample]:
    """As the manifest of `ssclf preprocess` describes them."""
    return [replace(sample, cells={"shape": shape}) for sample in read_prepared_cohort(folder).samples]


def load(loader: VolumeLoader) -> list[Batch]:
    with contextlib.closing(loader):
        return list(loader)


@pytest.mark.parametrize("shape", ["6 x 20 x 18", "2 x 3 x 4", ""])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_the_same_through_memory_and_through_pipes(
    workers: int, shape: str, preprocessed: Callable[..., Path]
) -> None:
    """What the manifest does not say, or says wrongly, costs time and nothing else."""
    samples = samples_of(preprocessed(per_class=7), shape)
    assert largest_shape(samples) == {"6 x 20 x 18": (6, 20, 18), "2 x 3 x 4": (2, 3, 4), "": None}[shape]
    alone, shared = load(loader_of(samples, 0)), load(loader_of(samples, workers))
    assert len(alone) == len(shared) == 11
    for left, right in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left[:3], right[:3], strict=True))


def test_a_batch_is_one_s_own(preprocessed: Callable[..., Path]) -> None:
    samples = samples_of(preprocessed(per_class=7))
    with contextlib.closing(loader_of(samples, 1)) as loader:
        kept = [batch.volumes for batch in loader]
        before = [volumes.clone() for volumes in kept]
        list(loader)
    assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))


def test_an_epoch_that_is_left_early_leaves_nothing_to_the_next(preprocessed: Callable[..., Path]) -> None:
    samples = samples_of(preprocessed(per_class=7))
    with contextlib.closing(loader_of(samples, 2)) as loader:
        for _ in range(3):
            first = next(loader.batches())
            assert first.indices.tolist() == [0, 1]
        assert [index for batch in loader for index in batch.indices.tolist()] == list(range(21))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["empty", "cut", "not finite", "gone"])
def test_a_bad_volume_is_named_first_in_one_line_that_says_what_to_do(
    kind: str, workers: int, preprocessed: Callable[..., Path]
) -> None:
    """It was the last line of a traceback from another process."""
    samples = samples_of(preprocessed())
    path = samples[5].path
    volume = read_written(path)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif kind == "not finite":
        write_nifti(Volume(np.where(volume.data > 0.5, np.nan, volume.data), volume.affine), path)
    else:
        path.unlink()
    with pytest.raises(VolumeError) as found:
        load(loader_of(samples, workers))
    text = str(found.value)
    assert text.startswith(f"{path}: expected ") and "\n" not in text
    assert text.endswith("remove it, and run the same `ssclf preprocess` again.")


def test_a_reader_that_dies_is_an_error(preprocessed: Callable[..., Path]) -> None:
    samples = samples_of(preprocessed(per_class=20))
    others = children()
    with contextlib.closing(loader_of(samples, 2, batch_size=1)) as loader:
        batches = loader.batches()
        next(batches)
        os.kill(min(children() - others), signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"died \(signal 9\).* fewer --workers"):
            list(batches)


def test_a_reader_that_hangs_is_left_and_ended(preprocessed: Callable[..., Path]) -> None:
    """Nothing but SIGKILL ended a training that waited for it."""
    samples = samples_of(preprocessed(per_class=20))
    others = children()
    with contextlib.closing(loader_of(samples, 2, batch_size=1)) as loader:
        asked: list[int] = []
        batches = loader.batches(stop=lambda: bool(asked))
        next(batches)
        for process in children() - others:
            os.kill(process, signal.SIGSTOP)
        asked.append(signal.SIGTERM)
        assert len(list(batches)) < 59
    assert children() <= others


def children() -> set[int]:
    """Processes of ours that have not ended; tests that ran before may have left servers that go on."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


SMALL = """
import logging, os, sys
from pathlib import Path
from ssclf.config import TrainConfig
from ssclf.workflows.train import Machine, train
config = TrainConfig(epochs=1, batch_size=4, holdout=0, precision="32-true", augmentation="none")
result = train(Path(sys.argv[1]), Path(sys.argv[2]), config, machine=Machine(device="cpu", workers=2))
stats = os.statvfs("/dev/shm")
print("done", stats.f_blocks * stats.f_frsize, result.interrupted)
"""


@pytest.mark.parametrize("size", ["64k", "4k"])
def test_training_needs_no_shared_memory_of_the_container(
    size: str, preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    """64 MB is what containers get: the first batch that did not fit was waited for, for ever."""
    mount = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "-"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here; it takes root")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*mount, sys.executable, "-c", SMALL, str(preprocessed()), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout == f"done {int(size[:-1]) * 1024} 0\n", done.stderr[-2000:]
