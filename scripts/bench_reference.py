"""What the reference model does with real brains that had no part in making it. To measure, never to tune.

    python scripts/bench_reference.py BUNDLE DATA [--work FOLDER] [--maps]

DATA holds `glioma/` (patients with `_T1`, `_T1ce` and `_mask`, and `cases.csv`), `healthy_ibsr/`, `brats18/` and single
heads, as their README says. All go through `ssclf predict`; brains of patients are found once, by the same extraction,
and kept, since patients are asked about several times. Every table is Markdown, with counts beside rates and one source
beside another, never pooled; no picture is made. Each look at these data is noted, with its date, in
docs/reference-model.md.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from ssclf.config import MapMethod, PredictConfig
from ssclf.domain.volume import Volume
from ssclf.io.extraction.deepbet import BrainExtractor
from ssclf.io.extraction.engines import extract_brain
from ssclf.io.models.bundle import open_bundle
from ssclf.io.volumes.nifti import read_nifti, write_nifti
from ssclf.learning.extraction_export import cached_brain_extraction
from ssclf.workflows.predict import predict

HEALTHY, HGG, LGG = "healthy", "HGG", "LGG"
#: Other scanners' single brains, healthy as far as their sources say, and one glioblastoma.
SINGLE = (
    ("head/niivue_otsu_T1_head.nii.gz", HEALTHY),
    ("dicom/datalad_T1w_384_slices.zip", HEALTHY),
    ("healthy_stripped/MNI152_2009_template_brain.nii.gz", HEALTHY),
    ("healthy_stripped/freesurfer_norm.mgz", HEALTHY),
    ("head/TCGA-02-0003_T1Gd_head.nrrd", HGG),
)


@dataclass(frozen=True)
class Answer:
    """Of one volume: its class and the probabilities of the three; `map` is a path where maps were made."""

    called: str
    healthy: float
    hgg: float
    lgg: float
    flags: str
    map: str

    @property
    def tumour(self) -> bool:
        return self.called != HEALTHY


def ask(
    bundle: Path, files: Sequence[Path], work: Path, *, strip: str = "auto", maps: MapMethod | None = None
) -> dict[Path, Answer]:
    """Classify files; what fails ends the bench, since a table without it would flatter."""
    names = open_bundle(bundle).spec.class_names
    where = {name: names.index(name) for name in (HEALTHY, HGG, LGG)}
    config = PredictConfig(skull_strip=strip, workers=1, map_method=maps or "cam")
    work.mkdir(parents=True, exist_ok=True)
    places = work / "maps" if maps else None
    rows = predict(files, work / "results.csv", [bundle], config, maps=places).rows
    by_name = {Path(row.path).name: row for row in rows} if len(files) > 1 else {files[0].name: rows[0]}
    if len(rows) != len(files) or any(row.status != "ok" for row in rows):
        raise SystemExit(
            f"{work}: {[(row.path, row.error) for row in rows if row.status != 'ok'] or 'rows are missing'}"
        )
    found = {}
    for path in files:
        row = by_name[path.name]
        p = [float(row.probabilities[where[name]]) for name in (HEALTHY, HGG, LGG)]
        place = str(places / row.extra["map"]) if places else ""
        found[path] = Answer(row.prediction, p[0], p[1], p[2], ";".join(row.flags), place)
    return found


def stripped(path: Path, folder: Path) -> Path:
    """The brain of a head, as `ssclf predict` would find it."""
    out = folder / path.name
    if not out.is_file():
        head = read_nifti(path)
        brain = extract_brain(head, "deepbet", extractor=BrainExtractor(cached_brain_extraction()))
        least = np.float32(1e-3 * head.data.max())
        data = np.where(brain, np.maximum(head.data, least), 0).astype(np.float32)
        write_nifti(Volume(data, head.affine), out)
    return out


def auc_with_interval(ill: Sequence[float], well: Sequence[float]) -> str:
    """Area under the curve, and the middle 95 % of that of redrawn patients and healthy people."""
    rng = np.random.default_rng(0)

    def area(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(roc_auc_score([1] * len(a) + [0] * len(b), [*a, *b]))

    one, two = np.array(ill), np.array(well)
    many = [area(rng.choice(one, one.size), rng.choice(two, two.size)) for _ in range(2000)]
    low, high = np.quantile(many, (0.025, 0.975))
    return f"{area(one, two):.3f} ({low:.3f} to {high:.3f})"


def share(count: int, of: int) -> str:
    """A share with its counts, and Wilson's interval."""
    if not of:
        return "none"
    z, p = 1.96, count / of
    middle, half = p + z**2 / (2 * of), z * np.sqrt(p * (1 - p) / of + z**2 / (4 * of**2))
    low, high = (middle - half) / (1 + z**2 / of), (middle + half) / (1 + z**2 / of)
    return f"{count} of {of} ({100 * p:.0f} %; {100 * low:.0f} to {100 * high:.0f})"


