"""The folder that `ssclf preprocess` writes and training reads; nothing else names its files.

manifest.csv    a row per volume: who, which class, from where, what was found on the way
settings.json   what decided the voxel values, and marks of the manifest's rows
subjects.csv    a row per subject: what was understood of who is who
failed.csv      what could not be used, and why
qc.html         every volume at a glance
volumes/        network input, float32 NIfTI
records/        what each volume was made from, so that a later run does only what is not done
decoded/        volumes uncompressed, which training keeps where memory does not hold them (`io/decoded`)

Several such folders of equal settings are read as one cohort, the one that a single call would have made of all their
sources.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssclf import __version__
from ssclf.config import PreprocessConfig, config_from_dict, config_to_dict, differing_fields
from ssclf.domain.equal_volumes import Known, check_labels, equal_pairs
from ssclf.domain.labels import Labelled, check_look_alikes, clean_text, is_missing, read_label
from ssclf.domain.likeness import describe_likeness, is_readable
from ssclf.domain.run_data import RunData
from ssclf.domain.written import mark_rows
from ssclf.errors import ConfigError, DatasetError, LeakageError, OutputError
from ssclf.io.files import write_whole
from ssclf.io.records.sealed import check_marks, read_sealed, write_sealed
from ssclf.io.records.tables import Table, TableRow, read_table, write_table
from ssclf.io.volumes.nifti import read_written

COLUMNS = (
    "subject", "label", "source", "path", "contrasts", "shape", "spacing", "brain_ml", "extraction", "flags",
    "voxels", "settings", "original", "series", "original_shape", "original_spacing", "original_orientation",
    "original_dtype", "original_intensity", "likeness",
)  # fmt: skip
FAILED_COLUMNS = ("path", "series", "subject", "label", "source", "error")
SUBJECT_COLUMNS = ("subject", "label", "source", "sessions", "volumes", "failed", "named_by")
_VOLUMES, _RECORDS, _DECODED = "volumes", "records", "decoded"
_MANIFEST, _SETTINGS, _FAILED, _QC = "manifest.csv", "settings.json", "failed.csv", "qc.html"
_SUBJECTS = "subjects.csv"
log = logging.getLogger(__name__)
#: Of `settings.json`: the marks of the manifest's rows.
_ROWS = "rows"
_OTHERWISE = (
    "run `ssclf preprocess` again, which keeps the volumes. There is the place to say what is to be another: labels "
    "with --labels or --class, subjects and volumes by its sources."
)
#: Names by which such a folder is known where it lies below the sources of a later run.
MARKS = frozenset({_SETTINGS, _RECORDS, _VOLUMES})
#: One preprocessed folder, or several that are joined.
Folders = Path | Sequence[Path]


def is_prepared(folder: Path) -> bool:
    """Whether `ssclf preprocess` has written here."""
    return (folder / _SETTINGS).is_file()


def manifest_path(folder: Path) -> Path:
    """For messages."""
    return folder / _MANIFEST


def qc_path(folder: Path) -> Path:
    return folder / _QC


def volume_key(name: str) -> str:
    """How the manifest names a volume: its path in the folder."""
    return f"{_VOLUMES}/{name}.nii.gz"


def record_path(folder: Path, name: str) -> Path:
    return folder / _RECORDS / f"{name}.json"


def decoded_folder(folder: Path) -> Path:
    return folder / _DECODED


def begin_folder(folder: Path) -> None:
    """Make it, as far as it is not there.

    Raises:
        OSError: it cannot be written.
    """
    for path in (folder, folder / _VOLUMES, folder / _RECORDS):
        path.mkdir(parents=True, exist_ok=True)


def sweep_folder(folder: Path) -> None:
    """Remove what a killed run has left half written; only for whom the folder is locked.

    Raises:
        OutputError: its manifest is not one of ours.
        OSError: it cannot be written.
    """
    path = folder / _MANIFEST
    if path.exists() and not {"voxels", "settings"} <= set(read_table(path).columns):
        raise OutputError(f"{path}: exists and was not written by ssclf; choose another --out.")
    for leftover in (*(folder / _VOLUMES).glob(".*"), *(folder / _RECORDS).glob(".*")):
        leftover.unlink(missing_ok=True)


def stored_hash(folder: Path) -> str:
    """Hash of the settings that a folder was begun with; "" where there is none."""
    return str(read_record(folder / _SETTINGS).get("hash", ""))


def write_settings(folder: Path, config: PreprocessConfig, *, skull_strip: str, synthetic: bool) -> None:
    """Say what the volumes are; a manifest of other settings goes, since its volumes are about to change."""
    path = folder / _SETTINGS
    old = read_record(path)
    values = {
        "preprocess": config_to_dict(config),
        "hash": config.hash,
        "skull_strip": skull_strip,
        "synthetic": synthetic,
        "ssclf_version": __version__,
    }
    if old.get("hash") != config.hash:
        if (folder / _MANIFEST).exists():
            log.warning(
                "%s: holds a cohort of other settings, which goes; runs on it cannot go on without it", folder
            )
        for name in (_MANIFEST, _SUBJECTS, _FAILED, _QC):
            (folder / name).unlink(missing_ok=True)
    elif _ROWS in old:  # of the manifest that is there until this run ends
        values[_ROWS] = old[_ROWS]
    write_sealed(path, values)


def write_record(path: Path, values: Mapping[str, Any]) -> None:
    """What a volume was made from, beside what the manifest says of it."""
    write_whole(path, json.dumps(values, allow_nan=False))


def read_record(path: Path) -> dict[str, Any]:
    """A record of an earlier run; empty where there is none that can be read."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_manifest(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """A row per volume, with the cells of `COLUMNS`; with the settings, which `write_settings` has written."""
    path, settings = folder / _MANIFEST, read_sealed(folder / _SETTINGS, _OTHERWISE, DatasetError)
    write_table(path, COLUMNS, ([row[column] for column in COLUMNS] for row in rows))
    marks = _mark_manifest(read_table(path))
    write_sealed(folder / _SETTINGS, {**settings, _ROWS: list(marks.items())})


def _mark_manifest(table: Table) -> dict[str, str]:
    return mark_rows([row.cells for row in table.rows], "path", COLUMNS)


def write_subjects(folder: Path, rows: Iterable[Sequence[str | int]]) -> None:
    """A row per subject and label, with the cells of `SUBJECT_COLUMNS`."""
    write_table(folder / _SUBJECTS, SUBJECT_COLUMNS, rows)


def write_failed(folder: Path, rows: Iterable[Sequence[str]]) -> None:
    """A row per volume that could not be used, with the cells of `FAILED_COLUMNS`."""
    write_table(folder / _FAILED, FAILED_COLUMNS, rows)


def left_over(folder: Path, names: Iterable[str]) -> int:
    """Volumes of earlier runs that are none of these; their files stay."""
    known = {f"{name}.nii.gz" for name in names}
    return sum(path.name not in known for path in (folder / _VOLUMES).iterdir())


@dataclass(frozen=True)
class Sample:
    """A preprocessed volume.

    Attributes:
        key: its `path` in the manifest, which names it in splits; where two joined folders have the same one, with a
            hash behind it.
        voxels: hash of the voxels, empty where the manifest has none.
        likeness: of the scan, see `domain.likeness`; likewise.
        extraction: what removed the skull.
        cells: all that the manifest says of it, by column.
        place: its line of the manifest, for messages.
    """

    key: str
    path: Path
    subject: str
    label: str
    source: str
    voxels: str = ""
    extraction: str = ""
    cells: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    place: str = field(default="", compare=False, repr=False)
    likeness: str = field(default="", compare=False, repr=False)

    def describe(self) -> str:
        """Its likeness, from the volume where the manifest of an older version has none."""
        if is_readable(self.likeness):
            return self.likeness
        volume = read_written(self.path)
        return describe_likeness(volume.data, volume.affine)


@dataclass(frozen=True)
class PreparedCohort:
    """Preprocessed volumes that belong together: same settings, one label a subject.

    Attributes:
        class_names: sorted; the order of logits.
        synthetic: whether some volumes were made by ssclf's generator.
        folders: that they come from.
    """

    samples: tuple[Sample, ...]
    class_names: tuple[str, ...]
    preprocess: PreprocessConfig
    synthetic: bool
    folders: tuple[Path, ...] = ()

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


def read_prepared_cohort(data: Folders, *, min_classes: int = 2) -> PreparedCohort:
    """Read what `ssclf preprocess` wrote, into one folder or several.

    Args:
        data: the folders; their order does not matter. Joined volumes are sorted as one call sorts them.
        min_classes: 2 to train on it, 1 to score a model on it.

    Raises:
        DatasetError: missing, incomplete, of mixed settings, contradicting itself, or of too few classes.
    """
    folders = as_folders(data)
    read = [_read_folder(folder) for folder in {path.resolve(): path for path in folders}.values()]
    first = read[0]
    for other in read[1:]:
        if other.preprocess.hash != first.preprocess.hash:
            raise DatasetError(
                f"{other.folders[0]}: expected the settings of {first.folders[0]}, found others for "
                f"{', '.join(differing_fields(first.preprocess, other.preprocess))}; preprocess both alike to join "
                "them."
            )
    samples = first.samples if len(read) == 1 else _joined([s for part in read for s in part.samples])
    _check_contradictions(samples)
    check_look_alikes(Labelled(sample.label, sample.place) for sample in samples)
    class_names = tuple(sorted({sample.label for sample in samples}))
    if len(class_names) < min_classes:
        where = " and ".join(str(manifest_path(folder)) for folder in folders)
        raise DatasetError(
            f"{where}: expected volumes of {min_classes} classes or more, found {len(samples)} volumes of "
            f"{'the class ' + class_names[0] if class_names else 'no class'}; add the other classes, or the folder "
            "that holds them (--data once for each folder)."
        )
    return PreparedCohort(
        samples, class_names, first.preprocess, any(part.synthetic for part in read), folders
    )


def as_folders(data: Folders) -> tuple[Path, ...]:
    return (data,) if isinstance(data, Path) else tuple(data)


def _read_folder(folder: Path) -> PreparedCohort:
    """One folder, of as many classes as it has."""
    path = folder / _MANIFEST
    if not path.is_file():
        raise DatasetError(
            f"{path}: expected the list of preprocessed volumes, found none; make it with `ssclf preprocess`."
        )
    table = read_table(path)
    table.require("subject", "label", "source", "path")
    settings = _read_settings(folder / _SETTINGS)
    samples = tuple(_sample(folder, row, settings.hash) for row in table.rows)
    twice = [key for key, count in Counter(sample.key for sample in samples).items() if count > 1]
    if twice:
        raise DatasetError(f"{path}: expected every volume once, found {twice[0]} more than once.")
    if settings.rows is not None:
        check_marks(path, settings.rows, _mark_manifest(table), _OTHERWISE, DatasetError)
        place = {key: number for number, key in enumerate(settings.rows)}
        samples = tuple(
            sorted(samples, key=lambda sample: place[sample.key])
        )  # somebody may have sorted them
    return PreparedCohort(samples, (), settings.config, settings.synthetic, (folder,))


def _joined(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Volumes of several folders in the order that one call gives them, each with a key of its own.

    Raises:
        DatasetError: a volume is in two of them, or a folder does not say which voxels it holds.
    """
    places: dict[str, Sample] = {}
    for sample in samples:
        if not sample.voxels:
            raise DatasetError(
                f"{sample.place}: expected a hash of the voxels, without which equal volumes of two folders are not "
                "found, and found none; run `ssclf preprocess` again."
            )
        if (other := places.setdefault(sample.voxels, sample)) is not sample and other.label == sample.label:
            raise DatasetError(
                f"{sample.place} and {other.place}: the same volume is in both; leave one of the two out."
            )
    count = Counter(sample.key for sample in samples)
    named = [s if count[s.key] == 1 else replace(s, key=f"{s.key}#{s.voxels[:12]}") for s in samples]
    return tuple(
        sorted(
            named, key=lambda s: (s.subject, s.cells.get("original", ""), s.cells.get("series", ""), s.key)
        )
    )


