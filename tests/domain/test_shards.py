from __future__ import annotations

import pytest

from ssclf.domain.shards import Shard, parse_shard
from ssclf.errors import ConfigError


def test_shards_are_disjoint_complete_and_even() -> None:
    keys = [f"sub-{number:04}/t1ce.nii.gz" for number in range(4000)]
    shards = [Shard(number, 16) for number in range(1, 17)]
    owners = [[shard.number for shard in shards if shard.holds(key)] for key in keys]
    assert all(len(owner) == 1 for owner in owners)
    sizes = [sum(owner == [shard.number] for owner in owners) for shard in shards]
    assert min(sizes) > 180


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/16", {}, Shard(3, 16)),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "9"},
            Shard(7, 9),
        ),
        (
            "auto",
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "4",
            },
            Shard(3, 4),
        ),
        ("auto/4", {"JOB_COMPLETION_INDEX": "0"}, Shard(1, 4)),
    ],
)
def test_shards_are_read_from_text_or_from_the_scheduler(
    text: str, environment: dict[str, str], expected: Shard
) -> None:
    assert parse_shard(text, environment) == expected


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "auto", "1/0", "auto/4", "-1/4"])
def test_other_shards_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard"):
        parse_shard(text, {})
