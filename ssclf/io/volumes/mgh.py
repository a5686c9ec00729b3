"""Read FreeSurfer's MGH and MGZ: big-endian, a header of 284 bytes, then the voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.volumes.voxels import Inflated, check_claim, file_volume, is_gzip, named, spatial_shape

_HEADER_BYTES = 284
_VERSION = 1
_GOOD_RAS = slice(28, 30)
#: MRI_UCHAR, MRI_INT, MRI_FLOAT, MRI_SHORT, MRI_USHRT (FreeSurfer, mri.h); nibabel knows the last one from 5.4 on.
_TYPES = {0: "u1", 1: "i4", 3: "f4", 4: "i2", 10: "u2"}


def read_mgh(path: Path) -> Volume:
    """Read `.mgh` or `.mgz`.

    Returns:
        data (1, D, H, W) in its stored type; affine (4, 4).

    Raises:
        VolumeError: not MGH, truncated, not one 3D volume, or without orientation.
    """
    with named(path), path.open("rb") as file:
        stream = Inflated(file)
        block = stream.read(_HEADER_BYTES)
        if int.from_bytes(block[:4], "big") != _VERSION:
            raise VolumeError("expected an MGH header, found something else.")
        if int.from_bytes(block[_GOOD_RAS], "big", signed=True) <= 0:
            raise VolumeError("the header states no orientation (goodRASFlag is 0); set it with mri_convert.")
        header = nib.freesurfer.mghformat.MGHHeader(block, check=False)
        shape = spatial_shape([int(n) for n in header["dims"]])
        code = int(header["type"])
        if code not in _TYPES:
            raise VolumeError(f"unknown data type code {code} in the header.")
        dtype = np.dtype(f">{_TYPES[code]}")
        affine = np.asarray(header.get_affine(), np.float64)
        count = check_claim(shape, dtype, path, compressed=is_gzip(path))
        raw = stream.read(count)
        # Behind the voxels come scan parameters and tags with command lines: not for us.
        stream.finish()
        return file_volume(raw, dtype, shape, affine)
