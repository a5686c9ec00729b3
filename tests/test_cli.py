from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssclf import __version__
from ssclf.cli.app import app
from ssclf.io.models.bundle import open_bundle
from ssclf.workflows.doctor import time_extraction

runner = CliRunner()


def test_version() -> None:
    assert runner.invoke(app, ["--version"]).output.strip() == f"ssclf {__version__}"


@pytest.mark.parametrize("arguments", [["predict"], ["nonsense"], ["predict", "a", "--no-such-option"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    assert runner.invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--model", "vgg"], ("--model", "vgg", "mc3", "r2plus1d", "r3d")),
        (["train", "--augmentation", "strong"], ("--augmentation", "light", "heavy", "flip", "none")),
        (["train", "--preset", "best"], ("--preset", "paper", "default")),
        (["train", "--device", "tpu"], ("--device", "auto", "cpu", "cuda")),
        (["predict", ".", "--device", "tpu"], ("--device", "auto", "cpu", "cuda")),
        (["cv", "--models", "mc3,vgg"], ("--models", "vgg", "mc3", "r2plus1d", "r3d")),
        (["cv", "--pretrained", "maybe"], ("--pretrained", "no", "yes", "both")),
        (["cv", "--scheme", "loo"], ("--scheme", "paper", "kfold")),
        (["export", "--format", "zip"], ("--format", "zip", "onnx", "torchscript")),
        (["export", "--precision", "int8"], ("--precision", "fp32", "fp16")),
        (["preprocess", ".", "--plane", "oblique"], ("--plane", "axial", "coronal", "sagittal")),
        (["preprocess", ".", "--crop", "tight"], ("--crop", "none", "brain")),
        (["predict", ".", "--engine", "tf"], ("--engine", "auto", "onnx", "torchscript")),
        (["predict", ".", "--log-level", "loud"], ("--log-level", "debug", "info", "warning", "error")),
        (["predict", ".", "--skull-strip", "scalpel"], ("--skull-strip", "deepbet", "bet", "auto:ENGINE")),
        (["evaluate", ".", "--skull-strip", "auto:scalpel"], ("--skull-strip", "deepbet", "auto:bet")),
    ],
)
def test_a_wrong_choice_is_wrong_usage_and_the_choices_are_named(
    arguments: list[str], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.output for word in words), result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["preprocess", "absent"], "absent"),
        (["preprocess", ".", "--spacing", "2,2"], "--spacing"),
        (["preprocess", ".", "--limit", "healthy"], "--limit"),
        (["train", "--data", "absent"], "absent"),
        (["export", "absent"], "absent"),
        (["cv", "--data", "absent"], "absent"),
        (["merge", "absent.csv"], "absent.csv"),
        (["predict", ".", "--shard", "0/3", "--model", "absent"], "--shard"),
        (["predict", "."], "ssclf demo"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_1(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSCLF_MODEL", raising=False)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert result.output.startswith("error: ") and words in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "ssclf", "train"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "ssclf[train]" in done.stderr and "Traceback" not in done.stderr


def test_doctor_fails_only_for_what_was_asked_for() -> None:
    assert runner.invoke(app, ["doctor"]).exit_code == 0
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        assert runner.invoke(app, ["doctor", "--device", "cuda"]).exit_code == 1


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_doctor_times_brain_extraction_of_the_process_that_owns_the_device(
    tiny_bundle: Path, extraction_models: list[Path]
) -> None:
    bundle = replace(open_bundle(tiny_bundle), extraction=tuple(extraction_models))
    (check,) = time_extraction(bundle, [("CPUExecutionProvider", {})])
    assert check.ok and check.name.endswith("on cpu") and "s a head" in check.detail
    (check,) = time_extraction(bundle, [("CUDAExecutionProvider", {}), "CPUExecutionProvider"])
    assert check.ok is None and check.name.endswith("on cuda") and "workers" in check.detail
    assert not list(time_extraction(bundle, []))


def test_doctor_verifies_and_times_a_model(tiny_bundle: Path) -> None:
    result = runner.invoke(app, ["doctor", "--model", str(tiny_bundle), "--bench", "--engine", "onnx"])
    assert result.exit_code == 0, result.output
    assert "speed of onnx on cpu" in result.output
    (tiny_bundle.parent / "broken").mkdir(exist_ok=True)
    assert runner.invoke(app, ["doctor", "--model", str(tiny_bundle.parent / "broken")]).exit_code == 1
