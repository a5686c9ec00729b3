"""The command line: parse, call one workflow, print what came back, set the exit code.

Heavy imports live inside the commands, so that `ssclf --help` answers at once.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ssclf import __version__
from ssclf.config import PredictConfig, PreprocessConfig
from ssclf.errors import ConfigError, OutputError, SsclfError


class ErrorsAsMessages(TyperGroup):
    """Turns our exceptions into one line on stderr and an exit code; a bug of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:  # older typers hand over click.Context, newer ones their own
        try:
            _check_working_folder()
            return super().invoke(ctx)
        except SsclfError as exc:
            typer.echo(f"error: {exc}", err=True)
            raise typer.Exit(exc.exit_code) from exc
        except KeyboardInterrupt as exc:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from exc
        except ModuleNotFoundError as exc:
            package = (exc.name or "").split(".")[0]
            extra = "train" if package in _TRAIN_PACKAGES else "ray" if package in _RAY_PACKAGES else ""
            if not extra:
                raise
            typer.echo(
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


_TRAIN_PACKAGES = {
    "deepbet", "lightning_fabric", "matplotlib", "onnx", "onnxscript", "sklearn", "tensorboard", "torch",
    "torchio", "torchvision",
}  # fmt: skip
_RAY_PACKAGES = {"ray", "pyarrow", "fsspec", "s3fs"}

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
_PREPROCESSED = Path("data/preprocessed")


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


#: Settings of training, the same for every command that trains. Left out, a setting is the preset's.
_SETTINGS: dict[str, Any] = {
    name: Annotated[kind | None, typer.Option(*flags, help=about)]
    for name, kind, flags, about in (
        ("stem", str, ["--stem"], "With --pretrained: random or mean."),
        ("epochs", int, ["--epochs"], "Passes over the training part."),
        ("batch_size", int, ["--batch-size"], "Volumes a step; smaller ones are padded."),
        ("accumulate", int, ["--accumulate"], "Batches averaged before a step."),
        ("learning_rate", float, ["--learning-rate"], "The highest of the schedule."),
        ("weight_decay", float, ["--weight-decay"], "Of Adam."),
        ("schedule", str, ["--schedule"], "constant, cosine or onecycle."),
        ("augmentation", str, ["--augmentation"], "light, heavy, flip or none."),
        ("holdout", float, ["--holdout"], "Share of the subjects kept for the final score; 0: none."),
        ("validation", float, ["--validation"], "Share of the training subjects that choose the epoch."),
        ("patience", int, ["--patience"], "Epochs without gain before stopping."),
        ("precision", str, ["--precision"], "32-true, bf16-mixed or 16-mixed (GPU)."),
        ("channels_last", bool, ["--channels-last/--no-channels-last"], "Memory layout of convolutions."),
        ("compile", bool, ["--compile/--no-compile"], "torch.compile."),
        ("seed", int, ["--seed"], "For everything drawn at random."),
    )
}


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command those options in the place of its parameter `settings`, a dict of the ones that were used."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        settings = {name: options.pop(name) for name in _SETTINGS}
        command(**options, settings={k: v for k, v in settings.items() if v is not None})

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name == "settings":
            parameters += [
                parameter.replace(name=k, annotation=v, default=None) for k, v in _SETTINGS.items()
            ]
        else:
            parameters.append(parameter)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@app.command()
def predict(
    scans: Annotated[
        list[str],  # not paths, which would fold the slashes of s3://
        typer.Argument(help="Files, folders, DICOM, zips or a manifest CSV.", show_default=False),
    ],
    out: Annotated[
        str, typer.Option("--out", help="The table; results.json goes beside it. With --ray: a folder.")
    ] = "results.csv",
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            help="A bundle; several are averaged. Default: $SSCLF_MODEL, else the only one under exported/.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="HTML page with a picture and the scores of every volume.")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option("--maps", help="Folder for NIfTI maps of where the evidence lies, one a scan."),
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
            "Table and report are named after the shard; ssclf merge joins them.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed volumes of an earlier run again.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Work on a Ray cluster: local, auto or host:6379. SCANS is one folder or manifest that all nodes "
            "see, or s3://…; --out a folder for Parquet. See docs/cluster.md.",
            rich_help_panel="Cluster",
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Also the table as a CSV.", rich_help_panel="Cluster")
    ] = None,
    gpus_per_actor: Annotated[
        float,
        typer.Option(min=0.01, help="Share of a GPU for one copy of the models.", rich_help_panel="Cluster"),
    ] = 1.0,
    actors: Annotated[
        int, typer.Option(min=0, help="Copies of the models; 0: as fits.", rich_help_panel="Cluster")
    ] = 0,
    partition: Annotated[
        int, typer.Option(min=1, help="Volumes of a Parquet file.", rich_help_panel="Cluster")
    ] = 1000,
    quiet: Quiet = False,
    log_level: LogLevel = "info",
) -> None:
    """Classify every volume found; one row each in a CSV. Research use only."""
    _start(quiet, log_level)
    from ssclf.domain.shards import parse_shard
    from ssclf.io.models.bundle import choose_bundles
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
    if ray is not None:
        unfit = {"--report": report, "--maps": maps, "--shard": shard, "--workers": workers}
        _predict_on_ray(scans, out, model, config, ray, csv, gpus_per_actor, actors, partition, unfit)
    if csv:
        raise ConfigError("--csv: goes with --ray; without it, --out is the table.")
    part = parse_shard(shard, os.environ) if shard else None
    table = Path(out)
    if part:
        table = table.with_name(f"{table.stem}.{part}{table.suffix}")
        report = report and report.with_name(f"{report.stem}.{part}{report.suffix}")
    with PredictDisplay(quiet=quiet) as display:
        summary = run(
            [Path(scan) for scan in scans],
            table,
            choose_bundles(model or [], os.environ),
            config,
            shard=part,
            report=report,
            maps=maps,
            on_start=display.start,
            on_row=display.row,
        )
    display.summary(summary, table)
    raise typer.Exit(summary.exit_code)


