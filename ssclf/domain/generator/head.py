"""A healthy brain as the generator sees it: where which tissue is, and how far in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.geometry import mask_box
from ssclf.domain.masks import depth_mm, fill_holes
from ssclf.domain.random_fields import Field, Grid, grid_of
from ssclf.domain.random_fields import noise as smooth_noise
from ssclf.domain.volume import Mask, Spacing, Volume
from ssclf.errors import ConfigError


@dataclass(frozen=True)
class Levels:
    """Intensities of tissues on T1: fluid < grey < white."""

    fluid: float
    grey: float
    white: float

    def dark(self, amount: float) -> float:
        """From grey matter (0) to fluid (1)."""
        return self.grey - amount * (self.grey - self.fluid)

    def bright(self, amount: float) -> float:
        """Above white matter."""
        return self.white + amount * (self.white - self.fluid)


@dataclass(frozen=True)
class Head:
    """Attributes:
    data: (D, H, W) in [0, 1], 0 outside.
    inside: the brain, without holes.
    depth: how far a voxel lies inside, in mm; 0 outside.
    grid: distances along the array's own axes in mm.
    lateral, middle: the axis nearest to left and right, and where on it the brain's middle is in mm.
    up: the axis nearest to down and up, and +1 where up is its end.
    """

    data: Field
    inside: Mask
    depth: Field
    grid: Grid
    spacing: Spacing
    levels: Levels
    lateral: int
    middle: float
    up: tuple[int, int]

    @property
    def finest(self) -> float:
        """No shape is told that is smaller, in mm."""
        return max(self.spacing)

    @property
    def across(self) -> Field:
        """Distance from the middle plane in mm, with its sign; broadcasts to (D, H, W)."""
        return self.grid[self.lateral] - np.float32(self.middle)

    @property
    def height(self) -> Field:
        """From 0 at the brain's lowest voxel to 1 at its highest; broadcasts to (D, H, W)."""
        axis, up = self.up
        filled = mask_box(self.inside)[axis]
        line = self.grid[axis] / self.spacing[axis]
        share: Field = ((line - filled.start) / max(filled.stop - 1 - filled.start, 1)).astype(np.float32)
        return share if up > 0 else 1 - share

    def with_data(self, data: Field) -> Head:
        return replace(self, data=data)

    def fluid(self) -> Field:
        """Share of fluid in a voxel (D, H, W)."""
        share: Field = ((self.levels.grey - self.data) / (self.levels.grey - self.levels.fluid)).clip(0, 1)
        return share

    def white(self) -> Field:
        """Share of white matter about a voxel (D, H, W)."""
        from scipy import ndimage

        share = ((self.data - self.levels.grey) / (self.levels.white - self.levels.grey)).clip(0, 1)
        smooth: Field = ndimage.gaussian_filter(share, [3.0 / mm for mm in self.spacing], truncate=2.5)
        return smooth

    def noise(self, rng: np.random.Generator, length: float) -> Field:
        """Smooth noise of blobs of that length, which the grid can show."""
        return smooth_noise(rng, self.grid, max(length, 1.5 * self.finest))

    def point(self, voxel: NDArray[np.intp]) -> tuple[float, float, float]:
        """A voxel's place in mm along the axes."""
        z, y, x = (float(axis.ravel()[int(i)]) for axis, i in zip(self.grid, voxel, strict=True))
        return z, y, x


def look_at(brain: Volume) -> Head:
    """Raises:
    ConfigError: no brain, or one without tissues.
    """
    data = np.asarray(brain.data[0], np.float32)
    inside = fill_holes(data > 0)
    if brain.data.shape[0] != 1 or not inside.any():
        raise ConfigError(
            f"generator: expected a brain of one contrast above 0, found {brain.data.shape[0]} contrasts "
            f"and {int(inside.sum())} voxels."
        )
    depth = depth_mm(inside, brain.spacing)
    # the outermost voxels hold part of what is around the brain
    deep = data[depth > max(brain.spacing)]
    fluid, grey, white = map(float, np.quantile(deep if deep.size > 20 else data[inside], (0.02, 0.35, 0.8)))
    if not fluid < grey < white:
        raise ConfigError(f"generator: expected fluid, grey and white matter, found {fluid, grey, white}.")
    towards = np.abs(brain.affine[:3, :3]) / np.array(brain.spacing)
    lateral, vertical = int(towards[0].argmax()), int(towards[2].argmax())
    middle = np.average(np.arange(data.shape[lateral]), weights=inside.sum(axis=tuple({0, 1, 2} - {lateral})))
    return Head(
        data=data,
        inside=inside,
        depth=depth.astype(np.float32),
        grid=grid_of(brain),
        spacing=brain.spacing,
        levels=Levels(fluid, grey, white),
        lateral=lateral,
        middle=float(middle * brain.spacing[lateral]),
        up=(vertical, 1 if brain.affine[2, vertical] > 0 else -1),
    )
