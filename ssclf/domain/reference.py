"""Where the training volumes lie in a space of numbers, and how far from them a volume may be.

The space is that of a network's features or of a contrast's intensity profile. A few principal axes with their
variances, and one variance for all that is left: a covariance that twenty volumes can carry (Tipping and Bishop,
1999). Used as in Lee et al., NeurIPS 2018, but over all classes together, since after few volumes those of one
class say too little. docs/trust.md has what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

#: Fewer volumes describe no spread.
MIN_VOLUMES: Final = 8
#: Fewer volumes than this, held out, tell less of how far volumes may lie than leaving out training volumes.
MIN_HELD_OUT: Final = 10
#: Normal quantile of the share of volumes like the training's that stay below the limit: 99 in 100.
_QUANTILE: Final = 2.3263
_MARGIN: Final = 1.25
_GROUPS: Final = 10
_FLOOR: Final = 1e-6


@dataclass(frozen=True)
class Reference:
    """Attributes:
    centre: (P,) mean of the training volumes.
    axes: (k, P) orthonormal principal axes.
    variances: (k,) along the axes.
    rest: mean squared distance of training volumes from the subspace of the axes.
    limit: distance above which a volume is unlike the training's.
    volumes: how many there were.
    """

    centre: Values
    axes: Values
    variances: Values
    rest: float
    limit: float
    volumes: int

    def distances(self, values: NDArray[Any]) -> Values:
        """(N, P) → (N,): about 1 for a training volume, at any P."""
        centred = np.atleast_2d(np.asarray(values, np.float64)) - self.centre
        along = centred @ self.axes.T
        beside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        result: Values = np.sqrt(((along**2 / self.variances).mean(axis=1) + beside / self.rest) / 2)
        return result

    def is_far(self, values: NDArray[Any]) -> bool:
        """Whether one volume (P,) is unlike the training's."""
        return bool(self.distances(values)[0] > self.limit)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; numbers as text in rows, so that an indented spec.json stays readable."""
        return {
            "centre": _write(self.centre),
            "axes": [_write(axis) for axis in self.axes],
            "variances": _write(self.variances),
            "rest": float(f"{self.rest:.6g}"),
            "limit": float(f"{self.limit:.6g}"),
            "volumes": self.volumes,
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Reference:
        """The inverse of `to_dict`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: anything else.
        """
        centre, variances = _read(values["centre"]), _read(values["variances"])
        axes = np.stack([_read(axis) for axis in values["axes"]])
        rest, limit = float(values["rest"]), float(values["limit"])
        if axes.shape != (variances.size, centre.size) or not min(*variances, rest, limit) > 0:
            raise ValueError("sizes that do not agree, or numbers that are not positive")
        return Reference(centre, axes, variances, rest, limit, int(values["volumes"]))


def fit_reference(
    training: NDArray[Any], held_out: NDArray[Any] | None = None, *, axes: int, inflation: float = 1.0
) -> Reference | None:
    """Describe training volumes and set the limit so that few volumes like them lie beyond it.

    Args:
        training: (N, P).
        held_out: (M, P) of the same kind that nothing was fitted to. Where there are fewer than MIN_HELD_OUT,
            training volumes take their place, each group of them left out of the description in turn.
        axes: k, at most; fewer for few volumes.
        inflation: factor on the limit in that case, where what gave the numbers was fitted to the volumes.

    Returns:
        None for fewer than MIN_VOLUMES.
    """
    values = np.asarray(training, np.float64)
    if len(values) < MIN_VOLUMES:
        return None
    reference = _describe(values, axes)
    if held_out is not None and len(held_out) >= MIN_HELD_OUT:
        limit = _upper_limit(reference.distances(held_out))
    else:
        limit = _upper_limit(_leave_out(values, axes)) * inflation
    return Reference(
        reference.centre, reference.axes, reference.variances, reference.rest, limit, len(values)
    )


def _describe(values: Values, axes: int) -> Reference:
    count, size = values.shape
    centre = values.mean(axis=0)
    _, singular, directions = np.linalg.svd(values - centre, full_matrices=False)
    # a quarter of the volumes at most, so that each variance has some volumes behind it
    k = max(1, min(axes, count // 4, size - 1))
    variances = singular**2 / (count - 1)
    floor = max(_FLOOR * variances.sum(), _FLOOR**2)
    return Reference(
        centre=centre,
        axes=directions[:k],
        variances=np.maximum(variances[:k], floor),
        rest=max(float(variances[k:].sum()), floor),
        limit=np.inf,
        volumes=count,
    )


def _leave_out(values: Values, axes: int) -> Values:
    """Distance of each volume from a description of the others."""
    groups = np.arange(len(values)) % min(_GROUPS, len(values))
    result = np.empty(len(values))
    for group in np.unique(groups):
        out = groups == group
        result[out] = _describe(values[~out], axes).distances(values[out])
    return result


def _upper_limit(distances: Values) -> float:
    """Which few further distances exceed, from two estimates, of which the lower one stands.

    The upper end of a 99 % prediction interval for normal logarithms, which a far volume or two do not move much;
    and a margin above the greatest distance, which is nearer where distances are of several kinds.
    """
    logs = np.log(np.maximum(distances, _FLOOR))
    z, v = _QUANTILE, len(logs) - 1
    # Student's t for v degrees of freedom, Abramowitz and Stegun 26.7.5
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    interval = float(np.exp(logs.mean() + t * logs.std(ddof=1) * np.sqrt(1 + 1 / len(logs))))
    return min(interval, _MARGIN * float(np.exp(logs.max())))


def _write(values: Values) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _read(text: str) -> Values:
    values = np.array(text.split(), np.float64)
    if not np.isfinite(values).all():
        raise ValueError("numbers that are not finite")
    return values
