"""Weights of MedicalNet and 3D-Neuro-SimCLR. The published files are not here: networks with their layers stand for
them, random weights in files of their layouts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import ForeignWeights
from ssclf.errors import ModelError
from ssclf.io.models.bundle import open_bundle
from ssclf.io.records.training_run import CHOSEN, PROVENANCE
from ssclf.learning.checkpoints import load_checkpoint
from ssclf.learning.foreign_weights import convert_weights
from ssclf.learning.networks import VolumeNetwork, build_network
from ssclf.learning.pretrained import import_foreign, load_pretrained, verify_foreign

KINDS: tuple[ForeignWeights, ...] = ("medicalnet", "neuro-simclr")
NAMES = {"medicalnet": "resnet_18.pth", "neuro-simclr": "checkpoint_990.tar"}
SHORTCUTS = {f"layer{number}.0.downsample" for number in (2, 3, 4)}


class Block(nn.Module):
    """`BasicBlock` of MedicalNet's models/resnet.py; `ResNetBlock` of 3D-Neuro-SimCLR's simclr/modules/resnet.py."""

    def __init__(
        self, before: int, after: int, stride: int, dilation: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(before, after, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm3d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv3d(after, after, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm3d(after)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        rest: Tensor = self.downsample(x) if self.downsample else x
        return self.relu(out + rest)


class ResNet(nn.Module):
    """Both papers' ResNet-18 (10, 34 with other counts) as far as `layer4`, by the kind's strides and shortcuts.

    MedicalNet: shortcut A, which has no weights (forward is left out where it is one), `layer3` and `layer4` dilated.
    3D-Neuro-SimCLR: shortcut B, whose convolution has a bias.
    """

    def __init__(self, kind: ForeignWeights, counts: tuple[int, ...] = (2, 2, 2, 2)) -> None:
        super().__init__()
        medical = kind == "medicalnet"
        self.conv1 = nn.Conv3d(1, 64, 7, 2 if medical else 1, 3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        before = 64
        for number, count in enumerate(counts):
            after, dilation = 64 * 2**number, (1, 1, 2, 4)[number] if medical else 1
            stride = 1 if number == 0 or dilation > 1 else 2
            projection = None
            if not medical and number:
                projection = nn.Sequential(nn.Conv3d(before, after, 1, stride), nn.BatchNorm3d(after))
            blocks = [Block(before, after, stride, dilation, projection)]
            blocks += [Block(after, after, 1, dilation, None) for _ in range(count - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            before = after


def write_published(folder: Path, kind: ForeignWeights, **how: Any) -> tuple[Path, ResNet]:
    """A file in the kind's layout, and the network that it holds, in use: statistics are none that it began with."""
    torch.manual_seed(5)
    network = ResNet(kind, **how)
    for values in [*network.buffers(), *network.parameters()]:
        if not values.dtype.is_floating_point:
            values.fill_(11)
        elif values.ndim == 1:
            values.data.copy_(torch.rand_like(values) + 0.5)
    path = folder / NAMES[kind]
    if kind == "medicalnet":  # as torch 0.4 wrote it, from several GPUs
        state = {f"module.{key}": value for key, value in network.state_dict().items()}
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
        return path, network.eval()
    projector = nn.Sequential(nn.Linear(512, 512, bias=False), nn.ReLU(), nn.Linear(512, 64, bias=False))
    whole = nn.ModuleDict({"encoder": network, "projector": projector})
    state = {f"module.{key}": value for key, value in whole.state_dict().items()}
    optimizer = torch.optim.Adam(whole.parameters()).state_dict()
    torch.save({"epoch": 990, "model_state_dict": state, "optimizer_state_dict": optimizer}, path)
    return path, network.eval()


