"""How often the confound audit warns of synthetic cohorts: with nothing planted, and with one class made different.

    python scripts/audit_trials.py [--cohorts 10] [--count 30] [--seed 100]

Every cohort is drawn, stored, preprocessed and audited as `ssclf cv` does it. Planted, on one class of three, whatever
its lesions: another intensity scale (brains of about 900 where the others have about 300; preprocessing takes it out
of the voxels, what the manifest keeps of the file has it), another tone curve (power 0.75: stays in the voxels),
another field of view (20 mm more air below).
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np

from ssclf.config import PreprocessConfig
from ssclf.domain.confounds import Finding
from ssclf.domain.splits import holdout_splits
from ssclf.domain.synthetic import SyntheticLabel, make_synthetic_volume, vary_storage
from ssclf.domain.volume import Volume
from ssclf.io.discovery.cohorts import CohortQuery
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.io.records.tables import write_table
from ssclf.io.volumes.nifti import write_nifti
from ssclf.workflows.audit import find_confounds
from ssclf.workflows.preprocess import preprocess_cohort

#: A volume, and whether it is of the class that is made different.
Change = Callable[[Volume, bool], Volume]


def scale(volume: Volume, different: bool) -> Volume:
    # what the generator drew varies 15-fold; a site's own scale does so much less
    middle, own = np.median(volume.data[volume.data > 0]), np.log(volume.data.max()) % 1
    return Volume(volume.data / middle * (900 if different else 300) * (0.8 + 0.4 * own), volume.affine)


def tone(volume: Volume, different: bool) -> Volume:
    if not different:
        return volume
    return Volume(volume.data.max() * (volume.data / volume.data.max()) ** 0.75, volume.affine)


def field(volume: Volume, different: bool) -> Volume:
    if not different:
        return volume
    slices = round(20 / abs(volume.affine[2, 0]))
    affine = volume.affine.copy()
    affine[:3, 3] -= slices * affine[:3, 0]
    return Volume(np.pad(volume.data, ((0, 0), (slices, 0), (0, 0), (0, 0))), affine)


PLANTED: dict[str, Change | None] = {
    "nothing": None, "intensity scale": scale, "tone curve": tone, "field of view": field
}  # fmt: skip


def audit_cohort(seed: int, count: int, change: Change | None, workers: int) -> list[Finding]:
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        rows = []
        for number, label in enumerate(random.permutation(np.repeat(get_args(SyntheticLabel), count))):
            volume = make_synthetic_volume(label, random, difficulty=0.1)
            if change:
                volume = change(volume, label == "healthy")
            write_nifti(vary_storage(volume, random), folder / f"{number:03}.nii.gz")
            rows.append((f"s{number:03}", str(label), "synthetic", f"{number:03}.nii.gz"))
        write_table(folder / "list.csv", ("subject", "label", "source", "t1ce"), rows)
        settings = PreprocessConfig(spacing=(8.0, 8.0, 8.0))
        query = CohortQuery(sources=(folder / "list.csv",), contrasts=settings.contrasts)
        preprocess_cohort(query, folder / "preprocessed", settings, skull_strip="none", workers=workers)
        cohort = read_prepared_cohort(folder / "preprocessed")
        splits = holdout_splits(cohort.subjects, cohort.labels, seed=seed)
        return find_confounds(cohort, splits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=10)
    parser.add_argument("--count", type=int, default=30, help="volumes of each class")
    parser.add_argument("--seed", type=int, default=100, help="of the first cohort")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    for name, change in PLANTED.items():
        verdicts: dict[str, Counter[str]] = {}
        scores: dict[str, list[float]] = {}
        for seed in range(options.seed, options.seed + options.cohorts):
            for finding in audit_cohort(seed, options.count, change, options.workers):
                verdicts.setdefault(finding.name, Counter())[finding.verdict] += 1
                scores.setdefault(finding.name, []).append(finding.score)
        print(f"planted: {name}; {options.cohorts} synthetic cohorts of 3 × {options.count}", flush=True)
        for kind, counts in verdicts.items():
            told = ", ".join(f"{word} {counts[word]}" for word in ("found", "faint", "nothing"))
            print(f"  {kind}: {told}; best class told at {min(scores[kind]):.2f} to {max(scores[kind]):.2f}")


if __name__ == "__main__":
    main()
