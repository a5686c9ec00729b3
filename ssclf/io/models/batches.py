"""Volumes for a network, several at once where that is faster; each gets its own answer, or its own failure."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ssclf.io.models.runtime import Classifier, ClassifierOutput

log = logging.getLogger(__name__)

#: Volumes that a network gets at once. A CPU is busy with one.
TOGETHER = {"cpu": 1, "cuda": 8}
#: Their voxels: on a GPU a network may take 1 kB for each, as on a CPU (`runtime._ONNX_BYTES`).
_VOXELS = 10_000_000

Input = NDArray[np.float32]


class Batches:
    """A classifier, and what was learned of how much it can take."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.most = TOGETHER.get(classifier.device, 1)
        self._voxels = _VOXELS

    def classify(
        self, volumes: Sequence[Input], most: int | None = None
    ) -> list[ClassifierOutput | Exception]:
        """Ask for volumes of any shapes; those of one shape go together.

        Args:
            volumes: (C, D, H, W) each.
            most: at once, in the place of what is good for the device.

        Returns:
            for each, in their order, what the network says of it (N = 1), or what it raised for it alone.
        """
        answers: list[ClassifierOutput | Exception] = [RuntimeError("not asked")] * len(volumes)
        for places in self._groups(volumes, most or self.most):
            found = self._ask([volumes[place] for place in places])
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return answers

    def _groups(self, volumes: Sequence[Input], most: int) -> Iterator[list[int]]:
        shapes = defaultdict[tuple[int, ...], list[int]](list)
        for place, volume in enumerate(volumes):
            shapes[volume.shape].append(place)
        for shape, places in shapes.items():
            count = max(min(most, self._voxels // max(int(np.prod(shape[1:])), 1)), 1)
            for first in range(0, len(places), count):
                yield places[first : first + count]

    def _ask(self, volumes: Sequence[Input]) -> list[ClassifierOutput | Exception]:
        """Of one shape. Where they cannot be taken together, halves are, down to one."""
        try:
            together = self.classifier.classify(np.stack(volumes))
        except Exception as exc:  # an engine's own, and ours
            if len(volumes) == 1:
                return [exc]
            half = (len(volumes) + 1) // 2
            answers = self._ask(volumes[:half]) + self._ask(volumes[half:])
            if not any(isinstance(answer, Exception) for answer in answers):
                # none of them is at fault: there was no memory for so many
                self._voxels = min(self._voxels, half * volumes[0][0].size)
                log.info(
                    "%d volumes are too many at once (%s); now %d", len(volumes), type(exc).__name__, half
                )
            return answers
        return [_one(together, place) for place in range(len(volumes))]


def _one(output: ClassifierOutput, place: int) -> ClassifierOutput:
    this = slice(place, place + 1)
    features = None if output.features is None else output.features[this]
    return ClassifierOutput(output.logits[this], output.cam[this], features)