def mirrored(head: Volume, tumour: Volume) -> tuple[Volume, float]:
    """The brain with the tumour replaced by the other side's tissue, and which share of that is tumour as well.

    The middle plane is where a shifted mirror image is most like the brain itself.
    """
    from scipy import ndimage

    data, mask = head.data[0].astype(np.float32), tumour.data[0] > 0
    axis = int(np.abs(head.affine[0, :3]).argmax())
    half = data.shape[axis] // 2

    def flipped(field: NDArray[np.float32], shift: int) -> NDArray[np.float32]:
        return np.roll(np.flip(field, axis), shift, axis)

    shift = max(range(-half // 2, half // 2), key=lambda s: float((flipped(data, s) * data).sum()))
    wide = ndimage.binary_dilation(mask, iterations=2).astype(np.float32)
    weight = ndimage.gaussian_filter(wide, 0.7)
    other = flipped(mask.astype(np.float32), shift) > 0
    # each side at its own brightness: that of the ring around the tumour and of the mirror image there
    ring = ndimage.binary_dilation(mask, iterations=5) & (wide == 0) & (data > 0)
    source = flipped(data, shift)
    level = np.median(data[ring]) / max(float(np.median(source[ring])), 1e-6)
    replaced = data + weight * (np.float32(level) * source - data)
    replaced = np.where(data > 0, np.maximum(replaced, np.float32(1e-3 * data.max())), 0)  # the outline stays
    return Volume(replaced[None].astype(np.float32), head.affine), float((other & mask).sum() / mask.sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/bench-reference"))
    parser.add_argument("--maps", action="store_true", help="where maps point, too: slow")
    options = parser.parse_args()
    bundle, data, work = options.bundle, options.data, options.work
    with (data / "glioma" / "cases.csv").open(encoding="utf-8") as file:
        cases = {row["subject"].replace("-", "_"): row["grade"] for row in csv.DictReader(file)}
    healthy = ask(bundle, sorted((data / "healthy_ibsr").glob("*.nii.gz")), work / "ibsr", strip="none")
    well = [1 - answer.healthy for answer in healthy.values()]
    called_well = sum(not answer.tumour for answer in healthy.values())
    print(
        f"healthy_ibsr called healthy: {share(called_well, len(healthy))}; tumour score (1 - p of healthy): "
    )
    print(", ".join(f"{path.name.split('.')[0]} {1 - a.healthy:.2f}" for path, a in healthy.items()))
    print("\n| glioma | AUC against healthy_ibsr (95 %) | called tumour | of G2 | of G3 | AUC G3 against G2 | "
          "of those called tumour HGG: G2 | G3 |\n|" + "---|" * 8)  # fmt: skip
    for contrast in ("T1ce", "T1"):
        files = [stripped(data / "glioma" / f"{name}_{contrast}.nii.gz", work / "brains") for name in cases]
        answers = ask(bundle, files, work / contrast, strip="none")
        print(
            f"| {contrast} | {_glioma_row(dict(zip(cases, answers.values(), strict=True)), cases, well)} |",
            flush=True,
        )
        _replaced(bundle, data, work, contrast, dict(zip(cases, answers.values(), strict=True)))
        if options.maps:
            _maps(
                bundle,
                data,
                work,
                contrast,
                [n for n, a in zip(cases, answers.values(), strict=True) if a.tumour],
            )
    _one_by_one(bundle, data, work, well)


def _glioma_row(answers: dict[str, Answer], grades: dict[str, str], well: Sequence[float]) -> str:
    of = {g: [answers[n] for n in answers if grades[n] == g] for g in ("G2", "G3")}
    score = {g: [a.hgg / (a.hgg + a.lgg) for a in of[g]] for g in of}
    both = [*of["G2"], *of["G3"]]
    cells = [
        auc_with_interval([1 - a.healthy for a in both], well),
        share(sum(a.tumour for a in both), len(both)),
        *(share(sum(a.tumour for a in of[g]), len(of[g])) for g in of),
        auc_with_interval(score["G3"], score["G2"]),
        *(share(sum(a.called == HGG for a in of[g]), sum(a.tumour for a in of[g])) for g in of),
    ]
    return " | ".join(cells)


def _replaced(bundle: Path, data: Path, work: Path, contrast: str, answers: dict[str, Answer]) -> None:
    """The same patients with the tumour replaced by the other side's tissue."""
    folder, files = work / f"replaced-{contrast}", {}
    for name in answers:
        head = read_nifti(work / "brains" / f"{name}_{contrast}.nii.gz")
        without, overlap = mirrored(head, read_nifti(data / "glioma" / f"{name}_mask.nii.gz"))
        if overlap <= 0.1:  # else the other side is ill too
            files[name] = folder / f"{name}.nii.gz"
            write_nifti(without, files[name])
    found = ask(bundle, list(files.values()), folder / "results", strip="none")
    before, after = [1 - answers[name].healthy for name in files], [1 - a.healthy for a in found.values()]
    ill = [name for name in files if answers[name].tumour]
    turned = sum(not found[files[name]].tumour for name in ill)
    print(
        f"\n{contrast}, tumour replaced by mirrored tissue ({len(answers) - len(files)} left out, whose tumour crosses "
        f"the middle): of those called tumour, healthy then: {share(turned, len(ill))}; tumour score, median: "
        f"{np.median(before):.2f} → {np.median(after):.2f}, lower in "
        f"{share(int(np.less(after, before).sum()), len(after))}\n",
        flush=True,
    )


def _maps(bundle: Path, data: Path, work: Path, contrast: str, names: Sequence[str]) -> None:
    """Whether the strongest voxel of a map lies in the tumour."""
    for method in get_args(MapMethod):
        files = [work / "brains" / f"{name}_{contrast}.nii.gz" for name in names]
        hits, near, chances = 0, 0, []
        answers = ask(bundle, files, work / f"{contrast}-{method}", strip="none", maps=method)
        for name, answer in zip(names, answers.values(), strict=True):
            heat = read_nifti(Path(answer.map)).data[0]
            volume = read_nifti(data / "glioma" / f"{name}_mask.nii.gz")
            tumour, brain = volume.data[0] > 0, heat != 0
            peak = np.unravel_index(np.where(brain, heat, -np.inf).argmax(), heat.shape)
            away = (np.argwhere(tumour) - peak) * volume.spacing
            hits += bool(tumour[peak])
            near += bool(np.sqrt((away**2).sum(axis=1)).min() <= 12)
            chances.append(float(tumour[brain].mean()))
        print(
            f"{contrast}, {method}: peak in the tumour: {share(hits, len(names))}; within 12 mm of it: "
            f"{share(near, len(names))}; a random voxel of the brain: {100 * np.mean(chances):.0f} %",
            flush=True,
        )


def _one_by_one(bundle: Path, data: Path, work: Path, well: Sequence[float]) -> None:
    """BraTS' four cases and single heads."""
    files = {path: path.parts[-3] for path in sorted(data.glob("brats18/*/*/*_t1*.nii.gz"))}
    files |= {data / name: label for name, label in SINGLE}
    print("\n| volume | truth | called | tumour score | HGG among tumour | flags |\n|" + "---|" * 6)
    for path, label in files.items():
        stripped = "brats18" in path.parts or "healthy_stripped" in path.parts
        (answer,) = ask(
            bundle, [path], work / "single" / path.name, strip="none" if stripped else "auto"
        ).values()
        print(
            f"| {path.name.split('.')[0]} | {label} | {answer.called} | {1 - answer.healthy:.2f} | "
            f"{answer.hgg / (answer.hgg + answer.lgg):.2f} | {answer.flags} |",
            flush=True,
        )
    print(f"\nhealthy_ibsr, for comparison: tumour score {min(well):.2f} to {max(well):.2f}")


if __name__ == "__main__":
    main()
