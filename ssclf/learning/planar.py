"""The same network with 2-D convolutions alone, for which ONNX Runtime has its fast blocked kernels on CPUs.

Slices lie in the batch, (N·D, C, H, W). A kernel of (1, k, k) then is a 2-D one as it stands. For (3, k, k) each
slice gets its neighbours as further channels, zeros beyond the ends. For (3, 1, 1) the planes are (D, H·W), which
moves less memory than three times the channels. What is computed, and from which weights, is the same; only the
order of summation differs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ssclf.learning.networks import VolumeNetwork


class PlanarNetwork(nn.Module):
    """A trained `VolumeNetwork` in eval mode as a function of planes; weights are copied, normalisation folded."""

    def __init__(self, network: VolumeNetwork) -> None:
        super().__init__()
        stages = (network.stem, network.layer1, network.layer2, network.layer3, network.layer4)
        self.stages = nn.ModuleList(_planar(stage) for stage in stages)
        self.fc = network.fc

    def features(self, volume: Tensor) -> Tensor:
        """Volumes (N, C, D, H, W) to the last feature map (N, F, d, h, w)."""
        count, _, depth = volume.shape[:3]
        planes = volume.transpose(1, 2).flatten(0, 1)
        for stage in self.stages:
            planes, depth = stage(planes, depth)
        return planes.unflatten(0, (count, depth)).transpose(1, 2)


class PlanarStem(nn.Module):
    """The same network whose stem alone is a function of planes, which is what suits integers.

    ONNX Runtime's kernels for 8 bits gather a convolution's input byte by byte where it has one channel; with the
    neighbouring slices as channels the stem takes a ninth of the time. Behind it 3-D kernels are the faster ones.
    """

    def __init__(self, network: VolumeNetwork) -> None:
        super().__init__()
        self.stem = _planar(network.stem)
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        self.fc = network.fc

    def features(self, volume: Tensor) -> Tensor:
        """Volumes (N, C, D, H, W) to the last feature map (N, F, d, h, w)."""
        count, _, depth = volume.shape[:3]
        planes, depth = self.stem(volume.transpose(1, 2).flatten(0, 1), depth)
        maps = planes.unflatten(0, (count, depth)).transpose(1, 2)
        return cast(Tensor, self.layer4(self.layer3(self.layer2(self.layer1(maps)))))


class _Convolution(nn.Module):
    """A 3-D convolution with the batch normalisation and the ReLU behind it."""

    def __init__(self, convolution: nn.Conv3d, norm: nn.BatchNorm3d, *, relu: bool) -> None:
        super().__init__()
        fused = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            cast(Tensor, norm.running_mean),
            cast(Tensor, norm.running_var),
            norm.eps,
            norm.weight,
            norm.bias,
        )
        weight, bias = (parameter.detach() for parameter in fused)
        self.depth, *plane = weight.shape[2:]
        self.depth_stride, *self.stride = convolution.stride
        self.padding = [int(padding) for padding in convolution.padding[1:]]
        assert self.depth in (1, 3) and convolution.padding[0] == self.depth // 2
        self.columns = self.depth == 3 and plane == [1, 1]
        # (O, C, 3, 1, 1) to (O, C, 3, 1), or (O, C, depth, k, k) to (O, depth · C, k, k), slice below first
        flat = weight.flatten(3) if self.columns else weight.transpose(1, 2).flatten(1, 2)
        self.weight = nn.Parameter(flat, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.relu = relu

    def forward(self, planes: Tensor, depth: int) -> tuple[Tensor, int]:
        after = (depth - 1) // self.depth_stride + 1
        if self.columns:
            height, width = planes.shape[2:]
            columns = planes.unflatten(0, (-1, depth)).flatten(3).transpose(1, 2)  # (N, C, D, H·W)
            columns = F.conv2d(columns, self.weight, self.bias, (self.depth_stride, 1), (1, 0))
            planes = columns.transpose(1, 2).flatten(0, 1).unflatten(2, (height, width))
        else:
            if self.depth == 3 or self.depth_stride > 1:
                planes = self._stack(planes.unflatten(0, (-1, depth)))
            planes = F.conv2d(planes, self.weight, self.bias, self.stride, self.padding)
        return F.relu(planes) if self.relu else planes, after

    def _stack(self, slices: Tensor) -> Tensor:
        """(N, D, C, H, W) to (N·d, C, H, W), or to (N·d, 3 · C, H, W) with the slices below and above."""
        if self.depth == 1:
            return slices[:, :: self.depth_stride].flatten(0, 1)
        padded = F.pad(slices, (0, 0, 0, 0, 0, 0, 1, 1))
        first = torch.arange(0, slices.shape[1], self.depth_stride, device=slices.device)
        neighbours = (first[:, None] + torch.arange(3, device=slices.device)).flatten()
        # one Gather: a concatenation of three slices copies everything twice
        return padded.index_select(1, neighbours).unflatten(1, (-1, 3)).flatten(2, 3).flatten(0, 1)


class _Chain(nn.Module):
    def __init__(self, links: list[nn.Module]) -> None:
        super().__init__()
        self.links = nn.ModuleList(links)

    def forward(self, planes: Tensor, depth: int) -> tuple[Tensor, int]:
        for link in self.links:
            planes, depth = link(planes, depth)
        return planes, depth


class _Block(nn.Module):
    """torchvision's `BasicBlock`: two convolutions and a way past them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.main = _Chain([_planar(block.conv1), _planar(block.conv2)])
        self.past = _planar(block.downsample) if block.downsample is not None else None

    def forward(self, planes: Tensor, depth: int) -> tuple[Tensor, int]:
        main, after = self.main(planes, depth)
        past = self.past(planes, depth)[0] if self.past is not None else planes
        return F.relu(main + past), after


def _planar(module: nn.Sequential) -> nn.Module:
    """Translate a sequence of blocks, or of convolutions each with its normalisation and ReLU."""
    layers = list(_flat(module))
    if not any(isinstance(layer, nn.Conv3d) for layer in layers):
        return _Chain([_Block(block) for block in layers])
    links: list[nn.Module] = []
    for position, layer in enumerate(layers):
        if isinstance(layer, nn.Conv3d):
            relu = layers[position + 2 : position + 3]
            links.append(_Convolution(layer, cast(nn.BatchNorm3d, layers[position + 1]), relu=bool(relu)))
    return _Chain(links)


def _flat(module: nn.Module) -> list[nn.Module]:
    """Members of nested sequences, in order; blocks stay whole."""
    if not isinstance(module, nn.Sequential):
        return [module]
    return [layer for member in module for layer in _flat(member)]
