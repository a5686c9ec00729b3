"""Does training learn? Synthetic lesions in real brains: every number that comes out of this says synthetic.

    python scripts/bench_learning.py HEADS [--minutes 40] [--json OUT] [--work FOLDER]

HEADS holds stripped or whole T1 heads `<name>_T1.nii.gz` of healthy people, each with a mask `<name>_T1_DLMUSE.nii.gz`
that is above 0 in the brain. Each head appears three times: as it is, with an LGG-like and with an HGG-like lesion, all
three on one side of every split, so that nothing but the lesion tells the class; the audit of `ssclf cv` looks whether
that is so. Three divisions of the heads, 70 to 30, are trained and scored once each.

What is trained is what `ssclf train` would choose, or what --preset, --model and --set say. A recipe is chosen with
--inner, which scores a part of the first division's training heads, with lesions of another seed.

Stopped at any point, the same command goes on. --minutes is the most that a division may take on this machine, however
long the recipe would go on: time it alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ssclf.config import Architecture, PreprocessConfig, Preset, TrainConfig
from ssclf.domain.comparison import FoldPredictions, bootstrap_scores, interval
from ssclf.domain.lesions import insert_lesion
from ssclf.domain.metrics import score_predictions
from ssclf.domain.scores import softmax
from ssclf.domain.splits import Split
from ssclf.domain.synthetic import SyntheticLabel
from ssclf.domain.volume import Volume
from ssclf.io.discovery.cohorts import CohortQuery
from ssclf.io.files import whole_file
from ssclf.io.records.preprocessed import PreparedCohort, is_prepared, read_prepared_cohort
from ssclf.io.records.tables import write_table
from ssclf.io.records.training_run import (
    CONFIG,
    is_finished,
    read_config,
    read_epochs,
    read_predictions,
)
from ssclf.io.volumes.nifti import read_nifti, write_nifti
from ssclf.learning.cost import thread_count
from ssclf.workflows.audit import find_confounds
from ssclf.workflows.preprocess import preprocess_cohort
from ssclf.workflows.recipe import choose_recipe
from ssclf.workflows.train import Machine, Watch, train

HEAD, MASK = "_T1.nii.gz", "_T1_DLMUSE.nii.gz"
LABELS = get_args(SyntheticLabel)


def draw_cohort(heads: Path, folder: Path, spacing: float, seed: int) -> PreparedCohort:
    """Every head three times, preprocessed; what is there already stays."""
    prepared = folder / "preprocessed"
    if not is_prepared(prepared):
        files = sorted(heads.glob(f"*{HEAD}"))
        if not files:
            raise SystemExit(f"{heads}: expected heads named *{HEAD}, found none.")
        rows = []
        for number, path in enumerate(files):
            name = path.name.removesuffix(HEAD)
            brain = stripped(read_nifti(path), read_nifti(path.with_name(name + MASK)))
            for kind, label in enumerate(LABELS):
                volume, _ = insert_lesion(brain, label, np.random.default_rng([seed, number, kind]))
                write_nifti(volume, folder / "volumes" / f"{name}_{label}.nii.gz")
                rows.append((f"{name}_{label}", label, "synthetic lesions", f"volumes/{name}_{label}.nii.gz"))
        write_table(folder / "manifest.csv", ("subject", "label", "source", "t1"), rows)
        config = PreprocessConfig(spacing=(spacing,) * 3, crop="brain", contrasts=("t1",))
        query = CohortQuery(sources=(folder / "manifest.csv",), contrasts=config.contrasts)
        preprocess_cohort(query, prepared, config, skull_strip="none", workers=2)
    return read_prepared_cohort(prepared)


def stripped(head: Volume, mask: Volume) -> Volume:
    """Nothing but the brain, above 0 in all of it."""
    inside = mask.data > 0
    smallest = np.float32(1e-3 * head.data.max())
    return Volume(np.where(inside, np.maximum(head.data, smallest), 0).astype(np.float32), head.affine)


def head_of(subject: str) -> str:
    return subject.rpartition("_")[0]


def divide(cohort: PreparedCohort, count: int, *, inner: bool) -> list[Split]:
    """Divisions of the heads, 70 to 30; `inner` divides the training heads of the first one once more."""
    heads = sorted({head_of(sample.subject) for sample in cohort.samples})
    splits = []
    for number in range(count):
        order = list(np.random.default_rng(number).permutation(heads))
        test, rest = order[: round(0.3 * len(order))], order[round(0.3 * len(order)) :]
        if inner:
            test, rest = rest[: round(0.3 * len(rest))], rest[round(0.3 * len(rest)) :]
        keys = {
            part: tuple(s.key for s in cohort.samples if head_of(s.subject) in chosen)
            for part, chosen in (("train", rest), ("test", test))
        }
        splits.append(Split(**keys))
    return splits[:1] if inner else splits


def settings_of(options: argparse.Namespace, cohort: PreparedCohort) -> TrainConfig:
    given = {"holdout": 0.3, **dict(options.set)}
    if options.model:
        given["architecture"] = options.model
    if options.preset == "paper":
        return TrainConfig.preset("paper", **given)
    recipe = choose_recipe(cohort, given, "cpu")
    for reason in recipe.reasons:
        print(reason)
    return recipe.config


def within(
    minutes: float, cohort: PreparedCohort, split: Split, config: TrainConfig, workers: int
) -> TrainConfig:
    """The same with as many epochs as fit; how long one takes is tried."""
    seconds: list[float] = []
    trial = replace(config, epochs=2, validation=0.0, patience=0)
    with tempfile.TemporaryDirectory() as scratch:
        train(
            cohort.folders, Path(scratch) / "run", trial, split=Split(split.train),
            machine=Machine(device="cpu", workers=workers), watch=Watch(on_epoch=lambda e: seconds.append(e.seconds)),
        )  # fmt: skip
    fit = max(int(0.95 * 60 * minutes / min(seconds)), 1)
    print(f"an epoch takes {min(seconds):.1f} s; {min(fit, config.epochs)} of {config.epochs} are trained")
    return replace(config, epochs=min(fit, config.epochs))


def score(run: Path, class_names: Sequence[str]) -> FoldPredictions:
    rows = [row for row in read_predictions(run, class_names) if row.part == "test"]
    return FoldPredictions(
        keys=tuple(row.path for row in rows),
        subjects=tuple(head_of(row.subject) for row in rows),  # drawn again with all that was made of them
        targets=np.array([class_names.index(row.label) for row in rows]),
        logits=np.array([row.logits for row in rows]),
    )


def show_curve(run: Path) -> None:
    epochs = read_epochs(run)
    for row in epochs[:: max(len(epochs) // 10, 1)]:
        print(f"  epoch {row['epoch']:.0f}: loss {row['train_loss']:.3f}")


def pair(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heads", type=Path)
    parser.add_argument("--minutes", type=float, default=40, help="the most that a division may take")
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-learning"), help="volumes and runs")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument(
        "--inner", action="store_true", help="score training heads of the first division instead"
    )
    parser.add_argument("--lesions", type=int, help="seed of the lesions; default: 2, with --inner 0")
    parser.add_argument("--spacing", type=float, default=6, help="of the network's input in mm")
    parser.add_argument("--preset", choices=get_args(Preset), default="default")
    parser.add_argument("--model", choices=get_args(Architecture))
    parser.add_argument("--set", type=pair, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--name", default="default", help="of the recipe, for its folder and the result")
    return parser.parse_args()


def main() -> None:
    options = parse()
    seed = (0 if options.inner else 2) if options.lesions is None else options.lesions
    cohort = draw_cohort(
        options.heads, options.work / f"lesions-{seed}-{options.spacing:g}mm", options.spacing, seed
    )
    splits = divide(cohort, options.splits, inner=options.inner)
    print(
        f"synthetic lesions in real brains: {len(cohort.samples)} volumes at {options.spacing:g} mm; nothing of this "
        "is about patients"
    )
    findings = {f.name: f.score for f in find_confounds(cohort, splits)}
    print("audit, 0.5 is chance:", ", ".join(f"{name} {value:.2f}" for name, value in findings.items()))
    recipe = settings_of(options, cohort)
    folds, each, seconds = [], [], []
    for number, split in enumerate(splits, 1):
        run = options.work / f"{options.name}-{seed}{'-inner' if options.inner else ''}" / str(number)
        begun = (run / CONFIG).is_file()
        config = (
            read_config(run) if begun else within(options.minutes, cohort, split, recipe, options.workers)
        )
        began = time.monotonic()
        if not (begun and is_finished(run)):
            result = train(
                cohort.folders, run, config, split=split, resume=begun,
                machine=Machine(device="cpu", workers=options.workers),
            )  # fmt: skip
            if result.interrupted:
                raise SystemExit(f"{run}: saved; the same command goes on")
        seconds.append(time.monotonic() - began)
        fold = score(run, cohort.class_names)
        folds.append(fold)
        each.append(score_predictions(fold.targets, softmax(fold.logits), cohort.class_names).macro_f1)
        show_curve(run)
        print(
            f"division {number}: held-out macro F1 {each[-1]:.3f}, {len(set(fold.subjects))} heads, {seconds[-1]:.0f} s"
        )
    low, high = interval(bootstrap_scores(folds, len(cohort.class_names))["macro_f1"])
    mean = float(np.mean(each))
    print(
        f"{options.name}: macro F1 {mean:.3f} (95 % of redrawn heads: {low:.3f} to {high:.3f}), "
        f"{thread_count()} threads"
    )
    if options.json:
        found = {
            "macro_f1": mean, "interval": [low, high], "each": each, "seconds": seconds, "audit": findings,
            "config": vars(config), "volumes": len(cohort.samples), "synthetic": "lesions in real brains",
        }  # fmt: skip
        with whole_file(options.json) as file:
            json.dump(found, file, indent=1, allow_nan=False)


if __name__ == "__main__":
    main()
