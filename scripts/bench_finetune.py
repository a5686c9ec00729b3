"""Few subjects: from the reference model's weights, or from scratch? To measure only; no network is kept.

    python scripts/bench_finetune.py heads HEADS... [--work FOLDER] [--steps 400]
    python scripts/bench_finetune.py glioma DATA [--work FOLDER] [--steps 400]

`heads` is the bench of learning: SYNTHETIC lesions in HEADS, put there by another program than the reference model's.
What is tested are the heads that had no part in training that model; three draws of N others train. HEADS are the
folders that scripts/train_reference.py had. `glioma` is WHO grade 2 against 3 on T1 after contrast agent, DATA as
scripts/bench_reference.py wants it: five parts of the patients, each tested once by a network that N of the others
trained, drawn so that both grades are there.

Three ways to the same number of steps: from scratch, from the reference model's weights, and its last layer alone (a
linear probe). Every other setting is the default preset's for `small`. Stopped at any point, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from bench_learning import draw_cohort, go_on, head_of
from bench_reference import auc_with_interval, stripped
from sklearn.model_selection import StratifiedKFold, train_test_split
from train_reference import Parts, find_heads

from ssclf.config import PreprocessConfig, TrainConfig
from ssclf.domain.comparison import FoldPredictions, bootstrap_scores, interval
from ssclf.domain.metrics import score_predictions
from ssclf.domain.scores import softmax
from ssclf.domain.splits import Split
from ssclf.io.discovery.cohorts import CohortQuery
from ssclf.io.files import whole_file
from ssclf.io.records.preprocessed import PreparedCohort, is_prepared, read_prepared_cohort
from ssclf.io.records.tables import write_table
from ssclf.io.records.training_run import read_predictions
from ssclf.workflows.export import open_start
from ssclf.workflows.preprocess import preprocess_cohort

COUNTS = (10, 20, 40)
#: The way to begin, and how many stages keep the weights that it brings.
WAYS = {"from scratch": None, "from the reference": 0, "its last layer alone": 5}
DRAWS, FOLDS, SPACING = 3, 5, 6.0
GRADES = {"G2": "LGG", "G3": "HGG"}


@dataclass(frozen=True)
class Trial:
    """Subjects that train and that test, `count` of the first; `number` tells trials of one count apart."""

    count: int
    number: int
    train: frozenset[str]
    test: frozenset[str]


def heads_trials(cohort: PreparedCohort, folders: Sequence[Path]) -> Iterator[Trial]:
    heads = {head_of(sample.subject) for sample in cohort.samples}
    test = heads - set(Parts.of(list(find_heads(folders))).train)
    for count in COUNTS:
        for number in range(DRAWS):
            chosen = np.random.default_rng([count, number]).choice(sorted(heads - test), count, replace=False)
            yield Trial(count, number, frozenset(map(str, chosen)), frozenset(test))


def glioma_trials(cohort: PreparedCohort) -> Iterator[Trial]:
    subjects = np.array([sample.subject for sample in cohort.samples])
    labels = np.array([sample.label for sample in cohort.samples])
    parts = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(subjects, labels))
    for count in COUNTS:
        for number, (chosen, test) in enumerate(parts):
            if count < len(chosen):
                chosen, _ = train_test_split(
                    chosen, train_size=count, stratify=labels[chosen], random_state=number
                )
            yield Trial(count, number, frozenset(subjects[chosen]), frozenset(subjects[test]))


def glioma_cohort(data: Path, folder: Path) -> PreparedCohort:
    """The patients' brains after contrast agent, found as `ssclf predict` finds them."""
    prepared = folder / "preprocessed"
    if not is_prepared(prepared):
        rows = []
        with (data / "glioma" / "cases.csv").open(encoding="utf-8") as file:
            for case in csv.DictReader(file):
                name = case["subject"].replace("-", "_")
                brain = stripped(data / "glioma" / f"{name}_T1ce.nii.gz", folder / "brains")
                rows.append((name, GRADES[case["grade"]], "TCGA-LGG", f"brains/{brain.name}"))
        write_table(folder / "manifest.csv", ("subject", "label", "source", "t1"), rows)
        config = PreprocessConfig(spacing=(SPACING,) * 3, crop="brain", contrasts=("t1",))
        query = CohortQuery(sources=(folder / "manifest.csv",), contrasts=config.contrasts, min_classes=0)
        preprocess_cohort(query, prepared, config, skull_strip="none", workers=1)
    return read_prepared_cohort(prepared, min_classes=0)


