"""What the report of a study says: values only; `ssclf.io.dicom_out` makes DICOM of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ssclf.domain.flags import FLAGS
from ssclf.domain.series_rules import OtherSeries

NOTICE = "Research use only. Not a medical device, not for diagnosis or treatment."
#: Flags of volumes of which nothing should be said to people who see the report alone.
WITHHOLDING = ("wrong_contrast", "partial_coverage")
#: Private coding scheme, for what neither SNOMED CT nor DICOM has a code for.
SCHEME = "99SSCLF"
#: Digits of a probability: what another machine's rounding changes is not among them.
_DIGITS = 4


class Concept(NamedTuple):
    """A code: value, scheme, and what it means."""

    value: str
    scheme: str
    meaning: str


PREDICTED_CLASS = Concept("100", SCHEME, "Predicted class")
FLAG = Concept("101", SCHEME, "Reason to look again")
CLASSIFICATION = Concept("102", SCHEME, "Classification of a brain volume")
NO_CLASSIFICATION = Concept("103", SCHEME, "No classification")
REASON = Concept("104", SCHEME, "Reason for no classification")
OTHER_SERIES = Concept("105", SCHEME, "Series that are not answered")
OTHER_REASON = Concept("106", SCHEME, "Reason why the series is not answered")
RULE = Concept("107", SCHEME, "Rule that chose the series")
SERIES = Concept("108", SCHEME, "Series")
#: A code stays with its flag for ever; a new flag gets the next.
FLAG_CODES = {
    "stripped_by_ssclf": "F01",
    "assumed_stripped": "F02",
    "other_extraction": "F03",
    "implausible_brain_volume": "F04",
    "form_conflict": "F05",
    "repaired_affine": "F06",
    "shear": "F07",
    "oblique": "F08",
    "thick_slices": "F09",
    "partial_coverage": "F10",
    "incomplete_series": "F11",
    "wrong_contrast": "F12",
    "low_confidence": "F13",
    "unlike_training": "F14",
    "trained_on": "F15",
    "reference_model": "F16",
}
#: Words that classes of glioma are called by, and what they are.
_GLIOMA = Concept("393564001", "SCT", "Glioma")
_GLIOMAS = {"hgg": "High grade glioma", "lgg": "Low grade glioma", "glioma": "Glioma"}


def class_concept(name: str) -> Concept:
    """The code of a class: the name that the model gives it, which says no more than its training did."""
    meaning = _GLIOMAS.get(name.lower(), name)
    shown = name if meaning == name else f"{meaning} ({name})"
    code = name if len(name) <= 16 else hashlib.sha256(name.encode()).hexdigest()[:16]
    return Concept(code, SCHEME, shown[:64])


def class_category(name: str) -> Concept | None:
    """What a class is by SNOMED CT, where it has a code for it."""
    return _GLIOMA if name.lower() in _GLIOMAS else None


def flag_concept(flag: str) -> Concept:
    return Concept(FLAG_CODES[flag], SCHEME, flag.replace("_", " "))


@dataclass(frozen=True)
class StudyReport:
    """Everything that a report says but who the patient is and where the images lie.

    Attributes:
        class_names: of the model.
        probabilities: in their order; () where there is no classification.
        prediction: "" where there is none.
        withheld: why there is no classification, "" where there is one.
        flags: codes of `ssclf.domain.flags`.
        models: name and SHA-256 of each.
        version: of ssclf.
        settings: of the run, that change what is said: part of the report's identity.
        synthetic: whether a model was trained on synthetic volumes.
        rule: that chose the series.
        others: the series of the study that are not answered.
    """

    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    prediction: str
    withheld: str
    flags: tuple[str, ...]
    models: tuple[tuple[str, str], ...]
    version: str
    settings: str = ""
    synthetic: bool = False
    rule: str = ""
    others: tuple[OtherSeries, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the report says in words, for readers that show no codes; the notice first."""
        said = [NOTICE]
        if self.synthetic:
            said.append("The model was trained on synthetic volumes.")
        names = ", ".join(name for name, _ in self.models)
        if self.withheld:
            said.append(f"No classification by {names}: {self.withheld}")
        else:
            scores = ", ".join(
                f"{name} {p:.2f}" for name, p in zip(self.class_names, self.probabilities, strict=True)
            )
            said.append(f"{names} finds {self.prediction} (probabilities: {scores}).")
        if self.flags:
            said.append(f"Reasons to look again: {', '.join(flag.replace('_', ' ') for flag in self.flags)}.")
        return tuple(said)

    @property
    def identity(self) -> tuple[str, ...]:
        """What UIDs are made from beside the images and the kind of object: equal for the same scan, models, version
        and settings. Probabilities are not among it: they follow from these, up to rounding on another machine."""
        said = {name: value for name, value in asdict(self).items() if name != "probabilities"}
        said["others"] = [other.said for other in self.others]
        return (json.dumps(said, sort_keys=True),)


def withheld_because(status: str, error: str, flags: Sequence[str], rule: str) -> str:
    """Why a row gives no classification to send, "" where it gives one.

    Args:
        status, error, flags: of the row.
        rule: that chose its series, "" for none.
    """
    if not rule:
        return "No series of this study meets a rule of the series that this model answers."
    if status != "ok":
        return f"The series could not be classified: {error}"
    found = [flag for flag in WITHHOLDING if flag in flags]
    return " ".join(f"{flag}: {FLAGS[flag]}." for flag in found)


def study_report(
    *,
    class_names: Sequence[str],
    probabilities: Sequence[float],
    prediction: str,
    status: str,
    error: str,
    flags: Sequence[str],
    models: Sequence[tuple[str, str]],
    version: str,
    settings: str,
    synthetic: bool,
    rule: str,
    others: Sequence[OtherSeries],
) -> StudyReport:
    """What is said of a finished row; no class where it may not be sent."""
    withheld = withheld_because(status, error, flags, rule)
    return StudyReport(
        class_names=tuple(class_names),
        probabilities=() if withheld else tuple(round(float(p), _DIGITS) for p in probabilities),
        prediction="" if withheld else prediction,
        withheld=withheld,
        flags=tuple(flags) if rule else (),
        models=tuple(models),
        version=version,
        settings=settings,
        synthetic=synthetic,
        rule=rule,
        others=tuple(others),
    )
