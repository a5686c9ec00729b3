"""What a GPU does for ssclf, as Markdown: brain extraction, the networks, and `predict` from scans to rows.

    python scripts/bench_gpu.py > gpu.md                         # on a machine with a GPU; extras gpu and train
    python scripts/bench_gpu.py --device cpu --models small      # the same way, with tiny volumes, to see that it runs

Every table says which provider of ONNX Runtime its sessions really used. Heads are SYNTHETIC phantoms and weights are
random: neither changes a time. Differences are the largest in probability against the same network in float32 on this
machine's CPU; 1e-4 is what is promised for float32. What cannot be run is a cell that says why.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from bench_predict import CLASSES

from ssclf.config import PredictConfig, PreprocessConfig
from ssclf.domain.scores import softmax
from ssclf.domain.volume import Volume
from ssclf.io.discovery.sources import discover
from ssclf.io.extraction.deepbet import BOX_MODEL, BOX_SIZE, MASK_MODEL, MASK_SIZE
from ssclf.io.extraction.owner import NetworkOwner, OwnedNetworks, lend
from ssclf.io.models import batches
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.checksums import write_checksums
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.models.onnx_session import import_onnxruntime, open_session
from ssclf.io.models.runtime import cuda_providers
from ssclf.io.volumes.nifti import write_nifti
from ssclf.io.workers import Workers, run_in_processes
from ssclf.workflows.classification import RowMaker, make_network_inputs

#: Voxels of 2 mm: the field of BraTS, and a brain's box; and what stands for them on a CPU.
FIELDS = {"full field": (78, 120, 120), "crop": (70, 90, 74)}
TINY = {"full field": (16, 24, 20), "crop": (12, 20, 18)}
#: Options of ONNX Runtime's CUDA provider, in the place of ours.
NUMBERS: dict[str, dict[str, str]] = {
    "fp32": {},
    "fp32, NHWC": {"prefer_nhwc": "1"},
    "TF32": {"use_tf32": "1"},
    "TF32, NHWC": {"use_tf32": "1", "prefer_nhwc": "1"},
    "fp16": {},
    "fp16, NHWC": {"prefer_nhwc": "1"},
}
CPU: list[Any] = [("CPUExecutionProvider", {})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", default="small,mc3,r2plus1d,r3d")
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--workers", default="1,2,4,8,16", help="more than there are cores are left out")
    parser.add_argument("--heads", type=int, help="a run; default 4 a worker, on a CPU 2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="networks,extraction,predict")
    parser.add_argument("--cuda-graphs", action="store_true", help="another row for each: CUDA graphs")
    arguments = parser.parse_args()
    machine(arguments.device)
    parts = arguments.parts.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "networks" in parts:
            networks(arguments, folder)
        from ssclf.learning.extraction_export import cached_brain_extraction

        extraction = [path for path in cached_brain_extraction() if path.suffix == ".onnx"]
        if "extraction" in parts:
            extraction_networks(arguments, extraction)
        if "predict" in parts:
            heads = make_heads(folder / "heads", arguments)
            end_to_end(arguments, heads, make_bundle(folder / "bundle", extraction))


def machine(device: str) -> None:
    """What the numbers are from; ends here where the device does not run."""
    ort = import_onnxruntime()
    words = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() or "none"
    except (OSError, subprocess.CalledProcessError):
        gpu = "none"
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(": ")[2] for line in cpuinfo.splitlines() if line.startswith("model name")]
    print(f"# `scripts/bench_gpu.py --device {device}`, {time.strftime('%Y-%m-%d')}\n")
    print(
        f"- GPU: {gpu}\n- processor: {names[0] if names else platform.machine()}, {cores()} cores for this run"
    )
    print(f"- ONNX Runtime {ort.__version__} ({', '.join(ort.get_available_providers())})")
    print(f"- load of the machine before: {os.getloadavg()[0]:.1f}")
    if device == "cpu":
        print(
            "\n**Nothing here ran on a GPU**, and volumes are tiny: this shows that the script runs, no speed."
        )
    elif "CUDAExecutionProvider" not in ort.get_available_providers():
        sys.exit('this onnxruntime is a build for the CPU: pip install "ssclf[gpu]", or --device cpu')
    sys.stdout.flush()


def networks(arguments: argparse.Namespace, folder: Path) -> None:
    """Milliseconds a volume for each network, graph, field, kind of numbers and batch."""
    sizes = [int(word) for word in arguments.batches.split(",")]
    fields = TINY if arguments.device == "cpu" else FIELDS
    numbers = NUMBERS if arguments.device == "cuda" else {"fp32": {}, "fp16": {}}
    for model in arguments.models.split(","):
        graphs = dict(export(folder, model))
        for field, shape in fields.items():
            volumes = np.random.default_rng(0).random((max(sizes), 1, *shape), np.float32)
            truth = probabilities(open_session(graphs[exported(model), "fp32"], CPU, 0), volumes)
            head = " | ".join(f"batch {size}" for size in sizes)
            print(f"\n## {model}, {field} ({'×'.join(map(str, shape))} voxels), ms a volume\n")
            print(
                f"| graph | numbers | ran on | {head} | difference |\n|---|---|---|{'---|' * len(sizes)}---|"
            )
            for graph in sorted({graph for graph, _ in graphs}, reverse=True):
                for name, options in numbers.items():
                    path = graphs[graph, name.split(",")[0].replace("TF32", "fp32")]
                    with_graphs = [{}, {"enable_cuda_graph": "1"}] if arguments.cuda_graphs else [{}]
                    for more in with_graphs:
                        cells = measure(path, arguments, {**options, **more}, volumes, sizes, truth)
                        print(f"| {graph} | {name}{', CUDA graph' if more else ''} | {' | '.join(cells)} |")
                        sys.stdout.flush()


def exported(model: str) -> str:
    """The graph that `ssclf export` writes in float32."""
    from ssclf.learning.exporting import PLANAR

    return "planar" if model in PLANAR else "3-D"


def export(folder: Path, model: str) -> Iterator[tuple[tuple[str, str], Path]]:
    """One network, its weights random, as each graph in 32 and 16 bits."""
    import torch

    from ssclf.learning.exporting import export_onnx
    from ssclf.learning.networks import build_network

    torch.manual_seed(0)
    network = build_network(model, channels=1, classes=len(CLASSES)).eval()  # type: ignore[arg-type]
    spread(network)
    for graph in dict.fromkeys(("3-D", exported(model))):
        for number in ("fp32", "fp16"):
            path = folder / f"{model}-{graph}-{number}.onnx"
            export_onnx(network, 1, path, {}, planar=graph == "planar", precision=number)
            yield (graph, number), path


def spread(network: Any) -> None:
    """Weights of a random last layer that make probabilities differ from a third, as trained ones do."""
    network.fc.weight.data.mul_(20)


def measure(
    path: Path,
    arguments: argparse.Namespace,
    options: dict[str, str],
    volumes: np.ndarray[Any, np.dtype[np.float32]],
    sizes: Sequence[int],
    truth: np.ndarray[Any, Any],
) -> list[str]:
    """Cells: the provider, a time for each batch, the difference."""
    try:
        plain = {key: value for key, value in options.items() if key != "enable_cuda_graph"}
        session = open_session(path, providers(arguments.device, **plain), 0)
        ran = session.get_providers()[0].removesuffix("ExecutionProvider")
        difference = f"{np.abs(probabilities(session, volumes[:1]) - truth[:1]).max():.1e}"
    except Exception as exc:  # onnxruntime's share no public base
        return [why(exc), *["" for _ in sizes], ""]
    cells = []
    for size in sizes:
        try:
            run: Callable[[], object]
            if "enable_cuda_graph" in options:  # a session for each shape: it keeps what it recorded
                shapes = [output.shape for output in session.run(None, {"volume": volumes[:size]})]
                recording = open_session(path, providers(arguments.device, **options), 0)
                run = recorded(recording, volumes[:size], shapes)
            else:
                run = partial(session.run, None, {"volume": volumes[:size]})
            cells.append(f"{1000 * median_s(run, arguments.rounds) / size:.1f}")
        except Exception as exc:
            cells.append(why(exc))
    return [ran, *cells, difference]


def recorded(
    session: Any, batch: np.ndarray[Any, np.dtype[np.float32]], shapes: Sequence[Sequence[int]]
) -> Callable[[], object]:
    """A run whose kernels are recorded once and then started together: everything stays where it is on the GPU.

    Args:
        shapes: of the outputs.
    """
    ort = import_onnxruntime()
    binding = session.io_binding()
    binding.bind_ortvalue_input("volume", ort.OrtValue.ortvalue_from_numpy(batch, "cuda", 0))
    for output, shape in zip(session.get_outputs(), shapes, strict=True):
        place = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0)
        binding.bind_ortvalue_output(output.name, place)
    return partial(session.run_with_iobinding, binding)


def providers(device: str, **options: str) -> list[Any]:
    return CPU if device == "cpu" else cuda_providers(import_onnxruntime(), **options)


def probabilities(session: Any, volumes: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
    return np.concatenate([softmax(session.run(["logits"], {"volume": one[None]})[0]) for one in volumes])


def extraction_networks(arguments: argparse.Namespace, models: list[Path]) -> None:
    """Milliseconds of deepbet's two networks, asked as a worker asks the owner."""
    print(
        "\n## deepbet's networks, ms a call\n\n| who runs it | box network | mask network | brain differs |"
    )
    print("|---|---|---|---|")
    from ssclf.learning.extraction_export import _head_phantom

    cubes = {BOX_MODEL: _head_phantom(BOX_SIZE)[0, 0], MASK_MODEL: _head_phantom(MASK_SIZE)[0, 0]}
    truth = {}
    cells = []
    for name, cube in cubes.items():
        session = open_session(next(path for path in models if path.name == name), CPU, 1)
        run = partial(session.run, None, {"head": cube[None, None]})
        truth[name] = run()[0][0, 0] > 0.5
        cells.append(f"{1000 * median_s(run, min(arguments.rounds, 2)):.0f}")
    print(f"| a worker: CPU, one thread | {' | '.join(cells)} | |")
    with NetworkOwner(models, MASK_SIZE**3, providers(arguments.device)) as owner:
        networks, cells, differing = OwnedNetworks(owner.address), [], []
        for name, cube in cubes.items():
            found = networks.ask(name, cube)
            if found is None:
                cells.append("refused")
                continue
            differing.append(float(np.mean((found > 0.5) != truth[name])))
            cells.append(
                f"{1000 * median_s(partial(networks.ask, name, cube), min(arguments.rounds, 2)):.0f}"
            )
        ran = arguments.device.upper() if owner.loaded else "nothing"
        share = f"{max(differing):.1e} of the voxels" if differing else ""
    print(f"| the owner: {ran}, with both ways through shared memory | {' | '.join(cells)} | {share} |")
    sys.stdout.flush()


