"""Read and write NIfTI. Nothing else knows the axis order on disk: nibabel's (i, j, k) is our (W, H, D).

A header is a claim. Sizes are checked against the file before memory is taken, and a compressed stream
is inflated to the size its header claims and no further.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import isal_zlib
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError

#: Largest voxel data that is read, in bytes as stored. 1 GiB holds 512^3 of 64 bits.
MAX_BYTES = 1 << 30
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


def read_nifti(path: Path) -> Volume:
    """Read `.nii`, `.nii.gz`, or a `.hdr`/`.img` pair (either name, gzipped or not).

    Returns:
        data (1, D, H, W) in its stored type where the file has no scaling, else float32; affine (4, 4).

    Raises:
        VolumeError: not NIfTI, truncated, not one 3D volume of real numbers, larger than MAX_BYTES,
            or without a usable orientation.
    """
    name = path.name
    try:
        header_path, data_path = _parts(path)
        with header_path.open("rb") as file:
            stream = _Inflated(file, name)
            header = _parse_header(stream, name)
            shape, dtype, offset = _check_header(header, name)
            count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            _check_claim(count, data_path, name)
            if header_path == data_path:
                stream.skip(max(offset, stream.position) - stream.position)
                raw = stream.read(count)
                stream.finish()
            else:
                with data_path.open("rb") as data_file:
                    data_stream = _Inflated(data_file, data_path.name)
                    data_stream.skip(offset)
                    raw = data_stream.read(count)
                    data_stream.finish()
    except FileNotFoundError as exc:
        raise VolumeError(
            f"{name}: expected a header and its voxels (.hdr and .img), found only one."
        ) from exc
    except OSError as exc:
        raise VolumeError(f"{name}: cannot be read ({exc.strerror or exc}).") from exc
    data = np.frombuffer(raw, dtype).reshape(shape[::-1])  # first index fastest on disk: (k, j, i)
    affine, flags = _affine(header, name)
    return Volume(_scaled(data, header, name)[None], affine, flags)


def write_nifti(volume: Volume, path: Path) -> None:
    """Write one contrast, or several along the fourth dimension; appears whole or not at all.

    Args:
        volume: (C, D, H, W); float data is stored as float32, masks as uint8.
    """
    data = volume.data.transpose(3, 2, 1, 0)
    data = data[..., 0] if data.shape[-1] == 1 else data
    dtype = np.uint8 if data.dtype == bool else np.float32 if data.dtype.kind == "f" else data.dtype
    image = nib.Nifti1Image(np.asarray(data, dtype), volume.affine[:, [2, 1, 0, 3]], dtype=dtype)
    image.header.set_xyzt_units("mm")
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        nib.save(image, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _parts(path: Path) -> tuple[Path, Path]:
    """Where the header and the voxels of a volume lie: in one file, or in a pair named by either half."""
    lower = path.name.lower()
    for ending in (".hdr.gz", ".img.gz", ".hdr", ".img"):
        if lower.endswith(ending):
            stem = path.name[: -len(ending)]
            return _sibling(path, stem, ".hdr"), _sibling(path, stem, ".img")
    return path, path


def _sibling(path: Path, stem: str, ending: str) -> Path:
    for candidate in (ending, ending + ".gz", ending.upper(), ending.upper() + ".gz"):
        sibling = path.with_name(stem + candidate)
        if sibling.is_file():
            return sibling
    raise FileNotFoundError(stem + ending)


class _Inflated:
    """Forward reading of a plain or gzipped file; never more than was asked for."""

    CHUNK = 1 << 20

    def __init__(self, file: io.BufferedReader, name: str) -> None:
        self.name = name
        self.position = 0
        self._file = file
        self._gzip = isal_zlib.decompressobj(31) if file.peek(2)[:2] == _GZIP_MAGIC else None

    def read(self, count: int) -> bytearray:
        result = bytearray(count)
        filled = 0
        try:
            while filled < count:
                if self._gzip is None:
                    part = self._file.read(min(count - filled, self.CHUNK * 16))
                else:
                    part = self._inflate(count - filled)
                if not part:
                    raise VolumeError(
                        f"{self.name}: expected {count} bytes of data, found {filled}; the file is cut short."
                    )
                result[filled : filled + len(part)] = part
                filled += len(part)
        except isal_zlib.IsalError as exc:
            raise VolumeError(f"{self.name}: the gzip stream is corrupt ({exc}).") from exc
        self.position += count
        return result

    def _inflate(self, count: int) -> bytes:
        assert self._gzip is not None
        while True:
            if self._gzip.eof:  # several gzip members may follow each other (RFC 1952)
                rest = self._gzip.unused_data or self._file.read(self.CHUNK)
                if not rest.startswith(_GZIP_MAGIC):
                    return b""
                self._gzip = isal_zlib.decompressobj(31)
            else:
                rest = self._gzip.unconsumed_tail or self._file.read(self.CHUNK)
            part: bytes = self._gzip.decompress(rest, count)
            if part or (not rest and not self._gzip.eof):
                return part

    def skip(self, count: int) -> None:
        if count > MAX_BYTES:
            raise VolumeError(f"{self.name}: the header puts the voxels {count} bytes into the file.")
        self.read(count)

    def finish(self) -> None:
        """Read a compressed stream to its checksum; bytes behind the voxels are legal and ignored."""
        if self._gzip is None:
            return
        try:
            for _ in range(16):
                if self._gzip.eof:
                    return
                rest = self._gzip.unconsumed_tail or self._file.read(self.CHUNK)
                if not rest:
                    raise VolumeError(
                        f"{self.name}: the gzip stream ends before its checksum; the file is cut short."
                    )
                self._gzip.decompress(rest, self.CHUNK)
        except isal_zlib.IsalError as exc:
            raise VolumeError(f"{self.name}: the gzip stream is corrupt ({exc}).") from exc


def _parse_header(stream: _Inflated, name: str) -> nib.Nifti1Header:
    try:
        start = bytes(stream.read(4))
        size = next(n for n in _HEADER_BYTES if start in (n.to_bytes(4, "little"), n.to_bytes(4, "big")))
        block = start + bytes(stream.read(size - 4))
        header = _HEADER_BYTES[size](block, check=False)
        magic = bytes(header["magic"])[:3]
        if magic not in (b"n+1", b"ni1", b"n+2", b"ni2"):
            raise VolumeError(
                f"{name}: expected NIfTI, found ANALYZE 7.5, which has no orientation; "
                "convert it to NIfTI first."
            )
    except StopIteration as exc:
        raise VolumeError(f"{name}: expected a NIfTI header, found something else.") from exc
    except VolumeError as exc:
        if stream.position < 4:
            raise VolumeError(
                f"{name}: expected a NIfTI file, found one too short to have a header."
            ) from exc
        raise
    return header


def _check_header(header: nib.Nifti1Header, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    dimensions = [int(n) for n in header["dim"]]
    if not 1 <= dimensions[0] <= 7 or min(dimensions[1 : dimensions[0] + 1]) < 1:
        raise VolumeError(f"{name}: expected a 3D volume, found a header with dimensions {dimensions[1:]}.")
    shape = tuple(dimensions[1 : dimensions[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or 1 in shape:
        remedy = (
            "pass one file per contrast or time point"
            if len(shape) > 3
            else "a classifier needs the whole head"
        )
        raise VolumeError(f"{name}: expected a 3D volume, found shape {shape}; {remedy}.")
    try:
        dtype = header.get_data_dtype()
    except HeaderDataError as exc:
        raise VolumeError(f"{name}: unknown data type code {int(header['datatype'])} in the header.") from exc
    if dtype.kind not in "iuf":
        kind = {"c": "complex numbers", "V": "colours"}.get(dtype.kind, "no numbers")
        raise VolumeError(
            f"{name}: expected real intensities, found {kind}; write the magnitude as one channel."
        )
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset < 0:
        raise VolumeError(f"{name}: the header puts the voxels at byte {offset}.")
    return shape, dtype, int(offset)


def _check_claim(count: int, path: Path, name: str) -> None:
    """A header may not claim more than we would read, nor more than its file can hold (RFC 1951: 1032:1)."""
    size = path.stat().st_size
    limit = size * 1032 if path.suffix.lower() == ".gz" else max(size * 1032, size)
    if count > MAX_BYTES or count > limit:
        raise VolumeError(
            f"{name}: the header claims {count / 1e9:.3g} GB of voxels, the file has {size / 1e9:.3g} GB "
            f"and at most {MAX_BYTES / 1e9:.3g} GB are read; the header is wrong or the volume too large."
        )


def _scaled(data: NDArray[np.generic], header: nib.Nifti1Header, name: str) -> NDArray[np.generic]:
    """Apply scl_slope and scl_inter (NIfTI-1 standard: slope 0 or not finite means none)."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    if slope in (0.0, 1.0) or not np.isfinite(slope):
        if slope != 1.0 or intercept == 0.0 or not np.isfinite(intercept):
            return native.astype(np.float32) if native.dtype.itemsize > 4 else native
        slope = 1.0
    if not np.isfinite(intercept):
        raise VolumeError(f"{name}: the header's intensity scaling is not finite.")
    scaled = native.astype(np.float64) if native.dtype.itemsize > 4 else native.astype(np.float32)
    scaled = scaled * scaled.dtype.type(slope) + scaled.dtype.type(intercept)
    return scaled.astype(np.float32, copy=False)


def _affine(header: nib.Nifti1Header, name: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The voxel-to-world matrix for (d, h, w), sform first (NIfTI-1, "3D image orientation")."""
    candidates = []
    if int(header["sform_code"]) > 0:
        candidates.append(np.asarray(header.get_sform(), np.float64))
    if int(header["qform_code"]) > 0:
        with contextlib.suppress(HeaderDataError, ValueError):
            candidates.append(np.asarray(header.get_qform(), np.float64))
    if not candidates and int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        raise VolumeError(
            f"{name}: the header states no orientation (qform_code and sform_code are 0), so left and right, "
            "top and bottom are unknown; set one (for instance with nibabel or fslorient) and try again."
        )
    for affine in candidates:
        linear = affine[:3, :3]
        if (
            np.isfinite(affine).all()
            and abs(np.linalg.det(linear)) > 1e-6 * max(np.abs(linear).max(), 1e-6) ** 3
        ):
            return affine[:, [2, 1, 0, 3]], ()
    raise VolumeError(
        f"{name}: the header's voxel-to-world matrix is singular or not finite, so millimetres are "
        "undefined; convert the volume again from its source."
    )
