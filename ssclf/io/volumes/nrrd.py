"""Read NRRD, attached (`.nrrd`) or detached (`.nhdr`). pynrrd parses the header; the voxels are read here, so
that no stream is inflated further than its header claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nrrd
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

_MAX_SKIPPED_LINES = 4096
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
    "right-anterior-superior-time": (1, 1, 1),
    "rast": (1, 1, 1),
    "left-anterior-superior-time": (-1, 1, 1),
    "last": (-1, 1, 1),
    "left-posterior-superior-time": (-1, -1, 1),
    "lpst": (-1, -1, 1),
}
#: ITK writes and reads a volume of one time point in a space of four dimensions without a name, and means its own.
_ITK_4D = (-1, -1, 1)
#: A vector with its blanks: "(2, 0, 0)"; ITK and teem read it, pynrrd takes every blank for the next vector.
_VECTOR = re.compile(rb"\([^()]*\)")
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
            _skip_lines(data_file, _skipped(header, "line"))
            skip = _skipped(header, "byte")
            if skip == -1 and encoding in _RAW:
                data_file.seek(file_size(data_path) - count)
                skip = 0
            data = Inflated(data_file, "none" if encoding in _RAW else "gzip")
            data.skip(skip)
            raw = data.read(count)
            data.finish()
        return file_volume(raw, dtype, shape, affine)


def _parse_header(stream: Inflated) -> dict[str, Any]:
    lines = [stream.line()]
    if not lines[0].startswith(b"NRRD"):
        raise VolumeError("expected a NRRD header, found something else.")
    while (line := stream.line()).strip():
        if stream.position > MAX_HEADER_BYTES:
            raise VolumeError(
                f"expected a header of at most {MAX_HEADER_BYTES >> 20} MiB, found a longer one."
            )
        lines.append(_without_blanks(line))
    try:
        header: dict[str, Any] = dict(nrrd.read_header(lines))
    except Exception as exc:  # whatever a damaged line raises in pynrrd: its words quote the header
        raise VolumeError("the NRRD header is damaged or of a newer version than is read.") from exc
    missing = [key for key in ("dimension", "type", "encoding", "sizes") if key not in header]
    if missing:
        raise VolumeError(f"the NRRD header lacks {', '.join(missing)}.")
    return header


def _without_blanks(line: bytes) -> bytes:
    """A header line with nothing between the numbers of a vector but commas."""
    if not line.lower().startswith((b"space", b"measurement frame")) or b"(" not in line:
        return line
    return _VECTOR.sub(lambda vector: re.sub(rb"\s+", b"", vector[0]), line)


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
        if direction is not None and not np.isnan(direction).all() and not _is_time(direction, sizes[axis])
    ]
    others = [size for axis, size in enumerate(sizes) if axis not in kept]
    if len(kept) != 3 or max(others, default=1) > 1:
        raise VolumeError(
            f"expected a 3D volume, found sizes {tuple(sizes)}; pass one file per contrast or time point."
        )
    return kept


def _is_time(direction: NDArray[np.float64], size: int) -> bool:
    """Whether an axis is the only point in time of a space of four dimensions."""
    return len(direction) == 4 and size == 1 and not np.any(direction[:3])


def _affine(header: dict[str, Any], kept: list[int]) -> NDArray[np.float64]:
    vectors = [header["space directions"][axis] for axis in kept]
    in_time = all(len(vector) == 4 and vector[3] == 0 for vector in vectors)
    signs = _SPACES.get(str(header.get("space", "")).lower())
    if signs is None and in_time and "space" not in header:
        signs = _ITK_4D
    if signs is None:
        raise VolumeError("the header does not say which way its space runs (left or right, front or back).")
    units = {str(unit).lower() for unit in list(header.get("space units", ()))[:3]}
    if units - {"mm", "millimeter", "millimeters", ""}:
        raise VolumeError("expected lengths in millimetres, found another unit.")
    affine = np.eye(4)
    try:
        size = 4 if in_time else 3
        affine[:3, :3] = np.array(vectors, np.float64).reshape(3, size)[:, :3].T
        affine[:3, 3] = np.array(header.get("space origin", np.zeros(size)), np.float64).reshape(size)[:3]
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


def _skipped(header: dict[str, Any], what: str) -> int:
    """How many lines or bytes lie before the voxels; what no file can hold is cut to a number that fits a message."""
    stated = int(header.get(f"{what} skip", header.get(f"{what}skip", 0)))
    return max(min(stated, 10**15), -(10**15))


def _skip_lines(file: Any, lines: int) -> None:
    if not 0 <= lines <= _MAX_SKIPPED_LINES:
        raise VolumeError(f"the header skips {lines} lines before the voxels.")
    for _ in range(lines):
        file.readline(1 << 16)
