"""Settings: frozen values that repeat a run on another machine. Paths are arguments, not settings.

Every config can be written as JSON and read back; reading rejects keys that it does not know, so a
setting of another version is never dropped silently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from ssclf.errors import ConfigError

Plane = Literal["axial", "coronal", "sagittal"]
Crop = Literal["none", "brain"]
Architecture = Literal["mc3", "r2plus1d", "r3d"]
Augmentation = Literal["light", "heavy", "flip", "none"]
Schedule = Literal["constant", "cosine", "onecycle"]
Stem = Literal["random", "mean"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
ClassWeights = Literal["paper", "none"]
Preset = Literal["paper", "default"]

#: Raised whenever the same settings give other voxel values than before: part of every settings hash.
PREPROCESSING_VERSION = 1

T = TypeVar("T")


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name}: expected one of {', '.join(get_args(choices))}, found {value!r}.")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config (tuples become lists)."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def config_from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `config_to_dict`.

    Raises:
        ConfigError: a key is unknown or missing, or a value is out of range.
    """
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - fields)
    if unknown:
        raise ConfigError(
            f"{kind.__name__}: unknown settings {', '.join(unknown)}; "
            f"they come from another version of ssclf than this one."
        )
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as exc:
        raise ConfigError(f"{kind.__name__}: {exc}.") from exc


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Everything that decides the voxel values a network sees, brain extraction aside.

    How a skull is removed is a property of the input, not of the model: it is recorded per volume
    and in the model's provenance instead (contract, "Commands").
    """

    #: Voxel size in mm on (D, H, W). Source: Chatterjee et al., Sec. 2.5 (2 mm isotropic).
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)
    #: Intensities are clipped to these percentiles of the brain. Source: Sec. 2.5.
    percentiles: tuple[float, float] = (0.5, 99.5)
    #: The anatomical plane of a slice; D runs across it. Source: Sec. 2.1 and 4 (axial).
    plane: Plane = "axial"
    #: What each channel shows, in channel order. Source: Sec. 2.4 (T1ce).
    contrasts: tuple[str, ...] = ("t1ce",)
    #: "none" keeps the field of view as in the paper; "brain" keeps the brain's box and a margin.
    crop: Crop = "none"
    crop_margin_mm: float = 6.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing", tuple(float(value) for value in self.spacing))
        object.__setattr__(self, "percentiles", tuple(float(value) for value in self.percentiles))
        if len(self.spacing) != 3 or not all(0.1 <= value <= 20 for value in self.spacing):
            raise ConfigError(f"spacing: expected three voxel sizes of 0.1 to 20 mm, found {self.spacing}.")
        low, high = self.percentiles if len(self.percentiles) == 2 else (1.0, 0.0)
        if not 0 <= low < high <= 100:
            raise ConfigError(f"percentiles: expected 0 <= low < high <= 100, found {self.percentiles}.")
        check_choice("plane", self.plane, Plane)
        check_choice("crop", self.crop, Crop)
        if not 1 <= len(self.contrasts) <= 4 or len(set(self.contrasts)) != len(self.contrasts):
            raise ConfigError(f"contrasts: expected one to four different names, found {self.contrasts}.")
        if not 0 <= self.crop_margin_mm <= 100:
            raise ConfigError(f"crop_margin_mm: expected 0 to 100, found {self.crop_margin_mm}.")

    @property
    def hash(self) -> str:
        """Stable across machines and versions that compute the same values; 16 hex digits."""
        values = {"version": PREPROCESSING_VERSION, **config_to_dict(self)}
        if self.crop == "none":
            del values["crop_margin_mm"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the weights of a network, its data aside. The defaults are the paper's.

    Source: Chatterjee et al., Sec. 2.1 to 2.3, where not said otherwise. `TrainConfig.preset` gives what works
    better at equal cost.
    """

    architecture: Architecture = "mc3"
    #: Start from Kinetics-400 weights instead of random ones.
    pretrained: bool = False
    #: With `pretrained`: a random first layer, or the RGB one averaged over its channels (not in the paper).
    stem: Stem = "random"
    dropout: float = 0.3
    #: Passes over the training part. The paper does not say.
    epochs: int = 100
    learning_rate: float = 1e-5
    weight_decay: float = 1e-3
    schedule: Schedule = "constant"
    #: Share of all steps over which the learning rate rises at the start.
    warmup: float = 0.0
    batch_size: int = 1
    #: Batches whose gradients are averaged before a step.
    accumulate: int = 1
    #: "32-true" on the CPU whatever is set. The paper says mixed precision, which was 16 bits then.
    precision: Precision = "16-mixed"
    class_weights: ClassWeights = "paper"
    augmentation: Augmentation = "light"
    #: Share of the subjects held out for the final score, by class; 0 trains on everything. Source: Sec. 2.4.
    holdout: float = 0.3
    #: Share of the training subjects kept for choosing the epoch; 0 keeps the last epoch.
    validation: float = 0.0
    #: Stop after so many epochs without a better validation loss; 0 never stops early.
    patience: int = 0
    seed: int = 0
    #: Take the same cuDNN algorithms every time, at some cost in speed.
    deterministic: bool = True
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        check_choice("architecture", self.architecture, Architecture)
        check_choice("stem", self.stem, Stem)
        check_choice("schedule", self.schedule, Schedule)
        check_choice("precision", self.precision, Precision)
        check_choice("class_weights", self.class_weights, ClassWeights)
        check_choice("augmentation", self.augmentation, Augmentation)
        for name, value, low, high in (
            ("dropout", self.dropout, 0, 0.95),
            ("epochs", self.epochs, 1, 100_000),
            ("learning_rate", self.learning_rate, 1e-9, 10),
            ("weight_decay", self.weight_decay, 0, 10),
            ("warmup", self.warmup, 0, 0.9),
            ("batch_size", self.batch_size, 1, 1024),
            ("accumulate", self.accumulate, 1, 1024),
            ("holdout", self.holdout, 0, 0.9),
            ("validation", self.validation, 0, 0.5),
            ("patience", self.patience, 0, 100_000),
            ("seed", self.seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name}: expected {low} to {high}, found {value}.")
        if self.patience and not self.validation:
            raise ConfigError(
                "patience: early stopping needs a validation part to watch; set validation, for instance to 0.15."
            )

    @staticmethod
    def preset(name: Preset, **changes: Any) -> TrainConfig:
        """A named set of values, with changes.

        Raises:
            ConfigError: an unknown preset or setting, or a value out of range.
        """
        check_choice("preset", name, Preset)
        return config_from_dict(TrainConfig, {**_PRESETS[name], **changes})


#: "paper" is every value as published. "default" learns in fewer epochs (docs/training.md, "Presets"): batches of four
#: give batch normalisation and the weighted loss something to average over, which carries a 30 times higher rate.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "default": {
        "learning_rate": 3e-4,
        "batch_size": 4,
        "schedule": "onecycle",
        "warmup": 0.2,
        "precision": "bf16-mixed",
        "epochs": 60,
    },
}


