"""What a network costs: parameters, operations, time and memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssclf.config import Architecture, Device
from ssclf.learning.networks import build_network

_REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Attributes:
    parameters: that are trained.
    gflops: of one forward pass in 10⁹ operations; a multiplication with its addition counts as two.
    shape: (C, D, H, W) of the volume behind `gflops` and `seconds_per_volume`.
    seconds_per_volume: median of a forward pass in float32, reading and preprocessing aside.
    device: "cpu" with the number of threads, or the name of the GPU.
    """

    parameters: int
    gflops: float
    shape: tuple[int, ...]
    seconds_per_volume: float
    device: str


def measure_cost(
    architecture: Architecture, volume: NDArray[np.float32], *, classes: int, device: Device = "auto"
) -> Cost:
    """Count and time a forward pass. Weights are random, which changes neither; torch's generator is left alone.

    Args:
        volume: (C, D, H, W).
    """
    with torch.random.fork_rng(), torch.inference_mode():
        cuda = has_gpu(device)
        place = torch.device("cuda" if cuda else "cpu")
        network = build_network(architecture, channels=len(volume), classes=classes).eval().to(place)
        batch = torch.from_numpy(np.ascontiguousarray(volume))[None].to(place)
        seconds = []
        for _ in range(_REPEATS + 1):  # the first one also finds algorithms and memory
            begin = time.perf_counter()
            network(batch)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        with FlopCounterMode(display=False) as counter:
            network.to("meta")(batch.to("meta"))
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        gflops=counter.get_total_flops() / 1e9,
        shape=tuple(volume.shape),
        seconds_per_volume=median(seconds[1:]),
        device=torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads",
    )


def training_bytes(architecture: Architecture, shape: Sequence[int]) -> int:
    """What one volume takes while a network is trained in 32 bits: all that the way back needs, and as much to work in.

    Args:
        shape: (C, D, H, W).
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            kept[storage._cdata] = storage.nbytes()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []  # else a later one could take the place, and the name, of one that is gone
    with torch.random.fork_rng(), torch.device("meta"):
        network = build_network(architecture, channels=shape[0], classes=2).train()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.empty(2, *shape))
    return sum(kept.values())  # of two volumes, which is twice of one


def has_gpu(device: Device) -> bool:
    """Whether a run on this device is on a GPU."""
    return device != "cpu" and torch.cuda.is_available()


def free_gpu_memory() -> int:
    """Bytes that nobody uses on the current GPU."""
    free, _ = torch.cuda.mem_get_info()
    return int(free)


def thread_count() -> int:
    """How many threads torch computes with in this process."""
    return torch.get_num_threads()


def use_threads(count: int) -> None:
    """Compute with so many."""
    torch.set_num_threads(count)


class PeakMemory:
    """`megabytes` is the most that was in use since the watch began, None where the system does not tell."""

    def __init__(self, device: Device) -> None:
        self._cuda = cuda = has_gpu(device)
        self._fresh = False
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", "ascii")  # Linux, proc(5): resets the peak
            self._fresh = True
        except OSError:
            pass

    @property
    def what(self) -> str:
        return "GPU memory of tensors" if self._cuda else "memory of the process"

    @property
    def megabytes(self) -> float | None:
        if self._cuda:
            return torch.cuda.max_memory_allocated() / 1e6
        if not self._fresh:
            return None
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
        return None
