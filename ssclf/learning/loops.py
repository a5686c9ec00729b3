"""One training epoch and one evaluation pass on Lightning Fabric: numbers come back, nothing is written."""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from ssclf.config import Augmentation, Device, TrainConfig
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, DatasetError, ModelError
from ssclf.io.decoded import DecodedVolumes
from ssclf.io.records.preprocessed import PreparedCohort, Sample
from ssclf.io.records.training_run import process_count, processes_per_node
from ssclf.learning.abandoning import Abandoning, Stopped
from ssclf.learning.augmentation import move_batch
from ssclf.learning.datasets import Batch, EpochSampler, VolumeDataset
from ssclf.learning.loader import VolumeLoader
from ssclf.learning.losses import class_weights, weighted_cross_entropy
from ssclf.learning.networks import VolumeNetwork
from ssclf.learning.shallow import keep_shallow_maps_in_32_bits

#: At most so many volumes tell what batch normalisation is to expect.
_SETTLE_ON = 256
#: What torch says of a batch whose last maps hold one value.
_SINGLE_VALUE = "more than 1 value per channel"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """Of a set of volumes, in its order.

    Attributes:
        logits: (N, K) float32, not calibrated.
        targets: (N,) class indices.
        features: (N, F) float32, the last feature map averaged over space.
        loss: mean weighted cross-entropy.
    """

    logits: NDArray[np.float32]
    targets: NDArray[np.int64]
    features: NDArray[np.float32]
    loss: float


@dataclass(frozen=True)
class EpochResult:
    """Attributes:
    loss: mean weighted cross-entropy over the volumes, as they were when their step was taken.
    learning_rate: of the last step.
    wait_share: part of the time spent waiting for the loader.
    finished: False when `stop` ended the epoch early.
    """

    loss: float
    learning_rate: float
    seconds: float
    wait_share: float
    finished: bool


