"""One series, one set of header values: what varies between slices of a volume and parts nothing.

dcm2niix makes a volume of its own of every echo time, study time, description, flip angle … that it meets. Exports
and scanners let those vary from slice to slice (rounding, midnight, a description edited in the archive). Whether
slices make one volume is judged by where they lie; then dcm2niix sees the values of the first in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pydicom

from ssclf.errors import VolumeError
from ssclf.io.volumes.dicom_headers import get

#: Values by which dcm2niix 1.0.20260724 parts files (tried one by one); none of them changes voxels.
_PARTING = (
    "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "StudyDate", "StudyTime", "SeriesDescription",
    "ProtocolName", "EchoTime", "RepetitionTime", "FlipAngle", "TriggerTime",
)  # fmt: skip
#: Those that decide on the contrast: slices may differ so much in them, as a share, and be of one volume.
_CONTRAST = {"EchoTime": "echo times", "RepetitionTime": "repetition times", "FlipAngle": "flip angles"}
_MOST = 0.1


def parting_values(header: pydicom.Dataset) -> dict[str, str]:
    """What of a header dcm2niix may part a series by."""
    return {keyword: str(get(header, keyword, "")) for keyword in _PARTING}


def make_uniform(values: Mapping[Path, Mapping[str, str]]) -> None:
    """Put copies with the values of the first file in the place of those that differ.

    Args:
        values: of each file of a volume, one slice a file, the `parting_values`. The files are links in a private
            folder, or lie there: what a link leads to is not written to.

    Raises:
        VolumeError: the slices were acquired in different ways, or a header is too damaged to be written again.
    """
    first = next(iter(values.values()), {})
    varying = [keyword for keyword in first if len({found[keyword] for found in values.values()}) > 1]
    if not varying:
        return
    for keyword in set(varying) & set(_CONTRAST):
        _check_contrast(keyword, [found[keyword] for found in values.values()])
    names = iter(values)
    model = pydicom.dcmread(next(names), stop_before_pixels=True, force=True, specific_tags=[*varying])
    for file in names:
        try:
            header = pydicom.dcmread(file, force=True)
            for keyword in varying:
                if keyword in header:
                    del header[keyword]
                if keyword in model:
                    header[keyword] = model[keyword]
            file.unlink()  # a link: writing to it would write to the user's own file
            header.save_as(file)
        except Exception as exc:  # pydicom raises what its parts raise
            raise VolumeError(
                f"the slices differ in {', '.join(varying)}, and a header is too damaged to mend that."
            ) from exc


def _check_contrast(keyword: str, found: list[str]) -> None:
    numbers = []
    for text in found:
        try:
            numbers.append(float(text))
        except ValueError:  # slices that do not state it are no other volume
            continue
    if numbers and max(numbers) - min(numbers) > _MOST * max(map(abs, numbers)):
        raise VolumeError(
            f"expected slices acquired in one way, found {_CONTRAST[keyword]} that differ by more than "
            f"{_MOST:.0%}; the series mixes images."
        )
