"""Do maps show where? Synthetic lesions in real brains: every number that comes out of this says synthetic.

    python scripts/bench_maps.py RUN... [--count 20]

RUN is a finished division of `scripts/bench_learning.py`, in its work folder. Held-out volumes with a lesion go through
`ssclf predict --maps`, in the space of their scan, once for each way of making maps. Where the volume's own class is
predicted, the strongest voxel of its map lies in the lesion or not. Beside that share: that of random voxels of the
brain, and what a volume takes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np

from ssclf.config import MapMethod, PredictConfig
from ssclf.io.models.bundle import open_bundle
from ssclf.io.records.training_run import read_data, read_predictions
from ssclf.io.volumes.nifti import read_nifti
from ssclf.workflows.export import export_run
from ssclf.workflows.predict import PredictSummary, predict


def held_out(run: Path, class_names: tuple[str, ...], count: int | None) -> dict[Path, Path]:
    """Volumes of the test part that hold a lesion, and where it is."""
    data = read_data(run)
    assert data is not None, "a run of this version knows its data"
    drawn = Path(data.folders[0]).parent
    names = [
        f"{row.subject}.nii.gz"
        for row in read_predictions(run, class_names)
        if row.part == "test" and row.label != "healthy"
    ]
    return {drawn / "volumes" / name: drawn / "lesions" / name for name in names[:count]}


def hits(summary: PredictSummary, maps: Path, lesions: dict[Path, Path]) -> tuple[list[bool], list[float]]:
    """For each volume whose class was found: whether its peak lies in the lesion, and the lesion's share of it."""
    found, shares = [], []
    lesion_of = {volume.name: lesion for volume, lesion in lesions.items()}
    for row in summary.rows:
        name = Path(row.path).name
        if row.prediction != name.removesuffix(".nii.gz").rpartition("_")[2]:
            continue
        heat = read_nifti(maps / row.extra["map"]).data[0]
        lesion = read_nifti(lesion_of[name]).data[0] > 0
        brain = heat != 0
        peak = np.unravel_index(np.where(brain, heat, -np.inf).argmax(), heat.shape)
        found.append(bool(lesion[peak]))
        shares.append(float(lesion[brain].mean()))
    return found, shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--count", type=int, help="volumes of each run; default: all")
    options = parser.parse_args()
    print(
        "| maps | volumes of the class found | peak in the lesion | a random voxel | s a volume |\n"
        + "|"
        + "---|" * 5
    )
    for method in get_args(MapMethod):
        found: list[bool] = []
        shares: list[float] = []
        seconds: list[float] = []
        for run in options.runs:
            with tempfile.TemporaryDirectory() as scratch:
                work = Path(scratch)
                bundle = export_run(run, work / "bundle")
                lesions = held_out(run, open_bundle(bundle).spec.class_names, options.count)
                summary = predict(
                    list(lesions), work / "results.csv", [bundle],
                    PredictConfig(skull_strip="none", map_method=method, workers=1), maps=work / "maps",
                )  # fmt: skip
                more, chance = hits(summary, work / "maps", lesions)
                found += more
                shares += chance
                seconds += [row.seconds or 0.0 for row in summary.rows]
        print(
            f"| {method} | {len(found)} | {np.mean(found):.2f} | {np.mean(shares):.2f} | {np.median(seconds):.1f} |"
        )


if __name__ == "__main__":
    main()