def _check_contradictions(samples: Sequence[Sample]) -> None:
    """Raises:
    DatasetError: one subject, or the same voxels, with two labels.
    LeakageError: the same voxels with two subjects, so that a split may train and test on them.
    """
    subjects: dict[str, Sample] = {}
    for sample in samples:
        other = subjects.setdefault(sample.subject, sample)
        if other.label != sample.label and Path(other.place).parent != Path(sample.place).parent:
            raise DatasetError(
                f"{sample.place} and {other.place}: one subject has two labels, {sample.label} and {other.label}; if "
                "these are different persons with one name, give them different names."
            )
    pairs = equal_pairs([Known(s.place, s.subject, s.label, s.voxels, s.likeness) for s in samples])
    check_labels(pairs)
    for one, two in pairs:
        if one.subject != two.subject:
            raise LeakageError(
                f"{one.place} and {two.place}: the same voxels have two subjects, {one.subject} and {two.subject}, so "
                "a network could be tested on what trained it; give them one subject, or leave one of the two out."
            )


def _sample(folder: Path, row: TableRow, settings: str) -> Sample:
    """A row of a manifest whose volumes were all made with the settings of this hash."""
    where = f"{folder / _MANIFEST} line {row.line}"
    label = read_label(row["label"])
    if not label:
        raise DatasetError(
            f"{where}: expected a value for label, found {repr(row['label']) if row['label'] else 'none'}; "
            f"{row['path']} cannot be trained on. Preprocess the same scans again with --labels, which keeps the "
            "volumes."
        )
    empty = [name for name in ("subject", "path") if is_missing(row[name])]
    if empty:
        raise DatasetError(f"{where}: expected a value for {', '.join(empty)}, found none.")
    if row["settings"] and row["settings"] != settings:
        raise DatasetError(
            f"{where}: {row['path']} was preprocessed with other settings ({row['settings']}) than {_SETTINGS} "
            f"says ({settings}); run `ssclf preprocess` again."
        )
    path = folder / row["path"]
    if not path.is_file():
        raise DatasetError(f"{where}: {row['path']} is missing; run `ssclf preprocess` again.")
    return Sample(
        key=row["path"],
        path=path,
        subject=clean_text(row["subject"]),
        label=label,
        source=row["source"],
        voxels=row["voxels"],
        extraction=row["extraction"],
        cells=dict(row.cells),
        place=where,
        likeness=row["likeness"],
    )


