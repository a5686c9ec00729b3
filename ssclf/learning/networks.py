"""The paper's three networks, for any number of channels and classes.

Source: Chatterjee et al., Sec. 2.1: torchvision's 18-layer video networks with slices in place of frames.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ssclf.config import Architecture, check_choice
from ssclf.errors import ConfigError
from ssclf.learning.vision import video_models

#: Names in torchvision. Its Kinetics-400 weights carry them too.
TORCHVISION_NAMES: dict[Architecture, str] = {
    "r2plus1d": "r2plus1d_18",
    "mc3": "mc3_18",
    "r3d": "r3d_18",
}


class VolumeNetwork(nn.Module):
    """A torchvision video network that also tells where its logits come from.

    Parameters carry torchvision's names (`stem.*`, `layer1.*` … `layer4.*`, `fc.*`), so that its state dicts
    load. Volumes may have any size; in training, batch normalisation needs more than one value per channel.
    """

    def __init__(self, backbone: nn.Module, *, channels: int, dropout: float) -> None:
        """Take the layers of a torchvision `VideoResNet`, with a new first convolution for `channels`."""
        super().__init__()
        self.stem = cast(nn.Sequential, backbone.stem)
        self.stem[0] = _with_channels(cast(nn.Conv3d, self.stem[0]), channels)
        self.layer1 = cast(nn.Sequential, backbone.layer1)
        self.layer2 = cast(nn.Sequential, backbone.layer2)
        self.layer3 = cast(nn.Sequential, backbone.layer3)
        self.layer4 = cast(nn.Sequential, backbone.layer4)
        self.dropout = nn.Dropout(dropout)
        self.fc = cast(nn.Linear, backbone.fc)

    def features(self, volumes: Tensor) -> Tensor:
        """Volumes (N, C, D, H, W) to the last feature map (N, 512, d, h, w)."""
        return cast(Tensor, self.layer4(self.layer3(self.layer2(self.layer1(self.stem(volumes))))))

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (N, C, D, H, W) to logits (N, K)."""
        return cast(Tensor, self.fc(self.dropout(self.features(volumes).mean(dim=(2, 3, 4)))))


def build_network(
    architecture: Architecture, *, channels: int, classes: int, dropout: float = 0.3
) -> VolumeNetwork:
    """Build a network with random weights, drawn from torch's global generator.

    Args:
        architecture: which of the three.
        channels: number of contrasts, at least 1.
        classes: number of classes, at least 2.
        dropout: probability of dropping a feature before the linear layer.

    Raises:
        ConfigError: an unknown architecture, or a number out of range.
    """
    check_choice("architecture", architecture, Architecture)
    if channels < 1 or classes < 2 or not 0 <= dropout < 1:
        raise ConfigError(
            "network: expected at least 1 channel, at least 2 classes and a dropout from 0 to below 1, "
            f"found {channels} channels, {classes} classes and a dropout of {dropout}."
        )
    backbone = getattr(video_models, TORCHVISION_NAMES[architecture])(weights=None, num_classes=classes)
    return VolumeNetwork(backbone, channels=channels, dropout=dropout)


def _with_channels(convolution: nn.Conv3d, channels: int) -> nn.Conv3d:
    """The same convolution for another number of input channels, initialised as torchvision does."""
    replacement = nn.Conv3d(
        channels,
        convolution.out_channels,
        kernel_size=cast(tuple[int, int, int], convolution.kernel_size),
        stride=cast(tuple[int, int, int], convolution.stride),
        padding=cast(tuple[int, int, int], convolution.padding),
        bias=False,
    )
    nn.init.kaiming_normal_(replacement.weight, mode="fan_out", nonlinearity="relu")
    return replacement
