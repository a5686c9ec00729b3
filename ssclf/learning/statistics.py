"""What the training volumes looked like to a finished network: computed once, carried by the bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ssclf.domain.trust import contrast_profiles, describe_training
from ssclf.domain.volume import Volume
from ssclf.learning.loops import Predictions


def training_statistics(volumes: Iterable[Volume], found: Mapping[str, Predictions]) -> dict[str, Any]:
    """Statistics that the flags unlike_training and wrong_contrast compare a volume with.

    Args:
        volumes: of the training part, one at a time, as the network sees them without augmentation: where lesions and
            scanners are drawn, as they were drawn.
        found: what the network makes of them, in eval mode and without augmentation. Validation and test
            part together set how far from the training volumes a volume may be.

    Returns:
        plain JSON; empty after too few training volumes.
    """
    profiles = [contrast_profiles(volume.data, volume.affine) for volume in volumes]
    held_out = [found[role].features for role in ("validation", "test") if role in found]
    return describe_training(
        found["train"].features, profiles, np.concatenate(held_out) if held_out else None
    )