def _predict_on_ray(
    scans: list[str],
    out: str,
    model: list[Path] | None,
    config: PredictConfig,
    address: str,
    csv: Path | None,
    gpus_per_actor: float,
    actors: int,
    partition: int,
    unfit: Mapping[str, object],
) -> None:
    """`predict --ray`: what does not go together is refused before anything starts."""
    for option, value in unfit.items():
        if value:
            raise ConfigError(f"{option}: does not go with --ray; see docs/cluster.md.")
    if len(scans) != 1:
        raise ConfigError(
            f"--ray: expected one folder, manifest or URL, found {len(scans)}; put several into a manifest."
        )
    if out == "results.csv":  # the default for a table
        out = "results"
    elif out.lower().endswith(".csv"):
        raise ConfigError(f"--out {out}: with --ray it is a folder; name the table with --csv.")
    from ssclf.cluster.driver import ClusterConfig, predict_on_ray
    from ssclf.io.models.bundle import choose_bundles

    log = logging.getLogger("ssclf")
    cluster = ClusterConfig(
        address=address, gpus_per_actor=gpus_per_actor, actors=actors, partition=partition
    )
    summary = predict_on_ray(
        scans[0],
        out,
        choose_bundles(model or [], os.environ),
        config,
        cluster,
        csv=csv,
        on_start=lambda volumes, parts: log.info("%d volumes in %d partitions", volumes, parts),
        on_part=lambda part: log.info("partition %d: %d volumes", part.number, part.volumes),
    )
    typer.echo(
        f"{out}: {summary.volumes} volumes in {summary.parts} partitions ({summary.reused} were complete), "
        f"{summary.failed} failed"
    )
    for reason, count in sorted(summary.other_files.items()):
        typer.echo(f"  {count} {reason}")
    raise typer.Exit(summary.exit_code)


