"""One or several models that judge a volume together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.config import PredictConfig, PreprocessConfig
from ssclf.domain.explanation import (
    class_evidence,
    hide,
    lost_evidence,
    occlusion_cubes,
    place_map,
    without_structure,
)
from ssclf.domain.preprocessing import PreparedVolume
from ssclf.domain.scores import softmax
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import ModelError
from ssclf.io.models.bundle import Bundle
from ssclf.io.models.runtime import Classifier, ClassifierOutput, model_file, open_classifier

#: Side of the cubes that occlusion hides, about a lesion's: on the bench of learning, cubes of 24 and of 36 mm found as
#: many.
CUBE_MM = 32.0
#: Voxels of hidden copies that a network is given at once: a single one where volumes are large.
_AT_ONCE = 2**18


@dataclass(frozen=True)
class View:
    """What one model said of one view of a volume.

    Attributes:
        data: (C, D, H, W), the network's input, flipped where the view is mirrored.
        affine: of the input before any mirroring.
        mirrored: the axis (0 to 2) in which it was flipped; None for the volume as it is.
    """

    output: ClassifierOutput
    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    mirrored: int | None

    def evidence(self, target: int) -> Volume:
        """Where evidence for a class lies: (1, d, h, w) in logits, on the grid of the network's cells."""
        _, d, h, w = self.data.shape
        evidence = class_evidence(self.output.cam[0], target)
        return place_map(evidence, (d, h, w), self.affine, mirrored=self.mirrored)

    def occluded(self, classifier: Classifier, target: int) -> Volume:
        """What hiding a part of the brain costs a class: (1, D, H, W) in logits, on the grid of the input.

        Raises:
            VolumeError, ModelError: as `Classifier.classify`.
        """
        _, d, h, w = self.data.shape
        placed = Volume(self.data, self.affine)
        brain: Mask = np.any(self.data > 0, axis=0)
        cubes = occlusion_cubes(brain, placed.spacing, CUBE_MM)
        flat = without_structure(self.data)
        together = max(_AT_ONCE // (d * h * w), 1)
        lost: list[float] = []
        for first in range(0, len(cubes), together):
            hidden = np.stack([hide(self.data, flat, cube) for cube in cubes[first : first + together]])
            logits = self.output.logits - classifier.classify(hidden).logits
            lost += (logits[:, target] - logits.mean(axis=1)).tolist()
        result = lost_evidence(lost, cubes, (d, h, w))
        return Volume(
            (result if self.mirrored is None else np.flip(result, self.mirrored))[None], self.affine
        )


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    probabilities: (K,), calibrated, the mean over views.
    views: by model, in the order of the bundles; the volume as it is before its mirror image.
    """

    probabilities: NDArray[np.float64]
    views: tuple[tuple[View, ...], ...]

    @property
    def best(self) -> int:
        return int(self.probabilities.argmax())


class Ensemble:
    """Models that agree on classes and contrasts; their probabilities are averaged."""

    def __init__(self, bundles: Sequence[Bundle], config: PredictConfig) -> None:
        """Raises:
        ModelError: the models do not agree, or one has no file for the engine or the precision.
        """
        bundles = [bundle.at(config.precision) for bundle in bundles]
        for bundle in bundles:
            model_file(bundle, config.engine)  # now, and not when the first volumes have been read
        first = bundles[0].spec
        for bundle in bundles[1:]:
            for what, ours, theirs in (
                ("classes", first.class_names, bundle.spec.class_names),
                ("contrasts", first.preprocess.contrasts, bundle.spec.preprocess.contrasts),
            ):
                if ours != theirs:
                    raise ModelError(
                        f"{bundle.path.name}: models given together must agree on their {what}; "
                        f"{bundles[0].path.name} has {', '.join(ours)}, this one {', '.join(theirs)}."
                    )
        self.bundles = tuple(bundles)
        self.class_names = first.class_names
        self.contrasts = first.preprocess.contrasts
        self.name = "+".join(bundle.spec.name for bundle in bundles)
        self.sha256 = "+".join(bundle.sha256 for bundle in bundles)
        self.settings = tuple(dict.fromkeys(bundle.spec.preprocess for bundle in bundles))
        self._config = config
        #: The numbers that the networks compute in, model by model, and for all of them.
        self.precisions = tuple("fp32" if self.engine == "torchscript" else b.precision for b in bundles)
        self.precision = "+".join(dict.fromkeys(self.precisions))
        self._classifiers: list[Classifier] = []

    @property
    def engine(self) -> str:
        """What runs the networks."""
        return "torchscript" if self._config.engine == "torchscript" else "onnx"

    @property
    def device(self) -> str:
        """Where the networks really run; empty until they are loaded."""
        return "+".join(dict.fromkeys(classifier.device for classifier in self._classifiers))

    def load(self) -> None:
        """Load the networks; once is enough."""
        if not self._classifiers:
            config = self._config
            self._classifiers = [
                open_classifier(
                    bundle,
                    engine=config.engine,
                    device=config.network_device,
                    threads=config.threads,
                    timeout_s=config.timeout_s,
                )
                for bundle in self.bundles
            ]

    def judge(self, prepared: Mapping[PreprocessConfig, PreparedVolume]) -> Verdict:
        """Classify a volume, prepared for every setting in `settings`."""
        self.load()
        probabilities, models = [], []
        for classifier in self._classifiers:
            spec = classifier.spec
            volume = prepared[spec.preprocess]
            views = []
            for mirrored in (None, left_right_axis(spec.preprocess))[: 2 if self._config.flip else 1]:
                data = volume.data if mirrored is None else np.flip(volume.data, mirrored + 1)
                data = np.ascontiguousarray(data)
                output = classifier.classify(data[None])
                views.append(View(output, data, volume.affine, mirrored))
                probabilities.append(softmax(output.logits[0], spec.temperature))
            models.append(tuple(views))
        return Verdict(np.mean(probabilities, axis=0), tuple(models))

    def evidence(self, verdict: Verdict) -> list[Volume]:
        """Maps of every view for the class that was predicted, by the method that the settings name.

        Raises:
            VolumeError, ModelError: as `Classifier.classify`.
        """
        return [
            view.evidence(verdict.best)
            if self._config.map_method == "cam"
            else view.occluded(classifier, verdict.best)
            for classifier, views in zip(self._classifiers, verdict.views, strict=True)
            for view in views
        ]


def left_right_axis(config: PreprocessConfig) -> int:
    """Which of (D, H, W) runs from left to right: D where slices are sagittal, else W."""
    return 0 if config.plane == "sagittal" else 2
