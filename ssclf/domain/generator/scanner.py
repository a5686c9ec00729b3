"""What scanner, sequence and preprocessing make of a brain: drawn for every label alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.generator.head import Head
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.domain.generator.shapes import random_voxel
from ssclf.domain.intensity import percentile_range
from ssclf.domain.random_fields import Field, ellipsoid, soft_step
from ssclf.domain.volume import Mask

#: Nothing inside the brain is as low as the background: a dark lesion would leave a hole in its outline.
_LEAST = np.float32(1e-3)
_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Outline:
    """What is left of the head as brain, drawn before anything that a label changes.

    Attributes:
        inside: (D, H, W).
        rim: the part of it that is no brain, and what is seen there.
    """

    inside: Mask
    rim: Mask
    rim_level: float


def draw_outline(rng: np.random.Generator, head: Head, settings: GeneratorSettings) -> Outline:
    """A field of view that may end within the brain, and a mask that may be wrong by a few mm."""
    from scipy import ndimage

    inside = head.inside.copy()
    rim = np.zeros_like(inside)
    if rng.random() < settings.rim_chance:
        # between centres of voxels; the brain's surface lies half a voxel before the first
        far = rng.uniform(*settings.rim_mm) * soft_step(head.noise(rng, 35), 0.7) + np.float32(
            head.finest / 2
        )
        if rng.random() < 0.5:
            inside &= head.depth > far
        else:
            away = ndimage.distance_transform_edt(~inside, sampling=head.spacing)
            rim = (away > 0) & (away <= far)
            # the outermost slices stay empty, as preprocessing leaves them
            for axis in range(3):
                np.moveaxis(rim, axis, 0)[[0, -1]] = False
    if rng.random() < settings.chunk_chance:
        _chunk(rng, head, inside, rim, rng.uniform(*settings.chunk_mm))
    if rng.random() < settings.cut_chance:
        axis, up = head.up
        filled = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
        count = min(round(rng.uniform(*settings.cut_mm) / head.spacing[axis]), filled.size // 3)
        top = (rng.random() < 0.5) == (up > 0)
        gone = np.s_[filled[-1] - count + 1 :] if top else np.s_[: filled[0] + count]
        for mask in (inside, rim):
            np.moveaxis(mask, axis, 0)[gone] = False
    return Outline(inside | rim, rim, float(head.levels.white * rng.uniform(0, 1.15)))


def _chunk(rng: np.random.Generator, head: Head, inside: Mask, rim: Mask, radius: float) -> None:
    """Take a piece out of the brain at its surface, or leave as much beside it."""
    surface = ((head.depth > 0) & (head.depth < 8)).astype(np.float32)
    radii = radius * rng.uniform(0.7, 1.2, 3)
    centre = head.point(random_voxel(rng, surface))
    piece = ellipsoid(head.grid, centre, (radii[0], radii[1], radii[2])) < 1
    if rng.random() < 0.5:
        inside &= ~piece
        rim &= ~piece
    else:
        for axis in range(3):
            np.moveaxis(piece, axis, 0)[[0, -1]] = False
        rim |= piece & ~inside


def with_rim(rng: np.random.Generator, data: Field, outline: Outline) -> Field:
    """Skull, fat and dura that a wrong mask takes for brain."""
    grain = 1 + np.float32(0.3) * rng.standard_normal(data.shape, np.float32)
    result: Field = np.where(outline.rim, np.float32(outline.rim_level) * grain, data)
    return result


def taken(rng: np.random.Generator, head: Head, data: Field, settings: GeneratorSettings) -> Field:
    """The brain as another scanner would have shown it.

    Args:
        data: (D, H, W), what is to be seen. Nothing is drawn by what it holds: only the healthy head decides.
    """
    data = _remapped(rng, head, data, settings)
    data = data * np.exp(np.float32(rng.uniform(*settings.bias)) * head.noise(rng, rng.uniform(50, 130)))
    data = _blurred(rng, head, data, settings)
    data = _moved(rng, head, data, settings)
    sigma = np.float32(rng.uniform(*settings.noise) * rng.random())
    real, imaginary = sigma * rng.standard_normal((2, *data.shape), np.float32)
    result: Field = np.sqrt((data + real) ** 2 + imaginary**2)
    return result


def _remapped(rng: np.random.Generator, head: Head, data: Field, settings: GeneratorSettings) -> Field:
    """Other levels of fluid, grey and white matter and of what is brighter, in that order; then a power."""
    levels = head.levels
    old = np.array([0, levels.fluid, levels.grey, levels.white, 1.0])
    steps = np.diff(old)
    if rng.random() < settings.remapped_chance:
        steps = steps * np.exp(rng.normal(0, rng.uniform(*settings.remapped), 4))
        if rng.random() < settings.flat_chance:
            steps[2] *= rng.uniform(-0.1, 0.4)
    new = np.concatenate([[0], np.cumsum(steps)]) / steps.sum()
    # further on as between the last two, since enhancement may be brighter than all of a healthy brain
    old, new = np.append(old, 2), np.append(new, 1 + (new[-1] - new[-2]) / (old[-1] - old[-2]))
    power = np.exp(rng.choice((-1, 1)) * rng.uniform(*settings.gamma))
    result: Field = (np.interp(data, old, new).clip(0) ** power).astype(np.float32)
    return result


def _blurred(rng: np.random.Generator, head: Head, data: Field, settings: GeneratorSettings) -> Field:
    from scipy import ndimage

    if rng.random() < settings.smooth_chance:
        sigma = rng.uniform(*settings.smooth_mm)
        data = ndimage.gaussian_filter(data, [sigma / mm for mm in head.spacing], truncate=3)
    if rng.random() < settings.slices_chance:
        axis, thick = int(rng.integers(3)), rng.uniform(*settings.slice_mm)
        pitch = thick * (1 + rng.uniform(*settings.gap))
        if pitch > head.spacing[axis]:
            weights = _slices(data.shape[axis], head.spacing[axis], thick, pitch, pitch * rng.random())
            data = np.moveaxis(np.tensordot(weights, data, (1, axis)), 0, axis)
    return data


def _slices(count: int, mm: float, thick: float, pitch: float, first: float) -> NDArray[np.float32]:
    """(count, count): from a fine axis to one of thick slices and, linearly, back."""
    fine = mm * np.arange(count)
    coarse = np.arange(first, fine[-1] + pitch, pitch)
    down = np.exp(-0.5 * ((coarse[:, None] - fine) / max(0.4 * thick, 0.3 * mm)) ** 2) + 1e-12
    down /= down.sum(axis=1, keepdims=True)
    up = np.maximum(1 - np.abs(fine.clip(coarse[0], coarse[-1])[:, None] - coarse) / pitch, 0)
    return (up @ down).astype(np.float32)


def _moved(rng: np.random.Generator, head: Head, data: Field, settings: GeneratorSettings) -> Field:
    """Ghosts, and the blur of a head that moved."""
    from scipy import ndimage

    if rng.random() < settings.ghost_chance:
        axis = int(rng.integers(3))
        far = max(data.shape[axis] // int(rng.integers(2, 6)), 1)
        ghost = np.roll(data, far, axis) + np.roll(data, -far, axis)
        data = data + np.float32(rng.uniform(*settings.ghost) / 2) * ghost
    if rng.random() < settings.motion_chance:
        shift = [rng.normal(0, rng.uniform(*settings.motion_mm)) / mm for mm in head.spacing]
        data = (data + ndimage.shift(data, shift, order=1)) / 2
    return data


def normalised(
    rng: np.random.Generator, head: Head, data: Field, inside: Mask, settings: GeneratorSettings
) -> Field:
    """As preprocessing scales a brain: percentiles to where those of the healthy head are, clipped, 0 outside.

    The head came with its percentiles not quite at 0 and 1, since preprocessing scales before it resamples: a brain in
    which nothing was changed comes back as it was.
    """
    values = data[inside]
    low, high = percentile_range(values, _PERCENTILES)
    if rng.random() < settings.saturated_chance:
        high = float(np.quantile(values, rng.uniform(0.93, 0.99)))
    bottom, top = percentile_range(head.data[head.inside], _PERCENTILES)
    if rng.random() < settings.dimmed_chance:
        top *= rng.uniform(*settings.dimmed)
    scale = (top - bottom) / max(high - low, 1e-6)
    result = np.zeros_like(data)
    result[inside] = ((values - np.float32(low)) * np.float32(scale) + np.float32(bottom)).clip(_LEAST, 1)
    return result
