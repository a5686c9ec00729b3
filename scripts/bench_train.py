"""Training steps side by side: ssclf against a bare PyTorch loop, and what a step costs.

    python scripts/bench_train.py [--models mc3,r2plus1d,r3d] [--shape 78,120,120] [--rounds 5] [--out FILE]

The same network, volume, loss and optimiser for both; every round takes one step of each, in turn, so that a machine
that slows down slows both, and the ratio is taken round by round. Both take what the GPU offers in mixed precision, or
float32 on a CPU. On a GPU also: volumes a second and the share of its measured bf16 matrix rate, for eager,
channels_last_3d and compiled steps with batches of 1 and 8. Then the memory of a step with `--preset paper`: measured
on a GPU; elsewhere estimated from the tensors that a step really keeps for its gradients. Last, what feeds a step:
volumes a second that the loader alone gives in one process (in memory, from `decoded/`, from the stored files), and
what augmentation takes beside the step, for these networks and for `small` on 6 mm. Volumes are random numbers.
`--out` adds the table, dated, to a Markdown file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssclf.config import Architecture, Augmentation, PreprocessConfig, TrainConfig, config_to_dict
from ssclf.domain.volume import Volume
from ssclf.io.decoded import DecodedVolumes
from ssclf.io.records.preprocessed import PreparedCohort, read_prepared_cohort
from ssclf.io.records.tables import write_table
from ssclf.io.volumes.nifti import write_nifti
from ssclf.learning.augmentation import move_batch
from ssclf.learning.datasets import EpochSampler, VolumeDataset
from ssclf.learning.loader import VolumeLoader
from ssclf.learning.loops import Trainer, start_fabric
from ssclf.learning.networks import build_network

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
CLASSES = ("HGG", "LGG", "healthy")
#: What brain crop leaves of a head on 6 mm, about.
SMALL = (24, 30, 26)
KINDS: tuple[Augmentation, ...] = ("light", "heavy")


def make_cohort(folder: Path, shape: tuple[int, int, int], count: int) -> PreparedCohort:
    """Random volumes in the form that `ssclf preprocess` writes."""
    settings = PreprocessConfig()
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        data = random.random((1, *shape), np.float32)
        write_nifti(Volume(data, np.diag([2.0, 2.0, 2.0, 1.0])), folder / f"{number}.nii.gz")
        size = " x ".join(map(str, shape))
        rows.append((f"s{number}", CLASSES[number % 3], "random", f"{number}.nii.gz", size))
    write_table(folder / "manifest.csv", ("subject", "label", "source", "path", "shape"), rows)
    values = {"preprocess": config_to_dict(settings), "hash": settings.hash, "synthetic": True}
    (folder / "settings.json").write_text(json.dumps(values))
    return read_prepared_cohort(folder)


def make_ssclf(config: TrainConfig, cohort: PreparedCohort, count: int) -> Callable[[], None]:
    """One step of ssclf's loop over `count` volumes: reading, moving, loss, Adam, schedule."""
    torch.manual_seed(0)
    network = build_network(config.architecture, channels=1, classes=3)
    train = list(itertools.islice(itertools.cycle(cohort.samples), count))
    trainer = Trainer(start_fabric(config, "auto"), network, config, cohort, train, workers=0)

    def step() -> None:
        trainer.train_epoch()
        if CUDA:
            torch.cuda.synchronize()

    return step


def make_bare(config: TrainConfig, cohort: PreparedCohort, count: int) -> Callable[[], None]:
    """The loop that one would write: the volume lies on the device, nothing is logged or watched."""
    torch.manual_seed(0)
    network = build_network(config.architecture, channels=1, classes=3).to(DEVICE).train()
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    shape = cohort_shape(cohort)
    volumes = torch.rand(count, 1, *shape, device=DEVICE)
    targets = torch.arange(count, device=DEVICE) % 3
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=CUDA and config.precision == "16-mixed")
    kind = torch.float16 if config.precision == "16-mixed" else torch.bfloat16

    def step() -> None:
        with torch.autocast(DEVICE.type, kind, enabled=CUDA and config.precision != "32-true"):
            loss = F.cross_entropy(network(volumes), targets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss.item()
        if CUDA:
            torch.cuda.synchronize()

    return step


def cohort_shape(cohort: PreparedCohort) -> tuple[int, ...]:
    from ssclf.io.volumes.nifti import read_written

    return read_written(cohort.samples[0].path).data.shape[1:]


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def step_gflops(model: Architecture, shape: tuple[int, ...]) -> float:
    """Operations of a forward and backward pass over one volume, counted on tensors without values."""
    network = build_network(model, channels=1, classes=3).train().to("meta")
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(2, 1, *shape, device="meta")).sum().backward()
    return counter.get_total_flops() / 2 / 1e9


