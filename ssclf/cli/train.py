"""`ssclf train`, `cv`, `export`, `evaluate` and `weights`: from preprocessed volumes to a model and its scores."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

import typer

from ssclf.cli import options as opt
from ssclf.cli.saying import say
from ssclf.config import (
    Architecture,
    ExportFormat,
    ExportPrecision,
    PaperArchitecture,
    Preset,
    Scheme,
    Starts,
    TrainConfig,
    WeightsKind,
)

if TYPE_CHECKING:
    from ssclf.workflows.cross_validate import CvPlan, CvResult
    from ssclf.workflows.train import Machine

Data = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder that ssclf preprocess wrote; given several times, all of them, joined. Default: "
        f"{opt.PREPROCESSED}, with --resume those of the run.",
    ),
]
RunFolder = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Run folder. Default: runs/<model>-<time>.")
]
CvFolder = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Run folder. Default: runs/cv-<time>.")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with a run as it began: that of --out, else the newest (of --model)."
    ),
]
CvResume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with a cross-validation as it began: that of --out, else the newest."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File to start from instead of the Kinetics-400 weights that ssclf weights imported: such weights in "
        "torchvision's format, or another network's that ssclf weights import --kind has made.",
        rich_help_panel="Network",
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FOLDER",
        help="Bundle or run to go on from (fine-tuning), on this data; or the name reference.",
        rich_help_panel="Network",
    ),
]
StartsOption = Annotated[
    Starts,
    typer.Option(
        "--pretrained",
        help="Start from Kinetics-400 weights, or those of --weights: no, yes, or both to compare the two.",
        rich_help_panel="Network",
    ),
]
_ALL = ",".join(get_args(PaperArchitecture))
_STARTS: dict[Starts, tuple[bool, ...]] = {"no": (False,), "yes": (True,), "both": (False, True)}
SchemeOption = Annotated[
    Scheme,
    typer.Option(
        "--scheme",
        help="paper draws independent divisions with --holdout as the test share; kfold cuts disjoint test parts.",
        rich_help_panel="Folds",
    ),
]
Folds = Annotated[
    int,
    typer.Option(
        min=2, metavar="NUMBER", help="How many divisions or parts, 2 or more.", rich_help_panel="Folds"
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="CELL",
        help="Train one network on one fold, such as mc3/pretrained/2 (job arrays). Default: all.",
        rich_help_panel="Folds",
    ),
]
OnnxPrecision = Annotated[
    ExportPrecision,
    typer.Option(
        help="Numbers of the ONNX file: fp16 halves its size, and is for GPUs; fp16-storage halves it and "
        "computes in 32 bits."
    ),
]
EightBits = Annotated[
    bool,
    typer.Option(
        "--int8",
        help="Add a network in 8 bits for predict --precision int8, compared on volumes that the run held out.",
    ),
]
SeriesRules = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Which series of a DICOM study the model answers, as predict --series-rules reads it.",
        rich_help_panel="DICOM reports",
    ),
]
NetworkOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Network, such as mc3/scratch. Default: the one with the best mean macro F1.",
        rich_help_panel="Runs of ssclf cv",
    ),
]
PerFold = Annotated[
    bool,
    typer.Option(
        "--folds",
        help="A bundle a fold, for predict to average, instead of training once more on everything.",
        rich_help_panel="Runs of ssclf cv",
    ),
]
MovedData = Annotated[
    list[Path] | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="The preprocessed folder (or folders), where it is not any more where the run found it; for --int8 and "
        "runs of ssclf cv.",
    ),
]
SameWeights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="The same file again, for a run that began with --weights.",
        rich_help_panel="Runs of ssclf cv",
    ),
]


def train(  # what TrainConfig takes from the command line, `opt.given` finds in ctx
    ctx: typer.Context,
    data: Data = None,
    out: RunFolder = None,
    resume: Resume = False,
    seed: opt.TrainSeed = None,
    architecture: opt.ArchitectureOption = None,
    preset: opt.PresetOption = "default",
    pretrained: opt.Pretrained = False,
    stem: opt.StemOption = None,
    weights: Weights = None,
    start: From = None,
    freeze: opt.Freeze = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    accumulate: opt.Accumulate = None,
    learning_rate: opt.LearningRate = None,
    optimizer: opt.OptimizerOption = None,
    weight_decay: opt.WeightDecay = None,
    schedule: opt.ScheduleOption = None,
    augmentation: opt.AugmentationOption = None,
    holdout: opt.Holdout = None,
    validation: opt.Validation = None,
    patience: opt.Patience = None,
    device: opt.DeviceOption = opt.PREDICT.device,
    precision: opt.PrecisionOption = None,
    channels_last: opt.ChannelsLast = None,
    compile: opt.Compile = None,
    workers: opt.TrainWorkers = None,
    trackers: opt.Trackers = None,
    quiet: opt.Quiet = False,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Train a network on preprocessed volumes. Options left out come from the preset."""
    named = opt.trackers(trackers)
    opt.start_log(quiet, log_level)
    from ssclf.workflows.train import Machine

    asked = preset if opt.was_given(ctx, "preset") or not resume else None
    machine = Machine(device=device, workers=workers, weights=weights, trackers=named)
    _train(ctx, opt.given(ctx, TrainConfig), machine, data=data or (), preset=asked, start=start)


