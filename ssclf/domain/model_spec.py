"""What must travel with the weights to use them: `spec.json`, also inside model.onnx and TorchScript."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ssclf.config import PreprocessConfig, config_from_dict, config_to_dict
from ssclf.domain.eight_bits import EightBits
from ssclf.domain.provenance import Provenance
from ssclf.domain.reference import Reference
from ssclf.domain.series_rules import SeriesRule, default_rules, rules_from_list, rules_to_list
from ssclf.errors import ConfigError, ModelError

#: Raised when a bundle written before cannot be read any more, or one written now not by older versions.
SPEC_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Attributes:
    name: of the bundle.
    architecture: "mc3", "r2plus1d", "r3d" or "small".
    class_names: K >= 2 names; logits and probabilities come in this order.
    preprocess: settings that served in training and must serve in prediction.
    temperature: logits are divided by it before the softmax (1: not calibrated).
    training: provenance, for people and for the trust flags: plain JSON; `provenance` is the same with names.
    versions: packages that wrote the bundle.
    int8: of the network in 8 bits; only where the bundle has one, and not inside the files of the others, which are
        the same with and without it.
    series_rules: which series of a study it answers; () where it brings no rules of its own, see `answered_series`.
    """

    name: str
    architecture: str
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    temperature: float = 1.0
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    int8: EightBits | None = None
    series_rules: tuple[SeriesRule, ...] = ()

    def __post_init__(self) -> None:
        texts = (self.name, self.architecture, *self.class_names)
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"name, architecture and class_names: expected text, found {texts}.")
        if not isinstance(self.training, Mapping) or not isinstance(self.versions, Mapping):
            raise ConfigError("training and versions: expected objects.")
        if len(self.class_names) < 2 or len(set(self.class_names)) != len(self.class_names):
            raise ConfigError(f"class_names: expected two or more different names, found {self.class_names}.")
        if not 0 < self.temperature < 1000:
            raise ConfigError(f"temperature: expected a positive number, found {self.temperature}.")
        try:  # now, so that damage is found before the first volume
            known = self.provenance.seen.bits, self.feature_reference, self.contrast_references
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ConfigError(
                f"training: expected what ssclf writes of it, and numbers that belong together, {exc!r}."
            ) from exc
        if known[2] and len(known[2]) != len(self.preprocess.contrasts):
            raise ConfigError(f"training statistics: expected one for each contrast, found {len(known[2])}.")

    @cached_property
    def provenance(self) -> Provenance:
        return Provenance.from_dict(self.training)

    @property
    def answered_series(self) -> tuple[SeriesRule, ...]:
        """The rules by which a study's series is chosen: its own, or those of its contrasts."""
        return self.series_rules or default_rules(self.preprocess.contrasts)

    @property
    def synthetic(self) -> bool:
        """Whether the training volumes were made by ssclf's generator."""
        return self.provenance.synthetic

    @property
    def pretrained_on_lesions(self) -> bool:
        """Whether `ssclf pretrain` made it, which is no model of any patient: raises the flag `reference_model`."""
        return self.provenance.pretrained_on_lesions

    @cached_property
    def feature_reference(self) -> Reference | None:
        """Where the training volumes' features lie; None in a bundle without statistics."""
        values = self.provenance.statistics.get("features")
        return Reference.from_dict(values) if values else None

    @cached_property
    def contrast_references(self) -> tuple[tuple[Reference, float], ...]:
        """For each contrast, where the training volumes' intensity profiles lie, and in which share of them the
        brain's core is brighter than its rim; empty in a bundle without statistics."""
        values = self.provenance.statistics.get("contrasts", ())
        return tuple((Reference.from_dict(each), float(each["core_brighter"])) for each in values)

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": SPEC_FORMAT,
                "name": self.name,
                "architecture": self.architecture,
                "class_names": list(self.class_names),
                "contrasts": list(self.preprocess.contrasts),
                "slice_axis": self.preprocess.plane,
                "preprocess": config_to_dict(self.preprocess),
                "preprocess_hash": self.preprocess.hash,
                "calibration": {"temperature": self.temperature},
                "training": dict(self.training),
                "versions": dict(self.versions),
                **({"int8": self.int8.to_dict()} if self.int8 else {}),
                # without them a spec stays what it was, and with it every row that was made by it
                **({"series_rules": rules_to_list(self.series_rules)} if self.series_rules else {}),
            },
            indent=2,
            sort_keys=True,
            allow_nan=False,
        )

    @staticmethod
    def from_json(text: str, source: str) -> ModelSpec:
        """Read a spec.

        Args:
            text: JSON as `to_json` writes it.
            source: file name for messages.

        Raises:
            ModelError: not a spec, of another format, or its settings would now give other voxel values.
        """
        try:
            values = json.loads(text)
            if values["format"] != SPEC_FORMAT:
                raise ModelError(
                    f"{source}: expected a bundle of format {SPEC_FORMAT}, found {values['format']}; "
                    "export the model again with this version, or use the version that wrote it."
                )
            preprocess = config_from_dict(PreprocessConfig, values["preprocess"])
            spec = ModelSpec(
                name=values["name"],
                architecture=values["architecture"],
                class_names=_names(values["class_names"]),
                preprocess=preprocess,
                temperature=float(values["calibration"]["temperature"]),
                training=values["training"],
                versions=values["versions"],
                int8=EightBits.from_dict(values["int8"]) if "int8" in values else None,
                series_rules=rules_from_list(values["series_rules"], source)
                if values.get("series_rules")
                else (),
            )
            written = values["preprocess_hash"]
            known = preprocess.hashes(values["preprocess"])
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, ConfigError) as exc:
            raise ModelError(f"{source}: expected the description of an ssclf model, found {exc!r}.") from exc
        if written not in known:
            raise ModelError(
                f"{source}: the preprocessing that trained this model (hash {written}) is not the one of "
                f"this ssclf ({preprocess.hash}); use the version that exported it: "
                f"{spec.versions.get('ssclf', 'unknown')}."
            )
        return spec


def _names(values: Any) -> tuple[str, ...]:
    """Raises:
    ConfigError: not a list; a string would be taken letter by letter.
    """
    if not isinstance(values, list):
        raise ConfigError(f"class_names: expected a list of names, found {values!r}.")
    return tuple(values)
