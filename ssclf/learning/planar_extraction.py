"""deepbet's networks with 2-D convolutions alone, in portions of slices that fit a processor's cache.

As in `planar`, slices lie in the batch, (D, C, H, W), and a window of slices becomes the channels of a 2-D kernel.
What is computed, and from which weights, is the same; only the order of summation differs:

- An instance norm without weights scales each channel by a number above 0, so that the largest maps are pooled first
  and an eighth is normalised.
- A constant that is added before an instance norm leaves with the mean: such biases are dropped.
- A transposed convolution gives the slices between two of its input's as channels.
- softmax over two logits is the sigmoid of their difference, and that of two linear channels is one linear channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssclf.errors import ModelError

#: Channels to which ONNX Runtime fills up a convolution's output (AVX-512). With fewer, several slices are made at
#: once.
_BLOCK = 16
#: Of the windows that one convolution gets. Less fits caches better, but takes more operators, and time to load.
_PORTION_BYTES = 8 << 20
_EPSILON = 1e-5
#: Channels of deepbet's four scales.
_WIDTHS = (16, 32, 64, 128)
_TAIL = 8


class PlanarExtraction(nn.Module):
    """deepbet's `LinkNet3d` as a function of planes; weights are copied.

    The size of the head is fixed when it is traced, a multiple of 32.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Args:
            weights: the state of deepbet's network.

        Raises:
            ModelError: not the names and shapes of deepbet 1.0.
        """
        super().__init__()
        weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        _check_structure(weights)
        self.first = _Convolution(weights["init.0.weight"], stride=2)
        self.down = nn.ModuleList(
            _Down(weights, f"down{scale}", stride=min(scale + 1, 2)) for scale in range(4)
        )
        self.up = nn.ModuleList(
            _Up(weights, f"up{scale}", stride=2 if scale < 3 else 1) for scale in range(4)
        )
        self.widen = _Transposed(weights["tp_conv1.0.weight"], padding=1)
        self.smooth = _Convolution(weights["conv.0.weight"])
        logits, bias = weights["tp_conv2.weight"], weights["tp_conv2.bias"]
        self.last = _Transposed(logits[:, 1:] - logits[:, :1], padding=0, bias=bias[1:] - bias[:1])

    def forward(self, head: Tensor) -> Tensor:
        """(1, 1, D, H, W), scaled as deepbet scales it, to P(brain) of the same shape."""
        size = _sizes(head)
        planes = self._begin(head.reshape(size[2], 1, *size[3:]))
        past = []
        for down in self.down:
            past.append(planes)
            planes = down(planes)
        for up, skipped in zip(self.up, [*past[:0:-1], past[0]], strict=True):
            planes = up(planes) + skipped
        fine = [F.relu(part) for part in _normalise(self.widen([planes]))]
        fine = [F.relu(part) for part in _normalise(self.smooth(fine))]
        brain = [torch.sigmoid(part).reshape(1, 1, -1, *size[3:]) for part in self.last(fine)]
        return torch.cat(brain, 2)

    def _begin(self, planes: Tensor) -> Tensor:
        """The first convolution and pooling, with the normalisation between them behind them."""
        found: list[Tensor] = []
        last: Tensor | None = None
        for part in self.first([planes]):
            pooled = F.max_pool2d(part, 3, 2, 1)
            count, *size = _sizes(pooled)
            # along the slices: a pair of them, and the last of the portion before
            stack = torch.cat([pooled[:1] if last is None else last, pooled]).reshape(1, 1, count + 1, -1)
            maxima = F.max_pool2d(stack, (3, 1), (2, 1)).reshape(count // 2, size[0], -1)
            last = pooled[-1:]
            moments = _plane_moments(part).reshape(count // 2, 2, size[0], 2).mean(1)
            # in one tensor: else ONNX Runtime pools everything first, and keeps it all for the moments
            found.append(torch.cat([maxima, moments], 2))
        both = torch.cat(found)
        return F.relu(_scale(both[:, :, :-2].reshape(-1, *size), *_joined(both[:, :, -2:].mean(0))))


class _Convolution(nn.Module):
    """A cubic kernel of odd size without bias, and with zeros beyond the faces."""

    def __init__(self, weight: Tensor, *, stride: int = 1) -> None:
        """From a weight (O, C, k, k, k)."""
        super().__init__()
        self.out, channels, kernel = weight.shape[:3]
        self.stride, self.padding = stride, kernel // 2
        #: slices that one window makes, each with its own piece of it
        self.slices = max(1, _BLOCK // self.out) if kernel > 1 else 1
        self.span = (self.slices - 1) * stride + kernel
        flat = weight.new_zeros(self.slices, self.out, self.span, channels, kernel, kernel)
        for made in range(self.slices):
            flat[made, :, made * stride : made * stride + kernel] = weight.transpose(1, 2)
        self.weight = nn.Parameter(flat.flatten(0, 1).flatten(1, 2), requires_grad=False)

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        """Parts (d, C, H, W) of a stack of planes to parts of another."""
        made = []
        for windows in _windows(parts, self.span, self.slices * self.stride, self.padding):
            planes = F.conv2d(windows, self.weight, None, self.stride, self.padding)
            made.append(planes.reshape(-1, self.out, *_sizes(planes)[2:]) if self.slices > 1 else planes)
        return made


class _Transposed(nn.Module):
    """A transposed convolution of stride 2 that doubles each side."""

    def __init__(self, weight: Tensor, *, padding: int, bias: Tensor | None = None) -> None:
        """From a weight (C, O, k, k, k), k = 2 + padding, and a bias (O,)."""
        super().__init__()
        channels, self.out, kernel = weight.shape[:3]
        self.padding = padding
        self.span = 1 + padding
        # Slice 2 i + made is reached from slice i + step by the kernel's slice made + padding - 2 step.
        flat = weight.new_zeros(self.span, channels, 2, self.out, kernel, kernel)
        for step in range(self.span):
            for made in range(2):
                if 0 <= (slice_ := made + padding - 2 * step) < kernel:
                    flat[step, :, made] = weight[:, :, slice_]
        self.weight = nn.Parameter(flat.flatten(0, 1).flatten(1, 2), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.repeat(2), requires_grad=False)

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        made = []
        for windows in _windows(parts, self.span, 1, 0, made=8 * self.out):
            planes = F.conv_transpose2d(windows, self.weight, self.bias, 2, self.padding, self.padding)
            made.append(planes.reshape(-1, self.out, *_sizes(planes)[2:]))
        return made


class _Down(nn.Module):
    """Two residual blocks, the first of which may halve the resolution."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, *, stride: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for block, step in ((f"{name}.block1", stride), (f"{name}.block2", 1)):
            chain = [_Convolution(weights[f"{block}.double_conv.0.weight"], stride=step)]
            chain.append(_Convolution(weights[f"{block}.double_conv.3.weight"]))
            if step > 1:
                chain.append(_Convolution(weights[f"{block}.downsample.0.weight"], stride=step))
            self.blocks.append(nn.ModuleList(chain))

    def forward(self, planes: Tensor) -> Tensor:
        for block in self.blocks:
            first, second, *past = cast(nn.ModuleList, block)
            main = second([F.relu(part) for part in _normalise(first([planes]))])
            for shortcut in past:
                planes = torch.cat(_normalise(shortcut([planes])))
            planes = F.relu(torch.cat(_normalise(main)) + planes)
        return planes


