"""What scripts/deploy has for other programs: they accept it, and what it starts does its work."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssclf import __version__
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "scripts" / "deploy"


def load(name: str) -> Any:
    return json.loads((DEPLOY / name).read_text("utf-8"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which `ssclf` is this checkout's, with one thread."""
    program = tmp_path / "bin" / "ssclf"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ssclf "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}


def start(command: list[Any], environment: dict[str, str], folder: Path) -> str:
    if shutil.which(command[0], path=environment["PATH"]) is None:
        pytest.skip(f"pip install 'ssclf[ecosystem]' brings {command[0]}")
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def scans(tmp_path: Path, make_volume: Callable[..., Volume]) -> Path:
    for seed in range(2):
        write_nifti(make_volume(seed=seed), tmp_path / "scans" / f"{seed}.nii.gz")
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no volume")
    return tmp_path / "scans"


def statuses(table: Path) -> list[str]:
    with table.open(encoding="utf-8", newline="") as file:
        return [row["status"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["xnat-command.json", "boutiques.json"])
def test_versions_are_this_one(name: str) -> None:
    described = load(name)
    image = described.get("image") or described["container-image"]["image"]
    assert described.get("version", described.get("tool-version")) == __version__
    assert image == f"localhost/ssclf:{__version__}-cpu"


def test_xnat_would_take_the_command() -> None:
    """What container-service asks of a command: https://github.com/NrgXnat/container-service, `Command.validate`."""
    command = load("xnat-command.json")
    assert command["type"] == "docker" and re.fullmatch(r".+:[\w.-]+", command["image"])
    mounts = {mount["name"]: mount for mount in command["mounts"]}
    assert len(mounts) == len(command["mounts"]) and all(mount["path"] for mount in mounts.values())
    outputs = {output["name"]: output for output in command["outputs"]}
    assert all(mounts[output["mount"]]["writable"] for output in outputs.values())
    (wrapper,) = command["xnat"]
    inputs = {entry["name"]: entry for entry in wrapper["external-inputs"]}
    types = {"Project", "Subject", "Session", "Scan", "Assessor", "Resource"}
    assert all(entry["type"] in types for entry in inputs.values())
    given = {entry["provides-files-for-command-mount"] for entry in inputs.values()}
    assert given == {name for name, mount in mounts.items() if not mount["writable"]}
    handlers = wrapper["output-handlers"]
    assert {handler["accepts-command-output"] for handler in handlers} == set(outputs)
    assert all(handler["as-a-child-of"] in inputs for handler in handlers)
    for name in (*mounts, *outputs, *inputs, *(handler["name"] for handler in handlers), wrapper["name"]):
        assert re.fullmatch(r"[A-Za-z0-9_-]+", name)


def test_the_command_line_of_xnat_leaves_what_it_names(
    scans: Path, tiny_bundle: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = load("xnat-command.json")
    line = command["command-line"].replace("/input", str(scans)).replace("/output", str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    start(["sh", "-c", line], {**environment, "SSCLF_MODEL": str(tiny_bundle)}, tmp_path)
    (output,) = command["outputs"]
    found = sorted(path.name for path in (tmp_path / "out").glob(output["glob"]))
    assert found == ["results.csv", "results.html", "results.json"]
    assert sorted(statuses(tmp_path / "out" / "results.csv")) == ["failed", "ok", "ok"]


def test_boutiques_takes_the_descriptor(tmp_path: Path, environment: dict[str, str]) -> None:
    assert "OK" in start(["bosh", "validate", DEPLOY / "boutiques.json"], environment, tmp_path)
    (tmp_path / "in.json").write_text(json.dumps({"scans": ["a b"], "model": "m", "skull_strip": "none"}))
    simulate = ["bosh", "exec", "simulate", DEPLOY / "boutiques.json", "-i", tmp_path / "in.json"]
    shown = start(simulate, environment, tmp_path)
    assert "ssclf predict" in shown and "--out results.csv --model m --skull-strip none" in shown


def test_boutiques_runs_it(
    scans: Path, tiny_bundle: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (scans / "broken.nii.gz").unlink()
    asked = {"scans": [str(scans)], "model": str(tiny_bundle), "skull_strip": "none", "workers": 1}
    (tmp_path / "in.json").write_text(json.dumps(asked))
    launch = ["bosh", "exec", "launch", "--no-container", DEPLOY / "boutiques.json", tmp_path / "in.json"]
    start(launch, environment, tmp_path)
    assert statuses(tmp_path / "results.csv") == ["ok", "ok"]


def test_snakemake_runs_a_job_per_participant(
    tiny_bundle: Path, tmp_path: Path, make_volume: Callable[..., Volume], environment: dict[str, str]
) -> None:
    bids, out = tmp_path / "bids", tmp_path / "out"
    for seed in (1, 2):
        write_nifti(make_volume(seed=seed), bids / f"sub-0{seed}" / "anat" / f"sub-0{seed}_T1w.nii.gz")
    (bids / "sub-02" / "anat" / "sub-02_T2w.nii.gz").write_bytes(b"no volume")
    (bids / "dataset_description.json").write_text('{"Name": "synthetic", "BIDSVersion": "1.10.0"}')
    config = ["--config", f"bids={bids}", f"out={out}", f"model={tiny_bundle}"]
    shown = start(["snakemake", "-s", DEPLOY / "Snakefile", "--cores", "1", *config], environment, tmp_path)
    assert "3 of 3 steps" in shown
    _, *rows = (out / "group_classification.tsv").read_text("utf-8").splitlines()
    assert [row.split("\t")[0] for row in rows] == ["sub-01", "sub-02", "sub-02"]
