"""One way to read every volume format: by ending, DICOM by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssclf.domain.geometry import reorient
from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.dicom import DicomSeries, is_dicom
from ssclf.io.nifti import read_nifti

_NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")

#: Endings by which a file is taken for a volume, in lower case.
VOLUME_ENDINGS: tuple[str, ...] = (
    *_NIFTI_ENDINGS,
    ".mgh",
    ".mgz",
    ".mgh.gz",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
)

#: Grids count as one where no corner lies further apart than this, in mm.
SAME_GRID_MM = 0.1


def volume_ending(path: Path) -> str:
    """The ending that makes a file a volume, in lower case; empty where there is none."""
    name = path.name.lower()
    return max((ending for ending in VOLUME_ENDINGS if name.endswith(ending)), key=len, default="")


def is_volume_file(path: Path) -> bool:
    """Whether a file is a volume by its ending; the voxel half of a .hdr/.img pair is not counted twice."""
    ending = volume_ending(path)
    if ending in (".img", ".img.gz"):
        stem = path.name[: -len(ending)]
        header = any(path.with_name(stem + e).is_file() for e in (".hdr", ".hdr.gz", ".HDR", ".HDR.gz"))
        return not header and not is_dicom(path)
    return bool(ending)


def read_volume(source: Path | DicomSeries, work: Path | None = None) -> Volume:
    """Read one contrast, whatever its format.

    Args:
        source: a file, or a series from `ssclf.io.dicom.find_series`.
        work: private folder for what DICOM conversion writes; None takes one of its own and removes it.

    Returns:
        data (1, D, H, W), affine (4, 4); its geometry has been judged, doubts are in `flags`.

    Raises:
        VolumeError: the reason in one line.
    """
    if isinstance(source, DicomSeries):
        raise VolumeError("DICOM is not read yet.")
    ending = volume_ending(source)
    if ending in _NIFTI_ENDINGS:
        return read_nifti(source)
    raise VolumeError(
        f"{source.name}: expected DICOM or one of {', '.join(VOLUME_ENDINGS)}, found another kind."
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
    corners = _corners(first)
    for name, other in zip(contrasts[1:], others, strict=True):
        if other.shape != first.shape or np.abs(_corners(other) - corners).max() > SAME_GRID_MM:
            raise VolumeError(
                f"expected contrasts registered to one grid, found {contrasts[0]} {first.shape} and {name} "
                f"{other.shape} on different ones; register and resample them to one of them first."
            )
    flags = dict.fromkeys(flag for volume in volumes for flag in volume.flags)
    return Volume(np.concatenate([first.data, *(other.data for other in others)]), first.affine, tuple(flags))


def _corners(volume: Volume) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """World positions (8, 3) of the corner voxels, in mm."""
    index = np.stack(np.meshgrid(*((0, n - 1) for n in volume.shape), indexing="ij"), -1).reshape(-1, 3)
    positions: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = (
        index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    )
    return positions
