"""The few values of a DICOM header that discovery asks for, read in time and memory that no header decides.

pydicom makes an object of every element and reads what a length says. Here elements that are not asked for are
stepped over, nothing is nested or converted, and of one header so many bytes are looked at and no more.
Source: DICOM PS3.5, 7.1 (elements), 7.5 (sequences), 6.2.2 (UN); PS3.10, 7.1 (the meta group).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from ssclf.errors import VolumeError

#: What is looked at of one header. Before its group 0028 a slice has some kilobytes, with private data a hundred.
MAX_HEADER_BYTES = 4 << 20
#: A value that is asked for has 64 characters, or some of them (PS3.5, 6.2); one text may have more than one byte each.
MAX_VALUE_BYTES = 4096
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_SYNTAX, _CHARACTERS = 0x00020010, 0x00080005
_UNDEFINED = 0xFFFFFFFF
_DELIMITERS = (0xFFFEE00D, 0xFFFEE0DD)
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
#: Groups from here on hold frames, overlays and pixels.
_BEHIND_THE_HEADER = 0x5000
_IMAGE_GROUP = 0x0028
_SERIES, _ROWS = 0x0020000E, 0x00280010
_STEP = 1 << 15


class Window:
    """The bytes of a stream by their place, going forward; no more of them than a header may have.

    Args:
        stream: behind its first bytes.
        start: those.
        seeks: whether stepping over bytes costs nothing; in an archive they have to be inflated.
    """

    def __init__(self, stream: IO[bytes], start: bytes = b"", *, seeks: bool) -> None:
        self._stream, self._seeks, self._left = stream, seeks, MAX_HEADER_BYTES
        self._end = len(start)
        self.base = 0
        self.data = start

    def move(self, place: int) -> None:
        """Have `data` begin at a place and hold some kilobytes, fewer at the end of the stream.

        Raises:
            VolumeError: more would be looked at than a header may have.
        """
        kept = self.data[place - self.base :] if self.base <= place else b""
        ahead = place - self._end
        if ahead > 0 and self._seeks:
            self._stream.seek(place)
        elif ahead > 0:
            self._spend(ahead)
            while ahead > 0 and (part := self._stream.read(min(ahead, _STEP))):
                ahead -= len(part)
        self._spend(_STEP)
        self.data = kept + self._stream.read(_STEP)
        self.base = place
        self._end = place + len(self.data)

    def bytes_at(self, place: int, count: int) -> bytes:
        """So many bytes from a place at or behind `base`, fewer at the end of the stream."""
        if place + count > self.base + len(self.data):
            self.move(place)
        return self.data[place - self.base : place - self.base + count]

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < -_STEP:
            raise VolumeError(
                f"expected an image within the first {MAX_HEADER_BYTES >> 20} MiB of the DICOM header, found none."
            )


@dataclass(frozen=True)
class Elements:
    """Values as they stand in a file.

    Attributes:
        values: tag → value representation ("" where the file does not say) and bytes.
        implicit, little: how the data set is written.
    """

    values: dict[int, tuple[str, bytes]]
    implicit: bool
    little: bool

    def text(self, tag: int) -> str:
        """A value of plain characters, "" where it is none or not there."""
        vr, value = self.values.get(tag, ("", b""))
        if vr in ("", "AE", "CS", "DA", "DS", "IS", "LO", "SH", "TM", "UI", "UN", "ST", "LT", "UT", "UC"):
            return value.decode("latin-1").strip("\0 ")
        return ""

    def number(self, tag: int) -> int:
        """A whole number that a file keeps in bytes or in characters; 0 where it is none or not there."""
        vr, value = self.values.get(tag, ("", b""))
        if vr in ("", "US", "UL", "SS", "SL", "UN"):
            size = 4 if vr in ("UL", "SL") else 2
            return int.from_bytes(value[:size], "little" if self.little else "big")
        try:
            return int(float(self.text(tag)))
        except (ValueError, OverflowError):
            return 0

    def dataset(self) -> Dataset:
        """The same for pydicom, which converts what it is asked for (and may raise anything)."""
        raw: dict[BaseTag, DataElement | RawDataElement] = {
            BaseTag(tag): RawDataElement(
                BaseTag(tag), vr or None, len(value), value, 0, not vr, self.little, True
            )
            for tag, (vr, value) in self.values.items()
        }
        dataset = Dataset(raw)
        names = self.text(_CHARACTERS).split("\\")[:8]
        dataset.set_original_encoding(self.implicit, self.little, convert_encodings(names))
        return dataset


def read_elements(window: Window, wanted: frozenset[int]) -> Elements:
    """Read the values of some tags, up to the pixels.

    Args:
        window: at the start of a file with or without preamble.
        wanted: tags of the data set itself; what lies in sequences is not looked at.

    Raises:
        VolumeError: a value or the header is longer than any that DICOM has, or the data set is deflated.
    """
    start, syntax = read_syntax(window)
    first = window.bytes_at(start, 8)
    implicit, little = not _is_explicit(first), syntax != _BIG_ENDIAN
    if not syntax and not implicit:
        # a group below 0x0100, read the wrong way round
        little = int.from_bytes(first[:2], "little") < 0x0400
    values: dict[int, tuple[str, bytes]] = {}
    _walk(window, start, values, wanted, (implicit, little))
    return Elements(values, implicit, little)


def read_syntax(window: Window) -> tuple[int, bytes]:
    """Where the data set begins, and the UID of its transfer syntax, empty where no meta group states it.

    Raises:
        VolumeError: the data set is deflated.
    """
    start = 132 if window.bytes_at(0, 132)[128:] == b"DICM" else 0
    implicit = not _is_explicit(window.bytes_at(start, 8))
    meta: dict[int, tuple[str, bytes]] = {}
    start = _walk(window, start, meta, frozenset({_SYNTAX}), (implicit, True), only=2)
    syntax = meta.get(_SYNTAX, ("", b""))[1].strip(b"\0 ")
    if syntax == _DEFLATED:
        # pydicom would inflate all of it, however much that is, and dcm2niix does not read it
        raise VolumeError("the data set is deflated as a whole, which is not read; inflate it with dcmconv.")
    return start, syntax


def _is_explicit(element: bytes) -> bool:
    """Whether an element names its value representation: two capitals where a length could hardly be."""
    return _capitals(element[4:6])


def _capitals(vr: bytes) -> bool:
    return len(vr) == 2 and 0x40 < vr[0] < 0x5B and 0x40 < vr[1] < 0x5B


def _unpackers(little: bool) -> tuple[Callable[..., tuple[int, ...]], ...]:
    """Of group, element and length; of a short; of a long."""
    return tuple(struct.Struct(("<" if little else ">") + form).unpack_from for form in ("HHI", "H", "I"))


def _walk(
    window: Window,
    place: int,
    values: dict[int, tuple[str, bytes]],
    wanted: frozenset[int],
    encoding: tuple[bool, bool],
    *,
    only: int | None = None,
) -> int:
    """Go from element to element and keep what is wanted; returns where the next one begins.

    Args:
        encoding: implicit, little endian.
        only: the group behind which to stop; None: the header as a whole.
    """
    implicit, little = encoding
    read_head, read_short, read_long = _unpackers(little)
    # of each sequence and item that has not ended: how what lies around it is written
    around: list[bool] = []
    while True:
        at = place - window.base
        if at < 0 or at + 16 > len(window.data):
            window.move(place)
            at = 0
        data = window.data
        if len(data) - at < 8:
            return place
        group, element, length = read_head(data, at)
        tag, size, vr = group << 16 | element, 8, b""
        if group == 0xFFFE:
            if tag in _DELIMITERS:
                if not around:
                    return place
                implicit, length = around.pop(), 0
            elif length == _UNDEFINED:
                around.append(implicit)
                implicit, length = implicit or not _capitals(data[at + 12 : at + 14]), 0
            place += size + length
            continue
        if not implicit and _capitals(data[at + 4 : at + 6]):
            vr = data[at + 4 : at + 6]
            if vr in _LONG:
                if len(data) - at < 12:
                    return place
                length, size = read_long(data, at + 8)[0], 12
            else:
                length = read_short(data, at + 6)[0]
        if not around:
            if only is not None and group != only:
                return place
            if group >= _BEHIND_THE_HEADER or (group > _IMAGE_GROUP and {_SERIES, _ROWS} <= values.keys()):
                return place
            if tag in wanted:
                values[tag] = vr.decode("ascii"), _value(window, place + size, length)
        place += size
        if length != _UNDEFINED:
            place += length
        else:
            around.append(implicit)


def _value(window: Window, place: int, length: int) -> bytes:
    if length == _UNDEFINED:  # a sequence: that it is there is all that is asked
        return b""
    if length > MAX_VALUE_BYTES:
        raise VolumeError("a value of the DICOM header is longer than any that DICOM has.")
    return window.bytes_at(place, length)
