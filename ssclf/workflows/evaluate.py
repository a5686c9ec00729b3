"""`ssclf evaluate`: a bundle on a labelled cohort that it has not seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssclf.config import Device, Engine, PredictConfig, PredictPrecision, check_choice, config_to_dict
from ssclf.domain.comparison import FoldPredictions
from ssclf.domain.flags import FLAGS, REFERENCE_MODEL
from ssclf.domain.labels import Labelled, joining_option, look
from ssclf.domain.metrics import Metrics
from ssclf.domain.network_scores import Network
from ssclf.domain.scores import softmax
from ssclf.errors import DatasetError, LeakageError, ModelError, OutputError
from ssclf.io.discovery.cohorts import Cohort, CohortQuery
from ssclf.io.files import write_json
from ssclf.io.models.bundle import Bundle, open_bundle
from ssclf.io.models.runtime import Classifier, open_classifier
from ssclf.io.paths import check_output_folder
from ssclf.io.records.preprocessed import (
    PreparedCohort,
    Sample,
    count_sources,
    is_prepared,
    read_prepared_cohort,
)
from ssclf.io.records.tables import write_table
from ssclf.io.volumes.nifti import read_written
from ssclf.reporting.cv_report import REPORT, write_evaluation_report
from ssclf.workflows.interruption import exit_code
from ssclf.workflows.preprocess import PreprocessSummary, preprocess_cohort
from ssclf.workflows.reports import try_report

#: The folder of network input has a name of its own: `out` may be where a cohort to train on lies in `preprocessed`.
PREDICTIONS, METRICS, PREPROCESSED = "predictions.csv", "metrics.json", "network-input"
Seen = Literal["refuse", "leave-out"]
#: So many unknown classes are named in a message.
_NAMED = 5


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    out: folder with `report.html`, `tables.csv`, `figures/`, `predictions.csv` and `metrics.json`.
    raw, calibrated: scores before and after the bundle's temperature.
    volumes: that were scored.
    seen: that were left out because the model was trained on them, or its epoch chosen with them.
    failed: raw volumes that could not be preprocessed.
    unchecked: volumes that nothing says whether the model was trained on them.
    interrupted: signal that stopped preprocessing, 0 when all ended; then there are no scores.
    reported: False where page, figures or tables could not be written.
    synthetic: whether the volumes are, or those that the model was trained on.
    reference_model: whether all that the model knows of disease are synthetic lesions in healthy brains.
    precision: the numbers that the network computed in.
    """

    out: Path
    raw: Metrics | None
    calibrated: Metrics | None
    volumes: int
    seen: int
    failed: int
    unchecked: int
    synthetic: bool
    interrupted: int = 0
    reported: bool = True
    reference_model: bool = False
    precision: str = "fp32"

    @property
    def exit_code(self) -> int:
        """Contract, "Exit codes"."""
        return exit_code(failed=bool(self.failed) or not self.reported, interrupted=self.interrupted)


