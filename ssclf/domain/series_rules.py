"""Which series of a study is answered: declared rules, from the model's contrasts or from a site.

Rules stand in an order. A series has the rank of the first rule that it meets; the one with the lowest rank is
answered, and all others are told with the reason. Nothing is guessed: where no series meets a rule, none is answered.

Reasons carry no header text: they go into logs as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ssclf.config import CONTRASTS
from ssclf.errors import ConfigError

PLANES = ("axial", "coronal", "sagittal")
#: Thin enough to be a volume of isotropic voxels, or nearly.
_THIN_MM = 3.0
#: Words for a contrast agent in descriptions, and for what no anatomical volume of a study is.
AGENT = r"\+ ?(?:c|gd|km)\b|(?<![a-z])(?:t1ce|t1gd|post|gd|gad\w*|km|ce|c\+|contrast|kontrast\w*|dotarem)(?![a-z])"
_NO_AGENT = r"(?<![a-z])(?:pre|nativ\w*|without|ohne|w/?o)(?![a-z])"
_DERIVED = (
    r"(?<![a-z])(?:loc\w*|scout|survey|mip|mpr|sub\w*|diff?\w*|dwi|adc|swi|swan|qsm|perf\w*|dsc|dce|pwi|asl|fmri|bold|"
    r"dti|phase|pha|mask|seg|angio\w*|tof|mra|spectro\w*|svs|csi)(?![a-z])"
)
_T1 = r"(?<![a-z0-9])(?:t1\w*|mp2?rage|bravo|f?spgr|tfl\w*|vibe|lava|flash|mdeft|ir-?fspgr)"
_WORDS = {
    "t1": _T1,
    "t1ce": _T1,
    "t2": r"(?<![a-z0-9])t2(?!\*|f|.{0,2}(?:star|flair|tirm))",
    "flair": r"flair|tirm|dark.?fluid",
    "pd": r"(?<![a-z0-9])(?:pdw?|proton)(?![a-z])",
}


@dataclass(frozen=True)
class SeriesFacts:
    """What one header says of a series.

    Attributes:
        key: of its row: path and series.
        uid: SeriesInstanceUID.
        study: StudyInstanceUID.
        number: SeriesNumber, 0 where there is none.
        description: as it stands; goes nowhere but into the rules.
        agent: whether the header names a contrast agent.
        sequences: ScanningSequence: SE, GR, IR, EP.
        plane: "axial", "coronal", "sagittal", or "" where it is not known.
        thickness_mm: None where it is not known.
        slices: files or frames.
    """

    key: tuple[str, str]
    uid: str
    study: str
    number: int = 0
    description: str = field(default="", repr=False)
    agent: bool = False
    sequences: tuple[str, ...] = ()
    plane: str = ""
    thickness_mm: float | None = None
    slices: int = 0


@dataclass(frozen=True)
class SeriesRule:
    """What a series must be; a condition that is left out asks nothing.

    Attributes:
        name: for people; goes into the report.
        contrast_agent: true: the header or the description names one; false: neither does.
        sequence: one of these is in ScanningSequence.
        description: regular expression, found in the description, whatever its case.
        description_not: not found there.
        orientation: of the slices, one of `PLANES`.
        thickness_mm: the most.
        slices: the fewest.
    """

    name: str
    contrast_agent: bool | None = None
    sequence: tuple[str, ...] = ()
    description: str = ""
    description_not: str = ""
    orientation: tuple[str, ...] = ()
    thickness_mm: float | None = None
    slices: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError("a rule of series: expected a name, found none.")
        for text in (self.description, self.description_not):
            try:
                re.compile(text)
            except (re.error, TypeError) as exc:
                raise ConfigError(f"rule {self.name!r}: {text!r} is no regular expression ({exc}).") from exc
        if not isinstance(self.contrast_agent, bool | None):
            raise ConfigError(f"rule {self.name!r}: contrast_agent: expected true or false.")
        if unknown := [plane for plane in self.orientation if plane not in PLANES]:
            raise ConfigError(
                f"rule {self.name!r}: orientation: expected {', '.join(PLANES)}, found {unknown[0]!r}."
            )
        if self.thickness_mm is not None and not 0 < self.thickness_mm < 1000:
            raise ConfigError(f"rule {self.name!r}: thickness_mm: expected a positive number.")
        if not isinstance(self.slices, int):
            raise ConfigError(f"rule {self.name!r}: slices: expected a whole number.")

    def unmet(self, facts: SeriesFacts) -> str:
        """Which condition a series does not meet, "" where it meets all."""
        text = facts.description
        agent = has_agent(facts)
        checks = (
            (self.contrast_agent is not True or agent, "no contrast agent is named"),
            (self.contrast_agent is not False or not agent, "a contrast agent is named"),
            (
                not self.sequence or bool(set(self.sequence) & set(facts.sequences)),
                "another kind of sequence",
            ),
            (_found(self.description, text), "another description"),
            (not self.description_not or not _found(self.description_not, text), "an excluded description"),
            (not self.orientation or facts.plane in self.orientation, "another orientation"),
            (self._is_thin(facts.thickness_mm), "thicker slices, or of unknown thickness"),
            (facts.slices >= self.slices, "fewer slices"),
        )
        return next((reason for met, reason in checks if not met), "")

    def _is_thin(self, thickness: float | None) -> bool:
        return self.thickness_mm is None or (thickness is not None and thickness <= self.thickness_mm)


@dataclass(frozen=True)
class OtherSeries:
    """A series of the study that is not answered, and why.

    Attributes:
        key: of its row, for people who look for it; no part of a report.
    """

    uid: str
    number: int
    reason: str
    key: tuple[str, str] = ("", "")

    @property
    def said(self) -> tuple[str, int, str]:
        """What a report says of it."""
        return self.uid, self.number, self.reason


@dataclass(frozen=True)
class StudyChoice:
    """What a study's report is about.

    Attributes:
        study: StudyInstanceUID.
        key: of the row that the report is written with.
        rule: name of the rule that chose its series, "" where no series of the study is answered.
        others: the series that are not answered; where none is, all of them.
    """

    study: str
    key: tuple[str, str]
    rule: str
    others: tuple[OtherSeries, ...] = ()


def has_agent(facts: SeriesFacts) -> bool:
    """Whether a contrast agent is named: by the header, or by the description, unless that says there was none."""
    named = facts.agent or _found(AGENT, facts.description)
    return named and not _found(_NO_AGENT, facts.description)


def choose_series(series: Sequence[SeriesFacts], rules: Sequence[SeriesRule]) -> list[StudyChoice]:
    """For every study the one series that is answered.

    Of several that meet the same rule, that with the thinnest slices is answered, then that with the most, then the
    first by number.

    Returns:
        a choice for each study, in the order of their first series.
    """
    studies: dict[str, list[SeriesFacts]] = {}
    for facts in series:
        studies.setdefault(facts.study, []).append(facts)
    return [_choose(study, found, rules) for study, found in studies.items()]


def _choose(study: str, series: Sequence[SeriesFacts], rules: Sequence[SeriesRule]) -> StudyChoice:
    ranks = {facts.key: _rank(facts, rules) for facts in series}
    ordered = sorted(series, key=lambda facts: (ranks[facts.key], *_order(facts)))
    first = ordered[0]
    rank = ranks[first.key]
    if rank == len(rules):
        told = tuple(
            OtherSeries(facts.uid, facts.number, _unmet(facts, rules), facts.key)
            for facts in sorted(series, key=_by_number)
        )
        return StudyChoice(study, told[0].key, "", told)
    others = tuple(
        OtherSeries(facts.uid, facts.number, _why_not(facts, first, ranks[facts.key], rank, rules), facts.key)
        for facts in sorted(ordered[1:], key=_by_number)
    )
    return StudyChoice(study, first.key, rules[rank].name, others)


def _rank(facts: SeriesFacts, rules: Sequence[SeriesRule]) -> int:
    return next((rank for rank, rule in enumerate(rules) if not rule.unmet(facts)), len(rules))


def _by_number(facts: SeriesFacts) -> tuple[int, str, tuple[str, str]]:
    return facts.number, facts.uid, facts.key


def _order(facts: SeriesFacts) -> tuple[float, int, int, str, tuple[str, str]]:
    thickness = float("inf") if facts.thickness_mm is None else facts.thickness_mm
    return thickness, -facts.slices, *_by_number(facts)


def _why_not(
    facts: SeriesFacts, first: SeriesFacts, rank: int, best: int, rules: Sequence[SeriesRule]
) -> str:
    if facts.uid == first.uid:
        return "another copy of the series that is answered."
    if rank == len(rules):
        return _unmet(facts, rules)
    if rank > best:
        return f"meets only rule {rank + 1} ({rules[rank].name}); another series meets rule {best + 1}."
    return f"meets the same rule ({rules[rank].name}), with thicker or fewer slices, or a later number."


def _unmet(facts: SeriesFacts, rules: Sequence[SeriesRule]) -> str:
    reasons = dict.fromkeys(rule.unmet(facts) for rule in rules)
    return f"meets no rule: {', '.join(reasons)}."


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def default_rules(contrasts: Sequence[str]) -> tuple[SeriesRule, ...]:
    """Of a model that brings none: its first contrast, by description and contrast agent; thin slices first."""
    contrast = contrasts[0]
    agent = {"t1ce": True, "t1": False}.get(contrast)
    words = _WORDS.get(
        contrast, "|".join(re.escape(word) for word in (contrast, *CONTRASTS.get(contrast, ())))
    )
    common: dict[str, Any] = {"contrast_agent": agent, "description_not": _DERIVED}
    rules = [
        SeriesRule(f"{contrast}, thin slices", description=words, thickness_mm=_THIN_MM, **common),
        SeriesRule(contrast, description=words, **common),
    ]
    if contrast == "t1ce":
        # what is scanned after the agent with gradient echoes and thin slices is T1-weighted
        gradient = {"sequence": ("GR",), "thickness_mm": _THIN_MM, **common}
        rules.append(SeriesRule("gradient echo after contrast agent, thin slices", **gradient))
    return tuple(rules)


def rules_to_list(rules: Sequence[SeriesRule]) -> list[dict[str, Any]]:
    """Plain JSON values, without the conditions that ask nothing."""
    empty = asdict(SeriesRule("-"))
    return [
        {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(rule).items()
            if name == "name" or value != empty[name]
        }
        for rule in rules
    ]


def rules_from_list(values: Any, source: str) -> tuple[SeriesRule, ...]:
    """The inverse of `rules_to_list`, for what people write.

    Args:
        values: a list of tables, one a rule.
        source: file name for messages.

    Raises:
        ConfigError: no rules, a condition that is not known, or a value that it cannot have.
    """
    if not isinstance(values, list) or not values or not all(isinstance(rule, Mapping) for rule in values):
        raise ConfigError(f"{source}: expected one table [[rule]] or more, found {type(values).__name__}.")
    known = {each.name for each in fields(SeriesRule)}
    rules = []
    for number, rule in enumerate(values, start=1):
        if unknown := sorted(set(rule) - known):
            raise ConfigError(
                f"{source}: rule {number}: unknown condition {unknown[0]}; known are {', '.join(sorted(known))}."
            )
        named = {"name": f"rule {number}", **rule}
        listed: dict[str, Any] = {
            name: tuple([value] if isinstance(value, str) else value)
            if name in ("sequence", "orientation")
            else value
            for name, value in named.items()
        }
        try:
            rules.append(SeriesRule(**listed))
        except (ConfigError, TypeError, ValueError) as exc:
            raise ConfigError(f"{source}: {exc}") from exc
    return tuple(rules)
