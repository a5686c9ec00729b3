"""A bundle is a claim of whoever made it: what it holds is looked at before anything of it runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssclf.config import PredictConfig
from ssclf.domain.model_spec import ModelSpec
from ssclf.errors import ModelError, VolumeError
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.checksums import write_checksums
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.models.onnx_graph import MAX_NODES, read_onnx
from ssclf.io.models.runtime import ClassifierOutput, check_answer, open_classifier
from ssclf.io.models.torchscript_archive import read_weights

onnx = pytest.importorskip("onnx", reason="pip install 'ssclf[train]'")


def changed(bundle: Path, folder: Path, **values: Any) -> Path:
    """A copy of a bundle whose spec.json says something else, with checksums that fit."""
    shutil.copytree(bundle, folder)
    spec = json.loads((folder / "spec.json").read_text("utf-8"))
    (folder / "spec.json").write_text(json.dumps({**spec, **values}), "utf-8")
    write_checksums(folder)
    return folder


@pytest.mark.parametrize(
    "values",
    [
        {"class_names": ["LGG", "HGG"]},
        {"class_names": ["LGG", "HGG", "healthy", "other"]},
        {"class_names": ["HGG", "LGG", "healthy"]},
        {"class_names": ["LGG", "HGG", "sick"]},
        {"class_names": [1, 2, 3]},
        {"class_names": "abc"},
        {"name": 5},
        {"training": []},
        {"versions": 1},
        {"architecture": "r3d"},
        {"calibration": {"temperature": 7.0}},
    ],
)
def test_a_spec_that_is_not_its_networks_is_refused(
    tiny_bundle: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    with pytest.raises(ModelError):
        open_bundle(changed(tiny_bundle, tmp_path / "model", **values))


@pytest.mark.parametrize("where", ["logits", "cam", "features"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_none(tiny_bundle: Path, where: str, number: float) -> None:
    spec = open_bundle(tiny_bundle).spec
    answer = {
        "logits": np.zeros((1, 3), np.float32),
        "cam": np.zeros((1, 3, 2, 2, 2), np.float32),
        "features": np.zeros((1, 4), np.float32),
    }
    assert check_answer(ClassifierOutput(**answer), spec, 1).logits.shape == (1, 3)
    answer[where].flat[-1] = number
    with pytest.raises(VolumeError, match="no number"):
        check_answer(ClassifierOutput(**answer), spec, 1)


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_an_answer_of_other_classes_is_none(tiny_bundle: Path, classes: int) -> None:
    output = ClassifierOutput(np.zeros((1, classes), np.float32), np.zeros((1, classes, 2, 2, 2), np.float32))
    with pytest.raises(ModelError, match="expected 3 scores"):
        check_answer(output, open_bundle(tiny_bundle).spec, 1)


def graph(*nodes: Any, **model: Any) -> bytes:
    helper = onnx.helper
    value = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    made: bytes = helper.make_model(
        helper.make_graph(list(nodes), "g", [], [value]), **model
    ).SerializeToString()
    return made


def test_what_export_never_writes_is_refused() -> None:
    helper = onnx.helper
    inner = helper.make_graph([], "inner", [], [])
    one = helper.make_tensor("one", onnx.TensorProto.FLOAT, [1], [1.0])
    outside = onnx.numpy_helper.from_array(np.ones(1, np.float32), "w")
    onnx.external_data_helper.set_external_data(outside, "other.bin")
    function = helper.make_function("f", "F", [], ["y"], [], [helper.make_opsetid("", 20)])
    read_onnx(graph(helper.make_node("Constant", [], ["y"], value=one)), "good.onnx")
    for content in (
        graph(helper.make_node("Loop", ["n", "c"], ["y"], body=inner)),
        graph(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)),
        graph(helper.make_node("Add", ["a", "b"], ["y"], hidden=inner)),
        graph(helper.make_node("Add", ["a", "b"], ["y"], domain="com.other")),
        graph(helper.make_node("Constant", [], ["y"], value=outside)),
        graph(helper.make_node("Add", ["a", "b"], ["y"]), functions=[function]),
        graph(*[helper.make_node("Add", ["a", "b"], ["y"])] * (MAX_NODES + 1)),
    ):
        with pytest.raises(ModelError, match=r"bad\.onnx: expected a network as"):
            read_onnx(content, "bad.onnx")


def test_damaged_networks_are_told_and_nothing_else(tiny_bundle: Path) -> None:
    content = (tiny_bundle / "model.onnx").read_bytes()[:20_000]
    random = np.random.default_rng(0)
    for size in random.integers(0, len(content), 100):
        damaged = bytearray(content[:size])
        for place in random.integers(0, max(size, 1), 3):
            damaged[place : place + 1] = random.bytes(1)
        with pytest.raises(ModelError):
            read_onnx(bytes(damaged), "damaged.onnx")


def test_torchscript_runs_only_where_it_is_asked_for(tiny_bundle: Path) -> None:
    alone = open_bundle(tiny_bundle / "model.torchscript.pt")
    for use in (lambda: open_classifier(alone), lambda: Ensemble([alone], PredictConfig())):
        with pytest.raises(ModelError, match=r"runs code of whoever made it.*--engine torchscript"):
            use()


def test_weights_are_read_without_running_the_file(tiny_bundle: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tiny_bundle / "model.torchscript.pt"
    expected = torch.jit.load(str(path), map_location="cpu").state_dict()
    found = read_weights(path)
    assert set(found) == set(expected)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name].numpy())
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2):
        (tmp_path / "cut.pt").write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"cut\.pt"):
            read_weights(tmp_path / "cut.pt")


@pytest.mark.parametrize("listed", [True, False], ids=["SHA256SUMS", "a listed file"])
@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_never_ends_is_not_read(tiny_bundle: Path, tmp_path: Path, kind: str, listed: bool) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bundle, folder)
    path = folder / ("SHA256SUMS" if listed else "model.onnx")
    path.unlink()
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    with pytest.raises(ModelError):
        open_bundle(folder)


def test_a_spec_survives_the_round_trip(tiny_bundle: Path) -> None:
    spec = open_bundle(tiny_bundle).spec
    assert ModelSpec.from_json(spec.to_json(), "spec.json") == spec
