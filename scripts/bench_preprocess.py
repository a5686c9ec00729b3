"""Preprocessing side by side: ssclf against MONAI and TorchIO, one core each, in one run.

    pip install monai          # beside the extras cpu and train
    python scripts/bench_preprocess.py VOLUME... [--repeats 7]

The same steps on the same files: read, reorient, clip to the [0.5, 99.5] percentiles of the brain, scale, resample to
2 mm. Every round runs each of them once, in turn, so that a machine that slows down slows all; the ratio is taken
round by round and its median printed. Then: volumes per second with two workers over one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

for name in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
):
    os.environ[name] = "1"  # before numpy, torch and ITK are imported

from ssclf.config import PreprocessConfig  # noqa: E402
from ssclf.domain.preprocessing import preprocess  # noqa: E402
from ssclf.io.volumes.read import read_volume  # noqa: E402
from ssclf.io.workers import run_in_processes  # noqa: E402

SETTINGS = PreprocessConfig()


def with_ssclf(path: Path) -> tuple[int, ...]:
    return preprocess(read_volume(path), SETTINGS).data.shape


def make_torchio() -> Callable[[Path], tuple[int, ...]]:
    import torch
    import torchio as tio

    torch.set_num_threads(1)
    steps = tio.Compose(
        [
            tio.ToCanonical(),
            tio.RescaleIntensity((0, 1), percentiles=(0.5, 99.5), masking_method=lambda x: x > 0),
            tio.Resample(2),
        ]
    )
    return lambda path: tuple(steps(tio.ScalarImage(path)).shape)


def make_monai() -> Callable[[Path], tuple[int, ...]]:
    import torch
    from monai.transforms import Compose, LoadImage, Orientation, ScaleIntensityRangePercentiles, Spacing

    torch.set_num_threads(1)
    steps = Compose(
        [
            LoadImage(image_only=True, ensure_channel_first=True),
            Orientation(axcodes="RAS"),
            ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True),
            Spacing((2, 2, 2), mode="bilinear"),
        ]
    )
    return lambda path: tuple(steps(path).shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volumes", nargs="+", type=Path, help="stripped volumes, e.g. BraTS *_t1ce.nii.gz")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    ways: dict[str, Callable[[Path], tuple[int, ...]]] = {"ssclf": with_ssclf, "torchio": make_torchio()}
    try:
        ways["monai"] = make_monai()
    except ImportError:
        print("monai is not installed: left out", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for path in arguments.volumes:
        shapes = {name: way(path) for name, way in ways.items()}  # not counted: imports, file cache
        print(path.name, shapes)
        for _ in range(arguments.repeats):
            for name, way in ways.items():
                begin = time.perf_counter()
                way(path)
                times[name].append(time.perf_counter() - begin)
    for name, seconds in times.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds, times["ssclf"], strict=True)]
        middle = 1000 * statistics.median(seconds)
        print(f"{name:8} median {middle:6.1f} ms, {statistics.median(ratios):5.2f} × the time of ssclf")


def scaling(volumes: list[Path], rounds: int = 12) -> None:
    """Volumes per second with two workers over one, the same files again and again, in turn."""
    from bench_preprocess import with_ssclf  # workers import modules, not the script

    items = volumes * rounds
    ratios = []
    for _ in range(3):
        rates = {}
        for workers in (1, 2):
            outcomes = run_in_processes(with_ssclf, items, workers=workers)
            next(outcomes)  # workers have started
            begin = time.perf_counter()
            done = sum(1 for _ in outcomes)
            rates[workers] = done / (time.perf_counter() - begin)
        ratios.append(rates[2] / rates[1])
        print(f"1 worker {rates[1]:.1f}, 2 workers {rates[2]:.1f} volumes a second: {ratios[-1]:.2f} ×")
    print(f"two workers over one: median {statistics.median(ratios):.2f} ×")


if __name__ == "__main__":
    everywhere = os.sched_getaffinity(0)
    main()
    os.sched_setaffinity(0, everywhere)
    scaling([Path(word) for word in sys.argv[1:] if Path(word).is_file()])
