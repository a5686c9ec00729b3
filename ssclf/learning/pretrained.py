"""Weights to start from, of Kinetics-400 or of another network: found on this machine, checked, and never downloaded.

Source: Chatterjee et al., Sec. 2.2: everything is loaded but the stem and the last linear layer.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, get_args
from urllib.parse import urlsplit

import torch
from torch import Tensor

from ssclf.config import Architecture, ForeignWeights, PaperArchitecture, Stem
from ssclf.errors import ModelError
from ssclf.io.files import whole_path
from ssclf.io.models.checksums import file_sha256
from ssclf.learning.checkpoints import load_checkpoint
from ssclf.learning.foreign_weights import FACTS, ORIGINS, Converted, convert_weights
from ssclf.learning.networks import TORCHVISION_NAMES, VolumeNetwork
from ssclf.learning.vision import video_models

_HASHED_NAME = re.compile(r"-([0-9a-f]{8,})\.pth$")
_ENUMS: dict[PaperArchitecture, str] = {
    "r2plus1d": "R2Plus1D_18_Weights",
    "mc3": "MC3_18_Weights",
    "r3d": "R3D_18_Weights",
}
_HEAD = "fc."
_STEM = "stem."
_FIRST = "stem.0.weight"
_ABOUT = "about"


@dataclass(frozen=True)
class WeightsFile:
    """Attributes:
    url: where torchvision has it from.
    name: of the file; carries the start of its SHA-256.
    path: where it lies on this machine, None where it does not.
    """

    architecture: PaperArchitecture
    url: str
    name: str
    path: Path | None

    @property
    def hash_prefix(self) -> str:
        return _hash_prefix(self.name)


def weights_folder() -> Path:
    """Where `import_weights` puts files: $SSCLF_WEIGHTS, else below $XDG_DATA_HOME or ~/.local/share."""
    chosen = os.environ.get("SSCLF_WEIGHTS")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "ssclf" / "weights"


def find_weights(architecture: PaperArchitecture) -> WeightsFile:
    """Look in torch's own cache, then in `weights_folder()`."""
    url = str(getattr(video_models, _ENUMS[architecture]).KINETICS400_V1.url)
    file_name = PurePosixPath(urlsplit(url).path).name
    folders = (Path(torch.hub.get_dir()) / "checkpoints", weights_folder())
    path = next((folder / file_name for folder in folders if (folder / file_name).is_file()), None)
    return WeightsFile(architecture, url, file_name, path)


def import_weights(path: Path) -> Path:
    """Copy a downloaded file of Kinetics-400 weights to where training finds it.

    Args:
        path: a file with torchvision's name, for instance `mc3_18-a90a0ba3.pth`.

    Returns:
        where it is now.

    Raises:
        ModelError: another name, or content that does not match the hash in the name.
    """
    known = {find_weights(architecture).name for architecture in get_args(PaperArchitecture)}
    if path.name not in known:
        raise ModelError(
            f"{path.name}: expected one of torchvision's files, {', '.join(sorted(known))}; "
            "keep the name that the download has, since it carries the hash. Files of other networks need --kind."
        )
    _check_hash(path)
    target = weights_folder() / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_path(target) as partial:
        shutil.copyfile(path, partial)
    return target


def import_foreign(path: Path, kind: ForeignWeights) -> tuple[Path, Converted]:
    """Convert another network's weights into a file for `load_pretrained`, named by its own hash as torchvision's are.

    Returns:
        where it is, below `weights_folder()`.

    Raises:
        ModelError: see `convert_weights`.
    """
    found = convert_weights(path, kind)
    buffer = io.BytesIO()
    torch.save({_ABOUT: found.about, "weights": found.weights}, buffer)
    content = buffer.getvalue()
    target = weights_folder() / f"r3d_18-{kind}-{hashlib.sha256(content).hexdigest()[:16]}.pth"
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_path(target) as partial:
        partial.write_bytes(content)
    return target, found


def verify_weights() -> list[WeightsFile]:
    """What is there of Kinetics-400 for each architecture; files that are there match their hash.

    Raises:
        ModelError: a file was changed or damaged.
    """
    files = [find_weights(architecture) for architecture in get_args(PaperArchitecture)]
    for file in files:
        if file.path:
            _check_hash(file.path)
    return files


def verify_foreign() -> list[tuple[Path, dict[str, Any]]]:
    """The files that `import_foreign` has made, each with what it says of itself, and as it was made.

    Raises:
        ModelError: a file was changed or damaged.
    """
    files = sorted(path for kind in ORIGINS for path in weights_folder().glob(f"r3d_18-{kind}-*.pth"))
    for path in files:
        _check_hash(path)
    return [(path, _read(path)[0]) for path in files]


@dataclass(frozen=True)
class StartingWeights:
    """Attributes:
    file: name of the file.
    about: see `Provenance.starting_weights`.
    """

    file: str
    about: dict[str, Any]


