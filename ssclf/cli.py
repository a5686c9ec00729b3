"""The command line: parse, call one workflow, print what came back, set the exit code.

Heavy imports live inside the commands, so that `ssclf --help` answers at once.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ssclf import __version__
from ssclf.config import PredictConfig, PreprocessConfig
from ssclf.errors import ConfigError, SsclfError


class ErrorsAsMessages(TyperGroup):
    """Turns our exceptions into one line on stderr and an exit code; a bug of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:  # older typers hand over click.Context, newer ones their own
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
AssumeStripped = Annotated[bool, typer.Option("--assume-stripped", help="The same as --skull-strip none.")]
Seed = Annotated[int, typer.Option("--seed", help="For everything drawn at random.")]

_PREPROCESS = PreprocessConfig()
_PREDICT = PredictConfig()


def _start(quiet: bool, log_level: str) -> None:
    level = logging.getLevelName("ERROR" if quiet else log_level.upper())
    if not isinstance(level, int):
        raise typer.BadParameter(
            f"expected debug, info, warning or error, found {log_level!r}", param_hint="--log-level"
        )
    from ssclf.reporting.console import log_to_stderr

    log_to_stderr(level)


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


@app.command()
def predict(
    scans: Annotated[
        list[Path], typer.Argument(help="Files, folders, DICOM, zips or a manifest CSV.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The table; results.json goes beside it.")] = Path(
        "results.csv"
    ),
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            help="A bundle; several are averaged. Default: $SSCLF_MODEL, else the only one under exported/.",
        ),
    ] = None,
    skull_strip: SkullStrip = _PREDICT.skull_strip,
    assume_stripped: AssumeStripped = False,
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", help="Take only files whose name matches, e.g. '*_t1ce.nii.gz'."),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option("--series", help="Take only DICOM series whose description matches this regex."),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="auto, onnx or torchscript.")] = _PREDICT.engine,
    device: DeviceOption = _PREDICT.device,
    workers: Workers = 0,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Threads of the CPU engine; 0: one a core.")
    ] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds that reading one volume may take; 0: no limit.")
    ] = _PREDICT.timeout_s or 0,
    review_below: Annotated[
        float, typer.Option("--review-below", help="Flag rows whose highest probability is lower.")
    ] = _PREDICT.review_below,
    flip: Annotated[bool, typer.Option("--flip", help="Average each volume with its mirror image.")] = False,
    keep_uids: Annotated[
        bool,
        typer.Option("--keep-uids", help="Name DICOM series by their UID instead of a short hash of it."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            help="Take one part of the volumes: 3/16, auto (Slurm array) or auto/16 (Kubernetes Indexed Job). "
            "The table is named after the shard; ssclf merge joins them.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed volumes of an earlier run again.")
    ] = False,
    quiet: Quiet = False,
    log_level: LogLevel = "info",
) -> None:
    """Classify every volume found; one row each in a CSV. Research use only."""
    _start(quiet, log_level)
    from ssclf.domain.shards import parse_shard
    from ssclf.io.bundle import choose_bundles
    from ssclf.reporting.console import PredictDisplay
    from ssclf.workflows.predict import predict as run

    config = PredictConfig(
        skull_strip="none" if assume_stripped else skull_strip,
        pattern=pattern,
        series=series,
        engine=engine,  # type: ignore[arg-type]  # checked by the config
        device=device,  # type: ignore[arg-type]
        workers=_count(workers),
        threads=threads,
        timeout_s=timeout or None,
        review_below=review_below,
        flip=flip,
        keep_uids=keep_uids,
        retry_failed=retry_failed,
    )
    part = parse_shard(shard, os.environ) if shard else None
    if part:
        out = out.with_name(f"{out.stem}.{part}{out.suffix}")
    with PredictDisplay(quiet=quiet) as display:
        summary = run(
            scans,
            out,
            choose_bundles(model or [], os.environ),
            config,
            shard=part,
            on_start=display.start,
            on_row=display.row,
        )
    display.summary(summary, out)
    raise typer.Exit(summary.exit_code)


@app.command()
def doctor(
    model: Annotated[
        list[Path] | None, typer.Option("--model", help="Bundles to verify; default as for predict.")
    ] = None,
    device: DeviceOption = "auto",
    engine: Annotated[str, typer.Option("--engine", help="auto, onnx or torchscript.")] = "auto",
    bench: Annotated[bool, typer.Option("--bench", help="Time each engine with each model.")] = False,
) -> None:
    """Show what this machine can do; fails where something that was asked for is not there."""
    from rich.console import Console

    from ssclf.io.bundle import choose_bundles
    from ssclf.workflows.doctor import examine

    try:
        models = choose_bundles(model or [], os.environ)
    except SsclfError:
        models = []  # doctor is what people run before they have a model
    console = Console(soft_wrap=True)
    failed = False
    checks = examine(models, device=device, engine=engine, bench=bench)  # type: ignore[arg-type]
    for check in checks:
        sign = {True: "[green]ok[/]     ", False: "[red]failed[/] ", None: "[yellow]absent[/] "}[check.ok]
        console.print(f"{sign}{check.name}: ", end="")
        console.print(check.detail, markup=False, highlight=False)
        failed = failed or (check.required and not check.ok)
    raise typer.Exit(1 if failed else 0)


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="The tables of all shards.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The table of all.")] = Path("results.csv"),
    partial: Annotated[bool, typer.Option("--partial", help="Do without missing shards.")] = False,
) -> None:
    """Join the tables that `predict --shard` wrote."""
    from ssclf.workflows.merge import merge as run

    rows = run(parts, out, partial=partial)
    failed = sum(row.status == "failed" for row in rows)
    typer.echo(f"{out}: {len(rows)} volumes, {failed} failed")
    raise typer.Exit(3 if failed else 0)
