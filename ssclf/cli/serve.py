"""`ssclf serve`: a service that classifies what is sent to it or laid into a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ssclf.cli import options as opt
from ssclf.cli.saying import say
from ssclf.config import PredictConfig
from ssclf.errors import ConfigError

_RECEIVE, _SEND, _QUEUE = "Receiving", "Sending", "Queue"


def serve(  # what configs take from the command line, `opt.given` finds in ctx
    ctx: typer.Context,
    spool: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Private folder of the queue; what is in it survives.",
            rich_help_panel=_QUEUE,
        ),
    ],
    model: opt.Models = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Table; results.json goes beside it.")] = Path(
        "results.csv"
    ),
    resolve: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Private table of which study or entry each name in the results stands for."
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Take DICOM objects there (C-STORE).", rich_help_panel=_RECEIVE
        ),
    ] = None,
    ae_title: Annotated[
        str,
        typer.Option("--ae-title", metavar="NAME", help="Title of this service.", rich_help_panel=_RECEIVE),
    ] = "SSCLF",
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AET[@HOST]",
            help="Who may send, and from where; give it again for several. Everybody else is refused.",
            rich_help_panel=_RECEIVE,
        ),
    ] = None,
    watch: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Classify each entry of this folder; give it again for several.",
            rich_help_panel=_RECEIVE,
        ),
    ] = None,
    quiet_s: Annotated[
        float,
        typer.Option(
            "--quiet",
            metavar="SECONDS",
            help="A study is complete when nothing of it has come or changed for so long.",
            rich_help_panel=_RECEIVE,
        ),
    ] = 30.0,
    send: Annotated[
        str | None,
        typer.Option(
            metavar="AET@HOST:PORT", help="Send DICOM results there by C-STORE.", rich_help_panel=_SEND
        ),
    ] = None,
    stow: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Send DICOM results to this DICOMweb server; credentials come from SSCLF_STOW_TOKEN, or "
            "SSCLF_STOW_USER and SSCLF_STOW_PASSWORD.",
            rich_help_panel=_SEND,
        ),
    ] = None,
    dicom_out: Annotated[
        Path | None,
        typer.Option(
            "--dicom-out", metavar="FOLDER", help="Write DICOM results there.", rich_help_panel=_SEND
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep", help="Keep received images when their study is classified.", rich_help_panel=_QUEUE
        ),
    ] = False,
    spool_limit: Annotated[
        float,
        typer.Option(
            "--spool-limit",
            metavar="GB",
            help="What the queue may take; beyond it objects are refused, to be sent again.",
            rich_help_panel=_QUEUE,
        ),
    ] = 20.0,
    health: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Answer /metrics (Prometheus) and /health there.",
            rich_help_panel="Messages",
        ),
    ] = None,
    skull_strip: opt.SkullStrip = opt.PREDICT.skull_strip,
    assume_stripped: opt.AssumeStripped = False,
    pattern: opt.Pattern = opt.PREDICT.pattern,
    series: opt.Series = opt.PREDICT.series,
    review_below: opt.ReviewBelow = opt.PREDICT.review_below,
    flip: opt.Flip = opt.PREDICT.flip,
    device: opt.DeviceOption = opt.PREDICT.device,
    engine: opt.EngineOption = opt.PREDICT.engine,
    workers: opt.Workers = 0,
    threads: opt.Threads = opt.PREDICT.threads,
    timeout_s: opt.Timeout = opt.PREDICT.timeout_s or 0,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Classify studies as they arrive, until it is told to end. Research use only."""
    opt.start_log(False, log_level)
    from ssclf.service.request import Address, Node, Senders, ServeRequest, Stow

    settings = opt.given(ctx, PredictConfig) | {"workers": opt.cores(workers), "timeout_s": timeout_s or None}
    if assume_stripped:
        settings["skull_strip"] = "none"
    for folder in watch or ():
        if not folder.is_dir():
            raise ConfigError(f"--watch {folder}: expected a folder.")
    request = ServeRequest(
        spool=spool,
        out=out,
        listen=Address.parse(listen, "--listen") if listen else None,
        ae_title=ae_title,
        senders=Senders.parse(allow or (), "--allow"),
        watch=tuple(watch or ()),
        spool_bytes=int(spool_limit * 1e9),
        quiet_s=quiet_s,
        resolve=resolve,
        send=Node.parse(send, "--send") if send else None,
        stow=Stow.parse(stow, os.environ) if stow else None,
        dicom_out=dicom_out,
        keep=keep,
        health=Address.parse(health, "--health") if health else None,
    )
    from ssclf.io.models.bundle import choose_bundles
    from ssclf.service.server import serve as run

    run(
        request,
        choose_bundles(model or [], os.environ),
        PredictConfig(**settings),
        on_ready=lambda: say("ready"),
    )
