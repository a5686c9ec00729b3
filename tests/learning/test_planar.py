from __future__ import annotations

import pytest
import torch
from torch import nn

from ssclf.config import Architecture
from ssclf.learning.networks import build_network
from ssclf.learning.planar import PlanarNetwork


@pytest.mark.parametrize("architecture", ["mc3", "r2plus1d", "r3d", "small"])
@pytest.mark.parametrize(
    ("channels", "shape"), [(1, (1, 9, 21, 16)), (3, (2, 12, 8, 33)), (1, (3, 1, 3, 2)), (2, (2, 2, 17, 9))]
)
def test_planes_compute_what_volumes_compute(
    architecture: Architecture, channels: int, shape: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    network = build_network(architecture, channels=channels, classes=3).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.3)  # type: ignore[union-attr]
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    planar = PlanarNetwork(network).eval()
    volumes = torch.rand(shape[0], channels, *shape[1:])
    with torch.no_grad():
        expected, found = network.features(volumes), planar.features(volumes)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, nn.Conv3d) for module in planar.modules())
