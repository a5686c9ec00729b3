"""The pixels of DICOM frames as their own headers place and scale them, and dcm2niix's voxels against them.

dcm2niix knows vendors, but of an enhanced file it trusts some of them to store frames in the order of space, and of
some it applies the first frame's intensity scaling to all. Where a frame lies and how it is scaled stands in its own
functional groups (PS3.3 C.7.6.16). So dcm2niix is not asked about such files: the volume is put together from the
frames. All else that it converts is compared with the frames, and put together from them where it differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ssclf.domain.volume import Array
from ssclf.errors import VolumeError

#: Of the largest value: what rounding to 32-bit floats may change.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Frame:
    """One slice's pixels.

    Attributes:
        file: where they are stored.
        index: of the frame in its file, from 0.
        slope, intercept: of the frame's own rescaling (PS3.3 C.7.6.16.2.9, C.11.1).
    """

    file: Path
    index: int = 0
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def scaling(self) -> tuple[float, float]:
        return self.slope, self.intercept


class _CannotDecodeError(Exception):
    """No decoder for the compression is installed, or the pixels are not what it takes."""


def must_be_assembled(frames: Sequence[Frame]) -> bool:
    """Whether frames share a file and are not stored along the stack, or are scaled one by one.

    Args:
        frames: along the stack.
    """
    places = [frame.index for frame in frames]
    if not any(places):
        return False
    files = {frame.file for frame in frames}
    in_order = len(files) == 1 and places in (sorted(places), sorted(places, reverse=True))
    return not in_order or len({frame.scaling for frame in frames}) > 1


def own_voxels(frames: Sequence[Frame]) -> Array:
    """The volume (slices, rows, columns) that frames make, scaled as each of them says.

    Raises:
        VolumeError: they cannot be decoded here.
    """
    try:
        return _assemble(frames)
    except _CannotDecodeError as exc:
        raise VolumeError(
            "expected frames stored in the order of space with one intensity scaling, or pixels that are decoded "
            "here, found neither; decompress the file with dcmdjpeg or gdcmconv first."
        ) from exc


def checked_voxels(converted: Array, frames: Sequence[Frame]) -> Array | None:
    """Compare a converted volume with its frames.

    Args:
        converted: (slices, rows, columns), real values, from dcm2niix.
        frames: one for each slice, in the same order.

    Returns:
        None where the voxels are the frames' own, but for one factor and offset over the whole volume (vendors' own
        scales); else the volume put together from the frames, of the same shape. None too where nothing here decodes
        them and there is nothing that dcm2niix is known to mistake: files of one frame are numbered along the stack,
        frames of one file stored along it, and all have one scaling.

    Raises:
        VolumeError: nothing here decodes them, and they are scaled one by one.
    """
    try:
        if all(_same(*pair) for pair in zip(converted, _values(frames), strict=True)):
            return None
        own = _assemble(frames)
    except _CannotDecodeError:
        if len({frame.scaling for frame in frames}) > 1:
            return own_voxels(frames)
        return None
    return None if _same_but_for_scale(converted, own) else own


def _assemble(frames: Sequence[Frame]) -> Array:
    """(slices, rows, columns), without a second copy of what may be a gigabyte."""
    values = _values(frames)
    first = next(values)
    volume = np.empty((len(frames), *first.shape), first.dtype)
    volume[0] = first
    for place, frame in enumerate(values, start=1):
        volume[place] = frame
    return volume


def _same(converted: Array, own: Array) -> bool:
    if converted.dtype.kind in "iu" and own.dtype.kind in "iu":
        return np.array_equal(converted, own)
    limit = _ROUNDING * float(np.abs(own).max(initial=0))
    return bool(np.abs(converted - own.astype(np.float64)).max(initial=0) <= limit)


def _same_but_for_scale(converted: Array, own: Array) -> bool:
    """Whether one positive factor and one offset make one volume of the other."""
    low, high = (np.unravel_index(int(end), own.shape) for end in (own.argmin(), own.argmax()))
    extent = float(own[high]) - float(own[low])
    if extent <= 0:
        return False
    factor = (float(converted[high]) - float(converted[low])) / extent
    offset = float(converted[low]) - factor * float(own[low])
    limit = 10 * _ROUNDING * max(float(np.abs(converted[end])) for end in (low, high))
    return factor > 0 and all(
        np.abs(slice_ - (factor * frame.astype(np.float64) + offset)).max() <= limit
        for slice_, frame in zip(converted, own, strict=True)
    )


def _values(frames: Sequence[Frame]) -> Iterator[Array]:
    """The pixels of each frame with its scaling: whole numbers where none is scaled, else 32-bit floats.

    Raises:
        _CannotDecodeError: see there.
    """
    unscaled = all(frame.scaling == (1.0, 0.0) for frame in frames)
    for file, group in groupby(frames, key=lambda frame: frame.file):
        members = list(group)
        for frame, pixels in zip(members, _pixels(file, [frame.index for frame in members]), strict=True):
            if unscaled:
                yield pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
            else:
                yield (pixels * np.float64(frame.slope) + frame.intercept).astype(np.float32)


def _pixels(file: Path, indices: list[int]) -> Iterator[NDArray[Any]]:
    """Stored pixels (rows, columns) of some frames of a file."""
    try:
        source, options = _source(file)
        yield from iter_pixels(source, indices=indices, raw=True, **options)
    except Exception as exc:  # pydicom raises what its decoders raise
        raise _CannotDecodeError from exc


def _source(file: Path) -> tuple[Any, dict[str, Any]]:
    """What pydicom decodes: the file, or a data set from before there were preambles, whose encoding it guesses."""
    meta = pydicom.filereader.read_file_meta_info(file) if _has_preamble(file) else pydicom.Dataset()
    syntax = meta.get("TransferSyntaxUID")
    if syntax:
        if not get_decoder(syntax).is_available:
            raise _CannotDecodeError
        return file, {}
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    implicit, little = header.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return file, {"transfer_syntax_uid": ImplicitVRLittleEndian if implicit else explicit}


def _has_preamble(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def rescaling(slope: Any, intercept: Any) -> tuple[float, float]:
    """Slope and intercept as stated by a header, where 0 or nothing means that nothing is scaled.

    Raises:
        VolumeError: no numbers, or not finite.
    """
    try:
        factor, offset = float(1 if slope is None else slope), float(intercept or 0)
    except (TypeError, ValueError) as exc:
        raise VolumeError("a slice's intensity scaling is no number; export the series again.") from exc
    if not (math.isfinite(factor) and math.isfinite(offset)):
        raise VolumeError("a slice's intensity scaling is not finite; export the series again.")
    return (factor, offset) if factor else (1.0, 0.0)
