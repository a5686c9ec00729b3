"""`ssclf export`: a finished run in, a bundle out, once every format computes what the network computes."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssclf.config import ExportFormat, ExportPrecision, PreprocessConfig, check_choice, config_from_dict
from ssclf.domain.model_spec import ModelSpec
from ssclf.errors import ConfigError, ModelError, OutputError
from ssclf.io.models.bundle import ONNX, SPEC, TORCHSCRIPT, open_bundle
from ssclf.io.models.checksums import file_sha256, write_checksums
from ssclf.io.records.training_run import CHOSEN, CONFIG, PROVENANCE, read_config
from ssclf.learning.checkpoints import load_checkpoint
from ssclf.learning.exporting import PLANAR, export_onnx, export_torchscript, export_versions
from ssclf.learning.extraction_export import cached_brain_extraction
from ssclf.learning.finetuning import Start, start_from_bundle
from ssclf.learning.networks import VolumeNetwork, build_network
from ssclf.reporting.model_card import write_model_card

CARD = "MODEL_CARD.md"
log = logging.getLogger(__name__)


def export_run(
    run: Path,
    out: Path,
    *,
    formats: Sequence[ExportFormat] = ("onnx", "torchscript"),
    precision: ExportPrecision = "fp32",
    brain_extraction: bool = True,
    replace: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Export the chosen weights of a run.

    Args:
        run: folder that `ssclf train` wrote.
        out: the bundle's folder; its name becomes the model's. It appears whole, after every check.
        precision: of model.onnx: fp16 is half the size and for GPUs (a CPU takes it too, and gains nothing);
            TorchScript keeps 32 bits.
        brain_extraction: put deepbet's networks into the bundle, so that predict can remove skulls.
        replace: put it in the place of a bundle that is there already.
        provenance: what to say of the model instead of the run's own `provenance.json`.

    Returns:
        `out`.

    Raises:
        ParityError: an exported network computes something else; nothing is left behind.
        ModelError: the run is missing or not finished.
        OutputError: `out` exists.
        MissingDependencyError: brain extraction is asked for and deepbet is not installed.
    """
    if not formats:
        raise ConfigError("format: expected onnx, torchscript or both, found none.")
    for name in formats:
        check_choice("format", name, ExportFormat)
    check_choice("precision", precision, ExportPrecision)
    if out.exists() and not (replace and (out / SPEC).is_file()):
        raise OutputError(f"{out}: exists already; remove it, or choose another --out.")
    network, spec = read_run(run, name=out.name, provenance=provenance)
    channels = len(spec.preprocess.contrasts)
    metadata = {SPEC: spec.to_json()}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        partial.chmod(0o755)
        (partial / SPEC).write_text(metadata[SPEC] + "\n", "utf-8")
        if "onnx" in formats:
            export_onnx(
                network,
                channels,
                partial / ONNX,
                metadata,
                planar=spec.architecture in PLANAR,
                half=precision == "fp16",
            )
        if "torchscript" in formats:
            export_torchscript(network, channels, partial / TORCHSCRIPT, metadata)
        if brain_extraction:
            for path in cached_brain_extraction():
                shutil.copyfile(path, partial / path.name)
        (partial / CARD).write_text(write_model_card(spec), "utf-8")
        write_checksums(partial)
        open_bundle(partial)
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def read_run(
    run: Path, *, name: str, provenance: Mapping[str, Any] | None = None
) -> tuple[VolumeNetwork, ModelSpec]:
    """The network of a finished run, in eval mode, and what is known about it.

    Raises:
        ModelError: the run is missing, unfinished or damaged.
    """
    config = read_config(run)
    if not (run / CHOSEN).is_file() or not (run / PROVENANCE).is_file():
        raise ModelError(
            f"{run}: expected a finished run, found one that was interrupted; go on with `ssclf train --resume`."
        )
    try:
        values = provenance or json.loads((run / PROVENANCE).read_text("utf-8"))
        spec = ModelSpec(
            name=name,
            architecture=config.architecture,
            class_names=tuple(values["class_names"]),
            preprocess=config_from_dict(PreprocessConfig, values["preprocess"]),
            temperature=float(values["calibration"]["temperature"]),
            training=values["training"],
            versions={**values["versions"], **export_versions()},
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as exc:
        raise ModelError(f"{run / PROVENANCE}: expected what a run came from, found {exc!r}.") from exc
    network = build_network(
        config.architecture,
        channels=len(spec.preprocess.contrasts),
        classes=len(spec.class_names),
        dropout=config.dropout,
    )
    try:
        network.load_state_dict(load_checkpoint(run / CHOSEN)["network"])
    except (KeyError, RuntimeError) as exc:
        raise ModelError(f"{run / CHOSEN}: expected the weights of a {config.architecture}.") from exc
    return network.eval(), spec


def open_start(path: Path) -> Start:
    """What `ssclf train --from` goes on from. Open a finished run, or a bundle with a TorchScript file.

    Raises:
        ModelError: neither, unfinished, or damaged.
    """
    if (path / CONFIG).is_file():
        network, spec = read_run(path, name=path.name)
        return Start(spec, network.state_dict(), file_sha256(path / CHOSEN))
    return start_from_bundle(open_bundle(path))