def evaluate(
    data: Path,
    bundle: Path,
    out: Path,
    *,
    seen: Seen = "refuse",
    skull_strip: str = "auto",
    engine: Engine = "auto",
    device: Device = "auto",
    precision: PredictPrecision = "fp32",
    workers: int = 1,
    threads: int = 0,
    on_volume: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a bundle.

    Args:
        data: folder that `ssclf preprocess` wrote with the bundle's own settings; or scans in any layout that
            it reads, which then are preprocessed so into `out/network-input`.
        bundle: exported model.
        out: folder to write.
        seen: what to do where the model was trained on some of the volumes: refuse, or leave those out.
        skull_strip, workers: of preprocessing, see `preprocess_cohort`.
        engine, device, threads: see `open_classifier`.
        precision: which of the bundle's networks is scored; see `PredictConfig`.
        on_volume: called after each volume with the number done and their number.

    Raises:
        LeakageError: the model was trained on volumes of this cohort.
        DatasetError: the cohort has classes that the model does not know, or other settings.
        SsclfError: see `open_bundle`, `Bundle.at`, `PredictConfig` and `preprocess_cohort`.
    """
    check_choice("seen", seen, Seen)
    check_output_folder("out", out)
    config = PredictConfig(engine=engine, device=device, precision=precision, threads=threads)
    model = open_bundle(bundle).at(precision)
    folder, made = _preprocessed(data, out, model, skull_strip=skull_strip, workers=workers)
    failed = len(made.failures) if made else 0
    if made and made.interrupted:
        return Evaluation(out, None, None, 0, 0, failed, 0, False, made.interrupted)
    cohort = read_prepared_cohort(folder, min_classes=1)
    _check(cohort, model, folder)
    samples, left_out = _unseen(cohort, model, seen)
    classifier = open_classifier(model, engine=engine, device=config.network_device, threads=threads)
    network = _network(model, samples, _classify(classifier, samples, on_volume))
    found = Evaluation(
        out=out,
        raw=network.raw[0],
        calibrated=network.calibrated[0],
        volumes=len(samples),
        seen=left_out,
        failed=failed,
        unchecked=_unchecked(samples, model),
        # lesions in real brains are said to be what they are, and the volumes of a real cohort not to be synthetic
        synthetic=cohort.synthetic or (model.spec.synthetic and not model.spec.pretrained_on_lesions),
        reference_model=model.spec.pretrained_on_lesions,
        precision=model.precision_with(engine),
    )
    reported = _write(found, network, replace(cohort, samples=tuple(samples)), model, classifier.device)
    return replace(found, reported=reported)


def _preprocessed(
    data: Path, out: Path, model: Bundle, *, skull_strip: str, workers: int
) -> tuple[Path, PreprocessSummary | None]:
    """The folder with network input: `data` itself, or what is made of its scans, and then what that did."""
    if is_prepared(data):
        return data, None
    folder = out / PREPROCESSED
    config = model.spec.preprocess
    query = CohortQuery(sources=(data,), contrasts=config.contrasts, min_classes=1)

    def check(cohort: Cohort) -> None:
        _check_classes([Labelled(case.label, case.place) for case in cohort.cases], model)

    made = preprocess_cohort(query, folder, config, skull_strip=skull_strip, workers=workers, on_start=check)
    return folder, made


def _classify(
    classifier: Classifier, samples: Sequence[Sample], on_volume: Callable[[int, int], None]
) -> NDArray[np.float64]:
    """Logits (N, K) of every sample, one volume after the other: their shapes differ."""
    logits = []
    for number, sample in enumerate(samples, 1):
        logits.append(classifier.classify(read_written(sample.path).data[None]).logits[0].astype(np.float64))
        on_volume(number, len(samples))
    return np.array(logits)


def _unchecked(samples: Sequence[Sample], model: Bundle) -> int:
    """How many volumes nothing says of whether the model was trained on them: hashes are missing on one side."""
    seen = model.spec.provenance.seen
    if seen.likenesses:
        return 0
    return sum(not (seen and sample.voxels) for sample in samples)


def _write(found: Evaluation, network: Network, cohort: PreparedCohort, model: Bundle, device: str) -> bool:
    """Everything in the folder of an evaluation, and whether the report is; `cohort` has only what was scored."""
    out = found.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise OutputError(f"{out}: cannot be written ({exc.strerror or exc}).") from exc
    _write_predictions(out / PREDICTIONS, network, cohort.samples)
    _write_metrics(out / METRICS, found, model, device)
    return try_report(
        str(out / REPORT),
        lambda: write_evaluation_report(
            out,
            network,
            synthetic=found.synthetic,
            cohort=count_sources(cohort),
            facts=_facts(found, model, device),
            seen=found.seen,
        ),
    )


def _check_classes(labels: Sequence[Labelled], model: Bundle) -> None:
    """Raises:
    DatasetError: a label is no class of the model; before hours of preprocessing.
    """
    known = model.spec.class_names
    unknown = {each.label: each.place for each in reversed(labels) if each.label not in known}
    if not unknown:
        return
    alike = [(found, name) for found in sorted(unknown) for name in known if look(found) == look(name)]
    options = " ".join(joining_option(found, name) for found, name in alike) or "--class FOUND=NAME"
    places = ", ".join(f"{label} ({place})" for label, place in sorted(unknown.items())[:_NAMED])
    places += ", …" if len(unknown) > _NAMED else ""
    raise DatasetError(
        f"expected the classes {', '.join(known)} of the model, found {places}; rename labels with "
        f"`ssclf preprocess {options}`, or leave these volumes out."
    )


def _check(cohort: PreparedCohort, model: Bundle, folder: Path) -> None:
    _check_classes([Labelled(sample.label, sample.place) for sample in cohort.samples], model)
    if cohort.preprocess.hash != model.spec.preprocess.hash:
        raise DatasetError(
            f"{folder}: was preprocessed with other settings ({cohort.preprocess.hash}) than the model was trained "
            f"with ({model.spec.preprocess.hash}): {json.dumps(config_to_dict(model.spec.preprocess))}. Give the scans "
            "themselves to evaluate, and they are preprocessed as the model needs it."
        )


def _unseen(cohort: PreparedCohort, model: Bundle, seen: Seen) -> tuple[list[Sample], int]:
    known = model.spec.provenance.seen
    samples = [sample for sample in cohort.samples if not known.hold(sample.voxels, sample.describe)]
    left_out = len(cohort.samples) - len(samples)
    if left_out and (seen == "refuse" or not samples):
        raise LeakageError(
            f"the model was trained on {left_out} of these {len(cohort.samples)} volumes, or its epoch was chosen with "
            "them, so its score on them says nothing; take another cohort"
            + (", or leave them out with --leave-out-seen." if samples else ".")
        )
    return samples, left_out


def _network(model: Bundle, samples: Sequence[Sample], logits: NDArray[np.float64]) -> Network:
    names = model.spec.class_names
    if logits.shape[1] != len(names):
        raise ModelError(f"{model.path.name}: expected {len(names)} logits, found {logits.shape[1]}.")
    predictions = FoldPredictions(
        keys=tuple(sample.key for sample in samples),
        subjects=tuple(sample.subject for sample in samples),
        targets=np.array([names.index(sample.label) for sample in samples], np.int64),
        logits=logits,
    )
    return Network(
        name=model.spec.name,
        folds={1: predictions},
        sources={1: [sample.source for sample in samples]},
        temperatures={1: model.spec.temperature},
        temperature=model.spec.temperature,
        class_names=names,
    )


def _write_predictions(path: Path, network: Network, samples: Sequence[Sample]) -> None:
    names = network.class_names
    columns = ["path", "subject", "source", "label", "prediction"]
    columns += [f"p_{name}" for name in names] + [f"logit_{name}" for name in names]
    logits = network.folds[1].logits
    rows = [
        (sample.key, sample.subject, sample.source, sample.label, names[p.argmax()], *map(float, (*p, *row)))
        for sample, row, p in zip(samples, logits, softmax(logits, network.temperature), strict=True)
    ]
    write_table(path, columns, rows)


def _write_metrics(path: Path, found: Evaluation, model: Bundle, device: str) -> None:
    assert found.raw and found.calibrated
    values = {
        "model": model.spec.name,
        "model_sha256": model.sha256,
        "precision": found.precision,
        "synthetic": found.synthetic,
        "reference_model": found.reference_model,
        "volumes": found.volumes,
        "left_out_as_seen": found.seen,
        "not_checked_for_being_seen": found.unchecked,
        "failed": found.failed,
        "temperature": model.spec.temperature,
        "device": device,
        "raw": found.raw.to_dict(),
        "calibrated": found.calibrated.to_dict(),
    }
    write_json(path, values)


def _facts(found: Evaluation, model: Bundle, device: str) -> list[tuple[str, str]]:
    facts = [
        ("model", f"{model.spec.name}, {model.spec.architecture}, sha256 {model.sha256}"),
        (
            "volumes",
            f"{found.volumes} scored, {found.seen} left out as seen in training, {found.failed} failed",
        ),
        ("device", device),
        ("precision", found.precision),
    ]
    if found.reference_model:
        facts.insert(1, (REFERENCE_MODEL, FLAGS[REFERENCE_MODEL]))
    training = model.spec.provenance
    if training.voxels and not training.likenesses:
        facts.append(
            ("not checked", "copies of training volumes that are stored in another way, and volumes that chose the "
             "epoch: a bundle of an earlier version does not know them")
        )  # fmt: skip
    if found.unchecked:
        facts.append(
            ("not checked", f"whether the model was trained on {found.unchecked} of them: no hashes")
        )
    return facts