class _Up(nn.Module):
    """To fewer channels, to the next scale, to its channels."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, *, stride: int) -> None:
        super().__init__()
        transposed = weights[f"{name}.tp_conv.0.weight"]
        middle: nn.Module
        if stride == 1:  # transposed or not is then only which way round the kernel lies
            middle = _Convolution(transposed.transpose(0, 1).flip(2, 3, 4))
        else:
            middle = _Transposed(transposed, padding=1)
        narrow, wide = (_Convolution(weights[f"{name}.{conv}.0.weight"]) for conv in ("conv1", "conv2"))
        self.chain = nn.ModuleList([narrow, middle, wide])

    def forward(self, planes: Tensor) -> Tensor:
        parts = [planes]
        for layer in self.chain:
            parts = [F.relu(part) for part in _normalise(layer(parts))]
        return torch.cat(parts)


def _normalise(parts: list[Tensor]) -> list[Tensor]:
    """Each channel to mean 0 and variance 1 over all the parts together."""
    mean, variance = _moments(parts)
    return [_scale(part, mean, variance) for part in parts]


def _moments(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) over parts (d, C, H, W): first of each plane, since a sum of millions is not exact."""
    return _joined(torch.cat([_plane_moments(part) for part in parts]).mean(0))


def _plane_moments(planes: Tensor) -> Tensor:
    """(D, C, H, W) to mean and mean square (D, C, 2)."""
    # In two steps, since ONNX Runtime adds up a whole plane one by one; the first in the layout of its convolutions.
    tile = min(_sizes(planes)[3], 8)
    blocked = _sizes(planes)[1] % _BLOCK == 0
    powers = (planes, planes * planes)
    means = [F.avg_pool2d(p, tile).mean((2, 3)) if blocked else p.mean(3).mean(2) for p in powers]
    return torch.stack(means, 2)


