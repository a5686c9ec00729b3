"""From healthy heads to the reference model: lesions that a program put into them are all the disease it has seen.

    python scripts/train_reference.py HEADS... [--work runs/reference] [--name small] [--steps 3000]

HEADS are folders with whole T1 heads `<name>_T1.nii.gz` of healthy people, of IXI alone: a model that ships names its
source. Brains are found by our own extraction. Each head is seen several times, as other scanners would have stored it
(`ssclf.domain.generator.views`); each view goes through the preprocessing of `ssclf preprocess`, and `ssclf pretrain`'s
training puts lesions into what comes out. Twelve heads are held out: on volumes drawn of six of them networks are
compared, on those of the other six the chosen one is calibrated. No patient has a part in any of it.

Stopped at any point, the same command goes on. `log.md` in the work folder says what was done, and when.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssclf.config import PreprocessConfig, TrainConfig
from ssclf.domain.generator.draw import draw_brain
from ssclf.domain.generator.views import see_again
from ssclf.domain.geometry import reorient
from ssclf.domain.metrics import fit_temperature, score_predictions
from ssclf.domain.provenance import Calibration
from ssclf.domain.scores import softmax
from ssclf.domain.splits import Split
from ssclf.domain.volume import Mask, Volume
from ssclf.io.discovery.cohorts import CohortQuery
from ssclf.io.extraction.deepbet import BrainExtractor
from ssclf.io.extraction.engines import extract_brain
from ssclf.io.files import whole_folder
from ssclf.io.models.checksums import file_sha256
from ssclf.io.records.preprocessed import PreparedCohort, Sample, is_prepared
from ssclf.io.records.tables import write_table
from ssclf.io.records.training_run import CHOSEN, CONFIG, is_finished, read_config, read_record, write_record
from ssclf.io.volumes.nifti import read_nifti, read_written, write_nifti
from ssclf.learning.checkpoints import load_checkpoint, save_checkpoint
from ssclf.learning.extraction_export import cached_brain_extraction
from ssclf.workflows.export import ExportConfig, export_run, read_run
from ssclf.workflows.preprocess import preprocess_cohort
from ssclf.workflows.train import Machine, Watch, read_cohort, train

HEAD = "_T1.nii.gz"
SOURCE = "IXI"
#: Heads of either held-out part, and the seed that draws them.
HELD_OUT, SEED = 6, 18
#: Seeds of the volumes that networks are compared on and calibrated on, apart from those of any training; draws of each
#: view and class.
COMPARE, CALIBRATE, DRAWS = 1_000_001, 1_000_002, 4
#: Share of the healthy volumes drawn of held-out heads that the shipped thresholds call healthy.
SPECIFICITY = 0.95
HEALTHY, HGG, LGG = "healthy", "HGG", "LGG"


@dataclass(frozen=True)
class Parts:
    """Names of heads."""

    train: tuple[str, ...]
    compare: tuple[str, ...]
    calibrate: tuple[str, ...]

    @staticmethod
    def of(heads: Sequence[str]) -> Parts:
        order = [str(name) for name in np.random.default_rng(SEED).permutation(sorted(heads))]
        return Parts(
            train=tuple(order[2 * HELD_OUT :]),
            compare=tuple(order[:HELD_OUT]),
            calibrate=tuple(order[HELD_OUT : 2 * HELD_OUT]),
        )


class Log:
    """What was done, for people, on stdout and in a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __call__(self, text: str) -> None:
        line = f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M} {text}"
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"- {line}\n")


def find_heads(folders: Sequence[Path]) -> dict[str, Path]:
    found = {path.name.removesuffix(HEAD): path for folder in folders for path in folder.rglob(f"*{HEAD}")}
    if not found or not all(name.startswith(SOURCE) for name in found):
        raise SystemExit(
            f"{', '.join(map(str, folders))}: expected heads of IXI, named IXI*{HEAD}, found {sorted(found)[:3]}"
        )
    return dict(sorted(found.items()))


def heads_and_brains(heads: dict[str, Path], folder: Path) -> Iterator[tuple[str, Volume, Mask]]:
    """Each head with its brain mask, which our own extraction finds once."""
    extractor = BrainExtractor(cached_brain_extraction())
    for name, path in heads.items():
        head, file = read_nifti(path), folder / f"{name}_brain.nii.gz"
        if not file.is_file():
            found = extract_brain(head, "deepbet", extractor=extractor)
            write_nifti(Volume(found[None].astype(np.float32), head.affine), file)
        turned = reorient(head, "SAR")
        yield name, turned, reorient(read_nifti(file), "SAR").data[0] > 0


