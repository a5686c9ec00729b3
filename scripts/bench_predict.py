"""Prediction side by side: `ssclf predict` against MONAI and TorchIO with eager PyTorch, in one run.

    pip install monai          # beside the extras cpu and train
    python scripts/bench_predict.py [VOLUME...] [--models mc3,r2plus1d] [--rounds 5] [--volumes 6] [--threads 2]

The same volumes, weights (random: they change no time) and threads for all. MONAI and TorchIO read, orient, resample
to 2 mm, scale by percentiles and classify with the PyTorch network, one volume after the other; "MONAI frozen" does so
with what a keen user would make of it: channels last, traced, frozen and optimised by TorchScript. ssclf runs its whole
`predict` with an exported bundle, and once more with a bundle of `crop="brain"`, which sees the brain's box alone; each
also in 8 bits (`--precision int8`), with ranges from the first volume and without the gate: the weights are random.
"engine" is ONNX Runtime on ready tensors, the least that ssclf could take.

Every round starts a process for each of them, in turn, so that a machine that slows down slows all. A process takes
its imports and its model free: its time runs from the first finished volume to the last. Ratios are taken round by
round. A run during which others had more than 12 % of the machine is repeated once. Without volumes, synthetic
ones of BraTS's size are made: 240 x 240 x 155 voxels of 1 mm, skull removed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

CONTESTANTS = (
    "ssclf", "ssclf int8", "ssclf crop=brain", "ssclf crop=brain int8", "engine", "MONAI", "MONAI frozen", "TorchIO",
)  # fmt: skip
Result = TypeVar("Result")
#: Share of the machine; processes that workers start are no children of ours, and ssclf's take up to 11 %.
_OTHERS = 0.12
CLASSES = ("LGG", "HGG", "healthy")
#: Flags of /proc/cpuinfo.
_KINDS = {"AVX-512": ("avx512f",), "VNNI": ("avx512_vnni", "avx_vnni"), "AMX for 8 bits": ("amx_int8",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="stripped volumes, e.g. BraTS *_t1ce.nii.gz")
    parser.add_argument("--models", default="mc3,r2plus1d")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--volumes", type=int, default=6, help="a process; the first is not timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        run_contestant(arguments.contestant, arguments.folder, arguments.models, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_scans(Path(folder) / "scans", arguments.paths, arguments.volumes)
        rate = matrix_rate(arguments.threads)
        print(cpu_kind())
        print(f"{arguments.threads} threads; matrix multiplication in float32: {rate:.0f} GFLOP/s")
        for model in arguments.models.split(","):
            compare(model, Path(folder), arguments, rate)


def compare(model: str, folder: Path, arguments: argparse.Namespace, rate: float) -> None:
    """Run all contestants over some rounds and print what came out."""
    for crop in ("none", "brain"):
        make_bundle(folder / f"{model}-{crop}", model, crop, min((folder / "scans").iterdir()))
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    wall: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    shapes: dict[str, list[int]] = {}
    for _, name in itertools.product(range(arguments.rounds), CONTESTANTS):
        words = [sys.executable, __file__, "--contestant", name, "--folder", str(folder)]
        words += ["--models", model, "--threads", str(arguments.threads)]

        def run(words: list[str] = words) -> tuple[float, dict[str, Any]]:
            begin = time.perf_counter()
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{words[3]} failed:\n{done.stderr}")
            return time.perf_counter() - begin, json.loads(done.stdout.splitlines()[-1])

        whole, result = undisturbed(run)
        wall[name].append(whole)
        seconds[name].append(result["seconds"])
        shapes[name] = result["shape"]
        print(f"  {name}: {result['seconds']:.2f} s", file=sys.stderr, flush=True)
    gflops = forward_gflops(model, shapes["engine"])
    print(f"\n{model}: {gflops:.0f} GFLOP a volume at {shapes['engine']}")
    print(f"{'':22}{'s a volume':>12}{'x its time':>12}{'whole process':>15}   input")
    for name in CONTESTANTS:
        own, ratios = seconds[name], [a / b for a, b in zip(seconds[name], seconds["ssclf"], strict=True)]
        print(
            f"{name:22}{statistics.median(own):12.2f}{statistics.median(ratios):12.2f}"
            f"{statistics.median(wall[name]):13.1f} s   {shapes[name]}, {min(own):.2f} to {max(own):.2f} s"
        )
    pairs = itertools.product(("MONAI", "MONAI frozen", "TorchIO"), CONTESTANTS[:4])
    for name, ours in (*pairs, ("ssclf", "ssclf int8"), ("ssclf crop=brain", "ssclf crop=brain int8")):
        ratios = [theirs / mine for theirs, mine in zip(seconds[name], seconds[ours], strict=True)]
        print(f"{ours} over {name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    shares = [alone / whole for alone, whole in zip(seconds["engine"], seconds["ssclf"], strict=True)]
    print(f"ssclf reaches {statistics.median(shares):.3f} of the engine alone on ready tensors")
    fastest = gflops / statistics.median(seconds["engine"])
    print(f"inference: {fastest:.0f} GFLOP/s, {fastest / rate:.2f} of the matrix multiplication's rate")


def run_contestant(name: str, folder: Path, model: str, threads: int) -> None:
    """Classify every scan; print seconds a volume, the first one left out, and the network's input shape."""
    scans = sorted((folder / "scans").iterdir())
    bundle = folder / f"{model}-{'brain' if 'brain' in name else 'none'}"
    if name.startswith("ssclf"):
        finished = run_ssclf([folder / "scans"], bundle, threads, eight_bits=name.endswith("int8"))
        shape = list(prepared(scans[0], bundle).shape)
    elif name == "engine":
        finished, shape = run_engine(scans, bundle, threads)
    else:
        finished, shape = run_pytorch(
            scans, bundle, model, threads, monai=name.startswith("MONAI"), frozen=name.endswith("frozen")
        )
    seconds = (finished[-1] - finished[0]) / (len(finished) - 1)
    print(json.dumps({"seconds": seconds, "shape": shape}))


