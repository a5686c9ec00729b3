"""Settings: frozen values that repeat a run on another machine. Paths are arguments, not settings.

Every config can be written as JSON and read back; reading rejects keys that it does not know, so a
setting of another version is never dropped silently.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, get_args

from ssclf.errors import ConfigError

MapMethod = Literal["cam", "occlusion", "mirror"]
Plane = Literal["axial", "coronal", "sagittal"]
Crop = Literal["none", "brain"]
#: Of the paper, from torchvision.
PaperArchitecture = Literal["mc3", "r2plus1d", "r3d"]
Architecture = Literal["mc3", "r2plus1d", "r3d", "small"]
Augmentation = Literal["light", "half", "heavy", "flip", "none"]
Optimizer = Literal["adam", "adamw"]
Schedule = Literal["constant", "cosine", "onecycle"]
Stem = Literal["random", "mean"]
#: Weights of other networks that `ssclf weights import` fits to r3d.
ForeignWeights = Literal["medicalnet", "neuro-simclr"]
#: What `ssclf weights import` reads.
WeightsKind = Literal["kinetics", "medicalnet", "neuro-simclr"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-mixed-cpu"]
ClassWeights = Literal["paper", "none"]
Preset = Literal["paper", "default"]
#: How the folds of a cross-validation are drawn: independent 70/30 divisions, or disjoint test parts.
Scheme = Literal["paper", "kfold"]
#: Where the numbers of a training go.
TrackerName = Literal["tensorboard", "mlflow", "wandb"]
#: Which starts a cross-validation compares: random weights, Kinetics-400 weights, or both.
Starts = Literal["no", "yes", "both"]
#: What runs an exported model, and on what.
Engine = Literal["auto", "onnx", "torchscript"]
Device = Literal["auto", "cpu", "cuda"]
#: Files of a bundle that hold the network, and the numbers of its ONNX file.
ExportFormat = Literal["onnx", "torchscript", "monai-bundle"]
ExportPrecision = Literal["fp32", "fp16", "fp16-storage"]
#: Which of a bundle's networks predicts: model.onnx as it was exported, or the one in 8 bits beside it.
PredictPrecision = Literal["fp32", "int8"]
#: What removes a skull; "none" takes a volume as it is.
StripEngine = Literal["deepbet", "bet", "hd-bet", "synthstrip", "none"]
LogLevel = Literal["debug", "info", "warning", "error"]

#: Raised whenever the same settings give other voxel values than before: part of every settings hash.
PREPROCESSING_VERSION = 1

#: The name of a contrast, and the other words for it that settings, columns of a manifest and file names may use.
CONTRASTS: Mapping[str, tuple[str, ...]] = {
    "t1": ("t1w", "t1n", "t1pre"),
    "t1ce": ("t1c", "t1gd", "t1post"),
    "t2": ("t2w",),
    "flair": ("t2f", "t2flair"),
    "pd": ("pdw",),
}
_CONTRAST_NAMES = {word: name for name, words in CONTRASTS.items() for word in (name, *words)}


def canonical_contrast(word: str) -> str:
    """The name ssclf uses for a contrast: "T1Gd" is "t1ce"; unknown words stay, in lower case."""
    word = word.strip().lower()
    return _CONTRAST_NAMES.get(word, word)


def canonical_settings(preprocess: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing settings as a file holds them, with the names that this version gives contrasts."""
    values = dict(preprocess)
    if "contrasts" in values:
        values["contrasts"] = [canonical_contrast(str(name)) for name in values["contrasts"]]
    return values


