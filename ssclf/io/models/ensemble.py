"""One or several models that judge a volume together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.config import MapMethod, PredictConfig, PreprocessConfig
from ssclf.domain.explanation import (
    Cube,
    class_evidence,
    hide,
    lost_evidence,
    occlusion_cubes,
    other_side,
    place_map,
    without_structure,
)
from ssclf.domain.preprocessing import PreparedVolume
from ssclf.domain.scores import log_odds, softmax
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import ModelError
from ssclf.io.models.batches import Batches
from ssclf.io.models.bundle import Bundle
from ssclf.io.models.runtime import ClassifierOutput, model_file, open_classifier

#: Sides of the cubes that are hidden behind the brain's mean; about a lesion's.
OCCLUSION_MM: tuple[float, ...] = (32.0,)
#: And behind the other side: small ones find small lesions, large ones those of which a part is enough.
MIRROR_MM: tuple[float, ...] = (36.0, 60.0, 84.0)
#: Voxels of hidden copies that a network is given at once on a CPU: a single one where volumes are large.
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

    def occluded(self, network: Batches, target: int, method: MapMethod) -> Volume:
        """What hiding a part of the brain costs a class: (1, D, H, W) in logits, on the grid of the input.

        Args:
            method: "occlusion" hides behind the brain's mean, and counts the class's logit less the mean of all;
                "mirror" hides behind the other side, and counts the class's log-odds.

        Raises:
            VolumeError, ModelError: as `Classifier.classify`.
        """
        _, d, h, w = self.data.shape
        spacing = Volume(self.data, self.affine).spacing
        evidence: Callable[[NDArray[np.float32], int], NDArray[np.floating]]
        if method == "mirror":
            side = left_right_axis(network.classifier.spec.preprocess)
            behind, widths, evidence = other_side(self.data, side, spacing[side]), MIRROR_MM, log_odds
        else:
            behind, widths, evidence = without_structure(self.data), OCCLUSION_MM, class_evidence
        brain: Mask = np.any(self.data > 0, axis=0)
        whole = float(evidence(self.output.logits[0], target))
        result = np.zeros((d, h, w), np.float32)
        for width in widths:
            cubes = occlusion_cubes(brain, spacing, width)
            lost = [whole - float(evidence(found, target)) for found in self._hidden(network, behind, cubes)]
            result += lost_evidence(lost, cubes, (d, h, w)) / np.float32(len(widths))
        turned = result if self.mirrored is None else np.flip(result, self.mirrored)
        return Volume(turned[None], self.affine)

    def _hidden(
        self, network: Batches, behind: NDArray[np.float32], cubes: Sequence[Cube]
    ) -> Iterator[NDArray[np.float32]]:
        """Logits (K,) for each cube, hidden alone."""
        together = max(_AT_ONCE // self.data[0].size, network.most)
        for first in range(0, len(cubes), together):
            hidden = [hide(self.data, behind, cube) for cube in cubes[first : first + together]]
            for answer in network.classify(hidden, together):
                if isinstance(answer, Exception):
                    raise answer
                yield answer.logits[0]


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
        self.precisions = tuple(bundle.precision_with(config.engine) for bundle in bundles)
        self.precision = "+".join(dict.fromkeys(self.precisions))
        self._networks: list[Batches] = []

    @property
    def engine(self) -> str:
        """What runs the networks."""
        return "torchscript" if self._config.engine == "torchscript" else "onnx"

    @property
    def device(self) -> str:
        """Where the networks really run; empty until they are loaded."""
        return "+".join(dict.fromkeys(network.classifier.device for network in self._networks))

    @property
    def together(self) -> int:
        """Volumes that are best judged at once; 1 until the networks are loaded."""
        return max((network.most for network in self._networks), default=1)

    def load(self) -> None:
        """Load the networks; once is enough."""
        if not self._networks:
            config = self._config
            classifiers = [
                open_classifier(
                    bundle,
                    engine=config.engine,
                    device=config.network_device,
                    threads=config.threads,
                    timeout_s=config.timeout_s,
                )
                for bundle in self.bundles
            ]
            self._networks = [Batches(classifier) for classifier in classifiers]

    def judge(self, prepared: Mapping[PreprocessConfig, PreparedVolume]) -> Verdict:
        """Classify a volume, prepared for every setting in `settings`.

        Raises:
            VolumeError, ModelError: as `Classifier.classify`; and whatever an engine raises.
        """
        (verdict,) = self.judge_all([prepared])
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    def judge_all(
        self, volumes: Sequence[Mapping[PreprocessConfig, PreparedVolume]]
    ) -> list[Verdict | Exception]:
        """Classify volumes; for each its verdict, or what `judge` would raise."""
        self.load()
        failed: dict[int, Exception] = {}
        models: list[list[tuple[View, ...]]] = [[] for _ in volumes]
        for network in self._networks:
            settings = network.classifier.spec.preprocess
            mirrors = (None, left_right_axis(settings))[: 2 if self._config.flip else 1]
            seen = [
                (place, _mirrored(volume[settings].data, mirrored), mirrored)
                for place, volume in enumerate(volumes)
                if place not in failed
                for mirrored in mirrors
            ]
            views = defaultdict[int, list[View]](list)
            answers = network.classify([data for _, data, _ in seen])
            for (place, data, mirrored), answer in zip(seen, answers, strict=True):
                if isinstance(answer, Exception):
                    failed.setdefault(place, answer)
                else:
                    views[place].append(View(answer, data, volumes[place][settings].affine, mirrored))
            for place, found in views.items():
                models[place].append(tuple(found))
        return [failed.get(place) or self._verdict(found) for place, found in enumerate(models)]

    def _verdict(self, models: Sequence[tuple[View, ...]]) -> Verdict:
        probabilities = [
            softmax(view.output.logits[0], network.classifier.spec.temperature)
            for network, views in zip(self._networks, models, strict=True)
            for view in views
        ]
        return Verdict(np.mean(probabilities, axis=0), tuple(models))

    def evidence(self, verdict: Verdict) -> list[Volume]:
        """Maps of every view for the class that was predicted, by the method that the settings name.

        Raises:
            VolumeError, ModelError: as `Classifier.classify`.
        """
        return [
            view.evidence(verdict.best)
            if self._config.map_method == "cam"
            else view.occluded(network, verdict.best, self._config.map_method)
            for network, views in zip(self._networks, verdict.views, strict=True)
            for view in views
        ]


def _mirrored(data: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    return np.ascontiguousarray(data if axis is None else np.flip(data, axis + 1))


def left_right_axis(config: PreprocessConfig) -> int:
    """Which of (D, H, W) runs from left to right: D where slices are sagittal, else W."""
    return 0 if config.plane == "sagittal" else 2
