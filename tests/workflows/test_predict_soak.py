"""Minutes of real work: a folder nobody curated, killed again and again."""

from __future__ import annotations

import csv
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssclf.domain.synthetic import SyntheticLabel, make_synthetic_volume, vary_storage
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]
LABELS: tuple[SyntheticLabel, ...] = ("LGG", "HGG", "healthy")


def fill(folder: Path, count: int, make_volume: Callable[..., Volume], real: Path | None) -> None:
    """`count` files: synthetic brains in all ways of storage, broken files, some real ones, nested and mixed."""
    rng = np.random.default_rng(7)
    originals = sorted((real / "orient48").glob("*.nii.gz")) if real else []
    for number in range(count):
        place = folder / f"site {number % 5}" / ("deep/er" if number % 3 else "")
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"scan-{number:03}.nii.gz"
        if number % 11 == 0:
            path.write_bytes(b"\x1f\x8b" + rng.bytes(300))
        elif number % 17 == 0:
            path.with_suffix(".txt").write_text("not a volume")
        elif number % 7 == 0 and originals:
            shutil.copy(originals[number % len(originals)], path)
        elif number % 5 == 0:
            write_nifti(vary_storage(make_synthetic_volume(LABELS[number % 3], rng), rng), path)
        elif number % 13 == 0:
            write_nifti(make_volume(seed=number), path)
            path.write_bytes(path.read_bytes()[:-2000])
        else:
            write_nifti(make_volume(seed=number), path)


def command(folder: Path, out: Path, bundle: Path) -> list[str]:
    words = [sys.executable, "-m", "ssclf", "predict", folder, "--out", out, "--model", bundle, "--quiet"]
    return [*map(str, words), "--assume-stripped", "--workers", "2"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def real() -> Path | None:
    folder = Path(os.environ.get("SSCLF_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    return folder if folder.is_dir() else None


def test_ten_kills_change_nothing(
    tiny_bundle: Path, tmp_path: Path, make_volume: Callable[..., Volume], real: Path | None
) -> None:
    folder = tmp_path / "scans"
    fill(folder, 300, make_volume, real)
    whole = subprocess.run(command(folder, tmp_path / "whole.csv", tiny_bundle), check=False)
    assert whole.returncode == 3
    killed = tmp_path / "killed.csv"
    chance = random.Random(11)
    kills, kept = 0, []
    while kills < 10:
        process = subprocess.Popen(command(folder, killed, tiny_bundle))
        try:
            process.wait(chance.uniform(0.5, 9))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            journal = tmp_path / ".killed.csv.ssclf-work" / "journal.jsonl"
            kept.append(len(journal.read_bytes().splitlines()) if journal.exists() else 0)
        else:
            killed.unlink()  # it came through: begin again, there are kills left
            killed.with_suffix(".json").unlink()
    assert max(kept) > 0, "no kill came in the middle of the work"
    last = subprocess.run(command(folder, killed, tiny_bundle), check=False)
    assert last.returncode == 3
    assert table(killed) == table(tmp_path / "whole.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "killed.csv", "killed.json", "scans", "whole.csv", "whole.json",
    ]  # fmt: skip


def peak_mb(words: list[str]) -> float:
    """Peak memory of the command and its workers together, sampled."""
    psutil = pytest.importorskip("psutil")
    process = subprocess.Popen(words)
    parent = psutil.Process(process.pid)
    peak = 0
    while process.poll() is None:
        try:
            family = [parent, *parent.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        except psutil.NoSuchProcess:
            continue
        select.select([], [], [], 0.05)
    return peak / 1e6


def test_memory_does_not_grow_with_the_number_of_volumes(
    tiny_bundle: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    for count in (30, 300):
        for number in range(count):
            write_nifti(make_volume(seed=number), tmp_path / str(count) / f"{number}.nii.gz")
    few, many = (
        peak_mb(command(tmp_path / str(count), tmp_path / f"{count}.csv", tiny_bundle)) for count in (30, 300)
    )
    assert many <= 1.1 * few, (few, many)
