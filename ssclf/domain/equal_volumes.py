"""The same voxels under two names: a scan that was copied, exported twice or given another subject by mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssclf.errors import DatasetError


@dataclass(frozen=True)
class Known:
    """Who a volume is said to be.

    Attributes:
        place: its file or its line in a table, for messages.
        voxels: hash of what preprocessing gave, "" where none is known.
    """

    place: str
    subject: str
    label: str
    voxels: str


def equal_pairs(volumes: Sequence[Known]) -> list[tuple[Known, Known]]:
    """Each volume that has the voxels of an earlier one, behind the first that has them."""
    first: dict[str, Known] = {}
    pairs = [(first.setdefault(each.voxels, each), each) for each in volumes if each.voxels]
    return [(one, two) for one, two in pairs if one is not two]


def check_labels(pairs: Sequence[tuple[Known, Known]]) -> None:
    """Raises:
    DatasetError: the same voxels have two labels.
    """
    for one, two in pairs:
        if one.label != two.label:
            raise DatasetError(
                f"{one.place} and {two.place}: the same voxels have two labels, {one.label or 'none'} and "
                f"{two.label or 'none'}; correct one of them, or leave both out."
            )


def join_subjects(pairs: Sequence[tuple[Known, Known]]) -> Mapping[str, str]:
    """Subjects that share voxels are one: name → the name, first in order, that all of them get.

    Two names on two sides of a split would let a network be tested on what trained it.
    """
    joined: dict[str, str] = {}

    def named(subject: str) -> str:
        while subject in joined:
            subject = joined[subject]
        return subject

    for one, two in pairs:
        names = sorted({named(one.subject), named(two.subject)})
        if len(names) > 1:
            joined[names[1]] = names[0]
    return {subject: named(subject) for subject in joined}
