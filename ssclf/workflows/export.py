"""`ssclf export`: a finished run in, a bundle out, once every format computes what the network computes."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssclf.config import ExportFormat, ExportPrecision, check_choice
from ssclf.domain.model_spec import ModelSpec
from ssclf.domain.series_rules import SeriesRule
from ssclf.errors import ConfigError, ModelError, OutputError
from ssclf.io.files import whole_folder
from ssclf.io.models.bundle import ONNX, SPEC, TORCHSCRIPT, open_bundle
from ssclf.io.models.checksums import file_sha256, write_checksums
from ssclf.io.models.monai_configs import MONAI_MODEL, write_monai_configs
from ssclf.io.models.reference_model import find_start
from ssclf.io.paths import check_output_folder, is_file, is_there
from ssclf.io.records.preprocessed import Folders
from ssclf.io.records.training_run import (
    CHOSEN,
    CONFIG,
    PROVENANCE,
    RunRecord,
    is_finished,
    read_config,
    read_record,
)
from ssclf.learning.checkpoints import load_checkpoint
from ssclf.learning.exporting import PLANAR, export_onnx, export_torchscript, export_versions
from ssclf.learning.extraction_export import cached_brain_extraction
from ssclf.learning.finetuning import Start, start_from_bundle
from ssclf.learning.networks import VolumeNetwork, build_network
from ssclf.reporting.model_card import write_model_card
from ssclf.workflows.export_int8 import RunVolumes, add_eight_bits, read_run_volumes

CARD = "MODEL_CARD.md"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What a bundle is made of.

    Attributes:
        formats: monai-bundle adds the files that make the folder a MONAI bundle too; alone, it brings model.onnx.
        precision: of model.onnx: fp16 is half the size and for GPUs (a CPU takes it too, and gains nothing);
            fp16-storage is half the size and computes in 32 bits; TorchScript keeps 32 bits.
        brain_extraction: put deepbet's networks into the bundle, so that predict can remove skulls.
        replace: put it in the place of a bundle that is there already.
        int8: a network in 8 bits beside model.onnx, for CPUs.
        series_rules: which series of a DICOM study the model answers; () for those of its contrasts.
    """

    formats: Sequence[ExportFormat] = ("onnx", "torchscript")
    precision: ExportPrecision = "fp32"
    brain_extraction: bool = True
    replace: bool = False
    int8: bool = False
    series_rules: tuple[SeriesRule, ...] = ()

    def __post_init__(self) -> None:
        if not self.formats:
            raise ConfigError("format: expected onnx, torchscript or monai-bundle, found none.")
        for name in self.formats:
            check_choice("format", name, ExportFormat)
        check_choice("precision", self.precision, ExportPrecision)
        if self.int8 and "onnx" not in self.formats:
            raise ConfigError("--int8: the network in 8 bits goes beside model.onnx; add --format onnx.")


def export_run(
    run: Path,
    out: Path,
    config: ExportConfig | None = None,
    *,
    record: RunRecord | None = None,
    data: Folders | None = None,
) -> Path:
    """Export the chosen weights of a run.

    Args:
        run: folder that `ssclf train` wrote.
        out: the bundle's folder; its name becomes the model's. It appears whole, after every check.
        record: what to say of the model instead of the run's own.
        data: the preprocessed folder or folders, where they are not any more where the run found them; 8 bits need
            them.

    Returns:
        `out`.

    Raises:
        ParityError: an exported network computes something else; nothing is left behind.
        ModelError: the run is missing or not finished.
        DatasetError: 8 bits are asked for, and the run's volumes are not there.
        OutputError: `out` exists, has come to exist meanwhile, or cannot be written.
        MissingDependencyError: brain extraction is asked for and deepbet is not installed.
    """
    config = config or ExportConfig()
    check_bundle_place(out, config)
    network, spec = read_run(run, name=out.name, record=record)
    volumes = read_run_volumes(run, spec, data) if config.int8 else None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(out, there="replace" if config.replace else "refuse") as partial:
            partial.chmod(0o755)
            _fill(partial, network, spec, config, volumes)
            open_bundle(partial)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written ({exc.strerror or exc}); choose another --out.") from exc
    return out


def check_bundle_place(out: Path, config: ExportConfig) -> None:
    """Raises:
    OutputError: no bundle can be written there, or something is there that is not to be replaced.
    """
    check_output_folder("out", out)
    if out.name in ("", ".."):
        raise OutputError(f'"{out}": --out names the bundle and the model in it; add a name.')
    if is_there(out) and not (config.replace and is_file(out / SPEC)):
        raise OutputError(f"{out}: exists already; remove it, or choose another --out.")