@app.command()
def doctor(
    model: Annotated[
        list[Path] | None, typer.Option("--model", help="Bundles to verify; default as for predict.")
    ] = None,
    device: DeviceOption = "auto",
    engine: Annotated[str, typer.Option("--engine", help="auto, onnx or torchscript.")] = "auto",
    bench: Annotated[bool, typer.Option("--bench", help="Time each engine with each model.")] = False,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="With --bench: also what one volume takes, for ssclf plan --rates."),
    ] = None,
    typical: Annotated[
        list[Path] | None,
        typer.Option("--typical", help="With --json: stripped scans like those to come. Default: synthetic."),
    ] = None,
) -> None:
    """Show what this machine can do; fails where something that was asked for is not there."""
    if (json or typical) and not (bench and json):
        raise ConfigError("--json and --typical go with --bench.")
    from rich.console import Console

    from ssclf.io.models.bundle import choose_bundles
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
        console.print(sign, end="")
        console.print(f"{check.name}: ", markup=False, emoji=False, end="")
        console.print(check.detail, markup=False, emoji=False, highlight=False)
        failed = failed or (check.required and not check.ok)
    if json and not failed:
        from ssclf.workflows.bench import measure_rates
        from ssclf.workflows.plan import write_rates

        (chosen, *_) = choose_bundles(model or [], os.environ)
        rates = measure_rates(chosen, device=device, engine=engine, typical=typical or ())  # type: ignore[arg-type]
        write_rates(json, rates)
        console.print(f"rates: {json}", markup=False, emoji=False)
    raise typer.Exit(1 if failed else 0)


@app.command()
def plan(
    volumes: Annotated[int, typer.Option("--volumes", help="How many are to be classified.")],
    rates: Annotated[
        Path | None, typer.Option("--rates", help="What ssclf doctor --bench --json wrote on such a node.")
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", help="Without --rates: measure here, now, with this bundle."),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes")] = 1,
    cores: Annotated[int, typer.Option("--cores", help="Of a node; 0: as many as here.")] = 0,
    gpus: Annotated[int, typer.Option("--gpus", help="Of a node.")] = 0,
    stripped: Annotated[
        float, typer.Option("--stripped", help="Share of the volumes that have no skull any more.")
    ] = 1.0,
) -> None:
    """Say what a number of volumes needs on a cluster: hours, cores, memory and bytes."""
    from ssclf.workflows.plan import estimate, read_rates

    per = _count(cores)
    if rates:
        found = read_rates(rates)
    else:
        from ssclf.io.models.bundle import choose_bundles
        from ssclf.workflows.bench import measure_rates

        found = measure_rates(choose_bundles(model or [], os.environ)[0])
    need = estimate(found, volumes, nodes=nodes, cores=per, gpus=gpus, stripped=stripped)
    hardware = f"{nodes} × {per} cores" + (f" and {gpus} GPUs" if gpus else "")
    typer.echo(f"{volumes} volumes like {found.typical}, {found.model}, on {hardware}:")
    length = f"{need.hours:.1f} hours" if need.hours >= 2 else f"{need.hours * 3600:.0f} seconds"
    typer.echo(f"  {length}, bound by {need.bound}")
    typer.echo(f"  {need.core_hours:.2f} core hours, {need.gpu_hours:.2f} GPU hours")
    typer.echo(f"  {need.network_bytes / 1e9:.3f} GB of scans to read")
    typer.echo(f"  {need.result_bytes / 1e9:.3f} GB of results, Parquet and CSV")
    typer.echo(f"  {need.node_bytes / 1e9:.1f} GB of memory a node")


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="The tables of all shards.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The table of all.")] = Path("results.csv"),
    partial: Annotated[bool, typer.Option("--partial", help="Do without missing shards.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="HTML page of all; pictures are there if shards had theirs."),
    ] = None,
) -> None:
    """Join the tables that `predict --shard` wrote."""
    from ssclf.workflows.merge import merge as run

    rows = run(parts, out, partial=partial, report=report)
    failed = sum(row.status == "failed" for row in rows)
    typer.echo(f"{out}: {len(rows)} volumes, {failed} failed")
    raise typer.Exit(3 if failed else 0)