def start_fabric(config: TrainConfig, device: Device) -> Fabric:
    """The device, precision and processes of a run; under torchrun or Slurm one process per device.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch finds no GPU on this machine; check the driver with nvidia-smi and that torch "
            "is a CUDA build, or use --device cpu."
        )
    cuda = device != "cpu" and torch.cuda.is_available()
    if config.precision == "bf16-mixed-cpu":
        precision: str = "bf16-mixed"
    else:
        precision = config.precision if cuda else "32-true"
    if cuda and precision == "bf16-mixed" and not torch.cuda.is_bf16_supported():
        precision = "16-mixed"
    if cuda and not config.precision.startswith(precision):
        log.info("precision %s instead of %s, which this device lacks", precision, config.precision)
    processes, local = process_count(), processes_per_node()
    if "SLURM_STEP_ID" in os.environ and processes > 1:
        os.environ["SLURM_NTASKS_PER_NODE"] = str(
            local
        )  # Fabric asks for it, and srun sets it only where it was said
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = False  # volumes differ in shape, and each shape would be searched anew
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on Slurm
        fabric = Fabric(
            accelerator="cuda" if cuda else "cpu",
            devices=local,
            num_nodes=max(processes // local, 1),
            strategy="ddp" if processes > 1 else "auto",
            precision=cast(Any, precision),
            # else it looks for a cluster of its own accord, and waits for the tasks of a Slurm job that never began
            plugins=LightningEnvironment() if processes == 1 else None,
        )
        fabric.launch()
    return fabric


def seed_everything(seed: int) -> None:
    """Seed the global generators that initial weights and dropout are drawn from."""
    torch.manual_seed(seed)


class Trainer:
    """A network in training: what changes from step to step, and how to take one.

    The state after any step is `state_dict()`; a trainer that loads it takes the same steps as one that never
    stopped (bit for bit on a CPU with the same number of threads).
    """

    def __init__(
        self,
        fabric: Fabric,
        network: VolumeNetwork,
        config: TrainConfig,
        cohort: PreparedCohort,
        train: list[Sample],
        *,
        workers: int,
    ) -> None:
        """Take the samples to train on; `network` is trained in place."""
        self.fabric = fabric
        self.network = network
        self.config = config
        self.epoch = 0
        self._batches_done = 0
        self._loss_sum = 0.0
        self._cohort = cohort
        self._workers = workers
        self._sampler = EpochSampler(
            len(train),
            seed=config.seed,
            shuffle=True,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        self._items = len(self._sampler)
        self._decoded = DecodedVolumes(cohort, processes=processes_per_node())
        dataset = self._dataset(train, config.augmentation, config.seed)
        some = np.random.default_rng(config.seed).permutation(len(train))[:_SETTLE_ON]
        self._settling = self._dataset([train[k] for k in sorted(some)])
        self._others = set(multiprocessing.active_children())
        self._loader = VolumeLoader(dataset, self._sampler, batch_size=config.batch_size, workers=workers)
        counts = cohort.counts(train)
        paper = config.class_weights == "paper"
        weights = class_weights(counts) if paper else torch.ones(len(counts))
        self._weights = weights.to(fabric.device)
        self._memory_format = torch.channels_last_3d if config.channels_last else torch.contiguous_format
        network.to(fabric.device)
        network.to(memory_format=self._memory_format)  # type: ignore[call-overload]  # missing in torch's types
        if config.precision == "bf16-mixed-cpu" and fabric.device.type == "cpu":
            keep_shallow_maps_in_32_bits(network)
        network.freeze(config.freeze)
        free = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kind = {"adam": Adam, "adamw": AdamW}[config.optimizer]
        optimizer = kind(free, lr=config.learning_rate, weight_decay=config.weight_decay)
        # a compiled network has no middle, and of several processes none may leave a step that the others take
        alone = fabric.world_size == 1 and not config.compile
        self._abandoning = Abandoning(network) if alone else None
        compiled = cast(nn.Module, torch.compile(network)) if config.compile else network
        self._module, self._optimizer = fabric.setup(compiled, optimizer)
        self._scheduler = make_scheduler(optimizer, config, config.epochs * self.steps_per_epoch)
        # Dropout must differ between processes. The weights are drawn before this.
        torch.manual_seed(config.seed + fabric.global_rank)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._cohort.class_names

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._items // self._step_size)

    @property
    def _step_size(self) -> int:
        """Volumes of a step."""
        return self.config.batch_size * self.config.accumulate

    def train_epoch(
        self,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[int, float], None] = lambda step, loss: None,
    ) -> EpochResult:
        """Take the steps of one epoch, or what is left of an interrupted one.

        Args:
            stop: asked after every step and at each layer of it, and while it waits for volumes; True ends the epoch
                there, ready to be saved: as it was before a step that is not done.
            on_step: called with the number of steps done in this epoch and the mean loss so far.

        Raises:
            DatasetError: a volume is so small that batch normalisation has a single value per channel.
            ModelError: the loss is not finite.
            VolumeError, ResourceError: see `VolumeLoader.batches`.
        """
        begin = time.perf_counter()
        waited = 0.0
        rate = float(self._optimizer.param_groups[0]["lr"])
        self.network.train()
        self._sampler.epoch = self.epoch
        self._sampler.skip = self._batches_done * self.config.batch_size
        seen = self._sampler.skip
        batches = self._loader.batches(self._alone(stop))
        stopped = False
        while not stopped:
            fetched = time.perf_counter()
            group = list(itertools.islice(batches, self.config.accumulate))
            waited += time.perf_counter() - fetched
            if sum(len(batch.targets) for batch in group) < min(self._step_size, self._items - seen):
                stopped = True
                break
            if not group:
                break
            rate = float(self._optimizer.param_groups[0]["lr"])
            if (loss := self._try_step(group, stop)) is None:
                stopped = True
                break
            self._loss_sum += loss
            self._batches_done += len(group)
            seen += sum(len(batch.targets) for batch in group)
            on_step(-(-self._batches_done // self.config.accumulate), self._loss_sum / seen)
            stopped = seen < self._items and self._agree(stop())
        seconds = time.perf_counter() - begin
        loss = self._reduce(self._loss_sum / max(seen, 1), "mean")
        result = EpochResult(
            loss=loss,
            learning_rate=rate,
            seconds=seconds,
            wait_share=waited / seconds,
            finished=not stopped,
        )
        if result.finished:
            self.epoch += 1
            self._batches_done, self._loss_sum = 0, 0.0
        return result

    def predict(
        self, samples: list[Sample], part: str = "these", *, stop: Callable[[], bool] = lambda: False
    ) -> Predictions:
        """Logits in eval mode without augmentation; on several processes each takes its share.

        Args:
            part: what the samples are, for a message.
            stop: asked after every volume, and while it waits for one; not where there are several processes.

        Raises:
            Stopped: `stop` came first.
            ModelError: some of the logits are no numbers.
            VolumeError, ResourceError: see `VolumeLoader.batches`.
        """
        self.network.eval()
        stop = self._alone(stop)
        dataset = self._dataset(samples)
        sampler = EpochSampler(
            len(samples),
            seed=0,
            shuffle=False,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        logits = torch.zeros(len(samples), len(self._cohort.class_names))
        features = torch.zeros(len(samples), self.network.fc.in_features)
        # one at a time: padding would change what the network averages, and with it the score
        loader = VolumeLoader(dataset, sampler, batch_size=1, workers=self._workers)
        with contextlib.closing(loader):
            for batch in loader.batches(stop):
                found, pooled = self._forward(self.fabric.to_device(batch.volumes))
                indices, found, pooled = self._gather(self.fabric.to_device(batch.indices), found, pooled)
                logits[indices], features[indices] = found, pooled
                if stop():
                    raise Stopped
            if stop():  # while it waited
                raise Stopped
        self._check_logits(logits, samples, part)
        targets = torch.tensor(dataset.targets)
        loss = weighted_cross_entropy(logits, targets, self._weights.cpu())
        return Predictions(logits.numpy(), targets.numpy(), features.numpy(), float(loss))

    def volumes(self, samples: list[Sample]) -> Iterator[Volume]:
        """The volumes of which `predict` gives the logits.

        Raises:
            VolumeError: a file is missing or damaged.
        """
        dataset = self._dataset(samples)
        return (dataset.volume((0, index)) for index in range(len(samples)))

    def _dataset(
        self, samples: list[Sample], augmentation: Augmentation = "none", seed: int = 0
    ) -> VolumeDataset:
        return VolumeDataset(
            samples,
            self._cohort.class_names,
            augmentation=augmentation,
            seed=seed,
            channels=len(self._cohort.preprocess.contrasts),
            generator=GeneratorSettings() if self.config.lesions else None,
            decoded=self._decoded,
        )

    def _check_logits(self, logits: Tensor, samples: list[Sample], part: str) -> None:
        bad = [s.key for s, row in zip(samples, logits, strict=True) if not torch.isfinite(row).all()]
        if bad:
            what = (
                "lower the learning rate, or use precision 32-true or bf16-mixed"
                if len(bad) == len(samples)
                else "see whether they are sound, or lower the learning rate"
            )
            raise ModelError(
                f"the network gives NaN or infinity for {len(bad)} of the {len(samples)} {part} volumes after "
                f"epoch {self.epoch} ({self._words()}), the first of them {bad[0]}; {what}."
            )

    def settle(self, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Take batch normalisation's averages anew, over training volumes without augmentation, where the config says
        so.

        Raises:
            Stopped: `stop` came first.
            VolumeError, ResourceError: see `VolumeLoader.batches`.
        """
        self.network.eval()
        stop = self._alone(stop)
        norms = [
            module
            for module in self.network.modules()
            if isinstance(module, nn.BatchNorm3d) and module.weight.requires_grad
        ]
        if not self.config.settle or not norms:
            return
        rates = [norm.momentum for norm in norms]
        try:
            # alone, as prediction sees them: the background of a batch moves averages where the last maps are few
            self._average(norms, 1, stop)
        except ValueError as exc:
            if _SINGLE_VALUE not in str(exc):
                raise
            # so few that a volume has one value a channel, which has no variance
            self._average(norms, self.config.batch_size, stop)
        for norm, rate in zip(norms, rates, strict=True):
            norm.momentum = rate
            norm.eval()
        if stop():
            raise Stopped

    def _average(self, norms: list[nn.BatchNorm3d], batch_size: int, stop: Callable[[], bool]) -> None:
        """Give them the plain mean over batches of volumes as they are; one that is left over is left out."""
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        sampler = EpochSampler(len(self._settling), seed=self.config.seed, shuffle=True)
        loader = VolumeLoader(self._settling, sampler, batch_size=batch_size, workers=self._workers)
        with contextlib.closing(loader), torch.no_grad(), self.fabric.autocast():
            for batch in loader.batches(stop):
                if len(batch.targets) > 1 or batch_size == 1:
                    self.network.features(self.fabric.to_device(batch.volumes))

    def close(self) -> None:
        """End the processes that read volumes, and any other that was started meanwhile and would keep this one from
        ending."""
        self._loader.close()
        for process in set(multiprocessing.active_children()) - self._others:
            process.kill()
            process.join()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a next step depends on, as tensors and plain values."""
        precision = self.fabric.strategy.precision
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "precision": precision.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "epoch": self.epoch,
            "batches_done": self._batches_done,
            "loss_sum": self._loss_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        # how long the run is, this one knows: it may have been given more epochs since
        length = {name: vars(self._scheduler).get(name) for name in ("total_steps", "_schedule_phases")}
        self._scheduler.load_state_dict(state["scheduler"])
        vars(self._scheduler).update({name: value for name, value in length.items() if value is not None})
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        if self.fabric.global_rank == 0:  # the others drew other numbers, which were not kept
            torch.set_rng_state(state["random"])
            if state["random_cuda"] and torch.cuda.device_count() == len(state["random_cuda"]):
                torch.cuda.set_rng_state_all(state["random_cuda"])
        self.epoch = state["epoch"]
        self._batches_done = state["batches_done"]
        self._loss_sum = state["loss_sum"]

    def _try_step(self, group: list[Batch], stop: Callable[[], bool]) -> float | None:
        """`_step`, or None where `stop` came before it was done."""
        try:
            with self._abandoning.unless(stop) if self._abandoning else contextlib.nullcontext():
                return self._step([self._on_device(batch) for batch in group])
        except Stopped:
            self._optimizer.zero_grad()
            return None

    def _on_device(self, batch: Batch) -> Batch:
        """A batch where the network is, augmented there."""
        volumes = move_batch(self.fabric.to_device(batch.volumes), batch.transforms)
        return Batch(volumes, self.fabric.to_device(batch.targets), batch.indices)

    def _step(self, group: list[Batch]) -> float:
        """One optimiser step over a group of batches; returns the sum of its volumes' losses."""
        total = sum(len(batch.targets) for batch in group)
        losses = []
        for position, batch in enumerate(group):
            last = position == len(group) - 1
            with self.fabric.no_backward_sync(self._module, enabled=not last):
                volumes = batch.volumes.to(memory_format=self._memory_format)
                loss = weighted_cross_entropy(self._logits(volumes), batch.targets, self._weights)
                # as if the group were one batch, also where its last one is smaller
                loss = loss * (len(batch.targets) / total)
                self.fabric.backward(loss)
            losses.append(loss.detach())
        value = float(torch.stack(losses).sum())
        if not np.isfinite(value):
            raise ModelError(
                f"the loss became {value} {self._place()}; lower the learning rate, or use precision 32-true or "
                "bf16-mixed."
            )
        if self._take_step():
            self._scheduler.step()
        self._optimizer.zero_grad()
        return value * total

    def _take_step(self) -> bool:
        """Change the weights; False where 16-bit gradients ran over, so that the step was left out and the loss scale
        lowered. The schedule waits for it."""
        before = self._scale
        self._optimizer.step()
        return before is None or self._scale == before or cast(float, self._scale) > before

    @property
    def _scale(self) -> float | None:
        """What losses are multiplied with before 16-bit gradients are taken; None without such."""
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        return None if scaler is None else float(scaler.get_scale())

    def _place(self) -> str:
        """Where a run is, for a message that it went wrong there."""
        step = self._batches_done // self.config.accumulate + 1
        where = f"at step {step} of {self.steps_per_epoch} in epoch {self.epoch + 1}"
        return f"{where} ({self._words()})"

    def _words(self) -> str:
        rate = float(self._optimizer.param_groups[0]["lr"])
        scale = "" if self._scale is None else f", loss scale {self._scale:g}"
        return f"learning rate {rate:.3g}{scale}"

    def check_weights(self) -> None:
        """Raises:
        ModelError: they hold values that are no numbers, and are not worth keeping.
        """
        bad = [name for name, value in self.network.state_dict().items() if not torch.isfinite(value).all()]
        if bad:
            raise ModelError(
                f"{len(bad)} of the network's tensors hold NaN or infinity after epoch {self.epoch} "
                f"({self._words()}), the first of them {bad[0]}; lower the learning rate, or use precision 32-true or "
                "bf16-mixed."
            )

    def _logits(self, volumes: Tensor) -> Tensor:
        try:
            return cast(Tensor, self._module(volumes))
        except ValueError as exc:
            if _SINGLE_VALUE not in str(exc):
                raise
            raise DatasetError(
                f"a batch of shape {tuple(volumes.shape)} is too small to train on: the last layers are left "
                "with a single value per channel, which cannot be normalised; use a finer spacing, a larger "
                "field of view or a larger batch size."
            ) from exc

    def _forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and pooled features, of the network alone (no process waits for another)."""
        with torch.inference_mode(), self.fabric.autocast():
            pooled = self.network.features(volumes.to(memory_format=self._memory_format)).mean(dim=(2, 3, 4))
            return self.network.fc(pooled).float(), pooled.float()

    def _gather(self, *values: Tensor) -> tuple[Tensor, ...]:
        if self.fabric.world_size == 1:
            return tuple(value.cpu() for value in values)
        return tuple(cast(Tensor, self.fabric.all_gather(v)).flatten(0, 1).cpu() for v in values)

    def _alone(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Of several processes none may leave what the others wait for."""
        return stop if self.fabric.world_size == 1 else lambda: False

    def _agree(self, stop: bool) -> bool:
        """Whether any process wants to stop: all must, at the same step."""
        return self._reduce(float(stop), "sum") > 0

    def _reduce(self, value: float, how: Literal["mean", "sum"]) -> float:
        if self.fabric.world_size == 1:
            return value
        tensor = torch.tensor(value, device=self.fabric.device)
        return float(cast(Tensor, self.fabric.all_reduce(tensor, reduce_op=how)))


def make_scheduler(optimizer: Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    """How the learning rate moves from step to step, for so many of them, 1 or more."""
    if config.schedule == "onecycle":
        rising = config.warmup or 0.3
        while rising * (steps + 1) == 1:  # it would end at the first step, and torch divide by its length
            rising = float(np.nextafter(rising, 0))
        return OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            total_steps=steps + 1,
            pct_start=rising,
            cycle_momentum=False,
        )
    first = round(config.warmup * steps)

    def factor(step: int) -> float:
        if step < first:
            return (step + 1) / first
        if config.schedule == "constant":
            return 1.0
        return 0.5 * (1 + float(np.cos(np.pi * (step - first) / max(steps - first, 1))))

    return LambdaLR(optimizer, factor)
