"""Reasons to doubt a prediction that only the model's training can tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.likeness import describe_likeness
from ssclf.domain.model_spec import ModelSpec
from ssclf.domain.preprocessing import PreparedVolume, voxel_hash
from ssclf.domain.reference import fit_reference
from ssclf.domain.tolerance import whole_near
from ssclf.domain.volume import Mask

FEATURE_AXES: Final = 8
PROFILE_AXES: Final = 4
#: Volumes that a network was fitted to lie closer to each other than new ones do; measured in docs/trust.md.
FITTED_INFLATION: Final = 1.5
QUANTILES: Final = (5, 25, 50, 75, 95)
#: Shells of the brain from the outside in; the last one is all that is deeper.
SHELL_MM: Final = 8.0
SHELLS: Final = 4
#: Where a voxel of the grid falls on the last one of the brain but for a header's rounding, interpolation leaves the
#: next one with 0 or with a millionth of an intensity: whole layers of voxels that count as empty either way.
TRACE: Final = 1e-3
#: Fewer training volumes than this share do not count against an order of tissues that all others have.
RARE: Final = 0.02


def trust_flags(
    spec: ModelSpec, prepared: PreparedVolume, extraction: str, features: NDArray[np.float32] | None = None
) -> Iterator[str]:
    """Compare a volume with what the model was trained on.

    Args:
        prepared: the network's input.
        extraction: the engine that removed the skull, "none" where it was gone already.
        features: (F,), the network's; None where the model has none.
    """
    seen = spec.provenance.seen
    if seen and seen.hold(
        voxel_hash(prepared.data), lambda: describe_likeness(prepared.data, prepared.affine)
    ):
        yield "trained_on"
    engines = spec.provenance.extraction
    if extraction != "none" and engines and extraction not in engines:
        yield "other_extraction"
    profiles = contrast_profiles(prepared.data, prepared.affine) if spec.contrast_references else ()
    for (reference, brighter), profile in zip(spec.contrast_references, profiles, strict=False):
        order = _order(profile)
        turned = (brighter >= 1 - RARE and order < 0) or (brighter <= RARE and order > 0)
        if turned or reference.is_far(profile):
            yield "wrong_contrast"
            break
    if features is not None and spec.feature_reference and spec.feature_reference.is_far(features):
        yield "unlike_training"


def describe_training(
    features: NDArray[np.float32],
    profiles: Sequence[NDArray[np.float64]],
    held_out: NDArray[np.float32] | None = None,
) -> dict[str, Any]:
    """Statistics for `Provenance.statistics`: plain JSON, empty after too few volumes to tell.

    Args:
        features: (N, F) of the training volumes, in eval mode and without augmentation.
        profiles: N times (C, P), their contrast profiles.
        held_out: (M, F), features of volumes that the network was not fitted to, where there are any.
    """
    reference = fit_reference(features, held_out, axes=FEATURE_AXES, inflation=FITTED_INFLATION)
    if reference is None:
        return {}
    stacked = np.stack(profiles, axis=1)
    contrasts = []
    for channel in stacked:
        described = fit_reference(channel, axes=PROFILE_AXES)
        assert described is not None  # as many volumes as features
        brighter = float(np.mean([_order(profile) > 0 for profile in channel]))
        contrasts.append({**described.to_dict(), "core_brighter": brighter})
    return {"features": reference.to_dict(), "contrasts": contrasts}


def contrast_profiles(data: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """What tells one contrast from another, whatever the orientation: quantiles of the intensities inside the
    brain, and how bright its rim, cortex, white matter and core are.

    Args:
        data: network input (C, D, H, W), in [0, 1] inside the brain and 0 around it.
        affine: (4, 4) of the input.

    Returns:
        (C, len(QUANTILES) + SHELLS) in [0, 1].
    """
    brain: Mask = np.any(data > TRACE, axis=0)
    if not brain.any():
        return np.zeros((len(data), len(QUANTILES) + SHELLS))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    blocks = [max(1, whole_near(SHELL_MM / float(mm))) for mm in spacing]
    counts = _sum_blocks(brain.astype(np.float32), blocks)
    shells = _shells(counts > 0)
    profiles = []
    for channel in data:
        sums = _sum_blocks(channel, blocks)
        means = [sums[shell].sum() / counts[shell].sum() if shell.any() else np.nan for shell in shells]
        for index in range(1, SHELLS):  # a brain too small for a shell: as the one outside it
            means[index] = means[index - 1] if np.isnan(means[index]) else means[index]
        profiles.append([*np.percentile(channel[brain], QUANTILES), *means])
    return np.array(profiles, np.float64)


def _order(profile: NDArray[np.float64]) -> float:
    """Above 0 where the core is brighter than the rim, as in T1; below where it is darker, as in T2."""
    return float(profile[-1] - profile[-SHELLS])


def _sum_blocks(values: NDArray[np.float32], blocks: Sequence[int]) -> NDArray[np.float32]:
    """Sums over blocks of (D, H, W), the last ones filled with 0."""
    for axis, size in enumerate(blocks):
        starts = np.arange(0, values.shape[axis], size)
        values = np.add.reduceat(values, starts, axis=axis)
    return values


def _shells(mask: Mask) -> list[Mask]:
    """Voxels at a depth of 1, 2, … steps, peeled over faces; what lies beyond the array is outside."""
    inner = np.pad(mask, 1)
    shells = []
    for _ in range(SHELLS - 1):
        smaller = inner.copy()
        for axis in range(3):
            smaller &= np.roll(inner, 1, axis) & np.roll(inner, -1, axis)
        shells.append(inner & ~smaller)
        inner = smaller
    return [shell[1:-1, 1:-1, 1:-1] for shell in (*shells, inner)]
