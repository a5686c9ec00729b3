"""Learning from synthetic lesions in healthy brains, and going on from there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import TrainConfig
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.errors import ConfigError
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.io.records.training_run import PROVENANCE, read_config
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.augmentation import move_batch
from ssclf.learning.datasets import EpochSampler, VolumeDataset
from ssclf.learning.loader import VolumeLoader
from ssclf.workflows.cross_validate import CvPlan
from ssclf.workflows.lesions import with_lesions

#: `ssclf pretrain` looks at the machine; the shortest run of it.
SHORT = ("--epochs", "1", "--batch-size", "6", "--device", "cpu", "--workers", "0", "--augmentation", "none")


def ssclf(*arguments: Any) -> str:
    torch.set_num_threads(1)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_weights_learnt_from_lesions_begin_another_training(
    preprocessed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    healthy = preprocessed(labels=("healthy",), per_class=6, name="healthy")
    ssclf("pretrain", healthy, "--out", "pre", *SHORT)
    config = read_config(Path("pre"))
    assert config.lesions and config.architecture == "small"
    told = json.loads(Path("pre", PROVENANCE).read_text())["training"]
    assert told["synthetic"] is True
    # 6 subjects of which 70 % train, each with either lesion and without
    assert told["volumes"]["train"] == {"HGG": 4, "LGG": 4, "healthy": 4} and told["subjects"]["test"] == 2
    ssclf("export", "pre", "--out", "bundle", "--no-brain-extraction", "--format", "onnx")
    assert "no model of any patient" in Path("bundle", "MODEL_CARD.md").read_text()
    assert "has finished" in ssclf("pretrain", "--resume", "--out", "pre")
    cohort = preprocessed()
    settings = json.loads((cohort / "settings.json").read_text())
    (cohort / "settings.json").write_text(json.dumps({**settings, "synthetic": False}))  # as of patients
    ssclf("train", "--data", cohort, "--from", "pre", "--out", "fine", "--freeze", "4", *SHORT)
    assert read_config(Path("fine")).architecture == "small" and not read_config(Path("fine")).lesions
    before, after = (
        torch.load(f"{run}/checkpoints/chosen.pt", weights_only=True)["network"] for run in ("pre", "fine")
    )
    same = {key.split(".")[0] for key in before if torch.equal(before[key], after[key])}
    assert same >= {"stem", "layer1", "layer2", "layer3"}
    assert not torch.equal(before["layer4.0.weight"], after["layer4.0.weight"])
    told = json.loads(Path("fine", PROVENANCE).read_text())["training"]
    assert told["started_from"]["name"] == "pre" and told["started_from"]["pretrained_on_lesions"] is True
    assert told["synthetic"] is False and not told["config"]["lesions"]  # such a model is no reference model


def test_every_epoch_draws_other_brains_and_the_same_ones_again(preprocessed: Callable[..., Path]) -> None:
    data = preprocessed(labels=("healthy",), per_class=3)
    cohort = with_lesions(read_prepared_cohort(data, min_classes=0))
    assert [sample.label for sample in cohort.samples] == ["HGG", "LGG", "healthy"] * 3
    assert len({sample.key for sample in cohort.samples}) == 9 and len(set(cohort.subjects.values())) == 3

    def volumes(epoch: int, seed: int = 0) -> list[Any]:
        dataset = VolumeDataset(
            cohort.samples,
            cohort.class_names,
            augmentation="none",
            seed=seed,
            generator=GeneratorSettings(),
        )
        return [dataset[epoch, index].data for index in range(9)]

    first, second, again, other = volumes(1), volumes(2), volumes(1), volumes(1, seed=1)
    for position, sample in enumerate(cohort.samples):
        plain = read_written(sample.path).data
        assert np.array_equal(first[position], again[position])
        different = {found[position].tobytes() for found in (first, second, other)} | {plain.tobytes()}
        assert len(different) == 4 and first[position].shape == plain.shape


def test_brains_do_not_depend_on_who_draws_them(preprocessed: Callable[..., Path]) -> None:
    cohort = with_lesions(read_prepared_cohort(preprocessed(labels=("healthy",), per_class=3), min_classes=0))
    dataset = VolumeDataset(
        cohort.samples, cohort.class_names, augmentation="half", seed=3, generator=GeneratorSettings()
    )
    drawn = []
    for workers in (0, 2):
        sampler = EpochSampler(len(dataset), seed=3, shuffle=True)
        with contextlib.closing(VolumeLoader(dataset, sampler, batch_size=2, workers=workers)) as loader:
            drawn.append(list(loader))
    assert [len(batches) for batches in drawn] == [5, 5]
    for alone, shared in zip(*drawn, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(alone[:3], shared[:3], strict=True))
        moved = [move_batch(batch.volumes, batch.transforms) for batch in (alone, shared)]
        assert torch.equal(*moved)


def test_what_is_not_healthy_is_refused(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    several = preprocessed(labels=("healthy",), per_class=3, contrasts=("t1", "flair"), name="several")
    for data, words in ((preprocessed(), "healthy or has no label"), (several, "one contrast")):
        result = CliRunner().invoke(app, ["pretrain", str(data), "--out", str(tmp_path / "run"), *SHORT])
        assert result.exit_code == 1 and words in " ".join(result.output.split())
        assert not (tmp_path / "run").exists()
    assert CliRunner().invoke(app, ["pretrain"]).exit_code == 2


def test_a_run_is_not_put_among_other_files(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "head.nii.gz").touch()
    result = CliRunner().invoke(app, ["train", "--data", str(preprocessed()), "--out", str(scans), *SHORT])
    assert result.exit_code == 1 and "holds other files, and no run" in " ".join(result.output.split())
    assert [path.name for path in scans.iterdir()] == ["head.nii.gz"]


def test_frozen_weights_must_be_learnt_ones(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["train", "--data", str(preprocessed()), "--out", str(tmp_path / "run"), "--freeze", "5", *SHORT]
    )
    assert result.exit_code == 1 and "--from or --pretrained" in " ".join(result.output.split())
    config = TrainConfig(freeze=1)
    with pytest.raises(ConfigError, match="--from or --pretrained"):
        CvPlan.of(["mc3"], (True, False), config=config)
    assert CvPlan.of(["mc3"], (True,), config=config).variants == ["mc3/pretrained"]