@pytest.fixture(autouse=True)
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("SSCLF_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def r3d() -> VolumeNetwork:
    torch.manual_seed(9)
    return build_network("r3d", channels=2, classes=3).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_computes_what_it_did_and_the_rest_is_named(kind: ForeignWeights, tmp_path: Path) -> None:
    path, theirs = write_published(tmp_path, kind)
    made, found = import_foreign(path, kind)
    ours, before = r3d(), {key: value.clone() for key, value in r3d().state_dict().items()}
    about = load_pretrained(ours, "r3d", path=made).about
    random = {"stem.0", "stem.1"}
    if kind == "medicalnet":
        random |= {f"{name}.{part}" for name in SHORTCUTS for part in (0, 1)}
        assert found.left == tuple(
            f"module.{name}" for name in theirs.state_dict() if name.startswith(("conv1", "bn1"))
        )
    else:
        assert {"module.encoder.conv1.weight", "module.projector.0.weight"} < set(found.left)
    assert set(ours.random) == random
    assert {name.rpartition(".")[0] for name in found.missing} == random
    for key, value in ours.state_dict().items():
        fresh = key.startswith("fc.") or key.rpartition(".")[0] in random
        assert torch.equal(value, before[key]) == fresh, key
    volumes = torch.randn(2, 64, 4, 7, 9)
    stages = ("layer1",) if kind == "medicalnet" else ("layer1", "layer2", "layer3", "layer4")
    with torch.no_grad():
        expected, computed = volumes, volumes
        for stage in stages:
            expected, computed = getattr(theirs, stage)(expected), getattr(ours, stage)(computed)
    torch.testing.assert_close(computed, expected)
    fresh_count = sum(
        values.numel()
        for key, values in ours.named_parameters()
        if key.startswith("fc.") or key.rpartition(".")[0] in random
    )
    total = sum(values.numel() for values in ours.parameters())
    assert (about["parameters"], about["of"]) == (total - fresh_count, total)
    assert (about["kind"], about["file"]) == (kind, NAMES[kind])
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_what_was_brought_is_kept(tmp_path: Path) -> None:
    """Frozen random layers would hide what those behind them have learnt."""
    made, _ = import_foreign(write_published(tmp_path, "medicalnet")[0], "medicalnet")
    network = r3d()
    load_pretrained(network, "r3d", path=made)
    network.freeze(5)
    network.train()
    free = {key for key, values in network.named_parameters() if values.requires_grad}
    assert {key.partition(".downsample")[0] for key in free if key.startswith("layer")} == {
        name.removesuffix(".downsample") for name in SHORTCUTS
    }
    assert {key.partition(".")[0] for key in free} == {"stem", "layer2", "layer3", "layer4", "fc"}
    training = {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm3d) and module.training
    }
    assert training == {"stem.1", *(f"{name}.1" for name in SHORTCUTS)}


def test_other_files_are_refused(tmp_path: Path, weights_folder: Path) -> None:
    with pytest.raises(ModelError, match="found none"):
        convert_weights(tmp_path / "nowhere.pth", "medicalnet")
    for counts in ((1, 1, 1, 1), (3, 4, 6, 3)):  # resnet_10.pth, resnet_34.pth
        path, _ = write_published(tmp_path, "medicalnet", counts=counts)
        with pytest.raises(ModelError, match=r"found another network: \d+ tensors .* layer1\.[12]\.conv1\.0"):
            convert_weights(path, "medicalnet")
    path, _ = write_published(tmp_path, "neuro-simclr")
    with pytest.raises(ModelError, match="under 'state_dict', found another file"):
        convert_weights(path, "medicalnet")
    published = path.rename(tmp_path / "simclr_3d_brain_foundation.tar")
    with pytest.raises(
        ModelError, match=r"expected the SHA-256 f046dafe009d… of 3D-Neuro-SimCLR.*fetch it again"
    ):
        convert_weights(published, "neuro-simclr")
    made, _ = import_foreign(published.rename(path), "neuro-simclr")
    with pytest.raises(ModelError, match="say --model r3d"):
        load_pretrained(build_network("mc3", channels=1, classes=3), "mc3", path=made)
    with pytest.raises(ModelError, match="--stem mean: the first layer of 3D-Neuro-SimCLR"):
        load_pretrained(r3d(), "r3d", stem="mean", path=made)
    assert [found for found, _ in verify_foreign()] == [made]
    torch.save({"about": {}, "weights": {}}, tmp_path / "own.pth")
    with pytest.raises(ModelError, match="expected the weights of torchvision's r3d_18"):
        load_pretrained(r3d(), "r3d", path=tmp_path / "own.pth")
    made.write_bytes(made.read_bytes()[:-1])
    with pytest.raises(ModelError, match="expected a SHA-256 that starts with"):
        verify_foreign()


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"state_dict": Planted()}, tmp_path / "resnet_18.pth")
    with pytest.raises(ModelError, match="nothing in it was run"):
        convert_weights(tmp_path / "resnet_18.pth", "medicalnet")
    assert not (tmp_path / "ran").exists()


