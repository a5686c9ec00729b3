"""Read MetaImage, attached (`.mha`) or with its data beside it (`.mhd`), without ITK.

The format is ITK's own: world axes are LPS+ as everywhere in ITK, and row n of TransformMatrix is the
direction of index n (itkMetaImageIO.cxx reads it so).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.paths import file_size
from ssclf.io.volumes.voxels import (
    MAX_HEADER_BYTES,
    Inflated,
    check_claim,
    detached_file,
    file_volume,
    named,
    spatial_shape,
)

_LOCAL = "LOCAL"
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",  # MetaIO fixes MET_LONG at four bytes, whatever the platform (metaTypes.h)
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_metaimage(path: Path) -> Volume:
    """Read `.mha`, or `.mhd` whose data lie in the same folder.

    Returns:
        data (1, D, H, W) in its stored type where the file has no scaling, else float32; affine (4, 4).

    Raises:
        VolumeError: not MetaImage, truncated, not one 3D volume of one channel, or without orientation.
    """
    with named(path), path.open("rb") as file:
        stream = Inflated(file, "none")
        fields = _parse_header(stream)
        shape, dtype = _check_header(fields)
        affine = _affine(fields, len(fields["dimsize"].split()))
        compressed = _is_true(fields.get("compresseddata"))
        data_name = fields["elementdatafile"]
        data_path = path if data_name.upper() == _LOCAL else detached_file(path, data_name)
        count = check_claim(shape, dtype, data_path, compressed=compressed)
        with data_path.open("rb") as data_file:
            data_file.seek(stream.position if data_path == path else 0)
            skip = _header_size(fields)
            if skip == -1 and not compressed:
                data_file.seek(file_size(data_path) - count)
            data = Inflated(data_file, "zlib" if compressed else "none")
            data.skip(max(0, skip))
            raw = data.read(count)
            data.finish()
        slope = _number(fields, "elementtointensityfunctionslope", 1)
        intercept = _number(fields, "elementtointensityfunctionoffset", 0)
        return file_volume(raw, dtype, shape, affine, scaling=(slope, intercept))


def _parse_header(stream: Inflated) -> dict[str, str]:
    fields: dict[str, str] = {}
    while True:
        key, equals, value = stream.line().decode("latin-1").partition("=")
        if not equals:
            break
        if stream.position > MAX_HEADER_BYTES:
            raise VolumeError(
                f"expected a header of at most {MAX_HEADER_BYTES >> 20} MiB, found a longer one."
            )
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":  # always the last one: the voxels may follow
            break
    missing = [key for key in ("dimsize", "elementtype", "elementdatafile") if not fields.get(key)]
    if missing:
        raise VolumeError("expected a MetaImage header, found something else.")
    return fields


def _check_header(fields: dict[str, str]) -> tuple[tuple[int, int, int], np.dtype[np.generic]]:
    shape = spatial_shape(_sizes(fields))
    code = _TYPES.get(fields["elementtype"].upper())
    if code is None or _number(fields, "elementnumberofchannels", 1) != 1:
        raise VolumeError(
            "expected real intensities in one channel, found colours, vectors or an unknown type."
        )
    if not _is_true(fields.get("binarydata", "True")):
        raise VolumeError("expected binary voxels, found text; convert the file.")
    big = _is_true(fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb")))
    return shape, np.dtype(code).newbyteorder(">" if big else "<")


def _sizes(fields: dict[str, str]) -> list[int]:
    try:
        return [int(value) for value in fields["dimsize"].split()]
    except ValueError as exc:
        raise VolumeError("expected a 3D volume, found a header without whole sizes.") from exc


def _affine(fields: dict[str, str], dimensions: int) -> NDArray[np.float64]:
    matrix = next((k for k in ("transformmatrix", "rotation", "orientation") if k in fields), None)
    spacing = next((k for k in ("elementspacing", "elementsize") if k in fields), None)
    offset = next((k for k in ("offset", "origin", "position") if k in fields), None)
    if matrix is None or spacing is None:
        raise VolumeError("the header states no orientation or voxel size (TransformMatrix, ElementSpacing).")
    directions = _numbers(fields, matrix)
    sizes = _numbers(fields, spacing)
    origin = _numbers(fields, offset) if offset else [0.0] * dimensions
    if len(directions) != dimensions**2 or len(sizes) < dimensions or len(origin) < dimensions:
        raise VolumeError("the header's matrix, voxel size or offset has the wrong number of values.")
    rows = np.array(directions).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = rows.T * np.array(sizes[:3])
    affine[:3, 3] = origin[:3]
    affine[:2] *= -1  # LPS to RAS
    return affine


def _numbers(fields: dict[str, str], key: str) -> list[float]:
    try:
        return [float(value) for value in fields[key].split()]
    except ValueError as exc:
        raise VolumeError("the MetaImage header has text where numbers belong.") from exc


def _number(fields: dict[str, str], key: str, default: float) -> float:
    values = _numbers(fields, key) if key in fields else []
    return values[0] if len(values) == 1 else float(default)


def _header_size(fields: dict[str, str]) -> int:
    """Bytes before the voxels; -1 where the voxels are the end of their file, however long it is."""
    value = _number(fields, "headersize", 0)
    if not value.is_integer() or value < -1:  # neither are nan and infinity
        raise VolumeError("expected a whole number of bytes as HeaderSize, found something else.")
    return int(value)


def _is_true(value: str | None) -> bool:
    return (value or "").strip().lower()[:1] in ("t", "1", "y")
