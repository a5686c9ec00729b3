"""`ssclf export` of a cross-validation: one network trained on everything, or the networks of all folds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from ssclf.config import TrainConfig, config_to_dict
from ssclf.domain.comparison import mean_and_sd, pool
from ssclf.domain.metrics import score_predictions
from ssclf.domain.network_scores import Network
from ssclf.domain.provenance import Calibration
from ssclf.domain.scores import softmax
from ssclf.errors import ConfigError, DatasetError, ModelError
from ssclf.io.locks import lock
from ssclf.io.records.cv_run import Cell, CvRun, read_cv_run, read_settings, summarise
from ssclf.io.records.preprocessed import Folders, fingerprint, read_prepared_cohort
from ssclf.io.records.training_run import LOCK, RunRecord, can_resume, is_finished, read_record
from ssclf.workflows.export import ExportConfig, check_bundle_place, export_run
from ssclf.workflows.train import Machine, Watch, train

REFIT = "refit"


@dataclass(frozen=True)
class CvExport:
    """Attributes:
    bundles: that were written.
    interrupted: signal that stopped the training on everything, 0 when it ended; the same call goes on.
    """

    bundles: tuple[Path, ...]
    interrupted: int = 0


def export_cv(
    run: Path,
    out: Path,
    config: ExportConfig | None = None,
    *,
    network: str | None = None,
    per_fold: bool = False,
    data: Folders | None = None,
    machine: Machine | None = None,
    watch: Watch | None = None,
) -> CvExport:
    """Make bundles that carry the temperature and the scores of the out-of-fold predictions.

    Args:
        run: folder that `ssclf cv` wrote.
        out: the bundle; with `per_fold` each fold's number is added to its name.
        network: such as mc3/scratch; None takes the one with the best mean macro F1.
        per_fold: export the trained folds, to be averaged by `predict`, instead of training on everything for
            as many epochs as the folds chose in the middle.
        data: the preprocessed folder or folders, where they are not any more where the cross-validation found them.

    Raises:
        ModelError: folds of the network are missing.
        DatasetError: the data are not those of the cross-validation.
        SsclfError: see `train` and `export_run`.
    """
    config = config or ExportConfig()
    found = read_cv_run(run)
    ours = _choose(found, network)
    places = {fold: out.parent / f"{out.name}-fold{fold}" for fold in ours.folds} if per_fold else {0: out}
    for place in places.values():  # before hours of training
        check_bundle_place(place, config)
    if not per_fold:
        folder = run / REFIT / ours.name.replace("/", "-")
        interrupted = _refit(found, ours, folder, data or found.data, machine or Machine(), watch or Watch())
        if interrupted:
            return CvExport((), interrupted)
        sources: dict[Path, tuple[Path, int | None]] = {out: (folder, None)}
    else:
        sources = {
            place: (Cell.parse(f"{ours.name}/{fold}").folder(run), fold) for fold, place in places.items()
        }
    for bundle, (folder, fold) in sources.items():
        export_run(folder, bundle, config, record=_record(found, ours, folder, fold), data=data)
    return CvExport(tuple(sources))


def _choose(run: CvRun, name: str | None) -> Network:
    networks = {network.name: network for network in summarise(run)}
    if name is not None and name not in {cell.variant for cell in run.cells}:
        raise ConfigError(
            f"network: expected one of {', '.join(dict.fromkeys(c.variant for c in run.cells))}, found {name!r}."
        )
    whole = [network for network in networks.values() if len(network.folds) == run.folds]
    if name is None and whole:
        return max(whole, key=lambda network: network.score("macro_f1").mean or 0.0)
    if name not in {network.name for network in whole}:
        missing = [cell.name for cell in run.missing if name in (None, cell.variant)]
        raise ModelError(
            f"{run.folder}: expected a network with all its folds, found {', '.join(missing)} missing; "
            "finish them with `ssclf cv`."
        )
    return networks[str(name)]


def _refit(run: CvRun, network: Network, folder: Path, data: Folders, machine: Machine, watch: Watch) -> int:
    """Train on everything, unless that is done; the signal that stopped it, or 0."""
    cohort = read_prepared_cohort(data)
    if fingerprint(cohort) != read_settings(run.folder)["volumes"]:
        raise DatasetError(
            f"{' and '.join(map(str, cohort.folders))}: expected the volumes of the cross-validation, found others; "
            "the scores would not be this model's."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK) as free:
        if not free:
            raise ModelError(f"{folder}: another ssclf process is training it; wait for it.")
        if is_finished(folder):
            return 0
        result = train(
            data,
            folder,
            _refit_config(run, network),
            resume=can_resume(folder),
            machine=machine,
            watch=watch,
        )
    return result.interrupted


def _refit_config(run: CvRun, network: Network) -> TrainConfig:
    """Nothing is held out, so nothing can choose the epoch: as many as the folds took in the middle."""
    cell = Cell.parse(f"{network.name}/1")
    chosen = [result.training.chosen_epoch for result in run.of(network.name).values()]
    return dataclasses.replace(
        run.config,
        architecture=cell.architecture,
        pretrained=cell.pretrained,
        epochs=max(round(median(chosen)), 1),
        holdout=0.0,
        validation=0.0,
        patience=0,
    )


def _record(run: CvRun, network: Network, folder: Path, fold: int | None) -> RunRecord:
    """What the run says of itself, with the temperature and the scores of the cross-validation."""
    record = read_record(folder)
    everything = pool(list(network.folds.values()))
    calibrated = np.concatenate(
        [softmax(f.logits, network.temperatures[number]) for number, f in network.folds.items()]
    )
    scores = {
        "out-of-fold": {
            "raw": network.pooled.to_dict(),
            "calibrated": score_predictions(everything.targets, calibrated, network.class_names).to_dict(),
        }
    }
    if fold is not None:
        index = list(network.folds).index(fold)
        scores["test"] = {
            "raw": network.raw[index].to_dict(),
            "calibrated": network.calibrated[index].to_dict(),
        }
    mean, sd = mean_and_sd([metrics.macro_f1 for metrics in network.raw])
    calibration = Calibration(
        temperature=network.temperature, fitted_on="out-of-fold", volumes=len(everything.keys)
    )
    training = dataclasses.replace(
        record.training,
        calibration=calibration,
        scores=scores,
        cross_validation={
            "scheme": run.scheme,
            "folds": run.folds,
            "fold": fold,
            "network": network.name,
            "networks_compared": len(run.variants),
            "config": config_to_dict(run.config),
            "macro_f1": {"mean": mean, "sd": sd},
        },
    )
    return dataclasses.replace(record, calibration=calibration, training=training)
