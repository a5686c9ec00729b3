from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssclf.config import Architecture, TrainConfig
from ssclf.domain.scores import softmax
from ssclf.domain.series_rules import SeriesRule
from ssclf.errors import ConfigError, ModelError, OutputError, ParityError
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.runtime import open_classifier
from ssclf.learning.exporting import ExportedNetwork, check_parity
from ssclf.learning.networks import build_network
from ssclf.workflows.export import ExportConfig, export_run, read_run
from ssclf.workflows.train import Machine, train

TINY = TrainConfig(
    epochs=1, learning_rate=1e-3, batch_size=3, holdout=0.34, precision="32-true", augmentation="none"
)


@pytest.fixture
def finished_run(preprocessed: Callable[..., Path], tmp_path: Path) -> Callable[[Architecture], Path]:
    torch.set_num_threads(1)

    def make(architecture: Architecture) -> Path:
        config = dataclasses.replace(TINY, architecture=architecture)
        data = preprocessed(per_class=3, contrasts=("t1ce",))
        return train(data, tmp_path / "run", config, machine=Machine(device="cpu", workers=0)).run

    return make


@pytest.mark.parametrize("architecture", ["mc3", "r2plus1d", "r3d"])
def test_a_bundle_computes_what_the_network_computes(
    architecture: Architecture, finished_run: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    run = finished_run(architecture)
    out = export_run(run, tmp_path / "exported" / "model", ExportConfig(brain_extraction=False))
    bundle = open_bundle(out)
    network, spec = read_run(run, name="model")
    assert bundle.spec == spec
    assert spec.synthetic
    assert bundle.onnx and bundle.torchscript
    volumes = np.random.default_rng(1).random((2, 1, 7, 33, 21), np.float32)
    with torch.inference_mode():
        maps = network.features(torch.from_numpy(volumes))
        cam = torch.einsum("kc,ncdhw->nkdhw", network.fc.weight, maps).numpy()
        logits = network(torch.from_numpy(volumes)).numpy()
    alone = [open_bundle(path) for path in (bundle.onnx, bundle.torchscript)]
    assert [b.spec for b in alone] == [spec, spec]
    for each, engine in (
        (bundle, "onnx"),
        (bundle, "torchscript"),
        (alone[0], "auto"),
        (alone[1], "torchscript"),
    ):
        output = open_classifier(each, engine=engine, device="cpu", threads=2).classify(volumes)  # type: ignore[arg-type]
        np.testing.assert_allclose(softmax(output.logits), softmax(logits), atol=1e-4)
        np.testing.assert_allclose(output.cam, cam, atol=1e-4)
        assert output.features is not None and output.features.shape == (2, 512)
    with pytest.raises(ModelError, match="--engine torchscript"):
        open_classifier(alone[1], engine="auto")
    for path in (bundle.onnx, bundle.torchscript):
        # the exporters note where each operation stands in the source
        assert b"site-packages" not in path.read_bytes() and bytes(Path.cwd()) not in path.read_bytes()
    card = (out / "MODEL_CARD.md").read_text()
    assert "synthetic" in card and "Research use only" in card
    assert {p.name for p in out.iterdir()} == {
        "model.onnx", "model.torchscript.pt", "spec.json", "MODEL_CARD.md", "SHA256SUMS",
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ["mc3", "r2plus1d"])
def test_half_precision_is_half_the_size_and_close(
    architecture: Architecture, finished_run: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    run = finished_run(architecture)
    rules = (SeriesRule("of the model", slices=9),)
    config = ExportConfig(formats=["onnx"], precision="fp16", brain_extraction=False, series_rules=rules)
    out = export_run(run, tmp_path / "half", config)
    assert open_bundle(out).spec.answered_series == rules and open_bundle(out).precision == "fp16"
    network, _ = read_run(run, name="model")
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert 2 * weights < (out / "model.onnx").stat().st_size < 2.2 * weights
    volumes = np.random.default_rng(1).random((2, 1, 7, 33, 21), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(volumes)).numpy()
    output = open_classifier(open_bundle(out), device="cpu", threads=2).classify(volumes)
    np.testing.assert_allclose(softmax(output.logits), softmax(expected), atol=2e-3)
    assert output.logits.dtype == output.cam.dtype == np.float32


@pytest.mark.parametrize("architecture", ["mc3", "small"])
def test_weights_stored_in_half_compute_in_whole_numbers(
    architecture: Architecture, finished_run: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    run = finished_run(architecture)
    onnx_only = ExportConfig(formats=["onnx"], precision="fp16-storage", brain_extraction=False)
    bundle = open_bundle(export_run(run, tmp_path / "stored", onnx_only))
    network, _ = read_run(run, name="model")
    assert bundle.onnx and bundle.precision == "fp32"  # as rows say, what it computes in
    size, weights = bundle.onnx.stat().st_size, sum(p.numel() for p in network.parameters())
    assert 2 * weights < size < 2.2 * weights and size < 25e6
    volumes = np.random.default_rng(1).random((2, 1, 7, 33, 21), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(volumes)).numpy()
    output = open_classifier(bundle, device="cpu", threads=2).classify(volumes)
    np.testing.assert_allclose(softmax(output.logits), softmax(expected), atol=2e-3)
    # activations of 16 bits would overflow here, or lose what is added to so much
    far = open_classifier(bundle, device="cpu", threads=2).classify(volumes * 1e6)
    with torch.inference_mode():
        whole = network(torch.from_numpy(volumes * 1e6)).numpy()
    np.testing.assert_allclose(far.logits, whole, rtol=0.01, atol=0.01 * np.abs(whole).max())


def test_parity_fails_for_another_function() -> None:
    torch.manual_seed(0)
    module = ExportedNetwork(build_network("mc3", channels=2, classes=3)).eval()

    def run(volume: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            return tuple(output.numpy() for output in module(torch.from_numpy(volume)))

    check_parity(module, 2, run, "model.onnx")
    for position, name in enumerate(("probabilities|logits", "cam", "features")):

        def corrupt(volume: np.ndarray, position: int = position) -> tuple[np.ndarray, ...]:
            outputs = list(run(volume))
            outputs[position] = outputs[position] * (1.01 if volume.shape[2] > 9 else 1)
            return tuple(outputs)

        with pytest.raises(ParityError, match=name):
            check_parity(module, 2, corrupt, "model.onnx")
    with pytest.raises(ParityError):
        check_parity(module, 2, lambda v: tuple(np.full_like(o, np.nan) for o in run(v)), "model.onnx")


def test_a_failed_parity_leaves_nothing(
    finished_run: Callable[[Architecture], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an engine that computes something else: the seam is what opens ONNX sessions
    class Wrong:
        def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            n = len(inputs["volume"])
            return [np.zeros((n, 3)), np.zeros((n, 3, 1, 1, 1)), np.zeros((n, 512))]

    monkeypatch.setattr("ssclf.learning.exporting.open_session", lambda *arguments: Wrong())
    with pytest.raises(ParityError, match=r"model\.onnx"):
        export_run(
            finished_run("mc3"),
            tmp_path / "exported" / "model",
            ExportConfig(formats=["onnx"], brain_extraction=False),
        )
    assert list((tmp_path / "exported").iterdir()) == []


def test_what_cannot_be_exported_is_explained(
    finished_run: Callable[[Architecture], Path], tmp_path: Path
) -> None:
    run = finished_run("mc3")
    with pytest.raises(ModelError, match="expected the folder of a run"):
        export_run(tmp_path / "nowhere", tmp_path / "model")
    with pytest.raises(OutputError, match="exists already"):
        export_run(run, run)
    with pytest.raises(ConfigError, match="precision"):
        ExportConfig(precision="int8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="format"):
        ExportConfig(formats=[])
    (run / "checkpoints" / "chosen.pt").unlink()
    with pytest.raises(ModelError, match="--resume"):
        export_run(run, tmp_path / "model")
