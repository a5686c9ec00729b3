"""Each option is said once, beside the config field that it sets: what a command shows is what the config does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from ssclf.cli import app as app_module
from ssclf.cli import options
from ssclf.cli.app import app
from ssclf.config import ClusterConfig, Config, Option, PredictConfig, PreprocessConfig, TrainConfig
from ssclf.errors import ConfigError

runner = CliRunner()
#: Commands that take a config's settings, and whether they take all of them.
COMMANDS: list[tuple[str, type[Config], bool]] = [
    ("predict", PredictConfig, True),
    ("predict", ClusterConfig, True),
    ("preprocess", PreprocessConfig, True),
    ("preprocess", PredictConfig, False),
    ("train", TrainConfig, True),
    ("train", PredictConfig, False),
    ("cv", TrainConfig, False),
    ("export", PredictConfig, False),
    ("evaluate", PredictConfig, False),
    ("doctor", PredictConfig, False),
]
#: Of the same name there, and another thing: what training and an ONNX file compute with.
OTHERS = [("train", PredictConfig, "precision"), ("export", PredictConfig, "precision")]
SETTINGS = [
    (command, config, name)
    for command, config, _ in COMMANDS
    for name in options._descriptions(config)
    if name in inspect.signature(getattr(app_module, command)).parameters
    and (command, config, name) not in OTHERS
]


def without_none(kind: Any) -> Any:
    kinds = [part for part in get_args(kind) if part is not type(None)]
    return kinds[0] if type(None) in get_args(kind) and len(kinds) == 1 else kind


@pytest.mark.parametrize(("command", "config", "name"), SETTINGS, ids=lambda v: getattr(v, "__name__", v))
def test_an_option_has_type_default_and_help_of_the_field_that_it_sets(
    command: str, config: type[Config], name: str
) -> None:
    function = getattr(app_module, command)
    hint = get_type_hints(function, include_extras=True)[name]
    if (
        get_origin(hint) is not Annotated
    ):  # Python 3.10 makes Optional[Annotated[…]] where the default is None
        hint = next(part for part in get_args(hint) if get_origin(part) is Annotated)
    kind, info = get_args(hint)
    of_field = without_none(get_type_hints(config)[name])
    default = getattr(config(), name)
    shown = inspect.signature(function).parameters[name].default
    if get_origin(of_field) is tuple:
        assert kind is str
        assert options._several(shown, of_field, "") == default
    else:
        assert without_none(kind) == of_field
        # None is "as the preset says", and a limit of 0 seconds is none
        assert shown == (default or 0 if name == "timeout_s" else default) or (
            shown is None and config in (TrainConfig, PreprocessConfig)
        )
    described = options._descriptions(config)[name]
    assert info.help.startswith(described.help)
    assert info.rich_help_panel == (described.panel or None)


@pytest.mark.parametrize(("command", "config"), [(c, k) for c, k, everything in COMMANDS if everything])
def test_every_field_that_describes_an_option_is_offered(command: str, config: type[Config]) -> None:
    offered = inspect.signature(getattr(app_module, command)).parameters
    assert set(options._descriptions(config)) <= set(offered)


def test_cv_offers_what_train_offers_but_what_each_cell_decides() -> None:
    offered = inspect.signature(getattr(app_module, "cv")).parameters  # noqa: B009 - no name of its own
    assert set(options._descriptions(TrainConfig)) - set(offered) == {"architecture", "pretrained"}


def run(command: Callable[..., None], arguments: list[str]) -> None:
    little = typer.Typer()
    little.command()(command)
    result = runner.invoke(little, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_given_is_what_the_user_said_even_where_it_equals_the_default() -> None:
    found: dict[str, Any] = {}

    def command(
        ctx: typer.Context,
        epochs: options.Epochs = None,
        seed: options.TrainSeed = None,
        compile: options.Compile = None,
        schedule: options.ScheduleOption = None,
    ) -> None:
        found.update(options.given(ctx, TrainConfig))

    run(command, [])
    assert found == {}
    run(command, ["--epochs", "60", "--no-compile", "--schedule", "constant"])
    assert found == {"epochs": 60, "compile": False, "schedule": "constant"}
    assert TrainConfig.preset("default", **found).schedule == "constant"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--spacing", "3"], {"spacing": (3.0, 3.0, 3.0)}),
        (["--spacing", "3, 2,1.5"], {"spacing": (3.0, 2.0, 1.5)}),
        (["--percentiles", "1,99"], {"percentiles": (1.0, 99.0)}),
        (["--contrasts", "T1ce, flair"], {"contrasts": ("t1ce", "flair")}),
    ],
)
def test_texts_of_several_values_are_taken_apart(arguments: list[str], expected: dict[str, Any]) -> None:
    found: dict[str, Any] = {}

    def command(
        ctx: typer.Context,
        spacing: options.Spacing = "2",
        percentiles: options.Percentiles = "0.5,99.5",
        contrasts: options.Contrasts = "t1ce",
    ) -> None:
        found.update(options.given(ctx, PreprocessConfig))

    run(command, arguments)
    assert found == expected
    assert PreprocessConfig(**found) == PreprocessConfig(**expected)


@pytest.mark.parametrize("text", ["", "2,2", "a", "1,2,3,4"])
def test_other_numbers_than_three_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--spacing: expected 3 numbers"):
        options._several(text, tuple[float, float, float], "--spacing")


@pytest.mark.parametrize("config", [PreprocessConfig, PredictConfig, ClusterConfig])
def test_an_option_s_help_ends_as_a_sentence(config: type[Config]) -> None:
    described = options._descriptions(config)
    assert described and all(
        isinstance(part, Option) and part.help.endswith(".") for part in described.values()
    )


@pytest.mark.parametrize(
    "command",
    ["predict", "train", "cv", "export", "evaluate", "preprocess", "doctor", "plan", "merge", "demo"],
)
def test_help_groups_long_lists_of_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    panel = result.output.split("─ Options ─")[1].split("╰")[0]
    assert sum("--" in line.split("  ")[0] for line in panel.splitlines()) <= 8


def test_choices_stand_in_the_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    told = runner.invoke(app, ["train", "--help"]).output
    assert "light|half|heavy|flip|none" in told and "mc3|r2plus1d|r3d|small" in told
    assert "0.001 (--preset paper), 0.01 (--preset default)" in " ".join(told.split())
    told = runner.invoke(app, ["preprocess", "--help"]).output
    assert "none (--preset paper), brain (--preset default)" in " ".join(told.split())
    told = runner.invoke(app, ["predict", "--help"]).output
    assert "auto:ENGINE" in told and "synthstrip" in told
