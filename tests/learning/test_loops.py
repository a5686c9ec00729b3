from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from ssclf.config import TrainConfig
from ssclf.errors import ConfigError, ModelError
from ssclf.io.records.preprocessed import PreparedCohort, read_prepared_cohort
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.datasets import EpochSampler, VolumeDataset, collate
from ssclf.learning.loops import Trainer, make_scheduler, start_fabric
from ssclf.learning.losses import class_weights
from ssclf.learning.networks import VolumeNetwork, build_network
from ssclf.learning.shallow import keep_shallow_maps_in_32_bits

CONFIG = TrainConfig(epochs=2, learning_rate=1e-3, precision="32-true", augmentation="none", seed=1)


def make_trainer(cohort: PreparedCohort, config: TrainConfig) -> tuple[Trainer, VolumeNetwork]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build_network(
        "mc3",
        channels=len(cohort.preprocess.contrasts),
        classes=len(cohort.class_names),
        dropout=config.dropout,
    )
    fabric = start_fabric(config, "cpu")
    return Trainer(fabric, network, config, cohort, list(cohort.samples), workers=0), network


def frozen_normalisation(network: nn.Module) -> None:
    """Without statistics of the batch, a batch and the same volumes one by one have the same gradient."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.track_running_stats = True
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
            module.training = False


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_a_step_is_the_step_of_a_plain_loop(
    batch_size: int, accumulate: int, preprocessed: Callable[..., Path]
) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=2, contrasts=("t1ce", "flair")))
    config = dataclasses.replace(CONFIG, batch_size=batch_size, accumulate=accumulate, dropout=0.0)
    trainer, network = make_trainer(cohort, config)
    _, reference = make_trainer(cohort, config)
    for each in (network, reference):
        frozen_normalisation(each)
    result = trainer.train_epoch()

    order = [index for _, index in EpochSampler(6, seed=config.seed, shuffle=True)]
    dataset = VolumeDataset(cohort.samples, cohort.class_names, augmentation="none", seed=0)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, weight_decay=1e-3)
    weights = class_weights(cohort.counts(cohort.samples))
    losses = []
    for start in range(0, 6, batch_size * accumulate):
        items = [dataset[0, i] for i in order[start : start + batch_size * accumulate]]
        batch = collate(items)
        each_loss = nn.functional.cross_entropy(reference(batch.volumes), batch.targets, reduction="none")
        each_loss = each_loss * weights[batch.targets]
        optimizer.zero_grad()
        each_loss.mean().backward()
        optimizer.step()
        losses += each_loss.tolist()
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert result.finished
    assert 0 <= result.wait_share <= 1
    for (name, ours), theirs in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-4, rtol=0, msg=f"{name} differs")


def test_predictions_are_those_of_the_network_in_eval_mode(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=2))
    trainer, network = make_trainer(cohort, dataclasses.replace(CONFIG, augmentation="light", batch_size=3))
    trainer.train_epoch()
    samples = list(cohort.samples)[::-1]
    first, again = trainer.predict(samples), trainer.predict(samples)
    np.testing.assert_array_equal(first.logits, again.logits)
    dataset = VolumeDataset(samples, cohort.class_names, augmentation="none", seed=0)
    with torch.no_grad():
        for index, row in enumerate(first.logits):
            volume = torch.from_numpy(dataset[0, index].data)
            torch.testing.assert_close(network.eval()(volume[None])[0], torch.from_numpy(row))
    assert first.targets.tolist() == [cohort.class_names.index(s.label) for s in samples]


def test_settled_averages_are_those_of_the_volumes_as_they_are(
    preprocessed: Callable[..., Path], preprocessed_others: Callable[..., Path]
) -> None:
    """Those that ran along are of other weights, of volumes that were turned, and of the background of batches."""
    larger = preprocessed_others(per_class=2, shape=(7, 23, 26))
    cohort = read_prepared_cohort([preprocessed(per_class=2), larger])
    config = dataclasses.replace(CONFIG, augmentation="light", batch_size=4, settle=True)
    trainer, network = make_trainer(cohort, config)
    trainer.train_epoch()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainer.settle()
    volumes = [torch.from_numpy(read_written(sample.path).data)[None] for sample in cohort.samples]
    assert len({volume.shape for volume in volumes}) == 2
    with torch.no_grad():
        found = [network.stem[0](volume).transpose(0, 1).flatten(1) for volume in volumes]
    norm = network.stem[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([f.mean(dim=1) for f in found]).mean(dim=0))
    torch.testing.assert_close(norm.running_var, torch.stack([f.var(dim=1) for f in found]).mean(dim=0))
    for key, value in network.state_dict().items():
        assert "tracked" in key or torch.equal(value, before[key]) == ("running" not in key), key
    assert not any(module.training for module in network.modules())
    once = {key: value.clone() for key, value in network.state_dict().items()}
    trainer.settle()
    assert all(torch.equal(value, once[key]) for key, value in network.state_dict().items())


def test_volumes_with_one_value_a_channel_settle_in_batches(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=4, shape=(1, 14, 14)))
    trainer, network = make_trainer(cohort, dataclasses.replace(CONFIG, batch_size=4, settle=True))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network.train()(torch.rand(1, 1, 1, 14, 14))
    trainer.train_epoch()
    trainer.settle()
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert network.eval()(torch.rand(1, 1, 1, 14, 14)).isfinite().all()


@pytest.mark.parametrize("looks", [1, 15, 25, 45, 70])
def test_a_step_that_is_left_in_its_middle_has_not_begun(
    looks: int, preprocessed: Callable[..., Path]
) -> None:
    """A step of large volumes takes minutes on a processor, and who is told to end has seconds."""
    cohort = read_prepared_cohort(preprocessed(per_class=2))
    config = dataclasses.replace(CONFIG, batch_size=2, accumulate=2, dropout=0.3)
    whole, reference = make_trainer(cohort, config)
    whole.train_epoch()
    torch.manual_seed(0)
    trainer, network = make_trainer(cohort, config)
    asked = itertools.count(1)
    first = trainer.train_epoch(stop=lambda: next(asked) >= looks)
    # a step of two batches asks at each of 20 convolutions of both, there and back
    assert not first.finished and next(asked) == looks + 1
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert trainer.train_epoch(stop=lambda: True).finished is False
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert trainer.train_epoch().finished
    for (name, ours), theirs in zip(network.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert all(map(torch.equal, network.buffers(), reference.buffers()))


def test_settling_leaves_frozen_stages_alone(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=4))
    trainer, network = make_trainer(cohort, dataclasses.replace(CONFIG, batch_size=4, settle=True, freeze=5))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trainer.train_epoch()
    trainer.settle()
    different = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert different == {"fc.weight", "fc.bias"}


def rates(cohort: PreparedCohort, config: TrainConfig) -> list[float]:
    trainer, _ = make_trainer(cohort, config)
    return [trainer.train_epoch().learning_rate for _ in range(config.epochs)]


def test_learning_rates_follow_their_schedule(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=1, labels=("a", "b"), shape=(2, 17, 9)))
    # one step an epoch
    config = dataclasses.replace(CONFIG, learning_rate=8e-4, epochs=8, batch_size=2)
    assert rates(cohort, config) == [8e-4] * 8
    warm = rates(cohort, dataclasses.replace(config, warmup=0.5))
    assert warm == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4, 8e-4, 8e-4])
    cosine = rates(cohort, dataclasses.replace(config, schedule="cosine"))
    assert cosine == pytest.approx([4e-4 * (1 + np.cos(np.pi * step / 8)) for step in range(8)])
    cycle = rates(cohort, dataclasses.replace(config, schedule="onecycle", warmup=0.25))
    assert cycle[0] == pytest.approx(8e-4 / 25)
    assert 7e-4 < max(cycle) <= 8e-4
    assert cycle.index(max(cycle)) in (1, 2)
    assert cycle[-1] < 5e-5


SHARES = sorted({0.0, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.75, 0.9, *(1 / n for n in range(2, 52))})


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_a_run_of_any_length_has_a_schedule(schedule: Literal["onecycle", "cosine", "constant"]) -> None:
    """Four steps and a fifth of them to rise were a division by zero."""
    for steps, warmup in itertools.product(range(1, 51), SHARES):
        if warmup > 0.9:
            continue
        config = dataclasses.replace(CONFIG, schedule=schedule, warmup=warmup, learning_rate=1e-3)
        optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
        scheduler = make_scheduler(optimizer, config, steps)
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert all(0 < rate <= 1e-3 * (1 + 1e-9) for rate in found), (steps, warmup, found)


@pytest.mark.filterwarnings("ignore:The `srun` command")
def test_the_schedule_waits_for_a_step_that_was_left_out(preprocessed: Callable[..., Path]) -> None:
    """With 16 bits the first steps are left out until the loss scale fits; the rate rose all the same."""
    cohort = read_prepared_cohort(preprocessed(per_class=2, labels=("a", "b"), shape=(2, 17, 9)))
    config = dataclasses.replace(CONFIG, batch_size=2, schedule="onecycle", epochs=1)
    torch.set_num_threads(1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-120)
    precision = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision, LightningEnvironment()])
    fabric.launch()
    network = build_network("mc3", channels=1, classes=2, dropout=0.0)
    trainer = Trainer(fabric, network, config, cohort, list(cohort.samples), workers=0)
    before = {name: value.clone() for name, value in network.named_parameters()}
    taken: list[int] = []
    scales: list[float] = []

    def on_step(step: int, loss: float) -> None:
        scales.append(scaler.get_scale())
        taken.append(trainer.state_dict()["scheduler"]["last_epoch"])
        if step == 1:
            assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())

    trainer.train_epoch(on_step=on_step)
    assert scales == [2.0**7] * 2 and taken == [0, 1]


def test_a_loss_that_is_not_finite_stops_the_run(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=2))
    trainer, network = make_trainer(cohort, dataclasses.replace(CONFIG, batch_size=2))
    with torch.no_grad():
        network.fc.bias.fill_(float("nan"))
    kept = {name: value.clone() for name, value in network.named_parameters()}
    message = r"loss became nan at step 1 of 3 in epoch 1 \(learning rate 0.001\); lower the learning rate"
    with pytest.raises(ModelError, match=message):
        trainer.train_epoch()
    for name, value in network.named_parameters():  # the step was not taken
        assert torch.equal(value, kept[name]) or name == "fc.bias"
    with pytest.raises(ModelError, match=r"1 of the network's tensors hold NaN .* first of them fc\.bias"):
        trainer.check_weights()
    samples = list(cohort.samples)
    with pytest.raises(ModelError, match=r"NaN or infinity for 6 of the 6 validation volumes .* HGG/HGG0"):
        trainer.predict(samples, "validation")


def test_a_cpu_mixes_precisions_only_where_that_is_meant(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=2))
    losses = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed", "bf16-mixed-cpu"):
        config = dataclasses.replace(CONFIG, precision=precision, batch_size=2, dropout=0.0)
        trainer, _ = make_trainer(cohort, config)
        losses[precision] = trainer.train_epoch().loss
    assert losses["bf16-mixed"] == losses["16-mixed"] == losses["32-true"]
    assert losses["bf16-mixed-cpu"] != losses["32-true"]
    assert losses["bf16-mixed-cpu"] == pytest.approx(losses["32-true"], abs=0.05)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 1, 1), (1, 3, 3), (3, 7, 7)])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_gradients_of_shallow_maps_are_right_in_mixed_precision(
    kernel: tuple[int, int, int], depth: int
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    convolution = nn.Conv3d(16, 16, kernel, padding=padding)
    volumes = torch.rand(4, 16, depth, 6, 5, generator=torch.Generator().manual_seed(1))
    (exact,) = torch.autograd.grad(convolution(volumes).square().sum(), convolution.weight)
    keep_shallow_maps_in_32_bits(convolution)
    for _ in range(3):
        torch.full((1 << 18,), 1e4, dtype=torch.bfloat16)  # what the memory holds that nobody has written
        with torch.autocast("cpu", torch.bfloat16):
            loss = convolution(volumes).float().square().sum()
        (mixed,) = torch.autograd.grad(loss, convolution.weight)
        assert (mixed - exact).abs().max() < 0.05 * exact.abs().max()


def test_cuda_is_never_replaced_silently() -> None:
    if torch.cuda.is_available():
        assert start_fabric(CONFIG, "cuda").device.type == "cuda"
    else:
        with pytest.raises(ConfigError, match="torch finds no GPU"):
            start_fabric(CONFIG, "cuda")


DISTRIBUTED = """
import sys, torch
from pathlib import Path
from ssclf.config import TrainConfig
from ssclf.workflows.train import Machine, train
torch.set_num_threads(1)
config = TrainConfig(epochs=2, learning_rate=1e-3, batch_size=2, holdout=0.25, validation=0.34,
                     precision="32-true", seed=2)
result = train(Path(sys.argv[1]), Path(sys.argv[2]), config, machine=Machine(device="cpu", workers=0))
import os
torch.save({"loss": [r.val_loss for r in result.epochs], "confusion": result.test.confusion},
           Path(sys.argv[2]).with_name(f"rank{os.environ['RANK']}.pt"))
"""


def test_two_processes_train_one_network(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(preprocessed(per_class=5)), str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    assert sum(sum(row) for row in first["confusion"]) == 3
    assert (tmp_path / "run" / "checkpoints" / "chosen.pt").is_file()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3
