"""TensorBoard's log of a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def open_event_log(folder: Path, epoch: int) -> SummaryWriter:
    """Append to a run's log; what an interrupted run wrote from `epoch` on is hidden."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own dependencies warn on import
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=epoch)