@app.command()
@_with_settings
def train(
    model: Annotated[
        str | None, typer.Option("--model", help="mc3 (the paper's winner, default), r2plus1d or r3d.")
    ] = None,
    data: Annotated[Path, typer.Option("--data", help="Folder that preprocess wrote.")] = _PREPROCESSED,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder. Default: runs/<model>-<time>.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a run as it began: that of --out, else the newest (of --model)."
        ),
    ] = False,
    preset: Annotated[
        str, typer.Option("--preset", help="paper (every value as published) or default.")
    ] = "default",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from Kinetics-400 weights.")
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Weights in torchvision's format, instead of those imported."),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Bundle or run to go on from (fine-tuning), on this data."),
    ] = None,
    settings: Any = None,
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that read and augment.")] = 2,
    quiet: Quiet = False,
    log_level: LogLevel = "info",
) -> None:
    """Train a network on preprocessed volumes. Options left out come from the preset."""
    _start(quiet, log_level)
    from ssclf.config import TrainConfig
    from ssclf.io.records.training_run import (
        PROVENANCE,
        is_first_process,
        new_run_folder,
        newest_run,
        read_config,
    )
    from ssclf.reporting.console import TrainDisplay
    from ssclf.workflows.export import open_start
    from ssclf.workflows.train import train as run

    begin = open_start(start) if start and not resume else None
    if resume:
        folder = out or newest_run(model)
        config = read_config(folder)
        if (folder / PROVENANCE).is_file():
            typer.echo(f"{folder}: has finished; nothing is left to do")
            raise typer.Exit
    else:
        if start and (pretrained or weights):
            raise ConfigError("--from: expected it alone, found --pretrained or --weights beside it.")
        model = model or (begin.spec.architecture if begin else "mc3")
        folder = out or new_run_folder(model)
        given = {"architecture": model, "pretrained": pretrained or weights is not None, **settings}
        config = TrainConfig.preset(preset, **given)  # type: ignore[arg-type]  # checked there
    with TrainDisplay(config.epochs, quiet=quiet or not is_first_process()) as display:
        result = run(
            data,
            folder,
            config,
            resume=resume,
            weights=weights,
            start=begin,
            device=device,  # type: ignore[arg-type]  # checked there
            workers=workers,
            on_step=display.step,
            on_epoch=display.epoch,
        )
    display.summary(result)
    raise typer.Exit(128 + result.interrupted if result.interrupted else 0)


