"""deepbet's networks as ONNX: what is written, and whether they find the brain that deepbet itself finds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

from ssclf.domain.volume import Mask, Volume  # noqa: E402
from ssclf.errors import MissingDependencyError, OutputError, ParityError  # noqa: E402
from ssclf.io.extraction.deepbet import LICENSE_FILE, BrainExtractor  # noqa: E402
from ssclf.io.extraction.engines import extract_brain  # noqa: E402
from ssclf.io.volumes.nifti import read_nifti  # noqa: E402
from ssclf.learning import extraction_export  # noqa: E402
from ssclf.learning.extraction_export import cached_brain_extraction, export_brain_extraction  # noqa: E402


def test_two_lone_files_and_the_licence_are_written(extraction_models: list[Path]) -> None:
    names = ["brain-extraction-box.onnx", "brain-extraction-mask.onnx", "brain-extraction-LICENSE.txt"]
    assert [path.name for path in extraction_models] == names
    assert sorted(path.name for path in extraction_models[0].parent.iterdir()) == sorted(names)
    for path in extraction_models[:2]:
        model = onnx.load(path)
        assert "Medical Machine Learning Lab" in model.doc_string
        assert {prop.key for prop in model.metadata_props} >= {"engine", "version", "license", "conversion"}
        assert not {node.op_type for node in model.graph.node} & {"Constant", "InstanceNormalization"}
        assert path.stat().st_size < 10_000_000
    assert "MIT License" in extraction_models[2].read_text(encoding="utf-8")


def test_networks_that_disagree_with_torch_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = extraction_export._share_constants

    def spoil(graph: Any) -> None:
        share(graph)
        next(node for node in graph.node if node.op_type == "Sigmoid").op_type = "Relu"

    monkeypatch.setattr(extraction_export, "_share_constants", spoil)
    with pytest.raises(ParityError, match="brain-extraction-box"):
        export_brain_extraction(tmp_path)


def test_the_cache_is_filled_once_and_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []

    def export(out_dir: Path) -> list[Path]:
        calls.append(out_dir)
        if len(calls) == 1:
            raise ParityError("the first attempt fails half-way")
        paths = [out_dir / name for name, *_ in extraction_export.NETWORKS]
        paths.append(out_dir / LICENSE_FILE)
        for path in paths:
            path.write_text("network")
        return paths

    monkeypatch.setattr(extraction_export, "export_brain_extraction", export)
    with pytest.raises(ParityError):
        cached_brain_extraction()
    assert not list((tmp_path / "ssclf").iterdir())
    first = cached_brain_extraction()
    assert all(path.is_file() for path in first)
    assert first == cached_brain_extraction() == cached_brain_extraction(tmp_path / "ssclf")
    assert len(calls) == 2
    assert [path.name for path in (tmp_path / "ssclf").iterdir()] == [first[0].parent.name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="XDG_CACHE_HOME"):
        cached_brain_extraction(tmp_path / "file")


def test_without_deepbet_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extraction_export, "distribution", missing)
    with pytest.raises(MissingDependencyError, match=r"ssclf\[train\]"):
        cached_brain_extraction(tmp_path)


def dice(one: Mask, other: Mask) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))


@pytest.mark.parametrize(
    "heads", [slice(0, 1), pytest.param(slice(1, None), marks=pytest.mark.soak)], ids=["one", "others"]
)
def test_the_same_brain_as_deepbets_own(
    heads: slice, extraction_models: list[Path], shared_data: Path
) -> None:
    deepbet = pytest.importorskip("deepbet")
    own = deepbet.BrainExtraction(no_gpu=True)
    extractor = BrainExtractor(extraction_models, threads=2)
    for head in sorted((shared_data / "head" / "ixi").glob("*_T1.nii.gz"))[heads]:
        labels = read_nifti(head.with_name(head.name.replace("_T1", "_T1_DLMUSE"))).data[0] > 0
        ours = extract_brain(read_nifti(head), "deepbet", extractor=extractor)
        theirs = np.asarray(own.run(nib.load(head))[1].dataobj).transpose(2, 1, 0) > 0
        assert abs(dice(ours, labels) - dice(theirs, labels)) <= 0.002
        assert np.count_nonzero(ours != theirs) <= 1e-4 * np.count_nonzero(theirs)


def convert_as_version_1(source: Path, target: Path) -> None:
    """What bundles of earlier versions hold: three-dimensional operators, sizes left open, a sigmoid at the end."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.jit.load(str(source), map_location="cpu").eval(),
            (torch.zeros(1, 1, 64, 64, 64),),
            str(target),
            dynamo=False,
            opset_version=17,
            input_names=["head"],
            output_names=["brain"],
            dynamic_axes={"head": {2: "x", 3: "y", 4: "z"}, "brain": {2: "x", 3: "y", 4: "z"}},
        )
    model = onnx.load(target)
    convolution, softmax = list(model.graph.node)[-2:]
    for initializer in model.graph.initializer:
        if initializer.name in convolution.input[1:]:
            values = onnx.numpy_helper.to_array(initializer)
            axis = 1 if values.ndim == 5 else 0
            difference = np.take(values, [1], axis) - np.take(values, [0], axis)
            initializer.CopyFrom(onnx.numpy_helper.from_array(difference, initializer.name))
    softmax.op_type = "Sigmoid"
    del softmax.attribute[:]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    del model.graph.value_info[:]
    onnx.helper.set_model_props(model, {"engine": "deepbet", "version": "1.0.2", "license": "MIT"})
    onnx.save(model, target)


def test_networks_of_earlier_bundles_find_the_same_brain(
    tmp_path: Path, extraction_models: list[Path], make_volume: Callable[..., Volume]
) -> None:
    _, sources = extraction_export._installed_networks()
    for (name, *_), source in zip(extraction_export.NETWORKS, sources, strict=True):
        convert_as_version_1(source, tmp_path / name)
    volume = make_volume()
    before = extract_brain(volume, "deepbet", extractor=BrainExtractor(sorted(tmp_path.iterdir())))
    now = extract_brain(volume, "deepbet", extractor=BrainExtractor(extraction_models))
    assert before.any()
    assert np.count_nonzero(before != now) <= 1e-3 * np.count_nonzero(before)