def _fill(
    folder: Path, network: VolumeNetwork, spec: ModelSpec, config: ExportConfig, volumes: RunVolumes | None
) -> None:
    """Put every file of a bundle into its folder, each network behind its gate.

    Args:
        volumes: of the run, for a network in 8 bits; None makes none.
    """
    channels = len(spec.preprocess.contrasts)
    spec = replace(spec, series_rules=config.series_rules)
    metadata = {SPEC: spec.to_json()}
    if {"onnx", "torchscript"}.isdisjoint(config.formats) or "onnx" in config.formats:
        # planar is for CPUs, 16 bits are for GPUs
        planar = spec.architecture in PLANAR and config.precision != "fp16"
        export_onnx(network, channels, folder / ONNX, metadata, planar=planar, precision=config.precision)
    if "torchscript" in config.formats:
        export_torchscript(network, channels, folder / TORCHSCRIPT, metadata)
    if volumes:
        spec = add_eight_bits(folder, network, spec, volumes)
    (folder / SPEC).write_text(spec.to_json() + "\n", "utf-8")
    if "monai-bundle" in config.formats:
        write_monai_configs(folder, spec)
        if "torchscript" in config.formats:
            shutil.copyfile(folder / TORCHSCRIPT, folder / MONAI_MODEL)
        else:
            export_torchscript(network, channels, folder / MONAI_MODEL, metadata)
    if config.brain_extraction:
        for path in cached_brain_extraction():
            shutil.copyfile(path, folder / path.name)
    (folder / CARD).write_text(write_model_card(spec), "utf-8")
    write_checksums(folder)


def read_run(run: Path, *, name: str, record: RunRecord | None = None) -> tuple[VolumeNetwork, ModelSpec]:
    """The network of a finished run, in eval mode, and what is known about it.

    Raises:
        ModelError: the run is missing, unfinished or damaged.
    """
    config = read_config(run)
    if not (run / CHOSEN).is_file() or not is_finished(run):
        raise ModelError(
            f"{run}: expected a finished run, found one that was interrupted; go on with "
            f"`ssclf train --resume --out {shlex.quote(str(run))}`."
        )
    calibrated_here = record is None
    record = record or read_record(run)
    try:
        spec = ModelSpec(
            name=name,
            architecture=config.architecture,
            class_names=record.class_names,
            preprocess=record.preprocess,
            temperature=record.calibration.temperature,
            training=record.training.to_dict(),
            versions={**record.versions, **export_versions()},
        )
    except ConfigError as exc:
        raise ModelError(f"{run / PROVENANCE}: expected what a run came from, found {exc!r}.") from exc
    network = build_network(
        config.architecture,
        channels=len(spec.preprocess.contrasts),
        classes=len(spec.class_names),
        dropout=config.dropout,
    )
    checkpoint = load_checkpoint(run / CHOSEN)
    _check_meaning(checkpoint, spec, run, calibrated_here=calibrated_here)
    try:
        network.load_state_dict(checkpoint["network"])
    except (KeyError, RuntimeError) as exc:
        raise ModelError(f"{run / CHOSEN}: expected the weights of a {config.architecture}.") from exc
    return network.eval(), spec


def _check_meaning(
    checkpoint: Mapping[str, Any], spec: ModelSpec, run: Path, *, calibrated_here: bool
) -> None:
    """Hold what a run says of itself against what its weights were saved with; earlier versions saved nothing.

    Raises:
        ModelError: a score would mean something else.
    """
    true: dict[str, Any] = {"class_names": list(spec.class_names), "preprocess": spec.preprocess.hash}
    if calibrated_here:
        true["temperature"] = spec.temperature
    for name, found in true.items():
        if (saved := checkpoint.get(name, found)) != found:
            raise ModelError(
                f"{run / PROVENANCE}: {name} is not what the weights were saved with ({saved}), found {found}; the "
                "file was changed, or belongs to another run. Copy the run again, or train it again."
            )


def open_start(path: Path) -> Start:
    """What `ssclf train --from` goes on from. Open a finished run, or a bundle with a TorchScript file; "reference" is
    the reference model's name.

    Raises:
        ModelError: neither, unfinished, or damaged.
    """
    path = find_start(path)
    if (path / CONFIG).is_file():
        network, spec = read_run(path, name=path.name)
        return Start(spec, network.state_dict(), file_sha256(path / CHOSEN))
    return start_from_bundle(open_bundle(path))
