"""Read and write NIfTI-1 and NIfTI-2."""

from __future__ import annotations

import contextlib
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from ssclf.domain.fitness import choose_affine
from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.files import whole_path
from ssclf.io.inside import is_inside
from ssclf.io.paths import is_file
from ssclf.io.volumes.endings import volume_ending
from ssclf.io.volumes.voxels import Inflated, check_claim, file_volume, is_gzip, named, spatial_shape

_HEADERS = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_PAIR_ENDINGS = (".hdr.gz", ".img.gz", ".hdr", ".img")
#: Millimetres per unit of length (nifti1.h, xyzt_units); files that state none mean millimetres.
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


def read_nifti(path: Path) -> Volume:
    """Read `.nii`, `.nii.gz`, or a `.hdr`/`.img` pair (either name, gzipped or not).

    Returns:
        data (1, D, H, W) in its stored type where the file has no scaling, else float32; affine (4, 4).

    Raises:
        VolumeError: not NIfTI, truncated, not one 3D volume of real numbers, too large, or without a
            usable orientation.
    """
    with named(path):
        header_path, data_path = _parts(path)
        with header_path.open("rb") as file:
            stream = Inflated(file)
            header = _parse_header(stream)
            shape, dtype, offset = _check_header(header)
            affine, flags = _affine(header, shape)
            scaling = _scaling(header)
            count = check_claim(shape, dtype, data_path, compressed=is_gzip(data_path))
            if header_path == data_path:
                raw = _read_voxels(stream, max(offset, _data_start(header)), count)
            else:
                with data_path.open("rb") as data_file:
                    raw = _read_voxels(Inflated(data_file), offset, count)
        return file_volume(raw, dtype, shape, affine, scaling=scaling, flags=flags)


def write_nifti(volume: Volume, path: Path, *, mark: str = "") -> None:
    """Write one contrast, or several along the fourth dimension; appears whole or not at all.

    Args:
        volume: (C, D, H, W); float data is stored as float32, masks as uint8.
        mark: by which `ssclf.io.own_output` knows the file again.
    """
    data = volume.data.transpose(3, 2, 1, 0)
    data = data[..., 0] if data.shape[-1] == 1 else data
    dtype = np.uint8 if data.dtype == bool else np.float32 if data.dtype.kind == "f" else data.dtype
    image = nib.Nifti1Image(np.asarray(data, dtype), volume.affine[:, [2, 1, 0, 3]], dtype=dtype)
    image.header.set_xyzt_units("mm")
    image.header["intent_name"] = mark.encode("ascii")
    path.parent.mkdir(parents=True, exist_ok=True)
    # nibabel packs the file, or not, by its ending
    with whole_path(path, ending=volume_ending(path.name)) as partial:
        nib.save(image, partial)


def read_written(path: Path) -> Volume:
    """Read back what `write_nifti` wrote: (C, D, H, W) float32, several contrasts too.

    Raises:
        VolumeError: missing or damaged, or with voxels that are no numbers.
    """
    again = "remove it, and run the same `ssclf preprocess` again."
    try:
        raw = path.read_bytes()
        image = nib.Nifti1Image.from_bytes(igzip.decompress(raw) if is_gzip(path) else raw)
        data = np.asarray(image.dataobj, np.float32)
    except (  # type: ignore[misc]
        *(OSError, EOFError, ValueError, OverflowError, TypeError),
        *(IsalError, ImageFileError, HeaderDataError, WrapStructError),
    ) as exc:
        raise VolumeError(
            f"{path}: expected a preprocessed volume, found a missing or damaged file; {again}"
        ) from exc
    if data.size and not (np.isfinite(data.min()) and np.isfinite(data.max())):
        raise VolumeError(f"{path}: expected finite voxels, found NaN or infinity; {again}")
    data = data.reshape(*data.shape[:3], -1)
    return Volume(data.transpose(3, 2, 1, 0), np.asarray(image.affine, np.float64)[:, [2, 1, 0, 3]])


