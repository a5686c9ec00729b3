"""Convolutions of shallow maps, whose gradients a CPU does not compute in 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Convolution(nn.Conv3d):
    """Computes in 32 bits where its kernel is deeper than its input."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2] >= self.kernel_size[0]:
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float())


def keep_shallow_maps_in_32_bits(network: nn.Module) -> None:
    """Let convolutions of an input shallower than their kernel leave mixed precision; in place, on a CPU.

    oneDNN's kernel for CPUs with AVX-512 and without AMX (`jit_bf16:avx512_core_bf16`, seen with torch 2.13 on Zen 4)
    takes the weights' gradient of those from memory that nobody wrote: with a kernel 3 deep and maps 2 deep it was up
    to 1e36 times as large as in 64 bits, another at each call, once a bus error. Of
    deeper maps it was right to 0.4 %.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.__class__ = _Convolution  # torchvision's own add nothing to nn.Conv3d once they are built
