"""The audit of a cohort: how well what should not matter tells the class."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.confounds import (
    Finding,
    audit,
    complete_separation_fails,
    histogram_features,
    shape_features,
    table_features,
    warnings,
)
from ssclf.domain.splits import Split
from ssclf.io.locks import lock
from ssclf.io.records.cv_run import read_audit, write_audit
from ssclf.io.records.preprocessed import PreparedCohort, count_sources
from ssclf.io.volumes.nifti import read_written

LOCK = ".lock-audit"
#: Of the manifest: what a file says of a volume besides its voxels, and how it was made.
_HEADER_COLUMNS = (
    "original_spacing", "original_shape", "original_orientation", "original_dtype",
    "extraction", "contrasts",
)  # fmt: skip
#: Percentiles of the brain before normalisation: on their own, since a scale is easily lost among other columns.
_INTENSITIES = "original_intensity"
log = logging.getLogger(__name__)


def audit_confounds(run: Path, cohort: PreparedCohort, splits: Sequence[Split]) -> None:
    """Write `audit.json`, once, and warn of what it says; a minute for some hundred volumes."""
    with lock(run / LOCK) as ours:
        if not ours:
            return
        found = read_audit(run)
        if found is None:
            findings = find_confounds(cohort, splits)
            told = warnings(findings, count_sources(cohort))
            write_audit(run, [_finding_to_dict(finding) for finding in findings], told)
        else:
            told = found["warnings"]
        for text in told:
            log.warning("%s", text)


def find_confounds(cohort: PreparedCohort, splits: Sequence[Split]) -> list[Finding]:
    """What each kind of plain features tells about the class, on the networks' folds."""
    cells = _manifest_cells(cohort)
    shapes, histograms, headers, intensities = [], [], [], []
    for sample in cohort.samples:
        volume = read_written(sample.path).data
        shapes.append(shape_features(volume, cohort.preprocess.spacing))
        histograms.append(histogram_features(volume))
        header = {"array": " x ".join(map(str, volume.shape[1:])), **cells[sample.key]}
        intensities.append({_INTENSITIES: header.pop(_INTENSITIES, "")})
        headers.append(header)
    targets = np.array([cohort.class_names.index(s.label) for s in cohort.samples])
    position = {sample.key: k for k, sample in enumerate(cohort.samples)}

    def indices(keys: Sequence[str]) -> NDArray[np.intp]:
        return np.array([position[key] for key in keys], np.intp)

    folds = [(indices(split.train), indices(split.test)) for split in splits]
    features = {
        "brain mask shape": np.array(shapes),
        "intensity histogram": np.array(histograms),
        "stored intensities": table_features(intensities),
        "header fields": table_features(headers),
        "source": table_features([{"source": sample.source} for sample in cohort.samples]),
    }
    subjects = [sample.subject for sample in cohort.samples]
    fails = complete_separation_fails(targets, subjects, folds, len(cohort.class_names))
    return [
        audit(name, values, targets, subjects, folds, cohort.class_names, complete_fails=fails)
        for name, values in features.items()
    ]


def _finding_to_dict(finding: Finding) -> dict[str, Any]:
    return {
        **dataclasses.asdict(finding),
        "best": finding.best,
        "score": finding.score,
        "complete": finding.complete,
        "verdict": finding.verdict,
    }


def _manifest_cells(cohort: PreparedCohort) -> dict[str, dict[str, str]]:
    """Volume key → cells that the audit looks at, those that every manifest has."""
    columns = [
        name
        for name in (*_HEADER_COLUMNS, _INTENSITIES)
        if all(name in sample.cells for sample in cohort.samples)
    ]
    return {s.key: {name: s.cells[name] for name in columns} for s in cohort.samples}