def run_ssclf(paths: list[Path], bundle: Path, threads: int, *, eight_bits: bool) -> list[float]:
    """When each row came."""
    from ssclf.config import PredictConfig
    from ssclf.workflows.predict import predict

    finished: list[float] = []
    settings: dict[str, Any] = {"precision": "int8"} if eight_bits else {}  # unknown to an older checkout
    with tempfile.TemporaryDirectory() as out:
        summary = predict(
            paths,
            Path(out) / "results.csv",
            [bundle],
            PredictConfig(workers=threads, threads=threads, device="cpu", **settings),
            on_row=lambda row: finished.append(time.perf_counter()),
        )
    assert not summary.failed, [row.error for row in summary.rows]
    return finished


def run_engine(scans: list[Path], bundle: Path, threads: int) -> tuple[list[float], list[int]]:
    from ssclf.io.models.bundle import open_bundle
    from ssclf.io.models.runtime import open_classifier

    classifier = open_classifier(open_bundle(bundle), device="cpu", threads=threads)
    finished = []
    for scan in scans:
        volume = prepared(scan, bundle)[None]
        begin = time.perf_counter()
        classifier.classify(volume)
        finished.append(time.perf_counter() - begin)
    return list(itertools.accumulate(finished)), list(volume.shape[1:])


def run_pytorch(
    scans: list[Path], bundle: Path, model: str, threads: int, *, monai: bool, frozen: bool
) -> tuple[list[float], list[int]]:
    import torch

    from ssclf.learning.networks import build_network

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    network = build_network(model, channels=1, classes=len(CLASSES)).eval()  # type: ignore[arg-type]
    network.load_state_dict(torch.load(bundle / "weights.pt", weights_only=True))
    read = monai_steps() if monai else torchio_steps()
    run: Any = network
    if frozen:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        run = freeze(network, read(scans[0])[None])
    finished = []
    with torch.inference_mode():
        for scan in scans:
            volume = read(scan)
            batch = volume[None].to(memory_format=torch.channels_last_3d) if frozen else volume[None]
            torch.softmax(run(batch), dim=1).numpy()
            finished.append(time.perf_counter())
    return finished, list(volume.shape)


