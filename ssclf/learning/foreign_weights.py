"""Weights of other 18-layer 3D networks under the names of torchvision's r3d_18, as far as their layers are its layers.

Both are ResNets of basic blocks (`layer1` … `layer4`, two blocks each, 3×3×3 convolutions), and their blocks fit. What
does not: the first convolution, 7×7×7 on one channel (r3d has 3×7×7), and with it the normalisation behind it; what
comes after `layer4`; and MedicalNet's shortcuts, which are of type A and have no weights.

Source of MedicalNet's layout: github.com/Tencent/MedicalNet, models/resnet.py and README.md (20f76aa), and MONAI 1.6.1,
networks/nets/resnet.py, which loads the files strictly: no `conv_seg`. Of 3D-Neuro-SimCLR's:
github.com/emilykaczmarek/3D-Neuro-SimCLR, simclr/modules/resnet.py (MONAI's), simclr/simclr.py and model.py (e061f3a).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ssclf.config import ForeignWeights
from ssclf.errors import ModelError
from ssclf.io.models.checksums import file_sha256
from ssclf.learning.checkpoints import load_checkpoint
from ssclf.learning.networks import build_network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Attributes:
        licence: what was found of one.
        entry: the key of its file that holds the weights.
        prefix: of the encoder's names there, behind `module.`, which training on several GPUs puts before all.
        sha256: of the files that are known, by name.
        projections: whether its shortcuts have weights.
    """

    name: str
    licence: str
    source: str
    entry: str
    prefix: str
    sha256: Mapping[str, str]
    projections: bool


#: The first hash is that under which the public hub of models keeps the file; the second was found in one public
#: program that downloads it, and nowhere at its authors'. None was found of MedicalNet's `resnet_18.pth`.
ORIGINS: dict[ForeignWeights, Origin] = {
    "medicalnet": Origin(
        name="MedicalNet's ResNet-18",
        licence="MIT (Copyright 2019 THL A29 Limited, a Tencent company), code and models",
        source="https://github.com/Tencent/MedicalNet",
        entry="state_dict",
        prefix="",
        sha256={
            "resnet_18_23dataset.pth": "61224f9317fcce873366deb3703183e92cc47325b726b69691b33536244e10f4"
        },
        projections=False,
    ),
    "neuro-simclr": Origin(
        name="3D-Neuro-SimCLR's ResNet-18",
        licence="MIT (Copyright 2020 Janne Spijkervet) and Apache-2.0 (MONAI) for the code; none found for the weights",
        source="https://github.com/emilykaczmarek/3D-Neuro-SimCLR",
        entry="model_state_dict",
        prefix="encoder.",
        sha256={
            "simclr_3d_brain_foundation.tar": "f046dafe009de0cfa113a022c1ef9603d123834f217074eb86d26037e72b98f5"
        },
        projections=True,
    ),
}
_BLOCK = re.compile(r"(layer[1-4]\.\d+)\.(conv|bn)([12])\.(\w+)")
_COUNTER = "num_batches_tracked"
#: What `Converted.about` says.
FACTS = {"kind", "name", "licence", "source", "file", "sha256"}


@dataclass(frozen=True)
class Converted:
    """Attributes:
    weights: by r3d's names.
    about: kind, name, licence and source, and name and hash of the file that they were in.
    left: names in that file that were not taken.
    missing: r3d's, its last layer aside, that the file does not have.
    """

    weights: dict[str, Tensor]
    about: dict[str, Any]
    left: tuple[str, ...]
    missing: tuple[str, ...]


def convert_weights(path: Path, kind: ForeignWeights) -> Converted:
    """Read a file as its authors publish it.

    Raises:
        ModelError: no such file, another network, or not what its name says that it is.
    """
    origin = ORIGINS[kind]
    if not path.is_file():
        raise ModelError(f"{path}: expected a file of {origin.name}, found none.")
    sha256 = _check_known(path, origin)
    stored = load_checkpoint(path).get(origin.entry)
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ModelError(f"{path.name}: expected {origin.name} under {origin.entry!r}, found another file.")
    own = build_network("r3d", channels=1, classes=2).state_dict()
    blocks = {key: value for key, value in own.items() if key.startswith("layer")}
    found, left = _rename(stored, origin.prefix)
    weights = {key: value for key, value in found.items() if key in blocks}
    wanted = {
        key
        for key in blocks
        if not key.endswith(_COUNTER) and (origin.projections or ".downsample." not in key)
    }
    wrong = [key for key in wanted if key not in weights or weights[key].shape != blocks[key].shape]
    wrong += [key for key in found if key not in blocks]  # of a deeper or wider network
    if wrong:
        raise ModelError(
            f"{path.name}: expected {origin.name}, found another network: {len(wrong)} tensors are missing, of another "
            f"shape or too many, for instance {min(wrong)}."
        )
    about = {"kind": kind, "name": origin.name, "licence": origin.licence, "source": origin.source}
    missing = (key for key in own if key not in weights and not key.startswith("fc.") and _COUNTER not in key)
    return Converted(weights, {**about, "file": path.name, "sha256": sha256}, tuple(left), tuple(missing))


def _rename(stored: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], list[str]]:
    """Blocks by torchvision's names, and the names of all else.

    A convolution of a shortcut may have a bias there, and has none here: normalisation takes it out again while it
    trains, and afterwards a mean that is smaller by it does the same.
    """
    found: dict[str, Tensor] = {}
    left = []
    biases = {}
    for key, value in stored.items():
        name = key.removeprefix("module.").removeprefix(prefix)
        if name.startswith("layer") and name.endswith(".downsample.0.bias"):
            biases[name.replace("0.bias", "1.running_mean")] = value
        elif name.startswith("layer"):
            found[_BLOCK.sub(lambda m: f"{m[1]}.conv{m[3]}.{'01'[m[2] == 'bn']}.{m[4]}", name)] = value
        else:
            left.append(key)
    for mean, bias in biases.items():
        if mean in found and found[mean].shape == bias.shape:
            found[mean] = found[mean] - bias
    return {key: value.clone() for key, value in found.items()}, left


def _check_known(path: Path, origin: Origin) -> str:
    """SHA-256 of a file; one with a published name must have the published content.

    Raises:
        ModelError: it has not.
    """
    sha256, known = file_sha256(path), origin.sha256.get(path.name)
    if known and sha256 != known:
        raise ModelError(
            f"{path.name}: expected the SHA-256 {known[:12]}… of {origin.name}, found {sha256[:12]}…; the download was "
            "cut short or changed, fetch it again. A file that is meant to be another needs another name."
        )
    if sha256 not in origin.sha256.values():
        log.warning(
            "%s: no SHA-256 is known that tells whether this is %s as published; it is %s",
            path.name, origin.name, sha256,
        )  # fmt: skip
    return sha256
