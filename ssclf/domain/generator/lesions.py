"""Gliomas as T1 shows them, with and without contrast agent: where, of which outline, and what is within."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssclf.domain.generator.head import Head
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.domain.generator.shapes import Point, Push, random_voxel, spot, tilted_ellipsoid
from ssclf.domain.random_fields import Field, mix, soft_step
from ssclf.domain.volume import Mask

_FARTHEST_PUSH_MM = 12.0


@dataclass(frozen=True)
class Focus:
    """Attributes:
    far: how far it pushes what is around it, in mm.
    """

    centre: Point
    radius: float
    far: float

    @property
    def push(self) -> Push:
        return self.centre, self.radius, self.far


def place_foci(
    rng: np.random.Generator, head: Head, visible: Mask, settings: GeneratorSettings
) -> list[Focus]:
    """Where lesions are to be, in what is seen of the brain; of no label, so that place and size tell none."""
    count = 1 + int(rng.choice(len(settings.foci), p=settings.foci))
    depth = np.where(visible, head.depth, 0)
    foci: list[Focus] = []
    for number in range(count):
        least, largest = settings.radius_mm
        radius = least + (largest - least) * rng.random() ** 0.7
        if number:
            radius = max(radius * rng.uniform(0.3, 0.7), least)
        far_in = min(0.5 * radius, 0.6 * float(depth.max()))
        weights = (depth >= far_in).astype(np.float32)
        # in the hemispheres rather than in the middle, in the posterior fossa or in fluid
        weights *= (1 - np.float32(0.9) * head.fluid()) * (0.3 + 0.7 * (np.abs(head.across) > 12))
        weights *= 0.15 + 0.85 * (head.height > 0.3)
        centre = head.point(random_voxel(rng, weights))
        far = min(rng.uniform(*settings.mass_effect) * radius, _FARTHEST_PUSH_MM)
        foci.append(Focus(centre, radius, far))
    return foci


def outline(
    rng: np.random.Generator, head: Head, white: Field, focus: Focus, settings: GeneratorSettings
) -> Field:
    """About how far a voxel is outside the lesion (D, H, W), in mm; below 0 within.

    A union of ellipsoids, distorted by noise of two sizes and along white matter, at the threshold that gives the
    volume of a ball of that radius.
    """
    radius = focus.radius
    near = np.full(head.data.shape, np.inf, np.float32)
    for _ in range(int(rng.integers(1, settings.blobs + 1))):
        z, y, x = (middle + radius * rng.normal(0, 0.45) for middle in focus.centre)
        near = np.minimum(near, tilted_ellipsoid(rng, head, (z, y, x), radius * rng.uniform(0.5, 1.1, 3)))
    coarse, fine = head.noise(rng, 0.8 * radius), head.noise(rng, 0.35 * radius)
    near += np.float32(rng.uniform(*settings.ragged)) * (np.float32(0.7) * coarse + np.float32(0.4) * fine)
    near -= np.float32(rng.uniform(*settings.follows_white)) * white
    if rng.random() < settings.stays_on_side_chance:
        side = np.float32(1 if focus.centre[head.lateral] > head.middle else -1)
        falx = np.float32(rng.uniform(-2, 8)) + np.float32(2) * coarse  # pushed over, and not straight
        near += np.maximum(-side * head.across - falx, 0) * np.float32(1.5 / radius)
    values = near[head.inside]
    voxel = float(np.prod(head.spacing))
    wanted = min(4 / 3 * np.pi * radius**3 / voxel, settings.largest * values.size)
    rank = min(int(max(wanted, 1)), values.size - 1)
    near -= np.partition(values, rank)[rank]
    slope = np.sqrt(sum(part**2 for part in np.gradient(near, *head.spacing)))
    edge = (np.abs(near) < 0.3) & head.inside
    result: Field = near / np.float32(max(slope[edge].mean() if edge.any() else 0, 0.5 / radius))
    return result


def low_grade(
    rng: np.random.Generator,
    head: Head,
    white: Field,
    outside: Field,
    *,
    contrast: bool,
    settings: GeneratorSettings,
) -> Field:
    """A dark patch, even or mottled, whose edge is sharp or blurred.

    Returns:
        data (D, H, W).
    """
    levels = head.levels
    data = head.data
    if rng.random() < settings.low_grade_oedema_chance:
        data = _with_oedema(rng, head, white, outside, reach=rng.uniform(2, 6), dark=rng.uniform(0, 0.3))
    within = _within(head, outside, rng.uniform(*settings.low_grade_edge_mm))
    inner = _mottled(
        rng, head, rng.uniform(*settings.low_grade_dark), rng.uniform(*settings.low_grade_mottled)
    )
    if rng.random() < settings.cyst_chance:
        hole = soft_step(head.noise(rng, 14) - np.float32(0.6), 0.3)
        inner = mix(inner, hole, levels.dark(rng.uniform(0.7, 1)))
    data = mix(data, np.float32(rng.uniform(0.6, 1)) * within, inner)
    enhances = rng.random() < settings.faint_enhancement_chance
    if enhances and contrast:
        patches = soft_step(head.noise(rng, 9) - np.float32(1), 0.4) * within
        data = mix(data, np.float32(0.6) * patches, levels.bright(rng.uniform(-0.2, 0.2)))
    if rng.random() < settings.calcification_chance:
        level = levels.bright(0.2) if rng.random() < 0.3 else 0.5 * levels.fluid
        for _ in range(int(rng.integers(1, 6))):
            centre = head.point(random_voxel(rng, within))
            data = mix(data, spot(head, centre, rng.uniform(1, 4)), level)
    return data


def high_grade(
    rng: np.random.Generator,
    head: Head,
    white: Field,
    outside: Field,
    *,
    contrast: bool,
    settings: GeneratorSettings,
) -> Field:
    """Enhancement about, or in patches within, an uneven dark core; oedema that follows white matter.

    Returns:
        data (D, H, W).
    """
    levels = head.levels
    reach, dark = rng.uniform(*settings.oedema_mm), rng.uniform(*settings.oedema_dark)
    data = _with_oedema(rng, head, white, outside, reach=reach, dark=dark)
    within = _within(head, outside, rng.uniform(0.5, 3))
    core = _mottled(rng, head, rng.uniform(*settings.core_dark), rng.uniform(0.15, 0.4))
    thick = rng.uniform(*settings.ring_mm) * (1 + np.float32(0.4) * head.noise(rng, 14))
    hollow = _within(head, outside + np.maximum(thick, 1), 1)
    kind = rng.choice(("ring", "solid", "patchy"), p=settings.enhancement_chances)
    lumps = head.noise(rng, 9)
    if kind == "ring":
        lit = within * (1 - hollow) * soft_step(lumps + np.float32(rng.uniform(0.6, 2)), 0.4)
    elif kind == "solid":
        hollow = hollow * soft_step(lumps - np.float32(rng.uniform(0.8, 2)), 0.3)
        lit = within * (1 - hollow)
    else:
        hollow = hollow * soft_step(lumps - np.float32(rng.uniform(0, 1)), 0.3)
        lit = within * soft_step(-lumps - np.float32(rng.uniform(0, 0.7)), 0.3)
    necrosis = _mottled(rng, head, rng.uniform(*settings.necrosis_dark), 0.06)
    core = mix(core, hollow, necrosis)
    bright, plain = rng.uniform(*settings.enhancement_bright), rng.uniform(*settings.unenhanced_dark)
    level = levels.bright(bright) if contrast else levels.dark(plain)
    uneven = level + np.float32(0.12 * (levels.white - levels.fluid)) * head.noise(rng, 6)
    data = mix(mix(data, within, core), np.float32(1 if contrast else 0.6) * lit, uneven)
    if rng.random() < settings.haemorrhage_chance:
        clot = within * soft_step(head.noise(rng, 10) - np.float32(rng.uniform(0.8, 1.6)), 0.3)
        data = mix(data, clot, levels.bright(rng.uniform(0, 0.4)))
    return data


def _with_oedema(
    rng: np.random.Generator, head: Head, white: Field, outside: Field, *, reach: float, dark: float
) -> Field:
    """White matter about as dark as grey matter or darker; grey matter and fluid hardly change."""
    fingers = (0.25 + np.float32(1.3) * white) * (1 + np.float32(0.4) * head.noise(rng, 14))
    share = _within(head, outside - np.float32(reach) * fingers, rng.uniform(1.5, 5))
    share *= np.float32(rng.uniform(0.6, 1)) * (1 - head.fluid())
    level, left = np.float32(head.levels.dark(dark)), np.float32(rng.uniform(0.1, 0.5))
    uneven = np.float32(0.1 * (head.levels.grey - head.levels.fluid)) * head.noise(rng, 10)
    return mix(head.data, share, np.minimum(head.data, level + left * (head.data - level) + uneven))


def _within(head: Head, outside: Field, edge: float) -> Field:
    return soft_step(-outside, max(edge, 0.7 * head.finest)) * head.inside


def _mottled(rng: np.random.Generator, head: Head, dark: float, amount: float) -> Field:
    """A dark tissue, uneven by that share of the range from grey matter to fluid; grainy as any tissue is."""
    levels = head.levels
    length = rng.uniform(5, 16)
    grain = rng.standard_normal(head.data.shape, np.float32) * np.float32(rng.uniform(0, 0.06))
    uneven = np.float32(amount) * head.noise(rng, length) + grain
    result: Field = np.maximum(
        levels.dark(dark) + np.float32(levels.grey - levels.fluid) * uneven, 0.5 * levels.fluid
    )
    return result
