"""A training step that can be left in its middle, as if it had never begun.

On a processor a step of large volumes takes minutes, and who is told to end has seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Stopped(Exception):  # noqa: N818 (no error: it was asked for)
    """Work ended early because its `stop` said so."""


class Abandoning:
    """Looks whether to stop at each convolution of a network, on the way there and on the way back."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._stop: Callable[[], bool] | None = None
        for module in network.modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(self._look)

    @contextlib.contextmanager
    def unless(self, stop: Callable[[], bool]) -> Iterator[None]:
        """Within the block, the network's work ends with `Stopped` once `stop` says so.

        What it has changed by then is put back: averages of normalisation, and the random numbers that dropout drew.
        Gradients are the caller's to clear.
        """
        buffers = [buffer.clone() for buffer in self._network.buffers()]
        random = torch.get_rng_state()
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        self._stop = stop
        try:
            yield
        except Stopped:
            for buffer, before in zip(self._network.buffers(), buffers, strict=True):
                buffer.copy_(before)
            torch.set_rng_state(random)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda)
            raise
        finally:
            self._stop = None

    def _look(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._stop is None:
            return
        self._check()
        if output.requires_grad:
            output.register_hook(self._check)

    def _check(self, gradient: Tensor | None = None) -> None:
        if self._stop is not None and self._stop():
            raise Stopped
