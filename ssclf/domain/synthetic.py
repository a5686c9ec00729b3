"""Synthetic brain-like volumes: for the demo and for tests of learning, never for a claim about patients.

A stripped head with cortex, ventricles, vessels, a bias field and noise, of varying size, shape and contrast. What
tells the classes apart is what tells them apart on contrast-enhanced T1: HGG has a bright, broken ring around a dark
core, within oedema; LGG a faint, blurred patch that does not enhance; healthy neither. Nothing else may give the
class away, so all else is drawn without looking at the label: vessels make up for what the ring brightens, and the
intensity histogram of every brain is set to one drawn at random, whatever the brain holds.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssclf.config import check_choice
from ssclf.domain.geometry import reorient
from ssclf.domain.random_fields import Field, Grid, ellipsoid, mix, noise, soft_step
from ssclf.domain.volume import Mask, Spacing, Volume
from ssclf.errors import ConfigError

SyntheticLabel = Literal["LGG", "HGG", "healthy"]

# Intensities before the histogram is set: only their order and rough distances matter.
_FLUID, _GREY, _WHITE, _ENHANCING = 0.25, 0.75, 1.0, 1.6


def make_synthetic_volume(
    label: SyntheticLabel,
    rng: np.random.Generator,
    *,
    spacing: Spacing | None = None,
    difficulty: float = 0.0,
) -> Volume:
    """Draw a volume.

    Args:
        label: what the brain holds.
        rng: the only source of randomness.
        spacing: voxel size in mm on (D, H, W); by default three numbers drawn from 2.5 to 4.
        difficulty: from 0 (large, clear lesions) to 1 (small, faint ones; more noise).

    Returns:
        data (1, D, H, W) float32, D, H, W growing towards S, A, R, exactly 0 around a brain of 1 to 2 litres
        and above 0 inside it.

    Raises:
        ConfigError: an unknown label, or a difficulty out of range.
    """
    check_choice("label", label, SyntheticLabel)
    if not 0 <= difficulty <= 1:
        raise ConfigError(f"difficulty: expected 0 to 1, found {difficulty}.")
    # One generator for each part: the same seed gives the same brain, whatever the label.
    anatomy, disease, vessels, scanner = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=4))
    if spacing is None:
        dz, dy, dx = scanner.uniform(2.5, 4, 3)
        spacing = float(dz), float(dy), float(dx)
    radii = anatomy.uniform((56, 76, 60), (66, 90, 70))  # z, y, x in mm
    grid, affine = _grid(anatomy, radii, spacing)
    depth = _depth(anatomy, grid, radii)
    inside = depth > 0
    tissue = _tissue(anatomy, grid, radii, depth)
    ring = np.zeros(inside.shape, bool)
    if label == "HGG":
        tissue, ring = _add_high_grade(disease, grid, depth, tissue, difficulty)
    elif label == "LGG":
        tissue = _add_low_grade(disease, grid, depth, tissue, difficulty)
    tissue = _add_vessels(vessels, grid, depth, tissue, ring & inside)
    tissue += 0.03 * noise(scanner, grid, 5)
    values = _set_histogram(scanner, tissue[inside])
    values *= np.exp(scanner.uniform(0.03, 0.1) * noise(scanner, grid, 60)[inside])  # bias field
    values += (
        scanner.uniform(0.02, 0.05) * (1 + difficulty) * scanner.standard_normal(values.size, np.float32)
    )
    values = np.maximum(values, 0.02) * np.exp(scanner.uniform(np.log(200), np.log(3000)))
    data = np.zeros(inside.shape, np.float32)
    data[inside] = values
    return Volume(data[None], affine)


def vary_storage(volume: Volume, rng: np.random.Generator) -> Volume:
    """The same volume as any scanner or archive might have stored it.

    Args:
        volume: data (C, D, H, W), background 0, above 0 elsewhere.
        rng: draws one of the 48 orders and directions of the axes, for every second volume a tilt of up to 10
            degrees about each axis, and the data type.

    Returns:
        data of uint8, int16, uint16 or float32, still 0 in the background only.
    """
    axes = rng.permutation(["SI", "AP", "RL"])
    stored = reorient(volume, "".join(str(directions[rng.integers(2)]) for directions in axes))
    affine = stored.affine
    if rng.random() < 0.5:
        affine = _rotation(np.radians(rng.uniform(-10, 10, 3))) @ affine
    dtype = np.dtype(rng.choice(["uint8", "int16", "uint16", "float32"]))
    data = stored.data
    if dtype.kind in "iu":
        if dtype == np.uint8:
            data = data * (255 / data.max())
        data = np.where(data > 0, np.rint(data).clip(1), 0)
    return Volume(np.ascontiguousarray(data, dtype), affine)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4): turns about x, then y, then z, in radians."""
    result = np.eye(4)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(4)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[second, first], turn[first, second] = np.sin(angle), -np.sin(angle)
        result = turn @ result
    return result


