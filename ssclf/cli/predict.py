"""`ssclf predict`, `merge` and `plan`: results, and what it takes to get them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ssclf.cli import options as opt
from ssclf.cli.saying import say
from ssclf.config import ClusterConfig, PredictConfig
from ssclf.domain.server_query import SERVER, parse_server
from ssclf.errors import ConfigError

if TYPE_CHECKING:
    from ssclf.domain.shards import Shard
    from ssclf.workflows.predict import Find

Scans = Annotated[
    list[str],  # not paths, which would fold the slashes of s3://
    typer.Argument(
        metavar="SCANS",
        help="Files, folders, DICOM, zips or a manifest CSV; or dicomweb+https://HOST/PATH?KEYWORD=VALUE, see "
        "docs/ecosystem.md.",
        show_default=False,
    ),
]
Table = Annotated[
    str,
    typer.Option(
        "--out",
        metavar="FILE",
        help="Table; results.json goes beside it. With --ray: a folder.",
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="HTML page with a picture and the scores of every volume."),
]
Maps = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="NIfTI maps of where the evidence lies, one a scan."),
]
DicomFolder = Annotated[
    Path | None,
    typer.Option(
        "--dicom-out",
        metavar="FOLDER",
        help="A DICOM Structured Report of every study, and the evidence as a parametric map; they name the patient.",
        rich_help_panel="DICOM",
    ),
]
DicomPicture = Annotated[
    bool,
    typer.Option(
        "--dicom-picture",
        help="With --dicom-out: the evidence as a picture (secondary capture) instead of a map.",
        rich_help_panel="DICOM",
    ),
]
Fhir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="With --dicom-out: each report as FHIR R4B, too, with the patient's identifiers.",
        rich_help_panel="DICOM",
    ),
]
SeriesRules = Annotated[
    Path | None,
    typer.Option(
        "--series-rules",
        metavar="FILE",
        help="Which series of a study is answered: TOML or JSON, instead of the model's own rules.",
        rich_help_panel="DICOM",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what was found and which series are answered, and do nothing."),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="K/N",
        help="Take part K of N: 3/16, auto (Slurm array) or auto/16 (Kubernetes Indexed Job); its number goes into the "
        "names of table and report, which ssclf merge joins.",
        rich_help_panel="Cluster",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Work on a Ray cluster: local, auto or host:6379. SCANS is one folder or manifest that all nodes see, "
        "or s3://…; see docs/cluster.md.",
        rich_help_panel="Cluster",
    ),
]
Csv = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="With --ray: the results as one table, too.", rich_help_panel="Cluster"
    ),
]


def predict(  # what configs take from the command line, `opt.given` finds in ctx
    ctx: typer.Context,
    scans: Scans,
    model: opt.Models = None,
    out: Table = "results.csv",
    report: Report = None,
    maps: Maps = None,
    dicom_out: DicomFolder = None,
    dicom_picture: DicomPicture = False,
    fhir: Fhir = None,
    series_rules: SeriesRules = None,
    dry_run: DryRun = False,
    skull_strip: opt.SkullStrip = opt.PREDICT.skull_strip,
    assume_stripped: opt.AssumeStripped = False,
    pattern: opt.Pattern = opt.PREDICT.pattern,
    series: opt.Series = opt.PREDICT.series,
    retry_failed: opt.RetryFailed = opt.PREDICT.retry_failed,
    review_below: opt.ReviewBelow = opt.PREDICT.review_below,
    flip: opt.Flip = opt.PREDICT.flip,
    map_method: opt.MapMethodOption = opt.PREDICT.map_method,
    keep_uids: opt.KeepUids = opt.PREDICT.keep_uids,
    device: opt.DeviceOption = opt.PREDICT.device,
    engine: opt.EngineOption = opt.PREDICT.engine,
    precision: opt.PredictPrecisionOption = opt.PREDICT.precision,
    workers: opt.Workers = 0,
    threads: opt.Threads = opt.PREDICT.threads,
    timeout_s: opt.Timeout = opt.PREDICT.timeout_s or 0,
    shard: ShardOption = None,
    ray: Ray = None,
    csv: Csv = None,
    gpus_per_actor: opt.GpusPerActor = opt.CLUSTER.gpus_per_actor,
    actors: opt.Actors = opt.CLUSTER.actors,
    partition: opt.Partition = opt.CLUSTER.partition,
    quiet: opt.Quiet = False,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Classify every volume found; one row each in a CSV. Research use only."""
    opt.start_log(quiet, log_level)
    config = _config(ctx, workers, timeout_s, assume_stripped)
    if ray is not None:
        cluster = ClusterConfig(address=ray, **opt.given(ctx, ClusterConfig))
        _predict_on_ray(ctx, scans, out, model, config, cluster, csv)
    _check_unfit(dicom_out, dicom_picture, fhir, series_rules, dry_run, csv)
    paths, find = _places(scans, {"--dicom-out": dicom_out, "--dry-run": dry_run})
    part, bundles = _part(shard), opt.bundles(model)
    if dry_run:
        _tell_what_would_be_done(paths, bundles, config, part, series_rules)
    from ssclf.reporting.console import PredictDisplay
    from ssclf.workflows.predict import DicomRequest
    from ssclf.workflows.predict import predict as run

    table = part.file(Path(out)) if part else Path(out)
    with PredictDisplay(quiet=quiet) as display:
        summary = run(
            paths, table, bundles, config, shard=part, report=part.file(report) if part and report else report,
            maps=maps, dicom=DicomRequest(dicom_out, series_rules, dicom_picture, fhir) if dicom_out else None,
            find=find, on_start=display.start, on_row=display.row,
        )  # fmt: skip
    display.summary(summary, table)
    raise typer.Exit(summary.exit_code)