def end_to_end(arguments: argparse.Namespace, heads: Path, bundle: Path) -> None:
    """Heads a second: brain extraction alone, and all of `predict`, with workers alone and with the owner."""
    print(f"\n## Heads a second, {len(list(heads.iterdir()))} heads a run, network on {arguments.device}\n")
    columns = ["workers", "extraction by workers", "extraction by the owner"]
    columns += ["predict, extraction by workers, one volume at once", "predict, by the owner, in batches"]
    print(f"| {' | '.join([*columns, 'largest difference'])} |\n|---|---|---|---|---|---|")
    for workers in (int(word) for word in arguments.workers.split(",")):
        if workers > cores():
            print(f"| {workers} | not run: {cores()} cores | | | | |")
            continue
        lent = providers(arguments.device)
        cells = [f"{extract_rate(bundle, heads, workers, one):.2f}" for one in ((), lent)]
        before, first = predict_rate(arguments.device, bundle, heads, workers, (), 1)
        now, second = predict_rate(arguments.device, bundle, heads, workers, lent, batches.TOGETHER["cuda"])
        cells += [f"{before:.2f}", f"{now:.2f}"]
        differences = [np.abs(np.subtract(first[path], second[path])).max() for path in first]
        print(f"| {workers} | {' | '.join(cells)} | {max(differences):.1e} |")
        sys.stdout.flush()


