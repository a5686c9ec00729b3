"""What torch says when the machine has too little, in words that say what to do.

Torch raises plain RuntimeErrors for most of it, so its texts are what tells them apart.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from ssclf.errors import OutputError, ResourceError
from ssclf.io.files import disk_trouble

#: c10's allocators, oneDNN (which fails to make what it has no memory for), cuBLAS and cuDNN.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory"
    r"|could not create a (?:primitive|memory)|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|std::bad_alloc",
    re.IGNORECASE,
)


@contextlib.contextmanager
def resource_errors(out: Path) -> Iterator[None]:
    """Raises:
    ResourceError: the block ran out of memory.
    OutputError: the disk of `out` is full.
    """
    try:
        yield
    except torch.OutOfMemoryError as exc:
        raise ResourceError(
            "the GPU has not enough memory for this network, batch and size of volumes; use a smaller --batch-size "
            "(and --accumulate for the same step), a coarser spacing, or see whether others use the GPU."
        ) from exc
    except (RuntimeError, MemoryError, OSError) as exc:
        if trouble := disk_trouble(exc):
            raise OutputError(f"{trouble.filename or out}: cannot be written ({trouble.strerror}).") from exc
        memory = isinstance(exc, MemoryError) or getattr(exc, "errno", None) == errno.ENOMEM
        if not (memory or _NO_MEMORY.search(str(exc))):
            raise
        raise ResourceError(
            "not enough memory for this network, batch and size of volumes; use a smaller --batch-size (and "
            "--accumulate for the same step), fewer --workers, or a machine with more."
        ) from exc
