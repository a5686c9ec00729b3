"""Things that a folder may hold and that were made, or have come about, to do harm. All of it is synthetic."""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
EXPLICIT, IMPLICIT, DEFLATED = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1.99"
MR = b"1.2.840.10008.5.1.4.1.1.4"
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC")


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in explicit VR, little endian; `length` is what it claims."""
    value += b"\0" * (len(value) % 2)
    length = len(value) if length is None else length
    head = struct.pack("<HH", group, number) + vr
    return head + (struct.pack("<HI", 0, length) if vr in _LONG else struct.pack("<H", length)) + value


def implicit(group: int, number: int, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return struct.pack("<HHI", group, number, len(value)) + value


def meta(syntax: bytes, padding: int = 0) -> bytes:
    """Preamble and meta group; `padding` puts the syntax further into the file."""
    inside = element(2, 2, b"UI", MR) + element(2, 3, b"UI", b"1.2.3" + b".1" * (padding // 2))
    inside += element(2, 0x10, b"UI", syntax)
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(inside))) + inside


def slice_file(*, image_type: bytes = b"", before: bytes = b"", uid: bytes = b"1.2.3.4") -> bytes:
    """An MR slice of 64x64, but for what is given: elements of group 8, and some that come before group 32."""
    parts = [meta(EXPLICIT), image_type or element(8, 8, b"CS", b"ORIGINAL\\PRIMARY")]
    parts += [element(8, 0x16, b"UI", MR), element(8, 0x60, b"CS", b"MR"), before]
    parts += [
        element(0x20, 0xE, b"UI", uid),
        element(0x20, 0x11, b"IS", b"3"),
        element(0x20, 0x13, b"IS", b"1"),
    ]
    parts += [element(0x28, 0x10, b"US", b"\x40\0"), element(0x28, 0x11, b"US", b"\x40\0")]
    return b"".join([*parts, element(0x7FE0, 0x10, b"OW", bytes(8192))])


def _plain(content: Callable[[], bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a.dcm").write_bytes(content())

    return write


def _zipped(*contents: Callable[[], bytes], method: int = zipfile.ZIP_DEFLATED) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / "a.zip", "w", method) as archive:
            for number, content in enumerate(contents):
                archive.writestr(f"{number}.dcm", content())

    return write


def _deflated() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(struct.pack("<HH2sHI", 9, 0x1010, b"OB", 0, 32 * MIB))
    body += b"".join(packer.compress(bytes(MIB)) for _ in range(32)) + packer.flush()
    return meta(DEFLATED, padding=2000) + body


def _implicit(*elements: bytes) -> bytes:
    start = meta(IMPLICIT) + implicit(8, 0x16, MR) + implicit(8, 0x60, b"MR")
    return start + b"".join(elements) + implicit(0x28, 0x10, b"\x40\0")


def _sparse(folder: Path) -> None:
    with (folder / "a.dcm").open("wb") as file:
        file.write(meta(EXPLICIT) + element(9, 0x1010, b"OB", b"", 0xFFFFFFF0))
        file.truncate(0xFFFFFFF0)


def _no_end(folder: Path) -> None:
    sequence = element(8, 0x1140, b"SQ", b"", 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    (folder / "a.dcm").write_bytes(meta(EXPLICIT) + (sequence + item) * 200_000)


def _many_entries(folder: Path) -> None:
    """An archive in an archive, whose list of contents has 2 million entries of one file."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 2_000_000
    inner = entry * count
    inner += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(inner), 0, 0)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.zip", inner)


def _long_path(folder: Path) -> None:
    here = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(22):
            os.mkdir("d" * 200, dir_fd=here)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)


def _long_names(folder: Path) -> None:
    for ending in (".hdr", ".nhdr", ".mhd", ".img", ".nii.gz"):
        (folder / ("a" * (255 - len(ending)) + ending)).write_bytes(bytes(400))


def _odd_files(folder: Path) -> None:
    os.mkfifo(folder / "pipe.nii.gz")
    os.mkfifo(folder / "pipe.dcm")
    (folder / "folder.nii.gz").mkdir()
    (folder / "itself.nii.gz").symlink_to(folder / "itself.nii.gz")
    (folder / "nothing.nii.gz").symlink_to(folder / "not-there")
    (folder / "broken.zip").write_bytes(b"PK\3\4" + bytes(100))
    (folder / b"\xff\xfe.nii.gz".decode("utf-8", "surrogateescape")).write_bytes(b"\x1f\x8b")
    (folder / "line\nbreak.nii").write_bytes(b"x")


def _same_names(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in (b"1.2.9.1", b"1.2.9.2"):
            archive.writestr("same.dcm", slice_file(uid=number))


def _not_searchable(folder: Path) -> None:
    (folder / "closed").mkdir()
    (folder / "closed" / "a.nii.gz").write_bytes(bytes(400))
    (folder / "closed").chmod(stat.S_IRWXU & ~stat.S_IXUSR | stat.S_IRGRP | stat.S_IROTH)


#: Name → writes it into a folder. Each gives one failed row at least, and takes seconds at most to write.
KINDS: dict[str, Callable[[Path], None]] = {
    "numeric image type": _plain(lambda: slice_file(image_type=element(8, 8, b"US", b"\1\0"))),
    "deflated data set, named late": _plain(_deflated),
    "UIDs of 4 MiB": _zipped(*[lambda: _implicit(implicit(0x20, 0xE, b"1." * (2 * MIB)))] * 10),
    "millions of numbers": _zipped(lambda: _implicit(implicit(0x20, 0x11, b"1\\" * (8 * MIB)))),
    "millions of elements": _zipped(*[lambda: _implicit(implicit(9, 0x1010, b"") * (4 * MIB))] * 2),
    "an element of 4 GB": _sparse,
    "sequences without end": _no_end,
    "bzip2": _zipped(lambda: slice_file(before=element(9, 1, b"OB", bytes(8 * MIB))), method=zipfile.ZIP_BZIP2),
    "LZMA": _zipped(lambda: slice_file(before=element(9, 1, b"OB", bytes(8 * MIB))), method=zipfile.ZIP_LZMA),
    "a list of 2 million files": _many_entries,
    "a UID that is a path": _plain(lambda: slice_file(uid=b"../../x")),
    "a path of 4400 characters": _long_path,
    "names of 255 characters": _long_names,
    "pipes, links, folders, bytes": _odd_files,
    "two members of one name": _same_names,
    "a folder that is not searchable": _not_searchable,
}  # fmt: skip
