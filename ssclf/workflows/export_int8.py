"""`ssclf export --int8`: a network in 8 bits beside the other one, once it answers alike on volumes that it was not
made with."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.eight_bits import SURE, TOLERANCE, Differences, EightBits, balanced
from ssclf.domain.metrics import fit_temperature
from ssclf.domain.model_spec import ModelSpec
from ssclf.domain.run_data import differences
from ssclf.domain.scores import softmax
from ssclf.errors import DatasetError, ParityError
from ssclf.io.models.bundle import INT8, ONNX, SPEC
from ssclf.io.models.onnx_session import open_session
from ssclf.io.records.preprocessed import Folders, Sample, describe_data, is_prepared, read_prepared_cohort
from ssclf.io.records.training_run import read_config, read_data, read_split
from ssclf.io.volumes.nifti import read_written
from ssclf.learning.networks import VolumeNetwork
from ssclf.learning.quantising import Quantiser

#: Training volumes that give the ranges of activations.
CALIBRATION = 32
#: Training volumes that a network is compared on where nothing was held out.
_INSTEAD = 100
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunVolumes:
    """Volumes of a run, by what they are for.

    Attributes:
        calibration: training volumes, as many of each class, that give the ranges of activations.
        compared: volumes that the network in 8 bits is compared on.
        part: of the run, that these are from.
    """

    calibration: tuple[Sample, ...]
    compared: tuple[Sample, ...]
    part: str


def read_run_volumes(run: Path, spec: ModelSpec, data: Folders | None = None) -> RunVolumes:
    """Find the volumes that a run was trained on, and those that it held out.

    Args:
        spec: what is known of the run's network.
        data: the preprocessed folder or folders, where they are not any more where the run found them.

    Raises:
        DatasetError: they are not there, or are others.
    """
    if read_config(run).lesions:
        raise DatasetError(
            f"{run}: --int8 is for networks that classify scans; this one was pretrained, train it with --from first."
        )
    stored = read_data(run)
    folders = [Path(name) for name in stored.folders] if data is None and stored else data
    for folder in [folders] if isinstance(folders, Path) else folders or []:
        if not is_prepared(folder):
            raise DatasetError(
                f"{run}: --int8 needs the preprocessed volumes that it was trained on, and {folder} does not hold "
                "them; say with --data where they are now."
            )
    if not folders:
        raise DatasetError(
            f"{run}: --int8 needs the preprocessed volumes that it was trained on, and this run of an earlier version "
            "does not say where they are; name their folder with --data."
        )
    cohort = read_prepared_cohort(folders)
    now = describe_data(cohort)
    if different := differences(stored, now) if stored else []:
        raise DatasetError(
            f"{run}: --int8 needs the volumes that it was trained on, and these are others: {'; '.join(different)}. "
            "Bring them back, or name their folder with --data."
        )
    if cohort.class_names != spec.class_names or cohort.preprocess.hash != spec.preprocess.hash:
        raise DatasetError(
            f"{run}: --int8 needs volumes of its classes and settings, found others; see --data."
        )
    parts = {
        role: cohort.select(keys)
        for role, keys in read_split(run, [s.key for s in cohort.samples]).roles.items()
    }
    return _choose(parts, spec.provenance.calibration.fitted_on)


def _choose(parts: dict[str, list[Sample]], fitted_on: str | None) -> RunVolumes:
    """Calibrate on training volumes and compare on others, if possible those that the temperature was fitted on."""
    train = {sample.key: sample for sample in parts["train"]}
    part = next((role for role in (fitted_on, "validation", "test") if parts.get(role or "")), None)
    count = CALIBRATION if part else min(CALIBRATION, (len(train) + 1) // 2)
    calibration = balanced({key: sample.label for key, sample in train.items()}, count)
    compared = parts[part] if part else []
    if not part:
        rest = {key: sample.label for key, sample in train.items() if key not in calibration}
        compared = [train[key] for key in balanced(rest, _INSTEAD)]
        log.warning("8 bits: nothing was held out, so the network is compared on training volumes")
    return RunVolumes(tuple(train[key] for key in calibration), tuple(compared), part or "train")


def add_eight_bits(folder: Path, network: VolumeNetwork, spec: ModelSpec, volumes: RunVolumes) -> ModelSpec:
    """Put `model.int8.onnx` beside the `model.onnx` of a bundle.

    Returns:
        the spec that speaks of both.

    Raises:
        ParityError: whatever stays in 32 bits, the answers of the two differ by more than they may.
    """
    log.info(
        "8 bits: ranges of %d training volumes, compared on %d of the %s part",
        len(volumes.calibration), len(volumes.compared), volumes.part,
    )  # fmt: skip
    expected = _logits((folder / ONNX).read_bytes(), volumes.compared)
    attempts = []
    with tempfile.TemporaryDirectory(prefix="ssclf-") as work:
        quantiser = Quantiser(
            network,
            spec.architecture,
            len(spec.preprocess.contrasts),
            Path(work),
            lambda: _batches(volumes.calibration),
        )
        for kept in quantiser.attempts():
            found = _logits(quantiser.quantise(kept), volumes.compared)
            eight, compared = _judge(kept, expected, found, spec, volumes)
            log.info(
                "8 bits, %s: largest difference %.4f, %d predictions changed",
                f"{len(kept)} of {len(quantiser.layers)} convolutions in 32" if kept else "all convolutions",
                eight.largest_difference, eight.changed,
            )  # fmt: skip
            if compared.passes:
                made = replace(spec, int8=eight)
                (folder / INT8).write_bytes(quantiser.quantise(kept, {SPEC: made.to_json()}))
                return made
            attempts.append(compared)
    raise ParityError(_refusal(attempts, volumes, spec))


def _batches(samples: Sequence[Sample]) -> Iterator[NDArray[np.float32]]:
    return (read_written(sample.path).data[None] for sample in samples)


def _logits(content: bytes, samples: Sequence[Sample]) -> NDArray[np.float64]:
    """(N, K): volumes one by one, since their shapes differ."""
    session = open_session(content, ["CPUExecutionProvider"], 0)
    logits = [session.run(["logits"], {"volume": batch})[0][0] for batch in _batches(samples)]
    return np.array(logits, np.float64)


def _judge(
    kept: tuple[str, ...],
    expected: NDArray[np.float64],
    found: NDArray[np.float64],
    spec: ModelSpec,
    volumes: RunVolumes,
) -> tuple[EightBits, Differences]:
    """Compare logits (N, K), each with its own temperature: this is what `predict` would say."""
    targets = np.array([spec.class_names.index(sample.label) for sample in volumes.compared], np.int64)
    again = volumes.part == spec.provenance.calibration.fitted_on
    temperature = fit_temperature(found, targets) if again else spec.temperature
    keys = tuple(sample.key for sample in volumes.compared)
    compared = Differences(keys, softmax(expected, spec.temperature), softmax(found, temperature))
    eight = EightBits(
        temperature=temperature,
        fitted_on=volumes.part if again else None,
        calibrated_on=dict(sorted(Counter(sample.label for sample in volumes.calibration).items())),
        kept=kept,
        part=volumes.part,
        volumes=len(keys),
        largest_difference=float(compared.largest.max()),
        changed=int(compared.changed.sum()),
    )
    return eight, compared


def _refusal(attempts: Sequence[Differences], volumes: RunVolumes, spec: ModelSpec) -> str:
    best = min(attempts, key=lambda each: each.too_far.sum())
    return (
        f"--int8: this network does not survive 8 bits; a probability may differ by {TOLERANCE}, and no prediction "
        f"of more than {SURE} confidence may change. Of the {len(volumes.compared)} volumes of the {volumes.part} "
        f"part, {best.too_far.sum()} differ by more, with as many as half of its convolutions in 32 bits:\n"
        f"{best.table(spec.class_names)}\nNothing was exported; export it without --int8."
    )
