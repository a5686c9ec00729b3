"""The paper's three networks and a small one of our own, for any number of channels and classes.

Source: Chatterjee et al., Sec. 2.1: torchvision's 18-layer video networks with slices in place of frames. The small one
is plain: eight 3×3×3 convolutions, each with batch normalisation, which halve the grid three times.
"""

from __future__ import annotations

import itertools
from typing import TypeVar, cast

from torch import Tensor, nn

from ssclf.config import Architecture, PaperArchitecture, check_choice
from ssclf.errors import ConfigError
from ssclf.learning.vision import video_models

#: Names in torchvision. Its Kinetics-400 weights carry them too.
TORCHVISION_NAMES: dict[PaperArchitecture, str] = {
    "r2plus1d": "r2plus1d_18",
    "mc3": "mc3_18",
    "r3d": "r3d_18",
}


#: Channels of the small network's stages.
_SMALL = (16, 16, 32, 64, 128)
#: Stages that `VolumeNetwork.freeze` counts.
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


Network = TypeVar("Network", bound="VolumeNetwork")


class VolumeNetwork(nn.Module):
    """A video network that also tells where its logits come from.

    Parameters carry torchvision's names (`stem.*`, `layer1.*` … `layer4.*`, `fc.*`), so that its state dicts
    load. Volumes may have any size; in training, batch normalisation needs more than one value per channel.
    """

    def __init__(self, backbone: nn.Module, *, channels: int, dropout: float) -> None:
        """Take the layers of a torchvision `VideoResNet`, or of one with such stages, with a new first convolution for
        `channels`."""
        super().__init__()
        self.stem = cast(nn.Sequential, backbone.stem)
        self.stem[0] = _with_channels(cast(nn.Conv3d, self.stem[0]), channels)
        self.layer1 = cast(nn.Sequential, backbone.layer1)
        self.layer2 = cast(nn.Sequential, backbone.layer2)
        self.layer3 = cast(nn.Sequential, backbone.layer3)
        self.layer4 = cast(nn.Sequential, backbone.layer4)
        self.dropout = nn.Dropout(dropout)
        self.fc = cast(nn.Linear, backbone.fc)
        #: Modules, by name, that hold random weights still where others were loaded.
        self.random: tuple[str, ...] = ()
        self._frozen: tuple[nn.Module, ...] = ()
        self._free: tuple[nn.Module, ...] = ()

    def freeze(self, stages: int) -> None:
        """Keep the weights of the first stages, and the averages of their normalisation, in training too. Modules in
        `random` have none to keep.

        Args:
            stages: 0 to 5; 5 leaves the linear layer to train.
        """
        self._frozen = tuple(getattr(self, name) for name in STAGES[:stages])
        self._free = tuple(self.get_submodule(name) for name in self.random)
        for stage in self._frozen:
            stage.requires_grad_(False)
        for module in self._free:
            module.requires_grad_(True)

    def train(self: Network, mode: bool = True) -> Network:
        """As torch's; frozen stages stay as they are used later."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        for module in self._free:
            module.train(mode)
        return self

    def features(self, volumes: Tensor) -> Tensor:
        """Volumes (N, C, D, H, W) to the last feature map (N, F, d, h, w)."""
        return cast(Tensor, self.layer4(self.layer3(self.layer2(self.layer1(self.stem(volumes))))))

    def forward(self, volumes: Tensor) -> Tensor:
        """Volumes (N, C, D, H, W) to logits (N, K)."""
        return cast(Tensor, self.fc(self.dropout(self.features(volumes).mean(dim=(2, 3, 4)))))


def build_network(
    architecture: Architecture, *, channels: int, classes: int, dropout: float = 0.3
) -> VolumeNetwork:
    """Build a network with random weights, drawn from torch's global generator.

    Args:
        architecture: which of the four.
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
    if architecture == "small":
        backbone: nn.Module = _Small(classes)
    else:
        backbone = getattr(video_models, TORCHVISION_NAMES[architecture])(weights=None, num_classes=classes)
    return VolumeNetwork(backbone, channels=channels, dropout=dropout)


class _Small(nn.Module):
    """Stages of plain convolutions, named as torchvision's."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        first, second, *deeper = _SMALL
        self.stem = _plain(1, first)
        self.layer1 = _plain(first, second)
        for position, (before, after) in enumerate(itertools.pairwise((second, *deeper)), 2):
            self.add_module(f"layer{position}", _plain(before, after, after))
        self.fc = nn.Linear(deeper[-1], classes)


def _plain(*channels: int) -> nn.Sequential:
    """A convolution from each number of channels to the next; where there are several, the first halves the grid."""
    layers: list[nn.Module] = []
    for position, (before, after) in enumerate(itertools.pairwise(channels)):
        stride = 2 if position == 0 and len(channels) > 2 else 1
        convolution = nn.Conv3d(before, after, 3, stride, 1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm3d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


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