def _grid(
    rng: np.random.Generator, radii: NDArray[np.float64], spacing: Spacing
) -> tuple[Grid, NDArray[np.float64]]:
    low = -1.15 * radii - rng.uniform(4, 14, 3)
    high = 1.05 * radii + rng.uniform(4, 14, 3)
    low[0] -= 0.25 * radii[0]  # cerebellum and brain stem
    counts = np.ceil((high - low) / spacing).astype(int)
    z, y, x = (
        (start + step * np.arange(count)).astype(np.float32)
        for start, step, count in zip(low, spacing, counts, strict=True)
    )
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag(spacing[::-1]))
    affine[:3, 3] = low[::-1]
    return (z[:, None, None], y[:, None], x), affine


def _depth(rng: np.random.Generator, grid: Grid, radii: NDArray[np.float64]) -> Field:
    """Rough distance below the brain's surface in mm; negative outside."""
    z = grid[0]
    rz, ry, rx = radii
    cerebrum = (1 - ellipsoid(grid, (0, 0, 0), (rz, ry, rx))) * rx
    cerebrum = np.minimum(cerebrum, z + rng.uniform(0.5, 0.6) * rz)  # flat base
    cerebellum = (1 - ellipsoid(grid, (-0.7 * rz, -0.5 * ry, 0), (0.45 * rz, 0.4 * ry, 0.7 * rx))) * 0.45 * rz
    stem = (1 - ellipsoid(grid, (-0.8 * rz, -0.15 * ry, 0), (0.5 * rz, 13, 14))) * 13
    depth = np.maximum(np.maximum(cerebrum, cerebellum), stem)
    depth += rng.uniform(1, 3) * noise(rng, grid, 30) + rng.uniform(0.8, 1.8) * noise(rng, grid, 8)
    air = np.pad(np.zeros([n - 2 for n in depth.shape], bool), 1, constant_values=True)
    depth[air] = -1  # whatever the noise
    return depth


def _tissue(rng: np.random.Generator, grid: Grid, radii: NDArray[np.float64], depth: Field) -> Field:
    """White and grey matter, sulci, fissure and ventricles."""
    z, _, x = grid
    rz, ry, rx = radii
    folds = noise(rng, grid, 13)
    tissue = _WHITE + 0.02 * noise(rng, grid, 20)
    cortex = soft_step(rng.uniform(6, 9) + 4 * folds - depth, 2)
    tissue = mix(tissue, cortex, _GREY + 0.03 * folds)
    for side in (-1, 1):
        nuclei = ellipsoid(grid, (-0.02 * rz, 0.05 * ry, side * 0.3 * rx), (0.2 * rz, 0.25 * ry, 0.16 * rx))
        tissue = mix(tissue, soft_step(1 - nuclei, 0.2), 0.5 * (_GREY + _WHITE))
    sulci = soft_step(-folds - rng.uniform(0.7, 1.1), 0.3) * soft_step(rng.uniform(9, 14) - depth, 5)
    tissue = mix(tissue, sulci, _FLUID)
    fissure = np.exp(-((x / 2) ** 2)) * soft_step(18 - depth, 6) * soft_step(z + 0.2 * rz, 5)
    tissue = mix(tissue, fissure, _FLUID)
    size = rng.uniform(0.7, 2)
    shift = rng.normal(0, 2)
    for side in (-1, 1):
        own = size * rng.uniform(0.85, 1.15)
        body = ellipsoid(
            grid, (0.15 * rz, -0.05 * ry, shift + side * 0.17 * rx), (8 * own, 0.36 * ry, 6 * own)
        )
        horn = ellipsoid(
            grid, (-0.1 * rz, -0.3 * ry, shift + side * 0.33 * rx), (11 * own, 14 * own, 6 * own)
        )
        ventricle = np.minimum(body, horn) + 0.08 * noise(rng, grid, 15)
        tissue = mix(tissue, soft_step(1 - ventricle, 0.15), _FLUID)
    third = ellipsoid(grid, (-0.1 * rz, 0, shift), (12, 14, 2.5 * size))
    return mix(tissue, soft_step(1 - third, 0.3), _FLUID)


