"""The paper's loss: cross-entropy in which the rarer class weighs more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def class_weights(counts: Sequence[int]) -> Tensor:
    """W_c = 1 - samples_c / samples_total, shape (K,).

    Source: Chatterjee et al., eq. 1.
    """
    total = sum(counts)
    return torch.tensor([1 - count / total for count in counts], dtype=torch.float32)


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over the batch of W_target times the cross-entropy of a sample.

    torch's `cross_entropy(weight=…)` divides by the sum of the batch's weights instead of by its size: with the
    paper's batches of one the weight would cancel out and do nothing.

    Source: Chatterjee et al., eq. 2 and 3.

    Args:
        logits: (N, K).
        targets: (N,) class indices.
        weights: (K,).
    """
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights[targets]).mean()
