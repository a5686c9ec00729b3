"""Going on from a trained network instead of random weights: `ssclf train --from`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssclf.config import Architecture, PreprocessConfig, config_to_dict, differing_fields
from ssclf.domain.likeness import SeenVolumes
from ssclf.domain.model_spec import ModelSpec
from ssclf.errors import ModelError
from ssclf.io.models.bundle import Bundle
from ssclf.io.models.torchscript_archive import read_weights
from ssclf.learning.networks import VolumeNetwork

#: Where `ExportedNetwork` holds the network.
_PREFIX = "network."
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A trained network and what is known about it.

    Attributes:
        weights: state dict of a `VolumeNetwork`.
        sha256: of the file that the weights come from.
    """

    spec: ModelSpec
    weights: Mapping[str, Tensor]
    sha256: str

    @property
    def seen(self) -> SeenVolumes:
        """The volumes that trained it or chose its epoch, and those that trained what it began with."""
        return self.spec.provenance.seen

    def describe(self) -> dict[str, Any]:
        """What the next model says of this one."""
        training = self.spec.provenance
        names = (
            "synthetic", "pretrained_on_lesions", "volumes", "sources", "starting_weights", "started_from",
        )  # fmt: skip
        facts = {name: getattr(training, name) for name in names}
        return {"name": self.spec.name, "sha256": self.sha256, **{k: v for k, v in facts.items() if v}}


def start_from_bundle(bundle: Bundle) -> Start:
    """The weights in a bundle's TorchScript file; those in model.onnx are rearranged and cannot be trained on.

    Raises:
        ModelError: the bundle has no TorchScript file, a damaged one, or one whose weights were merged for speed.
    """
    path = bundle.torchscript
    if path is None:
        raise ModelError(
            f"{bundle.path}: expected a TorchScript file to start from, found none; export the model again with "
            "`ssclf export --format onnx --format torchscript`, or give the run folder."
        )
    # read, and not loaded: loading would run what is in it
    weights = {
        key.removeprefix(_PREFIX): torch.from_numpy(value)
        for key, value in read_weights(path).items()
        if key.startswith(_PREFIX)
    }
    if not weights:
        raise ModelError(
            f"{path}: expected named weights, found a file of an older export, in which they are merged; export the "
            "run again, or give the run folder."
        )
    return Start(bundle.spec, weights, bundle.sha256)


def adopt_weights(
    network: VolumeNetwork, architecture: Architecture, start: Start, class_names: Sequence[str]
) -> None:
    """Load every layer; of the last one the rows of classes that both know, the others stay as they are.

    Raises:
        ModelError: another architecture or another number of contrasts.
    """
    if architecture != start.spec.architecture:
        raise ModelError(
            f"{start.spec.name}: its network is {start.spec.architecture}, and another was asked for; leave --model "
            f"out, or say --model {start.spec.architecture}."
        )
    own = network.state_dict()
    loaded = dict(start.weights)
    for name in ("fc.weight", "fc.bias"):
        rows = own[name].clone()
        for target, class_name in enumerate(class_names):
            if class_name in start.spec.class_names:
                rows[target] = loaded[name][start.spec.class_names.index(class_name)]
        loaded[name] = rows
    wrong = sorted(key for key in own if key not in loaded or loaded[key].shape != own[key].shape)
    if wrong:
        raise ModelError(
            f"{start.spec.name}: was trained on {', '.join(start.spec.preprocess.contrasts)}, and these volumes have "
            f"another number of contrasts ({len(wrong)} of {len(own)} tensors do not fit, for instance {wrong[0]})."
        )
    network.load_state_dict(loaded)
    known = [name for name in class_names if name in start.spec.class_names]
    log.info(
        "all layers of %s are taken over; of the last one, what it knows of %s",
        start.spec.name, ", ".join(known) or "no class of these data",
    )  # fmt: skip
    new = [name for name in class_names if name not in start.spec.class_names]
    if new:
        log.info(
            "classes that %s does not know start from random weights: %s", start.spec.name, ", ".join(new)
        )


def tell_other_preprocessing(start: Start, ours: PreprocessConfig) -> None:
    """Weights fit any grid, but know only the one that they were learnt on. Names of contrasts are anyone's."""
    theirs, mine = config_to_dict(start.spec.preprocess), config_to_dict(ours)
    other = [name for name in differing_fields(ours, start.spec.preprocess) if name != "contrasts"]
    if other:
        log.warning(
            "%s was trained on volumes of %s, and these have %s: it knows little of them; preprocess them as it was, "
            "unless you mean to change that.",
            start.spec.name,
            ", ".join(f"{name} {theirs[name]}" for name in other),
            ", ".join(f"{name} {mine[name]}" for name in other),
        )
