"""How much memory this process may still take, and how it is shared among workers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None

#: What is left to this process and the system when workers take their shares.
_KEPT = 0.15
#: No worker starts with less: its libraries alone take some hundred MB.
_SMALLEST_SHARE = 1 << 30


def free_memory() -> int:
    """Bytes that can be had before the system or the container's limit ends the process (Linux); elsewhere, all."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            values = [(Path("/sys/fs/cgroup") / name).read_text().strip() for name in (limit, used)]
        except OSError:
            continue
        if values[0].isdigit():
            free = min(free, max(0, int(values[0]) - int(values[1])))
    return free


def share_of_memory(workers: int) -> int:
    """Bytes for each of so many workers, so that together they leave the system and this process enough."""
    return max(_SMALLEST_SHARE, int(free_memory() * (1 - _KEPT)) // workers)


@contextlib.contextmanager
def room_for(count: int) -> Iterator[None]:
    """Within the block this process may take so many bytes more: who asks for more gets an error, and not the kernel's
    answer, which would be the end of the process (Linux; elsewhere no limit).
    """
    used = _data_bytes()
    if resource is None or used is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (used + count, *before) if limit != resource.RLIM_INFINITY]
    try:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, before)


def _data_bytes() -> int | None:
    """What RLIMIT_DATA counts, None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return None


def limit_memory(count: int) -> None:
    """Let this process take so many bytes for data; what asks for more gets a MemoryError.

    Not its whole address space: a network's library maps far more than it uses.
    """
    if resource is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    with contextlib.suppress(OSError, ValueError):  # a system that does not know the limit
        resource.setrlimit(resource.RLIMIT_DATA, (count, count))