def ssclf(*arguments: object) -> str:
    told = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert told.exit_code == 0, told.output
    return told.output


def test_from_a_download_to_a_bundle(
    preprocessed: Callable[..., Path], tmp_path: Path, weights_folder: Path
) -> None:
    torch.set_num_threads(1)
    path, _ = write_published(tmp_path, "medicalnet")
    said = ssclf("weights", "import", path, "--kind", "medicalnet")
    (made,) = weights_folder.iterdir()
    for words in (
        "MIT",
        "https://github.com/Tencent/MedicalNet",
        "module.conv1.weight",
        "layer2.0.downsample.0",
        str(made),
    ):
        assert words in said
    verified = ssclf("weights", "verify")
    assert "resnet_18.pth; licence: MIT (Copyright 2019 THL A29" in verified and f"intact, {made}" in verified
    assert "3D-Neuro-SimCLR's ResNet-18: not here; see https://github.com/emilykaczmarek" in verified
    data, run = preprocessed(), tmp_path / "run"
    tiny = ("--data", data, "--device", "cpu", "--workers", 0, "--batch-size", 3)
    ssclf("train", *tiny, "--out", run, "--model", "r3d", "--weights", made, "--freeze", 5, "--epochs", 1)
    ssclf("train", *tiny[2:-2], "--out", run, "--resume", "--epochs", 2)
    weights = load_checkpoint(made)["weights"]
    chosen = load_checkpoint(run / CHOSEN)["network"]
    assert all(torch.equal(chosen[key], value) for key, value in weights.items()), (
        "frozen weights have changed"
    )
    torch.manual_seed(0)
    untrained = build_network("r3d", channels=1, classes=3).state_dict()
    for key in ("stem.0.weight", "layer3.0.downsample.0.weight"):
        assert not torch.equal(chosen[key], untrained[key]), f"{key}: random weights were kept"
    training = json.loads((run / PROVENANCE).read_text())["training"]
    assert training["initial_weights"] == made.name and training["starting_weights"]["kind"] == "medicalnet"
    ssclf("export", run, "--out", tmp_path / "bundle", "--no-brain-extraction", "--device", "cpu")
    assert open_bundle(tmp_path / "bundle").spec.provenance.starting_weights == training["starting_weights"]
    card = " ".join((tmp_path / "bundle" / "MODEL_CARD.md").read_text().split())
    assert "the weights of MedicalNet's ResNet-18 (resnet_18.pth, sha256" in card and "licence: MIT" in card
    about = training["starting_weights"]
    assert f"{about['parameters']:,} of {about['of']:,} parameters, the others random, at the start" in card
    # who goes on from that goes on from MedicalNet's weights
    ssclf(
        "train",
        *tiny,
        "--out",
        tmp_path / "next",
        "--from",
        tmp_path / "bundle",
        "--epochs",
        1,
        "--holdout",
        0,
    )
    training = json.loads((tmp_path / "next" / PROVENANCE).read_text())["training"]
    assert training["started_from"]["starting_weights"] == about


def test_a_cross_validation_takes_them(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    made, _ = import_foreign(write_published(tmp_path, "neuro-simclr")[0], "neuro-simclr")
    out = tmp_path / "cv"
    words = (
        "cv",
        "--data",
        preprocessed(),
        "--out",
        out,
        "--models",
        "r3d",
        "--pretrained",
        "yes",
        "--weights",
        made,
    )
    tiny = ("--folds", 2, "--only", "r3d/pretrained/1", "--epochs", 1, "--batch-size", 3, "--device", "cpu")
    ssclf(*words, *tiny, "--workers", 0)
    provenance = out / "cells" / "r3d" / "pretrained" / "1" / PROVENANCE
    assert json.loads(provenance.read_text())["training"]["starting_weights"]["kind"] == "neuro-simclr"
