"""A wrong answer cannot be had silently: a folder in which something was edited is refused, or gives the same numbers.

Each example is a number, which decides the file and what is done to it. Edits that change the form alone (order of
rows and columns, quotes, separator, encoding, line ends) must be taken; others may be.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ssclf.config import PredictConfig, PreprocessConfig, TrainConfig
from ssclf.domain.volume import Volume
from ssclf.errors import SsclfError
from ssclf.io.records.cv_run import Cell, read_cv_run, summarise
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.io.volumes.nifti import write_nifti

pytest.importorskip("torch")
pytestmark = pytest.mark.timeout(1800)

TRAIN = TrainConfig(epochs=1, batch_size=4, validation=0.3, augmentation="none", precision="32-true")
NAMES = ["HGG", "LGG", "healthy", "s1", "s10", "", "nan", "0", "1e9", "mc3/scratch"]
Table = list[list[str]]


@dataclass(frozen=True)
class World:
    """Attributes:
    root: folders of each kind, `cohort`, `begun` (an epoch trained, another asked for), `cv` and `predicted`.
    ask: kind → the numbers that a command gives on such a folder.
    """

    root: Path
    ask: dict[str, Callable[[Path], Any]]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, make_volume: Callable[..., Volume], tiny_bundle: Path
) -> World:
    """What every command leaves, of 12 scans of two classes, by the commands themselves. Synthetic."""
    from ssclf.domain.shards import Shard
    from ssclf.io.discovery.cohorts import CohortQuery
    from ssclf.workflows.cross_validate import CvPlan, cross_validate
    from ssclf.workflows.evaluate import evaluate
    from ssclf.workflows.export import read_run
    from ssclf.workflows.merge import merge
    from ssclf.workflows.predict import predict
    from ssclf.workflows.preprocess import preprocess_cohort
    from ssclf.workflows.train import Machine, train

    root = tmp_path_factory.mktemp("world")
    for seed in range(12):
        label = ("HGG", "LGG")[seed % 2]
        volume = make_volume((12, 13, 14), (7.0, 7.0, 7.0), seed=seed)
        volume.data[:, 4:9, 3 + 3 * (seed % 2) : 6 + 3 * (seed % 2)] *= 1.5
        write_nifti(volume, root / "scans" / label / f"s{seed}.nii.gz")
    settings = PreprocessConfig(spacing=(6.0, 6.0, 6.0))  # those of tiny_bundle
    query = CohortQuery(sources=(root / "scans",), contrasts=settings.contrasts)
    cohort, machine = root / "cohort", Machine(device="cpu", workers=0)
    assert preprocess_cohort(query, cohort, settings, skull_strip="none").exit_code == 0
    train(cohort, root / "begun", TRAIN, machine=machine)
    plan = CvPlan.of(("mc3",), config=replace(TRAIN, epochs=2), scheme="kfold", folds=2)
    assert not cross_validate(cohort, root / "cv", plan, machine=machine).missing
    (root / "predicted").mkdir()
    config, scans = PredictConfig(skull_strip="none", workers=1), root / "scans" / "HGG"
    for number in (1, 2):
        predict([scans], root / "predicted" / f"{number}.csv", [tiny_bundle], config, shard=Shard(number, 2))

    def evaluated(folder: Path) -> Any:
        evaluate(folder, tiny_bundle, folder / "scores", device="cpu", threads=1)
        found = read_prepared_cohort(folder)
        numbers = [(folder / "scores" / name).read_text() for name in ("predictions.csv", "metrics.json")]
        samples = [
            (s.key, s.subject, s.label, s.source, s.voxels, s.likeness, s.extraction) for s in found.samples
        ]
        audited = [
            [s.cells.get(c) for c in ("contrasts", "original_spacing", "original_dtype")]
            for s in found.samples
        ]
        return numbers, samples, audited, found.class_names, found.preprocess, found.synthetic

    def gone_on(run: Path) -> Any:
        from ssclf.workflows.choose_run import choose_run

        chosen = choose_run(run, {"epochs": 2}, resume=True)
        result = train(chosen.data, run, chosen.config, resume=True, machine=machine)
        network, spec = read_run(run, name="run")
        weights = [float(value.double().sum()) for value in network.state_dict().values()]
        return [e.val_loss for e in result.epochs], weights, spec, (run / "predictions.csv").read_text()

    def reported(run: Path) -> Any:
        assert not cross_validate(cohort, run, None, resume=True, machine=machine).missing
        found = read_cv_run(run)
        cells = [read_run(cell.folder(run), name="cell")[1] for cell in found.cells]
        told = {k: v for k, v in vars(found).items() if k not in ("folder", "results")}
        networks = [(n.name, n.temperature, n.temperatures, n.raw, n.calibrated) for n in summarise(found)]
        logits = {cell: result.logits.tolist() for cell, result in found.results.items()}
        others = [
            (r.keys, r.subjects, r.sources, r.targets.tolist(), r.epochs, r.cost)
            for r in found.results.values()
        ]
        return told, networks, cells, logits, others

    def joined(folder: Path) -> Any:
        """`merge`, and `predict` again, which does again what was edited, and never fails."""
        answers = []
        for number in (1, 2):
            copy = Path(shutil.copytree(folder, folder / f"again{number}"))
            again = predict([scans], copy / f"{number}.csv", [tiny_bundle], config, shard=Shard(number, 2))
            answers += [(row.key, row.prediction, row.probabilities, row.flags) for row in again.rows]
        rows = merge([folder / "1.csv", folder / "2.csv"], folder / "all.csv")
        assert sorted(answers) == sorted((r.key, r.prediction, r.probabilities, r.flags) for r in rows)
        about = json.loads((folder / "all.json").read_text())["run"]
        return [asdict(row) for row in rows], {k: v for k, v in about.items() if k != "merged"}

    return World(root, {"cohort": evaluated, "begun": gone_on, "cv": reported, "predicted": joined})


@pytest.fixture(scope="module")
def before(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command says of the folder as it is."""
    return {kind: ask(copy_of(world, kind, tmp_path_factory)) for kind, ask in world.ask.items()}


