"""What Ray costs on one machine: `ssclf predict --ray local` beside plain `ssclf predict`, same volumes, same model.

    python scripts/bench_ray.py --model exported/NAME --volumes 60                    # BraTS size, synthetic
    python scripts/bench_ray.py --model exported/NAME --volumes 2000 --shape 10,14,12 --spacing 9 --rounds 1

Each round runs both, in turn, in processes of their own. Printed: seconds of each, their ratio, where Ray's time
went, and the peak memory of the driver, which must not grow with the number of volumes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

_COMMAND = """
import resource, sys
from ssclf.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as exc:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    sys.exit(exc.code)
"""


def generate(folder: Path, count: int, shape: tuple[int, int, int], spacing: float) -> None:
    """Stripped "brains": textured ellipsoids, no two alike."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij"))
    inside = (grid**2).sum(axis=0) < 0.8
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = spacing
    affine[3, 3] = 1.0
    distinct = min(count, 20)  # drawing takes longer than classifying
    for number in range(count):
        path = folder / f"site{number % 10}" / f"sub-{number:06d}.nii.gz"
        if number >= distinct:
            path.parent.mkdir(parents=True, exist_ok=True)
            first = number % distinct
            shutil.copy(folder / f"site{first % 10}" / f"sub-{first:06d}.nii.gz", path)
            continue
        texture = 400 + 100 * np.sin((3 + number % 7) * grid).sum(axis=0) + random.normal(0, 20, shape)
        write_nifti(Volume(np.where(inside, texture, 0).astype(np.int16)[None], affine), path)


def run(*words: object) -> tuple[float, int]:
    """Seconds and peak memory (MB) of one command."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", _COMMAND, "predict", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--volumes", type=int, default=60)
    parser.add_argument("--shape", default="155,240,240")
    parser.add_argument("--spacing", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, default=Path("bench-ray"), help="Folder to write, removed first."
    )
    parser.add_argument("--only-ray", action="store_true", help="Memory of the driver alone.")
    options = parser.parse_args()
    shape = tuple(int(part) for part in options.shape.split(","))
    shutil.rmtree(options.work, ignore_errors=True)
    scans = options.work / "scans"
    generate(scans, options.volumes, shape, options.spacing)  # type: ignore[arg-type]
    common = ("--model", options.model, "--skull-strip", "none")
    ratios = []
    for number in range(options.rounds):
        plain = 0.0
        if not options.only_ray:
            plain, memory = run(scans, "--out", options.work / f"plain-{number}.csv", *common)
            print(f"plain: {plain:.1f} s, {plain / options.volumes:.3f} s a volume, peak {memory} MB")
        out = options.work / f"ray-{number}"
        seconds, memory = run(scans, "--out", out, "--ray", "local", *common)
        steps = json.loads((out / "run.json").read_text("utf-8"))["seconds"]
        print(
            f"Ray:   {seconds:.1f} s, {seconds / options.volumes:.3f} s a volume, driver {memory} MB, {steps}"
        )
        ratios.append(seconds / plain if plain else 0.0)
    if not options.only_ray:
        print(
            f"Ray takes {statistics.median(ratios):.2f} × the time of plain predict ({options.volumes} volumes)"
        )


if __name__ == "__main__":
    main()
