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
from ssclf.errors import OutputError, VolumeError
from ssclf.io.files import whole_file
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.checksums import write_checksums
from ssclf.io.models.runtime import open_classifier
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


#: A network that writes to a file of its maker's choice.
PROGRAM = """
def forward(self, volume: Tensor):
    written = torch.from_file("{target}", True, 64, dtype=0).fill_(65)
    return torch.zeros([1, 3]) + written[:3].to(torch.float32), torch.zeros([1, 3, 1, 1, 1]), torch.zeros([1, 4])
"""


def heavier(bundle: Path, *, pad: int, operators: int) -> None:
    """Put work before a network: its input padded by so many voxels, looked at so many times, and cut to size."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle / "model.onnx")
    make = onnx.helper.make_node
    numbers = {"pads": [0] * 9 + [pad], "starts": [0], "ends": [-pad], "axes": [4]}
    for name, values in numbers.items():
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(values, np.int64), f"heavy_{name}")
        )
    nodes = [make("Pad", ["volume", "heavy_pads"], ["heavy_0"])]
    nodes += [make("Sigmoid", [f"heavy_{n}"], [f"heavy_{n + 1}"]) for n in range(operators)]
    cut = [f"heavy_{name}" for name in ("starts", "ends", "axes")]
    nodes.append(make("Slice", [f"heavy_{operators}", *cut], ["heavy_end"]))
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "volume":
                node.input[place] = "heavy_end"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, bundle / "model.onnx")
    write_checksums(bundle)


def test_a_network_that_takes_more_memory_than_there_is_costs_its_rows(
    predict: Callable[[Path], Result], bundle: Path, tmp_path: Path
) -> None:
    """The kernel ended the process: no table, no row for anybody."""
    heavier(bundle, pad=1 << 33, operators=1)
    assert predict(bundle).exit_code == 3
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["failed"] * 2
    assert all("the network cannot take it" in row["error"] for row in rows)


def test_a_network_that_takes_longer_than_it_may_is_stopped(bundle: Path) -> None:
    heavier(bundle, pad=1 << 16, operators=200)
    classifier = open_classifier(open_bundle(bundle), device="cpu", threads=1, timeout_s=0.5)
    with pytest.raises(VolumeError, match=r"longer than 0\.5 s"):
        classifier.classify(np.zeros((1, 1, 16, 24, 24), np.float32))


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


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("class_count_mismatch/two_classes", 1, "do not belong together"),
        ("nan_scores/onnx_nan", 3, "no number"),
    ],
)
def test_networks_of_the_security_test(
    predict: Callable[[Path], Result], shared_data: Path, tmp_path: Path, case: str, code: int, words: str
) -> None:
    result = predict(shared_data / "faults" / "hostile" / case)
    assert result.exit_code == code
    table = (tmp_path / "r.csv").read_text() if code == 3 else result.output
    assert words in table


def test_a_program_in_a_bundle_does_not_run(
    predict: Callable[[Path], Result], bundle: Path, tmp_path: Path
) -> None:
    """A network of 3 kB wrote bytes of its choice to any file of the user, in ordinary rows with status ok."""
    torch = pytest.importorskip("torch")
    target = tmp_path / "written"
    module = torch.jit.ScriptModule()
    module.define(PROGRAM.format(target=target))
    path = bundle / "model.torchscript.pt"
    torch.jit.save(module, path, _extra_files={"spec.json": (bundle / "spec.json").read_text()})
    (bundle / "model.onnx").unlink()
    write_checksums(bundle)
    for model in (path, bundle):
        result = predict(model)
        assert result.exit_code == 1 and "--engine torchscript" in result.output
        assert not target.exists()


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