def copy_of(world: World, kind: str, factory: pytest.TempPathFactory) -> Path:
    """Linked, not copied: who writes a file replaces it."""
    folder = factory.mktemp(kind) / kind
    return Path(shutil.copytree(world.root / kind, folder, copy_function=os.link))


CELL = Cell("mc3", False, 2).name
FILES = {
    "cohort": ("manifest.csv", "manifest.csv", "manifest.csv", "settings.json"),
    "begun": ("config.json", "data.json", "split.json"),
    "cv": (
        "cv.json", "splits.json", "audit.json", f"cells/{CELL}/predictions.csv", f"cells/{CELL}/metrics.csv",
        f"cells/{CELL}/provenance.json", f"cells/{CELL}/cost.json", f"cells/{CELL}/config.json",
    ),
    "predicted": ("1.json", "2.json"),
}  # fmt: skip


def edit_table(raw: bytes, chance: random.Random) -> tuple[bytes, bool]:
    """A table with one thing done to it, and whether that changes its form alone."""
    table: Table = list(csv.reader(io.StringIO(raw.decode(), newline="")))
    plain = chance.choice([True, False])
    chance.choice(FORMS if plain else EDITS)(table, chance)
    if not plain:
        return written(table), False
    separator, encoding = chance.choice(",;\t"), chance.choice(["utf-8", "utf-8-sig", "utf-16"])
    return written(table, separator, chance.choice(["\n", "\r\n"])).decode().encode(encoding), True


