"""`ssclf doctor` and `demo`: what this machine can do, and the whole way on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from ssclf.cli import options as opt
from ssclf.cli.saying import say
from ssclf.errors import ConfigError

Typical = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="SCAN",
        help="With --json: stripped scan like those to come, one or several. Default: synthetic ones.",
        rich_help_panel="Speed",
    ),
]
ServiceAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Ask a running ssclf serve instead, at what it was given as --health.",
        rich_help_panel="Service",
    ),
]


def doctor(
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="Bundle to verify, one or several; default as for predict."),
    ] = None,
    device: opt.DeviceOption = opt.PREDICT.device,
    engine: opt.EngineOption = opt.PREDICT.engine,
    bench: Annotated[
        bool, typer.Option("--bench", help="Time each engine with each model.", rich_help_panel="Speed")
    ] = False,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --bench: write what one volume takes here, for ssclf plan --rates.",
            rich_help_panel="Speed",
        ),
    ] = None,
    typical: Typical = None,
    service: ServiceAddress = None,
) -> None:
    """Show what this machine can do; fails where something that was asked for is not there."""
    if (json or typical) and not (bench and json):
        raise ConfigError("--json and --typical go with --bench.")
    if json:
        from ssclf.io.paths import check_output_file

        check_output_file("json", json)
    from ssclf.reporting.console import print_checks

    if service:
        from ssclf.service.health import ask_service
        from ssclf.service.request import Address

        raise typer.Exit(1 if print_checks(ask_service(Address.parse(service, "--service"))) else 0)
    from ssclf.workflows.doctor import bundles_at_hand, examine

    models = bundles_at_hand(model or [], os.environ)
    failed = print_checks(examine(models, device=device, engine=engine, bench=bench))
    if json and not failed:
        from ssclf.io.models.bundle import choose_bundles
        from ssclf.workflows.bench import measure_rates
        from ssclf.workflows.plan import write_rates

        (chosen, *_) = choose_bundles(model or [], os.environ)
        write_rates(json, measure_rates(chosen, device=device, engine=engine, typical=typical or ()))
        say(f"rates: {json}")
    raise typer.Exit(1 if failed else 0)


def demo(
    ctx: typer.Context,
    heads: Annotated[
        Path | None,
        typer.Option(
            metavar="SCANS",
            help="Second act: what the reference model, which has seen no patient, says of heads that you have: a "
            "table, a page and fine maps, in the folder heads below --out.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")] = Path("demo"),
    seed: opt.Seed = 0,
    workers: opt.Workers = 0,
) -> None:
    """The whole way on SYNTHETIC volumes: make, preprocess, train, export, predict. A few minutes."""
    if heads:
        if opt.was_given(ctx, "seed"):
            raise ConfigError("--seed: draws the synthetic volumes, and goes without --heads.")
        _show_heads(heads, out / "heads", opt.cores(workers))
    opt.start_log(False, "warning")
    from ssclf.reporting.console import DemoDisplay

    display = DemoDisplay()
    display.begin(out)
    from ssclf.workflows.demo import read_first_rows, run_demo

    result = run_demo(
        out, seed=seed, workers=opt.cores(workers), on_stage=display.stage, on_epoch=display.epoch
    )
    display.summary(result, read_first_rows(result.results))
    raise typer.Exit(result.summary.exit_code)


def _show_heads(heads: Path, out: Path, workers: int) -> NoReturn:
    """`demo --heads`; needs nothing of what trains."""
    opt.start_log(False, "info")
    from ssclf.reporting.console import PredictDisplay
    from ssclf.workflows.demo_heads import MAPS, PAGE, RESULTS, show_heads

    with PredictDisplay() as display:
        summary = show_heads(heads, out, workers=workers, on_start=display.start, on_row=display.row)
    display.summary(summary, out / RESULTS)
    if not summary.interrupted:
        say(f"page to open in a browser: {out / PAGE}\nmaps for any viewer, over the scans: {out / MAPS}")
    raise typer.Exit(summary.exit_code)
