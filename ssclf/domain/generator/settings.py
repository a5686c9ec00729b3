"""What synthetic brains for pretraining are drawn from. The literature behind each choice: docs/generator.md."""

from __future__ import annotations

from dataclasses import dataclass

from ssclf.errors import ConfigError

#: Of what `draw_brain` makes of the same seed: a run goes on with its own only. Raise it with any change of it.
VERSION = 1
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class GeneratorSettings:
    """Ranges are drawn from uniformly; a `_chance` is that of each volume. No label has other values, unless named so.

    Lengths are in mm. Levels run from 0 to 1 between two tissues of the brain itself: "dark" from grey matter to fluid,
    "bright" from white matter up by as much as white matter is above fluid.

    Attributes:
        foci: chances of one lesion, two, three, …
        radius_mm: of a ball of the first lesion's volume, large ones more often; further ones are 0.3 to 0.7 times as
            large.
        largest: no lesion fills more of the brain than this.
        blobs: the most ellipsoids that an outline is the union of.
        ragged: how far the outline wanders, as a share of the radius.
        follows_white: how far it runs along white matter, as a share of the radius.
        stays_on_side_chance: the midline is hard to cross; else as easy as any place.
        mass_effect: how far the surroundings are pushed away, as a share of the radius, 12 mm at most.
        core_dark, necrosis_dark, enhancement_bright, enhancement_chances, ring_mm: of HGG; the chances are those of a
            ring, a solid and a patchy enhancement.
        unenhanced_dark: what would enhance, in a volume without contrast agent.
        oedema_mm, oedema_dark: of HGG.
        haemorrhage_chance: of HGG.
        low_grade_dark, low_grade_edge_mm, low_grade_mottled, low_grade_oedema_chance, calcification_chance,
            cyst_chance, faint_enhancement_chance: of LGG.
        contrast_chance: the volume is taken after contrast agent, whatever it holds.
        leftover_vessel: brightness of vessels without contrast agent, as a share.
        deformed_chance, deformed_mm: a smooth random displacement.
        bulge_chance: a place is pushed apart or drawn together, with nothing there.
        atrophy_chance, dark_patches_chance, bright_spots_chance, cavity_chance, shading_chance: other findings.
        remapped_chance, remapped: other levels of fluid, grey and white matter, in that order still; the deviation of
            the steps between them, as natural logarithms.
        flat_chance: of these, grey and white matter nearly alike.
        gamma: of the power, as a natural logarithm, either sign.
        bias: of a smooth factor, as a natural logarithm's deviation.
        noise: its deviation, where 1 is the brain's range.
        smooth_chance, smooth_mm: deviation of a Gaussian.
        slices_chance, slice_mm, gap: thickness along a random axis, and what lies between as a share of it.
        ghost_chance, ghost, motion_chance, motion_mm: a shifted copy's strength; how far the head moved.
        saturated_chance: the brightest are cut off.
        dimmed_chance, dimmed: all is darker by that factor, as where bright vessels of a few stored voxels set the
            percentile and the coarser grid shows none of them.
        cut_chance, cut_mm: a brain that the field of view cuts off at the top or bottom.
        rim_chance, rim_mm: a brain mask that is too small or too large in places.
        chunk_chance, chunk_mm: a piece of brain is missing at the surface, or one of what is around it is left; its
            radius.
    """

    foci: tuple[float, ...] = (0.82, 0.13, 0.05)
    radius_mm: Range = (8.0, 38.0)
    largest: float = 0.14
    blobs: int = 4
    ragged: Range = (0.1, 0.5)
    follows_white: Range = (0.0, 0.6)
    stays_on_side_chance: float = 0.8
    mass_effect: Range = (0.0, 0.4)

    core_dark: Range = (0.15, 0.55)
    necrosis_dark: Range = (0.45, 1.0)
    enhancement_bright: Range = (0.15, 0.8)
    enhancement_chances: tuple[float, float, float] = (0.55, 0.15, 0.3)
    ring_mm: Range = (2.0, 9.0)
    unenhanced_dark: Range = (-0.1, 0.35)
    oedema_mm: Range = (4.0, 22.0)
    oedema_dark: Range = (0.1, 0.5)
    haemorrhage_chance: float = 0.15

    low_grade_dark: Range = (0.05, 0.85)
    low_grade_edge_mm: Range = (1.0, 7.0)
    low_grade_mottled: Range = (0.0, 0.3)
    low_grade_oedema_chance: float = 0.15
    calcification_chance: float = 0.12
    cyst_chance: float = 0.1
    faint_enhancement_chance: float = 0.08

    contrast_chance: float = 0.6
    leftover_vessel: Range = (0.0, 0.35)
    deformed_chance: float = 0.5
    deformed_mm: Range = (1.0, 5.0)
    bulge_chance: float = 0.25
    atrophy_chance: float = 0.3
    dark_patches_chance: float = 0.3
    bright_spots_chance: float = 0.3
    cavity_chance: float = 0.06
    shading_chance: float = 0.2

    remapped_chance: float = 0.8
    remapped: Range = (0.1, 0.4)
    flat_chance: float = 0.25
    gamma: Range = (0.0, 0.3)
    bias: Range = (0.0, 0.16)
    noise: Range = (0.0, 0.04)
    smooth_chance: float = 0.25
    smooth_mm: Range = (0.5, 2.5)
    slices_chance: float = 0.35
    slice_mm: Range = (2.0, 8.0)
    gap: Range = (0.0, 0.4)
    ghost_chance: float = 0.12
    ghost: Range = (0.02, 0.1)
    motion_chance: float = 0.12
    motion_mm: Range = (1.0, 5.0)
    saturated_chance: float = 0.12
    dimmed_chance: float = 0.3
    dimmed: Range = (0.6, 0.95)
    cut_chance: float = 0.12
    cut_mm: Range = (5.0, 35.0)
    rim_chance: float = 0.5
    rim_mm: Range = (0.5, 5.0)
    chunk_chance: float = 0.2
    chunk_mm: Range = (6.0, 18.0)

    def __post_init__(self) -> None:
        """Raises:
        ConfigError: a range whose ends are the wrong way round, or chances that are none.
        """
        for name, value in vars(self).items():
            if "chance" in name or name == "foci":
                chances = value if isinstance(value, tuple) else (value,)
                several = isinstance(value, tuple)
                if min(chances) < 0 or (abs(sum(chances) - 1) > 1e-6 if several else chances[0] > 1):
                    what = "chances that add up to 1" if several else "a chance from 0 to 1"
                    raise ConfigError(f"{name}: expected {what}, found {value}.")
            elif isinstance(value, tuple) and not value[0] <= value[1]:
                raise ConfigError(f"{name}: expected a range, lower end first, found {value}.")