class Config(Protocol):
    """Any of the dataclasses below."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Option:
    """How the command line offers a setting. Stands in the annotation of the field that it sets, so that flag,
    type, choices, help and default are said once; `ssclf.cli.options.setting` makes the option of it.

    Attributes:
        help: what it does, in which unit, and what the default means where the number does not say.
        panel: the group in `--help`; "" for the first one.
        flag: "" for the field's own name; "--a/--no-a" where both ways are offered.
        metavar: what stands for the value in `--help`; "" for its type or choices.
        low: smallest value that the command line takes, where it checks one.
        words: what a shell offers for a text; a `Literal` offers its own.
        parse: raises `ConfigError` for a text that cannot be.
    """

    help: str
    panel: str = ""
    flag: str = ""
    metavar: str = ""
    low: float | None = None
    words: tuple[str, ...] = ()
    parse: Callable[[str], object] | None = None


def check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name}: expected one of {', '.join(get_args(choices))}, found {value!r}.")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON values of a config (tuples become lists)."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def differing_fields(one: PreprocessConfig, other: PreprocessConfig) -> list[str]:
    """Names of the settings that are not the same in both."""
    ours, theirs = config_to_dict(one), config_to_dict(other)
    return [name for name, value in ours.items() if theirs[name] != value]


def config_from_dict(kind: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `config_to_dict`.

    Raises:
        ConfigError: a key is unknown or missing, or a value is out of range.
    """
    fields = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise ConfigError(
            f"{kind.__name__}: unknown settings {', '.join(unknown)}; "
            f"they come from another version of ssclf than this one."
        )
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as exc:
        raise ConfigError(f"{kind.__name__}: {exc}.") from exc


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Everything that decides the voxel values a network sees, brain extraction aside. The defaults are the paper's;
    `PreprocessConfig.preset` gives what `ssclf preprocess` takes.

    How a skull is removed is a property of the input, not of the model: it is recorded per volume
    and in the model's provenance instead (contract, "Commands").
    """

    #: Voxel size in mm on (D, H, W). Source: Chatterjee et al., Sec. 2.5 (2 mm isotropic).
    spacing: Annotated[
        tuple[float, float, float],
        Option(
            "Voxel size in mm: one number for all axes, or three as D,H,W with the distance of slices first.",
            "Network input",
            metavar="MM",
        ),
    ] = (2.0, 2.0, 2.0)
    #: Intensities are clipped to these percentiles of the brain. Source: Sec. 2.5.
    percentiles: Annotated[
        tuple[float, float],
        Option(
            "Clip intensities to these two percentiles of the brain's, then scale them to 0 to 1.",
            "Network input",
            metavar="LOW,HIGH",
        ),
    ] = (0.5, 99.5)
    #: The anatomical plane of a slice; D runs across it. Source: Sec. 2.1 and 4 (axial).
    plane: Annotated[Plane, Option("Anatomical plane of a slice.", "Network input")] = "axial"
    #: What each channel shows, in channel order, whichever of its names was given. Source: Sec. 2.4 (T1ce).
    contrasts: Annotated[
        tuple[str, ...],
        Option(
            "One to four contrasts, separated by commas: the network's channels in this order. A volume that lacks "
            "one is left out.",
            "Network input",
            metavar="NAMES",
        ),
    ] = ("t1ce",)
    #: "none" keeps the field of view as in the paper, which differs between data sets; "brain" keeps the brain's box
    #: and a margin.
    crop: Annotated[
        Crop,
        Option(
            "none keeps the field of view, as in the paper; brain cuts to the brain's box and a margin.",
            "Network input",
        ),
    ] = "none"
    crop_margin_mm: float = 6.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing", tuple(float(value) for value in self.spacing))
        object.__setattr__(self, "percentiles", tuple(float(value) for value in self.percentiles))
        given = tuple(self.contrasts)
        if not all(isinstance(name, str) and name.strip() for name in given):
            raise ConfigError(f"contrasts: expected names, found {given}.")
        object.__setattr__(self, "contrasts", tuple(map(canonical_contrast, given)))
        if len(self.spacing) != 3 or not all(0.1 <= value <= 20 for value in self.spacing):
            raise ConfigError(f"spacing: expected three voxel sizes of 0.1 to 20 mm, found {self.spacing}.")
        low, high = self.percentiles if len(self.percentiles) == 2 else (1.0, 0.0)
        if not 0 <= low < high <= 100:
            raise ConfigError(f"percentiles: expected 0 <= low < high <= 100, found {self.percentiles}.")
        check_choice("plane", self.plane, Plane)
        check_choice("crop", self.crop, Crop)
        if not 1 <= len(self.contrasts) <= 4 or len(set(self.contrasts)) != len(self.contrasts):
            raise ConfigError(f"contrasts: expected one to four different ones, found {given}.")
        if not 0 <= self.crop_margin_mm <= 100:
            raise ConfigError(f"crop_margin_mm: expected 0 to 100, found {self.crop_margin_mm}.")

    @staticmethod
    def preset(name: Preset, **changes: Any) -> PreprocessConfig:
        """A named set of values, with changes.

        Raises:
            ConfigError: an unknown preset or setting, or a value out of range.
        """
        check_choice("preset", name, Preset)
        crop: dict[str, Crop] = {} if name == "paper" else {"crop": "brain"}
        return config_from_dict(PreprocessConfig, {**crop, **changes})

    @property
    def hash(self) -> str:
        """Stable across machines and versions that compute the same values; 16 hex digits."""
        return self._hash_with(self.contrasts)

    def hashes(self, written: Mapping[str, Any]) -> tuple[str, str]:
        """By which files say that they hold these settings: `hash`, and that of earlier versions, which kept each
        contrast's name as it was given.

        Args:
            written: the settings as such a file holds them.
        """
        return self.hash, self._hash_with(written.get("contrasts", ()))

    def _hash_with(self, contrasts: Sequence[str]) -> str:
        values = {"version": PREPROCESSING_VERSION, **config_to_dict(self), "contrasts": list(contrasts)}
        if self.crop == "none":
            del values["crop_margin_mm"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides the weights of a network, its data aside. The defaults are the paper's.

    Source: Chatterjee et al., Sec. 2.1 to 2.3, where not said otherwise. `TrainConfig.preset` gives what works
    better at equal cost.
    """

    architecture: Annotated[
        Architecture,
        Option(
            "Network: mc3, which won in the paper, r2plus1d, r3d, or small, our own for two cores and tens of volumes. "
            "Where it is left out, the preset default chooses by what there is, and says why.",
            "Network",
            flag="--model",
        ),
    ] = "mc3"
    #: Start from Kinetics-400 weights, or from those of another file, instead of random ones.
    pretrained: Annotated[
        bool,
        Option(
            "Start from Kinetics-400 weights (see ssclf weights) instead of random ones; with --weights, from those.",
            "Network",
        ),
    ] = False
    #: With `pretrained`: a random first layer, or the RGB one averaged over its channels (not in the paper).
    stem: Annotated[
        Stem,
        Option(
            "First layer with --pretrained: random, or mean, the RGB one averaged over its three channels.",
            "Network",
        ),
    ] = "random"
    #: Stages that keep the weights they start with, from the first layer on: 1 to 4 of them, or 5, all but the last,
    #: linear layer.
    freeze: Annotated[
        int,
        Option(
            "Keep the weights of so many stages, from the first layer on; 5 trains the last layer, and what a weights "
            "file leaves random. With --from or --pretrained, for cohorts of tens.",
            "Network",
        ),
    ] = 0
    dropout: float = 0.3
    #: Passes over the training part. The paper does not say.
    epochs: Annotated[int, Option("Passes over the training part.", "Optimiser")] = 100
    learning_rate: Annotated[
        float, Option("Step size of the Adam optimiser; with a schedule, its highest.", "Optimiser")
    ] = 1e-5
    #: "adamw" pulls weights towards zero apart from the gradient (Loshchilov and Hutter, 2019).
    optimizer: Annotated[Optimizer, Option("How steps are taken.", "Optimiser")] = "adam"
    weight_decay: Annotated[
        float, Option("How strongly the optimiser pulls weights towards zero; 0 does not.", "Optimiser")
    ] = 1e-3
    schedule: Annotated[Schedule, Option("How the learning rate changes over the run.", "Optimiser")] = (
        "constant"
    )
    #: Share of all steps over which the learning rate rises at the start.
    warmup: float = 0.0
    batch_size: Annotated[
        int, Option("Volumes that the network sees at once; smaller ones are padded.", "Optimiser")
    ] = 1
    #: Batches whose gradients are averaged before a step.
    accumulate: Annotated[
        int,
        Option("Batches averaged before the weights change: large batches in little memory.", "Optimiser"),
    ] = 1
    #: A CPU takes "32-true", but for "bf16-mixed-cpu". The paper says mixed precision, which was 16 bits then.
    precision: Annotated[
        Precision,
        Option(
            "Numbers to compute with on a GPU. A CPU takes 32-true, unless this is bf16-mixed-cpu: mixed there too.",
            "Device",
        ),
    ] = "16-mixed"
    class_weights: ClassWeights = "paper"
    augmentation: Annotated[
        Augmentation, Option("Random changes of the training volumes (docs/training.md).", "Data")
    ] = "light"
    #: Share of the subjects held out for the final score, by class; 0 trains on everything. Source: Sec. 2.4.
    holdout: Annotated[
        float, Option("Share of the subjects kept for the final score, 0 to 0.9; 0 keeps none.", "Data")
    ] = 0.3
    #: Share of the training subjects kept for choosing the epoch; 0 keeps the last epoch.
    validation: Annotated[
        float,
        Option(
            "Share of the training subjects that choose the best epoch, 0 to 0.5; with 0 the last epoch is kept.",
            "Data",
        ),
    ] = 0.0
    #: Stop after so many epochs without a better validation loss; 0 never stops early.
    patience: Annotated[
        int,
        Option(
            "Stop after so many epochs without a better validation loss; 0 never does. Needs --validation.",
            "Data",
        ),
    ] = 0
    #: Before the network is looked at, batch normalisation's averages are taken anew, over training volumes as they
    #: are: those that ran along are of weights of many steps, and of volumes that augmentation has smoothed.
    settle: bool = False
    #: Put synthetic lesions into healthy volumes and learn to tell them (`ssclf pretrain`), instead of the labels.
    lesions: bool = False
    seed: Annotated[
        int,
        Option(
            "Number that everything drawn at random depends on; the same one repeats a run.", metavar="NUMBER"
        ),
    ] = 0
    #: Take the same cuDNN algorithms every time, at some cost in speed.
    deterministic: bool = True
    channels_last: Annotated[
        bool,
        Option(
            "Memory layout of convolutions: faster on some GPUs, the same result up to rounding.",
            "Speed on GPUs",
            flag="--channels-last/--no-channels-last",
        ),
    ] = False
    compile: Annotated[
        bool,
        Option(
            "Compile the network with torch.compile: minutes at the start, faster epochs on some GPUs.",
            "Speed on GPUs",
            flag="--compile/--no-compile",
        ),
    ] = False

    def __post_init__(self) -> None:
        check_choice("architecture", self.architecture, Architecture)
        check_choice("stem", self.stem, Stem)
        check_choice("optimizer", self.optimizer, Optimizer)
        check_choice("schedule", self.schedule, Schedule)
        check_choice("precision", self.precision, Precision)
        check_choice("class_weights", self.class_weights, ClassWeights)
        check_choice("augmentation", self.augmentation, Augmentation)
        for name, value, low, high in (
            ("dropout", self.dropout, 0, 0.95),
            ("freeze", self.freeze, 0, 5),
            ("epochs", self.epochs, 1, 100_000),
            ("learning_rate", self.learning_rate, 1e-9, 10),
            ("weight_decay", self.weight_decay, 0, 10),
            ("warmup", self.warmup, 0, 0.9),
            ("batch_size", self.batch_size, 1, 1024),
            ("accumulate", self.accumulate, 1, 1024),
            ("holdout", self.holdout, 0, 0.9),
            ("validation", self.validation, 0, 0.5),
            ("patience", self.patience, 0, 100_000),
            ("seed", self.seed, 0, 2**32 - 1),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name}: expected {low} to {high}, found {value}.")
        if self.patience and not self.validation:
            raise ConfigError(
                "patience: early stopping needs a validation part to watch; set validation, for instance to 0.15."
            )

    def check_frozen(self, *, started: bool) -> None:
        """Args:
            started: whether a trained network brings the weights.

        Raises:
            ConfigError: stages are to keep weights that are random.
        """
        if self.freeze and not started and not self.pretrained:
            raise ConfigError(
                "--freeze: expected weights to keep, and a new network's are random; name some with --from or "
                "--pretrained."
            )

    @staticmethod
    def preset(name: Preset, **changes: Any) -> TrainConfig:
        """A named set of values, with changes.

        Raises:
            ConfigError: an unknown preset or setting, or a value out of range.
        """
        check_choice("preset", name, Preset)
        own = _DEFAULT_SMALL if name == "default" and changes.get("architecture") == "small" else {}
        return config_from_dict(TrainConfig, {**_PRESETS[name], **own, **changes})


