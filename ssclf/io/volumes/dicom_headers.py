"""Headers of DICOM files, as far as they can be believed: told by content, read up to the pixels.

No header text reaches a message or a file.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import pydicom
from pydicom.errors import InvalidDicomError

from ssclf.errors import VolumeError

_DEFLATED, _META_BYTES = b"1.2.840.10008.1.2.1.99", 1 << 10


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Hospitals' headers break the standard in small ways all the time; that is no news to a user."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_header(file: BinaryIO) -> pydicom.Dataset:
    """Read everything before the pixels; the file is left where they start.

    Raises:
        VolumeError: not DICOM, cut short, or deflated.
    """
    if _DEFLATED in file.read(_META_BYTES):
        # pydicom would inflate all of it, however much that is, and dcm2niix does not read it
        raise VolumeError("the data set is deflated as a whole, which is not read; inflate it with dcmconv.")
    file.seek(0)
    try:
        # force: data sets without preamble; what they are was decided by `is_dicom`
        return pydicom.dcmread(file, stop_before_pixels=True, force=True)
    except (InvalidDicomError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise VolumeError("the DICOM header is damaged or cut short.") from exc
    except Exception as exc:  # pydicom raises what its parts raise: struct, zlib, unicode, recursion errors
        raise VolumeError(f"the DICOM header cannot be read ({type(exc).__name__}).") from exc


def get(header: pydicom.Dataset, keyword: str, default: Any = None) -> Any:
    """A header value; one that cannot be converted counts as absent."""
    try:
        value = header.get(keyword)
    except Exception:  # lazily converted by pydicom, which raises whatever the conversion raises
        return default
    return default if value is None or value == "" else value


def looks_like_dicom(start: bytes) -> bool:
    if start[128:132] == b"DICM":
        return True
    # Without preamble a data set starts with group 0002 or 0008: tag, then explicit VR or implicit length.
    if len(start) < 132 or start[:2] not in (b"\x02\x00", b"\x08\x00") or start[3] != 0:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], "little") <= 128
