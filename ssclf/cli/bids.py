"""`ssclf bids`: prediction as a BIDS App."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssclf.cli import options as opt
from ssclf.cli.saying import say
from ssclf.config import PredictConfig


def bids(
    ctx: typer.Context,
    bids_dir: Annotated[Path, typer.Argument(metavar="BIDS", help="The data set.", show_default=False)],
    output_dir: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder of what is derived from it.", show_default=False),
    ],
    analysis_level: Annotated[
        Literal["participant", "group"],
        typer.Argument(
            metavar="LEVEL", help="participant: classify; group: one table of all.", show_default=False
        ),
    ],
    participant_label: Annotated[
        list[str] | None,
        typer.Option(
            "--participant-label",
            "--participant_label",
            metavar="LABEL",
            help="Only this participant, with or without sub-; give it again for several. Default: all.",
        ),
    ] = None,
    model: opt.Models = None,
    skull_strip: opt.SkullStrip = opt.PREDICT.skull_strip,
    retry_failed: opt.RetryFailed = opt.PREDICT.retry_failed,
    device: opt.DeviceOption = opt.PREDICT.device,
    workers: opt.Workers = 0,
    timeout_s: opt.Timeout = opt.PREDICT.timeout_s or 0,
    quiet: opt.Quiet = False,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Classify a BIDS data set as a BIDS App: derivatives out. Research use only."""
    opt.start_log(quiet, log_level)
    from ssclf.workflows.bids import classify_participants, join_participants

    labels = participant_label or []
    if analysis_level == "group":
        table, rows, failed = join_participants(bids_dir, output_dir, labels)
        say(f"{table}: {rows} volumes, {failed} failed")
        raise typer.Exit(3 if failed else 0)
    from ssclf.reporting.console import PredictDisplay

    config, models = PredictConfig(**opt.predict_settings(ctx, workers, timeout_s)), opt.bundles(model)
    with PredictDisplay(quiet=quiet) as display:
        summary = classify_participants(
            bids_dir,
            output_dir,
            labels,
            models,
            config,
            on_start=display.start,
            on_row=display.row,
        )
    display.summary(summary, output_dir)
    raise typer.Exit(summary.exit_code)