def written(table: Table, separator: str = ",", end: str = "\r\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(table)
    return text.getvalue().encode()


def shuffle_rows(table: Table, chance: random.Random) -> None:
    table[1:] = chance.sample(table[1:], len(table) - 1)


def shuffle_columns(table: Table, chance: random.Random) -> None:
    order = chance.sample(range(len(table[0])), len(table[0]))
    table[:] = [[row[place] for place in order] for row in table]


def put_blanks(table: Table, chance: random.Random) -> None:
    row = chance.choice(table[1:])
    row[chance.randrange(len(row))] += chance.choice([" ", "\u200b", "\ufeff", "\u00a0", "x", "\u0301"])


def swap_cells(table: Table, chance: random.Random) -> None:
    (one, two), column = chance.sample(table[1:], 2), chance.randrange(len(table[0]))
    one[column], two[column] = two[column], one[column]


def swap_labels(table: Table, chance: random.Random) -> None:
    if "label" in table[0]:
        column = table[0].index("label")
        names = sorted({row[column] for row in table[1:]})
        for row in table[1:]:
            row[column] = names[names.index(row[column]) - 1]


def sort_a_column(table: Table, chance: random.Random) -> None:
    column = chance.randrange(len(table[0]))
    for row, cell in zip(table[1:], sorted(row[column] for row in table[1:]), strict=True):
        row[column] = cell


def fill_column(table: Table, chance: random.Random) -> None:
    column, cell = chance.randrange(len(table[0])), chance.choice(NAMES)
    for row in table[1:]:
        row[column] = cell


def put_cell(table: Table, chance: random.Random) -> None:
    row = chance.choice(table[1:])
    row[chance.randrange(len(row))] = chance.choice([*NAMES, *table[1]])


def change_character(table: Table, chance: random.Random) -> None:
    row = chance.choice(table[1:])
    column = chance.randrange(len(row))
    if cell := row[column]:
        place = chance.randrange(len(cell))
        row[column] = cell[:place] + chance.choice("0123456789abcdef") + cell[place + 1 :]


def drop_row(table: Table, chance: random.Random) -> None:
    del table[chance.randrange(1, len(table))]


def double_row(table: Table, chance: random.Random) -> None:
    table.insert(chance.randrange(1, len(table)), chance.choice(table[1:]))


def drop_column(table: Table, chance: random.Random) -> None:
    column = chance.randrange(len(table[0]))
    for row in table:
        del row[column]


def rename_column(table: Table, chance: random.Random) -> None:
    table[0][chance.randrange(len(table[0]))] = chance.choice([*table[0], "other"])


def cut_row(table: Table, chance: random.Random) -> None:
    del chance.choice(table[1:])[-1]


FORMS = [shuffle_rows, shuffle_columns, lambda table, chance: None]
EDITS = [
    put_blanks, swap_cells, swap_labels, sort_a_column, fill_column, put_cell, change_character, drop_row, double_row,
    drop_column, rename_column, cut_row,
]  # fmt: skip


def edit_record(raw: bytes, chance: random.Random) -> tuple[bytes, bool]:
    """JSON with one thing done to it, and whether that changes its form alone."""
    values = json.loads(raw)
    if chance.random() < 0.1:
        return json.dumps(values, indent=chance.choice([None, 4]), sort_keys=True).encode("utf-8-sig"), True
    for _ in range(chance.choice([1, 1, 2, 3])):
        # who takes all marks away has a folder of an earlier version
        owner, key = chance.choice([place for place in places(values) if place[1] != "written"])
        others = [owner[key] for owner, key in places(values)]
        kind = chance.choice(["put", "put", "take", "turn", "swap"])
        if kind == "turn" and isinstance(owner[key], list):
            owner[key] = chance.sample(owner[key], len(owner[key]))
        elif kind == "take":
            del owner[key]
        elif kind == "swap" and isinstance(owner[key], dict) and len(owner[key]) > 1:
            one, two = chance.sample(list(owner[key]), 2)
            owner[key][one], owner[key][two] = owner[key][two], owner[key][one]
        else:
            owner[key] = chance.choice([*NAMES, None, True, 0, 1, 2, 0.5, [], {}, *map(_copied, others)])
        if not places(values):
            break
    return json.dumps(values).encode(), False


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every value of a record, as its owner and its key there."""
    inside: list[tuple[Any, Any]] = []
    for key, value in list(values.items()) if isinstance(values, dict) else list(enumerate(values)):
        inside.append((values, key))
        if isinstance(value, (dict, list)):
            inside += places(value)
    return inside


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def examples(quick: int, thorough: int) -> list[Any]:
    return [
        pytest.param(0, quick, id="quick"),
        pytest.param(quick, thorough, id="thorough", marks=pytest.mark.soak),
    ]


@pytest.mark.parametrize(("start", "stop"), examples(25, 200))
@pytest.mark.parametrize("kind", FILES)
def test_an_edited_folder_is_refused_or_gives_the_same_numbers(
    kind: str,
    start: int,
    stop: int,
    world: World,
    before: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    for number in range(start, stop):
        chance = random.Random(f"{kind} {number}")
        folder = copy_of(world, kind, tmp_path_factory)
        file = folder / chance.choice(FILES[kind])
        raw, plain = (edit_table if file.suffix == ".csv" else edit_record)(file.read_bytes(), chance)
        file.unlink()  # other links to it are the folder as it was
        file.write_bytes(raw)
        try:
            after = world.ask[kind](folder)
        except SsclfError as refusal:
            assert not plain, f"example {number}: {refusal}"
            assert file.name in str(refusal) or str(folder) in str(refusal), f"example {number}: {refusal}"
        else:
            assert after == before[kind], f"example {number} of {file.name}"
        finally:
            shutil.rmtree(folder)
