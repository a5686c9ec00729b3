"""From bytes to voxels, with limits: what the readers of all file formats share.

A header is a claim. Sizes are checked against the file before memory is taken, a compressed stream is
inflated to the size its header claims and no further, and a header may not point out of its folder.

On disk the first index of a volume runs fastest and its affine takes (i, j, k); a `Volume` takes
(d, h, w) = (k, j, i). The one place where files become volumes is `file_volume`.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from ssclf.domain.volume import Array, Volume
from ssclf.errors import VolumeError
from ssclf.io.inside import is_inside
from ssclf.io.paths import file_size, is_file, real_path

#: Largest volume that is read, in bytes as stored and in voxels: 512³ of 64 bits; 645³.
MAX_BYTES = 1 << 30
MAX_VOXELS = 1 << 28
#: Longest text header, in bytes: trackers write a line or more for every frame, and ITK reads them all.
MAX_HEADER_BYTES = 1 << 24
#: deflate makes at most 1032 bytes of one (RFC 1951).
_DEFLATE_RATIO = 1032
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP = 31
_WBITS: dict[str | None, int | None] = {None: None, "gzip": _GZIP, "zlib": 15}
_CHUNK = 1 << 20
#: What is handed to a gzip member after the first. The inflater copies what a member leaves over: handed all the rest
#: each time, files of many members (bgzip, pgzip) took time that grew with the square of their size.
_MEMBER_CHUNK = 1 << 17

Compression = Literal["none", "gzip", "zlib"]


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the file's name before whatever goes wrong inside, once."""
    try:
        yield
    except VolumeError as exc:
        if str(exc).startswith(f"{path.name}: "):
            raise
        raise VolumeError(f"{path.name}: {exc}") from exc
    except OSError as exc:
        raise VolumeError(f"{path.name}: cannot be read ({exc.strerror or type(exc).__name__}).") from exc


