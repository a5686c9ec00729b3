"""The Volume: voxels with the affine that says where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Volume:
    """One or more contrasts on one grid.

    Attributes:
        data: (C, D, H, W), any real dtype.
        affine: (4, 4) float64, from voxel index (d, h, w) to RAS+ millimetres. nibabel's affines
            take (i, j, k): only `io.volumes.voxels.file_volume` and `io.volumes.nifti` turn one into the other.
        flags: what reading found that a person should know (codes of `ssclf.domain.flags`).
    """

    data: Array
    affine: NDArray[np.float64]
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.data.ndim == 4 and self.affine.shape == (4, 4)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)"""
        _, d, h, w = self.data.shape
        return d, h, w

    @property
    def spacing(self) -> Spacing:
        """Voxel size in mm on (D, H, W)."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def voxel_ml(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000
