"""Synthetic lesions in real brains: for tests of learning, never for a claim about patients.

Pretraining draws others (`ssclf.domain.generator`), so that what it brings can be measured with these.

The lesions follow what tells gliomas apart on contrast-enhanced T1: a high grade one has a bright, broken ring around
a dark core, within oedema; a low grade one is a blurred patch darker than its surroundings that does not enhance.
Intensities are taken from the brain itself, and its histogram stays as it was, since the sum of what is bright or dark
must not tell what the brain holds. The healthy class is the same brain through the same function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssclf.config import check_choice
from ssclf.domain.masks import depth_mm
from ssclf.domain.random_fields import Field, Grid, ellipsoid, grid_of, mix, noise, soft_step
from ssclf.domain.synthetic import SyntheticLabel
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import ConfigError

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class LesionRanges:
    """What a lesion is drawn from, uniformly.

    Attributes:
        radius_mm: of a ball of that size; each axis is longer or shorter by up to a fifth.
        edge: width of the transition, as a share of the radius.
        ragged: how much the outline wanders, as a share of the radius.
        depth: how dark the patch or the core is: 0 as grey matter, 1 as fluid.
        ring: how bright the ring is: 0 as white matter, 1 as the brightest of the brain.
        ring_width: as a share of the radius.
        oedema: how far it reaches beyond the lesion, as a share of the radius.
    """

    radius_mm: Range = (16.0, 30.0)
    edge: Range = (0.1, 0.3)
    ragged: Range = (0.06, 0.2)
    depth: Range = (0.5, 1.0)
    ring: Range = (0.6, 1.0)
    ring_width: Range = (0.25, 0.45)
    oedema: Range = (0.2, 0.7)

    def __post_init__(self) -> None:
        for name, (low, high) in vars(self).items():
            if not 0 <= low <= high:
                raise ConfigError(
                    f"{name}: expected a range from 0 on, lower end first, found {(low, high)}."
                )


def insert_lesion(
    brain: Volume, label: SyntheticLabel, rng: np.random.Generator, ranges: LesionRanges | None = None
) -> tuple[Volume, Mask]:
    """Put a lesion anywhere into a healthy brain.

    Args:
        brain: data (1, D, H, W), 0 around a stripped T1 brain, above 0 inside; any axes and spacing.
        label: "healthy" draws as many random numbers and changes nothing.
        rng: the only source of randomness; the same draw for every label puts the lesion at the same place.

    Returns:
        the volume, float32, with the same histogram inside the brain and the same background; and (D, H, W), where the
        lesion without its oedema is.

    Raises:
        ConfigError: an unknown label, or a brain in which the lesion has no room.
    """
    check_choice("label", label, SyntheticLabel)
    ranges = ranges or LesionRanges()
    data = np.asarray(brain.data[0], np.float32)
    inside = data > 0
    place, texture = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=2))
    drawn = {name: float(place.uniform(*limits)) for name, limits in vars(ranges).items()}
    grid = grid_of(brain)
    shape = _outline(place, grid, inside, brain, drawn)
    fluid, grey, white, brightest = map(float, np.quantile(data[inside], (0.04, 0.4, 0.8, 0.995)))
    levels = {
        "dark": grey - drawn["depth"] * (grey - fluid),
        "oedema": grey - 0.3 * (grey - fluid),
        "ring": white + drawn["ring"] * (brightest - white),
    }
    changed = data
    if label == "HGG":
        changed = _high_grade(texture, grid, data, shape, drawn, levels)
    elif label == "LGG":
        mottled = levels["dark"] + np.float32(0.15 * (grey - fluid)) * noise(texture, grid, 10)
        changed = mix(data, soft_step(1 - shape, drawn["edge"]), mottled)
    result = np.zeros_like(data)
    result[inside] = _with_histogram_of(data[inside], changed[inside])
    return Volume(result[None], brain.affine), inside & (shape < 1) & (label != "healthy")


def _high_grade(
    rng: np.random.Generator,
    grid: Grid,
    data: Field,
    shape: Field,
    drawn: dict[str, float],
    levels: dict[str, float],
) -> Field:
    width = drawn["ring_width"]
    reach = 1 + drawn["oedema"] + np.float32(0.15) * noise(rng, grid, 14)
    result = mix(data, 0.9 * soft_step(reach - shape, drawn["edge"]), levels["oedema"])
    result = mix(result, soft_step(1 - shape, drawn["edge"] / 2), levels["dark"])
    ring = soft_step(width / 2 - np.abs(shape - (1 - width / 2)), drawn["edge"] / 2)
    ring *= soft_step(noise(rng, grid, 16) + np.float32(1.2), 0.3)  # broken in places
    return mix(result, ring, levels["ring"])


def _outline(
    rng: np.random.Generator, grid: Grid, inside: Mask, brain: Volume, drawn: dict[str, float]
) -> Field:
    """Distance from the lesion's centre as a share of its radius, which wanders."""
    radius = drawn["radius_mm"]
    depth = depth_mm(inside, brain.spacing)
    candidates = np.argwhere(depth >= min(0.6 * radius, 0.7 * float(depth.max(initial=0))))
    if not inside.any() or not len(candidates):
        raise ConfigError("lesion: expected a brain with voxels above 0, found none.")
    d, h, w = candidates[int(rng.random() * len(candidates))]
    centre = float(grid[0][d, 0, 0]), float(grid[1][h, 0]), float(grid[2][w])
    rz, ry, rx = radius * rng.uniform(0.8, 1.2, 3)
    return ellipsoid(grid, centre, (rz, ry, rx)) + np.float32(drawn["ragged"]) * noise(rng, grid, 14)


def _with_histogram_of(values: Field, changed: Field) -> Field:
    """Values (n,) in the order of the changed ones."""
    result = np.empty_like(values)
    result[np.argsort(changed, kind="stable")] = np.sort(values)
    return result
