"""Which files make a series, and which make another copy of it: decided by what they hold, not where they lie.

Files come with what they show (`Member.instance`). A folder is a copy of a series only where it holds all that
the series has; one slice that lies somewhere a second time decides nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from ssclf.domain.slices import Slice, stack_slices
from ssclf.errors import VolumeError

#: Fewer series of one slice each are what they say they are; more, of one examination, were one series.
FEW_SINGLE_SLICES = 3
#: As for the slices of one series (`ssclf.domain.slices`): cosines, and a share of the pixel size.
SAME_DIRECTION, SAME_PIXEL = 2e-3, 1e-3


@dataclass(frozen=True)
class Member:
    """A file of a series.

    Attributes:
        name: POSIX path below the folder or in the archive.
        instance: equal for two files that hold the same image.
        entry: see `ssclf.io.volumes.dicom_archive.Entry`; () outside archives.
    """

    name: str
    instance: Hashable
    entry: tuple[int, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        return PurePosixPath(self.name).parts[:-1]


def split_copies(members: Sequence[Member]) -> tuple[list[list[Member]], list[list[Member]]]:
    """Tell copies of a series apart.

    Returns:
        the files of each copy; and by folder, files that repeat some images of a series that lies elsewhere whole.
    """
    wanted = {member.instance for member in members}
    if len(wanted) == len(members):
        return [list(members)], []
    return _split(members, wanted, 0)


def _split(
    members: Sequence[Member], wanted: set[Hashable], depth: int
) -> tuple[list[list[Member]], list[list[Member]]]:
    """As `split_copies`, for files that share their first `depth` folders and hold everything that is wanted."""
    below: dict[tuple[str, ...], list[Member]] = defaultdict(list)
    for member in members:
        below[member.folders[depth : depth + 1]].append(member)
    copies: list[list[Member]] = []
    again: list[list[Member]] = []
    rest: list[list[Member]] = []
    for folder, inside in below.items():
        if {member.instance for member in inside} != wanted:
            rest.append(inside)
        elif folder:
            deeper, left = _split(inside, wanted, depth + 1)
            copies += deeper
            again += left
        else:
            copies.append(inside)
    if not copies:
        return [list(members)], []
    if {member.instance for inside in rest for member in inside} == wanted:
        copies.append([member for inside in rest for member in inside])
    else:
        again += rest
    return copies, again


def name_shape(name: str) -> str:
    """What names have in common that differ in their numbers: "IM0012.dcm" gives "IM#.dcm"."""
    return re.sub(r"\d+", "#", name)


def may_be_slices(slices: Iterable[str], others: Iterable[tuple[str, bytes]]) -> list[str]:
    """Of files that lie beside slices and are no DICOM, those that may be damaged slices.

    Args:
        slices: names of the slices of one folder.
        others: names and first bytes of other files there.

    Returns:
        names like those of the slices but for numbers, and numbered names of the same ending without content.
    """
    names = list(slices)
    shapes = {name_shape(name) for name in names}
    endings = {PurePosixPath(name).suffix for name in names}
    return [
        name
        for name, start in others
        if shapes
        and (
            name_shape(name) in shapes
            or (PurePosixPath(name).suffix in endings and re.search(r"\d", name) and not start.strip(b"\0"))
        )
    ]


@dataclass(frozen=True)
class Single:
    """A series of one image, and what may make it a slice of a volume.

    Attributes:
        uid: of the series.
        frame: study and frame of reference, which slices of one volume share.
        piece: where the image lies.
        traits: series number, description, and the way of acquisition, which tell volumes of one examination apart.
    """

    uid: str
    frame: Hashable
    piece: Slice
    traits: tuple[Hashable, ...]


def join_single_slices(singles: Iterable[Single]) -> tuple[list[list[str]], list[list[str]]]:
    """Find the volumes among series of one image each: some scanners give every slice a series UID of its own.

    Returns:
        UIDs of each volume, and of each examination whose slices make none.
    """
    groups: dict[Hashable, list[list[Single]]] = defaultdict(list)
    for one in singles:
        near = next((group for group in groups[one.frame] if _alike(group[0].piece, one.piece)), None)
        if near is None:
            groups[one.frame].append([one])
        else:
            near.append(one)
    joined: list[list[str]] = []
    loose: list[list[str]] = []
    for together in (group for near in groups.values() for group in near):
        if len(together) <= FEW_SINGLE_SLICES:
            continue
        volumes = _volumes(together)
        if volumes:
            joined += [sorted(one.uid for one in volume) for volume in volumes]
        else:
            loose.append(sorted(one.uid for one in together))
    return joined, loose


def _volumes(singles: list[Single]) -> list[list[Single]]:
    """The finest parting by traits in which every part is a whole volume; none where there is no such."""
    for parting in (slice(None), slice(1), slice(1, None), slice(1, 2), slice(0)):
        parts: dict[Hashable, list[Single]] = defaultdict(list)
        for one in singles:
            parts[one.traits[parting]].append(one)
        if all(_is_whole(part) for part in parts.values()):
            return list(parts.values())
    return []


def _alike(one: Slice, other: Slice) -> bool:
    """Whether two slices can be of one stack: of one size, with pixels of one size, in one direction."""
    sizes = np.abs(np.subtract(one.spacing, other.spacing)).max() <= SAME_PIXEL * min(one.spacing)
    return bool(
        one.shape == other.shape
        and sizes
        and np.abs(np.subtract(one.directions, other.directions)).max() <= SAME_DIRECTION
    )


def _is_whole(singles: list[Single]) -> bool:
    if len(singles) <= FEW_SINGLE_SLICES:
        return False
    try:
        stack_slices([one.piece for one in singles])
    except VolumeError:
        return False
    return True
