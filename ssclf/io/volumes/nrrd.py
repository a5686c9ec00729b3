"""Read NRRD, attached (`.nrrd`) or detached (`.nhdr`). pynrrd parses the header; the voxels are read here, so
that no stream is inflated further than its header claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.volumes.voxels import Inflated, check_claim, detached_file, file_volume, named, spatial_shape

_MAX_HEADER_LINES = 4096
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_DTYPES = {name: code for code, names in _TYPES.items() for name in names}
#: World axes of the spaces that the format names (teem, "NRRD file format", section 4), as signs to RAS.
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_GZIP, _RAW = ("gzip", "gz"), ("raw",)


def read_nrrd(path: Path) -> Volume:
    """Read a NRRD file, or a detached header whose data lie in the same folder.

    Returns:
        data (1, D, H, W) in its stored type; affine (4, 4).

    Raises:
        VolumeError: not NRRD, truncated, not one 3D volume, without orientation, or in an encoding that is
            not read (text, hex, bzip2).
    """
    with named(path), path.open("rb") as file:
        stream = Inflated(file, "none")
        header = _parse_header(stream)
        kept = _spatial_axes(header)
        shape = spatial_shape([header["sizes"][axis] for axis in kept])
        dtype = _dtype(header)
        affine = _affine(header, kept)
        encoding = str(header["encoding"]).lower()
        if encoding not in _GZIP + _RAW:
            raise VolumeError(
                "expected voxels encoded as raw or gzip, found another encoding; convert the file."
            )
        data_name = header.get("data file", header.get("datafile"))
        data_path = path if data_name is None else detached_file(path, str(data_name))
        count = check_claim(shape, dtype, data_path, compressed=encoding in _GZIP)
        with data_path.open("rb") as data_file:
            data_file.seek(stream.position if data_path == path else 0)
            _skip_lines(data_file, int(header.get("line skip", header.get("lineskip", 0))))
            skip = int(header.get("byte skip", header.get("byteskip", 0)))
            if skip == -1 and encoding in _RAW:
                data_file.seek(data_path.stat().st_size - count)
                skip = 0
            data = Inflated(data_file, "none" if encoding in _RAW else "gzip")
            data.skip(skip)
            raw = data.read(count)
            data.finish()
        return file_volume(raw, dtype, shape, affine)


def _parse_header(stream: Inflated) -> dict[str, Any]:
    lines = []
    for _ in range(_MAX_HEADER_LINES):
        line = stream.line()
        if not line or not line.strip():
            break
        lines.append(line)
    if not lines or not lines[0].startswith(b"NRRD"):
        raise VolumeError("expected a NRRD header, found something else.")
    try:
        header: dict[str, Any] = dict(nrrd.read_header(lines))
    except (nrrd.NRRDError, ValueError, IndexError, OverflowError) as exc:
        raise VolumeError("the NRRD header is damaged or of a newer version than is read.") from exc
    missing = [key for key in ("dimension", "type", "encoding", "sizes") if key not in header]
    if missing:
        raise VolumeError(f"the NRRD header lacks {', '.join(missing)}.")
    return header


def _spatial_axes(header: dict[str, Any]) -> list[int]:
    """Axes with a direction; others have to be of length one (a single channel or time point)."""
    sizes = [int(n) for n in header["sizes"]]
    directions = header.get("space directions")
    if directions is None or len(directions) != len(sizes) or len(sizes) != int(header["dimension"]):
        if len(sizes) != 3:
            spatial_shape(sizes)
        raise VolumeError("the header states no orientation (space directions are missing).")
    # pynrrd writes "none", an axis outside space, as None or as a row of NaN, depending on a global setting
    kept = [
        axis
        for axis, direction in enumerate(directions)
        if direction is not None and not np.isnan(direction).all()
    ]
    others = [size for axis, size in enumerate(sizes) if axis not in kept]
    if len(kept) != 3 or max(others, default=1) > 1:
        raise VolumeError(
            f"expected a 3D volume, found sizes {tuple(sizes)}; pass one file per contrast or time point."
        )
    return kept


def _affine(header: dict[str, Any], kept: list[int]) -> NDArray[np.float64]:
    signs = _SPACES.get(str(header.get("space", "")).lower())
    if signs is None:
        raise VolumeError("the header does not say which way its space runs (left or right, front or back).")
    units = {str(unit).lower() for unit in header.get("space units", ())}
    if units - {"mm", "millimeter", "millimeters", ""}:
        raise VolumeError("expected lengths in millimetres, found another unit.")
    affine = np.eye(4)
    try:
        affine[:3, :3] = np.array([header["space directions"][axis] for axis in kept], np.float64).T
        affine[:3, 3] = header.get("space origin", np.zeros(3))
    except (ValueError, TypeError) as exc:
        raise VolumeError("the header's space directions or origin are no vectors of three numbers.") from exc
    affine[:3] *= np.array(signs)[:, None]
    return affine


def _dtype(header: dict[str, Any]) -> np.dtype[np.generic]:
    code = _DTYPES.get(str(header["type"]).lower())
    if code is None:
        raise VolumeError("expected real intensities, found blocks or an unknown type.")
    order = {"little": "<", "big": ">"}.get(str(header.get("endian", "")).lower())
    if order is None and np.dtype(code).itemsize > 1:
        raise VolumeError("the header does not state the byte order of its voxels.")
    return np.dtype(f"{order or '='}{code}")


def _skip_lines(file: Any, lines: int) -> None:
    if not 0 <= lines <= _MAX_HEADER_LINES:
        raise VolumeError(f"the header skips {lines} lines before the voxels.")
    for _ in range(lines):
        file.readline(1 << 16)