#: "paper" is every value as published. "default" learns in fewer steps (docs/training.md, "Presets"): batches of twelve
#: give batch normalisation and the weighted loss something to average over, which carries a 30 times higher rate.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "default": {
        "learning_rate": 3e-4,
        "weight_decay": 1e-2,
        "optimizer": "adamw",
        "batch_size": 12,
        "schedule": "onecycle",
        "warmup": 0.2,
        "augmentation": "half",
        "settle": True,
        "precision": "bf16-mixed",
        "epochs": 60,
    },
}
#: What the small network takes beside that.
_DEFAULT_SMALL: dict[str, Any] = {"learning_rate": 2e-3}
#: Steps that "default" takes where epochs are not given, and of pretraining, which never sees a lesion twice. On real
#: brains with inserted lesions the small network was at its best after 350 to 600 (docs/training.md, "Learning on real
#: anatomy").
STEPS, PRETRAIN_STEPS = 600, 2000
#: The least epochs that make them.
LEAST_EPOCHS = 10


@dataclass(frozen=True)
class SkullStrip:
    """How to treat skulls: with which engine, and whether only in volumes that do not look stripped yet."""

    engine: StripEngine
    only_heads: bool

    @staticmethod
    def parse(text: str) -> SkullStrip:
        """Read "auto" (deepbet, heads only), "auto:ENGINE" (heads only), ENGINE (every volume) or "none".

        Raises:
            ConfigError: anything else.
        """
        kind, _, name = text.partition(":")
        wanted = (name or "deepbet") if kind == "auto" else text
        engine = next((engine for engine in get_args(StripEngine) if engine == wanted), None)
        if engine is None:
            raise ConfigError(
                f"skull-strip: expected one of {', '.join(SKULL_STRIP)}, or auto:ENGINE such as auto:bet, "
                f"found {text!r}."
            )
        return SkullStrip(engine, kind == "auto")


