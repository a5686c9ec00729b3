"""What `ssclf cv` leaves on disk, and how to read it back.

cv.json         settings, classes, and which networks are asked for
splits.json     the folds, the same for all networks
audit.json      how well what should not matter tells the class
cells/mc3/scratch/1/     a run folder as `ssclf train` leaves it, and cost.json; failure.json where it failed
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ssclf.config import (
    Architecture,
    PreprocessConfig,
    Scheme,
    TrainConfig,
    canonical_settings,
    config_from_dict,
)
from ssclf.domain.comparison import FoldPredictions, cross_fitted_temperatures, pool
from ssclf.domain.metrics import fit_temperature
from ssclf.domain.network_scores import Network
from ssclf.domain.provenance import Provenance
from ssclf.domain.splits import Split, splits_to_dict
from ssclf.errors import ConfigError, DatasetError, ModelError
from ssclf.io.files import write_json
from ssclf.io.records.sealed import read_sealed, write_sealed
from ssclf.io.records.training_run import (
    CONFIG,
    RUNS,
    is_finished,
    read_epochs,
    read_predictions,
    read_splits,
    read_training,
)

CV, SPLITS, AUDIT, CELLS, COST = "cv.json", "splits.json", "audit.json", "cells", "cost.json"
FAILURE = "failure.json"
FORMAT = 1
_OTHERWISE = "bring the file back, or run `ssclf cv` anew with another --out."


@dataclass(frozen=True, order=True)
class Cell:
    """One training: a network, how it starts, and a fold from 1."""

    architecture: Architecture
    pretrained: bool
    fold: int

    @staticmethod
    def parse(text: str) -> Cell:
        """Read `mc3/pretrained/2`.

        Raises:
            ConfigError: anything else.
        """
        names = "|".join(get_args(Architecture))
        match = re.fullmatch(rf"({names})/(scratch|pretrained)/([1-9]\d*)", text)
        if not match:
            raise ConfigError(
                f"cell: expected network/start/fold such as mc3/pretrained/2 (networks {names.replace('|', ', ')}; "
                f"start scratch or pretrained; folds from 1), found {text!r}."
            )
        name = next(a for a in get_args(Architecture) if a == match[1])
        return Cell(name, match[2] == "pretrained", int(match[3]))

    @property
    def variant(self) -> str:
        """Without the fold: `mc3/pretrained`."""
        return f"{self.architecture}/{'pretrained' if self.pretrained else 'scratch'}"

    @property
    def name(self) -> str:
        return f"{self.variant}/{self.fold}"

    def folder(self, run: Path) -> Path:
        return run / CELLS / self.name


@dataclass(frozen=True)
class FoldResult:
    """What a finished cell says of its test part, in the order of `predictions.csv`.

    Attributes:
        keys, subjects, sources: one a volume.
        targets: (N,) class indices.
        logits: (N, K) float64, not calibrated.
        epochs: rows of `metrics.csv`, empty cells as None.
        training: from the cell's provenance.
        cost: what `cost.json` says, empty without one.
    """

    keys: tuple[str, ...]
    subjects: tuple[str, ...]
    sources: tuple[str, ...]
    targets: NDArray[np.int64]
    logits: NDArray[np.float64]
    epochs: tuple[Mapping[str, float | None], ...]
    training: Provenance
    cost: Mapping[str, Any]


@dataclass(frozen=True)
class CvRun:
    """Attributes:
    config: settings that all networks share; its architecture, start and seed are replaced by each cell's.
    cells: asked for, sorted.
    cohort: class → source → number of volumes.
    results: of the finished cells.
    failures: why others are not finished, of those that were tried and failed.
    audit: what `audit.json` says, None without one.
    data: the preprocessed folders.
    """

    folder: Path
    config: TrainConfig
    preprocess: PreprocessConfig
    scheme: Scheme
    folds: int
    class_names: tuple[str, ...]
    synthetic: bool
    data: tuple[Path, ...]
    cells: tuple[Cell, ...]
    cohort: Mapping[str, Mapping[str, int]]
    results: Mapping[Cell, FoldResult]
    failures: Mapping[Cell, str]
    audit: Mapping[str, Any] | None

    @property
    def variants(self) -> list[str]:
        """Networks with at least one finished fold, in order."""
        return list(dict.fromkeys(cell.variant for cell in self.cells if cell in self.results))

    @property
    def missing(self) -> list[Cell]:
        return [cell for cell in self.cells if cell not in self.results]

    def of(self, variant: str) -> dict[int, FoldResult]:
        """Finished folds of a network, by number."""
        return {cell.fold: result for cell, result in self.results.items() if cell.variant == variant}


def newest_cv_run(runs: Path = RUNS) -> Path:
    """The cross-validation that was begun or added to last.

    Raises:
        DatasetError: there is none.
    """
    found = [path.parent for path in runs.glob(f"[!.]*/{CV}")]
    if not found:
        raise DatasetError(f"{runs}: expected a cross-validation, found none; name its folder with --out.")
    return max(found, key=lambda folder: (folder / CV).stat().st_mtime)


def is_cv_run(folder: Path) -> bool:
    return (folder / CV).is_file()


def read_settings(run: Path) -> dict[str, Any]:
    """The content of `cv.json`.

    Raises:
        ModelError: no folder of a cross-validation, of another format, or changed.
    """
    try:
        values = read_sealed(run / CV, _OTHERWISE, ModelError)
        if values["format"] != FORMAT:
            raise ModelError(
                f"{run / CV}: expected format {FORMAT}, found {values['format']}; run `ssclf cv` anew."
            )
        values["preprocess"] = canonical_settings(values["preprocess"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelError(f"{run / CV}: expected the settings of a cross-validation, found {exc!r}.") from exc
    return values


def stored_folders(values: Mapping[str, Any]) -> tuple[Path, ...]:
    """The preprocessed folders that the settings name: a text, or several."""
    data = values["data"]
    return (Path(data),) if isinstance(data, str) else tuple(Path(name) for name in data)


def write_settings(run: Path, values: Mapping[str, Any]) -> None:
    write_sealed(run / CV, {"format": FORMAT, **values})


def read_folds(run: Path, keys: Sequence[str]) -> list[Split]:
    """The folds, of the volumes with these keys.

    Raises:
        DatasetError: they are of other volumes, damaged, or were changed.
    """
    return read_splits(run / SPLITS, keys)


def write_folds(run: Path, folds: Sequence[Split]) -> None:
    write_sealed(run / SPLITS, splits_to_dict(folds))


def read_audit(run: Path) -> dict[str, Any] | None:
    """The content of `audit.json`, None without one."""
    path = run / AUDIT
    return read_sealed(path, "remove it, and it is made again.", ModelError) if path.is_file() else None


def write_audit(run: Path, findings: Sequence[Mapping[str, Any]], warnings: Sequence[str]) -> None:
    write_sealed(run / AUDIT, {"findings": list(findings), "warnings": list(warnings)})


def has_cost(cell_folder: Path) -> bool:
    """Whether a cell is done: what it costs is measured once it is trained."""
    return (cell_folder / COST).is_file()


def write_cost(cell_folder: Path, values: Mapping[str, Any]) -> None:
    write_sealed(cell_folder / COST, values)


def write_failure(cell_folder: Path, error: str, traceback: str) -> None:
    """Why a cell failed: one line, and where, for an error that has no message of ours."""
    write_json(cell_folder / FAILURE, {"error": error, "traceback": traceback})


def forget_failure(cell_folder: Path) -> None:
    """A cell is tried again."""
    (cell_folder / FAILURE).unlink(missing_ok=True)


def _read_failure(cell_folder: Path) -> str:
    try:
        return str(json.loads((cell_folder / FAILURE).read_text("utf-8"))["error"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as exc:
        return f"{FAILURE} cannot be read ({exc!r})"


def holds_training_run(folder: Path) -> bool:
    """Whether something else than a cross-validation was trained here."""
    return (folder / CONFIG).is_file() or any(folder.glob("*/checkpoints"))


def planned_cells(settings: Mapping[str, Any]) -> tuple[Cell, ...]:
    folds = range(1, settings["folds"] + 1)
    return tuple(
        sorted(Cell.parse(f"{variant}/{fold}") for variant in settings["variants"] for fold in folds)
    )


def read_cv_run(run: Path) -> CvRun:
    """Everything in the folder of a cross-validation, finished or not.

    Raises:
        ModelError: not such a folder, or a file in it is damaged.
    """
    values = read_settings(run)
    try:
        class_names = tuple(values["class_names"])
        cells = planned_cells(values)
        return CvRun(
            folder=run,
            config=config_from_dict(TrainConfig, values["config"]),
            preprocess=config_from_dict(PreprocessConfig, values["preprocess"]),
            scheme=values["scheme"],
            folds=values["folds"],
            class_names=class_names,
            synthetic=values["synthetic"],
            data=stored_folders(values),
            cells=cells,
            cohort=values["cohort"],
            results={
                cell: _read_result(cell.folder(run), class_names)
                for cell in cells
                if is_finished(cell.folder(run))
            },
            failures={
                cell: reason
                for cell in cells
                if not is_finished(cell.folder(run)) and (reason := _read_failure(cell.folder(run)))
            },
            audit=read_audit(run),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, ConfigError) as exc:
        raise ModelError(f"{run}: expected a cross-validation as ssclf writes it, found {exc!r}.") from exc


def _read_result(folder: Path, class_names: tuple[str, ...]) -> FoldResult:
    names, training = read_training(folder)
    if names != class_names:
        raise ModelError(f"{folder}: its classes {list(names)} are not those of this cross-validation.")
    rows = [row for row in read_predictions(folder, class_names) if row.part == "test"]
    cost = folder / COST
    return FoldResult(
        keys=tuple(row.path for row in rows),
        subjects=tuple(row.subject for row in rows),
        sources=tuple(row.source for row in rows),
        targets=np.array([class_names.index(row.label) for row in rows], np.int64),
        logits=np.array([row.logits for row in rows]),
        epochs=read_epochs(folder),
        training=training,
        cost=read_sealed(cost, "remove it, and it is measured again.", ModelError) if cost.is_file() else {},
    )


def summarise(run: CvRun) -> list[Network]:
    """Every network with at least one finished fold."""
    networks = []
    for variant in run.variants:
        results = dict(sorted(run.of(variant).items()))
        folds = {fold: predictions(result) for fold, result in results.items()}
        temperatures = cross_fitted_temperatures(list(folds.values()))
        pooled = pool(list(folds.values()))
        networks.append(
            Network(
                name=variant,
                folds=folds,
                sources={fold: result.sources for fold, result in results.items()},
                temperatures=dict(zip(folds, temperatures, strict=True)),
                temperature=fit_temperature(pooled.logits, pooled.targets),
                class_names=run.class_names,
            )
        )
    return networks


def predictions(result: FoldResult) -> FoldPredictions:
    return FoldPredictions(result.keys, result.subjects, result.targets, result.logits)