def freeze(network: Any, example: Any) -> Any:
    """A network that TorchScript has frozen and optimised, warmed up: its first two calls compile it."""
    import torch

    example = example.to(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        traced = torch.jit.trace(network, example)
        optimised = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
        for _ in range(2):
            optimised(example)
    return optimised


def monai_steps() -> Callable[[Path], Any]:
    try:
        from monai.transforms import Compose, LoadImage, Orientation, ScaleIntensityRangePercentiles, Spacing
    except ImportError:
        sys.exit("MONAI is not installed: pip install monai")

    steps = Compose(
        [
            LoadImage(image_only=True, ensure_channel_first=True),
            Orientation(axcodes="RAS"),
            Spacing((2, 2, 2), mode="bilinear"),
            ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True),
        ]
    )
    # (C, W, H, D) to (C, D, H, W), and one slice less where it rounds up: the same input for all
    return lambda path: steps(path).as_tensor().permute(0, 3, 2, 1)[:, :77].contiguous()


def torchio_steps() -> Callable[[Path], Any]:
    import torchio as tio

    steps = tio.Compose(
        [tio.ToCanonical(), tio.Resample(2), tio.RescaleIntensity((0, 1), percentiles=(0.5, 99.5))]
    )
    return lambda path: steps(tio.ScalarImage(path)).data.float().permute(0, 3, 2, 1).contiguous()


def prepared(scan: Path, bundle: Path) -> np.ndarray:
    from ssclf.domain.preprocessing import preprocess
    from ssclf.io.models.bundle import open_bundle
    from ssclf.io.volumes.read import read_volume

    return preprocess(read_volume(scan), open_bundle(bundle).spec.preprocess).data


def make_scans(folder: Path, paths: list[Path], count: int) -> None:
    """Links to the volumes, again and again up to `count`; synthetic ones where none are given."""
    folder.mkdir()
    if not paths:
        paths = [folder.parent / "synthetic.nii.gz"]
        make_synthetic(paths[0])
        print("no volumes given: a synthetic one of BraTS's size")
    for number, path in zip(range(count), itertools.cycle(paths), strict=False):
        (folder / f"{number}-{path.name}").hardlink_to(path) if path.parent == folder.parent else (
            folder / f"{number}-{path.name}"
        ).write_bytes(path.read_bytes())


def make_synthetic(path: Path) -> None:
    from ssclf.domain.volume import Volume
    from ssclf.io.volumes.nifti import write_nifti

    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (155, 240, 240)), indexing="ij"))
    radius = ((grid / np.array([0.9, 0.72, 0.6])[:, None, None, None]) ** 2).sum(axis=0)
    noise = np.random.default_rng(0).normal(0, 30, radius.shape)
    data = np.where(radius < 1, 500 + 200 * np.sin(9 * grid).sum(axis=0) + noise, 0).clip(0)
    affine = np.array([[0, 0, -1, 120], [0, -1, 0, 120], [1, 0, 0, -77], [0, 0, 0, 1]], float)  # LPS
    write_nifti(Volume(data[None].astype(np.int16), affine), path)


def make_bundle(folder: Path, model: str, crop: str, scan: Path) -> None:
    """An untrained network as `ssclf export --int8` would write it, its PyTorch weights beside it.

    Args:
        scan: gives the ranges of 8 bits.
    """
    import torch

    network = make_plain_bundle(folder, model, crop)
    torch.save(network.state_dict(), folder / "weights.pt")
    add_eight_bits(folder, network, model, scan)


