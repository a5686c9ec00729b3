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
Augmentation = Literal["light", "heavy", "none"]
Schedule = Literal["constant", "cosine", "onecycle"]

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
