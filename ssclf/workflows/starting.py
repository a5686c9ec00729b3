"""`ssclf train --from`: what a new run may go on from."""

from __future__ import annotations

from pathlib import Path

from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.checksums import file_sha256
from ssclf.learning.finetuning import Start, start_from_bundle
from ssclf.workflows.export import read_run
from ssclf.workflows.train import CHOSEN, CONFIG


def open_start(path: Path) -> Start:
    """Open a finished run, or a bundle with a TorchScript file.

    Raises:
        ModelError: neither, unfinished, or damaged.
    """
    if (path / CONFIG).is_file():
        network, spec = read_run(path, name=path.name)
        return Start(spec, network.state_dict(), file_sha256(path / CHOSEN))
    return start_from_bundle(open_bundle(path))
