"""Write DICOM series with pydicom, whole or with one thing wrong. All of it is synthetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from ssclf.domain.volume import Volume

#: What no output may hold.
PRIVATE = ("Secret^Person", "SECRET-ID", "secret study")


@dataclass(frozen=True)
class WrittenSeries:
    """What a series says of itself.

    Attributes:
        pixels: (slices, rows, columns).
        spacing: mm between slices, rows, columns.
        directions: ImageOrientationPatient, LPS+.
        origin: ImagePositionPatient of the first slice, LPS+.
        tilt: degrees between the stacking direction and the slices' normal.
        attributes: further header values by keyword.
    """

    pixels: NDArray[np.uint16]
    spacing: tuple[float, float, float] = (6.5, 6.0, 7.0)
    directions: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    origin: tuple[float, float, float] = (-70.0, -80.0, -60.0)
    tilt: float = 0.0
    uid: str = field(default_factory=generate_uid)
    number: int = 3
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def volume(self) -> Volume:
        """The volume that these slices are, worked out without any reader."""
        affine = np.eye(4)
        affine[:3, 0] = self._step
        affine[:3, 1] = np.array(self.directions[3:]) * self.spacing[1]
        affine[:3, 2] = np.array(self.directions[:3]) * self.spacing[2]
        affine[:3, 3] = self.origin
        return Volume(self.pixels[None], np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)

    @property
    def _step(self) -> NDArray[np.float64]:
        rows, columns = np.array(self.directions[:3]), np.array(self.directions[3:])
        direction = np.cross(rows, columns) + np.tan(np.radians(self.tilt)) * columns
        return np.asarray(direction * self.spacing[0])

    def slices(self) -> list[Dataset]:
        datasets = []
        for index, pixels in enumerate(self.pixels):
            ds = self._common()
            ds.SOPClassUID = MRImageStorage
            ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
            ds.InstanceNumber = index + 1
            ds.ImagePositionPatient = _decimals(np.array(self.origin) + index * self._step)
            ds.ImageOrientationPatient = _decimals(self.directions)
            ds.PixelSpacing = list(self.spacing[1:])
            ds.SliceThickness = self.spacing[0]
            ds.EchoTime = 3.0
            ds.PixelData = pixels.astype("<u2").tobytes()
            for keyword, value in self.attributes.items():
                setattr(ds, keyword, value)
            datasets.append(ds)
        return datasets

    def enhanced(
        self,
        order: Iterable[int],
        *,
        scaling: Sequence[tuple[float, float]] | None = None,
        numbered_as_stored: bool = False,
        stacks: int = 1,
    ) -> Dataset:
        """All slices as frames of one data set, in the order given.

        Args:
            scaling: slope and intercept of each slice, in the order of space.
            numbered_as_stored: positions in the stack and dimension indices follow the file instead of space.
            stacks: how many stacks share the slices, cut in the order of space.
        """
        order = list(order)
        ds = self._common()
        ds.SOPClassUID = EnhancedMRImageStorage
        ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        ds.InstanceNumber = 1
        ds.NumberOfFrames = len(order)
        ds.PixelData = self.pixels[order].astype("<u2").tobytes()
        measures, plane, shared = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = list(self.spacing[1:]), self.spacing[0]
        plane.ImageOrientationPatient = _decimals(self.directions)
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
        ds.SharedFunctionalGroupsSequence = [shared]
        organization = Dataset()
        organization.DimensionOrganizationUID = generate_uid()
        ds.DimensionOrganizationSequence = [organization]
        ds.DimensionIndexSequence = []
        for pointer in (0x00209056, 0x00209057):  # StackID, InStackPositionNumber
            index = Dataset()
            index.DimensionOrganizationUID = organization.DimensionOrganizationUID
            index.DimensionIndexPointer, index.FunctionalGroupPointer = pointer, 0x00209111
            ds.DimensionIndexSequence.append(index)
        ds.PerFrameFunctionalGroupsSequence = []
        in_stack = -(-len(self.pixels) // stacks)
        for stored, frame in enumerate(order):
            place, content, group = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = _decimals(np.array(self.origin) + frame * self._step)
            stack, number = divmod(stored if numbered_as_stored else frame, in_stack)
            content.StackID, content.InStackPositionNumber = str(stack + 1), number + 1
            content.DimensionIndexValues = [stack + 1, number + 1]
            group.PlanePositionSequence, group.FrameContentSequence = [place], [content]
            if scaling is not None:
                group.PixelValueTransformationSequence = [_transformation(*scaling[frame])]
            ds.PerFrameFunctionalGroupsSequence.append(group)
        for keyword, value in self.attributes.items():
            setattr(ds, keyword, value)
        return ds

    def write(self, folder: Path) -> list[Path]:
        """One file per slice, without an ending as from a scanner's disc."""
        return [write(ds, folder / f"{i:05d}") for i, ds in enumerate(self.slices())]

    def _common(self) -> Dataset:
        ds = Dataset()
        ds.PatientName, ds.PatientID, ds.StudyDescription = PRIVATE
        ds.SeriesDescription = "T1 MPRAGE post"
        ds.SOPInstanceUID = generate_uid()
        ds.StudyInstanceUID = generate_uid(entropy_srcs=[self.uid])
        ds.FrameOfReferenceUID = generate_uid(entropy_srcs=[self.uid, "frame"])
        ds.SeriesInstanceUID, ds.SeriesNumber = self.uid, self.number
        ds.Modality, ds.Manufacturer, ds.PatientPosition = "MR", "SIEMENS", "HFS"
        ds.StudyDate, ds.StudyTime, ds.AcquisitionNumber = "20200101", "101010", 1
        ds.Rows, ds.Columns = self.pixels.shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        return ds


def write(ds: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    pydicom.dcmwrite(
        path, FileDataset(path, ds, file_meta=meta, preamble=b"\0" * 128), enforce_file_format=True
    )
    return path


def _transformation(slope: float, intercept: float) -> Dataset:
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept = _decimals([slope, intercept])
    item.RescaleType = "US"
    return item


def _decimals(values: Iterable[float]) -> list[str]:
    """Decimal strings have 16 characters at most."""
    return [f"{value:.10f}"[:16] for value in values]
