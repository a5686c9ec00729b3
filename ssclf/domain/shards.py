"""One job of an array takes one shard of the volumes; together the shards are all of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssclf.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1."""

    number: int
    count: int

    def holds(self, key: str) -> bool:
        """Whether a volume belongs here. Depends on its key alone, so volumes that come or go move no other."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def file(self, path: Path) -> Path:
        """Where this shard writes what all shards together would write to `path`: `results.3-of-16.csv`."""
        return path.with_name(f"{path.stem}.{self}{path.suffix}")

    def __str__(self) -> str:
        return f"{self.number}-of-{self.count}"


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Read "3/16", "auto" (the index and size of a Slurm array) or "auto/16" (an index from Slurm or Kubernetes).

    Raises:
        ConfigError: not of that form, out of range, or no array job's variables in the environment.
    """
    match = re.fullmatch(r"(\d+|auto)(?:/(\d+))?", text.strip())
    if not match or (match[1] != "auto" and not match[2]):
        raise ConfigError(f"--shard: expected K/N such as 3/16, auto, or auto/N, found {text!r}.")
    number, count = match[1], match[2]
    if number == "auto":
        index, size = _array_index(environment)
        number = str(index + 1)
        count = count or size
        if not count:
            raise ConfigError(
                "--shard auto: the environment gives this job's index but not how many jobs there are; "
                "write --shard auto/N with N as in the job's `completions`."
            )
    shard = Shard(int(number), int(count))
    if not 1 <= shard.number <= shard.count:
        raise ConfigError(f"--shard: expected 1 to {shard.count} of {shard.count}, found {shard.number}.")
    return shard


def _array_index(environment: Mapping[str, str]) -> tuple[int, str]:
    """Index from 0 and, where the scheduler tells it, the number of jobs.

    Source: Slurm sbatch, "Job array environment variables"; Kubernetes, Indexed Jobs.
    """
    try:
        if "SLURM_ARRAY_TASK_ID" in environment:
            first = int(environment.get("SLURM_ARRAY_TASK_MIN", "0"))
            step = max(int(environment.get("SLURM_ARRAY_TASK_STEP", "1")), 1)
            index = (int(environment["SLURM_ARRAY_TASK_ID"]) - first) // step
            return index, environment.get("SLURM_ARRAY_TASK_COUNT", "")
        if "JOB_COMPLETION_INDEX" in environment:
            return int(environment["JOB_COMPLETION_INDEX"]), ""
    except ValueError as exc:
        raise ConfigError("--shard auto: the array job's variables are no numbers.") from exc
    raise ConfigError(
        "--shard auto: expected a Slurm array job (SLURM_ARRAY_TASK_ID) or a Kubernetes Indexed Job "
        "(JOB_COMPLETION_INDEX), found neither in the environment; write --shard K/N."
    )
