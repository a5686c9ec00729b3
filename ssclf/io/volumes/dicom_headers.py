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
from pydicom.tag import Tag

from ssclf.domain.slices import Slice
from ssclf.errors import VolumeError
from ssclf.io.volumes.dicom_grouping import Single

#: SOP classes with MR pixels on a spatial grid (PS3.4 B.5): classic, enhanced, legacy converted enhanced.
_MR_IMAGES = frozenset(f"1.2.840.10008.5.1.4.1.1.4{end}" for end in ("", ".1", ".4"))
_DIRECTORY = "1.2.840.10008.1.3.10"
_POSITION = Tag(0x0020, 0x0032)  # ImagePositionPatient
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


def instance_of(header: pydicom.Dataset) -> tuple[str, str, bytes]:
    """Equal for two files of one image. The UID alone would do, had every exporter given each image its own."""
    position = header.get_item(_POSITION) if _POSITION in header else None
    raw = getattr(position, "value", b"")  # not converted: that takes its time, and may fail
    return (
        str(get(header, "SOPInstanceUID", "")),
        str(get(header, "InstanceNumber", "")),
        raw if isinstance(raw, bytes) else str(raw).encode(),
    )


def place_of_slice(header: pydicom.Dataset, uid: str) -> Single | None:
    """Where the one image of a file lies, and which volume it may be of; None where the header does not say."""
    try:
        if int(get(header, "NumberOfFrames", 1)) > 1:
            return None
        x, y, z = (float(value) for value in get(header, "ImagePositionPatient"))
        a, b, c, d, e, f = (float(value) for value in get(header, "ImageOrientationPatient"))
        between_rows, between_columns = (float(value) for value in get(header, "PixelSpacing"))
        shape = int(get(header, "Rows")), int(get(header, "Columns"))
        piece = Slice((x, y, z), (a, b, c, d, e, f), (between_rows, between_columns), shape)
        echo = round(float(get(header, "EchoTime", 0)), 1)
    except (TypeError, ValueError, OverflowError):
        return None
    frame = str(get(header, "FrameOfReferenceUID", ""))
    if not frame:
        return None
    traits = (
        str(get(header, "SeriesNumber", "")),
        str(get(header, "SeriesDescription", "")),
        (echo, str(get(header, "ImageType", "")), str(get(header, "ContrastBolusAgent", ""))),
    )
    return Single(uid, (str(get(header, "StudyInstanceUID", "")), frame), piece, traits)


def reason_to_leave_out(header: pydicom.Dataset) -> str:
    """Why a file is no MR image that could be part of a volume; empty where it could be."""
    sop_class = str(get(header, "SOPClassUID", ""))
    modality = str(get(header, "Modality", ""))
    if sop_class == _DIRECTORY or get(header, "DirectoryRecordSequence") is not None:
        return "a DICOMDIR index, no image."
    if not get(header, "Rows"):
        # an MR image without rows is no other kind of object, it is cut short
        return "" if sop_class in _MR_IMAGES or not sop_class else "a DICOM object without an image."
    if modality not in ("MR", ""):
        return f"the modality is {modality if modality.isalnum() else 'unknown'}, not MR."
    if sop_class not in _MR_IMAGES and (sop_class or not modality):
        return "no MR image (a secondary capture or another kind of object)."
    image_type = get(header, "ImageType", ())
    if "LOCALIZER" in {str(value).upper() for value in image_type}:
        return "a localiser."
    return ""
