"""What a run was begun with, so that it never goes on with something else in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssclf.config import TrainConfig, canonical_settings
from ssclf.domain.augmentation import VERSION as AUGMENTATION
from ssclf.domain.generator.settings import VERSION as GENERATOR

#: So many volumes are named in a message.
_NAMED = 2


@dataclass(frozen=True, kw_only=True)
class RunData:
    """Data, classes and starting weights of a run.

    Attributes:
        folders: absolute paths of the preprocessed folders, where they lay when the run began or last went on.
        volumes: key → subject, label and hash of the voxels.
        class_names: in the order of logits.
        preprocess: settings that decided the voxel values.
        weights: "file" and "sha256" of the weights file that it was given to begin with, empty without.
        start: "file" and "sha256" of the trained model that it began with, empty without.
        drawn_by: versions of what draws its volumes at random, "augmentation" and "generator"; those alone that it
            needs, and none where a version of ssclf began it that did not write them down.
    """

    folders: tuple[str, ...]
    volumes: Mapping[str, tuple[str, str, str]]
    class_names: tuple[str, ...]
    preprocess: Mapping[str, Any]
    weights: Mapping[str, str] = field(default_factory=dict)
    start: Mapping[str, str] = field(default_factory=dict)
    drawn_by: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> RunData:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: values of another kind.
        """
        return RunData(
            folders=tuple(values["folders"]),
            volumes={key: _three(value) for key, value in values["volumes"].items()},
            class_names=tuple(values["class_names"]),
            preprocess=canonical_settings(values["preprocess"]),
            weights=dict(values["weights"]),
            start=dict(values["start"]),
            drawn_by=dict(values.get("drawn_by", {})),
        )


def random_versions(config: TrainConfig) -> dict[str, int]:
    """Of what draws the volumes of a run at random, see `RunData.drawn_by`."""
    used = {
        "augmentation": (AUGMENTATION, config.augmentation != "none"),
        "generator": (GENERATOR, config.lesions),
    }
    return {name: version for name, (version, wanted) in used.items() if wanted}


def other_versions(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """What would draw other volumes from the same seed, in words; empty where a run may go on."""
    return " and ".join(
        f"{name} was version {before.get(name, 'before they were written down')} and is {version}"
        for name, version in now.items()
        if before.get(name) != version
    )


def _three(value: Sequence[str]) -> tuple[str, str, str]:
    subject, label, voxels = value
    return subject, label, voxels


def differences(before: RunData, now: RunData) -> list[str]:
    """What is not as it was, in words: settings, classes, then volumes; empty where a run may go on.

    Starting weights are not looked at: a run that has begun needs them no more.
    """
    found = [
        f"{name} was {before.preprocess.get(name)} and is {now.preprocess.get(name)}"
        for name in sorted(before.preprocess.keys() | now.preprocess.keys())
        if before.preprocess.get(name) != now.preprocess.get(name)
    ]
    if before.class_names != now.class_names:
        found.append(f"the classes were {', '.join(before.class_names)} and are {', '.join(now.class_names)}")
    gone = [key for key in before.volumes if key not in now.volumes]
    new = [key for key in now.volumes if key not in before.volumes]
    if gone:
        found.append(f"{_some(gone)} not in the data any more")
    if new:
        found.append(f"{_some(new)} new")
    both = [key for key in before.volumes if key in now.volumes]
    for position, what in enumerate(("subject", "label", "voxels")):
        other = [key for key in both if before.volumes[key][position] != now.volumes[key][position]]
        if other:
            key = other[0]
            told = f"another {what}" if what != "voxels" else "other voxels"
            change = f" (was {before.volumes[key][position]}, is {now.volumes[key][position]})"
            found.append(f"{_some(other, told)}{change if what == 'label' else ''}")
    return found


def _some(keys: Sequence[str], have: str = "") -> str:
    """How many volumes, and the first of them: "3 volumes (a, b, …) are", or "have" something."""
    named = ", ".join(sorted(keys)[:_NAMED]) + (", …" if len(keys) > _NAMED else "")
    one = len(keys) == 1
    verb = ("has" if one else "have") + f" {have}" if have else ("is" if one else "are")
    return f"{len(keys)} {'volume' if one else 'volumes'} ({named}) {verb}"
