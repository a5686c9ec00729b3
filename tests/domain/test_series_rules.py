"""Which series of a study is answered is decided by rules that are written down, and the others are told why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ssclf.domain.flags import FLAGS
from ssclf.domain.series_rules import (
    SeriesFacts,
    SeriesRule,
    choose_series,
    default_rules,
    has_agent,
    rules_from_list,
    rules_to_list,
)
from ssclf.domain.stable_uids import stable_uid
from ssclf.domain.study_report import FLAG_CODES, WITHHOLDING, class_concept, flag_concept
from ssclf.errors import ConfigError


def facts(number: int, description: str, **more: Any) -> SeriesFacts:
    values = {"study": "1.2", "thickness_mm": 1.0, "slices": 176, **more}
    return SeriesFacts((f"s{number}", ""), f"1.2.{number}", number=number, description=description, **values)


STUDY = [
    facts(2, "t1_mprage_sag"),
    facts(3, "t2_tse_tra", thickness_mm=4.0, slices=28),
    facts(4, "t2_flair_3d"),
    facts(5, "ep2d_diff_b1000", thickness_mm=4.0),
    facts(6, "t1_se_tra KM", thickness_mm=5.0, slices=24, agent=True),
    facts(7, "t1_mprage_sag_KM", agent=True),
    facts(8, "t1_mprage_sag_KM MPR tra", agent=True, thickness_mm=2.0),
    facts(9, "t1_mprage_SUB", agent=True),
    facts(10, "", agent=True, sequences=("EP",)),
]


@pytest.mark.parametrize(("contrast", "number"), [("t1ce", 7), ("t1", 2), ("t2", 3), ("flair", 4)])
def test_a_model_answers_the_series_of_its_contrast(contrast: str, number: int) -> None:
    (choice,) = choose_series(STUDY, default_rules((contrast,)))
    assert choice.key == (f"s{number}", "") and choice.rule
    assert [other.number for other in choice.others] == [f.number for f in STUDY if f.number != number]
    assert all(other.reason for other in choice.others)
    (again,) = choose_series(STUDY[::-1], default_rules((contrast,)))
    assert again == choice


def test_reasons_name_the_rule_and_no_header_text() -> None:
    (choice,) = choose_series(STUDY, default_rules(("t1ce",)))
    reasons = {other.number: other.reason for other in choice.others}
    assert "no contrast agent is named" in reasons[2]
    assert "rule 2" in reasons[6] and "rule 1" in reasons[6]
    assert "an excluded description" in reasons[8]
    assert not any(word in " ".join(reasons.values()).lower() for word in ("mprage", "ep2d", "flair"))


def test_a_study_without_a_fitting_series_has_no_answer() -> None:
    (choice,) = choose_series(STUDY[:3], default_rules(("t1ce",)))
    assert not choice.rule and choice.key == ("s2", "") and len(choice.others) == 3
    assert all(other.reason.startswith("meets no rule") for other in choice.others)


def test_every_study_has_its_own_answer_and_copies_are_told() -> None:
    two = [*STUDY, replace(STUDY[5], study="1.3", key=("b", "")), replace(STUDY[5], key=("z", ""))]
    first, second = choose_series(two, default_rules(("t1ce",)))
    assert (first.study, second.study) == ("1.2", "1.3") and second.key == ("b", "") and not second.others
    (copy,) = (other for other in first.others if other.uid == STUDY[5].uid)
    assert "copy" in copy.reason and copy.key == ("z", "")


def test_thinner_then_more_slices_then_the_lower_number() -> None:
    rules = (SeriesRule("any"),)
    series = [
        facts(1, "", thickness_mm=None),
        facts(2, "", thickness_mm=3.0),
        facts(3, "", slices=200),
        facts(4, ""),
    ]
    chosen = []
    while series:
        (choice,) = choose_series(series, rules)
        chosen.append(choice.key[0])
        series = [one for one in series if one.key != choice.key]
    assert chosen == ["s3", "s4", "s2", "s1"]


@pytest.mark.parametrize(
    ("description", "agent", "expected"),
    [
        ("T1 +C", False, True), ("t1 post gd", False, True), ("T1 KM", False, True), ("AX T1 C+", False, True),
        ("t1_mprage_ce", False, True), ("t1_mprage", False, False), ("T1 space", False, False),
        ("postcentral", False, False), ("T1 ohne KM", False, False), ("T1 without contrast", True, False),
        ("", True, True), ("t1 pre contrast", False, False),
    ],
)  # fmt: skip
def test_contrast_agents(description: str, agent: bool, expected: bool) -> None:
    assert has_agent(facts(1, description, agent=agent)) is expected


@pytest.mark.parametrize(
    ("rule", "unmet"),
    [
        ({"contrast_agent": True}, "no contrast agent"),
        ({"sequence": ["SE"]}, "another kind"),
        ({"description": "t2"}, "another description"),
        ({"description_not": "MPRAGE"}, "excluded"),
        ({"orientation": "axial"}, "orientation"),
        ({"thickness_mm": 0.5}, "thicker"),
        ({"slices": 177}, "fewer"),
        (
            {
                "contrast_agent": False,
                "sequence": "GR",
                "description": "t1.*RAGE",
                "orientation": ["sagittal"],
            },
            "",
        ),
    ],
)
def test_conditions(rule: dict[str, Any], unmet: str) -> None:
    (one,) = rules_from_list([{"name": "x", **rule}], "rules.toml")
    found = one.unmet(facts(2, "t1_mprage", plane="sagittal", sequences=("GR", "IR")))
    assert bool(found) == bool(unmet) and unmet in found
    assert rules_from_list(rules_to_list([one]), "again") == (one,)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([], "rule"),
        ({"name": "x"}, "rule"),
        (["x"], "rule"),
        ([{"thickness": 1}], "unknown condition thickness"),
        ([{"description": "("}], "regular expression"),
        ([{"orientation": ["up"]}], "axial"),
        ([{"thickness_mm": -1}], "positive"),
        ([{"thickness_mm": "thin"}], "rules.toml"),
        ([{"contrast_agent": "yes"}], "true or false"),
        ([{"slices": "many"}], "slices"),
    ],
)
def test_rules_that_cannot_be_are_refused_with_their_file(values: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        rules_from_list(values, "rules.toml")
    assert "rules.toml" in str(caught.value)


def test_stable_uids_never_change() -> None:
    """The one of today: another value would make every object of every archive a new one."""
    assert stable_uid("a", "b") == stable_uid("a", "b") != stable_uid("ab", "")
    assert stable_uid("report", "1.2.3") == "2.25.336595837623251205990916387618612657791"
    assert all(len(stable_uid(str(n))) <= 64 for n in range(50))


def test_every_flag_and_class_has_a_code() -> None:
    assert set(FLAG_CODES) == set(FLAGS) and len(set(FLAG_CODES.values())) == len(FLAGS)
    assert set(WITHHOLDING) <= set(FLAGS)
    for concept in (*map(flag_concept, FLAGS), *map(class_concept, ("LGG", "x" * 90, "ä"))):
        assert len(concept.value) <= 16 and 0 < len(concept.meaning) <= 64
