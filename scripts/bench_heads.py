"""Brain extraction with deepbet: an older checkout against this one, head after head, in one run on one core.

    python scripts/bench_heads.py HEAD_OR_FOLDER... --against OTHER_CHECKOUT [--rounds 3] [--sequence 20]

Each side converts the networks as it does for itself and keeps one warm process; the two take turns at every head, so
that a machine that slows down slows both. Of the rounds the fastest counts. "CPU s" is what the process used, which
other programs on the machine change least. In folders every *_T1.nii.gz is taken; a mask X_mask.nii.gz beside
X_T1.nii.gz is a tumour, and the share of it that each brain mask keeps is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

STAGES = ("read", "sampling", "box network", "mask network", "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="heads with their skull, or folders of them")
    parser.add_argument("--against", type=Path, help="an older checkout of ssclf")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequence", type=int, default=20, help="heads in a row, after the rounds; 0: none")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if arguments.serve:
        serve(arguments.serve)
        return
    if not arguments.against or not arguments.paths:
        parser.error("expected heads, and --against another checkout")
    heads = [
        head
        for path in arguments.paths
        for head in (sorted(path.rglob("*_T1.nii.gz")) if path.is_dir() else [path])
    ]
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            Side(checkout, Path(folder, name))
            for checkout, name in ((arguments.against, "before"), (Path(__file__).parents[1], "now"))
        ]
        rows = [compare(head, sides, arguments.rounds, first=head is heads[0]) for head in heads]
        summarise(rows)
        for side, name in zip(sides, ("before", "now"), strict=True):
            first = side.first_s
            times = [side.ask(heads[i % len(heads)])["cpu"] for i in range(arguments.sequence)]
            mean = f"{statistics.mean(times):.2f}" if times else "not measured"
            print(
                f"{name}: first head of a process {first:.2f} CPU s with loading; over {len(times)} heads in a row "
                f"{mean} CPU s a head; peak memory {side.ask(heads[0])['peak_mb']:.0f} MB"
            )
            side.close()


class Side:
    """One checkout's extraction in a process of its own."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.first_s = folder, 0.0
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder)],
            env={**os.environ, "PYTHONPATH": str(checkout.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, head: Path) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        print(head, file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "refused" in answer:
            raise SystemExit(f"{answer['refused']} Leave it out.")
        self.first_s = self.first_s or answer["cpu"]
        return answer

    def mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.load(self.folder / "mask.npy")

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve(folder: Path) -> None:
    """Take paths from stdin; answer with the seconds of each stage, and leave the mask in the folder."""
    from ssclf.domain.geometry import reorient
    from ssclf.errors import VolumeError
    from ssclf.io.extraction import deepbet
    from ssclf.io.volumes.read import read_volume

    convert = [sys.executable, "-c", "import sys; from pathlib import Path; "]
    convert[-1] += "from ssclf.learning.extraction_export import export_brain_extraction as export; "
    convert[-1] += "export(Path(sys.argv[1]))"
    subprocess.run([*convert, str(folder)], check=True)  # elsewhere, so that its memory is not counted here
    spent: dict[str, float] = {}

    def timed(stage: Callable[..., str], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            begin, name = time.process_time(), stage(*args)
            result = function(*args)
            spent[name] = spent.get(name, 0) + time.process_time() - begin
            return result

        return call

    deepbet._sample = timed(lambda *_: "sampling", deepbet._sample)
    deepbet._run = timed(lambda *_: "mask network" if "box network" in spent else "box network", deepbet._run)
    extractor = deepbet.BrainExtractor(sorted(folder.glob("*.onnx")))
    for line in sys.stdin:
        spent.clear()
        begin, begin_cpu = time.perf_counter(), time.process_time()
        try:
            head = read_volume(Path(line.strip()), folder)
        except VolumeError as exc:
            print(json.dumps({"refused": str(exc)}), flush=True)
            continue
        turned = reorient(head, "RAS")
        spent["read"] = time.process_time() - begin_cpu
        mask = extractor.extract(turned.data[0])
        cpu, wall = time.process_time() - begin_cpu, time.perf_counter() - begin
        spent["rest"] = cpu - sum(spent.values())
        np.save(folder / "mask.npy", mask)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({"cpu": cpu, "wall": wall, "stages": spent, "peak_mb": peak}), flush=True)


def compare(head: Path, sides: list[Side], rounds: int, *, first: bool) -> dict[str, Any]:
    answers: list[list[dict[str, Any]]] = [[], []]
    for round_ in range(rounds):
        for side, found in list(zip(sides, answers, strict=True))[:: 1 if round_ % 2 else -1]:
            found.append(side.ask(head))
    before, now = (min(found, key=lambda answer: answer["cpu"]) for found in answers)
    masks = [side.mask() for side in sides]
    sizes = [int(np.count_nonzero(mask)) for mask in masks]
    differing = int(np.count_nonzero(masks[0] != masks[1]))
    kept_shares, walls = (
        kept_tumour(head, masks),
        [min(answer["wall"] for answer in found) for found in answers],
    )
    row: dict[str, Any] = {
        "name": head.name.split(".")[0],
        "shape": "×".join(map(str, masks[0].shape)),
        "before": before,
        "now": now,
        "dice": 1 - differing / max(sum(sizes), 1),
        "differing": differing / max(sizes[0], 1),
        "kept": kept_shares,
    }
    if first:
        parts = ", ".join(STAGES)
        print(
            f"| head | voxels | before, CPU s (wall) | now, CPU s (wall) | ratio | now: {parts}, % | Dice | "
            "differing voxels | tumour kept, % |\n" + "|---" * 9 + "|"
        )
    shares = " ".join(f"{100 * now['stages'].get(stage, 0) / now['cpu']:.0f}" for stage in STAGES)
    kept = " → ".join(f"{100 * share:.2f}" for share in kept_shares)
    print(
        f"| {row['name']} | {row['shape']} | {before['cpu']:.2f} ({walls[0]:.2f}) | {now['cpu']:.2f} "
        f"({walls[1]:.2f}) | {before['cpu'] / now['cpu']:.2f} | {shares} | {row['dice']:.6f} | "
        f"{row['differing']:.1e} | {kept} |",
        flush=True,
    )
    return row


def kept_tumour(head: Path, masks: list[np.ndarray[Any, np.dtype[np.bool_]]]) -> list[float]:
    """Share of the tumour beside a head inside each mask, or nothing."""
    from ssclf.domain.geometry import reorient
    from ssclf.io.volumes.read import read_volume

    beside = head.with_name(head.name.replace("_T1.nii.gz", "_mask.nii.gz"))
    if beside == head or not beside.is_file():
        return []
    tumour = reorient(read_volume(beside), "RAS").data[0] > 0
    return [float(mask[tumour].mean()) for mask in masks] if tumour.any() else []


def summarise(rows: list[dict[str, Any]]) -> None:
    ratios = [row["before"]["cpu"] / row["now"]["cpu"] for row in rows]
    worst = max(row["differing"] for row in rows)
    print(
        f"\n{len(rows)} heads: median {statistics.median(ratios):.2f} times faster ({min(ratios):.2f} to "
        f"{max(ratios):.2f}); at most {worst:.1e} of the mask's voxels differ"
    )
    for name in ("before", "now"):
        cpu = statistics.median(row[name]["cpu"] for row in rows)
        shares = [
            statistics.median(row[name]["stages"].get(stage, 0) / row[name]["cpu"] for row in rows)
            for stage in STAGES
        ]
        parts = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in zip(STAGES, shares, strict=True))
        print(f"{name}: median {cpu:.2f} CPU s a head; {parts}")
    kept = [row["kept"] for row in rows if row["kept"]]
    if kept:
        for name, of_side in zip(("before", "now"), zip(*kept, strict=True), strict=True):
            print(
                f"{name}: of {len(kept)} tumours {100 * statistics.mean(of_side):.2f} % kept, at worst "
                f"{100 * min(of_side):.2f} %"
            )


if __name__ == "__main__":
    main()
