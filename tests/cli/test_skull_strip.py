"""`--skull-strip`: the same forms everywhere, read in one place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ssclf.config import SKULL_STRIP, PredictConfig, SkullStrip, StripEngine
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError
from ssclf.io.volumes.nifti import write_nifti

runner = CliRunner()
#: Stands for FSL's bet: takes the ball in the middle for the brain.
BET = """\
#!{python}
import sys
import nibabel as nib, numpy as np
image = nib.load(sys.argv[1])
grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij"))
mask = ((grid**2).sum(axis=0) < 0.55).astype(np.uint8)
nib.save(nib.Nifti1Image(mask, image.affine), sys.argv[2] + "_mask.nii.gz")
"""


@pytest.mark.parametrize("engine", get_args(StripEngine))
def test_every_engine_is_read_for_all_volumes_and_for_heads_alone(engine: StripEngine) -> None:
    assert SkullStrip.parse(engine) == SkullStrip(engine, only_heads=False)
    assert SkullStrip.parse(f"auto:{engine}") == SkullStrip(engine, only_heads=True)
    assert PredictConfig(skull_strip=f"auto:{engine}").skull_strip == f"auto:{engine}"


def test_every_word_that_is_offered_is_read() -> None:
    assert SkullStrip.parse("auto") == SkullStrip("deepbet", only_heads=True)
    for word in SKULL_STRIP:
        SkullStrip.parse(word)


@settings(deadline=None)
@given(st.text() | st.sampled_from(("auto:", "BET", "auto:auto", "bet:auto", "auto:hd-bet")))
def test_predict_takes_what_preprocess_takes_and_nothing_else(text: str) -> None:
    """The two had validators of their own, and auto:bet passed only one of them."""
    try:
        SkullStrip.parse(text)
    except ConfigError as exc:
        assert "auto:bet" in str(exc) and repr(text) in str(exc)
        with pytest.raises(ConfigError):
            PredictConfig(skull_strip=text)
    else:
        assert PredictConfig(skull_strip=text).skull_strip == text


def test_auto_bet_strips_heads_alone(
    make_volume: Callable[..., Volume], tiny_bundle: Path, tmp_path: Path
) -> None:
    """PredictConfig refused what docs/preprocessing.md offers."""
    program = tmp_path / "bin" / "bet"
    program.parent.mkdir()
    program.write_text(BET.format(python=sys.executable))
    program.chmod(0o755)
    # a process of its own: workers that other tests have started know another PATH
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    brain = make_volume((40, 52, 44), (5.0, 5.0, 5.0))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in brain.shape), indexing="ij"))
    radius = (grid**2).sum(axis=0)
    scalp = np.where((radius >= 0.8) & (radius < 1.0), 700, np.where(radius < 0.8, 30, 0))
    head = np.where(radius < 0.55, brain.data[0], scalp).astype(np.float32)
    write_nifti(make_volume(), tmp_path / "scans" / "stripped.nii.gz")
    write_nifti(Volume(head[None], brain.affine), tmp_path / "scans" / "head.nii.gz")
    words = ["predict", str(tmp_path / "scans"), "--model", str(tiny_bundle), "--skull-strip", "auto:bet"]
    words += ["--out", str(tmp_path / "r.csv"), "--workers", "1"]
    command = [sys.executable, "-m", "ssclf", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["path"]: row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert "stripped_by_ssclf" in rows["head.nii.gz"]["flags"]
    assert "stripped_by_ssclf" not in rows["stripped.nii.gz"]["flags"]
