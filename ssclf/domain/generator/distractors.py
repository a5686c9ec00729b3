"""What healthy brains show as well: drawn for every label alike, so that bright or dark alone does not mean tumour."""

from __future__ import annotations

import numpy as np

from ssclf.domain.generator.head import Head
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.domain.generator.shapes import Push, displaced, random_voxel, spot, thin
from ssclf.domain.random_fields import Field, ellipsoid, mix, soft_step


def deform(rng: np.random.Generator, head: Head, pushes: list[Push], settings: GeneratorSettings) -> Field:
    """The brain's data, moved at random, and away from lesions.

    Half of the brains stay on their own grid where there is no lesion: a network that has seen no other takes sharp
    edges for signs (docs/training.md).
    """
    wander: list[Field] = []
    if rng.random() < settings.deformed_chance:
        far = np.float32(rng.uniform(*settings.deformed_mm) / 2)
        wander = [far * head.noise(rng, 40) for _ in range(3)]
    if rng.random() < settings.bulge_chance:
        radius = rng.uniform(*settings.radius_mm)
        centre = head.point(random_voxel(rng, head.inside.astype(np.float32)))
        pushes = [*pushes, (centre, radius, min(0.3 * radius, 8) * rng.uniform(-1, 1))]
    return displaced(head, pushes, wander)


def without_agent(rng: np.random.Generator, head: Head, settings: GeneratorSettings) -> Field:
    """Atrophy, cavities, dark patches, bright spots, shading: the brain's data with what is drawn of them."""
    chances = (
        (settings.atrophy_chance, _atrophy),
        (settings.dark_patches_chance, _dark_patches),
        (settings.bright_spots_chance, _bright_spots),
        (settings.cavity_chance, _cavity),
        (settings.shading_chance, _shading),
    )
    for chance, add in chances:
        if rng.random() < chance:
            head = head.with_data(add(rng, head))
    return head.data


def _atrophy(rng: np.random.Generator, head: Head) -> Field:
    """Fluid takes the place of tissue that it touches: in the ventricles, in the sulci, or in both."""
    from scipy import ndimage

    near = ndimage.gaussian_filter(head.fluid(), [rng.uniform(2, 5) / mm for mm in head.spacing], truncate=3)
    centre = soft_step(head.depth - np.float32(22), 8)
    where = (centre, 1 - centre, np.float32(1))[int(rng.integers(3))]
    share = where * soft_step(near - np.float32(rng.uniform(0.25, 0.5)), 0.2) * head.inside
    return mix(head.data, share, np.minimum(head.data, np.float32(head.levels.fluid)))


def _dark_patches(rng: np.random.Generator, head: Head) -> Field:
    """Small vessel disease: small patches of white matter as dark as grey matter, or darker; lacunes."""
    data, deep = head.data, head.white() * (head.depth > 8)
    for _ in range(int(rng.integers(1, 16))):
        centre = head.point(random_voxel(rng, deep))
        data = mix(data, spot(head, centre, rng.uniform(2, 6)), head.levels.dark(rng.uniform(0, 0.8)))
    return data


def _bright_spots(rng: np.random.Generator, head: Head) -> Field:
    """Fat, slow flow, calcium, small bleeds."""
    data, anywhere = head.data, head.inside.astype(np.float32)
    for _ in range(int(rng.integers(1, 7))):
        centre = head.point(random_voxel(rng, anywhere))
        data = mix(data, spot(head, centre, rng.uniform(1, 5)), head.levels.bright(rng.uniform(0.1, 0.8)))
    return data


def _cavity(rng: np.random.Generator, head: Head) -> Field:
    """Fluid that opens to the surface, as after a resection, an injury or an old infarct."""
    surface = ((head.depth > 0) & (head.depth < 12)).astype(np.float32)
    radius = rng.uniform(8, 25)
    radii = radius * rng.uniform(0.7, 1.2, 3)
    centre = head.point(random_voxel(rng, surface))
    outside = ellipsoid(head.grid, centre, (radii[0], radii[1], radii[2])) - 1
    outside += np.float32(0.2) * head.noise(rng, 0.6 * radius)
    share = soft_step(-outside * np.float32(radius), max(rng.uniform(0.5, 2), 0.5 * head.finest))
    return mix(head.data, share * head.inside, head.levels.dark(rng.uniform(0.9, 1.1)))


def _shading(rng: np.random.Generator, head: Head) -> Field:
    """A place that a coil or metal makes darker or brighter; what is there stays to be seen."""
    z, y, x = head.point(random_voxel(rng, head.inside.astype(np.float32)))
    wide = rng.uniform(15, 35)
    shape = np.exp(-0.5 * ellipsoid(head.grid, (z, y, x), (wide, wide, wide)) ** 2)
    result: Field = head.data * (1 + np.float32(rng.choice((-1, 1)) * rng.uniform(0.1, 0.25)) * shape)
    return result


def enhance(rng: np.random.Generator, head: Head, *, contrast: bool, settings: GeneratorSettings) -> Field:
    """Vessels, dura and choroid plexus with contrast agent; some of the vessels without."""
    levels, strength = head.levels, 1.0 if contrast else rng.uniform(*settings.leftover_vessel)
    level = levels.bright(rng.uniform(0.2, 1.2))
    data = head.data
    first, second = head.noise(rng, 22), head.noise(rng, 22)
    # where two smooth fields are both near 0 is a tangle of curves; in fissures and near the surface, as arteries and
    # cortical veins
    near = soft_step(15 - head.depth, 8) * np.float32(0.7) + head.fluid() * np.float32(0.6)
    tubes = thin(head, np.float32(18) * np.sqrt(first**2 + second**2), rng.uniform(1.5, 4.5))
    data = mix(data, np.float32(strength) * tubes * near.clip(0, 1) * head.inside, level)
    if not contrast:
        return data
    dura = thin(head, head.depth - np.float32(0.3 * head.finest), rng.uniform(0.5, 2.5))
    dura *= soft_step(head.noise(rng, 30) + np.float32(rng.uniform(-1, 0.8)), 0.5)
    falx = thin(head, np.broadcast_to(head.across, head.data.shape), rng.uniform(0.5, 2.5))
    falx *= soft_step(head.noise(rng, 40) - np.float32(rng.uniform(-0.5, 1)), 0.5) * head.fluid()
    data = mix(data, np.maximum(dura, falx) * head.inside, level)
    plexus = soft_step(head.depth - np.float32(30), 6) * head.fluid()
    plexus *= soft_step(head.noise(rng, 6) - np.float32(rng.uniform(1, 2)), 0.4)
    return mix(data, plexus * np.float32(rng.uniform(0.2, 0.7)), level)