def _lesion(rng: np.random.Generator, grid: Grid, depth: Field, radius: float) -> Field:
    """Distance from the centre of an irregular lesion as a share of its radius, anywhere inside the brain."""
    candidates = np.argwhere(depth > min(0.7 * radius, 0.8 * float(depth.max())))
    d, h, w = candidates[rng.integers(len(candidates))]
    centre = float(grid[0][d, 0, 0]), float(grid[1][h, 0]), float(grid[2][w])
    rz, ry, rx = radius * rng.uniform(0.85, 1.2, 3)
    return ellipsoid(grid, centre, (rz, ry, rx)) + np.float32(0.12) * noise(rng, grid, 14)


def _add_high_grade(
    rng: np.random.Generator, grid: Grid, depth: Field, tissue: Field, difficulty: float
) -> tuple[Field, Mask]:
    """A dark core, a bright broken ring, oedema; and where the ring is."""
    radius = rng.uniform(24, 32) * (1 - 0.45 * difficulty)
    lesion = _lesion(rng, grid, depth, radius)
    oedema = soft_step(rng.uniform(1.4, 1.8) + 0.2 * noise(rng, grid, 14) - lesion, 0.1)
    tissue = mix(tissue, (0.95 - 0.4 * difficulty) * oedema, 0.5)
    tissue = mix(tissue, soft_step(1 - lesion, 0.1), _FLUID + 0.1)
    inner = rng.uniform(0.6, 0.72)
    ring = soft_step((1 - inner) / 2 - np.abs(lesion - (1 + inner) / 2), 0.08)
    ring *= soft_step(noise(rng, grid, 16) + 1.5 - 0.7 * difficulty, 0.3)  # broken in places
    return mix(tissue, ring, _ENHANCING - 0.2 * difficulty), ring > 0.5


def _add_low_grade(
    rng: np.random.Generator, grid: Grid, depth: Field, tissue: Field, difficulty: float
) -> Field:
    """A patch darker than white and grey matter, brighter than fluid, with blurred edges."""
    radius = rng.uniform(30, 38) * (1 - 0.4 * difficulty)
    lesion = _lesion(rng, grid, depth, radius)
    value = rng.uniform(0.36, 0.46) + 0.04 * noise(rng, grid, 10)
    return mix(tissue, (1 - 0.5 * difficulty) * soft_step(1 - lesion, 0.25), value)


def _add_vessels(rng: np.random.Generator, grid: Grid, depth: Field, tissue: Field, ring: Mask) -> Field:
    """Bright tubes near the surface, so many that ring and vessels together do not depend on the label."""
    tubes = noise(rng, grid, 40) ** 2 + noise(rng, grid, 40) ** 2 + 0.004 * np.abs(depth)
    inside = depth > 0
    wanted = rng.uniform(0.04, 0.06) * np.count_nonzero(inside) - np.count_nonzero(ring)
    share = max(wanted / np.count_nonzero(inside), 0.004)
    limit = float(np.quantile(tubes[inside], share))
    return mix(tissue, soft_step(1 - tubes / np.float32(limit), 0.3), _ENHANCING)


def _set_histogram(rng: np.random.Generator, values: Field) -> Field:
    """Replace values (n,) by those of the same rank in a histogram drawn at random."""
    ranks = np.array([0, 0.03, 0.1, 0.2, 0.4, 0.55, 0.8, 0.94, 0.965, 1])
    levels = np.array([0.22, 0.27, 0.5, 0.67, 0.77, 0.87, 1, 1.1, 1.3, 1.6])
    ranks[1:-1] += rng.uniform(-0.01, 0.01, 8)
    levels += np.cumsum(rng.uniform(-0.03, 0.03, 10))
    result = np.empty_like(values)
    result[np.argsort(values)] = np.interp(np.linspace(0, 1, values.size), ranks, np.sort(levels))
    return result
