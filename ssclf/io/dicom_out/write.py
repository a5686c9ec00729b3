"""Write the DICOM objects of one study: the report, and where the evidence lies.

The only way in for those who have a finished row; it imports highdicom, which the extra `dicom` brings.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ssclf.domain.stable_uids import stable_uid
from ssclf.domain.study_report import StudyReport
from ssclf.errors import MissingDependencyError, SsclfError, VolumeError
from ssclf.io.dicom_out.source import SourceSeries, source_uids
from ssclf.io.files import whole_file
from ssclf.io.volumes.dicom_headers import get, quiet_pydicom

#: The names of our files: the kind of object and its UID, which tells nothing of a person.
OWN_NAME = re.compile(r"(?:SR|MAP|PIC)-2\.25\.\d+\.dcm")
#: Representations of values that a character set is asked for (PS3.5, 6.1.2.3).
_TEXTS = frozenset({"SH", "LO", "ST", "LT", "UC", "UT", "PN"})


@dataclass(frozen=True)
class Evidence:
    """Where the evidence for the predicted class lies: a map, or a picture of it.

    Attributes:
        values: (D, H, W) float32 in logits, or (rows, columns, 3) uint8.
        affine: (4, 4) of a map's voxels as the series was read, RAS+; None for a picture.
    """

    values: NDArray[np.float32] | NDArray[np.uint8]
    affine: NDArray[np.float64] | None = None


def check_extra() -> None:
    """Raises:
    MissingDependencyError: highdicom is not installed.
    """
    try:
        found = importlib.util.find_spec("highdicom")
    except ValueError:
        found = None
    if found is None:
        raise MissingDependencyError(
            "DICOM objects need highdicom, which is not installed; pip install 'ssclf[dicom]'."
        )


def write_objects(
    report: StudyReport, sources: Sequence[SourceSeries], folder: Path, evidence: Evidence | None = None
) -> tuple[str, ...]:
    """Write the report of one study and, where there is one, its map or picture.

    The same report about the same images gives the same UIDs, names and bytes: date and time are those of the source.

    Args:
        report: see `ssclf.domain.study_report.study_report`.
        sources: the series that were classified, of one study, the first of which the map lies on; where none is
            answered, one that stands for patient and study.
        folder: existing.
        evidence: left out where the report withholds its class.

    Returns:
        the names of the files in `folder`, the report's first: `SR-<uid>.dcm`, `MAP-<uid>.dcm` or `PIC-<uid>.dcm`.

    Raises:
        MissingDependencyError: highdicom is not installed.
        VolumeError: no objects can be made of these headers.
        OutputError: a file cannot be written.
    """
    check_extra()
    if len({get(source.first, "StudyInstanceUID") for source in sources}) > 1:
        raise VolumeError("the contrasts lie in several studies, so that a report would belong to none.")
    kind = _kind(report, sources[0], evidence)
    with _quiet(), _translated():
        from ssclf.io.dicom_out.report import structured_report

        shown = _shown(kind, report, sources, evidence) if kind and evidence is not None else None
        when = date_time(sources[0])
        written = structured_report(report, sources, _uids(f"SR {kind}", report, sources), when, shown)
        names = [f"SR-{written.SOPInstanceUID}.dcm"]
        if shown is not None:
            names.append(f"{kind}-{shown.SOPInstanceUID}.dcm")
            _save(shown, folder / names[1])
        _save(written, folder / names[0])
    return tuple(names)


def _kind(report: StudyReport, source: SourceSeries, evidence: Evidence | None) -> str:
    """What shows the evidence: "MAP", "PIC" or, where nothing may or can, ""."""
    if report.withheld or evidence is None:
        return ""
    if evidence.affine is None:
        return "PIC"
    return "MAP" if get(source.first, "FrameOfReferenceUID") else ""  # without a frame a map lies nowhere


def _shown(kind: str, report: StudyReport, sources: Sequence[SourceSeries], evidence: Evidence) -> Dataset:
    from ssclf.io.dicom_out.evidence import parametric_map, secondary_capture

    source, uids = sources[0], _uids(kind, report, sources)
    if evidence.affine is None:
        pixels = np.asarray(evidence.values, np.uint8)
        return secondary_capture(pixels, report, source, uids, date_time(source))
    values = np.asarray(evidence.values, np.float32)
    return parametric_map(values, evidence.affine, report, source, uids, date_time(source))


def _uids(kind: str, report: StudyReport, sources: Sequence[SourceSeries]) -> dict[str, str]:
    parts = (kind, *source_uids(sources), *report.identity)
    return {name: stable_uid(name, *parts) for name in ("series", "instance", "dimensions")}


def date_time(source: SourceSeries) -> tuple[str, str]:
    """When the source's series was made, for lack of another time that stays the same: date, time."""
    for kind in ("Series", "Acquisition", "Content", "Study"):
        if date := str(get(source.first, f"{kind}Date", "")):
            return date, str(get(source.first, f"{kind}Time", "")) or "000000"
    return "19000101", "000000"


def _save(made: Dataset, path: Path) -> None:
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):  # highdicom's now
        made.pop(keyword, None)
    for item in get(made, "ContributingEquipmentSequence", ()):
        item.pop("ContributionDateTime", None)
    if all(str(element.value).isascii() for element in made.iterall() if element.VR in _TEXTS):
        made.pop("SpecificCharacterSet", None)  # the one repertoire that every reader knows
    with whole_file(path, binary=True) as file:
        made.save_as(file, enforce_file_format=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither library may say what it thinks of a header: highdicom's warnings name the patient."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with quiet_pydicom():
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _translated() -> Iterator[None]:
    """Raises:
    VolumeError: highdicom cannot make an object of such headers.
    """
    try:
        yield
    except (SsclfError, OSError):
        raise
    except Exception as exc:  # what libraries raise may quote a header
        raise VolumeError(f"its headers make no DICOM object ({type(exc).__name__}).") from exc
