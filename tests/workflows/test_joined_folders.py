"""Folders that were preprocessed on different days are one cohort; and a run never goes on with another one."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import TrainConfig
from ssclf.domain.augmentation import VERSION as AUGMENTATION
from ssclf.domain.generator.settings import VERSION as GENERATOR
from ssclf.domain.run_data import RunData, differences, other_versions, random_versions
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, DatasetError, ModelError, OutputError
from ssclf.io.locks import lock
from ssclf.io.records.preprocessed import describe_data, read_prepared_cohort
from ssclf.io.records.training_run import new_run_folder
from ssclf.io.volumes.nifti import write_nifti
from ssclf.workflows.train import Machine, TrainResult, Watch, train

MakeVolume = Callable[..., Volume]
CONFIG = TrainConfig(
    epochs=2, learning_rate=1e-3, batch_size=2, precision="32-true", schedule="onecycle", augmentation="none"
)


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def preprocess(*places: Path, **options: object) -> Any:
    *sources, out = places
    told = [word for name, value in options.items() for word in (f"--{name}", value)]
    common = ("--spacing", "10", "--workers", "1", "--assume-stripped")
    return invoke("preprocess", *sources, "--out", out, *common, *told)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, make_volume: MakeVolume) -> Path:
    """low/ and high/ of one class each, bare/ without any, and what is made of them: x-out/, and both-out/."""
    root = tmp_path_factory.mktemp("joined")
    for number in range(6):
        kind, label = (("low", "LGG"), ("high", "HGG"))[number % 2]
        write_nifti(make_volume(seed=number), root / kind / label / f"p{5 - number}.nii.gz")
    write_nifti(make_volume(seed=9), root / "bare" / "x.nii.gz")
    for kind in ("low", "high", "bare"):
        done = preprocess(root / kind, root / f"{kind}-out")
        assert done.exit_code == 0, done.output
        assert "need two" in done.output
    done = preprocess(root / "high", root / "low", root / "both-out")
    assert done.exit_code == 0 and "need two" not in done.output, done.output
    return root


def run(data: Any, out: Path, config: TrainConfig = CONFIG, **options: Any) -> TrainResult:
    torch.set_num_threads(1)
    return train(data, out, config, machine=Machine(device="cpu", workers=0), **options)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "wait_share")}
            for row in csv.DictReader(file)
        ]


def test_joined_folders_equal_one_call_with_both(folders: Path, tmp_path: Path) -> None:
    """A cohort of one class was refused: "give all sources in one call"."""
    whole = read_prepared_cohort(folders / "both-out")
    parts = [folders / "low-out", folders / "high-out"]
    for order in (parts, parts[::-1], [*parts, parts[0]]):
        joined = read_prepared_cohort(order)
        assert describe_data(joined).volumes == describe_data(whole).volumes
        assert [s.key for s in joined.samples] == [s.key for s in whole.samples]
        assert joined.class_names == whole.class_names == ("HGG", "LGG")
    run(folders / "both-out", tmp_path / "whole")
    words = ["--epochs", 2, "--learning-rate", 1e-3, "--batch-size", 2, "--schedule", "onecycle"]
    options = [
        "--preset",
        "paper",
        "--precision",
        "32-true",
        "--augmentation",
        "none",
        "--device",
        "cpu",
        "--workers",
        0,
    ]
    given = [word for part in parts for word in ("--data", part)]
    done = invoke("train", *given, "--out", tmp_path / "joined", *words, *options)
    assert done.exit_code == 0, done.output
    for name in ("metrics.csv", "predictions.csv"):
        assert table(tmp_path / "joined" / name) == table(tmp_path / "whole" / name)


def test_a_cross_validation_of_joined_folders_equals_one_of_a_single_call(
    folders: Path, tmp_path: Path
) -> None:
    words = ["--models", "mc3", "--scheme", "kfold", "--folds", 2, "--only", "mc3/scratch/1", "--epochs", 1]
    words += ["--learning-rate", 1e-3, "--batch-size", 2, "--precision", "32-true", "--augmentation", "none"]
    words += ["--device", "cpu", "--workers", 0]
    low, high, both = (folders / f"{name}-out" for name in ("low", "high", "both"))
    torch.set_num_threads(1)
    for name, data in (("whole", [both]), ("joined", [low, high]), ("turned", [high, low])):
        given = [word for folder in data for word in ("--data", folder)]
        done = invoke("cv", *given, "--out", tmp_path / name, *words)
        assert "not finished: mc3/scratch/2" in done.output, done.output
    whole, cell = tmp_path / "whole", "cells/mc3/scratch/1"
    assert len(table(whole / cell / "predictions.csv")) == 3
    for joined in (tmp_path / "joined", tmp_path / "turned"):
        for name in ("metrics.csv", "predictions.csv"):
            assert table(joined / cell / name) == table(whole / cell / name)
        assert (joined / "splits.json").read_bytes() == (whole / "splits.json").read_bytes()
        ours, theirs = (json.loads((run / "cv.json").read_text()) for run in (joined, whole))
        different = {name for name in ours if ours[name] != theirs[name]}
        assert different == {"data", "written"}, "where they lie is all that differs"


def test_what_cannot_be_joined_is_refused_with_both_places(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"low-out.*2 classes or more, found 3 volumes of the class LGG"):
        read_prepared_cohort(folders / "low-out")
    with pytest.raises(DatasetError, match=r"line 2: expected a value for label.*--labels"):
        read_prepared_cohort([folders / "low-out", folders / "bare-out"])
    done = preprocess(folders / "high", tmp_path / "other", plane="coronal")
    assert done.exit_code == 0, done.output
    with pytest.raises(DatasetError, match=r"found others for plane; preprocess both alike"):
        read_prepared_cohort([folders / "low-out", tmp_path / "other"])
    with pytest.raises(DatasetError, match=r"line 2 and .*line \d: the same volume is in both"):
        read_prepared_cohort([folders / "both-out", folders / "low-out"])
    mapped = invoke(
        "preprocess", folders / "low", "--out", tmp_path / "mapped", "--class", "LGG=HGG", "--spacing", "10",
        "--workers", "1", "--assume-stripped",
    )  # fmt: skip
    assert mapped.exit_code == 0, mapped.output
    with pytest.raises(DatasetError, match=r"two labels, (HGG and LGG|LGG and HGG)"):
        read_prepared_cohort([folders / "low-out", tmp_path / "mapped"])
    none = preprocess(folders / "high", folders / "low", tmp_path / "none", limit="HGG=0")
    assert none.exit_code == 1 and "found 0 for HGG" in none.output


def test_a_run_goes_on_with_nothing_but_its_own_data(
    folders: Path, tmp_path: Path, without_marks: Callable[[Path], None]
) -> None:
    """A renamed class, other spacing or swapped labels passed in silence, and the model had wrong names."""
    data = tmp_path / "data"
    done = preprocess(folders / "high", folders / "low", data)
    assert done.exit_code == 0, done.output

    def stop(epoch: int, step: int, steps: int, loss: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run"
    assert run(data, out, watch=Watch(on_step=stop)).interrupted == signal.SIGTERM
    without_marks(data / "settings.json")  # so that it can be other data, and no edited ones
    manifest = data / "manifest.csv"
    before = manifest.read_text()
    lines = before.splitlines(keepends=True)
    swapped = before.replace("HGG", "#").replace("LGG", "HGG").replace("#", "LGG")
    for text, told in (
        (before.replace('"HGG"', '"zeta"'), "the classes were HGG, LGG and are LGG, zeta"),
        (swapped, r"6 volumes .* have another label \(was .GG, is .GG\)"),
        ("".join(lines[:-1]), r"1 volume \(volumes/p\d\.nii\.gz\) is not in the data any more"),
        (before.replace('"p5"', '"q5"', 1), r"1 volume .* has another subject"),
    ):
        manifest.write_text(text)
        refused = invoke("train", "--resume", "--out", out, "--device", "cpu", "--workers", 0)
        assert refused.exit_code == 1, refused.output
        assert "goes on with the volumes it began with" in refused.output
        with pytest.raises(DatasetError, match=told):
            run(data, out, resume=True)
    manifest.write_text(before)
    for words, told in (
        (["--learning-rate", 0.1], "--learning-rate 0.1 (it began with 0.001)"),
        (["--seed", 4], "--seed 4 (it began with 0)"),
        (["--epochs", 1], "--epochs 1 (it began with 2)"),
        (["--weights", manifest], "began without --weights"),
    ):
        refused = invoke("train", "--resume", "--out", out, *words)
        assert refused.exit_code == 1 and told in refused.output, refused.output
    moved = data.rename(tmp_path / "moved")
    refused = invoke("train", "--resume", "--out", out)
    assert refused.exit_code == 1 and "are now with --data" in refused.output
    done = invoke(
        "train", "--resume", "--out", out, "--data", moved, "--epochs", 3, "--device", "cpu", "--workers", 0
    )
    assert done.exit_code == 0, done.output
    assert len(table(out / "metrics.csv")) == 3
    assert json.loads((out / "data.json").read_text())["folders"] == [str(moved)]
    longer = invoke("train", "--resume", "--out", out, "--epochs", 4, "--device", "cpu", "--workers", 0)
    assert longer.exit_code == 0 and len(table(out / "metrics.csv")) == 4, longer.output
    (out / "data.json").unlink()  # as an earlier version left it
    assert run(moved, out, TrainConfig(**{**vars(CONFIG), "epochs": 4}), resume=True).epochs[-1].epoch == 4


@pytest.mark.parametrize("left", ["other", "older", "none"])
def test_a_run_does_not_go_on_with_volumes_drawn_in_another_way(
    left: str, folders: Path, tmp_path: Path
) -> None:
    data, out = folders / "both-out", tmp_path / "run"
    config = TrainConfig(**{**vars(CONFIG), "augmentation": "light"})
    run(data, out, config)
    values = json.loads((out / "data.json").read_text())
    assert values["drawn_by"] == {"augmentation": AUGMENTATION}
    longer = TrainConfig(**{**vars(config), "epochs": 3})
    assert len(run(data, out, longer, resume=True).epochs) == 3
    values.pop("written")  # of an earlier version, which is believed
    if left == "other":
        (out / "data.json").write_text(json.dumps({**values, "drawn_by": {"augmentation": AUGMENTATION + 1}}))
    elif left == "older":
        (out / "data.json").write_text(json.dumps({k: v for k, v in values.items() if k != "drawn_by"}))
    else:
        (out / "data.json").unlink()
    with pytest.raises(ModelError, match=r"this version of ssclf draws others.*start a new run"):
        run(data, out, longer, resume=True)


def test_versions_are_written_down_of_what_a_run_draws() -> None:
    plain = TrainConfig(augmentation="none")
    assert random_versions(plain) == {}
    assert random_versions(replace(plain, lesions=True)) == {"generator": GENERATOR}
    assert random_versions(TrainConfig(lesions=True)) == {
        "augmentation": AUGMENTATION,
        "generator": GENERATOR,
    }
    assert other_versions({}, {}) == other_versions({"generator": 1}, {}) == ""
    assert "generator was version 1 and is 2" in other_versions({"generator": 1}, {"generator": 2})


@pytest.mark.parametrize("seed", range(40))
def test_no_edit_of_the_data_passes_in_silence(seed: int) -> None:
    chance = random.Random(seed)
    volumes = {f"v{k}": (f"s{k}", chance.choice("ab"), f"{k:08x}") for k in range(6)}
    before = RunData(
        folders=("x",), volumes=volumes, class_names=("a", "b"), preprocess={"spacing": [1, 1, 1]}
    )
    assert differences(before, RunData.from_dict(json.loads(json.dumps(before.to_dict())))) == []
    values = json.loads(json.dumps(before.to_dict()))
    key = chance.choice(list(volumes))
    edits: list[Callable[[], object]] = [
        lambda: values["volumes"].pop(key),
        lambda: values["volumes"].update(new=values["volumes"][key]),
        lambda: values["volumes"][key].__setitem__(chance.randrange(3), "other"),
        lambda: values["class_names"].reverse(),
        lambda: values["class_names"].append("c"),
        lambda: values["preprocess"].update(spacing=[1, 1, 2]),
        lambda: values["preprocess"].update(crop="brain"),
    ]
    chance.choice(edits)()
    assert differences(before, RunData.from_dict(values))


def test_a_run_owns_its_folder(folders: Path, tmp_path: Path) -> None:
    """Two trainings that began in one second shared a folder, and one result was lost."""
    made = [new_run_folder("mc3", tmp_path / "runs") for _ in range(4)]
    assert len(set(made)) == 4 and all(folder.is_dir() for folder in made)
    with (
        lock(made[0] / ".lock-training"),
        pytest.raises(OutputError, match="another ssclf process is training"),
    ):
        run(folders / "both-out", made[0])
    with pytest.raises(ModelError, match="expected a run to resume"):
        run(folders / "both-out", made[1], resume=True)
    assert not made[1].exists(), "an empty folder stayed behind"
    with pytest.raises(ConfigError):
        run(folders / "both-out", tmp_path / "new", TrainConfig(patience=3))