def extract_rate(path: Path, heads: Path, workers: int, lent: Sequence[Any]) -> float:
    """From scans to network input; workers are started, and their networks loaded, before the clock."""
    bundle = open_bundle(path)
    scans = discover([heads], contrasts=bundle.spec.preprocess.contrasts).scans
    with lend(bundle.extraction, MASK_SIZE**3, lent) as owner, tempfile.TemporaryDirectory() as scratch:
        work = partial(
            make_network_inputs,
            settings=(bundle.spec.preprocess,),
            skull_strip="deepbet",
            extraction=bundle.extraction,
            scratch=Path(scratch),
            owner=owner.address if owner else None,
        )
        pool = Workers(workers)
        try:
            list(run_in_processes(work, scans[:workers], workers=workers, pool=pool))
            begin = time.perf_counter()
            outcomes = list(run_in_processes(work, scans, workers=workers, pool=pool))
            seconds = time.perf_counter() - begin
        finally:
            pool.stop()
    failed = [outcome.error for outcome in outcomes if outcome.result is None]
    if failed:
        sys.exit(f"{len(failed)} heads failed: {failed[0]}")
    return len(scans) / seconds


def predict_rate(
    device: Any, path: Path, heads: Path, workers: int, lent: Sequence[Any], together: int
) -> tuple[float, dict[str, tuple[float, ...]]]:
    """From scans to rows, from the first row to the last; and the probabilities."""
    batches.TOGETHER[device] = together
    config = PredictConfig(skull_strip="deepbet", device=device, workers=workers)
    ensemble = Ensemble([open_bundle(path)], config)
    scans = discover([heads], contrasts=ensemble.contrasts).scans
    finished, found = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for row in RowMaker(ensemble, config, Path(scratch), lent=lent).rows(scans, lambda: False):
            if row.status != "ok":
                sys.exit(f"{row.path}: {row.error}")
            finished.append(time.perf_counter())
            found[row.path] = row.probabilities
    return (len(finished) - 1) / max(finished[-1] - finished[0], 1e-9), found


