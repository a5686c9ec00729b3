"""Does training learn? Synthetic lesions in real brains: every number that comes out of this says synthetic.

    python scripts/bench_learning.py HEADS [--minutes 40] [--json OUT] [--work FOLDER]

HEADS holds stripped or whole T1 heads `<name>_T1.nii.gz` of healthy people, each with a mask `<name>_T1_DLMUSE.nii.gz`
that is above 0 in the brain. Each head appears three times: as it is, with an LGG-like and with an HGG-like lesion, all
three on one side of every split, so that nothing but the lesion tells the class; the audit of `ssclf cv` looks whether
that is so. Three divisions of the heads, 70 to 30, are trained and scored once each.

What is trained is what `ssclf train` would choose, or what --preset, --model and --set say. A recipe is chosen with
--inner, which scores a part of the first division's training heads, with lesions of another seed.

--subjects N trains on N heads of each division alone, as a small hospital would. With --pretrain, `ssclf pretrain`
comes first, on the healthy volumes of those training heads that are left over then, and its weights are where training
starts: no head of it is trained on later or tested.

Stopped at any point, the same command goes on. --minutes is the most that a division may take on this machine, however
long the recipe would go on: time it alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ssclf.config import Architecture, Plane, PreprocessConfig, Preset, TrainConfig
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
from ssclf.learning.finetuning import Start
from ssclf.workflows.audit import find_confounds
from ssclf.workflows.export import open_start
from ssclf.workflows.lesions import with_lesions
from ssclf.workflows.preprocess import preprocess_cohort
from ssclf.workflows.recipe import choose_recipe
from ssclf.workflows.train import Machine, Watch, train

HEAD, MASK = "_T1.nii.gz", "_T1_DLMUSE.nii.gz"
LABELS = get_args(SyntheticLabel)


def draw_cohort(
    heads: Path,
    folder: Path,
    spacing: float,
    seed: int,
    *,
    plane: Plane = "axial",
    labels: Sequence[SyntheticLabel] = LABELS,
) -> PreparedCohort:
    """Every head with each of the labels, preprocessed; what is there already stays. Lesions are kept in `lesions/`."""
    prepared = folder / "preprocessed"
    if not is_prepared(prepared):
        files = sorted(heads.glob(f"*{HEAD}"))
        if not files:
            raise SystemExit(f"{heads}: expected heads named *{HEAD}, found none.")
        rows = []
        for number, path in enumerate(files):
            name = path.name.removesuffix(HEAD)
            brain = stripped(read_nifti(path), read_nifti(path.with_name(name + MASK)))
            for label in labels:
                random = np.random.default_rng([seed, number, LABELS.index(label)])
                volume, lesion = insert_lesion(brain, label, random)
                write_nifti(volume, folder / "volumes" / f"{name}_{label}.nii.gz")
                if label != "healthy":
                    mask = Volume(lesion[None].astype(np.float32), volume.affine)
                    write_nifti(mask, folder / "lesions" / f"{name}_{label}.nii.gz")
                rows.append((f"{name}_{label}", label, "synthetic lesions", f"volumes/{name}_{label}.nii.gz"))
        write_table(folder / "manifest.csv", ("subject", "label", "source", "t1"), rows)
        config = PreprocessConfig(spacing=(spacing,) * 3, crop="brain", contrasts=("t1",), plane=plane)
        query = CohortQuery(sources=(folder / "manifest.csv",), contrasts=config.contrasts, min_classes=0)
        preprocess_cohort(query, prepared, config, skull_strip="none", workers=2)
    return read_prepared_cohort(prepared, min_classes=0)


def stripped(head: Volume, mask: Volume) -> Volume:
    """Nothing but the brain, above 0 in all of it."""
    inside = mask.data > 0
    smallest = np.float32(1e-3 * head.data.max())
    return Volume(np.where(inside, np.maximum(head.data, smallest), 0).astype(np.float32), head.affine)


def head_of(subject: str) -> str:
    return subject.rpartition("_")[0]


@dataclass(frozen=True)
class Division:
    """Heads by what they are for; `spare` ones are for pretraining alone."""

    train: Sequence[str]
    test: Sequence[str]
    spare: Sequence[str] = ()

    def split(self, cohort: PreparedCohort) -> Split:
        train, test = (
            tuple(sample.key for sample in cohort.samples if head_of(sample.subject) in heads)
            for heads in (self.train, self.test)
        )
        return Split(train=train, test=test)


def divide(cohort: PreparedCohort, count: int, *, inner: bool, subjects: int | None) -> list[Division]:
    """Divisions of the heads, 70 to 30; `inner` divides the training heads of the first one once more."""
    heads = sorted({head_of(sample.subject) for sample in cohort.samples})
    divisions = []
    for number in range(1 if inner else count):
        rest = list(np.random.default_rng(number).permutation(heads))
        for _ in range(2 if inner else 1):
            test, rest = rest[: round(0.3 * len(rest))], rest[round(0.3 * len(rest)) :]
        divisions.append(Division(rest[:subjects], test, rest[len(rest[:subjects]) :]))
    return divisions


def settings_of(options: argparse.Namespace, cohort: PreparedCohort, split: Split) -> TrainConfig:
    """What `ssclf train` would choose for the training volumes, and what was said by hand."""
    given = dict(options.set)
    if options.model:
        given["architecture"] = options.model
    if options.preset == "paper":
        return TrainConfig.preset("paper", **given)
    known = replace(cohort, samples=tuple(cohort.select(split.train)))
    recipe = choose_recipe(known, {"holdout": 0.0, **given}, "cpu")
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


def go_on(
    run: Path,
    cohort: PreparedCohort,
    split: Split,
    choose: Callable[[], TrainConfig],
    *,
    workers: int,
    start: Start | None = None,
) -> None:
    """Train until the run is finished; `choose` is asked where it has not begun.

    Raises:
        SystemExit: a signal came; the run is saved.
    """
    begun = (run / CONFIG).is_file()
    if begun and is_finished(run):
        return
    result = train(
        cohort.folders, run, read_config(run) if begun else choose(), split=split, resume=begun, start=start,
        machine=Machine(device="cpu", workers=workers),
    )  # fmt: skip
    if result.interrupted:
        raise SystemExit(f"{run}: saved; the same command goes on")


def pretrained(
    options: argparse.Namespace, run: Path, cohort: PreparedCohort, heads: Sequence[str], config: TrainConfig
) -> Start:
    """Weights of `ssclf pretrain` on the healthy volumes of some heads."""
    lesions = with_lesions(cohort)
    split = Split(tuple(s.key for s in lesions.samples if head_of(s.subject) in heads))
    if not split.train:
        raise SystemExit("--pretrain: expected heads that --subjects leaves over, found none")

    def choose() -> TrainConfig:
        known = replace(lesions, samples=tuple(lesions.select(split.train)))
        given = {name: getattr(config, name) for name in ("architecture", "precision", "channels_last")}
        given |= {"lesions": True, "holdout": 0.0}
        recipe = choose_recipe(known, given, "cpu").config
        return within(options.minutes, cohort, split, recipe, options.workers)

    go_on(run, cohort, split, choose, workers=options.workers)
    return open_start(run)


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
    parser.add_argument("--subjects", type=int, help="heads that train, of each division; default: all")
    parser.add_argument(
        "--pretrain",
        action="store_true",
        help="begin with `ssclf pretrain` on the heads that --subjects leaves",
    )
    parser.add_argument("--plane", choices=get_args(Plane), default="axial", help="of the slices")
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
    grid = f"{options.spacing:g}mm" + ("" if options.plane == "axial" else f"-{options.plane}")
    draw = partial(draw_cohort, options.heads, spacing=options.spacing, seed=seed, plane=options.plane)
    cohort = draw(options.work / f"lesions-{seed}-{grid}")
    divisions = divide(cohort, options.splits, inner=options.inner, subjects=options.subjects)
    splits = [division.split(cohort) for division in divisions]
    print(
        f"synthetic lesions in real brains: {len(cohort.samples)} volumes at {options.spacing:g} mm; nothing of this "
        "is about patients"
    )
    findings = {f.name: f.score for f in find_confounds(cohort, splits)}
    print("audit, 0.5 is chance:", ", ".join(f"{name} {value:.2f}" for name, value in findings.items()))
    healthy = draw(options.work / f"healthy-{grid}", labels=("healthy",)) if options.pretrain else None
    folder = options.work / f"{options.name}-{seed}{'-inner' if options.inner else ''}"
    folds, each, seconds = [], [], []
    for number, (division, split) in enumerate(zip(divisions, splits, strict=True), 1):
        run = folder / str(number)
        began = time.monotonic()
        config = settings_of(options, cohort, split)
        start = None
        if healthy:
            first = options.work / f"pretrained-{config.architecture}-{options.subjects}-{grid}" / str(number)
            start = pretrained(options, first, healthy, division.spare, config)
        choose = partial(within, options.minutes, cohort, split, config, options.workers)
        go_on(run, cohort, split, choose, workers=options.workers, start=start)
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
            "config": vars(read_config(run)), "volumes": len(cohort.samples), "synthetic": "lesions in real brains",
        }  # fmt: skip
        with whole_file(options.json) as file:
            json.dump(found, file, indent=1, allow_nan=False)


if __name__ == "__main__":
    main()