def _train(
    ctx: typer.Context,
    settings: Mapping[str, Any],
    machine: Machine,
    *,
    data: Sequence[Path],
    preset: Preset | None,
    start: Path | None = None,
) -> NoReturn:
    """Begin or go on, where and on what the other options of `train` and `pretrain` say."""
    from ssclf.io.records.training_run import is_first_process
    from ssclf.reporting.console import TrainDisplay
    from ssclf.workflows.choose_run import choose_run
    from ssclf.workflows.train import Watch
    from ssclf.workflows.train import train as run

    out, resume, quiet = (ctx.params[name] for name in ("out", "resume", "quiet"))
    chosen = choose_run(
        Path(out) if out is not None else None,  # older typers keep the text here
        settings,
        data=data,
        preset=preset,
        weights=machine.weights,
        start=start,
        resume=resume,
        device=machine.device,
    )
    if chosen.finished:
        say(f"{chosen.folder}: has finished; nothing is left to do")
        raise typer.Exit
    with TrainDisplay(chosen.config.epochs, quiet=quiet or not is_first_process()) as display:
        result = run(
            chosen.data,
            chosen.folder,
            chosen.config,
            resume=resume,
            start=chosen.start,
            machine=machine,
            watch=Watch(on_step=display.step, on_epoch=display.epoch),
        )
    display.summary(result)
    if chosen.config.lesions:
        say(
            "lesions are synthetic, and so is every score: weights for `ssclf train --from`, no model of any patient"
        )
    raise typer.Exit(result.exit_code)


def pretrain(  # what TrainConfig takes from the command line, `opt.given` finds in ctx
    ctx: typer.Context,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDERS...",
            help="Healthy or unlabelled brains that ssclf preprocess wrote. With --resume: those of the run.",
            show_default=False,
        ),
    ] = None,
    out: RunFolder = None,
    resume: Resume = False,
    seed: opt.TrainSeed = None,
    architecture: opt.ArchitectureOption = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    accumulate: opt.Accumulate = None,
    learning_rate: opt.LearningRate = None,
    augmentation: opt.AugmentationOption = None,
    holdout: opt.Holdout = None,
    device: opt.DeviceOption = opt.PREDICT.device,
    workers: opt.TrainWorkers = None,
    quiet: opt.Quiet = False,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Learn from synthetic lesions in healthy brains, for `ssclf train --from`. Not a model of any patient."""
    if not folders and not resume:
        raise typer.BadParameter("expected folders that ssclf preprocess wrote.", param_hint="FOLDER")
    opt.start_log(quiet, log_level)
    from ssclf.workflows.train import Machine

    machine = Machine(device=device, workers=workers)
    _train(ctx, {**opt.given(ctx, TrainConfig), "lesions": True}, machine, data=folders or (), preset=None)


def cv(  # what TrainConfig takes from the command line, `opt.given` finds in ctx
    ctx: typer.Context,
    data: Data = None,
    out: CvFolder = None,
    resume: CvResume = False,
    seed: opt.TrainSeed = None,
    scheme: SchemeOption = "paper",
    folds: Folds = 3,
    only: Only = None,
    models: opt.ModelNames = _ALL,
    preset: opt.PresetOption = "paper",
    starts: StartsOption = "no",
    stem: opt.StemOption = None,
    weights: Weights = None,
    freeze: opt.Freeze = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    accumulate: opt.Accumulate = None,
    learning_rate: opt.LearningRate = None,
    optimizer: opt.OptimizerOption = None,
    weight_decay: opt.WeightDecay = None,
    schedule: opt.ScheduleOption = None,
    augmentation: opt.AugmentationOption = None,
    holdout: opt.Holdout = None,
    validation: opt.Validation = None,
    patience: opt.Patience = None,
    device: opt.DeviceOption = opt.PREDICT.device,
    precision: opt.PrecisionOption = None,
    channels_last: opt.ChannelsLast = None,
    compile: opt.Compile = None,
    workers: opt.TrainWorkers = None,
    trackers: opt.Trackers = None,
    quiet: opt.Quiet = False,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Cross-validate networks as the paper does; tables and figures beside the paper's. Resumable."""
    networks, named = opt.chosen(models.split(","), Architecture, "--models"), opt.trackers(trackers)
    opt.start_log(quiet, log_level)
    from ssclf.reporting.console import CvDisplay
    from ssclf.workflows.choose_run import choose_cv_run
    from ssclf.workflows.cross_validate import CvPlan, CvWatch, cross_validate
    from ssclf.workflows.train import Machine

    machine = Machine(device=device, workers=workers, weights=weights, trackers=named)
    # one set of values for all; where they differ, those of the paper's networks
    settings = TrainConfig.preset(preset, architecture=min(networks), **opt.given(ctx, TrainConfig))
    plan = CvPlan.of(networks, _STARTS[starts], config=settings, scheme=scheme, folds=folds, only=only)
    chosen = choose_cv_run(out, plan, data=data or (), asked=_asked(ctx, plan), resume=resume)
    with CvDisplay(chosen.plan.config.epochs, quiet=quiet) as display:
        result = cross_validate(
            chosen.data,
            chosen.folder,
            chosen.plan,
            resume=resume,
            machine=machine,
            watch=CvWatch(on_cell=display.cell, on_step=display.step, on_epoch=display.epoch),
        )
    _report_cv(result, weights)


