from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssclf.domain.eight_bits import Differences, EightBits, balanced

CLASSES = ("LGG", "HGG", "healthy")


@given(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=60), st.integers(1, 70))
def test_as_many_of_each_class_as_there_are(names: list[str], count: int) -> None:
    labels = {f"v{number:02}": name for number, name in enumerate(names)}
    chosen = balanced(labels, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(labels))
    assert chosen == balanced(dict(reversed(labels.items())), count), "the order of the manifest matters"
    taken, there = Counter(labels[key] for key in chosen), Counter(names)
    for name, other in ((a, b) for a in there for b in there):
        assert taken[name] >= taken[other] - 1 or taken[name] == there[name]


def compare(expected: list[list[float]], found: list[list[float]]) -> Differences:
    return Differences(tuple("abcdefghijklmnop"[: len(found)]), np.array(expected), np.array(found))


def test_the_gate_lets_small_differences_through_and_unsure_changes() -> None:
    plain = [[0.7, 0.2, 0.1], [0.404, 0.4, 0.196]]
    close = compare(plain, [[0.681, 0.219, 0.1], [0.4, 0.404, 0.196]])
    assert close.passes and close.changed.tolist() == [False, True]
    for far in ([0.67, 0.23, 0.1], [0.2, 0.7, 0.1], [np.nan] * 3):
        assert compare(plain, [far, plain[1]]).too_far.tolist() == [True, False]
    two = compare([[0.601, 0.399], [0.505, 0.495]], [[0.399, 0.601], [0.495, 0.505]])
    assert two.too_far.tolist() == [True, False], "a sure prediction changed"


def test_the_table_names_what_is_too_far_and_counts_the_rest() -> None:
    plain, found = [[0.9, 0.05, 0.05]] * 15, [[0.9 - 0.03 * n, 0.05 + 0.03 * n, 0.05] for n in range(15)]
    lines = compare(plain, found).table(CLASSES).splitlines()
    assert lines[1].split() == ["0.420", "LGG", "0.900", "LGG", "0.480", "o"]
    assert len(lines) == 1 + 12 + 1 and lines[-1].strip() == "and 2 more"


def test_the_record_survives_the_round_trip_and_no_odd_temperature() -> None:
    eight = EightBits(
        temperature=1.5, fitted_on="validation", calibrated_on={"LGG": 3}, kept=("stem.0",), part="validation",
        volumes=9, largest_difference=0.01, changed=0,
    )  # fmt: skip
    values = json.loads(json.dumps(eight.to_dict()))
    assert EightBits.from_dict(values) == eight
    for temperature in (0, -1, 1e9, "x"):
        with pytest.raises(ValueError):
            EightBits.from_dict({**values, "temperature": temperature})
