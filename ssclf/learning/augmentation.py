"""Random transforms of training volumes, through TorchIO; the same (seed, epoch, volume) gives the same one.

Source: Chatterjee et al., Sec. 2.3 ("light", used; "heavy", tried there and found worse). Two are ours. "half" leaves
every second volume on its own grid: a turned volume is a smoothed one, and a network that has seen no other takes a
sharp edge for a lesion. "flip" is mirror images alone, for runs too short to learn what the others add.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssclf.config import Augmentation

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchIO's own dependencies warn on import
    import torchio as tio


class Augmenter:
    """A random transform of (C, D, H, W) arrays in [0, 1] with background 0; the result is the same kind."""

    def __init__(self, kind: Augmentation, seed: int) -> None:
        self._seed = seed
        self._heavy = kind == "heavy"
        # By name, not by index: which array axis runs from left to right depends on the plane of the slices.
        chance = 0.5 if kind in ("flip", "half") else 0.25
        flip = tio.RandomFlip(axes=("LR",), flip_probability=chance)  # type: ignore[arg-type]  # its docstring has names
        turned = 0.5 if kind == "half" else 1
        affine = tio.RandomAffine(
            scales=(0.9, 1.2), degrees=10, default_pad_value=0, check_shape=False, p=turned
        )
        steps: list[tio.Transform] = [flip] if kind == "flip" else [affine, flip]
        if self._heavy:
            steps += [
                tio.RandomElasticDeformation(p=0.5),
                tio.RandomMotion(p=0.25),
                tio.RandomSpike(p=0.25),
                tio.RandomGhosting(p=0.25),
            ]
        self._transform = None if kind == "none" else tio.Compose(steps)

    def __call__(
        self, data: NDArray[np.float32], affine: NDArray[np.float64], *, epoch: int, index: int
    ) -> NDArray[np.float32]:
        """Transform one volume.

        Args:
            data: (C, D, H, W).
            affine: from (d, h, w) to RAS+ mm.
            epoch, index: of the volume, drawn with the seed; the global random state stays as it was.
        """
        if self._transform is None:
            return data
        # TorchIO's order is (C, W, H, D)
        grid = affine[:, [2, 1, 0, 3]]
        images: dict[str, tio.Image] = {"volume": tio.ScalarImage(tensor=_reverse_axes(data), affine=grid)}
        if self._heavy:  # artefacts fill the background; the mask follows the movement, and clears it again
            brain = np.any(data > 0, axis=0, keepdims=True).astype(np.float32)
            images["brain"] = tio.LabelMap(tensor=_reverse_axes(brain), affine=grid)
        subject: Any = tio.Subject(images)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(_mix(self._seed, epoch, index))
            subject = self._transform(subject)
        result = np.clip(subject["volume"].numpy(), 0, 1)
        if self._heavy:
            result = result * (subject["brain"].numpy() > 0)
        return np.ascontiguousarray(result.transpose(0, 3, 2, 1), np.float32)


def _reverse_axes(data: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(data.transpose(0, 3, 2, 1)))


def _mix(*numbers: int) -> int:
    """One seed out of several, such that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
