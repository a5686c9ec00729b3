"""The reference model, which has a package of its own (`reference/`, CC BY-SA), and the name that stands for it.

`--model reference` means its model and `train --from reference` its weights, where the package is at hand: beside the
source of ssclf in a clone, or installed. A model of the user's at a path of that name is never exchanged for it.
"""

from __future__ import annotations

import importlib.resources
import logging
from pathlib import Path
from typing import Final

from ssclf.errors import ModelError

NAME: Final = Path("reference")
PACKAGE: Final = "ssclf_reference"
#: Folders of the package: the bundle that predicts, and one with a TorchScript file where that has none.
MODEL, WEIGHTS = "model", "weights"
#: What makes a folder a model or a run of the user's.
_OWN = ("spec.json", "config.json")
_ABOUT = "trained on synthetic lesions in healthy brains and on no patient"
_GET = "`pip install ./reference` in a clone"
log = logging.getLogger(__name__)


def find_model(path: Path) -> Path:
    """Where the model of a name lies: that of `reference` in its package, any other is a path already.

    Raises:
        ModelError: the package has no model, or is not here and neither is anything of that name; or there are both.
    """
    if path != NAME or not (package := _package_for(path)):
        return path
    found = package / MODEL
    if _is_bundle(found):
        return _told(found)
    if _is_bundle(package / WEIGHTS):
        raise ModelError(
            f"{path}: the reference model classifies nothing, since it did not reach what docs/reference-model.md asks "
            "of it; its weights are for `ssclf train --from reference`. Pass a model of your own with --model."
        )
    raise ModelError(f"{path}: expected the reference model in {found}, found none; pass --model.")


def find_start(path: Path) -> Path:
    """Where the weights of a name lie, for training to go on from: as `find_model`.

    Raises:
        ModelError: as `find_model`.
    """
    if path != NAME or not (package := _package_for(path)):
        return path
    for found in (package / WEIGHTS, package / MODEL):
        if _is_bundle(found):
            return _told(found)
    raise ModelError(
        f"{path}: expected the weights of the reference model in {package}, found none; give a bundle or a run."
    )


def reference_hint() -> str:
    """A sentence for who has no model, with a space before it; empty where the package is here without one."""
    package = _package()
    if package and not _is_bundle(package / MODEL):
        return ""
    return f" To try ssclf out, there is --model reference{'' if package else f', after {_GET}'}: {_ABOUT}."


def _package_for(path: Path) -> Path | None:
    """The package; None where the name is that of something here, and stands for nothing else.

    Raises:
        ModelError: it stands for two models, or for none.
    """
    package = _package()
    own = path.is_file() or any((path / name).is_file() for name in _OWN)
    if package and own:
        raise ModelError(
            f"{path}: expected one model of this name, found two: a folder here, and the reference model that comes "
            f"with ssclf. For the first write {path.absolute()}, for the other work in another folder."
        )
    if not package and not own:
        raise ModelError(
            f"{path}: expected a model here, or the reference model ({_ABOUT}), found neither; {_GET} brings the last."
        )
    return package


def _package() -> Path | None:
    """The folder of the package: of the clone whose source this is, else of what is installed."""
    clone = Path(__file__).parents[3] / NAME
    if (clone / "pyproject.toml").is_file():
        return clone / PACKAGE
    try:
        return Path(str(importlib.resources.files(PACKAGE)))
    except ModuleNotFoundError:
        return None


def _is_bundle(folder: Path) -> bool:
    return (folder / _OWN[0]).is_file()


def _told(folder: Path) -> Path:
    log.info("reference: %s", folder)
    return folder