def make_heads(folder: Path, arguments: argparse.Namespace) -> Path:
    """Phantoms of a head, no two alike, on a grid of 2 mm; all of one shape."""
    from ssclf.learning.extraction_export import _head_phantom

    count = arguments.heads or 4 * max(
        int(word) for word in arguments.workers.split(",") if int(word) <= cores()
    )
    if arguments.device == "cpu" and not arguments.heads:
        count = 2
    folder.mkdir()
    head = (_head_phantom(96)[0, 0] * 400).clip(0)
    affine = np.array([[0, 0, 2, -96], [0, 2, 0, -96], [2, 0, 0, -96], [0, 0, 0, 1]], float)
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 8, head.shape)
        write_nifti(
            Volume((head + noise)[None].astype(np.int16), affine), folder / f"head-{number:03}.nii.gz"
        )
    return folder


def make_bundle(folder: Path, extraction: list[Path]) -> Path:
    """An untrained mc3 with deepbet's networks, on the brain's box."""
    import torch

    from ssclf.domain.model_spec import ModelSpec
    from ssclf.learning.exporting import export_onnx
    from ssclf.learning.networks import build_network

    folder.mkdir()
    torch.manual_seed(0)
    network = build_network("mc3", channels=1, classes=len(CLASSES)).eval()
    spread(network)
    spec = ModelSpec(
        name=folder.name,
        architecture="mc3",
        class_names=CLASSES,
        preprocess=PreprocessConfig(crop="brain"),
        training={"synthetic": True},
        versions={},
    )
    (folder / "spec.json").write_text(spec.to_json(), "utf-8")
    export_onnx(network, 1, folder / "model.onnx", {"spec.json": spec.to_json()})
    for path in extraction:
        (folder / path.name).write_bytes(path.read_bytes())
    write_checksums(folder)
    return folder


def median_s(run: Callable[[], object], rounds: int) -> float:
    run()  # what is chosen, loaded and recorded once is not timed
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def why(exc: Exception) -> str:
    return f"not run ({type(exc).__name__}: {' '.join(str(exc).split())[:80]})".replace("|", "/")


if __name__ == "__main__":
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    main()