def _places(scans: list[str], unfit: Mapping[str, object]) -> tuple[list[Path], Find]:
    """What to look into, and how.

    Args:
        unfit: options that need files, by name.
    """
    from ssclf.io.discovery.sources import discover

    servers = [scan for scan in scans if scan.startswith(SERVER)]
    if not servers:
        return [Path(scan) for scan in scans], discover
    if len(servers) < len(scans):
        raise ConfigError(
            "SCANS: expected servers or files and folders, found both; give each a run of its own."
        )
    if option := next((name for name, value in unfit.items() if value), ""):
        raise ConfigError(f"{option}: needs the files of a series; retrieve them from the server first.")
    from ssclf.io.discovery.dicomweb import discover_servers

    return [], partial(discover_servers, [parse_server(server) for server in servers])


def _part(shard: str | None) -> Shard | None:
    from ssclf.domain.shards import parse_shard

    return parse_shard(shard, os.environ) if shard else None


def _tell_what_would_be_done(
    places: list[Path], bundles: list[Path], config: PredictConfig, shard: Shard | None, rules: Path | None
) -> NoReturn:
    """`predict --dry-run`."""
    from ssclf.reporting.console import foreseen_lines
    from ssclf.workflows.predict import foresee

    say("\n".join(foreseen_lines(foresee(places, bundles, config, shard=shard, rules=rules))))
    raise typer.Exit


def _check_unfit(
    folder: Path | None,
    picture: bool,
    fhir: Path | None,
    rules: Path | None,
    dry_run: bool,
    csv: Path | None,
) -> None:
    """Raises:
    ConfigError: an option that says nothing without another.
    """
    if csv:
        raise ConfigError("--csv: goes with --ray; without it, --out is the table.")
    if picture and not folder:
        raise ConfigError("--dicom-picture: goes with --dicom-out, which names the folder.")
    if fhir and not folder:
        raise ConfigError("--fhir: goes with --dicom-out, whose reports it holds in FHIR's form.")
    if rules and not folder and not dry_run:
        raise ConfigError("--series-rules: goes with --dicom-out, which answers studies, or --dry-run.")