def prepare(heads: dict[str, Path], work: Path, spacing: float, views: int, log: Log) -> Path:
    """Network input of every view; a head's first view is the head as it is."""
    prepared, stored = work / f"preprocessed-{spacing:g}mm-{views}", work / f"views-{views}"
    if is_prepared(prepared):
        return prepared
    if not stored.is_dir():
        with whole_folder(stored) as folder:
            rows = []
            for number, (name, head, brain) in enumerate(heads_and_brains(heads, work / "brains")):
                for k in range(views):
                    least = np.float32(1e-3 * head.data.max())
                    plain = np.where(brain, np.maximum(head.data, least), 0).astype(np.float32)
                    seen = see_again(head, brain, (SEED, number, k)) if k else Volume(plain, head.affine)
                    write_nifti(seen, folder / f"{name}_{k}.nii")
                    rows.append((name, f"{k}", "healthy", SOURCE, f"{name}_{k}.nii"))
            write_table(folder / "views.csv", ("subject", "session", "label", "source", "t1"), rows)
        log(f"{len(rows)} views of {len(heads)} heads")
    config = PreprocessConfig(spacing=(spacing,) * 3, crop="brain", contrasts=("t1",))
    query = CohortQuery(sources=(stored / "views.csv",), contrasts=config.contrasts, min_classes=0)
    summary = preprocess_cohort(query, prepared, config, skull_strip="none", workers=1)
    log(f"{len(summary.rows)} views preprocessed at {spacing:g} mm, {len(summary.failures)} failed")
    return prepared


def keys_of(cohort: PreparedCohort, heads: Sequence[str]) -> tuple[str, ...]:
    return tuple(sample.key for sample in cohort.samples if sample.subject in heads)


