"""A healthy head as another scanner would have stored it, before preprocessing: on its own grid, with its own mask.

The generator draws on the network's grid, which is coarse. What happens before that grid is reached cannot be drawn
there: percentiles are taken over the voxels as stored, a coarse grid picks single ones of them, and a mask is as wrong
as its program makes it where the skull still is. So a head is seen several times, each view goes through the one
preprocessing, and lesions are put into what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.geometry import crop, mask_box
from ssclf.domain.random_fields import Field, grid_of, soft_step
from ssclf.domain.random_fields import noise as smooth_noise
from ssclf.domain.volume import Mask, Spacing, Volume
from ssclf.errors import ConfigError

Range = tuple[float, float]
#: What is cut away around the brain before anything is computed, in mm: more than a mask can be too large.
_MARGIN_MM = 8.0


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Ranges are drawn from uniformly; lengths are in mm.

    Attributes:
        pitch_degrees, turn_degrees: how the head lies, about the left-right axis and about the others, either sign.
        scale, stretch: of the head's size, and apart from that of each axis.
        plane_mm: voxels of an isotropic volume, or within a slice.
        thick_chance, slice_mm, gap: two-dimensional slices along any axis; what lies between as a share of the
            thickness.
        sharp_chance, sharp: edges as scanners of a finer grid have them, by so much of what a blur takes away.
        blur_chance, blur_mm: a Gaussian's deviation.
        bias: of a smooth factor, as a natural logarithm's deviation.
        noise: deviation, as a share of white matter.
        mask_chance, mask_mm: a mask too large or too small in places by up to so much; the skull is seen then.
        peel_chance, peel_mm: a mask without the fluid of the sulci, so deep.
    """

    pitch_degrees: float = 18.0
    turn_degrees: float = 8.0
    scale: Range = (0.92, 1.1)
    stretch: Range = (0.97, 1.03)
    plane_mm: Range = (1.3, 2.2)
    thick_chance: float = 0.55
    slice_mm: Range = (2.5, 6.5)
    gap: Range = (0.0, 0.3)
    sharp_chance: float = 0.3
    sharp: Range = (0.2, 0.9)
    blur_chance: float = 0.3
    blur_mm: Range = (0.6, 1.8)
    bias: Range = (0.0, 0.25)
    noise: Range = (0.0, 0.08)
    mask_chance: float = 0.5
    mask_mm: Range = (1.0, 5.0)
    peel_chance: float = 0.35
    peel_mm: Range = (4.0, 12.0)


def see_again(head: Volume, brain: Mask, seed: Sequence[int], settings: ViewSettings | None = None) -> Volume:
    """Draw a view.

    Args:
        head: (1, D, H, W), a T1 with its skull, axes nearest to S, A and R.
        brain: (D, H, W).
        seed: whole numbers from 0 on, the only source of randomness.

    Returns:
        a stripped volume (1, D', H', W') on a grid of its own, float32, above 0 in what was taken for brain, 0
        elsewhere.

    Raises:
        ConfigError: no brain.
    """
    from scipy import ndimage

    if head.data.shape[0] != 1 or not brain.any():
        raise ConfigError(f"view: expected a head of one contrast and its brain, found {head.data.shape[0]}.")
    settings = settings or ViewSettings()
    place, machine, mask = map(np.random.default_rng, np.random.SeedSequence(list(seed)).spawn(3))
    margin = [int(np.ceil(_MARGIN_MM / mm)) for mm in head.spacing]
    box = mask_box(brain, (margin[0], margin[1], margin[2]))
    near = crop(head, box)
    white = float(np.quantile(near.data[0][brain[box]], 0.85))
    data = _sharpened(machine, near.data[0].astype(np.float32), near.spacing, settings)
    wrong = _outline(mask, data, brain[box], near, settings)
    take = _grid(place, near, settings)
    data, outline = take(data), take(wrong.astype(np.float32))
    affine = take.affine
    grid = grid_of(Volume(data[None], affine))
    data *= np.exp(
        np.float32(machine.uniform(*settings.bias)) * smooth_noise(machine, grid, machine.uniform(60, 140))
    )
    sigma = np.float32(machine.uniform(*settings.noise) * machine.random() * white)
    real, imaginary = sigma * machine.standard_normal((2, *data.shape), np.float32)
    data = np.sqrt((data + real) ** 2 + imaginary**2)
    inside = ndimage.binary_fill_holes(outline > 0.5) if mask.random() < 0.5 else outline > 0.5
    return Volume(np.where(inside, np.maximum(data, np.float32(1e-3 * white)), np.float32(0))[None], affine)


