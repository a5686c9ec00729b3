"""The command line: parse, call one workflow, print what came back, set the exit code.

Heavy imports live inside the commands, so that `ssclf --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ssclf import __version__
from ssclf.cli.bids import bids
from ssclf.cli.machine import demo, doctor
from ssclf.cli.predict import merge, plan, predict
from ssclf.cli.prepare import preprocess
from ssclf.cli.saying import say
from ssclf.cli.serve import serve
from ssclf.cli.train import cv, evaluate, export, pretrain, train, weights_app
from ssclf.errors import OutputError, SsclfError
from ssclf.io.files import disk_trouble
from ssclf.workflows.interruption import end_orderly


class ErrorsAsMessages(TyperGroup):
    """Turns our exceptions into one line on stderr and an exit code; a bug of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:  # older typers hand over click.Context, newer ones their own
        try:
            _check_working_folder()
            with end_orderly():
                return super().invoke(ctx)
        except SsclfError as exc:
            say(f"error: {exc}", err=True)
            raise typer.Exit(exc.exit_code) from exc
        except OSError as exc:
            trouble = disk_trouble(exc)
            if trouble is None:
                raise
            where = f"{trouble.filename}: " if trouble.filename else ""
            typer.echo(f"error: {where}cannot be written ({trouble.strerror}).", err=True)
            raise typer.Exit(1) from exc
        except KeyboardInterrupt as exc:
            say("interrupted", err=True)
            raise typer.Exit(130) from exc
        except ModuleNotFoundError as exc:
            package = (exc.name or "").split(".")[0]
            extra = next((name for name, packages in _EXTRAS.items() if package in packages), "")
            if not extra:
                raise
            say(
                f'error: this command needs {exc.name}; install it with `pip install "ssclf[{extra}]"` '
                "(beside ssclf[cpu] or ssclf[gpu]).",
                err=True,
            )
            raise typer.Exit(1) from exc


def _check_working_folder() -> None:
    """Raises:
    OutputError: it has been removed; then no relative path means anything, and no process can be started.
    """
    try:
        Path.cwd()
    except OSError as exc:
        raise OutputError(
            f"the working folder is gone ({exc.strerror or exc}); change to one that is there and run again."
        ) from exc


#: Extra → packages that it brings.
_EXTRAS = {
    "train": {
        "deepbet", "lightning_fabric", "matplotlib", "onnx", "onnxscript", "sklearn", "tensorboard", "torch",
        "torchio", "torchvision",
    },
    "ray": {"ray", "pyarrow", "fsspec", "s3fs"},
    "dicom": {"dicomweb_client", "highdicom", "pynetdicom", "requests"},
}  # fmt: skip

app = typer.Typer(
    cls=ErrorsAsMessages,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help="Spatiospatial classifier of brain MR volumes: LGG glioma, HGG glioma or healthy. "
    "[bold]Research use only, not a medical device.[/bold]",
)


def main() -> None:
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"ssclf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


for command in (
    predict, serve, bids, doctor, plan, merge, train, pretrain, cv, export, evaluate, preprocess, demo,
):  # fmt: skip
    app.command()(command)
app.add_typer(weights_app, name="weights")