SKULL_STRIP = ("auto", "deepbet", "bet", "hd-bet", "synthstrip", "none")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How `ssclf predict` treats its input; nothing here changes what a model sees of a stripped volume."""

    skull_strip: str = "auto"
    pattern: str | None = None
    series: str | None = None
    engine: Literal["auto", "onnx", "torchscript"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    #: Processes that read and preprocess, at least 1.
    workers: int = 1
    #: Threads of the CPU engine; 0 for one a core.
    threads: int = 0
    timeout_s: float | None = 600.0
    #: Rows whose highest probability is lower get the flag low_confidence.
    review_below: float = 0.6
    #: Average each volume with its left-right mirror image.
    flip: bool = False
    #: Name DICOM series by their UID instead of a short hash of it.
    keep_uids: bool = False
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.skull_strip not in SKULL_STRIP:
            raise ConfigError(
                f"skull_strip: expected one of {', '.join(SKULL_STRIP)}, found {self.skull_strip!r}."
            )
        if self.engine not in ("auto", "onnx", "torchscript"):
            raise ConfigError(f"engine: expected auto, onnx or torchscript, found {self.engine!r}.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected auto, cpu or cuda, found {self.device!r}.")
        if self.workers < 1 or self.threads < 0:
            raise ConfigError(f"workers: expected 1 or more, found {self.workers}; threads {self.threads}.")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ConfigError(f"timeout_s: expected seconds above 0, found {self.timeout_s}.")
        if not 0 <= self.review_below <= 1:
            raise ConfigError(f"review_below: expected 0 to 1, found {self.review_below}.")