def learn(
    cohort: PreparedCohort, split: Split, way: str, steps: int, seed: int, run: Path
) -> FoldPredictions:
    """Train, score the test part, and keep nothing else."""
    freeze = WAYS[way]
    found = run.with_suffix(".json")
    if not found.is_file():
        config = TrainConfig.preset(
            "default", architecture="small", holdout=0.0, precision="bf16-mixed-cpu", channels_last=True, seed=seed,
            freeze=freeze or 0,
        )  # fmt: skip
        config = replace(config, epochs=-(-steps // -(-len(split.train) // config.batch_size)))
        start = None if freeze is None else open_start(Path("reference"))
        go_on(run, cohort, split, lambda: config, workers=0, start=start)
        rows = [row for row in read_predictions(run, cohort.class_names) if row.part == "test"]
        with whole_file(found) as file:
            json.dump([(row.path, row.subject, row.label, row.logits) for row in rows], file)
        shutil.rmtree(run)
    rows = json.loads(found.read_text(encoding="utf-8"))
    return FoldPredictions(
        keys=tuple(path for path, *_ in rows),
        subjects=tuple(subject for _, subject, *_ in rows),
        targets=np.array([cohort.class_names.index(label) for _, _, label, _ in rows]),
        logits=np.array([logits for *_, logits in rows]),
    )


def pooled(trials: Iterable[FoldPredictions]) -> FoldPredictions:
    """As if one network had answered: probabilities, since logits of several networks have no common scale."""
    found = list(trials)
    return FoldPredictions(
        keys=tuple(key for one in found for key in one.keys),
        subjects=tuple(subject for one in found for subject in one.subjects),
        targets=np.concatenate([one.targets for one in found]),
        logits=np.log(np.maximum(np.concatenate([softmax(one.logits) for one in found]), 1e-12)),
    )


def macro_f1(folds: Sequence[FoldPredictions], names: Sequence[str]) -> str:
    each = [score_predictions(fold.targets, softmax(fold.logits), names).macro_f1 for fold in folds]
    low, high = interval(bootstrap_scores(list(folds), len(names))["macro_f1"])
    return f"{np.mean(each):.3f} ({low:.3f} to {high:.3f})"


def auc(fold: FoldPredictions, names: Sequence[str]) -> str:
    score = fold.logits[:, names.index("HGG")] - fold.logits[:, names.index("LGG")]
    high = fold.targets == names.index("HGG")
    return auc_with_interval(list(score[high]), list(score[~high]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=("heads", "glioma"))
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-finetune"))
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    folder = options.work / options.which
    if options.which == "heads":
        cohort = draw_cohort(options.data[0], folder, SPACING, seed=2)
        trials = list(heads_trials(cohort, options.data))
    else:
        cohort = glioma_cohort(options.data[0], folder)
        trials = list(glioma_trials(cohort))
    names = cohort.class_names
    keys: dict[str, list[str]] = {}
    for sample in cohort.samples:
        subject = head_of(sample.subject) if options.which == "heads" else sample.subject
        keys.setdefault(subject, []).append(sample.key)
    print(
        f"{len(cohort.samples)} volumes, {len(trials[0].test)} subjects tested by a network; {options.steps} steps"
    )
    print("| subjects that train | " + " | ".join(WAYS) + " |\n|" + "---|" * (len(WAYS) + 1))
    for count in COUNTS:
        cells = []
        for way in WAYS:
            folds = []
            for trial in (trial for trial in trials if trial.count == count):
                train_keys, test_keys = (
                    tuple(key for subject in sorted(subjects) for key in keys[subject])
                    for subjects in (trial.train, trial.test)
                )
                run = folder / f"{options.steps}-{count}-{trial.number}-{way.replace(' ', '-')}"
                split = Split(train=train_keys, test=test_keys)
                folds.append(learn(cohort, split, way, options.steps, trial.number, run))
            if options.which == "heads":
                cells.append(macro_f1(folds, names))
            else:
                together = pooled(folds)
                cells.append(f"AUC {auc(together, names)}, macro F1 {macro_f1([together], names)}")
        print(f"| {count} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
