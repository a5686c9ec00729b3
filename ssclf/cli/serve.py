"""`ssclf serve`: a service that classifies what is sent to it or laid into a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssclf.cli import options as opt
from ssclf.cli.saying import say
from ssclf.config import PredictConfig
from ssclf.errors import ConfigError

if TYPE_CHECKING:
    from ssclf.service.request import ServeRequest

_RECEIVE, _SEND, _QUEUE = "Receiving", "Sending", "Queue"


Spool = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="Private folder of the queue; what is in it survives.",
        rich_help_panel=_QUEUE,
    ),
]
Table = Annotated[Path, typer.Option("--out", metavar="FILE", help="Table; results.json goes beside it.")]
Resolve = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Private table of which study or entry each name in the results stands for."
    ),
]
Listen = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Take DICOM objects there (C-STORE).", rich_help_panel=_RECEIVE),
]
AeTitle = Annotated[
    str,
    typer.Option("--ae-title", metavar="NAME", help="Title of this service.", rich_help_panel=_RECEIVE),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="AET[@HOST]",
        help="Who may send, and from where; give it again for several. Everybody else is refused.",
        rich_help_panel=_RECEIVE,
    ),
]
Watch = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="Classify each entry of this folder; give it again for several.",
        rich_help_panel=_RECEIVE,
    ),
]
QuietTime = Annotated[
    float,
    typer.Option(
        "--quiet",
        metavar="SECONDS",
        help="A study is complete when nothing of it has come or changed for so long.",
        rich_help_panel=_RECEIVE,
    ),
]
Send = Annotated[
    str | None,
    typer.Option(metavar="AET@HOST:PORT", help="Send DICOM results there by C-STORE.", rich_help_panel=_SEND),
]
Stow = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Send DICOM results to this DICOMweb server; credentials come from SSCLF_STOW_TOKEN, or "
        "SSCLF_STOW_USER and SSCLF_STOW_PASSWORD.",
        rich_help_panel=_SEND,
    ),
]
DicomOut = Annotated[
    Path | None,
    typer.Option("--dicom-out", metavar="FOLDER", help="Write DICOM results there.", rich_help_panel=_SEND),
]
DicomPicture = Annotated[
    bool,
    typer.Option(
        "--dicom-picture",
        help="Show the evidence as a picture (secondary capture) instead of a map.",
        rich_help_panel=_SEND,
    ),
]
SeriesRules = Annotated[
    Path | None,
    typer.Option(
        "--series-rules",
        metavar="FILE",
        help="Which series of a study is answered: TOML or JSON, instead of the model's own rules.",
        rich_help_panel=_SEND,
    ),
]
Keep = Annotated[
    bool,
    typer.Option(
        "--keep", help="Keep received images when their study is classified.", rich_help_panel=_QUEUE
    ),
]
SpoolLimit = Annotated[
    float,
    typer.Option(
        "--spool-limit",
        metavar="GB",
        help="What the queue may take; beyond it objects are refused, to be sent again.",
        rich_help_panel=_QUEUE,
    ),
]
Health = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Answer /metrics (Prometheus) and /health there.",
        rich_help_panel="Messages",
    ),
]


def serve(  # what configs take from the command line, `opt.given` finds in ctx
    ctx: typer.Context,
    spool: Spool,
    model: opt.Models = None,
    out: Table = Path("results.csv"),
    resolve: Resolve = None,
    listen: Listen = None,
    ae_title: AeTitle = "SSCLF",
    allow: Allow = None,
    watch: Watch = None,
    quiet_s: QuietTime = 30.0,
    send: Send = None,
    stow: Stow = None,
    dicom_out: DicomOut = None,
    dicom_picture: DicomPicture = False,
    series_rules: SeriesRules = None,
    keep: Keep = False,
    spool_limit: SpoolLimit = 20.0,
    health: Health = None,
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
    request = _request(ctx.params)
    settings = opt.predict_settings(ctx, workers, timeout_s, assume_stripped=assume_stripped)
    from ssclf.service.server import serve as run

    run(
        request,
        opt.bundles(model),
        PredictConfig(**settings),
        on_ready=lambda: say("ready"),
    )


def _request(given: Mapping[str, Any]) -> ServeRequest:
    """What the command line asks for.

    Raises:
        ConfigError: it cannot be.
    """
    from ssclf.service.request import Address, Node, Senders, ServeRequest, Stow

    for folder in given["watch"] or ():
        if not folder.is_dir():
            raise ConfigError(f"--watch {folder}: expected a folder.")
    return ServeRequest(
        **{
            name: given[name]
            for name in (
                "spool",
                "out",
                "ae_title",
                "quiet_s",
                "resolve",
                "dicom_out",
                "series_rules",
                "dicom_picture",
                "keep",
            )
        },
        listen=Address.parse(given["listen"], "--listen") if given["listen"] else None,
        senders=Senders.parse(given["allow"] or (), "--allow"),
        watch=tuple(given["watch"] or ()),
        spool_bytes=int(given["spool_limit"] * 1e9),
        send=Node.parse(given["send"], "--send") if given["send"] else None,
        stow=Stow.parse(given["stow"], os.environ) if given["stow"] else None,
        health=Address.parse(given["health"], "--health") if given["health"] else None,
    )
