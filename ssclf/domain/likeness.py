"""Knowing a scan again, however it was stored: a few bits of what preprocessing gives of it.

An exact hash of the voxels misses a scan that was stored again: with another data type, rounded to 256 grey values, its
header written anew. Here the volume becomes means over blocks of 8 mm about its centre of mass; from each the mean of
its six neighbours is taken, which leaves what is this brain's own and no other's; and each of 512 fixed random sums of
these is kept as its sign. Volumes are then as alike as these bits are: the share that differs is the angle between the
two over 180 degrees.

Source: Charikar, Similarity Estimation Techniques from Rounding Algorithms, 2002, Sec. 3 (random hyperplanes).
Measured on real volumes in docs/trust.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]

#: Before each likeness; those of another version say nothing to this one.
VERSION: Final = "1-"
BITS: Final = 512
#: Likenesses that differ in no more bits are of one scan. A scan stored again differs in none, with noise
#: of 2 % in up to 9; scans of two persons differ in 112 and more, two contrasts of one visit in 54 and more.
TOLERANCE: Final = 10
_WRITTEN: Final = re.compile(f"{VERSION}[0-9a-f]{{{BITS // 4}}}")
_BLOCK_MM: Final = 8.0
#: Blocks along each axis: 192 mm, more than a brain.
_BLOCKS: Final = 24
#: Rows of the table of distances that are in memory at once.
_ROWS: Final = 1024


def describe_likeness(data: NDArray[np.float32], affine: NDArray[np.float64]) -> str:
    """What tells a preprocessed volume from any other scan.

    Args:
        data: network input (C, D, H, W), background 0.
        affine: (4, 4) of the input.

    Returns:
        `VERSION` and 128 hexadecimal digits; "" for a volume that is empty.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    total = data.sum(axis=0, dtype=np.float64)
    if not total.any():
        return ""
    shares = []
    for axis, mm in enumerate(spacing):
        profile = total.sum(axis=tuple(other for other in range(3) if other != axis))
        centre = float((profile * (np.arange(profile.size) + 0.5)).sum() / profile.sum()) * mm
        shares.append(_block_shares(profile.size, float(mm), centre))
    sums = np.zeros(BITS)
    for number, channel in enumerate(data):
        means = np.einsum("ad,dhw->ahw", shares[0], channel.astype(np.float64))
        means = np.einsum("bh,ahw->abw", shares[1], means)
        own = _without_neighbours(np.einsum("cw,abw->abc", shares[2], means)).ravel()
        filled = np.flatnonzero(own)
        sums += _signs(number)[:, filled].astype(np.float64) @ own[filled]
    return VERSION + np.packbits(sums > 0).tobytes().hex()


def _block_shares(size: int, mm: float, centre: float) -> NDArray[np.float64]:
    """(blocks, size): which share of a block each voxel along an axis fills.

    Args:
        centre: in mm from the start of the array, where the middle of the blocks lies.
    """
    starts = centre + (np.arange(_BLOCKS) - _BLOCKS / 2)[:, None] * _BLOCK_MM
    edges = np.arange(size) * mm
    overlap = np.minimum(starts + _BLOCK_MM, edges + mm) - np.maximum(starts, edges)
    return np.clip(overlap, 0, None) / _BLOCK_MM


def _without_neighbours(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each block less the mean of the six beside it; beyond the blocks is background."""
    padded = np.pad(blocks, 1)
    around = np.zeros_like(padded)
    for axis in range(3):
        around += np.roll(padded, 1, axis) + np.roll(padded, -1, axis)
    return blocks - around[1:-1, 1:-1, 1:-1] / 6


@lru_cache(maxsize=4)
def _signs(channel: int) -> NDArray[np.int8]:
    """(BITS, blocks) of -1 and 1, always the same: from a hash, since generators may change between releases."""
    count = BITS * _BLOCKS**3
    stream = hashlib.shake_256(f"ssclf likeness {VERSION}{channel}".encode()).digest(count // 8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8)).astype(np.int8)
    return (2 * bits - 1).reshape(BITS, -1)


def read_bits(likenesses: Sequence[str]) -> Bits:
    """(N, BITS) of 0 and 1.

    Raises:
        ValueError: one of them is no likeness of this version.
    """
    if not likenesses:
        return np.zeros((0, BITS), np.uint8)
    if not all(map(is_readable, likenesses)):
        raise ValueError(f"expected likenesses of {BITS} bits")
    rows = [bytes.fromhex(text.removeprefix(VERSION)) for text in likenesses]
    packed = np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), BITS // 8)
    return np.unpackbits(packed, axis=1)


def is_readable(text: str) -> bool:
    """Whether a text is a likeness that this version can compare."""
    return bool(_WRITTEN.fullmatch(text))


def first_alike(likenesses: Sequence[str]) -> list[int | None]:
    """For each likeness the place of the first before it that is of the same scan; None where none is."""
    found: list[int | None] = [None] * len(likenesses)
    known = [place for place, text in enumerate(likenesses) if is_readable(text)]
    if not known:
        return found
    signs = 2.0 * read_bits([likenesses[place] for place in known]).astype(np.float32) - 1
    for start in range(0, len(known), _ROWS):
        rows = signs[start : start + _ROWS]
        close = (BITS - rows @ signs[: start + len(rows)].T) / 2 <= TOLERANCE
        firsts = close.argmax(axis=1)
        for row, first in enumerate(firsts.tolist()):
            if first < start + row:
                found[known[start + row]] = known[first]
    return found


@dataclass(frozen=True)
class SeenVolumes:
    """Volumes that a model has seen.

    Attributes:
        voxels: hashes of the exact voxels.
        likenesses: those that this version can compare; a bundle of an older one has none.
    """

    voxels: frozenset[str] = frozenset()
    likenesses: tuple[str, ...] = ()

    @staticmethod
    def of(texts: Sequence[str]) -> SeenVolumes:
        """From hashes and likenesses in one list."""
        known = frozenset(texts)
        likenesses = tuple(sorted(text for text in known if text.startswith(VERSION)))
        return SeenVolumes(known - set(likenesses), likenesses)

    @property
    def texts(self) -> list[str]:
        """All of them, sorted; the inverse of `of`."""
        return sorted((*self.voxels, *self.likenesses))

    def __bool__(self) -> bool:
        return bool(self.voxels or self.likenesses)

    @cached_property
    def bits(self) -> Bits:
        """(N, BITS) of the likenesses."""
        return read_bits(self.likenesses)

    def hold(self, voxels: str, described: Callable[[], str]) -> bool:
        """Whether a volume is one of them.

        Args:
            voxels: hash of its voxels, "" where it is not known.
            described: gives its likeness; asked only where that decides.
        """
        if voxels in self.voxels:
            return True
        text = described() if self.likenesses else ""
        if not is_readable(text):
            return False
        return bool(((self.bits != read_bits([text])).sum(axis=1) <= TOLERANCE).any())
