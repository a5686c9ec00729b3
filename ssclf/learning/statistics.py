"""What the training volumes looked like to a finished network: computed once, carried by the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssclf.domain.trust import contrast_profiles, describe_training
from ssclf.io.records.preprocessed import Sample
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.loops import Predictions


def training_statistics(
    parts: Mapping[str, Sequence[Sample]], found: Mapping[str, Predictions]
) -> dict[str, Any]:
    """Statistics that the flags unlike_training and wrong_contrast compare a volume with.

    Args:
        parts: samples by role; the training volumes are read again, one at a time, for their intensities.
        found: what the network makes of them, in eval mode and without augmentation. Validation and test
            part together set how far from the training volumes a volume may be.

    Returns:
        plain JSON; empty after too few training volumes.
    """
    profiles = []
    for sample in parts["train"]:
        volume = read_written(sample.path)
        profiles.append(contrast_profiles(volume.data, volume.affine))
    held_out = [found[role].features for role in ("validation", "test") if role in found]
    return describe_training(
        found["train"].features, profiles, np.concatenate(held_out) if held_out else None
    )