def add_eight_bits(folder: Path, network: Any, model: str, scan: Path) -> None:
    """Add a network in 8 bits to a bundle, with ranges from one scan without its skull."""
    from ssclf.domain.eight_bits import EightBits
    from ssclf.domain.model_spec import ModelSpec
    from ssclf.io.models.checksums import write_checksums
    from ssclf.learning.quantising import Quantiser

    spec = ModelSpec.from_json((folder / "spec.json").read_text("utf-8"), folder.name)
    volume = prepared(scan, folder)[None]
    eight = EightBits(
        temperature=1.0, fitted_on=None, part="train", volumes=1, largest_difference=0.0, changed=0
    )
    described = dataclasses.replace(spec, int8=eight).to_json()
    with tempfile.TemporaryDirectory() as work:
        quantiser = Quantiser(network, model, 1, Path(work), lambda: iter([volume]))
        (folder / "model.int8.onnx").write_bytes(quantiser.quantise((), {"spec.json": described}))
    (folder / "spec.json").write_text(described, "utf-8")
    write_checksums(folder)


def make_plain_bundle(folder: Path, model: str, crop: str) -> Any:
    """An untrained network as `ssclf export` would write it, by whatever version of ssclf is imported.

    Returns:
        the network.
    """
    import torch

    from ssclf.config import PreprocessConfig
    from ssclf.domain.model_spec import ModelSpec
    from ssclf.io.models.checksums import write_checksums
    from ssclf.learning.exporting import export_onnx
    from ssclf.learning.networks import build_network

    folder.mkdir()
    torch.manual_seed(0)
    network = build_network(model, channels=1, classes=len(CLASSES)).eval()  # type: ignore[arg-type]
    spec = ModelSpec(
        name=folder.name,
        architecture=model,
        class_names=CLASSES,
        preprocess=PreprocessConfig(crop=crop),  # type: ignore[arg-type]
        training={"synthetic": True},
        versions={},
    )
    (folder / "spec.json").write_text(spec.to_json(), "utf-8")
    export_onnx(network, 1, folder / "model.onnx", {"spec.json": spec.to_json()})
    write_checksums(folder)
    return network


def undisturbed(run: Callable[[], Result], tries: int = 2) -> Result:
    """The result of a run during which others had at most 12 % of the machine, else of the least disturbed (Linux)."""

    def times() -> tuple[float, float, float]:
        user, nice, system, idle, iowait, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        own = sum(
            sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return busy, own, busy + (idle + iowait) / os.sysconf("SC_CLK_TCK")

    found: list[tuple[float, Result]] = []
    while len(found) < tries and not (found and found[-1][0] <= _OTHERS):
        before = times()
        result = run()
        busy, own, total = (after - first for after, first in zip(times(), before, strict=True))
        found.append(((busy - own) / total, result))
    share, best = min(found, key=lambda entry: entry[0])
    if share > _OTHERS:
        print(f"  (disturbed: others had {share:.0%} of the machine)", file=sys.stderr, flush=True)
    return best


def forward_gflops(model: str, shape: list[int]) -> float:
    from ssclf.learning.cost import measure_cost

    return measure_cost(model, np.zeros(shape, np.float32), classes=len(CLASSES), device="cpu").gflops  # type: ignore[arg-type]


def cpu_kind() -> str:
    """Name of the processor, and which instructions for 8 bits it has (Linux)."""
    parts = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    lines = {name.strip(): value.strip() for name, _, value in parts}
    flags = lines.get("flags", "").split()
    found = [
        f"{what} {'yes' if any(flag in flags for flag in names) else 'no'}" for what, names in _KINDS.items()
    ]
    return f"{lines.get('model name', 'unknown processor')}, {os.cpu_count()} cores: {', '.join(found)}"


def matrix_rate(threads: int) -> float:
    """The best of several float32 products of square matrices in PyTorch (MKL), in GFLOP/s."""
    import torch

    torch.set_num_threads(threads)
    best = 0.0
    for size in (1024, 2048, 4096):
        a, b = torch.rand(size, size), torch.rand(size, size)
        for _ in range(5):
            begin = time.perf_counter()
            a @ b
            best = max(best, 2e-9 * size**3 / (time.perf_counter() - begin))
    return best


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    main()
