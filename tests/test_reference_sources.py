"""The model that ships was trained on IXI's healthy volunteers and on nobody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

REFERENCE = Path(__file__).parents[1] / "reference"
SPECS = sorted(REFERENCE.rglob("spec.json"))
#: Records of runs, which weights to start from are.
RECORDS = sorted(REFERENCE.rglob("provenance.json"))


def training_of(path: Path) -> dict[str, Any]:
    training: dict[str, Any] = json.loads(path.read_text("utf-8"))["training"]
    return training


def strangers(training: dict[str, Any]) -> list[str]:
    """What a model has learnt from beside IXI."""
    named = {*training["sources"], *(s for found in training["class_sources"].values() for s in found)}
    found = sorted(named - {"IXI"})
    if training.get("initial_weights") or training.get("started_from"):
        found.append("weights of another model")
    if not training["synthetic"]:
        found.append("volumes that were not made by the generator")
    if not training["sources"] or not training["voxels"]:
        found.append("nothing that says what it learnt from")
    # hashes are of volumes of the sources: as many as were counted, so that none was added unnamed
    if len(training["voxels"]) != len(set(training["voxels"])) or len(training["voxels"]) > sum(
        training["sources"].values()
    ):
        found.append("hashes of volumes that no source is named for")
    return found


@pytest.mark.parametrize("path", SPECS + RECORDS, ids=lambda path: path.parent.name)
def test_what_ships_names_ixi_alone(path: Path) -> None:
    assert strangers(training_of(path)) == []


def test_a_spec_of_other_volumes_is_found() -> None:
    good = {
        "synthetic": True, "sources": {"IXI": 3}, "class_sources": {"HGG": {"IXI": 1}}, "voxels": ["a"],
        "initial_weights": "", "started_from": {},
    }  # fmt: skip
    assert strangers(good) == []
    changes: tuple[dict[str, Any], ...] = (
        {"sources": {"IXI": 2, "BraTS": 1}},
        {"class_sources": {"healthy": {"IBSR": 1}}},
        {"started_from": {"name": "other"}},
        {"synthetic": False},
        {"voxels": []},
        {"voxels": ["a", "b", "c", "d"]},
    )
    for change in changes:
        assert strangers({**good, **change}), change
