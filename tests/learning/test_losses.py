from __future__ import annotations

import pytest
import torch

from ssclf.learning.losses import class_weights, weighted_cross_entropy


def test_equation_1_on_the_papers_counts() -> None:
    assert class_weights([73, 259, 259]).tolist() == pytest.approx([0.8765, 0.5618, 0.5618], abs=5e-5)


def test_the_weight_acts_on_a_batch_of_one() -> None:
    # torch's own weighted mean divides by the weights, so that with the paper's batch size they did nothing
    logits, weights = torch.tensor([[0.3, -0.2, 1.0]]), torch.tensor([0.9, 0.5, 0.6])
    target = torch.tensor([0])
    plain = torch.nn.functional.cross_entropy(logits, target)
    assert weighted_cross_entropy(logits, target, weights).item() == pytest.approx(0.9 * plain.item())


def test_a_batch_is_the_mean_of_its_samples() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 3), torch.tensor([0, 2, 2, 1, 0])
    weights = torch.tensor([0.9, 0.5, 0.6])
    single = [weighted_cross_entropy(logits[i : i + 1], targets[i : i + 1], weights) for i in range(5)]
    torch.testing.assert_close(weighted_cross_entropy(logits, targets, weights), torch.stack(single).mean())
