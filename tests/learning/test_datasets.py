from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssclf.domain.volume import Volume
from ssclf.errors import DatasetError, VolumeError
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.io.volumes.nifti import read_written, write_nifti
from ssclf.learning.augmentation import move_batch
from ssclf.learning.datasets import Batch, EpochSampler, Item, VolumeDataset, collate
from ssclf.learning.loader import VolumeLoader


def test_a_cohort_knows_its_classes_subjects_and_settings(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=2))
    assert cohort.class_names == ("HGG", "LGG", "healthy")
    assert cohort.synthetic
    assert cohort.preprocess.spacing == (8.0, 7.0, 7.0)
    assert cohort.subjects["LGG/LGG1.nii.gz"] == "LGG1"
    assert cohort.labels["LGG/LGG1.nii.gz"] == "LGG"
    assert cohort.counts(cohort.select(["HGG/HGG0.nii.gz", "healthy/healthy1.nii.gz"])) == [1, 0, 1]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "manifest.csv").unlink(), "make it with `ssclf preprocess`"),
        (lambda d: edit(d / "manifest.csv", "subject,label", "person,label"), "subject"),
        (lambda d: edit(d / "manifest.csv", "HGG0,HGG,", "HGG0,,"), "line 2: expected a value for label"),
        (lambda d: edit(d / "manifest.csv", "HGG1.nii.gz", "HGG0.nii.gz"), "more than once"),
        (lambda d: (d / "HGG" / "HGG1.nii.gz").unlink(), r"HGG1\.nii\.gz is missing"),
        (lambda d: edit(d / "settings.json", "axial", "coronal"), "computes other values"),
        (lambda d: (d / "settings.json").write_text("{}"), r"settings\.json: expected the settings"),
        (lambda d: (d / "settings.json").unlink(), r"settings\.json: expected the settings"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_explained(
    change: Callable[[Path], object], message: str, preprocessed: Callable[..., Path]
) -> None:
    folder = preprocessed(per_class=2)
    change(folder)
    with pytest.raises(DatasetError, match=message):
        read_prepared_cohort(folder)


def test_mixed_settings_are_refused(preprocessed: Callable[..., Path]) -> None:
    folder = preprocessed(per_class=2)
    lines = (folder / "manifest.csv").read_text().splitlines()
    used = json.loads((folder / "settings.json").read_text())["hash"]
    lines[3] = lines[3].replace(used, "0123456789abcdef")
    (folder / "manifest.csv").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"line 4: .* other settings"):
        read_prepared_cohort(folder)


def test_one_class_is_not_enough(preprocessed: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match="2 classes or more, found 4 volumes of the class HGG"):
        read_prepared_cohort(preprocessed(labels=("HGG",)))


def test_several_contrasts_come_back_in_their_order(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((3, 4, 6, 5), np.float32)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])[[2, 1, 0, 3]]
    write_nifti(Volume(data, affine), tmp_path / "v.nii.gz")
    read = read_written(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(read.data, data)
    np.testing.assert_allclose(read.affine, affine)
    (tmp_path / "v.nii.gz").write_bytes((tmp_path / "v.nii.gz").read_bytes()[:200])
    for path in (tmp_path / "v.nii.gz", tmp_path / "none.nii.gz"):
        with pytest.raises(VolumeError, match="missing or damaged"):
            read_written(path)


def test_smaller_volumes_lie_in_the_middle_of_background() -> None:
    first, second = torch.rand(2, 3, 4, 5), torch.rand(2, 2, 6, 4)
    batch = collate([Item(first.numpy(), 1, 10), Item(second.numpy(), 0, 11)])
    assert batch.volumes.shape == (2, 2, 3, 6, 5)
    assert torch.equal(batch.volumes[0, :, :, 1:5], first)
    assert torch.equal(batch.volumes[1, :, :2, :, :4], second)
    assert batch.volumes.sum() == pytest.approx((first.sum() + second.sum()).item(), rel=1e-5)
    assert batch.targets.tolist() == [1, 0]
    assert batch.indices.tolist() == [10, 11]


@pytest.mark.parametrize(("size", "world"), [(7, 1), (8, 2), (7, 3), (2, 3)])
def test_processes_share_an_epoch_and_take_equally_many_steps(size: int, world: int) -> None:
    parts = []
    for rank in range(world):
        sampler = EpochSampler(size, seed=1, shuffle=True, rank=rank, world=world)
        sampler.epoch = 4
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == -(-size // world)
        sampler.skip = 1
        assert list(sampler) == parts[-1][1:]
        assert len(list(sampler)) == len(sampler)
    assert {epoch for part in parts for epoch, _ in part} == {4}
    assert {index for part in parts for _, index in part} == set(range(size))


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(50, seed=seed, shuffle=True)
        sampler.epoch = epoch
        return [index for _, index in sampler]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_items_do_not_depend_on_the_number_of_workers(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=2, contrasts=("t1ce", "flair")))

    def load(workers: int) -> list[Batch]:
        dataset = VolumeDataset(cohort.samples, cohort.class_names, augmentation="light", seed=3)
        sampler = EpochSampler(len(dataset), seed=3, shuffle=True)
        loader = VolumeLoader(dataset, sampler, batch_size=2, workers=workers)
        batches = []
        with contextlib.closing(loader):
            for sampler.epoch in (0, 1):
                batches += list(loader)
        return batches

    alone, shared = load(0), load(2)
    assert len(alone) == len(shared) == 6
    for left, right in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left[:3], right[:3], strict=True))
        moved = [move_batch(batch.volumes, batch.transforms) for batch in (left, right)]
        assert torch.equal(*moved) and not torch.equal(moved[0], left.volumes)
    by_index = [
        {
            int(i): transform
            for batch in part
            for i, transform in zip(batch.indices, batch.transforms, strict=True)
        }
        for part in (alone[:3], alone[3:])
    ]
    assert by_index[0].keys() == by_index[1].keys() == set(range(6))
    matrices = [t.matrix for part in by_index for t in part.values() if t and t.matrix is not None]
    assert len(matrices) == len({matrix.tobytes() for matrix in matrices}) == 12
