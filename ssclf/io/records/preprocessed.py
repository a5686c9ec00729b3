"""The folder that `ssclf preprocess` writes and training reads.

manifest.csv    a row per volume: who, which class, from where, what was found on the way
settings.json   what decided the voxel values
failed.csv      what could not be used, and why
qc.html         every volume at a glance
volumes/        network input, float32 NIfTI
records/        what each volume was made from, so that a later run does only what is not done
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssclf.config import PreprocessConfig, config_from_dict
from ssclf.errors import ConfigError, DatasetError
from ssclf.io.records.tables import TableRow, read_table

COLUMNS = (
    "subject", "label", "source", "path", "contrasts", "shape", "spacing", "brain_ml", "extraction", "flags",
    "voxels", "settings", "original", "series", "original_shape", "original_spacing", "original_orientation",
    "original_dtype", "original_intensity",
)  # fmt: skip
VOLUMES, RECORDS = "volumes", "records"
MANIFEST, SETTINGS, FAILED, QC = "manifest.csv", "settings.json", "failed.csv", "qc.html"


@dataclass(frozen=True)
class Sample:
    """A preprocessed volume.

    Attributes:
        key: its `path` in the manifest, which names it in splits.
        voxels: hash of the voxels it was made from, empty where the manifest has none.
        extraction: what removed the skull.
    """

    key: str
    path: Path
    subject: str
    label: str
    source: str
    voxels: str = ""
    extraction: str = ""


@dataclass(frozen=True)
class PreparedCohort:
    """Preprocessed volumes that belong together: same settings, two classes or more.

    Attributes:
        class_names: sorted; the order of logits.
        synthetic: whether some volumes were made by ssclf's generator.
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    synthetic: bool

    @property
    def subjects(self) -> dict[str, str]:
        """Sample key → subject."""
        return {sample.key: sample.subject for sample in self.samples}

    @property
    def labels(self) -> dict[str, str]:
        """Sample key → class name."""
        return {sample.key: sample.label for sample in self.samples}

    def select(self, keys: Sequence[str]) -> list[Sample]:
        by_key = {sample.key: sample for sample in self.samples}
        return [by_key[key] for key in keys]

    def counts(self, samples: Sequence[Sample]) -> list[int]:
        """Samples per class, in the order of `class_names`."""
        found = Counter(sample.label for sample in samples)
        return [found[name] for name in self.class_names]


def read_prepared_cohort(folder: Path, *, min_classes: int = 2) -> PreparedCohort:
    """Read what `ssclf preprocess` wrote.

    Args:
        folder: with `manifest.csv` and `settings.json`.
        min_classes: 2 to train on it, 1 to score a model on it.

    Raises:
        DatasetError: missing, incomplete, of mixed settings, or of too few classes.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DatasetError(
            f"{path}: expected the list of preprocessed volumes, found none; make it with `ssclf preprocess`."
        )
    table = read_table(path)
    table.require("subject", "label", "source", "path")
    preprocess, synthetic = _read_settings(folder / SETTINGS)
    samples = tuple(_sample(folder, row, preprocess) for row in table.rows)
    twice = [key for key, count in Counter(sample.key for sample in samples).items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: expected every volume once, found {twice[0]} more than once.")
    class_names = tuple(sorted({sample.label for sample in samples}))
    if len(class_names) < min_classes:
        raise DatasetError(
            f"{path}: expected volumes of {min_classes} classes or more, found {len(samples)} volumes of "
            f"{'the class ' + class_names[0] if class_names else 'no class'}; add the other classes."
        )
    return PreparedCohort(samples, class_names, preprocess, synthetic)


def _sample(folder: Path, row: TableRow, preprocess: PreprocessConfig) -> Sample:
    where = f"{folder / MANIFEST} line {row.line}"
    empty = [name for name in ("subject", "label", "path") if not row[name]]
    if empty:
        raise DatasetError(f"{where}: expected a value for {', '.join(empty)}, found none.")
    if row["settings"] and row["settings"] != preprocess.hash:
        raise DatasetError(
            f"{where}: {row['path']} was preprocessed with other settings ({row['settings']}) than {SETTINGS} "
            f"says ({preprocess.hash}); run `ssclf preprocess` again."
        )
    path = folder / row["path"]
    if not path.is_file():
        raise DatasetError(f"{where}: {row['path']} is missing; run `ssclf preprocess` again.")
    return Sample(
        key=row["path"],
        path=path,
        subject=row["subject"],
        label=row["label"],
        source=row["source"],
        voxels=row["voxels"],
        extraction=row["extraction"],
    )


def _read_settings(path: Path) -> tuple[PreprocessConfig, bool]:
    """The settings, and whether some of the volumes are synthetic."""
    try:
        values: dict[str, Any] = json.loads(path.read_text("utf-8"))
        config = config_from_dict(PreprocessConfig, values["preprocess"])
        written = values["hash"]
        synthetic = bool(values["synthetic"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as exc:
        raise DatasetError(
            f"{path}: expected the settings of the preprocessing, found {exc!r}; run `ssclf preprocess` again."
        ) from exc
    if written != config.hash:
        raise DatasetError(
            f"{path}: these volumes were preprocessed by a version of ssclf that computes other values "
            f"({written}, here {config.hash}); run `ssclf preprocess` again."
        )
    return config, synthetic


def fingerprint(cohort: PreparedCohort) -> str:
    """Of who is in it, of which class, and with which voxels."""
    rows = sorted((s.key, s.subject, s.label, s.voxels) for s in cohort.samples)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def count_sources(cohort: PreparedCohort) -> dict[str, dict[str, int]]:
    return {
        name: dict(
            sorted(Counter(s.source or "not stated" for s in cohort.samples if s.label == name).items())
        )
        for name in cohort.class_names
    }
