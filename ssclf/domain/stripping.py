"""Is the skull gone already? A rule on geometry and intensity, without a network.

On a coarse grid, the voxels that differ from the background are peeled from the outside in. A head has its
dark skull between scalp and brain: either a shell 6–13 mm under the surface is far darker than the tissue
25–40 mm deep, or, where fat and contrast agent outshine the skull, shells get darker with depth before they
get brighter. A stripped brain begins with cortex and gets brighter with depth. Only the top 90 mm count:
below them a neck or a skull base would blur the picture.

Where the rule errs it should err towards "head": that costs a brain extraction, the other a wrong answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.geometry import reorient, resample
from ssclf.domain.intensity import background_value
from ssclf.domain.masks import fill_holes
from ssclf.domain.tolerance import length_at_least, length_at_most, whole_down, whole_up
from ssclf.domain.volume import Mask, Spacing, Volume

GRID_MM = 3.0
TOP_MM = 90.0
MAX_DEPTH_MM = 42.0
#: Chosen on the volumes named in docs/preprocessing.md, where the limits of the rule are listed too.
STRIPPED_LITRES = (0.6, 2.7)
STRIPPED_RATIO = 0.55
STRIPPED_DROP = 0.15
#: Middle of the shells, each 3 mm thick, in mm under the surface; the skull is looked for in the second range.
PROFILE_MM = tuple(np.arange(3.0, 15.1, 1.5).tolist())
SKULL_MM = (7.5, 12.0)
CORE_MM = (25.0, 40.0)


@dataclass(frozen=True)
class Stripping:
    """What the rule saw.

    Attributes:
        foreground_ml: volume of everything that is not background.
        shell_ratio: darkest shell where the skull would be, over the core; 0 where there is none.
        drop: how much darker than one further out a shell is, at most, over the core.
    """

    stripped: bool
    foreground_ml: float
    shell_ratio: float
    drop: float = 0.0


def judge_stripping(volume: Volume) -> Stripping:
    """Tell a skull-stripped volume from a head.

    Args:
        volume: any orientation, finite; the first contrast is judged.
    """
    first = reorient(Volume(volume.data[:1], volume.affine), "SAR")
    background = background_value(first.data[0])
    if background is None:
        return Stripping(False, first.data.size * volume.voxel_ml, 0.0)
    inside = Volume(first.data != background, first.affine)
    foreground_ml = float(np.count_nonzero(inside.data)) * volume.voxel_ml
    d, h, w = (GRID_MM if length_at_most(mm, GRID_MM) else mm for mm in first.spacing)
    grid = d, h, w
    # Ventricles may share the background's value; depth is meant from the outside.
    coarse_mask = fill_holes(resample(inside, grid, order=0).data[0])
    coarse = resample(first, grid, order=0).data[
        0
    ]  # means over shells even out what nearest voxels leave rough
    occupied = np.flatnonzero(coarse_mask.any(axis=(1, 2)))
    if occupied.size == 0:
        return Stripping(False, foreground_ml, 0.0)
    depth = _depth_mm(coarse_mask, grid)
    top = slice(max(int(occupied[-1]) + 1 - whole_up(TOP_MM / grid[0]), 0), int(occupied[-1]) + 1)
    depth, values = depth[top], coarse[top] - background
    core = values[length_at_least(depth, CORE_MM[0]) & length_at_most(depth, CORE_MM[1])]
    if core.size == 0 or core.mean() <= 0:
        return Stripping(False, foreground_ml, 0.0)
    shells = {
        mm: values[~length_at_most(depth, mm - 1.5) & length_at_most(depth, mm + 1.5)] for mm in PROFILE_MM
    }
    profile = {mm: float(shell.mean() / core.mean()) for mm, shell in shells.items() if shell.size}
    ratio = min((value for mm, value in profile.items() if SKULL_MM[0] <= mm <= SKULL_MM[1]), default=0.0)
    means = np.array(list(profile.values()))
    drop = float((np.maximum.accumulate(means) - means).max())
    litres = foreground_ml / 1000
    stripped = (
        length_at_least(litres, STRIPPED_LITRES[0])
        and length_at_most(litres, STRIPPED_LITRES[1])
        and ratio >= STRIPPED_RATIO
        and drop <= STRIPPED_DROP
    )
    return Stripping(stripped, foreground_ml, ratio, drop)


def _depth_mm(mask: Mask, spacing: Spacing) -> NDArray[np.float32]:
    """Distance in mm from each voxel (D, H, W) to the nearest one outside the mask, up to MAX_DEPTH_MM.

    Euclidean, one axis after the other (Felzenszwalb and Huttenlocher, 2012); what lies beyond the
    array counts as outside.
    """
    squared = np.where(np.pad(mask, 1), np.float32(MAX_DEPTH_MM**2), np.float32(0))
    for axis, step in enumerate(spacing):
        lines = np.moveaxis(squared, axis, 0)
        nearest = lines.copy()
        for offset in range(1, min(whole_down(MAX_DEPTH_MM / step) + 1, len(lines))):
            cost = np.float32((offset * step) ** 2)
            np.minimum(nearest[offset:], lines[:-offset] + cost, out=nearest[offset:])
            np.minimum(nearest[:-offset], lines[offset:] + cost, out=nearest[:-offset])
        squared = np.moveaxis(nearest, 0, axis)
    depth: NDArray[np.float32] = np.sqrt(squared)[1:-1, 1:-1, 1:-1]
    return depth
