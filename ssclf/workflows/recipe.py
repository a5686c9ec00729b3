"""What `ssclf train` chooses by what there is, where nothing else was said: network, batches and epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ssclf.config import LEAST_EPOCHS, PRETRAIN_STEPS, STEPS, Architecture, Device, TrainConfig
from ssclf.io.memory import free_memory
from ssclf.io.records.preprocessed import PreparedCohort
from ssclf.learning.cost import free_gpu_memory, has_gpu, training_bytes
from ssclf.learning.loader import largest_shape

#: Volumes from which on a GPU trains the paper's winner. The paper had 591.
MANY = 300
#: Share of the free memory that a step may fill.
_SHARE = 0.6


@dataclass(frozen=True)
class Recipe:
    """Attributes:
    config: complete settings.
    reasons: a line for each choice that the user left to us.
    """

    config: TrainConfig
    reasons: tuple[str, ...]


def choose_recipe(cohort: PreparedCohort, given: Mapping[str, Any], device: Device = "auto") -> Recipe:
    """Settings of the preset "default" that fit a cohort and a machine.

    Args:
        given: settings that the user has chosen, which stay; what goes with them follows.
    """
    reasons: list[str] = []
    cuda = has_gpu(device)
    count = len(cohort.samples)
    settings = dict(given)
    if "architecture" not in settings:
        architecture: Architecture = (
            "mc3" if settings.get("pretrained") or (cuda and count >= MANY) else "small"
        )
        settings["architecture"] = architecture
        if architecture == "small":
            where = f"fewer than {MANY} volumes" if cuda else "no GPU is used"
            reasons.append(
                f"--model small: {count} volumes, {where}; the paper's networks (mc3 won there) need more of both"
            )
        elif not settings.get("pretrained"):
            reasons.append(f"--model mc3: {count} volumes and a GPU, enough for the paper's winner")
    config = TrainConfig.preset("default", **settings)
    if not {"batch_size", "accumulate"} & set(given):
        most = _most_volumes(cohort, config, cuda=cuda)
        if most and most < config.batch_size:
            parts = -(-config.batch_size // most)
            config = replace(config, batch_size=-(-config.batch_size // parts), accumulate=parts)
            reasons.append(
                f"--batch-size {config.batch_size} --accumulate {parts}: memory for {most} volumes at once"
            )
    if "epochs" not in given:
        trained = max(round(count * (1 - config.holdout) * (1 - config.validation)), 1)
        together = config.batch_size * config.accumulate
        steps = -(-trained // together)
        wanted = PRETRAIN_STEPS if config.lesions else STEPS
        config = replace(config, epochs=max(-(-wanted // steps), LEAST_EPOCHS))
        reasons.append(f"--epochs {config.epochs}: {config.epochs * steps} steps of {together} volumes")
    return Recipe(config, tuple(reasons))


def _most_volumes(cohort: PreparedCohort, config: TrainConfig, *, cuda: bool) -> int | None:
    """How many volumes a step can hold at once; None where their shape is not known."""
    shape = largest_shape(cohort.samples)
    if shape is None:
        return None
    free = free_gpu_memory() if cuda else free_memory()
    each = training_bytes(config.architecture, (len(cohort.preprocess.contrasts), *shape))
    if cuda and config.precision != "32-true":
        each //= 2
    return max(int(free * _SHARE / each), 1)
