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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssclf.config import PreprocessConfig, TrainConfig
from ssclf.domain.generator.views import see_again
from ssclf.domain.geometry import reorient
from ssclf.domain.splits import Split
from ssclf.domain.volume import Mask, Volume
from ssclf.io.discovery.cohorts import CohortQuery
from ssclf.io.extraction.deepbet import BrainExtractor
from ssclf.io.extraction.engines import extract_brain
from ssclf.io.files import whole_folder
from ssclf.io.records.preprocessed import PreparedCohort, is_prepared
from ssclf.io.records.tables import write_table
from ssclf.io.records.training_run import CONFIG, is_finished
from ssclf.io.volumes.nifti import read_nifti, write_nifti
from ssclf.learning.extraction_export import cached_brain_extraction
from ssclf.workflows.preprocess import preprocess_cohort
from ssclf.workflows.train import Machine, Watch, read_cohort, train

HEAD = "_T1.nii.gz"
SOURCE = "IXI"
#: Heads of either held-out part, and the seed that draws them.
HELD_OUT, SEED = 6, 18


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
                    write_nifti(seen, folder / f"{name}_{k}.nii.gz")
                    rows.append((name, f"{k}", "healthy", SOURCE, f"{name}_{k}.nii.gz"))
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
    given = {"lesions": True, "holdout": 0.0, "precision": "bf16-mixed-cpu", "channels_last": True, "seed": seed}
    config = TrainConfig.preset("default", architecture="small", **given)
    cohort = read_cohort(prepared, config)
    split = Split(keys_of(cohort, parts.train))
    config = TrainConfig.preset(
        "default", architecture="small", epochs=-(-steps // -(-len(split.train) // config.batch_size)), **given
    )
    begun = (run / CONFIG).is_file()
    if begun and is_finished(run):
        return
    log(f"{run.name}: {len(split.train)} volumes of {len(parts.train)} heads, {config.epochs} epochs")
    result = train(
        prepared, run, config, split=split, resume=begun, machine=Machine(device="cpu", workers=workers),
        watch=Watch(on_epoch=lambda e: log(f"{run.name}: epoch {e.epoch}, loss {e.train_loss:.3f}, {e.seconds:.0f} s")),
    )  # fmt: skip
    if result.interrupted:
        raise SystemExit(f"{run}: saved; the same command goes on")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heads", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, default=Path("runs/reference"))
    parser.add_argument("--name", default="small", help="of the run, below the work folder")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--views", type=int, default=8, help="of each head")
    parser.add_argument("--spacing", type=float, default=6, help="of the network's input in mm")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--workers", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    options = parse()
    heads = find_heads(options.heads)
    log = Log(options.work / "log.md")
    prepared = prepare(heads, options.work, options.spacing, options.views, log)
    parts = Parts.of(list(heads))
    run = options.work / options.name
    learn(prepared, run, parts, options.steps, options.seed, options.workers, log)


if __name__ == "__main__":
    main()
