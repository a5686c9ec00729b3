"""A bundle: the folder `exported/<name>/` that a model travels in, or a lone model file out of one."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssclf.config import Engine, PredictPrecision
from ssclf.domain.model_spec import ModelSpec
from ssclf.errors import ModelError
from ssclf.io.image_hints import image_hint
from ssclf.io.models.checksums import file_sha256, open_regular, verify_checksums
from ssclf.io.models.onnx_graph import OnnxSummary
from ssclf.io.models.onnx_session import describe
from ssclf.io.models.reference_model import find_model, reference_hint
from ssclf.io.models.torchscript_archive import read_entry

ONNX = "model.onnx"
INT8 = "model.int8.onnx"
TORCHSCRIPT = "model.torchscript.pt"
SPEC = "spec.json"
EXTRACTION_PATTERN = "brain-extraction*.onnx"
ENVIRONMENT = "SSCLF_MODEL"
_MAX_SPEC = 1 << 24
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bundle:
    """A model on disk, its files checked.

    Attributes:
        path: the folder, or the lone model file.
        onnx, torchscript: model files, where present.
        sha256: of model.onnx where there is one, else of the TorchScript file; else of the network in 8 bits.
        extraction: brain extraction networks for prediction without torch.
        int8: the network in 8 bits, and its checksum.
        precision: "fp32", "fp16" or "int8": the numbers of `onnx`; TorchScript has 32 bits.
    """

    path: Path
    spec: ModelSpec
    onnx: Path | None
    torchscript: Path | None
    sha256: str
    extraction: tuple[Path, ...] = ()
    int8: Path | None = None
    int8_sha256: str = ""
    precision: str = "fp32"

    def at(self, precision: PredictPrecision) -> Bundle:
        """The bundle with the network, the checksum and the temperature of a precision alone.

        Raises:
            ModelError: it has no network in 8 bits.
        """
        spec = replace(self.spec, int8=None)
        if precision == "fp32":
            return replace(self, spec=spec)
        if self.int8 is None or self.spec.int8 is None:
            raise ModelError(
                f"{self.spec.name}: expected {INT8} for --precision int8, found none in the bundle; make it with "
                "`ssclf export RUN --int8 --replace` where you have the run, or leave --precision int8 out."
            )
        spec = replace(spec, temperature=self.spec.int8.temperature)
        return replace(
            self, spec=spec, onnx=self.int8, torchscript=None, sha256=self.int8_sha256, precision="int8"
        )

    def precision_with(self, engine: Engine) -> str:
        """The numbers that its network computes in there."""
        return "fp32" if engine == "torchscript" else self.precision


def open_bundle(path: Path) -> Bundle:
    """Open a bundle folder or a lone `model.onnx` / TorchScript file; "reference" is the reference model's name.

    Raises:
        ModelError: missing, incomplete, changed since its export, or of an incompatible version.
    """
    path = find_model(path)
    try:
        if path.is_file():
            return _open_file(path)
        complete, found = (
            (path / SPEC).is_file(),
            "a folder without spec.json" if path.exists() else "nothing",
        )
    except PermissionError as exc:
        raise ModelError(f"{path}: the model may not be read by this user.{image_hint('user')}") from exc
    if not complete:
        raise ModelError(
            f"{path}: expected an exported model (a folder with {SPEC} and {ONNX}), found {found}; "
            f"make one with `ssclf export`, or pass --model.{image_hint('model')}"
        )
    sums = verify_checksums(path)
    if SPEC not in sums:
        raise ModelError(f"{path.name}: {SPEC} is not among the checksums; export the model again.")
    onnx, torchscript, int8 = ((path / name) if name in sums else None for name in (ONNX, TORCHSCRIPT, INT8))
    main = onnx or torchscript
    if main is None:
        raise ModelError(f"{path.name}: expected {ONNX} or {TORCHSCRIPT}, found neither.")
    spec = ModelSpec.from_json(_spec_text(path / SPEC), f"{path.name}/{SPEC}")
    precisions = {file: _check_file(file, spec) for file in (onnx, int8) if file}
    if torchscript:
        _check_same(spec, _spec_inside(torchscript), torchscript)
    return Bundle(
        path=path,
        spec=spec,
        onnx=onnx,
        torchscript=torchscript,
        sha256=sums[main.name],
        extraction=tuple(sorted(p for p in path.glob(EXTRACTION_PATTERN) if p.name in sums)),
        int8=int8,
        int8_sha256=sums[INT8] if int8 else "",
        precision=precisions[onnx] if onnx else "fp32",
    )


def _open_file(path: Path) -> Bundle:
    """A lone model file carries the same spec inside."""
    if zipfile.is_zipfile(path):
        text, network = _spec_inside(path), None
    else:
        network = describe(path)
        text = network.metadata.get(SPEC, "")
    if not text:
        raise ModelError(
            f"{path.name}: expected a model exported by ssclf, with its {SPEC} inside, found none; "
            "pass a bundle made by `ssclf export`."
        )
    spec = ModelSpec.from_json(text, path.name)
    digest = file_sha256(path)
    if not network:
        return Bundle(path, spec, None, path, digest)
    _check_network(network, spec, path)
    if network.precision == "int8":
        return Bundle(path, spec, None, None, digest, int8=path, int8_sha256=digest)
    return Bundle(path, spec, path, None, digest, precision=network.precision)


def _spec_text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return file.read(_MAX_SPEC).decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelError(f"{path}: expected the description of an ssclf model, found {exc!r}.") from exc


def _spec_inside(path: Path) -> str:
    """The spec in a TorchScript file, "" where it has none; nothing of the file is run."""
    return read_entry(path, f"/extra/{SPEC}").decode("utf-8", "replace")


def _check_file(path: Path, spec: ModelSpec) -> str:
    """The precision of an ONNX file of a bundle.

    Raises:
        ModelError: it is not the one that its name and the spec say.
    """
    network = describe(path)
    _check_network(network, spec, path)
    _check_same(spec, network.metadata.get(SPEC, ""), path)
    if (network.precision == "int8") != (path.name == INT8):
        raise ModelError(
            f"{path.parent.name}/{path.name}: expected a network in {'8' if path.name == INT8 else '32 or 16'} bits, "
            f"found one in {network.precision}; export the model again."
        )
    return network.precision


def _check_network(network: OnnxSummary, spec: ModelSpec, path: Path) -> None:
    """Raises:
    ModelError: the network has other numbers of classes or contrasts than the spec names.
    """
    for what, sizes, expected in (
        ("scores", network.outputs.get("logits", ()), len(spec.class_names)),
        ("maps", network.outputs.get("cam", ()), len(spec.class_names)),
        ("contrasts", network.inputs.get("volume", ()), len(spec.preprocess.contrasts)),
    ):
        found = sizes[1] if len(sizes) > 1 else None
        if found is not None and found != expected:
            raise ModelError(
                f"{path.name}: expected {expected} {what}, as many as the spec names, found a network of {found}; "
                "spec and network do not belong together, export the model again."
            )


def _check_same(spec: ModelSpec, inside: str, path: Path) -> None:
    """Hold a bundle's spec.json against the one that its export put into the model file.

    Raises:
        ModelError: they give a score another meaning, or one hides that the model has seen no patient.
    """
    if not inside:
        log.warning("%s: holds no description of its own, spec.json is taken for it", path)
        return
    true = ModelSpec.from_json(inside, path.name)
    for name in (
        "architecture",
        "class_names",
        "preprocess",
        "temperature",
        "pretrained_on_lesions",
        *(("int8",) * (path.name == INT8)),
    ):
        if getattr(true, name) != getattr(spec, name):
            raise ModelError(
                f"{path.parent.name}/{SPEC}: {name} is not what {path.name} was exported with "
                f"({getattr(true, name)}), found {getattr(spec, name)}; {SPEC} was changed, or belongs to another "
                "model. Copy the bundle again, or export the model again."
            )


def choose_bundles(
    models: Sequence[Path], environment: Mapping[str, str], exported: Path = Path("exported")
) -> list[Path]:
    """The models to use: those asked for, else $SSCLF_MODEL, else the only bundle under `exported/`.

    Raises:
        ModelError: none or several under `exported/` and nothing asked for; or an image without a model.
    """
    if models:
        return list(models)
    if named := environment.get(ENVIRONMENT):
        if (hint := image_hint("model")) and _is_nothing(Path(named)):
            raise ModelError(
                f"{named}: this image holds no model, since none trained on patients ships with ssclf.{hint}"
                + reference_hint()
            )
        return [Path(named)]
    # hidden ones are being made, or were left by who was killed while it made them
    found = sorted(p.parent for p in exported.glob(f"[!.]*/{SPEC}"))
    if len(found) == 1:
        return found
    listing = "".join(f"\n  {p}" for p in found)
    raise ModelError(
        f"which model? {exported}/ holds {len(found)} bundles{':' if found else ''}{listing}\n"
        + (
            "Pass one with --model (several are averaged), or set SSCLF_MODEL."
            if found
            else "No model trained on patients ships with ssclf: make one with `ssclf train` and `ssclf export`, "
            "then pass it with --model or set SSCLF_MODEL. `ssclf demo` makes one from synthetic volumes."
            + reference_hint()
        )
    )


def _is_nothing(path: Path) -> bool:
    """Whether there is nothing, or an empty folder: a mount of a path that is not there makes one."""
    try:
        return next(path.iterdir(), None) is None
    except OSError:
        return not path.exists()