def _joined(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square (C, 2) to mean and variance."""
    mean, square = moments[:, 0], moments[:, 1]
    return mean, square - mean * mean


def _scale(planes: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    # one operator of ONNX, which takes moments that are computed
    one, zero = (torch.tensor([value] * _sizes(planes)[1]) for value in (1.0, 0.0))
    return F.batch_norm(planes, mean, variance, one, zero, False, 0.0, _EPSILON)


def _sizes(planes: Tensor) -> list[int]:
    """Its shape as numbers, which the exporter writes down as such."""
    return [int(size) for size in planes.shape]


def _windows(parts: list[Tensor], span: int, step: int, before: int, *, made: int = 0) -> Iterator[Tensor]:
    """A stack of planes (D, C, H, W), in parts, to portions of (D / step, span · C, H, W).

    Args:
        span: slices of a window, which become its channels, lowest first.
        step: from one window to the next.
        before: slices by which the first window begins below the stack; there, and above it, are zeros.
        made: what comes of a window, in planes of this size, where that may be more than it holds.
    """
    if span == step == 1:
        yield from parts
        return
    depth, shape = sum(_sizes(part)[0] for part in parts), _sizes(parts[0])[1:]
    count = depth // step
    largest = 4 * max(span * shape[0], made) * shape[1] * shape[2]
    portion = max(2, _PORTION_BYTES // (2 * largest) * 2)
    for first in range(0, count, portion):
        starts = [window * step - before for window in range(first, min(first + portion, count))]
        low = starts[0]
        slices = _between(parts, low, starts[-1] + span)
        index = torch.tensor([start - low + offset for start in starts for offset in range(span)])
        yield slices.index_select(0, index).reshape(len(starts), -1, *shape[1:])


def _between(parts: list[Tensor], low: int, high: int) -> Tensor:
    """Slices low to high of a stack in parts; where there is none, zeros."""
    found, begin = [], 0
    for part in parts:
        size = _sizes(part)[0]
        if begin < high and low < begin + size:
            found.append(part[max(low - begin, 0) : min(high - begin, size)])
        begin += size
    # by multiplication: the exporter computes the widths of a Pad in the graph, with operators not known elsewhere
    zeros = found[0][:1] * 0
    found = [zeros] * max(-low, 0) + found + [zeros] * max(high - begin, 0)
    return torch.cat(found) if len(found) > 1 else found[0]


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of deepbet 1.0's two networks."""
    expected: dict[str, tuple[int, ...]] = {"init.0.weight": (_WIDTHS[0], 1, 7, 7, 7)}
    before = _WIDTHS[0]
    for scale, width in enumerate(_WIDTHS):
        for block, position, channels in ((1, 0, before), (1, 3, width), (2, 0, width), (2, 3, width)):
            expected[f"down{scale}.block{block}.double_conv.{position}.weight"] = (width, channels, 3, 3, 3)
        if scale:
            expected[f"down{scale}.block1.downsample.0.weight"] = (width, before, 1, 1, 1)
        before = width
    for scale, (width, after) in enumerate(zip(_WIDTHS[::-1], (*_WIDTHS[2::-1], _WIDTHS[0]), strict=True)):
        narrow = width // 4
        expected[f"up{scale}.conv1.0.weight"] = (narrow, width, 1, 1, 1)
        expected[f"up{scale}.tp_conv.0.weight"] = (narrow, narrow, 3, 3, 3)
        expected[f"up{scale}.conv2.0.weight"] = (after, narrow, 1, 1, 1)
    expected |= {"tp_conv1.0.weight": (_WIDTHS[0], _TAIL, 3, 3, 3), "tp_conv1.0.bias": (_TAIL,)}
    expected |= {"conv.0.weight": (_TAIL, _TAIL, 3, 3, 3), "conv.0.bias": (_TAIL,)}
    expected |= {"tp_conv2.weight": (_TAIL, 2, 2, 2, 2), "tp_conv2.bias": (2,)}
    return expected


def _check_structure(weights: Mapping[str, Tensor]) -> None:
    expected = expected_shapes()
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ModelError(
                f"{name}: expected weights of shape {expected.get(name, 'none')} in deepbet's network, found "
                f"{found.get(name, 'none')}; install deepbet 1.0."
            )