def load_pretrained(
    network: VolumeNetwork, architecture: Architecture, *, stem: Stem = "random", path: Path | None = None
) -> StartingWeights:
    """Put weights into a network: all but the last layer, with `stem="random"` the stem, and what the file has not;
    `network.random` names these.

    With `stem="mean"` the first convolution becomes the mean over its RGB channels, times 3/C: C equal contrasts
    then give what a grey frame gave, so that the batch normalisation behind it still fits.

    Args:
        path: a file in torchvision's format, or of `import_foreign`, instead of the one of Kinetics-400 found on this
            machine.

    Raises:
        ModelError: no such file, a wrong hash, or weights of another network.
    """
    if architecture == "small":
        raise ModelError(
            "--pretrained: there are Kinetics-400 weights for mc3, r2plus1d and r3d, and none for small; leave it out, "
            "or choose one of these with --model."
        )
    if path is None:
        path = _found(find_weights(architecture))
    elif not path.is_file():
        raise ModelError(f"--weights {path}: expected a file in torchvision's format, found none.")
    # digits alone are a date
    if (named := _HASHED_NAME.search(path.name)) and not named[1].isdigit():
        _check_hash(path)
    about, weights = _read(path)
    if about:
        _check_fit(path.name, about, architecture, stem)
    wanted = network.state_dict()
    keep = {
        key
        for key in wanted
        if not key.startswith(_HEAD)
        and not (key.startswith(_STEM) and stem == "random")
        and (not about or key in weights)
    }
    loaded = _fitting(path.name, architecture, weights, wanted, keep)
    if stem == "mean":
        channels = wanted[_FIRST].shape[1]
        grey = weights[_FIRST].mean(dim=1, keepdim=True) * (weights[_FIRST].shape[1] / channels)
        loaded[_FIRST] = grey.expand_as(wanted[_FIRST])
    network.load_state_dict({**wanted, **loaded})
    learnt = {key for key, _ in network.named_parameters()}
    random = learnt - loaded.keys()
    network.random = tuple(sorted({key.rpartition(".")[0] for key in random if not key.startswith(_HEAD)}))
    counts = {
        "parameters": sum(wanted[key].numel() for key in learnt - random),
        "of": sum(wanted[key].numel() for key in learnt),
    }
    return StartingWeights(path.name, {**(about or {"kind": "kinetics-400"}), **counts})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file of `import_foreign` says of itself, empty for one in torchvision's format, and its weights."""
    stored = load_checkpoint(path)
    about, weights = stored.get(_ABOUT), stored.get("weights")
    if isinstance(about, dict) and isinstance(weights, dict) and about.keys() >= FACTS:
        return about, weights
    return {}, stored


def _check_fit(file: str, about: dict[str, Any], architecture: Architecture, stem: Stem) -> None:
    if architecture != "r3d":
        raise ModelError(
            f"{file}: the layers of {about['name']} are those of r3d, not of {architecture}; say --model r3d."
        )
    if stem == "mean":
        raise ModelError(
            f"--stem mean: the first layer of {about['name']} has another shape than r3d's; leave it out."
        )


def _fitting(
    file: str,
    architecture: PaperArchitecture,
    weights: Mapping[str, Any],
    wanted: Mapping[str, Tensor],
    keep: set[str],
) -> dict[str, Tensor]:
    """The tensors to keep, all there and of the shape that is wanted, which the first may not have yet."""
    wrong = sorted(
        key
        for key in keep
        if not isinstance(weights.get(key), Tensor)
        or (key != _FIRST and weights[key].shape != wanted[key].shape)
    )
    if wrong:
        raise ModelError(
            f"{file}: expected the weights of torchvision's {TORCHVISION_NAMES[architecture]}, found "
            f"{len(wrong)} of {len(keep)} tensors missing or of another shape, for instance {wrong[0]}."
        )
    return {key: weights[key] for key in keep}


def _found(file: WeightsFile) -> Path:
    if file.path is None:
        raise ModelError(
            f"--pretrained: expected {file.name} (SHA-256 starts with {file.hash_prefix}), found it neither in "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'} nor in {weights_folder()}; download {file.url} on a "
            f"machine with a network and run `ssclf weights import {file.name}`. ssclf downloads nothing."
        )
    return file.path


def _hash_prefix(name: str) -> str:
    match = _HASHED_NAME.search(name)
    assert match, name
    return match[1]


def _check_hash(path: Path) -> None:
    wanted = _hash_prefix(path.name)
    try:
        found = file_sha256(path)
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror or exc}).") from exc
    if not found.startswith(wanted):
        raise ModelError(
            f"{path.name}: expected a SHA-256 that starts with {wanted}, found {found[:12]}…; "
            "the download was cut short or changed, fetch it again."
        )
