"""The command line: parse, call one workflow, print what came back, set the exit code.

Heavy imports live inside the commands, so that `ssclf --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from ssclf import __version__
from ssclf.config import PreprocessConfig
from ssclf.errors import ConfigError, SsclfError


class ErrorsAsMessages(TyperGroup):
    """Turns our exceptions into one line on stderr and an exit code; a bug of ours keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SsclfError as exc:
            typer.echo(f"error: {exc}", err=True)
            raise typer.Exit(exc.exit_code) from exc
        except KeyboardInterrupt as exc:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from exc
        except ModuleNotFoundError as exc:
            if (exc.name or "").split(".")[0] not in _TRAIN_PACKAGES:
                raise
            typer.echo(
                f'error: this command needs {exc.name}; install it with `pip install "ssclf[train]"` '
                "(beside ssclf[cpu] or ssclf[gpu]).",
                err=True,
            )
            raise typer.Exit(1) from exc


_TRAIN_PACKAGES = {
    "deepbet", "lightning_fabric", "matplotlib", "onnx", "onnxscript", "sklearn", "tensorboard", "torch",
    "torchio", "torchvision",
}  # fmt: skip

app = typer.Typer(
    cls=ErrorsAsMessages,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help="Spatiospatial classifier of brain MR volumes: LGG glioma, HGG glioma or healthy. "
    "[bold]Research use only, not a medical device.[/bold]",
)


def main() -> None:
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ssclf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


# Options that several commands share, each written once.
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that read volumes; 0: one a core.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu or cuda; asking for cuda without one is an error.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
LogLevel = Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")]
SkullStrip = Annotated[
    str,
    typer.Option(
        "--skull-strip",
        help="auto (strip only what is not stripped), deepbet, bet, hd-bet, synthstrip, or none (take as is).",
    ),
]
AssumeStripped = Annotated[
    bool, typer.Option("--assume-stripped", help="The same as --skull-strip none.")
]
Seed = Annotated[int, typer.Option("--seed", help="For everything drawn at random.")]

_PREPROCESS = PreprocessConfig()


def _start(quiet: bool, log_level: str) -> None:
    level = logging.getLevelName("ERROR" if quiet else log_level.upper())
    if not isinstance(level, int):
        raise typer.BadParameter(f"expected debug, info, warning or error, found {log_level!r}", param_hint="--log-level")
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("ssclf").setLevel(level)


def _count(workers: int) -> int:
    return workers or len(os.sched_getaffinity(0))


def _numbers(text: str, count: int, option: str) -> tuple[float, ...]:
    """`2` or `2,2,3` → three numbers."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) == 1 and count == 3:
        values *= 3
    if len(values) != count:
        raise ConfigError(f"{option}: expected {count} numbers separated by commas, found {text!r}.")
    return values
