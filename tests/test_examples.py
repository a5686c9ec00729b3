"""The files in examples/ run as their README says."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import read_nifti, write_nifti

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: Path) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def scan(make_volume: Callable[..., Volume], tmp_path: Path) -> Path:
    write_nifti(make_volume(), tmp_path / "scans" / "brain.nii.gz")
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no volume")
    return tmp_path / "scans" / "brain.nii.gz"


def test_a_folder_and_its_arrays_say_the_same(scan: Path, tiny_bundle: Path) -> None:
    lines = run("predict_folder.py", scan.parent, tiny_bundle).splitlines()
    assert len(lines) == 2 and "broken.nii.gz: failed: " in "\n".join(lines)
    row = next(line for line in lines if line.startswith("brain.nii.gz"))
    steps = run("classify_array.py", scan, tiny_bundle).splitlines()[1:]
    probabilities = {name: float(number) for name, number in (line.split(": ") for line in steps)}
    best = max(probabilities, key=lambda name: probabilities[name])
    assert f"{best} ({probabilities[best]:.3f})" in row
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_the_input_of_a_network_can_be_looked_at(scan: Path, tmp_path: Path) -> None:
    assert "flags: " in run("look_at_input.py", scan, tmp_path / "input.nii.gz")
    volume = read_nifti(tmp_path / "input.nii.gz")
    np.testing.assert_allclose(volume.spacing, (2, 2, 2), atol=1e-5)
    assert 0.9 < volume.data.max() <= 1


def test_every_example_is_in_the_readme() -> None:
    text = (EXAMPLES / "README.md").read_text("utf-8")
    names = [row[0] for row in csv.reader(text.splitlines(), delimiter="|") if row]
    assert names
    for path in EXAMPLES.glob("*.py"):
        assert f"`{path.name} " in text
