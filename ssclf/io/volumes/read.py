"""One way to read every volume format: by ending, DICOM by content."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.fitness import corners, judge_geometry
from ssclf.domain.geometry import reorient
from ssclf.domain.tolerance import length_at_most
from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.paths import is_file, is_there
from ssclf.io.volumes.dicom_series import DicomSeries, find_series, is_dicom
from ssclf.io.volumes.dicom_volume import read_series
from ssclf.io.volumes.dicomweb import ServerSeries, retrieve
from ssclf.io.volumes.endings import VOLUME_ENDINGS, volume_ending
from ssclf.io.volumes.metaimage import read_metaimage
from ssclf.io.volumes.mgh import read_mgh
from ssclf.io.volumes.nifti import read_nifti
from ssclf.io.volumes.nrrd import read_nrrd
from ssclf.io.volumes.voxels import named

_READERS: dict[str, Callable[[Path], Volume]] = {
    **dict.fromkeys((".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz"), read_nifti),
    **dict.fromkeys((".mgz", ".mgh", ".mgh.gz"), read_mgh),
    **dict.fromkeys((".nrrd", ".nhdr"), read_nrrd),
    **dict.fromkeys((".mha", ".mhd"), read_metaimage),
}

#: Grids count as one where no corner lies further apart than this, in mm.
SAME_GRID_MM = 0.1


def read_volume(source: Path | DicomSeries | ServerSeries, work: Path | None = None) -> Volume:
    """Read one contrast, whatever its format.

    Args:
        source: a file, a series from `ssclf.io.volumes.dicom_series.find_series`, or one of a server.
        work: private folder for what is retrieved and what DICOM conversion writes; None takes one of its own and
            removes it.

    Returns:
        data (1, D, H, W), affine (4, 4); its geometry has been judged, doubts are in `flags`.

    Raises:
        VolumeError: the reason in one line.
    """
    if isinstance(source, ServerSeries):
        with tempfile.TemporaryDirectory(prefix="ssclf-", dir=work) as private:
            return read_volume(retrieve(source, Path(private, source.name)), Path(private))
    if isinstance(source, Path):
        reader = _READERS.get(volume_ending(source.name).lower())
        if reader is not None and not (source.suffix.lower() == ".img" and is_dicom(source)):
            # Headers full of nonsense overflow on the way to being refused.
            with named(source), np.errstate(all="ignore"):
                if not is_file(source):  # opening a pipe would wait for a writer
                    raise VolumeError("expected a file, found none or something else.")
                return judge_geometry(reader(source))
        source = _only_series(source)
    with named(source.location), contextlib.ExitStack() as stack:
        folder = work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssclf-")))
        return judge_geometry(read_series(source, folder))


def _only_series(path: Path) -> DicomSeries:
    """The series in a DICOM file, an archive or a folder that holds just one."""
    with named(path):
        if not is_there(path):
            raise VolumeError("expected a volume, found no such file.")
        search = find_series(path)
        if len(search.series) == 1:
            return search.series[0]
        if len(search.series) > 1:
            raise VolumeError(f"expected one DICOM series, found {len(search.series)}; pass them one by one.")
        if search.left_out:
            raise VolumeError(f"expected an MR series, found none: {search.left_out[0].reason}")
        raise VolumeError(
            f"expected DICOM or one of {', '.join(VOLUME_ENDINGS)}, found another kind of file; "
            "convert it to NIfTI."
        )


def stack_contrasts(volumes: Sequence[Volume], contrasts: Sequence[str]) -> Volume:
    """Make the contrasts of one subject the channels of one volume.

    Args:
        volumes: one (1, D, H, W) each, in channel order, in any orientation.
        contrasts: their names, for messages.

    Raises:
        VolumeError: the contrasts do not lie on one grid.
    """
    assert len(volumes) == len(contrasts) > 0
    if len(volumes) == 1:
        return volumes[0]
    first, *others = (reorient(volume, "SAR") for volume in volumes)
    here = corners(first.affine, first.shape)
    for name, other in zip(contrasts[1:], others, strict=True):
        if other.shape != first.shape or not _near(other, here):
            raise VolumeError(
                f"expected contrasts registered to one grid, found {contrasts[0]} {first.shape} and {name} "
                f"{other.shape} on different ones; register and resample them to one of them first."
            )
    flags = dict.fromkeys(flag for volume in volumes for flag in volume.flags)
    return Volume(np.concatenate([first.data, *(other.data for other in others)]), first.affine, tuple(flags))


def _near(volume: Volume, places: NDArray[np.float64]) -> bool:
    return bool(length_at_most(np.abs(corners(volume.affine, volume.shape) - places), SAME_GRID_MM).all())