@app.command()
@_with_settings
def cv(
    models: Annotated[str, typer.Option("--models", help="Networks, comma separated.")] = "mc3,r2plus1d,r3d",
    pretrained: Annotated[
        str, typer.Option("--pretrained", help="Kinetics-400 weights: no, yes, or both for either start.")
    ] = "no",
    data: Annotated[
        Path | None, typer.Option("--data", help=f"Folder that preprocess wrote. Default: {_PREPROCESSED}.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder. Default: runs/cv-<time>."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with a cross-validation as it began: that of --out, else the newest."
        ),
    ] = False,
    preset: Annotated[
        str, typer.Option("--preset", help="paper (every value as published) or default.")
    ] = "paper",
    scheme: Annotated[
        str, typer.Option("--scheme", help="paper: independent 70/30 divisions; kfold: disjoint test parts.")
    ] = "paper",
    folds: Annotated[int, typer.Option("--folds", min=2, help="Divisions, or disjoint parts.")] = 3,
    only: Annotated[
        str | None, typer.Option("--only", help="One cell, such as mc3/pretrained/2, for job arrays.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Instead of the imported weights.")
    ] = None,
    settings: Any = None,
    device: DeviceOption = "auto",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that read and augment.")] = 2,
    quiet: Quiet = False,
    log_level: LogLevel = "info",
) -> None:
    """Cross-validate networks as the paper does; tables and figures beside the paper's. Resumable."""
    _start(quiet, log_level)
    from ssclf.config import TrainConfig
    from ssclf.io.records.cv_run import newest_cv_run, read_settings
    from ssclf.io.records.training_run import new_run_folder
    from ssclf.reporting.console import CvDisplay
    from ssclf.reporting.cv_report import write_cv_report
    from ssclf.workflows.cross_validate import cross_validate

    starts = {"no": (False,), "yes": (True,), "both": (False, True)}.get(pretrained)
    if starts is None:
        raise ConfigError(f"--pretrained: expected no, yes or both, found {pretrained!r}.")
    folder = out or (newest_cv_run() if resume else new_run_folder("cv"))
    if resume and data is None:
        data = Path(read_settings(folder)["data"])
    with CvDisplay(quiet=quiet) as display:
        result = cross_validate(
            data or _PREPROCESSED,
            folder,
            models=[name.strip() for name in models.split(",")],  # type: ignore[misc]  # checked there
            pretrained=starts,
            config=TrainConfig.preset(preset, **settings),  # type: ignore[arg-type]  # checked there
            scheme=scheme,  # type: ignore[arg-type]
            folds=folds,
            only=only,
            resume=resume,
            weights=weights,
            device=device,  # type: ignore[arg-type]
            workers=workers,
            on_cell=display.cell,
            on_epoch=display.epoch,
        )
    for cell, error in result.errors.items():
        typer.echo(f"{cell.name}: {error}", err=True)
    if result.missing:
        typer.echo(f"not finished: {', '.join(cell.name for cell in result.missing)}")
        typer.echo(f"`ssclf cv --resume --out {folder}` goes on")
    if not result.interrupted:
        typer.echo(f"report: {write_cv_report(folder)}")
    raise typer.Exit(result.exit_code)


