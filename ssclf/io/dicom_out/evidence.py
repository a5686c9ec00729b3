"""Where the evidence lies, as DICOM: a parametric map on the slices of the source, or a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from highdicom import PlanePositionSequence, VOILUTTransformation
from highdicom.enum import CoordinateSystemNames
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.sc import SCImage
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from ssclf.domain.study_report import NOTICE, StudyReport, class_concept
from ssclf.io.dicom_out.report import (
    MANUFACTURER,
    MAP_SERIES,
    MODEL,
    PICTURE_SERIES,
    SERIES_DESCRIPTION,
    serial_number,
)
from ssclf.io.dicom_out.source import SourceSeries, decimals

_BODY_PART = "BRAIN"


def parametric_map(
    values: NDArray[np.float32],
    affine: NDArray[np.float64],
    report: StudyReport,
    source: SourceSeries,
    uids: Mapping[str, str],
    date_time: tuple[str, str],
) -> ParametricMap:
    """The map's data set, with 32-bit floats. Slices without brain, where the map is 0 by definition, are left out.

    Args:
        values: (D, H, W) in logits, on the voxels of the series as it was read.
        affine: (4, 4) of them, RAS+.
        uids: "series", "instance" and "dimensions".

    Raises:
        VolumeError: the volume does not lie on the slices of the series.
    """
    frames, positions = source.on_slices(values, affine)
    inside = np.flatnonzero([frame.any() for frame in frames])
    if len(inside):
        brain = slice(int(inside[0]), int(inside[-1]) + 1)
        frames, positions = frames[brain], positions[brain]
    several = len(source.images) > 1 and "PerFrameFunctionalGroupsSequence" in source.first
    made = ParametricMap(
        source_images=list(source.images[:1] if several else source.images),
        further_source_images=list(source.images[1:]) if several else None,
        pixel_array=np.ascontiguousarray(frames),
        series_instance_uid=uids["series"],
        series_number=MAP_SERIES,
        sop_instance_uid=uids["instance"],
        plane_positions=[
            PlanePositionSequence(CoordinateSystemNames.PATIENT, [float(text) for text in decimals(position)])
            for position in positions
        ],
        content_label="SSCLF_EVIDENCE",
        content_description=_description(report),
        # the map of a head that was taken as it is has its outline
        contains_recognizable_visual_features="assumed_stripped" in report.flags,
        **_scale(float(frames.min()), float(frames.max())),
        **_common(report, date_time),
    )
    made.BodyPartExamined = _BODY_PART
    # highdicom draws this UID, and two runs would not write the same bytes
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = uids["dimensions"]
    return made


def secondary_capture(
    pixels: NDArray[np.uint8],
    report: StudyReport,
    source: SourceSeries,
    uids: Mapping[str, str],
    date_time: tuple[str, str],
) -> SCImage:
    """The picture's data set.

    Args:
        pixels: (rows, columns, 3).
        uids: "series" and "instance".
    """
    made = SCImage.from_ref_dataset(
        source.first,
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system=CoordinateSystemNames.PATIENT,
        patient_orientation=("L", "F"),
        series_instance_uid=uids["series"],
        series_number=PICTURE_SERIES,
        sop_instance_uid=uids["instance"],
        **_common(report, date_time),
    )
    made.copy_patient_and_study_information(source.first)
    described = {
        "PatientOrientation": None,  # three views in one
        "BodyPartExamined": _BODY_PART,
        "ConversionType": "WSD",
        "ImageComments": NOTICE,
        "DateOfSecondaryCapture": date_time[0],
        "TimeOfSecondaryCapture": date_time[1],
    }
    for keyword, value in described.items():
        setattr(made, keyword, value)
    return made


def _common(report: StudyReport, date_time: tuple[str, str]) -> dict[str, Any]:
    """What map and picture say alike of how they came to be."""
    return {
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL,
        "software_versions": report.version,
        "device_serial_number": serial_number(report),
        "series_description": SERIES_DESCRIPTION,
        "content_qualification": "RESEARCH",
        "content_date": date_time[0],
        "content_time": date_time[1],
    }


def _scale(low: float, high: float) -> dict[str, Any]:
    """What a map's values are, and how to show them: as they are, from the lowest to the highest."""
    mapping = RealWorldValueMapping(
        lut_label="EVIDENCE",
        lut_explanation="Logits that speak for the predicted class",
        unit=codes.UCUM.NoUnits,
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.ClassActivation,
    )
    window = VOILUTTransformation(window_center=(low + high) / 2, window_width=max(high - low, 1e-3))
    return {"real_world_value_mappings": [mapping], "voi_lut_transformations": [window]}


def _description(report: StudyReport) -> str:
    return f"RESEARCH USE ONLY: evidence for {class_concept(report.prediction).meaning}"[:64]
