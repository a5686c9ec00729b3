"""Headers of DICOM files, as far as they can be believed: told by content, read up to the pixels.

No header text reaches a message or a file.
"""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError

from ssclf.domain.slices import Slice
from ssclf.errors import VolumeError
from ssclf.io.volumes.dicom_elements import MAX_VALUE_BYTES, Elements, Window, read_elements, read_syntax
from ssclf.io.volumes.dicom_grouping import Single

#: SOP classes with MR pixels on a spatial grid (PS3.4 B.5): classic, enhanced, legacy converted enhanced.
_MR_IMAGES = frozenset(f"1.2.840.10008.5.1.4.1.1.4{end}" for end in ("", ".1", ".4"))
_DIRECTORY = "1.2.840.10008.1.3.10"
#: What discovery asks for; PS3.6.
_TAGS = {
    "SpecificCharacterSet": 0x00080005, "ImageType": 0x00080008, "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018, "Modality": 0x00080060, "SeriesDescription": 0x0008103E,
    "DirectoryRecordSequence": 0x00041220, "ContrastBolusAgent": 0x00180010, "EchoTime": 0x00180081,
    "StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E, "SeriesNumber": 0x00200011,
    "InstanceNumber": 0x00200013, "ImagePositionPatient": 0x00200032, "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052, "NumberOfFrames": 0x00280008, "Rows": 0x00280010, "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
}  # fmt: skip
_WANTED = frozenset(_TAGS.values())
_UID_CHARACTERS = 64
_DIGITS_AND_DOTS = re.compile(r"[0-9.]*", re.ASCII)
_NUMBER = re.compile(r"\+?[0-9]{1,9}(\.0*)?", re.ASCII)
_MODALITY = re.compile(r"[A-Za-z0-9]{1,16}", re.ASCII)
#: Values beyond this stay in the file when a series is read; sequences of frames have some MiB.
_DEFER_BYTES = 1 << 26


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

    For a worker that reads one series: sequences are parsed whole. Discovery uses `look_at_header`.

    Raises:
        VolumeError: not DICOM, cut short, or deflated.
    """
    begin = file.tell()
    try:
        read_syntax(Window(file, seeks=True))
        file.seek(begin)
        # force: data sets without preamble; what they are was decided by `is_dicom`
        return pydicom.dcmread(file, stop_before_pixels=True, force=True, defer_size=_DEFER_BYTES)
    except VolumeError:
        raise
    except (InvalidDicomError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise VolumeError("the DICOM header is damaged or cut short.") from exc
    except Exception as exc:  # pydicom raises what its parts raise: struct, zlib, unicode, recursion errors
        raise VolumeError(f"the DICOM header cannot be read ({type(exc).__name__}).") from exc


def get(header: pydicom.Dataset, keyword: str, default: Any = None) -> Any:
    """A header value; one that cannot be converted, or is longer than any that DICOM has, counts as absent."""
    try:
        raw: object = header.get_item(keyword, keep_deferred=True)
        if (
            isinstance(raw, RawDataElement)
            and raw.length > MAX_VALUE_BYTES
            and dictionary_VR(keyword) != "SQ"
        ):
            return default
        value = header.get(keyword)
    except Exception:  # lazily converted by pydicom, which raises whatever the conversion raises
        return default
    return default if value is None or value == "" else value


@dataclass(frozen=True, slots=True)
class SliceFacts:
    """What discovery keeps of a header: plain values, none of them longer than a line.

    Attributes:
        uid: SeriesInstanceUID, "" where there is none.
        reason: why it is no MR image that could be part of a volume, "" where it could be.
        has_image: whether it states the size of an image.
        number: SeriesNumber, 0 where there is none.
        described: whether the description matches `--series`.
        instance: equal for two files that hold the same image.
        single: where the image lies, if that was asked for and is known.
    """

    uid: str
    reason: str
    has_image: bool
    number: int
    described: bool
    instance: tuple[str, str, bytes]
    single: Single | None


def look_at_header(
    window: Window, *, pattern: re.Pattern[str] | None = None, placed: Container[str] = ()
) -> SliceFacts:
    """What a header says, read in time and memory that it does not decide.

    Args:
        window: at the start of a file.
        pattern: searched in the series description.
        placed: UIDs of series of which it is known where an image lies.

    Raises:
        VolumeError: the header breaks the standard in a way that no scanner's does.
    """
    elements = read_elements(window, _WANTED)
    uid = _uid(elements, "SeriesInstanceUID")
    if not _DIGITS_AND_DOTS.fullmatch(uid):
        raise VolumeError("the UID of the series is none: expected up to 64 digits and dots, found others.")
    reason = _reason_to_leave_out(elements)
    has_image = elements.number(_TAGS["Rows"]) > 0
    # its values are converted, which takes longer than all else: one image of a series is enough
    single = (
        place_of_slice(elements.dataset(), uid) if has_image and not reason and uid not in placed else None
    )
    described = pattern is not None and bool(
        pattern.search(str(get(elements.dataset(), "SeriesDescription", "")))
    )
    return SliceFacts(
        uid, reason, has_image, _series_number(elements), described, _instance_of(elements), single
    )


def _uid(elements: Elements, keyword: str) -> str:
    """Raises:
    VolumeError: it is longer than a UID can be (PS3.5, 9.1).
    """
    uid = elements.text(_TAGS[keyword])
    if len(uid) > _UID_CHARACTERS:
        raise VolumeError(f"a UID of the DICOM header is longer than {_UID_CHARACTERS} characters.")
    return uid


def _series_number(elements: Elements) -> int:
    text = elements.text(_TAGS["SeriesNumber"])
    # IS has 12 characters at most; a whole number may be written as a decimal one
    return int(float(text)) if _NUMBER.fullmatch(text) else 0


def looks_like_dicom(start: bytes) -> bool:
    if start[128:132] == b"DICM":
        return True
    # Without preamble a data set starts with group 0002 or 0008: tag, then explicit VR or implicit length.
    if len(start) < 132 or start[:2] not in (b"\x02\x00", b"\x08\x00") or start[3] != 0:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], "little") <= 128


def _instance_of(elements: Elements) -> tuple[str, str, bytes]:
    """Equal for two files of one image. The UID alone would do, had every exporter given each image its own."""
    position = elements.values.get(_TAGS["ImagePositionPatient"], ("", b""))[1]
    return _uid(elements, "SOPInstanceUID"), elements.text(_TAGS["InstanceNumber"]), position


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


def _reason_to_leave_out(elements: Elements) -> str:
    """Why a file is no MR image that could be part of a volume; empty where it could be."""
    sop_class = _uid(elements, "SOPClassUID")
    modality = elements.text(_TAGS["Modality"])
    if sop_class == _DIRECTORY or _TAGS["DirectoryRecordSequence"] in elements.values:
        return "a DICOMDIR index, no image."
    if not elements.number(_TAGS["Rows"]):
        # an MR image without rows is no other kind of object, it is cut short
        return "" if sop_class in _MR_IMAGES or not sop_class else "a DICOM object without an image."
    if modality not in ("MR", ""):
        return f"the modality is {modality if _MODALITY.fullmatch(modality) else 'unknown'}, not MR."
    if sop_class not in _MR_IMAGES and (sop_class or not modality):
        return "no MR image (a secondary capture or another kind of object)."
    kinds = elements.text(_TAGS["ImageType"]).upper().split("\\")
    return "a localiser." if "LOCALIZER" in (kind.strip() for kind in kinds) else ""