def _config(ctx: typer.Context, workers: int, timeout_s: float, assume_stripped: bool) -> PredictConfig:
    """What the user set, and the options that say something else than the field of their name."""
    settings = opt.predict_settings(ctx, workers, timeout_s, assume_stripped=assume_stripped)
    if "map_method" in settings and not any(ctx.params[name] for name in ("maps", "report", "dicom_out")):
        raise ConfigError(
            "--map-method: goes with --maps, --report or --dicom-out, which hold what it finds."
        )
    return PredictConfig(**settings)


def _predict_on_ray(
    ctx: typer.Context,
    scans: list[str],
    out: str,
    model: list[Path] | None,
    config: PredictConfig,
    cluster: ClusterConfig,
    csv: Path | None,
) -> NoReturn:
    """`predict --ray`."""
    if any(scan.startswith(SERVER) for scan in scans):
        raise ConfigError("--ray: reads no DICOMweb server; retrieve the series first, or leave --ray out.")
    from ssclf.cluster.request import check_request

    names = ("report", "maps", "shard", "workers", "dicom_out", "dry_run")
    unfit = {f"--{name.replace('_', '-')}": ctx.params[name] for name in names}
    source, folder = check_request(scans, out, unfit)
    from ssclf.cluster.driver import predict_on_ray
    from ssclf.reporting.console import cluster_lines, tell_part, tell_partitions

    summary = predict_on_ray(
        source,
        folder,
        opt.bundles(model),
        config,
        cluster,
        csv=csv,
        on_start=tell_partitions,
        on_part=tell_part,
    )
    say("\n".join(cluster_lines(summary, folder)))
    raise typer.Exit(summary.exit_code)


def plan(
    volumes: Annotated[int, typer.Option(metavar="NUMBER", help="How many are to be classified.")],
    rates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What ssclf doctor --bench --json FILE wrote on such a node."),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="BUNDLE",
            help="Without --rates: measure here, now, with this bundle; default as for predict.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(metavar="NUMBER", help="Machines that work side by side.")] = 1,
    cores: Annotated[int, typer.Option(metavar="NUMBER", help="Cores of a node; 0: as many as here.")] = 0,
    gpus: Annotated[int, typer.Option(metavar="NUMBER", help="GPUs of a node.")] = 0,
    stripped: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Share of the volumes, 0 to 1, whose skull is gone already."),
    ] = 1.0,
) -> None:
    """Say what a number of volumes needs on a cluster: hours, cores, memory and bytes."""
    from ssclf.reporting.console import estimate_lines
    from ssclf.workflows.plan import estimate, read_rates

    if rates:
        found = read_rates(rates)
    else:
        from ssclf.workflows.bench import measure_rates

        found = measure_rates(opt.bundles(model)[0])
    per = opt.cores(cores)
    need = estimate(found, volumes, nodes=nodes, cores=per, gpus=gpus, stripped=stripped)
    hardware = f"{nodes} × {per} cores" + (f" and {gpus} GPUs" if gpus else "")
    say(f"{volumes} volumes like {found.typical}, {found.model}, on {hardware}:")
    say("\n".join(estimate_lines(need)))


def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(metavar="TABLES", help="The tables of all shards.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table of all.")] = Path("results.csv"),
    partial: Annotated[bool, typer.Option("--partial", help="Do without missing shards.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML page of all; pictures are there if shards had theirs."),
    ] = None,
) -> None:
    """Join the tables that `predict --shard` wrote."""
    from ssclf.workflows.merge import merge as run

    rows = run(parts, out, partial=partial, report=report)
    failed = sum(row.status == "failed" for row in rows)
    say(f"{out}: {len(rows)} volumes, {failed} failed")
    raise typer.Exit(3 if failed else 0)