def _asked(ctx: typer.Context, plan: CvPlan) -> dict[str, Any]:
    """What the user has said of a cross-validation."""
    asked = opt.given(ctx, TrainConfig) | {
        name: getattr(plan, name) for name in ("scheme", "folds") if opt.was_given(ctx, name)
    }
    asked.pop("pretrained", None)  # of each cell
    if opt.was_given(ctx, "models") or opt.was_given(ctx, "starts"):
        asked["variants"] = plan.variants
    return asked


def _report_cv(result: CvResult, weights: Path | None) -> NoReturn:
    """Say what failed or is missing, write the report, and set the exit code."""
    from ssclf.reporting.cv_report import REPORT, write_cv_report
    from ssclf.workflows.reports import try_report

    for cell, error in result.errors.items():
        say(f"{cell.name}: {error}", err=True)
    if result.missing:
        say(f"not finished: {', '.join(cell.name for cell in result.missing)}")
        same = f" --weights {shlex.quote(str(weights))}" if weights else ""
        say(f"`ssclf cv --resume --out {shlex.quote(str(result.run))}{same}` goes on")
    page = result.run / REPORT
    if not result.interrupted and try_report(str(page), lambda: write_cv_report(result.run)):
        say(f"report: {page}")
    elif not result.interrupted:
        raise typer.Exit(result.exit_code or 3)
    raise typer.Exit(result.exit_code)


