"""What training chooses by itself, and says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ssclf.workflows.recipe
from ssclf.config import STEPS, TrainConfig
from ssclf.io.records.preprocessed import PreparedCohort, read_prepared_cohort
from ssclf.learning.cost import training_bytes
from ssclf.workflows.recipe import choose_recipe


@pytest.fixture
def cohort(preprocessed: Callable[..., Path]) -> PreparedCohort:
    found = read_prepared_cohort(preprocessed(per_class=12))
    return replace(found, samples=tuple(replace(s, cells={"shape": "6 x 20 x 18"}) for s in found.samples))


def test_a_cpu_trains_the_small_network_for_long_enough(cohort: PreparedCohort) -> None:
    recipe = choose_recipe(cohort, {}, "cpu")
    assert recipe.config.architecture == "small" and recipe.config.learning_rate == 2e-3
    # 25 volumes train, in three steps of twelve and less an epoch
    assert recipe.config.epochs == STEPS // 3
    assert [reason.split(":")[0] for reason in recipe.reasons] == ["--model small", "--epochs 200"]


@pytest.mark.parametrize(
    "given",
    [
        {"architecture": "r3d", "epochs": 7, "batch_size": 5},
        {
            "architecture": "small",
            "epochs": 7,
            "accumulate": 3,
            "learning_rate": 1e-4,
            "augmentation": "heavy",
        },
        {"pretrained": True, "epochs": 1},
    ],
)
def test_what_is_given_stays(given: dict[str, Any], cohort: PreparedCohort) -> None:
    config = choose_recipe(cohort, given, "cpu").config
    assert config == TrainConfig.preset("default", **{"architecture": "mc3", **given})


def test_batches_are_cut_to_what_fits(cohort: PreparedCohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free memory of a smaller machine; its step has as many volumes, in parts."""
    each = training_bytes("small", (1, 6, 20, 18))
    monkeypatch.setattr(ssclf.workflows.recipe, "free_memory", lambda: 9 * each)
    recipe = choose_recipe(cohort, {}, "cpu")
    assert (recipe.config.batch_size, recipe.config.accumulate) == (4, 3)
    assert any("memory for 5 volumes" in reason for reason in recipe.reasons)
    assert choose_recipe(cohort, {"batch_size": 12}, "cpu").config.batch_size == 12


@pytest.mark.parametrize("architecture", ["small", "mc3"])
def test_memory_of_training_grows_with_the_volume(architecture: Any) -> None:
    one, eight = (training_bytes(architecture, (1, n, n, n)) for n in (16, 32))
    assert 6 < eight / one < 9
    assert one > 16**3 * 4 * 16  # the first feature map alone