def learn(prepared: Path, run: Path, parts: Parts, steps: int, seed: int, workers: int, log: Log) -> None:
    """What `ssclf pretrain --model small` does, on the heads that are not held out."""
    given = {
        "lesions": True,
        "holdout": 0.0,
        "precision": "bf16-mixed-cpu",
        "channels_last": True,
        "seed": seed,
    }
    config = TrainConfig.preset("default", architecture="small", **given)
    cohort = read_cohort(prepared, config)
    split = Split(keys_of(cohort, parts.train))
    config = TrainConfig.preset(
        "default",
        architecture="small",
        epochs=-(-steps // -(-len(split.train) // config.batch_size)),
        **given,
    )
    begun = (run / CONFIG).is_file()
    if begun and is_finished(run) and read_config(run).epochs >= config.epochs:
        return
    log(f"{run.name}: {len(split.train)} volumes of {len(parts.train)} heads, {config.epochs} epochs")
    result = train(
        prepared, run, config, split=split, resume=begun, machine=Machine(device="cpu", workers=workers),
        watch=Watch(on_epoch=lambda e: log(f"{run.name}: epoch {e.epoch}, loss {e.train_loss:.3f}, {e.seconds:.0f} s")),
    )  # fmt: skip
    if result.interrupted:
        raise SystemExit(f"{run}: saved; the same command goes on")


@dataclass(frozen=True)
class Drawn:
    """Volumes drawn of held-out heads, and what a network says of them.

    Attributes:
        logits: (N, K).
        targets: (N,) class indices.
        lesion_ml: (N,) size of the lesion, 0 without.
    """

    logits: NDArray[np.float64]
    targets: NDArray[np.int64]
    lesion_ml: NDArray[np.float64]


def score_drawn(run: Path, samples: Sequence[Sample], class_names: Sequence[str], seed: int) -> Drawn:
    """Draw each sample `DRAWS` times, and ask the network of a finished run."""
    network, _ = read_run(run, name=run.name)
    logits, targets, sizes = [], [], []
    for index, sample in enumerate(samples):
        brain = read_written(sample.path)
        label: Any = sample.label
        for number in range(DRAWS):
            volume, where = draw_brain(brain, label, (seed, number, index))
            with torch.inference_mode():
                logits.append(network(torch.from_numpy(volume.data[None]))[0].double().numpy())
            targets.append(class_names.index(sample.label))
            sizes.append(float(where.sum()) * brain.voxel_ml)
    return Drawn(np.array(logits), np.array(targets), np.array(sizes))


def fit_shift(drawn: Drawn, class_names: Sequence[str]) -> NDArray[np.float64]:
    """What is added to the logits, one a class: HGG and LGG are found alike often, and `SPECIFICITY` of the healthy."""
    healthy, hgg, lgg = (class_names.index(name) for name in (HEALTHY, HGG, LGG))
    shift = np.zeros(len(class_names))
    apart = drawn.logits[:, hgg] - drawn.logits[:, lgg]
    steps = np.linspace(-5, 5, 2001)
    found = [(apart[drawn.targets == hgg] + step > 0).mean() for step in steps]
    missed = [(apart[drawn.targets == lgg] + step < 0).mean() for step in steps]
    shift[hgg] = steps[np.abs(np.subtract(found, missed)).argmin()]
    shifted = drawn.logits[drawn.targets == healthy] + shift
    tumour = shifted[:, [hgg, lgg]].max(axis=1) - shifted[:, healthy]
    shift[healthy] = np.quantile(tumour, SPECIFICITY)
    return shift


def describe(drawn: Drawn, class_names: Sequence[str]) -> dict[str, Any]:
    """Scores on volumes drawn of held-out heads: SYNTHETIC, as everything here."""
    from sklearn.metrics import roc_auc_score

    healthy, hgg, lgg = (class_names.index(name) for name in (HEALTHY, HGG, LGG))
    probabilities = softmax(drawn.logits)
    called = probabilities.argmax(axis=1) != healthy
    ill = drawn.targets != healthy
    large = drawn.lesion_ml >= np.median(drawn.lesion_ml[ill])
    return {
        "macro_f1": score_predictions(drawn.targets, probabilities, class_names).macro_f1,
        "auc_tumour": float(roc_auc_score(ill, 1 - probabilities[:, healthy])),
        "auc_large_tumour": float(roc_auc_score(ill[large | ~ill], 1 - probabilities[large | ~ill, healthy])),
        "auc_grade": float(
            roc_auc_score(drawn.targets[ill] == hgg, drawn.logits[ill, hgg] - drawn.logits[ill, lgg])
        ),
        "sensitivity": float(called[ill].mean()),
        "sensitivity_large": float(called[ill & large].mean()),
        "specificity": float((~called[~ill]).mean()),
        "healthy_volumes": int((~ill).sum()),
        "volumes": len(ill),
    }


def calibrate(prepared: Path, run: Path, parts: Parts, log: Log) -> Path:
    """The same run with its linear layer's bias shifted, and a temperature; and what it does on the other heads."""
    out = run.with_name(f"{run.name}-calibrated")
    if out.is_dir():
        return out
    record = read_record(run)
    cohort = read_cohort(prepared, read_config(run))
    names = record.class_names
    fitted, other = (
        score_drawn(run, cohort.select(keys_of(cohort, heads)), names, seed)
        for heads, seed in ((parts.calibrate, CALIBRATE), (parts.compare, COMPARE))
    )
    log(f"{run.name}: as trained, drawn of heads to compare: {rounded(describe(other, names))}")
    shift = fit_shift(fitted, names)
    fitted, other = (replace(d, logits=d.logits + shift) for d in (fitted, other))
    temperature = fit_temperature(fitted.logits, fitted.targets)
    log(
        f"{run.name}: shift {dict(zip(names, np.round(shift, 3).tolist(), strict=True))}, temperature {temperature:.3f}"
    )
    log(f"{run.name}: calibrated, drawn of heads to compare: {rounded(describe(other, names))}")
    checkpoint = load_checkpoint(run / CHOSEN)
    checkpoint["network"]["fc.bias"] += torch.from_numpy(shift).to(checkpoint["network"]["fc.bias"].dtype)
    checkpoint["temperature"] = temperature
    scores = {
        kind: score_predictions(other.targets, softmax(other.logits, t), names).to_dict()
        for kind, t in (("raw", 1.0), ("calibrated", temperature))
    }
    calibration = Calibration(temperature=temperature, fitted_on="validation", volumes=len(fitted.targets))
    training = record.training
    counted = {
        part: {name: int(n) for name, n in zip(names, np.bincount(d.targets), strict=True)}
        for part, d in (("validation", fitted), ("test", other))
    }
    training = replace(
        training,
        calibration=calibration,
        volumes={**training.volumes, **counted},
        subjects={**training.subjects, "validation": len(parts.calibrate), "test": len(parts.compare)},
        scores={"test": scores},
        extraction={"deepbet": sum(training.extraction.values())},  # before the views were drawn
        other={**training.other, "thresholds": {"shift": shift.tolist(), "specificity": SPECIFICITY}},
    )
    with whole_folder(out) as folder:
        shutil.copytree(run, folder, dirs_exist_ok=True)
        save_checkpoint(checkpoint, folder / CHOSEN)
        write_record(folder, replace(record, calibration=calibration, training=training))
    return out


def export(run: Path, out: Path, log: Log) -> None:
    """What the package holds: the bundle that predicts, and beside it one to start training from."""
    # weights of 16 bits in the file, which compute in 32
    model = ExportConfig(formats=("onnx",), precision="fp16-storage", replace=True)
    weights = ExportConfig(formats=("torchscript",), brain_extraction=False, replace=True)
    for name, config in (("model", model), ("weights", weights)):
        bundle = export_run(run, run.parent / "exported" / "reference", config)  # named as the model is
        with whole_folder(out / name, there="replace") as folder:
            shutil.copytree(bundle, folder, dirs_exist_ok=True)
        for path in sorted((out / name).iterdir()):
            log(f"{name}/{path.name}: {path.stat().st_size / 1e6:.2f} MB, sha256 {file_sha256(path)}")


def rounded(scores: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in scores.items()
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heads", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, default=Path("runs/reference"))
    parser.add_argument("--name", default="small", help="of the run, below the work folder")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--views", type=int, default=6, help="of each head")
    parser.add_argument("--spacing", type=float, default=6, help="of the network's input in mm")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to write model/ and weights/ to")
    return parser.parse_args()


def main() -> None:
    options = parse()
    heads = find_heads(options.heads)
    log = Log(options.work / "log.md")
    prepared = prepare(heads, options.work, options.spacing, options.views, log)
    parts = Parts.of(list(heads))
    run = options.work / options.name
    learn(prepared, run, parts, options.steps, options.seed, options.workers, log)
    calibrated = calibrate(prepared, run, parts, log)
    if options.out:
        export(calibrated, options.out, log)


if __name__ == "__main__":
    main()
