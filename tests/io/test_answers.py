"""What a network answers is looked at before it becomes a row, and where results go before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ssclf.cli.app import app
from ssclf.domain.volume import Volume
from ssclf.errors import OutputError
from ssclf.io.files import whole_file
from ssclf.io.models.checksums import write_checksums
from ssclf.io.records.results import Journal
from ssclf.io.volumes.nifti import write_nifti


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture
def predict(make_volume: Callable[..., Volume], tmp_path: Path) -> Callable[[Path], Result]:
    for number in range(2):
        write_nifti(make_volume(seed=number), tmp_path / "scans" / f"{number}.nii.gz")

    def run(model: Path) -> Result:
        words = ["predict", str(tmp_path / "scans"), "--model", str(model), "--out", str(tmp_path / "r.csv")]
        return CliRunner().invoke(app, [*words, "--assume-stripped", "--device", "cpu"])

    return run


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_a_failed_row(
    predict: Callable[[Path], Result], bundle: Path, tmp_path: Path, value: float
) -> None:
    """It was ok, with a confidence of nan and no flag, in a results.json that was no JSON."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle / "model.onnx")
    weights = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    damaged = np.full(tuple(weights.dims), value, np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(damaged, weights.name))
    onnx.save(model, bundle / "model.onnx")
    write_checksums(bundle)
    assert predict(bundle).exit_code == 3
    rows = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)["rows"]
    assert [row["status"] for row in rows] == ["failed"] * 2
    assert all("no number" in row["error"] and not row["probabilities"] for row in rows)


@pytest.mark.parametrize("names", [["HGG", "healthy"], ["HGG", "LGG", "healthy", "metastasis"]])
def test_another_number_of_classes_than_scores_is_an_error(
    predict: Callable[[Path], Result], bundle: Path, tmp_path: Path, names: list[str]
) -> None:
    """With fewer, the columns of the table shifted; with more, an IndexError."""
    spec = json.loads((bundle / "spec.json").read_text())
    (bundle / "spec.json").write_text(json.dumps({**spec, "class_names": names}))
    write_checksums(bundle)
    result = predict(bundle)
    assert result.exit_code == 1 and "do not belong together" in result.output
    assert not (tmp_path / "r.csv").exists()


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """Another user's folder was emptied through a link with the name of our working folder."""
    (tmp_path / "theirs" / "scratch").mkdir(parents=True)
    (tmp_path / "theirs" / "scratch" / "kept").touch()
    (tmp_path / ".r.csv.ssclf-work").symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError, match="somebody else's"), Journal(tmp_path / "r.csv") as journal:
        journal.open()
    assert (tmp_path / "theirs" / "scratch" / "kept").exists()


def test_a_partial_file_never_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "guessed")
    with whole_file(tmp_path / "a.csv") as file:
        name = Path(file.name)
    name.symlink_to(tmp_path / "theirs")
    with pytest.raises(OutputError, match="exists"), whole_file(tmp_path / "a.csv"):
        pass
    assert not (tmp_path / "theirs").exists()