def export(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="Run folder. Default: the newest one.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Bundle. Default: exported/<name of the run>.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle of that name.")] = False,
    formats: opt.Formats = None,
    precision: OnnxPrecision = "fp32",
    int8: EightBits = False,
    brain_extraction: Annotated[
        bool,
        typer.Option(
            "--brain-extraction/--no-brain-extraction",
            help="Put deepbet's networks into the bundle, so that predict can remove skulls.",
        ),
    ] = True,
    series_rules: SeriesRules = None,
    network: NetworkOption = None,
    per_fold: PerFold = False,
    data: MovedData = None,
    weights: SameWeights = None,
    device: opt.DeviceOption = opt.PREDICT.device,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Make a bundle for predict: ONNX and TorchScript, checked against the trained network."""
    opt.start_log(False, log_level)
    from ssclf.io.records.series_rules import read_series_rules
    from ssclf.reporting.console import StepLines
    from ssclf.workflows.export import ExportConfig
    from ssclf.workflows.export_any import export_any
    from ssclf.workflows.train import Machine, Watch

    made = export_any(
        run,
        out,
        ExportConfig(
            formats=opt.chosen(formats or ("onnx", "torchscript"), ExportFormat, "--format"),
            precision=precision,
            brain_extraction=brain_extraction,
            replace=replace,
            int8=int8,
            series_rules=read_series_rules(series_rules) if series_rules else (),
        ),
        network=network,
        per_fold=per_fold,
        data=data,
        machine=Machine(device=device, weights=weights),
        watch=Watch(
            on_step=StepLines(lambda words: say(words, err=True)),
            on_epoch=lambda e: say(f"epoch {e.epoch}: loss {e.train_loss:.4f}", err=True),
        ),
    )
    if made.interrupted:
        raise typer.Exit(128 + made.interrupted)
    for bundle in made.bundles:
        say(f"{bundle}: {', '.join(sorted(p.name for p in bundle.iterdir()))}")


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Labelled cohort: preprocessed, or any layout that ssclf preprocess reads.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Folder that ssclf export wrote; default as for predict."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder to write: report, figures, tables, predictions.")
    ] = Path("evaluation"),
    leave_out_seen: Annotated[
        bool,
        typer.Option(
            "--leave-out-seen",
            help="Leave out volumes that trained the model or chose its epoch. By default they are an error.",
            rich_help_panel="Input",
        ),
    ] = False,
    skull_strip: opt.SkullStrip = opt.PREDICT.skull_strip,
    device: opt.DeviceOption = opt.PREDICT.device,
    engine: opt.EngineOption = opt.PREDICT.engine,
    precision: opt.PredictPrecisionOption = opt.PREDICT.precision,
    workers: opt.Workers = 0,
    quiet: opt.Quiet = False,
    log_level: opt.LogLevelOption = "info",
) -> None:
    """Score a model on a labelled cohort that it has not seen; metrics and figures as cv makes them."""
    opt.start_log(quiet, log_level)
    from ssclf.io.models.bundle import choose_bundles
    from ssclf.reporting.console import evaluation_lines
    from ssclf.workflows.evaluate import evaluate as run

    (bundle,) = choose_bundles([model] if model else [], os.environ)
    result = run(
        data,
        bundle,
        out,
        seen="leave-out" if leave_out_seen else "refuse",
        skull_strip=skull_strip,
        engine=engine,
        device=device,
        precision=precision,
        workers=opt.cores(workers),
    )
    for line in evaluation_lines(result):
        say(line)
    raise typer.Exit(result.exit_code)


weights_app = typer.Typer(no_args_is_help=True, help="Weights to start from, on a machine without network.")


@weights_app.command("import")
def weights_import(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES", help="Files as published; Kinetics-400's keep torchvision's names."),
    ],
    kind: Annotated[
        WeightsKind,
        typer.Option(help="What the files are. Of the last two, the layers that fit are put into r3d."),
    ] = "kinetics",
) -> None:
    """Put downloaded files where training finds them, once their hash, where one is known, is right."""
    from ssclf.learning.pretrained import import_foreign, import_weights

    opt.start_log(False, "info")
    for path in files:
        if kind == "kinetics":
            say(f"{path.name}: {import_weights(path)}")
            continue
        made, found = import_foreign(path, kind)
        say(f"{path.name}: {found.about['name']}, {found.about['source']}; licence: {found.about['licence']}")
        say(f"  taken: {len(found.weights)} tensors of layer1 to layer4")
        say(f"  not taken, as r3d has no such layer: {', '.join(found.left) or 'none'}")
        say(f"  not there, random in r3d: {', '.join(found.missing)}")
        say(f"  for `ssclf train --model r3d --weights {shlex.quote(str(made))}`")


@weights_app.command("verify")
def weights_verify() -> None:
    """Say which weights are there, and whether they are what they claim to be."""
    from ssclf.learning.foreign_weights import ORIGINS
    from ssclf.learning.pretrained import verify_foreign, verify_weights

    for weights in verify_weights():
        where = (
            f"intact, {weights.path}" if weights.path else f"not here; download {weights.url} and import it"
        )
        say(f"{weights.architecture}: {weights.name}: {where}")
    made = verify_foreign()
    for path, about in made:
        say(f"r3d: {about['name']}, {about['file']}; licence: {about['licence']}: intact, {path}")
    for kind, origin in ORIGINS.items():
        if not any(about["kind"] == kind for _, about in made):
            say(f"r3d: {origin.name}: not here; see {origin.source} and import its file with --kind {kind}")
