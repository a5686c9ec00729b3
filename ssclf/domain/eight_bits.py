"""A network in 8 bits: what it was made from, and how far its probabilities may lie from the network's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The gate: largest difference of a probability, and the confidence above which no prediction may change.
TOLERANCE, SURE = 0.02, 0.6
#: So many volumes are listed in a message.
_LISTED = 12


@dataclass(frozen=True, kw_only=True)
class EightBits:
    """What a bundle says of its network in 8 bits.

    Attributes:
        temperature: of its own logits.
        fitted_on: part that the temperature was fitted on; None where it is the other network's.
        calibrated_on: class → training volumes that gave the ranges of its activations.
        kept: convolutions that stay in 32 bits.
        part: of the run whose volumes it was compared on: "validation", "test", or "train" where nothing was held out.
        volumes: their number.
        largest_difference: of a probability, over these.
        changed: predictions that are others, none of which either network was sure of.
    """

    temperature: float
    fitted_on: str | None
    calibrated_on: Mapping[str, int] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    part: str
    volumes: int
    largest_difference: float
    changed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **dataclasses.asdict(self),
            "kept": list(self.kept),
            "gate": {"largest_difference": TOLERANCE, "sure": SURE},
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> EightBits:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: values of another kind, or a temperature that cannot be.
        """
        known = {f.name: values[f.name] for f in dataclasses.fields(EightBits)}
        temperature = float(known["temperature"])
        if not 0 < temperature < 1000:
            raise ValueError(f"temperature {temperature}")
        known |= {"temperature": temperature, "kept": tuple(known["kept"])}
        return EightBits(**{**known, "calibrated_on": dict(known["calibrated_on"])})


@dataclass(frozen=True)
class Differences:
    """Probabilities of two networks for the same volumes.

    Attributes:
        keys: of the volumes.
        expected, found: (N, K), of the network and of its copy in 8 bits.
    """

    keys: tuple[str, ...]
    expected: NDArray[np.float64]
    found: NDArray[np.float64]

    @property
    def largest(self) -> NDArray[np.float64]:
        """(N,), of each volume."""
        differences: NDArray[np.float64] = np.abs(self.found - self.expected).max(axis=1)
        return differences

    @property
    def changed(self) -> NDArray[np.bool_]:
        """(N,), whether the prediction is another."""
        return self.found.argmax(axis=1) != self.expected.argmax(axis=1)

    @property
    def too_far(self) -> NDArray[np.bool_]:
        """(N,), whether a volume does not pass the gate; what is no number does not."""
        sure = np.maximum(self.expected.max(axis=1), self.found.max(axis=1)) > SURE
        return ~(self.largest <= TOLERANCE) | (self.changed & sure)

    @property
    def passes(self) -> bool:
        return not self.too_far.any()

    def table(self, class_names: Sequence[str]) -> str:
        """The volumes that do not pass, those that differ most first, a line each."""
        far = np.flatnonzero(self.too_far)
        order = far[np.argsort(-self.largest[far], kind="stable")]
        lines = [f"{'difference':>10}  32 bits         8 bits          volume"]
        for index in order[:_LISTED]:
            answers = (
                f"{class_names[p.argmax()][:9]:9} {p.max():.3f}"
                for p in (self.expected[index], self.found[index])
            )
            lines.append(f"{self.largest[index]:10.3f}  {'  '.join(answers)}  {self.keys[index]}")
        if len(order) > _LISTED:
            lines.append(f"{'':10}  and {len(order) - _LISTED} more")
        return "\n".join(lines)


def balanced(labels: Mapping[str, str], count: int) -> tuple[str, ...]:
    """Keys of at most `count` volumes, as many of each class as there are, evenly from each class's sorted keys.

    Args:
        labels: volume key → class name.
    """
    classes = {
        name: sorted(key for key, label in labels.items() if label == name)
        for name in sorted(set(labels.values()))
    }
    takes = dict.fromkeys(classes, 0)
    while (free := [name for name, keys in classes.items() if takes[name] < len(keys)]) and count:
        for name in free[:count]:
            takes[name] += 1
        count -= min(len(free), count)
    return tuple(
        keys[round((number + 0.5) * len(keys) / takes[name] - 0.5)]
        for name, keys in classes.items()
        for number in range(takes[name])
    )
