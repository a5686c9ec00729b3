"""Each setting of training goes the whole way: stopped and resumed, exported, evaluated on other volumes, in cv."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssclf.config import TrainConfig
from ssclf.domain.scores import softmax
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.runtime import open_classifier
from ssclf.io.records.training_run import CHOSEN
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.checkpoints import load_checkpoint
from ssclf.workflows.cross_validate import CvPlan, cross_validate
from ssclf.workflows.evaluate import evaluate
from ssclf.workflows.export import ExportConfig, export_run, open_start
from ssclf.workflows.train import Machine, Watch, train

MACHINE = Machine(device="cpu", workers=0)
#: Beside the preset `default` of the small network: what may be said by hand, several at once.
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "the paper's network": {"architecture": "mc3"},
    "many small batches": {"batch_size": 2, "accumulate": 3, "schedule": "constant", "warmup": 0.3},
    "running averages": {"settle": False, "schedule": "cosine", "optimizer": "adam", "weight_decay": 0.0},
    "best epoch, patiently": {"validation": 0.34, "patience": 1, "augmentation": "heavy"},
    "mixed on the CPU": {"precision": "bf16-mixed-cpu", "channels_last": True},
}


def settings(changes: dict[str, Any]) -> TrainConfig:
    values = {"architecture": "small", "epochs": 2, "batch_size": 4, "holdout": 0.25, "seed": 3, **changes}
    return TrainConfig.preset("default", **values)


def stop_after_a_step(epoch: int, step: int, steps: int, loss: float) -> None:
    if (epoch, step) == (1, 1):
        os.kill(os.getpid(), signal.SIGTERM)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(run / CHOSEN)["network"]
    return found


def whole_way(data: Path, other: Path, work: Path, config: TrainConfig, **options: Any) -> None:
    """Train, stop, resume, export, evaluate."""
    torch.set_num_threads(1)
    whole = train(data, work / "whole", config, machine=MACHINE, **options).run
    parts = work / "parts"
    watch = Watch(on_step=stop_after_a_step)
    assert train(data, parts, config, machine=MACHINE, watch=watch, **options).interrupted
    torch.manual_seed(99)
    assert not train(data, parts, config, machine=MACHINE, resume=True, **options).interrupted
    straight, resumed = weights_of(whole), weights_of(parts)
    assert all(torch.equal(values, resumed[name]) for name, values in straight.items())

    bundle = export_run(parts, work / "bundle", ExportConfig(brain_extraction=False))
    found = evaluate(other, bundle, work / "scores", device="cpu", threads=1)
    assert found.raw is not None
    opened = open_bundle(bundle)
    classifier = open_classifier(opened, device="cpu", threads=1)
    names = opened.spec.class_names
    with (work / "scores" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row in rows:
        logits = classifier.classify(read_written(other / row["path"]).data[None]).logits[0]
        told = [float(row[f"p_{name}"]) for name in names]
        assert told == pytest.approx(softmax(logits, opened.spec.temperature), abs=1e-5)


@pytest.mark.parametrize("what", CHANGES)
def test_a_setting_goes_the_whole_way(
    what: str, preprocessed: Callable[..., Path], cohort_of_others: Path, tmp_path: Path
) -> None:
    whole_way(preprocessed(), cohort_of_others, tmp_path, settings(CHANGES[what]))


def test_weights_that_were_there_go_the_whole_way(
    preprocessed: Callable[..., Path], cohort_of_others: Path, tmp_path: Path
) -> None:
    """From `ssclf pretrain`, with frozen stages."""
    torch.set_num_threads(1)
    healthy = preprocessed(labels=("healthy",), name="healthy")
    first = train(healthy, tmp_path / "first", settings({"lesions": True}), machine=MACHINE).run
    start = open_start(first)
    whole_way(preprocessed(), cohort_of_others, tmp_path, settings({"freeze": 3}), start=start)


@pytest.mark.parametrize("what", ["many small batches", "best epoch, patiently", "mixed on the CPU"])
def test_cross_validation_takes_a_setting(
    what: str, preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    config = dataclasses.replace(settings(CHANGES[what]), epochs=1)
    plan = CvPlan.of(models=("small",), config=config, scheme="kfold", folds=2)
    done = cross_validate(preprocessed(), tmp_path / "cv", plan, machine=MACHINE)
    assert set(done.states.values()) == {"trained"} and not done.errors
    assert len(list((tmp_path / "cv").glob("**/provenance.json"))) == 2
    again = cross_validate(preprocessed(name="again"), tmp_path / "cv", plan, machine=MACHINE)
    assert set(again.states.values()) == {"finished"}


@pytest.fixture
def cohort_of_others(preprocessed_others: Callable[..., Path]) -> Path:
    """Six volumes that no run was trained on: other voxels, other people."""
    return preprocessed_others(per_class=2, shape=(6, 20, 19))