def matrix_gflops(kind: torch.dtype, size: int) -> float:
    """What this device reaches on one large matrix product."""
    a = torch.rand(size, size, device=DEVICE).to(kind)

    def call() -> None:
        a @ a
        if CUDA:
            torch.cuda.synchronize()

    call()
    return 2 * size**3 / min(seconds(call) for _ in range(10)) / 1e9


def overhead(model: Architecture, cohort: PreparedCohort, rounds: int) -> tuple[float, float, float]:
    """Median seconds a step of ssclf and of the bare loop, and the median of their ratios."""
    config = TrainConfig(architecture=model, augmentation="none", epochs=rounds + 1)
    steps = [make_ssclf(config, cohort, 1), make_bare(config, cohort, 1)]
    for step in steps:  # not counted: the first step finds algorithms and memory
        step()
    pairs = []
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)
        taken = {which: seconds(steps[which]) for which in order}
        pairs.append((taken[0], taken[1]))
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return ours, theirs, statistics.median(a / b for a, b in pairs)


def gpu_rates(model: Architecture, cohort: PreparedCohort, rounds: int) -> Iterator[tuple[str, int, float]]:
    """(way, batch size, volumes a second) of ssclf's loop in bf16."""
    ways: dict[str, dict[str, Any]] = {
        "eager": {},
        "channels_last_3d": {"channels_last": True},
        "channels_last_3d, compiled": {"channels_last": True, "compile": True},
    }
    base = TrainConfig(architecture=model, augmentation="none", precision="bf16-mixed", deterministic=False)
    for (way, changes), batch in itertools.product(ways.items(), (1, 8)):
        config = replace(base, batch_size=batch, epochs=rounds + 3, **changes)
        step = make_ssclf(config, cohort, batch)
        for _ in range(3):
            step()
        yield way, batch, batch / statistics.median(seconds(step) for _ in range(rounds))
        torch.cuda.empty_cache()


def loader_rates(cohort: PreparedCohort, batch: int = 4, epochs: int = 9) -> dict[str, float]:
    """Volumes a second that one process decodes and puts together, by where they lie."""
    rates = {}
    ways = {
        "memory": DecodedVolumes(cohort),
        "decoded/": DecodedVolumes(cohort, room=0),
        "stored files": None,
    }
    for way, decoded in ways.items():
        dataset = VolumeDataset(cohort.samples, CLASSES, augmentation="none", seed=0, decoded=decoded)
        sampler = EpochSampler(len(dataset), seed=0, shuffle=True)
        loader = VolumeLoader(dataset, sampler, batch_size=batch, workers=0)
        list(loader)  # not counted: the first epoch decodes
        taken = [seconds(partial(list, loader)) for _ in range(epochs)]
        rates[way] = len(dataset) / statistics.median(taken)
    return rates


def augmentation_seconds(kind: Augmentation, cohort: PreparedCohort, draws: int = 32) -> float:
    """Mean time that one volume is changed for."""
    dataset = VolumeDataset(
        cohort.samples, CLASSES, augmentation=kind, seed=0, decoded=DecodedVolumes(cohort)
    )
    plain = VolumeDataset(
        cohort.samples, CLASSES, augmentation="none", seed=0, decoded=DecodedVolumes(cohort)
    )

    def change(dataset: VolumeDataset, number: int) -> None:
        batch = dataset.load([(number, number % len(dataset))])
        move_batch(batch.volumes.to(DEVICE), batch.transforms)
        if CUDA:
            torch.cuda.synchronize()

    for number in range(len(dataset)):
        change(dataset, number)
        change(plain, number)
    taken = [seconds(partial(change, dataset, n)) - seconds(partial(change, plain, n)) for n in range(draws)]
    return statistics.mean(taken)


def step_seconds(model: Architecture, cohort: PreparedCohort, batch: int, rounds: int) -> float:
    """Median time of a step for each of its volumes, without augmentation."""
    config = TrainConfig(architecture=model, augmentation="none", epochs=rounds + 1, batch_size=batch)
    step = make_ssclf(config, cohort, batch)
    step()
    return statistics.median(seconds(step) for _ in range(rounds)) / batch