def _sharpened(rng: np.random.Generator, data: Field, spacing: Spacing, settings: ViewSettings) -> Field:
    from scipy import ndimage

    kind = rng.random()
    if kind < settings.sharp_chance:
        blurred = ndimage.gaussian_filter(data, [2.0 / mm for mm in spacing], truncate=2)
        result: Field = (data + np.float32(rng.uniform(*settings.sharp)) * (data - blurred)).clip(0)
        return result
    if kind < settings.sharp_chance + settings.blur_chance:
        sigma = rng.uniform(*settings.blur_mm)
        return np.asarray(ndimage.gaussian_filter(data, [sigma / mm for mm in spacing], truncate=3))
    return data


def _outline(
    rng: np.random.Generator, data: Field, brain: Mask, near: Volume, settings: ViewSettings
) -> Mask:
    """The brain mask of another program."""
    from scipy import ndimage

    inside = brain
    if rng.random() < settings.mask_chance:
        far = rng.uniform(*settings.mask_mm) * soft_step(smooth_noise(rng, grid_of(near), 35), 0.8)
        if rng.random() < 0.5:
            inside = np.asarray(ndimage.distance_transform_edt(brain, sampling=near.spacing)) > far
        else:
            inside = np.asarray(ndimage.distance_transform_edt(~brain, sampling=near.spacing)) <= far
    if rng.random() < settings.peel_chance:
        fluid, grey = np.quantile(data[brain], (0.03, 0.4))
        level = fluid + rng.uniform(0.4, 0.8) * (grey - fluid)
        depth = ndimage.distance_transform_edt(inside, sampling=near.spacing)
        shell = inside & (depth < rng.uniform(*settings.peel_mm))
        smooth = ndimage.gaussian_filter(data, [1.0 / mm for mm in near.spacing], truncate=2)
        inside = inside & ~(shell & (smooth < level))
    return inside


class _Taken:
    """Samples a field on another grid: (D, H, W) to (D', H', W')."""

    def __init__(
        self, matrix: NDArray[np.float64], offset: NDArray[np.float64], shape: tuple[int, ...]
    ) -> None:
        self._matrix, self._offset, self._shape = matrix, offset, shape
        self.axis, self.parts, self.kept = 0, 1, 1
        self.affine = np.eye(4)

    def __call__(self, field: Field) -> Field:
        from scipy import ndimage

        fine: Field = ndimage.affine_transform(field, self._matrix, self._offset, self._shape, order=1)
        if self.parts == 1:
            return fine
        fine = np.moveaxis(fine, self.axis, 0)
        slices = fine.reshape(-1, self.parts, *fine.shape[1:])[:, : self.kept].mean(axis=1)
        return np.ascontiguousarray(np.moveaxis(slices, 0, self.axis))


def _grid(rng: np.random.Generator, near: Volume, settings: ViewSettings) -> _Taken:
    """How the head lies, and the scanner's grid: isotropic, or thick slices of several fine samples each."""
    degrees = rng.uniform(-1, 1, 3) * (settings.turn_degrees, settings.turn_degrees, settings.pitch_degrees)
    turn = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):  # about S, A and R: the last is the pitch
        first, second = [a for a in range(3) if a != axis]
        step = np.eye(3)
        step[first, first] = step[second, second] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    old, size = np.array(near.spacing), np.array(near.shape)
    scale = rng.uniform(*settings.scale) * rng.uniform(*settings.stretch, 3)
    fine = np.full(3, rng.uniform(*settings.plane_mm))
    axis, parts, kept = int(rng.integers(3)), 1, 1
    if rng.random() < settings.thick_chance:
        thick = rng.uniform(*settings.slice_mm)
        pitch = thick * (1 + rng.uniform(*settings.gap))
        parts = int(np.ceil(pitch / 2.2))
        kept = max(round(parts * thick / pitch), 1)
        fine[axis] = pitch / parts
    extent = size * old * scale
    counts = np.ceil(extent * 1.04 / fine).astype(int)
    counts[axis] = -(-counts[axis] // parts) * parts
    # out index to mm about the middle, turned back and scaled back, to in index
    matrix = np.diag(1 / (old * scale)) @ turn @ np.diag(fine)
    middle = (counts - 1) / 2 + rng.uniform(-0.5, 0.5, 3)
    take = _Taken(matrix, (size - 1) / 2 - matrix @ middle, tuple(int(n) for n in counts))
    take.axis, take.parts, take.kept = axis, parts, kept
    spacing = fine.copy()
    spacing[axis] *= parts
    take.affine[:3, :3] = np.diag(spacing)[::-1]  # (d, h, w) towards S, A and R
    return take
