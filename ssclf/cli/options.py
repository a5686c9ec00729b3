"""Options that commands share, each written once, and how texts become settings.

An option that sets a field of a config takes everything from there (`ssclf.config.Option`): a command lists the
aliases below and hands its context to `given`, which returns what the user has set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ssclf.config import (
    LEAST_EPOCHS,
    PRETRAIN_STEPS,
    STEPS,
    Architecture,
    Augmentation,
    ClusterConfig,
    Config,
    Crop,
    Device,
    Engine,
    ExportFormat,
    LogLevel,
    MapMethod,
    Optimizer,
    Option,
    Plane,
    Precision,
    PredictConfig,
    PredictPrecision,
    PreprocessConfig,
    Preset,
    Schedule,
    Stem,
    TrackerName,
    TrainConfig,
)
from ssclf.errors import ConfigError

#: Instances whose values are the defaults that the commands show.
PREPROCESS, PREDICT, CLUSTER = PreprocessConfig(), PredictConfig(), ClusterConfig()
#: By config and preset: what a preset gives.
_PRESETS: dict[type[Config], dict[Preset, Any]] = {
    PreprocessConfig: {name: PreprocessConfig.preset(name) for name in get_args(Preset)},
    TrainConfig: {name: TrainConfig.preset(name) for name in get_args(Preset)},
}
#: What depends on the network, the cohort and the machine.
_SMALL, _OTHERS = TrainConfig.preset("default", architecture="small"), TrainConfig.preset("default")
_FITTED = {
    "epochs": f"{STEPS} steps and at least {LEAST_EPOCHS} epochs, of `pretrain` {PRETRAIN_STEPS}",
    "learning_rate": f"{_SMALL.learning_rate} for small and {_OTHERS.learning_rate} for the others",
    "batch_size": f"{_OTHERS.batch_size}, or what fits the memory",
    "accumulate": f"1, or what makes {_OTHERS.batch_size} volumes a step",
}
#: Where preprocessed volumes go and are looked for.
PREPROCESSED = Path("data/preprocessed")


def setting(config: type[Config], name: str) -> Any:
    """The command-line option of a config's field, as its annotation describes it."""
    described = _descriptions(config)[name]
    about = described.help + _default_by_preset(config, name)
    words, parse = described.words, described.parse
    return typer.Option(
        _flag(config, name),
        help=about,
        rich_help_panel=described.panel or None,
        metavar=described.metavar or None,
        min=described.low,
        autocompletion=_offer(words) if words else None,
        callback=_checked(parse) if parse else None,
    )


@cache  # evaluating annotations is what takes time here, and `ssclf --help` waits for it
def _descriptions(config: type[Config]) -> dict[str, Option]:
    """What each field of a config says of its option, for those that have one."""
    return {
        name: part
        for name, hint in get_type_hints(config, include_extras=True).items()
        for part in getattr(hint, "__metadata__", ())
        if isinstance(part, Option)
    }


def _default_by_preset(config: type[Config], name: str) -> str:
    """What a setting is when it is left out, where that depends on the preset."""
    presets = _PRESETS.get(config, {})
    if not presets or name in ("architecture", "pretrained"):  # these --from and --weights say, and no preset
        return ""
    if name in _FITTED:
        paper = _shown(getattr(presets["paper"], name))
        return f" Default: {paper} (--preset paper), {_FITTED[name]} (--preset default)."
    values = {preset: _shown(getattr(values, name)) for preset, values in presets.items()}
    if len(set(values.values())) > 1:
        return f" Default: {', '.join(f'{value} (--preset {preset})' for preset, value in values.items())}."
    return f" Default: {values['paper']}." if config is TrainConfig else ""  # Typer shows the others


