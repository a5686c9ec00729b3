"""`ssclf export --format monai-bundle`: MONAI's own runner says of a real scan what `ssclf predict` says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ssclf
from ssclf.cli.app import app
from ssclf.config import PredictConfig, TrainConfig
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti
from ssclf.workflows.train import Machine, train

TINY = TrainConfig(
    architecture="small",
    epochs=1,
    learning_rate=1e-2,
    batch_size=3,
    holdout=0.34,
    precision="32-true",
    augmentation="none",
)


@pytest.fixture
def monai_bundle(preprocessed: Callable[..., Path], tmp_path: Path) -> Path:
    for module in ("monai", "fire"):
        pytest.importorskip(module, reason=f"pip install 'ssclf[ecosystem]' brings {module}")
    run = train(
        preprocessed(per_class=3), tmp_path / "run", TINY, machine=Machine(device="cpu", workers=0)
    ).run
    out = tmp_path / "exported" / "model"
    words = ["export", str(run), "--out", str(out), "--format", "monai-bundle", "--no-brain-extraction"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return out


def monai(bundle: Path, scans: list[Path], output: Path) -> list[dict[str, float]]:
    command = [
        *(sys.executable, "-m", "monai.bundle", "run", "run"),
        *("--config_file", bundle / "configs" / "inference.json"),
        *("--meta_file", bundle / "configs" / "metadata.json"),
        *("--bundle_root", bundle, "--output", output, "--skull_strip", "none"),
        *("--scans", str([str(scan) for scan in scans])),
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [row["probabilities"] for row in json.loads(output.read_text("utf-8"))]


def same_as_predict(bundle: Path, scans: list[Path], output: Path) -> None:
    config = PredictConfig(skull_strip="none")
    rows = {row.path: row for row in ssclf.predict(scans, models=[bundle], config=config)}
    spec = ssclf.open_bundle(bundle).spec
    assert abs(spec.temperature - 1) > 0.05  # or it could be forgotten unseen
    for scan, found in zip(scans, monai(bundle, scans, output), strict=True):
        assert list(found) == list(spec.class_names)
        assert list(found.values()) == pytest.approx(rows[scan.as_posix()].probabilities, abs=1e-4)


def test_monai_says_what_predict_says(
    monai_bundle: Path, make_volume: Callable[..., Volume], tmp_path: Path
) -> None:
    scans = [tmp_path / f"{seed}.nii.gz" for seed in range(2)]
    for seed, scan in enumerate(scans):
        write_nifti(make_volume((20 + seed, 26, 22), seed=seed), scan)
    same_as_predict(monai_bundle, scans, tmp_path / "out.json")
    # what MONAI asks of a bundle: https://docs.monai.io/en/stable/bundle.html
    metadata = json.loads((monai_bundle / "configs" / "metadata.json").read_text("utf-8"))
    required = "version changelog monai_version pytorch_version numpy_version required_packages_version task "
    required += "description authors copyright network_data_format"
    assert set(required.split()) <= set(metadata)


def test_monai_says_it_of_a_real_scan(monai_bundle: Path, shared_data: Path, tmp_path: Path) -> None:
    scans = sorted((shared_data / "brats18").rglob("*_t1ce.nii.gz"))[:1]
    assert scans
    same_as_predict(monai_bundle, scans, tmp_path / "out.json")
