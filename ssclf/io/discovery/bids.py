"""Participants of a BIDS data set, and where their anatomical volumes lie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ssclf.errors import DatasetError
from ssclf.io.paths import is_file, is_folder

DESCRIPTION = "dataset_description.json"
_PARTICIPANT = re.compile(r"sub-[0-9A-Za-z+]+")


def participants(root: Path, labels: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """`sub-X` → its folders `anat`, of every session, below `root`; sorted.

    Args:
        labels: those that are wanted, with or without "sub-"; none: all.

    Raises:
        DatasetError: no BIDS data set, one that cannot be read, or a label that it does not have.
    """
    if not is_file(root / DESCRIPTION):
        raise DatasetError(f"{root}: expected a BIDS data set, found no {DESCRIPTION} in it.")
    found = [name for name in _folders(root) if _PARTICIPANT.fullmatch(name)]
    wanted = {f"sub-{label.removeprefix('sub-')}" for label in labels} or set(found)
    if missing := sorted(wanted - set(found)):
        raise DatasetError(
            f"{root}: expected the participants asked for, found no folder {', '.join(missing)}."
        )
    if not found:
        raise DatasetError(f"{root}: expected folders sub-X of participants, found none.")
    return {name: tuple(_anat(root, name)) for name in found if name in wanted}


def _anat(root: Path, participant: str) -> list[str]:
    sessions = [name for name in _folders(root / participant) if name.startswith("ses-")]
    places = [participant, *(f"{participant}/{session}" for session in sessions)]
    return [f"{place}/anat" for place in places if is_folder(root / place / "anat")]


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if is_folder(entry))
    except OSError as exc:
        raise DatasetError(f"{folder}: the folder cannot be read ({exc.strerror or exc}).") from exc