@dataclass(frozen=True)
class _Settings:
    """Attributes:
    hash: as it was written.
    synthetic: whether some of the volumes are.
    rows: marks of the manifest's rows, in its order; None where an earlier version wrote it.
    """

    config: PreprocessConfig
    hash: str
    synthetic: bool
    rows: Mapping[str, str] | None


def _read_settings(path: Path) -> _Settings:
    try:
        values = read_sealed(path, _OTHERWISE, DatasetError)
        config = config_from_dict(PreprocessConfig, values["preprocess"])
        written = values["hash"]
        known = config.hashes(values["preprocess"])
        synthetic = bool(values["synthetic"])
        rows = dict(values[_ROWS]) if _ROWS in values else None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as exc:
        raise DatasetError(
            f"{path}: expected the settings of the preprocessing, found {exc!r}; run `ssclf preprocess` again."
        ) from exc
    if written not in known:
        raise DatasetError(
            f"{path}: these volumes were preprocessed by a version of ssclf that computes other values "
            f"({written}, here {config.hash}); run `ssclf preprocess` again."
        )
    return _Settings(config, written, synthetic, rows)


def describe_data(cohort: PreparedCohort) -> RunData:
    """What a run that begins on these volumes keeps of them."""
    return RunData(
        folders=tuple(str(folder.resolve()) for folder in cohort.folders),
        volumes={s.key: (s.subject, s.label, s.voxels) for s in cohort.samples},
        class_names=cohort.class_names,
        preprocess=config_to_dict(cohort.preprocess),
    )


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
