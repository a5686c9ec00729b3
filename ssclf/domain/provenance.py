"""Where a model comes from: training writes it, a bundle carries it, flags, reports and model cards read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ssclf.domain.likeness import SeenVolumes

Counts = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Attributes:
    temperature: that the logits are divided by; 1 where nothing was held out to fit it on.
    fitted_on: "validation", "test", "out-of-fold" or, of the reference model, "calibration"; None where it was not.
    volumes: that it was fitted on.
    """

    temperature: float = 1.0
    fitted_on: str | None = None
    volumes: int = 0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Counts and hashes, never subjects or paths. A bundle of another version may lack any of it.

    Attributes:
        synthetic: whether some training volumes, or those of the model it began with, were made by ssclf's generator;
            a model that only began with weights from synthetic lesions is none of these.
        settings_hash: of the preprocessing.
        volumes: part ("train", "validation", "test") → class → number.
        subjects: part → number.
        sources, class_sources: of the training volumes; of those of each class.
        extraction: what removed the skull of how many training volumes.
        voxels: hashes of the volumes that trained it, those of the model it began with included.
        likenesses: of these and of the volumes that chose its epoch, see `domain.likeness`.
        statistics: see `domain.trust.describe_training`.
        config: of `TrainConfig`.
        initial_weights: name of a file of weights that it began with, such as those of Kinetics-400; "" without.
        starting_weights: of these "kind", how many "parameters" were taken "of" the network's, and, where they were
            another network's, "name", "licence", "source", and "file" and "sha256" of what was imported.
        started_from: the model it began with, empty without.
        scores: part → "raw" and "calibrated" → `Metrics.to_dict`.
        cross_validation: that the scores come from, empty where they come from the run itself.
        other: what another version has written besides; kept.
    """

    synthetic: bool = False
    settings_hash: str = ""
    volumes: Mapping[str, Counts] = field(default_factory=dict)
    subjects: Counts = field(default_factory=dict)
    sources: Counts = field(default_factory=dict)
    class_sources: Mapping[str, Counts] = field(default_factory=dict)
    extraction: Counts = field(default_factory=dict)
    voxels: tuple[str, ...] = ()
    likenesses: tuple[str, ...] = ()
    statistics: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    initial_weights: str = ""
    starting_weights: Mapping[str, Any] = field(default_factory=dict)
    started_from: Mapping[str, Any] = field(default_factory=dict)
    precision: str = ""
    epochs: int = 0
    chosen_epoch: int = 0
    calibration: Calibration = field(default_factory=Calibration)
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    cross_validation: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pretrained_on_lesions(self) -> bool:
        """Whether it was trained on synthetic lesions in healthy brains (`ssclf pretrain`), and so on no patient."""
        return bool(self.config.get("lesions"))

    @cached_property
    def seen(self) -> SeenVolumes:
        """The volumes of which a score says nothing, to look one up in."""
        return SeenVolumes.of((*self.voxels, *self.likenesses))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as they stand in `provenance.json` and `spec.json`."""
        values = dataclasses.asdict(self)
        values |= {
            "voxels": list(self.voxels),
            "likenesses": list(self.likenesses),
            **values.pop("other"),
        }
        # as earlier versions wrote it, which had none
        for name in ("cross_validation", "likenesses", "starting_weights"):
            if not values[name]:
                del values[name]
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError, AttributeError: values of another kind.
        """
        names = {f.name for f in dataclasses.fields(Provenance)} - {"other"}
        known = {name: value for name, value in values.items() if name in names}
        calibration = dict(known.pop("calibration", {}))
        fields = {f.name for f in dataclasses.fields(Calibration)}
        plain: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in known.items()}
        plain |= {name: tuple(known.get(name, ())) for name in ("voxels", "likenesses")}
        plain["synthetic"] = bool(known.get("synthetic"))
        return Provenance(
            **plain,
            calibration=Calibration(**{name: v for name, v in calibration.items() if name in fields}),
            other={name: value for name, value in values.items() if name not in names and name != "other"},
        )
