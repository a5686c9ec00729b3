"""What objects are written about: the headers of a series, as little of them as a report and a map need.

Of the first image everything that the patient's and the study's modules may copy is kept, of the others what refers
to them. Values that the standard does not allow are left empty: what is written must be read by others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, MRImageStorage
from pydicom.valuerep import validate_value

from ssclf.domain.series_rules import PLANES, SeriesFacts
from ssclf.domain.slices import Slice, Stack, stack_slices
from ssclf.errors import VolumeError
from ssclf.io.volumes.dicom_headers import get, quiet_pydicom, read_header
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.io.volumes.dicom_volume import gather, slices_of

#: Groups of identification, patient, clinical trial, relationship and study.
_GROUPS = frozenset({0x0008, 0x0010, 0x0012, 0x0020, 0x0032, 0x0038})
#: Of every image: what refers to it, and what highdicom asks of a source.
_REFERENCES = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageType",
    "PositionReferenceIndicator", "InstanceNumber",
    "PatientPosition", "Rows", "Columns", "NumberOfFrames", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)  # fmt: skip
#: Attributes that have to be there, empty where nothing is known (type 2 of PS3.3 C.7.1.1, C.7.2.1).
_NEVER_MISSING = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
#: By what an archive files an object: as it stands, or it would be filed elsewhere.
_IDENTITY = frozenset(
    {"PatientID", "IssuerOfPatientID", "PatientName", "AccessionNumber", "StudyInstanceUID"}
)
_SEXES = ("M", "F", "O")
#: Where a slice may lie beside the even steps of its stack and still keep its own position.
_SAME_PLACE_MM = 0.05
_LPS = np.array([-1.0, -1.0, 1.0])
#: A plane that is this near to one of the body's is called by its name.
_LEAST_COSINE = 0.7


@dataclass(frozen=True)
class SourceSeries:
    """A series as objects refer to it.

    Attributes:
        images: without pixels, along the stack where the files are single slices of one; text is Unicode.
        stack: the grid that the slices make; None where they make none.
        positions: (slices, 3) LPS+ mm along the stack, as the headers say; empty without a stack.
        problem: why they make none.
    """

    images: tuple[Dataset, ...]
    stack: Stack | None
    positions: NDArray[np.float64]
    problem: str = ""

    @property
    def first(self) -> Dataset:
        return self.images[0]

    @property
    def uid(self) -> str:
        return str(self.first.SeriesInstanceUID)

    def on_slices(
        self, values: NDArray[np.float32], affine: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """A volume that was read from this series, slice for slice.

        Args:
            values: (D, H, W)
            affine: (4, 4) of it, RAS+.

        Returns:
            values (slices, rows, columns), a view; and where each slice's first pixel lies, (slices, 3) in LPS+ mm: at
            its own position, or all of them in the even steps of `affine` where their own are uneven.

        Raises:
            VolumeError: the volume does not lie on these slices.
        """
        if self.stack is None:
            raise VolumeError(self.problem)
        between: NDArray[np.float64] = np.linalg.inv(self.stack.affine) @ affine
        turn = np.round(between[:3, :3])
        order = [int(axis) for axis in np.abs(turn).argmax(axis=1)]
        if sorted(order) != [0, 1, 2] or np.abs(between[:3, :3] - turn).max() > 1e-3:
            raise VolumeError("the slices of the series have changed since it was read.")
        flips = tuple(slice(None, None, -1 if turn[row, axis] < 0 else 1) for row, axis in enumerate(order))
        turned = values.transpose(order)[flips]
        if turned.shape != self.stack.shape:
            raise VolumeError("the slices of the series have changed since it was read.")
        steps = np.arange(len(turned))[:, None]
        even = (self.stack.affine[:3, 3] + steps * self.stack.affine[:3, 0]) * _LPS
        own = np.abs(even - self.positions).max() <= _SAME_PLACE_MM
        return turned, self.positions if own else even


def read_facts(series: DicomSeries, key: tuple[str, str], work: Path) -> SeriesFacts:
    """What the first header of a series says, for the rules.

    Args:
        key: of its row.
        work: existing private folder.

    Raises:
        VolumeError: the header cannot be read.
    """
    entries = series.entries[:1]
    one = replace(series, files=series.files[:1], entries=entries)
    with tempfile.TemporaryDirectory(prefix="facts-", dir=work) as folder, quiet_pydicom():
        header, rest = _read(gather(one, Path(folder))[0])
        agent = str(get(header, "ContrastBolusAgent", "")).strip().lower()
        sequences = get(header, "ScanningSequence", ())
        thickness, plane = None, ""
        frames = 1
        try:
            pieces = slices_of(header, rest)
            frames = len(pieces)
            plane = _plane(pieces[0][0])
            thickness = _thickness(header)
        except VolumeError:  # what it lacks is asked where it is read as a volume
            pass
        return SeriesFacts(
            key=key,
            uid=str(get(header, "SeriesInstanceUID", "")),
            study=str(get(header, "StudyInstanceUID", "")),
            number=_whole(get(header, "SeriesNumber", 0)),
            description=str(get(header, "SeriesDescription", get(header, "ProtocolName", ""))),
            agent=agent not in ("", "no", "none") or bool(get(header, "ContrastBolusAgentSequence")),
            sequences=tuple([sequences] if isinstance(sequences, str) else map(str, sequences)),
            plane=plane,
            thickness_mm=thickness,
            slices=len(series.files) * frames,
        )


def read_source(series: DicomSeries, work: Path) -> SourceSeries:
    """Read every header of a series once more, and keep what objects need of them.

    Args:
        series: whose files are still there.
        work: existing private folder; what is written there is removed again.

    Raises:
        VolumeError: a file cannot be read, or the series states no study.
    """
    with tempfile.TemporaryDirectory(prefix="source-", dir=work) as folder, quiet_pydicom():
        images: list[Dataset] = []
        found: list[tuple[int, Slice]] = []
        problem = ""
        thickness: float | None = None
        for header, rest in _headers(gather(series, Path(folder))):
            thickness = thickness or _thickness(header)
            try:
                found += [(len(images), piece) for piece, _ in slices_of(header, rest)]
            except VolumeError as exc:
                problem = problem or str(exc)
            images.append(_references(header) if images else _whole_image(header))
    if not images or not get(images[0], "StudyInstanceUID"):
        raise VolumeError("the series states no study, to which a report could belong.")
    stack: Stack | None = None
    positions = np.zeros((0, 3))
    try:
        if not problem:
            stack = stack_slices([piece for _, piece in found])
    except VolumeError as exc:
        problem = str(exc)
    if stack is not None:
        positions = np.array([found[at][1].position for at in stack.order])
        _place(images, found, thickness or float(np.linalg.norm(stack.affine[:3, 0])))
        if len(images) == len(found):
            first = images[0]
            images = [images[found[at][0]] for at in stack.order]
            images[0] = _with_all_of(first, images[0])
    return SourceSeries(tuple(images), stack, positions, problem)


def _headers(files: Sequence[Path]) -> Iterator[tuple[pydicom.Dataset, int]]:
    """The headers of a series, each image once, with the bytes that follow them."""
    seen = set()
    for file in files:
        header, rest = _read(file)
        instance = str(get(header, "SOPInstanceUID", ""))
        if not instance or not get(header, "SOPClassUID"):
            raise VolumeError("an image of the series has no UID, by which a report could name it.")
        if instance not in seen:
            seen.add(instance)
            yield header, rest


def _read(file: Path) -> tuple[pydicom.Dataset, int]:
    try:
        with file.open("rb") as stream:
            header = read_header(stream)
            begin = stream.tell()
            return header, stream.seek(0, 2) - begin
    except OSError as exc:
        raise VolumeError(f"a file of the series cannot be read ({exc.strerror or exc}).") from exc


def _references(header: pydicom.Dataset) -> Dataset:
    kept = Dataset()
    for keyword in _REFERENCES:
        if (value := get(header, keyword)) is not None:
            setattr(kept, keyword, value)
    return kept


def _whole_image(header: pydicom.Dataset) -> Dataset:
    """As `_references`, with what modules of the patient and the study may copy; in Unicode."""
    kept = Dataset()
    for tag in list(header.keys()):
        if tag.group in _GROUPS:
            try:
                element = header[tag]
                if element.keyword not in _IDENTITY:
                    for value in element.value if element.VM > 1 else [element.value]:
                        validate_value(element.VR, value, pydicom.config.RAISE)
                kept.add(element)
            except Exception:  # noqa: S112 - what cannot be converted or breaks its rules is as if it were not there
                continue
    try:
        kept.decode()
    except Exception:  # an encoding that nobody knows: the bytes are taken as they come
        kept.pop("SpecificCharacterSet", None)
    kept.SpecificCharacterSet = "ISO_IR 192"
    kept.update(_references(header))
    if get(kept, "PatientSex") not in _SEXES:
        kept.PatientSex = ""
    for keyword in _NEVER_MISSING:
        if get(kept, keyword) is None:
            setattr(kept, keyword, "")
    return kept


def _with_all_of(first: Dataset, image: Dataset) -> Dataset:
    """The image that comes first along the stack, with what is known of the patient from another."""
    whole = Dataset()
    whole.update(first)
    whole.update(image)
    return whole


def _place(images: Sequence[Dataset], found: Sequence[tuple[int, Slice]], thickness_mm: float) -> None:
    """Say in every image where its slices lie, in the words of one: highdicom takes equal directions only."""
    one = found[0][1]
    places: dict[int, list[Slice]] = {}
    for index, piece in found:
        places.setdefault(index, []).append(piece)
    for index, pieces in places.items():
        image = images[index]
        if image.SOPClassUID == MRImageStorage:
            image.ImagePositionPatient = decimals(pieces[0].position)
            image.ImageOrientationPatient = decimals(one.directions)
            image.PixelSpacing = decimals(one.spacing)
            (image.SliceThickness,) = decimals([thickness_mm])
            continue
        measures, plane, shared = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing = decimals(one.spacing)
        (measures.SliceThickness,) = decimals([thickness_mm])
        plane.ImageOrientationPatient = decimals(one.directions)
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
        image.SharedFunctionalGroupsSequence = [shared]
        image.PerFrameFunctionalGroupsSequence = [_frame_at(piece) for piece in pieces]


def _frame_at(piece: Slice) -> Dataset:
    place, group = Dataset(), Dataset()
    place.ImagePositionPatient = decimals(piece.position)
    group.PlanePositionSequence = [place]
    return group


def decimals(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """Decimal strings, of at most 16 characters, as near as these come."""
    return [
        next(t for digits in range(16, 0, -1) if len(t := f"{value:.{digits}g}") <= 16) for value in values
    ]


def source_uids(sources: Sequence[SourceSeries]) -> tuple[str, ...]:
    """What the images of an object are, for its UIDs: series and instances, in an order of their own."""
    return tuple(
        text
        for source in sources
        for text in (source.uid, *sorted(str(UID(image.SOPInstanceUID)) for image in source.images))
    )


def _plane(piece: Slice) -> str:
    directions = np.array(piece.directions)
    normal = np.abs(np.cross(directions[:3], directions[3:]))
    axis = int(normal.argmax())
    return (PLANES[2], PLANES[1], PLANES[0])[axis] if normal[axis] > _LEAST_COSINE else ""


def _thickness(header: pydicom.Dataset) -> float | None:
    """SliceThickness, at the root or in the functional groups that all frames or the first have."""
    places = [header]
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in list(get(header, keyword, ()))[:1]:
            places += list(get(group, "PixelMeasuresSequence", ()))[:1]
    for place in places:
        try:
            return float(get(place, "SliceThickness"))
        except (TypeError, ValueError):
            continue
    return None


def _whole(value: object) -> int:
    try:
        return int(float(str(value)))
    except (ValueError, OverflowError):
        return 0