#: What `SkullStrip.parse` reads, the forms auto:ENGINE aside.
SKULL_STRIP: tuple[str, ...] = ("auto", *get_args(StripEngine))


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """How `ssclf predict` treats its input; nothing here changes what a model sees of a stripped volume."""

    skull_strip: Annotated[
        str,
        Option(
            "Remove skulls: auto (deepbet, where one is left), auto:ENGINE (alike), ENGINE (in every volume: deepbet, "
            "bet, hd-bet, synthstrip), or none.",
            "Input",
            metavar="HOW",
            words=SKULL_STRIP,
            parse=SkullStrip.parse,
        ),
    ] = "auto"
    pattern: Annotated[
        str | None,
        Option("Take only files whose name matches, such as '*_t1ce.nii.gz'.", "Input", metavar="GLOB"),
    ] = None
    series: Annotated[
        str | None,
        Option(
            "Take only DICOM series whose description matches.",
            "Input",
            metavar="REGEX",
        ),
    ] = None
    engine: Annotated[
        Engine,
        Option("auto: ONNX Runtime. torchscript runs code of whoever made the model.", "Device"),
    ] = "auto"
    device: Annotated[
        Device,
        Option("auto: a GPU if it works; cuda insists.", "Device"),
    ] = "auto"
    precision: Annotated[
        PredictPrecision,
        Option(
            "fp32: the network as it was exported. int8: in 8 bits, for CPUs with VNNI; the bundle needs "
            "`ssclf export --int8`.",
            "Speed",
        ),
    ] = "fp32"
    #: Processes that read and preprocess, at least 1.
    workers: int = 1
    threads: Annotated[
        int,
        Option("Threads for the network on a CPU; 0: one a core.", "Speed", metavar="NUMBER", low=0),
    ] = 0
    timeout_s: Annotated[
        float | None,
        Option(
            "Limit for reading one volume, and for its network; 0: none.",
            "Speed",
            flag="--timeout",
            metavar="SECONDS",
        ),
    ] = 600.0
    review_below: Annotated[
        float,
        Option(
            "Flag rows whose best probability is lower.",
            "Results",
            metavar="0..1",
        ),
    ] = 0.6
    flip: Annotated[bool, Option("Average each volume with its mirror image; twice the time.", "Results")] = (
        False
    )
    map_method: Annotated[
        MapMethod,
        Option(
            "How maps and pictures find the evidence: cam, at no cost, in the network's coarse cells; finer, in some "
            "hundred times the network's time, by hiding part after part of the brain: occlusion behind its mean, "
            "mirror behind the other side's tissue.",
            "Results",
        ),
    ] = "cam"
    keep_uids: Annotated[
        bool, Option("Name DICOM series by their UID instead of a short hash of it.", "Results")
    ] = False
    retry_failed: Annotated[bool, Option("Do failed volumes of an earlier run again.", "Input")] = False

    def __post_init__(self) -> None:
        SkullStrip.parse(self.skull_strip)
        check_choice("engine", self.engine, Engine)
        check_choice("device", self.device, Device)
        check_choice("map_method", self.map_method, MapMethod)
        check_choice("precision", self.precision, PredictPrecision)
        if self.precision == "int8" and (self.engine == "torchscript" or self.device == "cuda"):
            raise ConfigError(
                "--precision int8: goes with ONNX Runtime on a CPU alone; leave --engine torchscript and "
                "--device cuda out, or --precision int8."
            )
        if self.workers < 1 or self.threads < 0:
            raise ConfigError(f"workers: expected 1 or more, found {self.workers}; threads {self.threads}.")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ConfigError(f"timeout_s: expected seconds above 0, found {self.timeout_s}.")
        if not 0 <= self.review_below <= 1:
            raise ConfigError(f"review_below: expected 0 to 1, found {self.review_below}.")

    @property
    def network_device(self) -> Device:
        """Where the networks are to run: in 8 bits on the CPU, for which these are made."""
        return "cpu" if self.precision == "int8" else self.device


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How `ssclf predict --ray` spreads its work; none of it changes a row.

    Attributes:
        address: "local" starts Ray here; "auto" or host:port joins one that runs.
        batch: volumes that travel together; a task that is lost repeats as many.
    """

    address: str = "local"
    gpus_per_actor: Annotated[
        float,
        Option("GPU share of one copy of the models.", "Cluster", metavar="SHARE", low=0.01),
    ] = 1.0
    actors: Annotated[
        int,
        Option(
            "Copies of the models at most; 0: as fits.",
            "Cluster",
            metavar="NUMBER",
            low=0,
        ),
    ] = 0
    partition: Annotated[int, Option("Volumes of one Parquet file.", "Cluster", metavar="NUMBER", low=1)] = (
        1000
    )
    batch: int = 16

    def __post_init__(self) -> None:
        if self.address.startswith("ray://"):
            raise ConfigError(
                "--ray ray://…: Ray's client is too thin for this; start ssclf on a node of the cluster with "
                "--ray auto (`ray job submit -- ssclf predict …` does), or name the head node as host:6379."
            )