@app.command()
def export(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder. Default: the newest one.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Bundle. Default: exported/<name of the run>.")
    ] = None,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="onnx, torchscript; default both.")
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Of the ONNX file: fp32, or fp16 for GPUs.")
    ] = "fp32",
    brain_extraction: Annotated[
        bool, typer.Option("--brain-extraction/--no-brain-extraction", help="Put deepbet's networks into it.")
    ] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle of that name.")] = False,
    network: Annotated[
        str | None, typer.Option("--network", help="Of a cv run, such as mc3/scratch. Default: its best.")
    ] = None,
    per_fold: Annotated[
        bool, typer.Option("--folds", help="Of a cv run: a bundle a fold, instead of training on everything.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Of a cv run: the preprocessed folder, where it has moved.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="Of a cv run that began with --weights: the same file again."),
    ] = None,
    device: DeviceOption = "auto",
    log_level: LogLevel = "info",
) -> None:
    """Make a bundle for predict: ONNX and TorchScript, checked against the trained network."""
    _start(False, log_level)
    from ssclf.io.records.cv_run import is_cv_run
    from ssclf.io.records.training_run import newest_run

    folder = run or newest_run()
    target = out or Path("exported") / folder.name
    formats_: Any = tuple(formats) if formats else ("onnx", "torchscript")
    if is_cv_run(folder):
        from ssclf.workflows.export_cv import export_cv

        made = export_cv(
            folder,
            target,
            network=network,
            per_fold=per_fold,
            formats=formats_,
            precision=precision,  # type: ignore[arg-type]  # checked there
            brain_extraction=brain_extraction,
            replace=replace,
            data=data,
            weights=weights,
            device=device,  # type: ignore[arg-type]  # checked there
            on_epoch=lambda e: typer.echo(f"epoch {e.epoch}: loss {e.train_loss:.4f}", err=True),
        )
        if made.interrupted:
            raise typer.Exit(128 + made.interrupted)
        bundles = made.bundles
    else:
        from ssclf.workflows.export import export_run

        bundles = (
            export_run(
                folder,
                target,
                formats=formats_,
                precision=precision,  # type: ignore[arg-type]  # checked there
                brain_extraction=brain_extraction,
                replace=replace,
            ),
        )
    for bundle in bundles:
        typer.echo(f"{bundle}: {', '.join(sorted(p.name for p in bundle.iterdir()))}")


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Argument(help="Labelled cohort: preprocessed, or any layout preprocess reads.")
    ],
    model: Annotated[Path | None, typer.Option("--model", help="A bundle; default as for predict.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("evaluation"),
    leave_out_seen: Annotated[
        bool,
        typer.Option("--leave-out-seen", help="Leave out volumes the model was trained on, not refuse them."),
    ] = False,
    skull_strip: SkullStrip = "auto",
    engine: Annotated[str, typer.Option("--engine", help="auto, onnx or torchscript.")] = "auto",
    device: DeviceOption = "auto",
    workers: Workers = 0,
    quiet: Quiet = False,
    log_level: LogLevel = "info",
) -> None:
    """Score a model on a labelled cohort that it has not seen; metrics and figures as cv makes them."""
    _start(quiet, log_level)
    from ssclf.io.models.bundle import choose_bundles
    from ssclf.workflows.evaluate import evaluate as run

    (bundle,) = choose_bundles([model] if model else [], os.environ)
    result = run(
        data,
        bundle,
        out,
        seen="leave-out" if leave_out_seen else "refuse",
        skull_strip=skull_strip,
        engine=engine,  # type: ignore[arg-type]  # checked there
        device=device,  # type: ignore[arg-type]
        workers=_count(workers),
    )
    if result.calibrated is not None:
        kind = "synthetic volumes" if result.synthetic else "volumes"
        typer.echo(
            f"{result.volumes} {kind}: accuracy {result.calibrated.accuracy:.4f}, "
            f"macro F1 {result.calibrated.macro_f1:.4f}; report: {out / 'report.html'}"
        )
    raise typer.Exit(result.exit_code)


weights_app = typer.Typer(no_args_is_help=True, help="Kinetics-400 weights on a machine without network.")
app.add_typer(weights_app, name="weights")


@weights_app.command("import")
def weights_import(
    files: Annotated[
        list[Path], typer.Argument(help="Files as torchvision names them, e.g. mc3_18-a90a0ba3.pth.")
    ],
) -> None:
    """Copy downloaded files to where training finds them, once their hash is right."""
    from ssclf.learning.pretrained import import_weights

    for path in files:
        typer.echo(f"{path.name}: {import_weights(path)}")


@weights_app.command("verify")
def weights_verify() -> None:
    """Say which weights are there, and whether they are what they claim to be."""
    from ssclf.learning.pretrained import verify_weights

    for weights in verify_weights():
        where = (
            f"intact, {weights.path}" if weights.path else f"not here; download {weights.url} and import it"
        )
        typer.echo(f"{weights.architecture}: {weights.name}: {where}")


@app.command()
def preprocess(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="BraTS or IXI trees, a folder a class, BIDS, DICOM, or a manifest CSV; several are joined.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = _PREPROCESSED,
    spacing: Annotated[str, typer.Option("--spacing", help="Voxel size in mm: one number or D,H,W.")] = "2",
    percentiles: Annotated[
        str, typer.Option("--percentiles", help="Of the brain; intensities are clipped there.")
    ] = (",".join(f"{p:g}" for p in _PREPROCESS.percentiles)),
    plane: Annotated[
        str, typer.Option("--plane", help="Of a slice: axial, coronal or sagittal.")
    ] = _PREPROCESS.plane,
    contrasts: Annotated[
        str, typer.Option("--contrasts", help="One to four, comma separated: the channels in their order.")
    ] = ",".join(_PREPROCESS.contrasts),
    crop: Annotated[
        str, typer.Option("--crop", help="none (as in the paper), or brain: its box and a margin.")
    ] = (_PREPROCESS.crop),
    skull_strip: SkullStrip = "auto",
    assume_stripped: AssumeStripped = False,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="At most so many of a class, at random: healthy=259.")
    ] = None,
    class_map: Annotated[
        list[str] | None, typer.Option("--class", help="Another name for a label as found: GBM=HGG.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Table of subject and label, for folders that do not say.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Of participants.tsv or a manifest.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="Take only files whose name matches.")
    ] = None,
    series: Annotated[
        str | None, typer.Option("--series", help="Take only DICOM series described like this.")
    ] = None,
    seed: Seed = 0,
    show_heads: Annotated[
        bool, typer.Option("--show-heads", help="Draw whole heads, with faces, in qc.html.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds a volume may take; 0: no limit.")] = 0,
    workers: Workers = 0,
    quiet: Quiet = False,
    log_level: LogLevel = "info",
) -> None:
    """Turn a cohort's volumes into network input, with a manifest and a page to look at."""
    _start(quiet, log_level)
    from ssclf.reporting.console import PreprocessDisplay
    from ssclf.workflows.preprocess import preprocess_cohort

    config = PreprocessConfig(
        spacing=_numbers(spacing, 3, "--spacing"),  # type: ignore[arg-type]  # three, as asked for
        percentiles=_numbers(percentiles, 2, "--percentiles"),  # type: ignore[arg-type]
        plane=plane,  # type: ignore[arg-type]  # checked by the config
        contrasts=tuple(name.strip().lower() for name in contrasts.split(",")),
        crop=crop,  # type: ignore[arg-type]
    )
    limits = {name: _whole(number, "--limit") for name, number in _pairs(limit, "--limit").items()}
    with PreprocessDisplay(quiet=quiet) as display:
        summary = preprocess_cohort(
            sources,
            out,
            config,
            skull_strip="none" if assume_stripped else skull_strip,
            workers=_count(workers),
            timeout_s=timeout or None,
            show_heads=show_heads,
            labels=labels,
            label_column=label_column,
            class_map=_pairs(class_map, "--class"),
            limit=limits,
            seed=seed,
            pattern=pattern,
            series=series,
            on_start=display.start,
            on_case=display.case,
        )
    display.summary(summary, out)
    raise typer.Exit(summary.exit_code)


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """`["healthy=259"]` → names and what is said of them."""
    pairs = {}
    for text in texts or []:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"{option}: expected NAME=VALUE, found {text!r}.")
        pairs[name] = value
    return pairs


