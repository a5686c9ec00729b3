"""Fine-tuning: a new run goes on from a trained network, on other data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import TrainConfig
from ssclf.errors import LeakageError, ModelError
from ssclf.io.records.training_run import CHOSEN, PROVENANCE
from ssclf.learning.checkpoints import load_checkpoint
from ssclf.workflows.export import ExportConfig, export_run, open_start
from ssclf.workflows.train import Machine, TrainResult, Watch, train

TINY = TrainConfig(
    epochs=1, learning_rate=1e-3, batch_size=2, holdout=0.34, precision="32-true", augmentation="none", seed=3
)
#: Takes steps that change next to nothing, so that the weights at the end are those at the start.
STILL = dataclasses.replace(TINY, learning_rate=1e-9, weight_decay=0)


def run(data: Path, out: Path, config: TrainConfig, **options: Any) -> TrainResult:
    torch.set_num_threads(1)
    watch = Watch(**{name: options.pop(name) for name in ("on_step", "on_epoch") if name in options})
    return train(data, out, config, machine=Machine(device="cpu", workers=0), watch=watch, **options)


@pytest.mark.parametrize("kind", ["run", "bundle"])
def test_a_run_begins_where_another_ended(
    preprocessed: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    data = preprocessed()
    first = run(data, tmp_path / "first", TINY).run
    source = first
    if kind == "bundle":
        source = export_run(
            first, tmp_path / "bundle", ExportConfig(formats=("torchscript",), brain_extraction=False)
        )
    # another class in the place of one: its row of the last layer is new, the others are kept by name
    other = preprocessed(labels=("LGG", "healthy", "metastasis"), name="other")
    second = run(other, tmp_path / "second", STILL, start=open_start(source)).run
    before, after = (load_checkpoint(folder / CHOSEN)["network"] for folder in (first, second))
    for name, values in before.items():
        if name.startswith("fc.") or "running" in name or "num_batches" in name:
            continue
        torch.testing.assert_close(after[name], values, atol=1e-6, rtol=0)
    # classes in their order: HGG, LGG, healthy and LGG, healthy, metastasis
    torch.testing.assert_close(after["fc.weight"][:2], before["fc.weight"][1:], atol=1e-6, rtol=0)
    assert not torch.allclose(after["fc.weight"][2], before["fc.weight"][0], atol=1e-3)
    training, parent = (
        json.loads((folder / PROVENANCE).read_text())["training"] for folder in (second, first)
    )
    assert training["started_from"]["name"] == source.name and training["started_from"]["synthetic"] is True
    assert set(parent["voxels"]) < set(training["voxels"]), "predict must know the volumes of both"
    card = (
        export_run(second, tmp_path / "card", ExportConfig(formats=("onnx",), brain_extraction=False))
        / "MODEL_CARD.md"
    )
    assert f"the weights of {source.name}" in card.read_text()


def test_subjects_that_trained_the_first_are_no_test_of_the_second(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    data = preprocessed()
    start = open_start(run(data, tmp_path / "first", TINY).run)
    second = run(data, tmp_path / "second", dataclasses.replace(TINY, seed=11), start=start).run
    tested = json.loads((second / "split.json").read_text())["splits"][0]["test"]
    seen = json.loads((tmp_path / "first" / "split.json").read_text())["splits"][0]["train"]
    assert tested and not set(tested) & set(seen)
    start = open_start(run(data, tmp_path / "all", dataclasses.replace(TINY, holdout=0)).run)
    with pytest.raises(LeakageError, match="holdout 0"):
        run(data, tmp_path / "third", TINY, start=start)


def test_it_goes_on_after_a_kill_without_the_first(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    data = preprocessed()
    start = open_start(run(data, tmp_path / "first", TINY).run)
    config = dataclasses.replace(TINY, epochs=2)
    whole = run(data, tmp_path / "whole", config, start=start)

    class KilledError(Exception):
        """Stands for a kill before the first epoch has ended."""

    def kill(*step: object) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run(data, tmp_path / "killed", config, start=start, on_step=kill)
    resumed = run(data, tmp_path / "killed", config, resume=True)
    assert [r.train_loss for r in resumed.epochs] == [r.train_loss for r in whole.epochs]
    training = json.loads((resumed.run / PROVENANCE).read_text())["training"]
    assert training["started_from"]["sha256"] == start.sha256


def test_weights_of_another_grid_are_told(
    preprocessed: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = preprocessed()
    start = open_start(run(data, tmp_path / "first", TINY).run)
    caplog.clear()
    run(data, tmp_path / "same", TINY, start=start)
    assert "was trained on volumes of" not in caplog.text
    coarse = dataclasses.replace(start.spec.preprocess, spacing=(6.0, 6.0, 6.0), contrasts=("t1",))
    other = dataclasses.replace(start, spec=dataclasses.replace(start.spec, preprocess=coarse))
    run(data, tmp_path / "other", TINY, start=other)
    (told,) = (r.getMessage() for r in caplog.records if "was trained on volumes of" in r.getMessage())
    assert (
        "spacing [6.0, 6.0, 6.0], and these have spacing [8.0, 7.0, 7.0]" in told and "contrasts" not in told
    )


def test_what_does_not_fit_is_explained(
    preprocessed: Callable[..., Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    data = preprocessed()
    start = open_start(run(data, tmp_path / "first", TINY).run)
    with pytest.raises(ModelError, match="leave --model out"):
        run(data, tmp_path / "second", dataclasses.replace(TINY, architecture="r3d"), start=start)
    (alone,) = tiny_bundle.glob("model.onnx")
    with pytest.raises(ModelError, match="expected a TorchScript file"):
        open_start(alone)
    arguments = ["train", "--data", str(data), "--from", str(tmp_path / "first"), "--pretrained"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 1 and "--from: expected it alone" in told.output