def _offer(words: Iterable[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def _checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """A wrong text is wrong usage, as a wrong choice is."""

    def check(text: str) -> str:
        try:
            parse(text)
        except ConfigError as exc:
            raise typer.BadParameter(str(exc)) from exc
        return text

    return check


def was_given(ctx: typer.Context, name: str) -> bool:
    """Whether the user has set a parameter, to whatever value."""
    source = ctx.get_parameter_source(name)
    return source is not None and not source.name.startswith("DEFAULT")


def said(ctx: typer.Context, name: str) -> Any:
    """The value that the user has given a parameter, None where it was left out."""
    return ctx.params[name] if was_given(ctx, name) else None


def given(ctx: typer.Context, config: type[Config]) -> dict[str, Any]:
    """The fields of a config that the user has set on the command line; the others are the config's to fill.

    Raises:
        ConfigError: a text that should be several numbers is not.
    """
    values = {}
    for name, kind in get_type_hints(config).items():
        if not was_given(ctx, name):
            continue
        value = ctx.params[name]
        values[name] = _several(value, kind, _flag(config, name)) if get_origin(kind) is tuple else value
    return values


def _flag(config: type[Config], name: str) -> str:
    return _descriptions(config)[name].flag or f"--{name.replace('_', '-')}"


def _several(text: str, kind: Any, flag: str) -> tuple[Any, ...]:
    """`t1,t2` → the names, `2,2,3` → the numbers that a field of type `kind` holds; `2` → three times 2."""
    parts = [part.strip() for part in text.split(",")]
    of, *rest = get_args(kind)
    if of is str:
        return tuple(part.lower() for part in parts)
    count = 1 + len(rest)
    try:
        values = tuple(float(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) == 1 and count == 3:
        values *= 3
    if len(values) != count:
        raise ConfigError(f"{flag}: expected {count} numbers separated by commas, found {text!r}.")
    return values


def as_text(values: tuple[object, ...]) -> str:
    """What `--help` shows for several values: `0.5,99.5`; one number where all are the same."""
    texts = [_shown(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """`["healthy=259"]` → names and what is said of them.

    Raises:
        ConfigError: a text is no such pair, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise ConfigError(f"{option}: expected NAME=VALUE, found {text!r}.")
        if found.setdefault(name, value) != value:
            raise ConfigError(
                f"{option}: expected {name} once, found it with {found[name]} and with {value}."
            )
    return found


def counts(texts: list[str] | None, option: str) -> dict[str, int]:
    """`["healthy=259"]` → how many of each name.

    Raises:
        ConfigError: a text is no such pair, or its value no whole number.
    """
    found = pairs(texts, option)
    for value in found.values():
        if not value.isdecimal():
            raise ConfigError(f"{option}: expected a whole number, found {value!r}.")
    return {name: int(value) for name, value in found.items()}


def chosen(texts: Iterable[str], choices: Any, option: str) -> tuple[Any, ...]:
    """Texts as values of a Literal, for options that take several of them.

    Raises:
        typer.BadParameter: one is none of the choices.
    """
    known = get_args(choices)
    found = tuple(text.strip() for text in texts)
    for text in found:
        if text not in known:
            raise typer.BadParameter(
                f"{text!r} is not one of {', '.join(map(repr, known))}.", param_hint=option
            )
    return found


def trackers(texts: list[str] | None) -> tuple[TrackerName, ...] | None:
    """What `--log` names, each once; None where it was not given."""
    return tuple(dict.fromkeys(chosen(texts, TrackerName, "--log"))) if texts else None


def cores(wanted: int) -> int:
    """`--workers 0` and the like: as many as this process may use."""
    return wanted or len(os.sched_getaffinity(0))


def predict_settings(
    ctx: typer.Context, workers: int, timeout_s: float, *, assume_stripped: bool = False
) -> dict[str, Any]:
    """As `given` for `PredictConfig`, with the options that say something else than the field of their name."""
    settings = given(ctx, PredictConfig) | {"workers": cores(workers), "timeout_s": timeout_s or None}
    if assume_stripped:
        settings["skull_strip"] = "none"
    return settings


def bundles(model: list[Path] | None) -> list[Path]:
    """What --model names, or what is taken without it; see `choose_bundles`."""
    from ssclf.io.models.bundle import choose_bundles

    return list(choose_bundles(model or [], os.environ))


def start_log(quiet: bool, level: LogLevel) -> None:
    from ssclf.reporting.console import log_to_stderr

    log_to_stderr(logging.getLevelName("ERROR" if quiet else level.upper()))


def _complete_models(incomplete: str) -> list[str]:
    """The networks that a comma-separated list does not name yet."""
    *named, last = incomplete.split(",")
    known = (name for name in get_args(Architecture) if name not in named and name.startswith(last))
    return [",".join([*named, name]) for name in known]


# Fields of PreprocessConfig
Spacing = Annotated[str, setting(PreprocessConfig, "spacing")]
Percentiles = Annotated[str, setting(PreprocessConfig, "percentiles")]
PlaneOption = Annotated[Plane, setting(PreprocessConfig, "plane")]
Contrasts = Annotated[str, setting(PreprocessConfig, "contrasts")]
CropOption = Annotated[Crop | None, setting(PreprocessConfig, "crop")]  # None: as the preset says

# Fields of PredictConfig
SkullStrip = Annotated[str, setting(PredictConfig, "skull_strip")]
Pattern = Annotated[str | None, setting(PredictConfig, "pattern")]
Series = Annotated[str | None, setting(PredictConfig, "series")]
EngineOption = Annotated[Engine, setting(PredictConfig, "engine")]
DeviceOption = Annotated[Device, setting(PredictConfig, "device")]
PredictPrecisionOption = Annotated[PredictPrecision, setting(PredictConfig, "precision")]
Threads = Annotated[int, setting(PredictConfig, "threads")]
Timeout = Annotated[float, setting(PredictConfig, "timeout_s")]
ReviewBelow = Annotated[float, setting(PredictConfig, "review_below")]
Flip = Annotated[bool, setting(PredictConfig, "flip")]
MapMethodOption = Annotated[MapMethod, setting(PredictConfig, "map_method")]
KeepUids = Annotated[bool, setting(PredictConfig, "keep_uids")]
RetryFailed = Annotated[bool, setting(PredictConfig, "retry_failed")]

# Fields of ClusterConfig
GpusPerActor = Annotated[float, setting(ClusterConfig, "gpus_per_actor")]
Actors = Annotated[int, setting(ClusterConfig, "actors")]
Partition = Annotated[int, setting(ClusterConfig, "partition")]

# Fields of TrainConfig; None: as the preset says
ArchitectureOption = Annotated[Architecture | None, setting(TrainConfig, "architecture")]
Pretrained = Annotated[bool, setting(TrainConfig, "pretrained")]
StemOption = Annotated[Stem | None, setting(TrainConfig, "stem")]
Freeze = Annotated[int | None, setting(TrainConfig, "freeze")]
Epochs = Annotated[int | None, setting(TrainConfig, "epochs")]
BatchSize = Annotated[int | None, setting(TrainConfig, "batch_size")]
Accumulate = Annotated[int | None, setting(TrainConfig, "accumulate")]
LearningRate = Annotated[float | None, setting(TrainConfig, "learning_rate")]
OptimizerOption = Annotated[Optimizer | None, setting(TrainConfig, "optimizer")]
WeightDecay = Annotated[float | None, setting(TrainConfig, "weight_decay")]
ScheduleOption = Annotated[Schedule | None, setting(TrainConfig, "schedule")]
AugmentationOption = Annotated[Augmentation | None, setting(TrainConfig, "augmentation")]
Holdout = Annotated[float | None, setting(TrainConfig, "holdout")]
Validation = Annotated[float | None, setting(TrainConfig, "validation")]
Patience = Annotated[int | None, setting(TrainConfig, "patience")]
PrecisionOption = Annotated[Precision | None, setting(TrainConfig, "precision")]
ChannelsLast = Annotated[bool | None, setting(TrainConfig, "channels_last")]
Compile = Annotated[bool | None, setting(TrainConfig, "compile")]
TrainSeed = Annotated[int | None, setting(TrainConfig, "seed")]

# Of commands alone
PresetOption = Annotated[
    Preset,
    typer.Option(
        help="Settings that are not given: paper is every value as published, default learns in fewer epochs.",
        rich_help_panel="Network",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="NUMBER",
        help="Processes that read volumes; 0: one a core.",
        rich_help_panel="Speed",
    ),
]
TrainWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        metavar="NUMBER",
        help="Processes that read volumes while the network learns, from the cores if left out; 0: none beside it.",
        rich_help_panel="Speed",
    ),
]
AssumeStripped = Annotated[
    bool, typer.Option("--assume-stripped", help="The same as --skull-strip none.", rich_help_panel="Input")
]
Models = Annotated[
    list[Path] | None,
    typer.Option(
        "--model",
        metavar="BUNDLE",
        help="Folder that ssclf export wrote, or the name reference; several are averaged. Default: "
        "$SSCLF_MODEL, else the only one under exported/.",
    ),
]
ModelNames = Annotated[
    str,
    typer.Option(
        "--models",
        metavar="NAMES",
        help=f"Networks to compare, separated by commas: {', '.join(get_args(Architecture))}.",
        rich_help_panel="Network",
        autocompletion=_complete_models,
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar=f"[{'|'.join(get_args(ExportFormat))}]",
        help="What the bundle holds; give it again for several. monai-bundle: what MONAI runs, too. "
        "Default: onnx and torchscript.",
        autocompletion=_offer(get_args(ExportFormat)),
    ),
]
Trackers = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar=f"[{'|'.join(get_args(TrackerName))}]",
        help="Where settings, the numbers of each epoch and the scores go; give it again for several. MLflow and W&B "
        "keep them in the run folder, without a network, unless MLFLOW_TRACKING_URI or WANDB_MODE say otherwise. "
        "Default: tensorboard, with --resume as before.",
        rich_help_panel="Messages",
        autocompletion=_offer(get_args(TrackerName)),
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="NUMBER",
        help="Number that everything drawn at random depends on; the same one repeats a run.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel="Messages")]
LogLevelOption = Annotated[
    LogLevel,
    typer.Option(
        "--log-level",
        case_sensitive=False,
        help="Print these and worse messages.",
        rich_help_panel="Messages",
    ),
]
