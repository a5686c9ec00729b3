"""`ssclf plan`: hours, memory and bytes that a number of volumes needs, from rates measured on a machine.

The formulae stand in docs/cluster.md; everything in them is measured by `ssclf doctor --bench --json FILE`, but for
what Ray itself takes, which `scripts/bench_ray.py` measures.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ssclf import __version__
from ssclf.errors import ConfigError
from ssclf.io.files import write_whole

#: What Ray takes, roughly: to start, and per volume in seconds of a core. docs/cluster.md says what was measured.
RAY_START_S = 15.0
RAY_VOLUME_S = 0.02
#: Bytes of a row in Parquet and in the CSV together: 148 and 247 on 2,000 synthetic volumes with five flags.
_ROW_BYTES = 400
#: Batches of volumes that wait in Ray's object store, per core, and volumes in each.
_WAITING, _BATCH = 4, 16
_RAY_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What one volume takes on the machine where it was measured.

    Attributes:
        read_s: seconds of a core to read and preprocess a stripped volume.
        strip_s: seconds of a core that brain extraction adds; None where the bundle has no networks for it.
        infer_core_s: seconds of a core for the network.
        infer_gpu_s: seconds of a GPU for it; None where there is none.
        file_bytes: of the scan as stored.
        input_bytes: of the network input in memory.
        reader_bytes: peak memory of a process that reads.
        model_bytes: memory that a copy of the model takes, with its work space.
        typical: what was read; input_shape: what the network got.
    """

    read_s: float
    strip_s: float | None
    infer_core_s: float
    infer_gpu_s: float | None
    file_bytes: int
    input_bytes: int
    reader_bytes: int
    model_bytes: int
    typical: str
    input_shape: str = ""
    model: str = ""
    machine: str = ""
    ssclf_version: str = __version__


@dataclass(frozen=True)
class Estimate:
    """What a number of volumes needs.

    Attributes:
        hours: from start to end; the longer of `core_hours` and `gpu_hours` shared out, and the start.
        core_hours, gpu_hours: of all nodes together.
        bound: what the time goes by: "cores" or "GPUs".
        network_bytes: scans that are read over the network.
        result_bytes: Parquet or CSV.
        node_bytes: memory of a node.
    """

    hours: float
    core_hours: float
    gpu_hours: float
    bound: str
    network_bytes: int
    result_bytes: int
    node_bytes: int


def estimate(
    rates: Rates, volumes: int, *, nodes: int, cores: int, gpus: int = 0, stripped: float = 1.0
) -> Estimate:
    """Share the work of `volumes` out; reading and the network go on side by side.

    Args:
        cores, gpus: of a node.
        stripped: share of the volumes that have no skull any more.

    Raises:
        ConfigError: a number that cannot be, or GPUs or skulls whose rate was not measured.
    """
    for name, value in (("volumes", volumes), ("nodes", nodes), ("cores", cores)):
        if value < 1:
            raise ConfigError(f"--{name}: expected at least 1, found {value}.")
    if not 0 <= stripped <= 1 or gpus < 0:
        raise ConfigError("--stripped: expected 0 to 1; --gpus: expected none or more.")
    if gpus and rates.infer_gpu_s is None:
        raise ConfigError(
            "--gpus: the rates come from a machine without one; run doctor --bench on such a node."
        )
    if stripped < 1 and rates.strip_s is None:
        raise ConfigError("--stripped: the model that was timed has no brain extraction; export it with it.")
    core_s = rates.read_s + (1 - stripped) * (rates.strip_s or 0.0) + RAY_VOLUME_S
    gpu_s = (rates.infer_gpu_s or 0.0) if gpus else 0.0
    core_s += 0.0 if gpus else rates.infer_core_s
    by_cores = volumes * core_s / (nodes * cores)
    by_gpus = volumes * gpu_s / (nodes * gpus) if gpus else 0.0
    copies = gpus or max(1, cores // 2)
    return Estimate(
        hours=(RAY_START_S + max(by_cores, by_gpus)) / 3600,
        core_hours=volumes * core_s / 3600,
        gpu_hours=volumes * gpu_s / 3600,
        bound="cores" if by_cores >= by_gpus else "GPUs",
        network_bytes=volumes * rates.file_bytes,
        result_bytes=volumes * _ROW_BYTES,
        node_bytes=cores * (rates.reader_bytes + _WAITING * _BATCH * rates.input_bytes)
        + copies * rates.model_bytes
        + _RAY_BYTES,
    )


def write_rates(path: Path, rates: Rates) -> None:
    """Raises:
    OutputError: it cannot be written.
    """
    write_whole(path, json.dumps(dataclasses.asdict(rates), indent=1, allow_nan=False) + "\n")


def read_rates(path: Path) -> Rates:
    """Raises:
    ConfigError: not what `ssclf doctor --bench --json` writes.
    """
    try:
        return Rates(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigError(
            f"{path}: expected rates that `ssclf doctor --bench --json {path.name}` wrote, found something else."
        ) from exc
