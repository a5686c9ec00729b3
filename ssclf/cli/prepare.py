"""`ssclf preprocess`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssclf.cli import options as opt
from ssclf.config import PreprocessConfig, Preset

_SPACING = opt.as_text(opt.PREPROCESS.spacing)
_PERCENTILES = opt.as_text(opt.PREPROCESS.percentiles)
_CONTRASTS = opt.as_text(opt.PREPROCESS.contrasts)

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="SOURCES",
        help="BraTS or IXI trees, a folder a class, BIDS, DICOM, or a manifest CSV; several are joined.",
        show_default=False,
    ),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CLASS=NUMBER",
        help="At most so many volumes of a class, drawn at random: healthy=259. Default: all.",
        rich_help_panel="Input",
    ),
]
ClassMap = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="FOUND=NAME",
        help="Another name for a label as found: GBM=HGG.",
        rich_help_panel="Input",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Table with the columns subject and label, for folders that do not say.",
        rich_help_panel="Input",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Column with the classes, in participants.tsv or a manifest. Default: the first of label, grade, "
        "class, diagnosis, group, dx.",
        rich_help_panel="Input",
    ),
]
SubjectsByClass = Annotated[
    bool,
    typer.Option(
        "--subjects-by-class",
        help="A subject's name under two classes is two persons. By default that is an error.",
        rich_help_panel="Input",
    ),
]
PresetOption = Annotated[
    Preset,
    typer.Option(
        help="Values that are not given: paper is every one as published; default cuts to the brain's box, so that "
        "there is less to compute and the field of view cannot tell the class.",
        rich_help_panel="Network input",
    ),
]
ShowHeads = Annotated[bool, typer.Option("--show-heads", help="Draw whole heads, with faces, in qc.html.")]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Limit for one volume; 0: none.",
        rich_help_panel="Speed",
    ),
]


def preprocess(  # what PreprocessConfig takes from the command line, `opt.given` finds in ctx
    ctx: typer.Context,
    sources: Sources,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write.")] = opt.PREPROCESSED,
    show_heads: ShowHeads = False,
    seed: opt.Seed = 0,
    preset: PresetOption = "default",
    spacing: opt.Spacing = _SPACING,
    percentiles: opt.Percentiles = _PERCENTILES,
    plane: opt.PlaneOption = opt.PREPROCESS.plane,
    contrasts: opt.Contrasts = _CONTRASTS,
    crop: opt.CropOption = None,
    skull_strip: opt.SkullStrip = opt.PREDICT.skull_strip,
    assume_stripped: opt.AssumeStripped = False,
    limit: Limit = None,
    class_map: ClassMap = None,
    labels: Labels = None,
    label_column: LabelColumn = None,
    subjects_by_class: SubjectsByClass = False,
    pattern: opt.Pattern = None,
    series: opt.Series = None,
    timeout: Timeout = 0,
    workers: opt.Workers = 0,
    quiet: opt.Quiet = False,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Turn a cohort's volumes into network input, with a manifest and a page to look at."""
    opt.start_log(quiet, log_level)
    from ssclf.io.discovery.cohorts import CohortQuery
    from ssclf.reporting.console import PreprocessDisplay
    from ssclf.workflows.preprocess import choose_settings, preprocess_cohort

    config = choose_settings(out, opt.given(ctx, PreprocessConfig), opt.said(ctx, "preset"))
    query = CohortQuery(
        sources=tuple(sources),
        contrasts=config.contrasts,
        labels=labels,
        label_column=label_column,
        class_map=opt.pairs(class_map, "--class"),
        limit=opt.counts(limit, "--limit"),
        min_classes=0,  # the others may come another day; training insists on two
        seed=seed,
        pattern=pattern,
        series=series,
        subjects_by_class=subjects_by_class,
    )
    with PreprocessDisplay(quiet=quiet) as display:
        summary = preprocess_cohort(
            query,
            out,
            config,
            skull_strip="none" if assume_stripped else skull_strip,
            workers=opt.cores(workers),
            timeout_s=timeout or None,
            show_heads=show_heads,
            on_start=display.start,
            on_case=display.case,
        )
    display.summary(summary, out)
    raise typer.Exit(summary.exit_code)
