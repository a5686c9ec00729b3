"""The one preprocessing, for training and prediction alike: from a volume to what a network sees.

Source: Chatterjee et al., Sec. 2.5: skull removed, intensities scaled to the [0.5, 99.5] percentiles,
then resampled to 2 mm isotropic.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssclf.config import PreprocessConfig
from ssclf.domain import geometry
from ssclf.domain.intensity import fill_background, foreground, scale_inside
from ssclf.domain.tolerance import whole_up
from ssclf.domain.volume import Mask, Volume


@dataclass(frozen=True)
class PreparedVolume:
    """Network input.

    Attributes:
        data: (C, D, H, W) float32 in [0, 1], background 0, D across the slices of the config's plane.
        affine: (4, 4) from (d, h, w) to RAS+ mm.
        brain_ml: volume of the brain mask, in millilitres.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    brain_ml: float
    flags: tuple[str, ...] = ()


def preprocess(volume: Volume, config: PreprocessConfig, brain: Mask | None = None) -> PreparedVolume:
    """Orient, clip, resample and scale a volume.

    Args:
        volume: (C, D, H, W), any orientation and real dtype; one channel per contrast of the config.
        config: the settings, from the command line in training and from the model in prediction.
        brain: (D, H, W) mask on the volume's grid; None for a stripped volume, where every voxel that
            differs from the background is brain.

    Raises:
        VolumeError: not finite inside, no brain, constant, or smaller than one voxel of the new grid.
    """
    volume = replace(volume, data=fill_background(volume.data))
    if brain is None:
        brain = foreground(volume.data)
    brain_ml = float(np.count_nonzero(brain)) * volume.voxel_ml
    codes = geometry.PLANE_ORIENTATION[config.plane]
    oriented = geometry.reorient(volume, codes)
    mask = geometry.reorient(Volume(brain[None], volume.affine), codes).data[0]
    if config.crop == "brain" and mask.any():
        margin = [whole_up(config.crop_margin_mm / mm) for mm in oriented.spacing]
        box = geometry.mask_box(mask, (margin[0], margin[1], margin[2]))
        oriented, mask = geometry.crop(oriented, box), mask[box]
    channels = []
    for channel in oriented.data:
        scaled = scale_inside(channel, mask, config.percentiles)
        resampled = geometry.resample(Volume(scaled[None], oriented.affine), config.spacing)
        channels.append(np.minimum(resampled.data, np.float32(1), out=resampled.data))
        affine = resampled.affine
    return PreparedVolume(np.concatenate(channels), affine, brain_ml, volume.flags)


def voxel_hash(data: NDArray[np.float32]) -> str:
    """SHA-256 of network input (C, D, H, W): equal for equal shape and values, however they are stored."""
    digest = hashlib.sha256(repr(data.shape).encode())
    digest.update(np.ascontiguousarray(data, dtype="<f4").data)
    return digest.hexdigest()
