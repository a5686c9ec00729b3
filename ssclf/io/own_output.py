"""What ssclf wrote, known again wherever it lies: output in a scanned folder must never become input.

Volumes carry a mark in their header, which stays when they are renamed or moved. Tables and pages are known
by how they begin.
"""

from __future__ import annotations

import zlib

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
_HEADERS = (
    b"path,series,status,prediction,confidence,",  # results.csv
    b"subject,label,source,path,contrasts,shape,",  # manifest.csv of a preprocessed cohort
    b"subject,label,source,sessions,volumes,failed,",  # its subjects.csv
    b'{"run": {"ssclf_version": ',  # results.json
)
_GENERATOR = b'<meta name="generator" content="ssclf">'


def own_volume(start: bytes) -> str:
    """What kind of our own output a NIfTI file is, "" for any other file.

    Args:
        start: its first `START_BYTES` bytes, as they lie on disk.
    """
    if start[:2] == b"\x1f\x8b":
        try:
            start = zlib.decompressobj(31).decompress(start, _MAGIC.stop)
        except zlib.error:
            return ""
    if start[_MAGIC] not in (b"n+1", b"ni1"):
        return ""
    return OWN_VOLUMES.get(start[_NAME].rstrip(b"\0").decode("latin-1"), "")


def own_text(start: bytes) -> str:
    """What kind of our own output a table, page or record is, "" for any other file."""
    ours = start.startswith(_HEADERS) or _GENERATOR in start
    return OWN_TEXT if ours else ""
