"""`--log`: MLflow and Weights & Biases as they are, offline. Synthetic volumes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import TrainConfig, config_to_dict
from ssclf.io.records.training_run import EPOCHS, EVENTS, PROVENANCE, TRACKERS, EpochRecord, read_trackers
from ssclf.workflows.train import Machine, Watch, train

TINY: tuple[object, ...] = ("--device", "cpu", "--workers", 0, "--quiet")
SMALL: tuple[object, ...] = (*TINY, "--batch-size", 3, "--model", "small", "--validation", 0.3)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No user's settings, and no way out: only a socket on this machine, by which W&B talks to its own process."""
    for name in os.environ:
        if name.startswith(("MLFLOW_", "WANDB_")):
            monkeypatch.delenv(name)
    connect = socket.socket.connect

    def local(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            pytest.fail(f"a connection to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local)


def ssclf(*arguments: object, code: int = 0) -> str:
    told = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert told.exit_code == code, told.output
    return told.output


def mlflow_runs(store: Path) -> list[Any]:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'ssclf[mlflow]'")
    with pytest.MonkeyPatch.context() as here:
        here.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = mlflow.MlflowClient(tracking_uri=(store / "mlflow").absolute().as_uri())
    return list(client.search_runs([client.get_experiment_by_name("ssclf").experiment_id]))


def epochs(run: Path) -> list[dict[str, str]]:
    with (run / EPOCHS).open(newline="") as file:
        return list(csv.DictReader(file))


def check_private(folder: Path, data: Path) -> None:
    """No volume, subject or path of the data in any file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    with (data / "manifest.csv").open(newline="") as file:
        words = {row[name] for row in csv.DictReader(file) for name in ("path", "subject")} | {str(data)}
    for path in files:
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], path


def test_mlflow_has_settings_epochs_and_scores_and_goes_on(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="pip install 'ssclf[mlflow]'")
    data, out = preprocessed(), tmp_path / "run"

    def interrupt(record: EpochRecord) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    config = TrainConfig(architecture="small", epochs=3, batch_size=3, validation=0.3, precision="32-true")
    machine = Machine(device="cpu", workers=0, trackers=("mlflow", "tensorboard"))
    assert train(data, out, config, machine=machine, watch=Watch(on_epoch=interrupt)).interrupted
    (stopped,) = mlflow_runs(out)
    assert stopped.info.status == "KILLED" and stopped.info.run_id == read_trackers(out)["mlflow"]
    assert len(epochs(out)) == 1
    ssclf("train", "--out", out, "--resume", *TINY)
    (run,) = mlflow_runs(out)
    assert run.info.run_id == stopped.info.run_id, "a second run"
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params == {name: str(value) for name, value in config_to_dict(config).items()}
    rows = epochs(out)
    assert len(rows) == 3
    for name in ("train_loss", "val_loss", "val_macro_f1"):
        (file,) = (out / "mlflow").glob(f"*/{run.info.run_id}/metrics/{name}")
        points = [line.split() for line in file.read_text().splitlines()]
        assert [int(step) for _, _, step, *_ in points] == [1, 2, 3]
        assert [float(value) for _, value, *_ in points] == pytest.approx([float(row[name]) for row in rows])
    scores = json.loads((out / PROVENANCE).read_text())["training"]["scores"]
    for part in ("validation", "test"):
        for kind in ("raw", "calibrated"):
            assert run.data.metrics[f"{part}/{kind}/macro_f1"] == scores[part][kind]["macro_f1"]
    assert list((out / EVENTS).iterdir())
    check_private(out / "mlflow", data)


def test_wandb_is_offline_and_goes_on(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="pip install 'ssclf[wandb]'")
    data, out = preprocessed(), tmp_path / "run"
    ssclf("train", "--data", data, "--out", out, *SMALL, "--epochs", 1, "--log", "wandb")
    run_id = read_trackers(out)["wandb"]
    (first,) = (out / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    loss = json.dumps(float(epochs(out)[0]["train_loss"]))
    score = json.loads((out / PROVENANCE).read_text())["training"]["scores"]["test"]["raw"]["log_loss"]
    content = first.read_bytes()
    for word in (
        "train_loss",
        loss[:8],
        "learning_rate",
        "architecture",
        "test/raw/log_loss",
        json.dumps(score)[:8],
    ):
        assert word.encode() in content, word
    assert not (out / EVENTS).exists()
    ssclf("train", "--out", out, "--resume", "--epochs", 2, *TINY)
    both = sorted((out / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(both) == 2, "another run, or none"
    second = json.dumps(float(epochs(out)[1]["train_loss"]))[:8].encode()
    assert second in both[1].read_bytes() and second not in content
    check_private(out / "wandb", data)


def test_cells_share_the_stores_of_their_cross_validation(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("mlflow", "wandb"):
        pytest.importorskip(name, reason=f"pip install 'ssclf[{name}]'")
    data, out = preprocessed(), tmp_path / "cv"
    words = ("cv", "--data", data, "--models", "small", "--folds", 2, "--scheme", "kfold", "--epochs", 1)
    both = ("--log", "mlflow", "--log", "wandb")
    ssclf(*words, "--batch-size", 3, "--out", out, *TINY, *both, "--only", "small/scratch/1")
    ssclf("cv", "--out", out, "--resume", *TINY)
    ids = [read_trackers(out / "cells" / "small" / "scratch" / fold) for fold in "12"]
    runs = {run.info.run_id: run.info for run in mlflow_runs(out)}
    assert len(runs) == 2 and set(runs) == {found["mlflow"] for found in ids}
    assert {run.run_name for run in runs.values()} == {f"cells/small/scratch/{fold}" for fold in "12"}
    assert {run.status for run in runs.values()} == {"FINISHED"}
    files = (out / "wandb").glob("offline-run-*/run-*.wandb")
    assert sorted(path.stem.removeprefix("run-") for path in files) == sorted(found["wandb"] for found in ids)
    for found, fold in zip(ids, "12", strict=True):
        (file,) = (out / "wandb").glob(f"offline-run-*/run-{found['wandb']}.wandb")
        (row,) = epochs(out / "cells" / "small" / "scratch" / fold)
        assert row["train_loss"][:8].encode() in file.read_bytes(), (
            "numbers were lost with the cell's process"
        )
    for name in ("mlflow", "wandb"):
        check_private(out / name, data)


def test_a_tracker_that_stops_costs_no_training(
    preprocessed: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="pip install 'ssclf[mlflow]'")
    out = tmp_path / "run"

    def damage(*step: object) -> None:
        for folder in (out / "mlflow").glob("*/*/metrics"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
                folder.write_text("no folder")

    config = TrainConfig(architecture="small", epochs=2, batch_size=3, precision="32-true")
    machine = Machine(device="cpu", workers=0, trackers=("mlflow",))
    result = train(preprocessed(), out, config, machine=machine, watch=Watch(on_step=damage))
    assert len(result.epochs) == 2 and result.exit_code == 0
    assert caplog.text.count("--log mlflow: stops here, the run goes on without it") == 1


def test_what_is_not_installed_is_said_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
        for command in ("train", "cv"):
            words = (command, "--data", tmp_path / "nowhere", "--out", tmp_path / "run")
            said = ssclf(*words, "--log", name, code=1)
            assert f'--log {name}: {name} is not installed; pip install "ssclf[{name}]"' in said
    assert not (tmp_path / "run").exists()


def test_by_default_nothing_changes(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    ssclf("train", "--data", preprocessed(), "--out", out, *SMALL, "--epochs", 1)
    assert list((out / EVENTS).iterdir()) and not (out / TRACKERS).exists()
    assert "'tensorboar' is not one of" in ssclf("train", "--log", "tensorboar", code=2)
