"""Several processes train one network: gloo on CPUs, started as users start them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssclf.config import TrainConfig
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.learning.datasets import EpochSampler, VolumeDataset
from ssclf.learning.losses import class_weights
from ssclf.learning.networks import build_network

CONFIG = TrainConfig(epochs=1, dropout=0.0, augmentation="none", precision="32-true", seed=1)

STEP = """
import sys
from pathlib import Path
import torch
from torch import nn
from ssclf.config import TrainConfig
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.learning.loops import Trainer, start_fabric
from ssclf.learning.networks import build_network
torch.set_num_threads(1)
config = TrainConfig(epochs=1, dropout=0.0, augmentation="none", precision="32-true", seed=1)
cohort = read_prepared_cohort(Path(sys.argv[1]))
fabric = start_fabric(config, "cpu")
torch.manual_seed(0)
network = build_network("mc3", channels=1, classes=3, dropout=0.0)
for module in network.modules():
    if isinstance(module, nn.BatchNorm3d):
        module.train = lambda mode=True, module=module: module
        module.training = False
gradients = []
step = torch.optim.Adam.step
def keep(self, *args, **kwargs):
    gradients.append([p.grad.clone() for p in self.param_groups[0]["params"]])
    return step(self, *args, **kwargs)
torch.optim.Adam.step = keep
trainer = Trainer(fabric, network, config, cohort, list(cohort.samples), workers=0)
trainer.train_epoch(stop=lambda: True)
torch.save(gradients, Path(sys.argv[2]) / f"gradients{fabric.global_rank}.pt")
"""


def torchrun(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_the_gradient_of_a_step_is_the_mean_of_what_two_volumes_give_alone(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    folder = preprocessed(per_class=2)
    (tmp_path / "script.py").write_text(STEP)
    torchrun(tmp_path / "script.py", folder, tmp_path, cwd=tmp_path)
    first, second = (torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) == 1  # one step, then the stop that both agree on

    cohort = read_prepared_cohort(folder)
    dataset = VolumeDataset(cohort.samples, cohort.class_names, augmentation="none", seed=0)
    weights = class_weights(cohort.counts(cohort.samples))
    order = [index for _, index in EpochSampler(len(cohort.samples), seed=CONFIG.seed, shuffle=True)]
    assert cohort.samples[order[0]].label != cohort.samples[order[1]].label
    alone = []
    for index in order[:2]:
        torch.manual_seed(0)
        network = build_network("mc3", channels=1, classes=3, dropout=0.0).eval()
        data, target, *_ = dataset[0, index]
        volumes = torch.from_numpy(data)[None]
        loss = nn.functional.cross_entropy(network(volumes), torch.tensor([target]), reduction="none")
        (loss * weights[target]).mean().backward()
        alone.append([p.grad for p in network.parameters()])
    for ours, theirs, a, b in zip(first[0], second[0], *alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        torch.testing.assert_close(ours, (a + b) / 2, rtol=1e-4, atol=1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(*alone, strict=True)) > 1e-2


def test_torchrun_trains_one_run_folder(preprocessed: Callable[..., Path], tmp_path: Path) -> None:
    data = preprocessed(per_class=5)
    options = ["--epochs", "2", "--batch-size", "2", "--holdout", "0.25", "--precision", "32-true"]
    options += ["--workers", "0", "--device", "cpu"]
    done = torchrun("-m", "ssclf", "train", "--data", data, *options, cwd=tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    assert done.stdout.count("held-out part") + done.stderr.count("held-out part") == 1
    assert (run / "checkpoints" / "chosen.pt").is_file()
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert np.isfinite([float(row["train_loss"]) for row in rows]).all()
