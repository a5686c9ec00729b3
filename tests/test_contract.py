"""docs/contract.md says what others rely on; the program is what it says."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

import ssclf
from ssclf import config, errors
from ssclf.cli.app import app
from ssclf.domain.flags import FLAGS
from ssclf.domain.volume import Volume
from ssclf.io.records.results import ResultRow, csv_columns
from ssclf.io.volumes.nifti import write_nifti
from ssclf.workflows.interruption import exit_code

ROOT = Path(__file__).parents[1]
CONTRACT = (ROOT / "docs" / "contract.md").read_text("utf-8")
#: Those that Typer gives every app; the text of "Commands" names them.
GIVEN = {"--help", "--install-completion", "--show-completion"}


def table(*header: str) -> list[list[str]]:
    """The rows of the only table of the contract with this header."""
    begin = f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n"
    assert CONTRACT.count(begin) == 1, f"expected one table with the header {header}"
    rows = CONTRACT.partition(begin)[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert all(len(row) == len(header) for row in cells)
    return cells


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that a user may type, `ssclf` itself among them, as Typer built it."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        below = getattr(command, "commands", {})
        if not below or name == "ssclf":
            yield name, command
        for word, child in below.items():
            if not child.hidden:
                yield from walk(child, f"{name} {word}")

    yield from walk(typer.main.get_command(app), "ssclf")


COMMANDS = dict(commands())


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and not p.hidden]


def test_every_command_is_promised_with_its_arguments() -> None:
    promised = {
        codes(name)[0]: codes(takes) for name, takes, _ in table("command", "takes", "reads → writes")
    }
    found = {
        name: [p.name.upper() for p in command.params if p.param_type_name == "argument"]
        for name, command in COMMANDS.items()
        if name != "ssclf"
    }
    assert promised == found


def test_every_option_is_promised_and_there() -> None:
    promised = {codes(name)[0]: set(codes(words)) for name, words in table("command", "options")}
    found = {
        name: {word for option in options(command) for word in (*option.opts, *option.secondary_opts)} - GIVEN
        for name, command in COMMANDS.items()
    }
    assert promised == found


def test_defaults_are_those_promised() -> None:
    for name, words in table("command", "defaults"):
        known = {word: option for option in options(COMMANDS[codes(name)[0]]) for word in option.opts}
        for word in codes(words):
            flag, _, value = word.partition(" ")
            default = known[flag].default
            shown = f"{default:g}" if isinstance(default, float) else str(getattr(default, "value", default))
            assert shown == value, f"{name} {flag}"


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("architecture", get_args(config.Architecture)),
        ("preset", get_args(config.Preset)),
        ("plane", get_args(config.Plane)),
        ("crop", get_args(config.Crop)),
        ("augmentation", get_args(config.Augmentation)),
        ("schedule", get_args(config.Schedule)),
        ("stem", get_args(config.Stem)),
        ("precision", get_args(config.Precision)),
        ("precision of `export`", get_args(config.ExportPrecision)),
        ("map method", get_args(config.MapMethod)),
        ("tracker", get_args(config.TrackerName)),
        ("weights", get_args(config.WeightsKind)),
        ("skull stripping", config.SKULL_STRIP),
    ],
)
def test_values_that_have_names(setting: str, values: tuple[str, ...]) -> None:
    promised = dict(table("setting", "values"))
    assert codes(promised[setting]) == list(values)


def test_columns_of_results() -> None:
    promised = [codes(name)[0] for name, _ in table("column", "holds")]
    at = promised.index("p_<class>")
    promised[at : at + 1] = ["p_LGG", "p_HGG"]
    assert promised == csv_columns(["LGG", "HGG"])


def test_columns_that_preprocess_writes(tmp_path: Path, make_volume: Callable[..., Volume]) -> None:
    for number, label in enumerate(("HGG", "LGG")):
        write_nifti(make_volume(seed=number), tmp_path / "in" / label / f"{number}.nii.gz")
    (tmp_path / "in" / "HGG" / "broken.nii").write_bytes(b"no volume")
    arguments = [
        "preprocess",
        tmp_path / "in",
        "--out",
        tmp_path / "out",
        "--spacing",
        "10",
        "--workers",
        "1",
        "-q",
    ]
    done = CliRunner().invoke(app, [str(word) for word in (*arguments, "--skull-strip", "none")])
    assert done.exit_code == 3, done.output
    promised = {codes(name)[0]: codes(columns) for name, columns in table("file", "columns, in their order")}
    for name, columns in promised.items():
        with (tmp_path / "out" / name).open(encoding="utf-8", newline="") as file:
            assert next(csv.reader(file)) == columns, name
    section = CONTRACT.partition("## Preprocessed folder\n")[2].partition("|")[0]
    for path in (tmp_path / "out").iterdir():
        assert f"`{path.name}{'/' * path.is_dir()}`" in section or path.name.startswith("."), path.name


def test_flags() -> None:
    assert [codes(name)[0] for (name,) in table("flag")] == list(FLAGS)


def test_exit_codes() -> None:
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    known = {value.exit_code for value in classes if issubclass(value, errors.SsclfError)}
    assert known == {1}
    usage = CliRunner().invoke(app, ["predict", "a", "--no-such-option"]).exit_code
    ended = {
        exit_code(failed=failed, interrupted=by)
        for failed in (False, True)
        for by in (0, signal.SIGINT, signal.SIGTERM)
    }
    assert {int(code) for code, _ in table("code", "when")} == {*known, usage, *ended}


def test_bundles_have_the_promised_keys(tiny_bundle: Path) -> None:
    promised = CONTRACT.partition("`spec.json` has these keys: ")[2].partition(".\n")[0]
    assert set(codes(promised)) == set(json.loads((tiny_bundle / "spec.json").read_text("utf-8")))


def test_python() -> None:
    section = CONTRACT.partition("## Python\n")[2].partition("\n## ")[0]
    called = re.search(r"`ssclf\.predict\(([^)]*)\)`", section)
    assert called
    promised = [name.partition("=")[0] for name in called[1].split(", ")]
    assert promised == list(inspect.signature(ssclf.predict).parameters)
    attributes = codes(section.partition("Rows have the attributes ")[2].partition(".")[0])
    row = ResultRow(path="a", series="", status="ok")
    assert attributes and all(hasattr(row, name) for name in attributes)


def test_sections_that_the_code_cites_are_there() -> None:
    sources = [*(ROOT / "ssclf").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    cited = {
        section
        for path in sources
        for section in re.findall(r'[Cc]ontract(?:\.md)?, "([^"]+)"', path.read_text("utf-8"))
    }
    headings = set(re.findall(r"^#+ (.+)$", CONTRACT, re.MULTILINE))
    assert cited and cited <= headings


def test_scripts_of_the_set_up_are_there() -> None:
    named = [codes(name)[0] for name, _ in table("command", "does")]
    for name in named:
        assert os.access(ROOT / name, os.X_OK), name
