"""What ssclf wrote, known again wherever it lies: output in a scanned folder must never become input.

Volumes carry a mark in their header, which stays when they are renamed or moved. Tables and pages are known
by how they begin. Maps of versions that set no mark are known by their name and by what was in every header of theirs.
"""

from __future__ import annotations

import struct
import zlib

from ssclf.io.records.map_names import tells_of_a_scan

#: NIfTI-1's intent_name (nifti1.h: 16 characters at byte 328) of what `write_nifti` was told to mark.
MAP_MARK, PREPARED_MARK = "ssclf:map", "ssclf:prepared"
OWN_VOLUMES = {
    MAP_MARK: "a map that ssclf predict wrote",
    PREPARED_MARK: "a volume that ssclf preprocess wrote",
}
OWN_TEXT = "a table, page or record that ssclf wrote"
#: So many bytes of a file, compressed or not, tell whether it is ours.
START_BYTES = 1024
_NAME, _MAGIC = slice(328, 344), slice(344, 347)
#: Three dimensions, float32 of 32 bits, lengths in mm alone, no description, sform "aligned" and no qform: fields of
#: NIfTI-1 (offset, format, values) as maps without a mark had them, which no scanner or converter writes together.
_UNMARKED_MAP = (
    (0, "<i", (348,)),
    (40, "<h", (3,)),
    (70, "<hh", (16, 32)),
    (123, "<B", (2,)),
    (148, "<104s", (bytes(104),)),
    (252, "<hh", (0, 2)),
    (328, "<16s", (bytes(16),)),
)
_HEADERS = (
    b"path,series,status,prediction,confidence,",  # results.csv
    b"subject,label,source,path,contrasts,shape,",  # manifest.csv of a preprocessed cohort
    b"subject,label,source,sessions,volumes,failed,",  # its subjects.csv
    b'{"run": {"ssclf_version": ',  # results.json
)
_GENERATOR = b'<meta name="generator" content="ssclf">'


def own_volume(name: str, start: bytes) -> str:
    """What kind of our own output a NIfTI file is, "" for any other file.

    Args:
        name: without folders.
        start: its first `START_BYTES` bytes, as they lie on disk.
    """
    if start[:2] == b"\x1f\x8b":
        try:
            start = zlib.decompressobj(31).decompress(start, _MAGIC.stop)
        except zlib.error:
            return ""
    if start[_MAGIC] not in (b"n+1", b"ni1"):
        return ""
    mark = start[_NAME].rstrip(b"\0").decode("latin-1")
    return OWN_VOLUMES.get(MAP_MARK if _is_unmarked_map(name, start) else mark, "")


def _is_unmarked_map(name: str, start: bytes) -> bool:
    return (
        tells_of_a_scan(name)
        and len(start) >= _MAGIC.stop
        and all(struct.unpack_from(kind, start, at) == values for at, kind, values in _UNMARKED_MAP)
    )


def own_text(start: bytes) -> str:
    """What kind of our own output a table, page or record is, "" for any other file."""
    ours = start.startswith(_HEADERS) or _GENERATOR in start
    return OWN_TEXT if ours else ""
