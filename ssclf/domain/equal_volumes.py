"""The same voxels under two names: a scan that was copied, exported twice or given another subject by mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssclf.domain.likeness import first_alike
from ssclf.errors import DatasetError


@dataclass(frozen=True)
class Known:
    """Who a volume is said to be.

    Attributes:
        place: its file or its line in a table, for messages.
        voxels: hash of what preprocessing gave, "" where none is known.
        likeness: of the same, see `domain.likeness`; "" likewise.
    """

    place: str
    subject: str
    label: str
    voxels: str
    likeness: str = ""


def equal_pairs(volumes: Sequence[Known]) -> list[tuple[Known, Known]]:
    """Each volume that is the same scan as an earlier one, behind the first such."""
    exact: dict[str, int] = {}
    alike = first_alike([each.likeness for each in volumes])
    pairs = []
    for place, (each, other) in enumerate(zip(volumes, alike, strict=True)):
        first = exact.setdefault(each.voxels, place) if each.voxels else place
        first = first if other is None else min(first, other)
        if first != place:
            pairs.append((volumes[first], each))
    return pairs


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
