from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssclf.config import TrainConfig
from ssclf.domain.provenance import Provenance
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, DatasetError, LeakageError, ModelError, OutputError
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.io.records.training_run import read_record
from ssclf.io.volumes.nifti import read_written, write_nifti
from ssclf.workflows.train import Machine, TrainResult, Watch, train

TINY = TrainConfig(
    architecture="mc3",
    epochs=3,
    learning_rate=1e-3,
    batch_size=2,
    holdout=0.25,
    validation=0.34,
    precision="32-true",
    seed=3,
)


def run(data: Path, out: Path, config: TrainConfig = TINY, **options: Any) -> TrainResult:
    torch.set_num_threads(1)
    watch = Watch(**{name: options.pop(name) for name in ("on_step", "on_epoch") if name in options})
    return train(data, out, config, machine=Machine(device="cpu", workers=0), watch=watch, **options)


def test_a_run_leaves_its_files_and_scores_what_it_held_out(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    result = run(preprocessed(), tmp_path / "run")
    assert [record.epoch for record in result.epochs] == [1, 2, 3]
    assert result.test is not None
    assert sum(sum(row) for row in result.test.confusion) == 3
    assert result.interrupted == 0
    names = {p.relative_to(result.run).as_posix() for p in result.run.rglob("*") if p.is_file()}
    assert {"config.json", "split.json", "metrics.csv", "curves.png", "provenance.json"} <= names
    assert {"predictions.csv", "features.npz", "checkpoints/last.pt", "checkpoints/chosen.pt"} <= names
    assert any(name.startswith("tensorboard/") for name in names)
    assert not [name for name in names if name.rpartition("/")[2].startswith(".")]
    with (result.run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert int(best["epoch"]) == result.chosen_epoch
    training = json.loads((result.run / "provenance.json").read_text())["training"]
    assert training["synthetic"] is True
    assert training["volumes"]["test"] == {"HGG": 1, "LGG": 1, "healthy": 1}
    assert training["sources"] == {"synthetic": 6}
    assert len(training["voxels"]) == 6
    assert "subject" not in json.dumps(training).replace('"subjects"', "")
    assert training["calibration"]["fitted_on"] == "validation"


def test_numbers_that_run_over_leave_the_last_good_state(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    """NaN in the validation part was a traceback of sklearn's without a checkpoint, and left epoch 0 as the best."""
    data, out = preprocessed(), tmp_path / "run"
    run(data, out, dataclasses.replace(TINY, epochs=1))
    key = json.loads((out / "split.json").read_text())["splits"][0]["validation"][0]
    path, volume = data / key, read_written(data / key)
    content = path.read_bytes()
    write_nifti(Volume(np.full_like(volume.data, 3e38), volume.affine), path)
    with pytest.raises(ModelError) as found:
        run(data, out, resume=True)
    text = str(found.value)
    assert (
        f"for 1 of the 3 validation volumes after epoch 2 (learning rate 0.001), the first of them {path.parent.name}"
        in text
    )
    assert f"The state before is kept in {out / 'checkpoints' / 'last.pt'}" in text
    path.write_bytes(content)
    result = run(data, out, resume=True)
    assert [record.epoch for record in result.epochs] == [1, 2, 3] and result.chosen_epoch > 0


def test_curves_that_cannot_be_drawn_cost_no_training(
    preprocessed: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run" / "curves.png").mkdir(parents=True)
    result = run(preprocessed(), tmp_path / "run", dataclasses.replace(TINY, epochs=1))
    assert result.exit_code == 3 and (tmp_path / "run" / "provenance.json").is_file()
    assert "curves.png: could not be written (IsADirectoryError" in caplog.text


@pytest.mark.parametrize("changes", [{}, {"architecture": "small", "settle": True, "optimizer": "adamw"}])
def test_interrupted_anywhere_it_resumes_to_the_same_numbers(
    changes: dict[str, Any], preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, accumulate=2, batch_size=1, schedule="onecycle", patience=5, **changes)
    data = preprocessed()
    whole = run(data, tmp_path / "whole", config)

    def interrupt_at(wanted: tuple[int, int]) -> Callable[[int, int, int, float], None]:
        def on_step(epoch: int, step: int, steps: int, loss: float) -> None:
            assert steps == 3
            if (epoch, step) == wanted:
                os.kill(os.getpid(), signal.SIGTERM)

        return on_step

    parts = tmp_path / "parts"
    first = run(data, parts, config, on_step=interrupt_at((1, 2)))
    assert first.interrupted == signal.SIGTERM
    assert first.epochs == ()
    torch.manual_seed(999)  # whatever happens between two processes
    second = run(data, parts, config, resume=True, on_step=interrupt_at((2, 3)))
    assert second.interrupted == signal.SIGTERM
    assert len(second.epochs) == 2
    torch.manual_seed(998)
    third = run(data, parts, config, resume=True)
    assert third.interrupted == 0

    def numbers(result: TrainResult) -> list[Any]:
        return [dataclasses.replace(record, seconds=0.0, wait_share=0.0) for record in result.epochs]

    assert numbers(third) == numbers(whole)
    assert third.temperature == whole.temperature
    weights = [
        torch.load(r.run / "checkpoints/chosen.pt", weights_only=True)["network"] for r in (whole, third)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_signal_that_comes_before_the_validation_leaves_it_to_the_next_call(
    preprocessed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take minutes, which nobody waits for who stops a training."""
    data = preprocessed()
    whole = run(data, tmp_path / "whole")

    def interrupt(epoch: int, step: int, steps: int, loss: float) -> None:
        if step == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("ssclf.workflows.train.VALIDATE_FOR_S", 0)
        first = run(data, tmp_path / "parts", on_step=interrupt)
    assert first.interrupted == signal.SIGTERM and first.epochs == ()
    second = run(data, tmp_path / "parts", resume=True)
    assert second.epochs[0].train_loss == whole.epochs[0].train_loss
    assert [record.val_loss for record in second.epochs] == [record.val_loss for record in whole.epochs]
    assert second.test == whole.test


def test_no_process_that_read_volumes_is_left(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    """One that a slow machine left behind ignored the signal to end, and the command never came back."""
    stubborn: list[BaseProcess] = []

    def leave_one(epoch: int, step: int, steps: int, loss: float) -> None:
        if not stubborn:
            stubborn.append(multiprocessing.get_context("fork").Process(target=ignore_signals, daemon=True))
            stubborn[0].start()

    torch.set_num_threads(1)
    before = set(multiprocessing.active_children())
    config = dataclasses.replace(TINY, epochs=1)
    train(
        preprocessed(),
        tmp_path / "run",
        config,
        machine=Machine(device="cpu", workers=2),
        watch=Watch(on_step=leave_one),
    )
    assert set(multiprocessing.active_children()) <= before and not stubborn[0].is_alive()


def ignore_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()


def test_resuming_asks_for_the_same_settings_and_data(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    data = preprocessed()
    config = dataclasses.replace(TINY, epochs=1)
    with pytest.raises(ModelError, match="expected a run to resume"):
        run(data, tmp_path / "run", config, resume=True)
    run(data, tmp_path / "run", config)
    with pytest.raises(OutputError, match="holds a run already"):
        run(data, tmp_path / "run", config)
    with pytest.raises(ConfigError, match="learning_rate differ"):
        run(data, tmp_path / "run", dataclasses.replace(config, learning_rate=1e-4), resume=True)
    other = preprocessed(labels=("a", "b"), name="other")
    with pytest.raises(DatasetError, match="not in the data"):
        run(other, tmp_path / "run", config, resume=True)


def test_the_same_voxels_under_two_names_are_a_leak(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    data = preprocessed(per_class=3)
    manifest = data / "manifest.csv"
    lines = manifest.read_text().splitlines()
    hashes = [line.split(",")[5] for line in lines]
    manifest.write_text(
        "\n".join(line.replace(hashes[2], hashes[1]).replace(hashes[3], hashes[1]) for line in lines)
    )
    with pytest.raises(LeakageError, match="the same voxels"):
        run(data, tmp_path / "run", dataclasses.replace(TINY, validation=0))


def test_without_a_held_out_part_the_last_epoch_is_kept_uncalibrated(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(
        TINY, epochs=2, holdout=0, validation=0, class_weights="none", augmentation="none"
    )
    result = run(preprocessed(per_class=2, labels=("a", "b")), tmp_path / "run", config)
    assert result.test is None
    assert result.temperature == 1
    assert result.chosen_epoch == 2


def test_volumes_too_small_for_batch_normalisation_are_explained(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, batch_size=1, architecture="r3d", augmentation="none")
    with pytest.raises(DatasetError, match="single value per channel"):
        run(preprocessed(shape=(4, 12, 9)), tmp_path / "run", config)


SCRIPT = """
import sys, torch
from pathlib import Path
from ssclf.config import TrainConfig
from ssclf.workflows.train import Machine, Watch, train
torch.set_num_threads(1)
config = TrainConfig(epochs=50, learning_rate=1e-3, batch_size=2, holdout=0.25, precision="32-true")
result = train(Path(sys.argv[1]), Path(sys.argv[2]), config, machine=Machine(device="cpu", workers=2),
               watch=Watch(on_step=lambda epoch, step, steps, loss: print(epoch, step, flush=True)))
print("interrupted", result.interrupted, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_saves_and_ends(
    number: signal.Signals, preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    # as a terminal and a batch system do: the loader's processes get it too, and must neither die early nor stay
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(preprocessed()), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("2 1"):
            os.killpg(process.pid, number)
            break
    out, errors = process.communicate(timeout=400)
    assert out.splitlines()[-1] == f"interrupted {int(number)}", errors
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_what_chose_the_epoch_counts_as_seen(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    """Validation volumes, which chose the epoch and fitted the temperature, passed as unseen."""
    data = preprocessed()
    training = read_record(run(data, tmp_path / "run").run).training
    (split,) = json.loads((tmp_path / "run" / "split.json").read_text())["splits"]
    samples = {sample.key: sample for sample in read_prepared_cohort(data).samples}
    for role, seen in (("train", True), ("validation", True), ("test", False)):
        assert split[role]
        for key in split[role]:
            assert training.seen.hold("", samples[key].describe) is seen, (role, key)
    assert len(training.likenesses) == len(split["train"]) + len(split["validation"])
    assert Provenance.from_dict(json.loads(json.dumps(training.to_dict()))).seen == training.seen
