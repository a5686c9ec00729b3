"""From logits to probabilities. Shapes are (N, K) or (K,)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities over the last axis, calibrated by a temperature (1 leaves them as trained).

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017 (temperature scaling).
    """
    scaled = np.asarray(logits, np.float64) / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    exponents = np.exp(scaled)
    probabilities: NDArray[np.float64] = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def log_odds(logits: NDArray[np.floating], target: int) -> NDArray[np.float64]:
    """log(p / (1 - p)) of one class, (N,) or (); finite where p rounds to 1."""
    values = np.asarray(logits, np.float64)
    others = np.delete(values, target, axis=-1)
    result: NDArray[np.float64] = values[..., target] - np.logaddexp.reduce(others, axis=-1)
    return result