def _whole(text: str, option: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"{option}: expected a whole number, found {text!r}.")
    return int(text)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="A new folder.")] = Path("demo"),
    seed: Seed = 0,
    workers: Workers = 0,
) -> None:
    """The whole way on SYNTHETIC volumes: make, preprocess, train, export, predict. A few minutes."""
    _start(False, "warning")
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ssclf.reporting.console import NOTICE
    from ssclf.workflows.demo import read_first_rows, run_demo

    console = Console(soft_wrap=True, markup=False, emoji=False)  # file names are text
    result = run_demo(
        out,
        seed=seed,
        workers=_count(workers),
        on_stage=lambda title: console.print(f"[bold]SYNTHETIC DEMO[/]: {escape(title)}", markup=True),
        on_epoch=lambda e: console.print(
            f"  epoch {e.epoch}: loss {e.train_loss:.3f} (synthetic), {e.seconds:.0f} s"
        ),
    )
    header, *rows = read_first_rows(result.results)
    shown = [i for i, name in enumerate(header) if name in ("path", "prediction") or name.startswith("p_")]
    table = Table(title=f"first rows of {result.results} (synthetic volumes)", title_justify="left")
    for i in shown:
        table.add_column(header[i])
    for row in rows:
        table.add_row(*(f"{float(row[i]):.3f}" if header[i].startswith("p_") else row[i] for i in shown))
    console.print(table)
    volumes = len(result.summary.rows)
    console.print(f"held-out accuracy on {volumes} synthetic volumes: {result.accuracy:.1%} (chance: 33.3%)")
    console.print(
        f"table: {result.results}\nreport: {result.report}\nmodel: {result.bundle} (synthetic: for trying things out)"
    )
    console.print(NOTICE, style="bold")
    raise typer.Exit(result.summary.exit_code)
