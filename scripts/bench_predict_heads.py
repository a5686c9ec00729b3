"""Whole heads through the whole of `ssclf predict`, in 32 and 8 bits, and of an older checkout, in one run.

    python scripts/bench_predict_heads.py HEAD_OR_FOLDER... [--against OTHER_CHECKOUT] [--model mc3] [--rounds 3]

Heads are found in folders as *_T1.nii.gz, and taken in turn up to `--sequence`. Each side exports a bundle for itself
(untrained weights, the brain's box, deepbet's networks in it) and predicts with it: brain extraction, preprocessing,
network, table. Every round starts a process for each side, in turn, so that a machine that slows down slows both.
"s a head" runs from the first row of the sequence to the last; "one head" is a whole process with one head, its start
included. Ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_predict import add_eight_bits, cpu_kind, make_plain_bundle, run_ssclf, undisturbed

BEFORE, NOW, INT8 = "before", "now", "now int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="heads with their skull, or folders of them")
    parser.add_argument("--against", type=Path, help="an older checkout of ssclf")
    parser.add_argument("--model", default="mc3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequence", type=int, default=20, help="heads in a row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run", choices=(BEFORE, NOW, INT8), help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, arguments.model, arguments.paths[0] if arguments.paths else None)
    elif arguments.run:
        rows = run_ssclf(
            arguments.paths, arguments.bundle, arguments.threads, eight_bits=arguments.run == INT8
        )
        print((rows[-1] - rows[0]) / max(len(rows) - 1, 1))  # seconds a head, 0 for a single one
    elif arguments.paths:
        compare(arguments)
    else:
        parser.error("expected heads")


def compare(arguments: argparse.Namespace) -> None:
    found = [
        head.resolve()
        for path in arguments.paths
        for head in (sorted(path.rglob("*_T1.nii.gz")) if path.is_dir() else [path])
    ]
    heads = list(itertools.islice(itertools.cycle(found), arguments.sequence))
    here = Path(__file__).parents[1]
    checkouts = {NOW: here, INT8: here}
    if arguments.against:
        checkouts = {BEFORE: arguments.against.resolve(), **checkouts}
    in_a_row: dict[str, list[float]] = {side: [] for side in checkouts}
    latency: dict[str, list[float]] = {side: [] for side in checkouts}
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder, "scans")
        scans.mkdir()
        for number, head in enumerate(heads):
            shutil.copyfile(head, scans / f"{number}-{head.name}")  # a link out of the folder is not followed
        bundles = {side: Path(folder, "old" if side == BEFORE else "new") for side in checkouts}
        if arguments.against:
            call(checkouts[BEFORE], "--make", str(bundles[BEFORE]), "--model", arguments.model)
        call(checkouts[NOW], str(heads[0]), "--make", str(bundles[NOW]), "--model", arguments.model)
        print(cpu_kind(), f"\n{arguments.model}, brain's box, {arguments.threads} threads", flush=True)
        for _, side in itertools.product(range(arguments.rounds), checkouts):
            words = ["--run", side, "--bundle", str(bundles[side]), "--threads", str(arguments.threads)]

            def several(side: str = side, words: list[str] = words) -> float:
                return float(json.loads(call(checkouts[side], str(scans), *words)))

            def one(side: str = side, words: list[str] = words) -> float:
                begin = time.perf_counter()
                call(checkouts[side], str(heads[0]), *words)
                return time.perf_counter() - begin

            in_a_row[side].append(undisturbed(several))
            latency[side].append(undisturbed(one))
            print(
                f"  {side}: {in_a_row[side][-1]:.2f}, {latency[side][-1]:.2f} s", file=sys.stderr, flush=True
            )
    first = next(iter(checkouts))
    print(f"| side | s a head over {len(heads)} | {first} ÷ it | one head, whole process, s | {first} ÷ it |")
    print("|---|---|---|---|---|")
    for side in checkouts:
        print(f"| {side} | {cells(in_a_row, side)} | {cells(latency, side)} |")


def cells(seconds: dict[str, list[float]], side: str) -> str:
    own = seconds[side]
    ratios = [first / mine for first, mine in zip(next(iter(seconds.values())), own, strict=True)]
    return (
        f"{statistics.median(own):.2f} ({min(own):.2f} to {max(own):.2f}) | "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def call(checkout: Path, *words: str) -> str:
    """The last line that this script prints when it imports ssclf from a checkout."""
    done = subprocess.run(
        [sys.executable, __file__, *words],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{checkout.name} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1] if done.stdout else ""


def make(folder: Path, model: str, head: Path | None) -> None:
    """A bundle with brain extraction; `head` gives the ranges of 8 bits, None makes none."""
    from ssclf.io.models.checksums import write_checksums
    from ssclf.learning.extraction_export import export_brain_extraction

    network = make_plain_bundle(folder, model, "brain")
    export_brain_extraction(folder)
    if head:
        add_eight_bits(folder, network, model, brain_of(head, folder))
    write_checksums(folder)


def brain_of(head: Path, bundle: Path) -> Path:
    """The head without its skull, written beside the bundle."""
    from ssclf.domain.geometry import reorient
    from ssclf.domain.volume import Volume
    from ssclf.io.extraction.deepbet import BrainExtractor
    from ssclf.io.volumes.nifti import write_nifti
    from ssclf.io.volumes.read import read_volume

    turned = reorient(read_volume(head), "RAS")
    mask = BrainExtractor(sorted(bundle.glob("brain-*.onnx"))).extract(turned.data[0])
    path = bundle.with_name("brain.nii.gz")
    write_nifti(Volume(turned.data * mask, turned.affine), path)
    return path


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    main()
