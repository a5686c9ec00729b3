from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ssclf.config import Architecture, PaperArchitecture
from ssclf.errors import ConfigError
from ssclf.learning.exporting import ExportedNetwork
from ssclf.learning.networks import STAGES, TORCHVISION_NAMES, build_network
from ssclf.learning.vision import video_models

OF_THE_PAPER: tuple[PaperArchitecture, ...] = ("r2plus1d", "mc3", "r3d")
ARCHITECTURES: tuple[Architecture, ...] = (*OF_THE_PAPER, "small")


@pytest.mark.parametrize(
    ("architecture", "expected"), [("r2plus1d", 31_297_254), ("mc3", 11_472_963), ("r3d", 33_148_995)]
)
def test_trainable_parameters_are_those_of_the_paper(architecture: Architecture, expected: int) -> None:
    network = build_network(architecture, channels=1, classes=3)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("channels", "classes", "shape"), [(1, 3, (5, 9, 12)), (4, 2, (17, 8, 11))])
def test_logits_are_the_mean_of_the_activation_map_plus_bias(
    architecture: Architecture, channels: int, classes: int, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    network = build_network(architecture, channels=channels, classes=classes).eval()
    torch.nn.init.normal_(network.fc.bias)
    volumes = torch.rand(2, channels, *shape)
    with torch.no_grad():
        logits, cam, _ = ExportedNetwork(network)(volumes)
        torch.testing.assert_close(network(volumes), logits)
    assert logits.shape == (2, classes)
    assert cam.shape[:2] == (2, classes)
    assert logits.std() > 1e-3
    torch.testing.assert_close(cam.mean(dim=(2, 3, 4)) + network.fc.bias, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", OF_THE_PAPER)
def test_with_three_channels_it_is_the_torchvision_network(architecture: PaperArchitecture) -> None:
    torch.manual_seed(0)
    reference = getattr(video_models, TORCHVISION_NAMES[architecture])(weights=None, num_classes=5).eval()
    network = build_network(architecture, channels=3, classes=5).eval()
    network.load_state_dict(reference.state_dict())
    volumes = torch.rand(2, 3, 6, 10, 14)
    with torch.no_grad():
        torch.testing.assert_close(network(volumes), reference(volumes), atol=1e-5, rtol=1e-5)


def test_the_small_network_halves_the_grid_three_times() -> None:
    network = build_network("small", channels=2, classes=3).eval()
    assert network.features(torch.rand(1, 2, 16, 24, 40)).shape == (1, 128, 2, 3, 5)
    assert sum(isinstance(module, torch.nn.Conv3d) for module in network.modules()) == 8


@pytest.mark.parametrize("architecture", ["mc3", "small"])
@pytest.mark.parametrize("stages", range(6))
def test_frozen_stages_stay_as_they_are(architecture: Architecture, stages: int) -> None:
    torch.manual_seed(0)
    network = build_network(architecture, channels=1, classes=3)
    network.freeze(stages)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    network.train()
    network(torch.rand(3, 1, 9, 17, 18)).square().sum().backward()
    optimizer.step()
    frozen = tuple(f"{name}." for name in STAGES[:stages])
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) or not key.startswith(frozen), key
    changed = {
        key.split(".")[0]
        for key, value in network.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert changed == {*STAGES[stages:], "fc"}


def test_dropout_acts_on_training_only() -> None:
    torch.manual_seed(0)
    network = build_network("mc3", channels=1, classes=3, dropout=0.5)
    network.dropout.train()
    for module in (network.stem, network.layer1, network.layer2, network.layer3, network.layer4):
        module.eval()
    volumes = torch.rand(1, 1, 4, 9, 8)
    with torch.no_grad():
        assert not torch.equal(network(volumes), network(volumes))
        network.eval()
        assert torch.equal(network(volumes), network(volumes))


@pytest.mark.parametrize(
    "arguments",
    [
        {"architecture": "resnet", "channels": 1, "classes": 3},
        {"architecture": "mc3", "channels": 0, "classes": 3},
        {"architecture": "mc3", "channels": 1, "classes": 1},
        {"architecture": "mc3", "channels": 1, "classes": 3, "dropout": 1.0},
    ],
)
def test_impossible_networks_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        build_network(**arguments)  # type: ignore[arg-type]


def test_torchvision_is_usable_after_our_import() -> None:
    # A CUDA-built torchvision beside a CPU torch fails on import. A fresh process, since modules stay loaded.
    code = (
        "import ssclf.learning.vision, torch, torchvision;"
        "assert torchvision.models.video is ssclf.learning.vision.video_models;"
        "assert hasattr(torch.ops.torchvision, 'nms')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
