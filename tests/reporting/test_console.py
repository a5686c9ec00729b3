"""What long work says of itself where there is no terminal."""

from __future__ import annotations

import re

import pytest

import ssclf.reporting.console
from ssclf.reporting.console import StepLines


@pytest.mark.parametrize(("epochs", "of", "until"), [(3, " of 3", ""), (None, "", " of this epoch")])
def test_steps_are_told_between_two_epochs(
    epochs: int | None, of: str, until: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training said nothing for as long as an epoch took."""
    monkeypatch.setattr(ssclf.reporting.console, "PLAIN_INTERVAL_S", 0.0)
    lines: list[str] = []
    tell = StepLines(lines.append, epochs, "cell")
    for epoch in (2, 3):  # a run that goes on
        for step in range(1, 5):
            tell(epoch, step, 4, 0.5 / step)
    assert len(lines) == 7
    expected = rf"cell epoch 3{of}, step 4 of 4: loss 0\.1250, \d+\.\d\d s a step, about 0 s{until} left"
    assert re.fullmatch(expected, lines[-1]), lines[-1]


def test_who_was_heard_is_silent_for_a_while() -> None:
    lines: list[str] = []
    tell = StepLines(lines.append)
    for step in range(1, 100):
        tell(1, step, 100, 1.0)
    assert lines == []