class Inflated:
    """Forward reading of a plain or compressed file; never more than was asked for.

    Args:
        file: open for reading, at the start of what is wanted.
        compression: None takes what the first bytes look like, gzip or plain.

    Attributes:
        position: bytes read so far, after inflation.
    """

    def __init__(self, file: io.BufferedReader, compression: Compression | None = None) -> None:
        self.position = 0
        self._file = file
        gzipped = file.peek(2)[:2] == _GZIP_MAGIC
        if compression == "gzip" and not gzipped:
            raise VolumeError("expected gzipped voxels as the header says, found something else.")
        self._wbits = None if compression == "none" else _GZIP if gzipped else _WBITS[compression]
        self._inflater = None if self._wbits is None else isal_zlib.decompressobj(self._wbits)
        self._members = 1
        self._waiting = memoryview(b"")  # compressed bytes that were read and not yet taken

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes.

        Raises:
            VolumeError: there are fewer, or the stream is corrupt.
        """
        parts = []
        missing = count
        while missing:
            part = self._file.read(missing) if self._inflater is None else self._inflate(missing)
            if not part:
                raise VolumeError(
                    f"expected {count} bytes of data, found {count - missing}; the file is cut short."
                )
            parts.append(part)
            missing -= len(part)
        self.position += count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def line(self, limit: int = 1 << 16) -> bytes:
        """Of a plain file, up to and with the next newline; empty at its end."""
        assert self._inflater is None
        result = self._file.readline(limit)
        self.position += len(result)
        return result

    def skip(self, count: int) -> None:
        if not 0 <= count <= MAX_BYTES:
            raise VolumeError(f"the header puts the voxels {count} bytes further into the file.")
        while count:
            count -= len(self.read(min(count, _CHUNK)))

    def finish(self) -> None:
        """Read a compressed stream to its checksum; bytes behind the voxels are legal and ignored."""
        for _ in range(16):
            if self._inflater is None or self._inflater.eof:
                return
            if not self._waiting:
                self._waiting = memoryview(self._file.read(_CHUNK))
            if not self._waiting:
                raise VolumeError("the compressed data end before their checksum; the file is cut short.")
            self._decompress(_CHUNK)

    def _inflate(self, count: int) -> bytes:
        """Up to `count` bytes; none at the end."""
        assert self._inflater is not None and self._wbits is not None
        # As much as `count` bytes take where nothing can be compressed, so that one call does: joining is a copy.
        enough = count + count // 512 + _CHUNK
        while True:
            if len(self._waiting) < len(_GZIP_MAGIC):
                self._waiting = memoryview(bytes(self._waiting) + self._file.read(enough))
            if self._inflater.eof:  # several gzip members may follow each other (RFC 1952)
                if self._wbits != _GZIP or self._waiting[: len(_GZIP_MAGIC)] != _GZIP_MAGIC:
                    return b""
                self._inflater = isal_zlib.decompressobj(self._wbits)
                self._members += 1
            at_end = not self._waiting
            part = self._decompress(count)
            if part or (at_end and not self._inflater.eof):
                return part

    def _decompress(self, count: int) -> bytes:
        """Hand some of the waiting bytes to the inflater; those that it leaves go on waiting."""
        assert self._inflater is not None
        some = self._waiting if self._members == 1 else self._waiting[:_MEMBER_CHUNK]
        try:
            part: bytes = self._inflater.decompress(some, count)
        except IsalError as exc:  # type: ignore[misc]  # the stubs declare it as an instance
            raise VolumeError(f"the compressed data are corrupt ({exc}).") from exc
        left = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
        self._waiting = self._waiting[len(some) - len(left) :]
        return part


def spatial_shape(sizes: Sequence[int]) -> tuple[int, int, int]:
    """The three sizes of a volume, trailing ones dropped.

    Raises:
        VolumeError: not one 3D volume.
    """
    shape = tuple(int(n) for n in sizes)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        remedy = "pass one file per contrast or time point" if len(shape) > 3 else "one brain is needed whole"
        raise VolumeError(f"expected a 3D volume, found shape {shape}; {remedy}.")
    return shape[0], shape[1], shape[2]


def check_claim(shape: Sequence[int], dtype: np.dtype[np.generic], path: Path, *, compressed: bool) -> int:
    """Bytes of the voxels, which may be no more than are read, nor more than the file can hold.

    Raises:
        VolumeError: the header claims more.
    """
    voxels = math.prod(shape)
    count = voxels * dtype.itemsize
    size = file_size(path)
    if count > MAX_BYTES or voxels > MAX_VOXELS or count > size * (_DEFLATE_RATIO if compressed else 1):
        raise VolumeError(
            f"the header claims {count / 1e9:.3g} GB of voxels, the file has {size / 1e9:.3g} GB and at most "
            f"{MAX_BYTES / 1e9:.3g} GB are read; the file is cut short or too large, or its header is wrong."
        )
    return count


def is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP_MAGIC


def detached_file(header: Path, name: str) -> Path:
    """The data file that a header names, in the header's own folder or below it.

    Raises:
        VolumeError: it lies elsewhere or is not there, or there are several.
    """
    if name.upper().startswith("LIST") or "%" in name or "\n" in name:
        raise VolumeError("expected one data file, found a list of them; convert the volume to one file.")
    if "\0" in name:
        raise VolumeError("the header names a data file that cannot be: its name holds a NUL.")
    folder = real_path(header.parent)
    path = real_path(folder / name)
    if not is_inside(folder, path):
        raise VolumeError("the header names a data file outside its own folder, which is not followed.")
    if not is_file(path):
        raise VolumeError("expected a header and its data file beside it, found the header alone.")
    return path


def scaled(data: Array, slope: float, intercept: float) -> Array:
    """data * slope + intercept as float32; unscaled data keep types of up to 32 bits."""
    native = data.astype(data.dtype.newbyteorder("="), copy=False)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise VolumeError("the header's intensity scaling is not finite.")
    if (slope, intercept) == (1.0, 0.0):
        return native.astype(np.float32) if native.dtype.itemsize > 4 else native
    result: Array = np.empty(native.shape, np.float32)
    wide: type[np.floating[Any]] = np.float64 if native.dtype.itemsize > 2 else np.float32
    # plane by plane: whole volumes in 64 bits took five times the memory of the result
    for out, plane in zip(result, native, strict=True):
        out[...] = plane.astype(wide) * wide(slope) + wide(intercept)
    return result


def file_volume(
    raw: bytes,
    dtype: np.dtype[np.generic],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    *,
    scaling: tuple[float, float] = (1.0, 0.0),
    flags: tuple[str, ...] = (),
) -> Volume:
    """A volume from bytes as they stand in a file.

    Args:
        raw: the voxels, first index fastest; the volume shares them and cannot be written to.
        shape: (i, j, k).
        affine: (4, 4), (i, j, k) to RAS+ mm.
        scaling: slope and intercept.
    """
    data = np.frombuffer(raw, dtype).reshape(shape[::-1])
    return Volume(scaled(data, *scaling)[None], np.asarray(affine, np.float64)[:, [2, 1, 0, 3]], flags)
