"""`ssclf bids` as a BIDS App: what it takes, what it leaves, and what the BIDS validator says of that."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

Bids = Callable[..., tuple[int, str]]


@pytest.fixture
def data_set(tmp_path: Path, make_volume: Callable[..., Volume]) -> Path:
    root = tmp_path / "bids"
    description = {"Name": "synthetic", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.0/none"}
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps(description))
    (root / "participants.tsv").write_text("participant_id\nsub-01\nsub-02\n")
    for seed, name in enumerate(
        (
            "sub-01/ses-a/anat/sub-01_ses-a_ce-gadolinium_T1w.nii.gz",
            "sub-01/ses-b/anat/sub-01_ses-b_ce-gadolinium_T1w.nii.gz",
            "sub-02/anat/sub-02_T1w.nii.gz",
            "sub-02/func/sub-02_task-rest_bold.nii.gz",
            "derivatives/other/sub-02/anat/sub-02_T1w.nii.gz",
        )
    ):
        write_nifti(make_volume(seed=seed), root / name)
    return root


@pytest.fixture
def bids(data_set: Path, tiny_bundle: Path, tmp_path: Path) -> Bids:
    def run(level: str, *more: str) -> tuple[int, str]:
        words = ["bids", str(data_set), str(tmp_path / "out"), level, "--model", str(tiny_bundle), *more]
        done = CliRunner().invoke(app, [*words, "--workers", "1", "--skull-strip", "none"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return run


def rows(table: Path) -> list[dict[str, str]]:
    header, *lines = [line.split("\t") for line in table.read_text("utf-8").splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_each_participant_has_a_table_and_the_group_all(bids: Bids, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, output = bids("participant")
    assert code == 0, output
    first = rows(out / "sub-01" / "sub-01_classification.tsv")
    assert [row["filename"] for row in first] == [
        f"sub-01/ses-{s}/anat/sub-01_ses-{s}_ce-gadolinium_T1w.nii.gz" for s in "ab"
    ]
    for row in first:
        assert row["prediction"] in ("LGG", "HGG", "healthy") and row["error"] == "n/a"
        assert sum(float(row[f"p_{name}"]) for name in ("LGG", "HGG", "healthy")) == pytest.approx(
            1, abs=1e-5
        )
    assert [row["filename"] for row in rows(out / "sub-02" / "sub-02_classification.tsv")] == [
        "sub-02/anat/sub-02_T1w.nii.gz"
    ]
    columns = set(json.loads((out / "sub-01" / "sub-01_classification.json").read_text()))
    assert columns == set(first[0])
    assert bids("group")[0] == 0
    assert [row["participant_id"] for row in rows(out / "group_classification.tsv")] == [
        "sub-01",
        "sub-01",
        "sub-02",
    ]
    code, output = bids("participant")
    assert code == 0 and "3 rows kept from before" in output


def test_one_participant_at_a_time(bids: Bids, tmp_path: Path) -> None:
    assert bids("participant", "--participant-label", "02")[0] == 0
    code, output = bids("group")
    assert code == 1 and "sub-01_classification.tsv: expected the table of a participant" in output
    assert bids("participant", "--participant_label", "sub-01")[0] == 0
    assert bids("group")[0] == 0
    assert len(rows(tmp_path / "out" / "group_classification.tsv")) == 3
    code, output = bids("participant", "--participant-label", "03")
    assert code == 1 and "sub-03" in output


def test_what_cannot_be_read_costs_its_row(bids: Bids, data_set: Path, tmp_path: Path) -> None:
    (data_set / "sub-02" / "anat" / "sub-02_T1w.nii.gz").write_bytes(b"no volume")
    assert bids("participant")[0] == 3
    (row,) = rows(tmp_path / "out" / "sub-02" / "sub-02_classification.tsv")
    assert row["status"] == "failed" and row["error"] != "n/a" and row["prediction"] == "n/a"
    assert bids("group")[0] == 3


def test_links_of_datalad_are_followed_inside_the_data_set(
    bids: Bids, data_set: Path, tmp_path: Path
) -> None:
    scan = data_set / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    kept = data_set / ".git" / "annex" / "objects" / "key.nii.gz"
    kept.parent.mkdir(parents=True)
    shutil.move(scan, kept)
    scan.symlink_to("../../.git/annex/objects/key.nii.gz")
    assert bids("participant", "--participant-label", "02")[0] == 0


def test_another_data_set_is_not_overwritten(bids: Bids, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    code, output = bids("participant")
    assert code == 1 and "did not write" in output


def test_the_bids_validator_finds_no_error(bids: Bids, tmp_path: Path) -> None:
    validator = shutil.which("bids-validator-deno")
    if validator is None:
        pytest.skip("pip install 'ssclf[ecosystem]' brings the BIDS validator")
    assert bids("participant")[0] == 0 and bids("group")[0] == 0
    done = subprocess.run(
        [validator, tmp_path / "out", "--format", "json"], capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)
    errors = [issue for issue in found["issues"]["issues"] if issue["severity"] == "error"]
    assert done.returncode == 0 and not errors, errors
    assert found["summary"]["dataProcessed"]
