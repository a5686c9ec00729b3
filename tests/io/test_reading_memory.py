"""What a reader takes is the voxels as stored and once more, whatever the format, the type and the scaling."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not Path("/proc/self/status").exists(), reason="the system does not tell of memory so"
    ),
]

#: Voxels: enough that libraries do not count.
SHAPE = (360, 320, 320)
_MEASURE = """
import json, sys
from pathlib import Path
from ssclf.io.volumes.read import read_volume
def peak():  # ru_maxrss would count what the process was before it became Python
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
before = peak()
volume = read_volume(Path(sys.argv[1]))
print(json.dumps([list(volume.shape), peak() - before]))
"""


def nifti(path: Path, code: int, dtype: str, slope: float) -> Path:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header["datatype"], header["bitpix"] = code, np.dtype(dtype).itemsize * 8
    header.set_sform(np.diag([0.5, 0.5, 0.5, 1]), 1)
    header["scl_slope"], header["vox_offset"], header["magic"] = slope, 352, b"n+1"
    return packed(path, header.binaryblock + bytes(4), dtype)


def packed(path: Path, head: bytes, dtype: str) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        plane = np.ones(SHAPE[:2], dtype).tobytes()
        for _ in range(SHAPE[2]):
            file.write(plane)
    return path


def nrrd(path: Path) -> Path:
    sizes = " ".join(map(str, SHAPE))
    head = (
        f"NRRD0004\ntype: int32\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\nendian: little\n"
        "space directions: (0.5,0,0) (0,0.5,0) (0,0,0.5)\nspace origin: (0,0,0)\nencoding: gzip\n\n"
    )
    packed(path, b"", "<i4")
    path.write_bytes(head.encode() + path.read_bytes())
    return path


def metaimage(path: Path) -> Path:
    data = zlib.compress(np.ones(SHAPE, "<i4").tobytes(), 1)
    head = (
        f"ObjectType = Image\nNDims = 3\nDimSize = {' '.join(map(str, SHAPE))}\nElementType = MET_INT\n"
        "ElementSpacing = 0.5 0.5 0.5\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nBinaryData = True\n"
        f"BinaryDataByteOrderMSB = False\nCompressedData = True\nCompressedDataSize = {len(data)}\n"
        "ElementDataFile = LOCAL\n"
    )
    path.write_bytes(head.encode() + data)
    return path


def mgz(path: Path) -> Path:
    directions = struct.pack(">h3f12f", 1, 0.5, 0.5, 0.5, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0)
    head = struct.pack(">7i", 1, *SHAPE, 1, 1, 0) + directions
    return packed(path, head.ljust(284, b"\0"), ">i4")


READERS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "int32.nii.gz": (lambda path: nifti(path, 8, "<i4", 2), 4),
    "int16.nii.gz": (lambda path: nifti(path, 4, "<i2", 2), 4),
    "float64.nii.gz": (lambda path: nifti(path, 64, "<f8", 1), 8),
    "int32.nrrd": (nrrd, 4),
    "int32.mha": (metaimage, 4),
    "int32.mgz": (mgz, 4),
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_the_voxels_as_stored_and_once_in_32_bits(name: str, tmp_path: Path) -> None:
    """A file of 1.25 MB within all limits took 6.35 GB: whole volumes were scaled in 64 bits."""
    write, size = READERS[name]
    path = write(tmp_path / name)
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, check=True)
    shape, taken = json.loads(done.stdout)
    assert sorted(shape[-3:]) == sorted(SHAPE)
    most = max(2 * size, size + 4)  # twice as stored, while the parts of a stream are joined
    assert 0 < taken <= 1.1 * most * np.prod(SHAPE) + (32 << 20)