def feeding(models: list[str], cohort: PreparedCohort, small: PreparedCohort, rounds: int) -> Iterator[str]:
    """Lines of a table: what the loader gives, and what augmentation takes beside the step."""
    yield (
        "| network | grid | loader alone, volumes a second: memory, decoded/, stored files | step, s a volume | "
        "light, s a volume | share of the step | heavy, s a volume |"
    )
    yield "|---|---|---|---|---|---|---|"
    for model, these, batch in [*((model, cohort, 1) for model in models), ("small", small, 12)]:
        rates = ", ".join(f"{rate:,.0f}" for rate in loader_rates(these).values())
        step = step_seconds(model, these, batch, rounds)  # type: ignore[arg-type]
        light, heavy = (augmentation_seconds(kind, these) for kind in KINDS)
        grid = " × ".join(map(str, cohort_shape(these)))
        yield (
            f"| {model}, batch {batch} | {grid} | {rates} | {step:.4f} | {light:.4f} | {light / step:.1%} | "
            f"{heavy:.3f} |"
        )


def paper_memory_gb(model: Architecture, cohort: PreparedCohort) -> float:
    """Memory of one step with the paper's preset, in 10⁹ bytes.

    On a GPU what its allocator held at most. Elsewhere: weights, gradients and Adam's two moments in float32, every
    distinct tensor that autograd keeps for a step under 16-bit autocast, and three times the largest of those for
    what is alive only while it is computed. cuDNN's workspace comes on top.
    """
    config = TrainConfig.preset("paper", architecture=model, augmentation="none")
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        make_ssclf(config, cohort, 1)()
        return torch.cuda.max_memory_reserved() / 1e9
    network = build_network(model, channels=1, classes=3).train()
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    volume = torch.rand(1, 1, *cohort_shape(cohort))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),  # as wide as the paper's float16, which CPUs lack here
    ):
        loss = network(volume).float().sum()
    assert torch.isfinite(loss)
    parameters = sum(p.numel() for p in network.parameters())
    return (16 * parameters + sum(kept.values()) + 3 * max(kept.values())) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mc3,r2plus1d,r3d")
    parser.add_argument("--shape", default="78,120,120", help="slices, rows, columns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Markdown file that the table is added to")
    arguments = parser.parse_args()
    shape = tuple(int(part) for part in arguments.shape.split(","))
    device = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    matrix = matrix_gflops(torch.bfloat16, 8192) if CUDA else matrix_gflops(torch.float32, 4096)
    lines = [
        f"## Training, {date.today()}: {device}",
        "",
        f"`scripts/bench_train.py`, volume {arguments.shape}, random numbers, {arguments.rounds} rounds, torch "
        f"{torch.__version__}, Python {platform.python_version()}; matrix product "
        f"{matrix:,.0f} GFLOP/s in {'bf16' if CUDA else 'float32'}.",
        "",
        "| network | ssclf, s a step | bare PyTorch, s a step | ratio | GFLOP a step | share of matrix rate | "
        "memory of a paper step, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as work:
        cohort = make_cohort(Path(work), shape, 3)  # type: ignore[arg-type]
        rates = []
        for model in arguments.models.split(","):
            ours, theirs, ratio = overhead(model, cohort, arguments.rounds)
            gflops = step_gflops(model, shape)
            lines.append(
                f"| {model} | {ours:.3f} | {theirs:.3f} | {ratio:.3f} | {gflops:,.0f} | {gflops / ours / matrix:.2f} | "
                f"{paper_memory_gb(model, cohort):.2f} {'measured' if CUDA else 'estimated'} |"
            )
            print(lines[-1], flush=True)
            if CUDA:
                rates += [
                    f"| {model} | {way} | {batch} | {rate:.2f} | {rate * gflops / matrix:.2f} |"
                    for way, batch, rate in gpu_rates(model, cohort, arguments.rounds)
                ]
        if rates:
            head = [
                "",
                "| network | bf16 | batch | volumes a second | share of the matrix rate |",
                "|---|---|---|---|---|",
            ]
            print("\n".join([*head, *rates]))
            lines += head + rates
        small = make_cohort(Path(work) / "small", SMALL, 12)
        print(flush=True)
        lines.append("")
        for line in feeding(arguments.models.split(","), cohort, small, arguments.rounds):
            lines.append(line)
            print(line, flush=True)
    if arguments.out:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write("\n".join(["", *lines, ""]))


if __name__ == "__main__":
    main()
