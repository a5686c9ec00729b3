"""Write a labelled cohort of synthetic volumes: NIfTI files in any orientation and data type, and a manifest."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import numpy as np

from ssclf.domain.synthetic import SyntheticLabel, make_synthetic_volume, vary_storage
from ssclf.io.records.tables import write_table
from ssclf.io.volumes.nifti import write_nifti

MANIFEST = "synthetic.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=30, help="volumes of each class")
    parser.add_argument("--difficulty", type=float, default=0.2, help="0 (clear lesions) to 1")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    manifest = options.folder / MANIFEST
    if manifest.exists():
        print(f"{manifest}: there already; remove {options.folder} to draw anew")
        return
    random = np.random.default_rng(options.seed)
    rows = []
    for number, label in enumerate(random.permutation(np.repeat(get_args(SyntheticLabel), options.count))):
        volume = make_synthetic_volume(label, random, difficulty=options.difficulty)
        name = f"synthetic-{number:03}.nii.gz"
        write_nifti(vary_storage(volume, random), options.folder / name)
        rows.append((f"synthetic-{number:03}", str(label), "synthetic", name))
    write_table(
        manifest, ("subject", "label", "source", "t1ce"), rows
    )  # last: its presence says that all are there
    print(f"{manifest}: {len(rows)} synthetic volumes")


if __name__ == "__main__":
    main()