def _parts(path: Path) -> tuple[Path, Path]:
    """Where the header and the voxels of a volume lie: in one file, or in a pair named by either half."""
    ending = next((ending for ending in _PAIR_ENDINGS if path.name.lower().endswith(ending)), None)
    if ending is None:
        return path, path
    stem = path.name[: -len(ending)]
    return _sibling(path, stem, ".hdr"), _sibling(path, stem, ".img")


def _sibling(path: Path, stem: str, ending: str) -> Path:
    for candidate in (ending, ending + ".gz", ending.upper(), ending.upper() + ".gz"):
        sibling = path.with_name(stem + candidate)
        if is_file(sibling):
            if sibling != path and not is_inside(path.parent, sibling):
                raise VolumeError(
                    f"{sibling.name} is a link that leads out of its folder, which is not followed."
                )
            return sibling
    raise VolumeError("expected a header and its voxels (.hdr and .img), found only one of them.")


def _read_voxels(stream: Inflated, offset: int, count: int) -> bytes:
    stream.skip(offset - stream.position)
    raw = stream.read(count)
    stream.finish()
    return raw


def _parse_header(stream: Inflated) -> nib.Nifti1Header:
    try:
        start = stream.read(4)
    except VolumeError as exc:
        raise VolumeError("expected a NIfTI file, found one too short to have a header.") from exc
    sizes = (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
    size = next((n for n in sizes if n in _HEADERS), None)
    if size is None:
        raise VolumeError("expected a NIfTI header, found something else.")
    header = _HEADERS[size](start + stream.read(size - 4), check=False)
    if bytes(header["magic"])[:3] not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        raise VolumeError(
            "expected NIfTI, found ANALYZE 7.5, which has no orientation; convert it to NIfTI first."
        )
    return header


def _data_start(header: nib.Nifti1Header) -> int:
    """Where voxels begin in a single file: behind the header and the four bytes that announce extensions."""
    return int(header["sizeof_hdr"]) + 4


def _check_header(header: nib.Nifti1Header) -> tuple[tuple[int, int, int], np.dtype[np.generic], int]:
    dimensions = [int(n) for n in header["dim"]]
    if not 1 <= dimensions[0] <= 7 or min(dimensions[1 : dimensions[0] + 1]) < 1:
        raise VolumeError(f"expected a 3D volume, found a header with dimensions {dimensions}.")
    shape = spatial_shape(dimensions[1 : dimensions[0] + 1])
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError) as exc:
        raise VolumeError(f"unknown data type code {int(header['datatype'])} in the header.") from exc
    if dtype.kind not in "iuf":
        kind = "complex numbers" if dtype.kind == "c" else "colours" if dtype.names else "no numbers"
        raise VolumeError(f"expected real intensities, found {kind}; write the magnitude as one channel.")
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset < 0:
        raise VolumeError(f"the header puts the voxels at byte {offset}.")
    return shape, dtype, int(offset)


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """scl_slope and scl_inter (nifti1.h: with a slope of 0 nothing is scaled); NaN means the same in practice."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    return (1.0, 0.0) if slope == 0 or np.isnan(slope) else (slope, intercept)


def _affine(
    header: nib.Nifti1Header, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """(i, j, k) to RAS+ mm (nifti1.h, "3D image (volume) orientation and location in space")."""
    sform = np.array(header.get_sform(), np.float64) if int(header["sform_code"]) > 0 else None
    qform = None
    if int(header["qform_code"]) > 0:
        qform = np.full((4, 4), np.nan)
        header = header.copy()
        # nifti1.h: any other value of qfac is to be taken as 1
        header["pixdim"][0] = -1 if header["pixdim"][0] == -1 else 1
        spacing = np.asarray(header["pixdim"][1:4])
        if np.isfinite(spacing).all() and spacing.min() > 0:
            with contextlib.suppress(HeaderDataError, ValueError):  # an impossible quaternion
                qform = np.array(header.get_qform(), np.float64)
    unit = _UNIT_MM.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        raise VolumeError("expected lengths in metres, millimetres or micrometres, found another unit.")
    for form in (sform, qform):
        if form is not None:
            form[:3] *= unit
    return choose_affine(sform, qform, shape)
