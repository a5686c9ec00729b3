from __future__ import annotations

import csv
import dataclasses
import html
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import PreprocessConfig, TrainConfig, config_to_dict
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, DatasetError, ModelError, OutputError
from ssclf.io.locks import lock
from ssclf.io.models.bundle import open_bundle
from ssclf.io.records.cv_run import Cell, read_cv_run
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.io.records.training_run import EpochRecord, read_split
from ssclf.io.volumes.nifti import write_nifti
from ssclf.learning.vision import video_models
from ssclf.reporting.cv_report import write_cv_report
from ssclf.workflows.cross_validate import CvPlan, CvResult, CvWatch, cross_validate
from ssclf.workflows.export import ExportConfig
from ssclf.workflows.export_cv import export_cv
from ssclf.workflows.train import Machine

CONFIG = TrainConfig(epochs=2, learning_rate=1e-3, batch_size=2, precision="32-true", augmentation="none")
FIRST, SECOND = Cell("mc3", False, 1), Cell("mc3", False, 2)
LABELS = ("HGG", "LGG", "healthy")


def write_cohort(folder: Path, volumes: int = 9) -> Path:
    """Preprocessed volumes of unequal shapes; the healthy ones have a source of their own. Synthetic."""
    settings = PreprocessConfig(spacing=(8.0, 7.0, 7.5))
    random = np.random.default_rng(0)
    rows = ["subject,label,source,path,settings,voxels,extraction,original_spacing,original_shape"]
    for number in range(volumes):
        label = LABELS[number % 3]
        shape = (5 + number % 2, 16 + number % 3, 17)
        data = 0.3 * random.random((1, *shape), np.float32)
        data[:, :, 4 * (number % 3) : 4 * (number % 3) + 4] += 0.6
        key = f"volumes/s{number}.nii.gz"
        write_nifti(Volume(data, np.diag([8.0, 7.0, 7.5, 1])[[2, 1, 0, 3]]), folder / key)
        source = "synthetic-b" if label == "healthy" else "synthetic-a"
        cells = (
            f"s{number}",
            label,
            source,
            key,
            settings.hash,
            f"{number:064x}",
            "none",
            "2 x 2 x 2",
            "9 x 8 x 7",
        )
        rows.append(",".join(cells))
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", "utf-8")
    values = {"preprocess": config_to_dict(settings), "hash": settings.hash, "synthetic": True}
    (folder / "settings.json").write_text(json.dumps(values), "utf-8")
    return folder


SCRIPT = ExportConfig(formats=("torchscript",), brain_extraction=False)
INT8 = ExportConfig(formats=("onnx",), brain_extraction=False, int8=True)


def run(data: Path, out: Path, **options: Any) -> CvResult:
    torch.set_num_threads(1)
    values: dict[str, Any] = {"models": ("mc3",), "config": CONFIG, "scheme": "kfold", "folds": 2, **options}
    settings = {name: values.pop(name) for name in ("weights", "save_every_s") if name in values}
    machine = Machine(device="cpu", workers=0, **settings)
    told = [name for name in values if name.startswith("on_")]
    watch = CvWatch(**{name: values.pop(name) for name in told})
    resume = values.pop("resume", False)
    return cross_validate(data, out, CvPlan.of(**values), resume=resume, machine=machine, watch=watch)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cv") / "run"
    assert run(data, out).states == {FIRST: "trained", SECOND: "trained"}
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_volume_is_tested_once_on_folds_that_all_networks_share(data: Path, finished: Path) -> None:
    found = read_cv_run(finished)
    assert found.missing == [] and found.variants == ["mc3/scratch"] and found.synthetic
    keys = [key for result in found.results.values() for key in result.keys]
    assert sorted(keys) == [f"volumes/s{k}.nii.gz" for k in range(9)]
    splits = json.loads((finished / "splits.json").read_text())["splits"]
    for cell, result in found.results.items():
        assert set(result.keys) == set(splits[cell.fold - 1]["test"])
        assert not set(result.keys) & set(splits[cell.fold - 1]["train"])
        assert result.cost["parameters"] == 11_472_963  # the paper's Table 1
        assert result.cost["shape"] in ([1, 5, 16, 17], [1, 5, 17, 17], [1, 5, 18, 17], [1, 6, 17, 17])
        assert result.cost["gflops"] > 0.1 and len(result.epochs) == 2
    calls: list[Any] = []
    again = run(data, finished, on_cell=lambda *call: calls.append(call))
    assert calls == [(FIRST, 1, 2, "finished"), (SECOND, 2, 2, "finished")]
    assert again.exit_code == 0 and again.missing == ()


def test_the_audit_names_the_class_with_a_source_of_its_own(finished: Path) -> None:
    audit = read_cv_run(finished).audit
    assert audit is not None
    assert [f["name"] for f in audit["findings"]] == [
        "brain mask shape", "intensity histogram", "stored intensities", "header fields", "source",
    ]  # fmt: skip
    assert any("class healthy comes from synthetic-b only" in text for text in audit["warnings"])


def test_it_goes_on_with_the_same_settings_and_volumes_only(data: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate \(it began with 0.001\)"):
        run(data, copy, config=dataclasses.replace(CONFIG, learning_rate=1e-4))
    with pytest.raises(ConfigError, match=r"folds \(it began with 2\)"):
        run(data, copy, folds=3)
    fewer = Path(shutil.copytree(data, tmp_path / "fewer"))
    lines = (fewer / "manifest.csv").read_text().splitlines()
    (fewer / "manifest.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(DatasetError, match="not those it began with"):
        run(fewer, copy)
    with pytest.raises(OutputError, match="holds a training run"):
        run(data, FIRST.folder(copy))


def test_resume_takes_settings_and_networks_from_the_folder(data: Path, tmp_path: Path) -> None:
    """Nobody remembers at night with which options it was begun."""
    out = tmp_path / "run"
    run(data, out, only=FIRST.name)
    arguments = ["cv", "--data", str(data), "--out", str(out), "--device", "cpu", "--workers", "0"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 1 and "--resume" in told.output and "it began with kfold" in told.output
    done = CliRunner().invoke(app, [*arguments, "--resume"])
    assert done.exit_code == 0, done.output
    assert read_cv_run(out).missing == []
    assert len(predictions(out, SECOND)) + len(predictions(out, FIRST)) == 9


def test_one_cell_alone_also_where_a_kill_left_half_a_beginning(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    SECOND.folder(out).mkdir(parents=True)
    (SECOND.folder(out) / "config.json").write_text("{}")  # killed before split.json
    result = run(data, out, models=("r3d",), only="mc3/scratch/2")
    assert result.states == {SECOND: "trained"} and result.missing == (FIRST,)
    assert predictions(out, SECOND) == predictions(finished, SECOND)
    assert read_cv_run(out).audit == read_cv_run(finished).audit
    with pytest.raises(ConfigError, match="fold from 1 to 2"):
        run(data, out, only="mc3/scratch/3")
    with pytest.raises(ConfigError, match="expected network/start/fold"):
        run(data, out, only="mc3/2")


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_cross_validate import run

def on_step(epoch, step, steps, loss):
    if epoch == 2:
        print("second epoch", flush=True)
        sys.stdin.read()

# saved as if epochs were longer
run(Path(sys.argv[1]), Path(sys.argv[2]), only="mc3/scratch/1", on_step=on_step, save_every_s=0)
"""


def test_a_killed_cell_is_free_and_goes_on_to_the_same_numbers(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(data), str(out), str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "second epoch\n"
        with pytest.raises(OutputError, match="another ssclf process is training this cell"):
            run(data, out, only=FIRST.name)
        process.send_signal(signal.SIGKILL)
    epochs = []
    result = run(data, out, only=FIRST.name, on_epoch=lambda record: epochs.append(record.epoch))
    assert result.states == {FIRST: "trained"}
    assert epochs == [2]
    assert predictions(out, FIRST) == predictions(finished, FIRST)


def test_a_cell_of_another_process_is_left_to_it(data: Path, copy: Path) -> None:
    (FIRST.folder(copy) / "provenance.json").unlink()
    with lock(FIRST.folder(copy) / ".lock"):
        result = run(data, copy)
    assert result.states == {FIRST: "busy", SECOND: "finished"}
    assert result.missing == (FIRST,) and result.exit_code == 0


def test_a_cell_that_fails_costs_itself(data: Path, copy: Path) -> None:
    (FIRST.folder(copy) / "provenance.json").unlink()
    (FIRST.folder(copy) / "checkpoints" / "last.pt").write_bytes(b"no checkpoint")
    result = run(data, copy)
    assert result.states == {FIRST: "failed", SECOND: "finished"}
    assert "last.pt" in result.errors[FIRST] and result.exit_code == 3
    with pytest.raises(ModelError, match=r"last\.pt"):
        run(data, copy, only=FIRST.name)


class Trouble:
    """What may end a training from outside, each at its cell: the kernel that takes the process away, memory that runs
    out, and volumes on which the network gives no numbers."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out = data, out
        self.now: Cell | None = None
        self.before: dict[Path, bytes] = {}

    def on_cell(self, cell: Cell, number: int, total: int, state: str | None) -> None:
        self.now = cell
        if state:
            for path, content in self.before.items():
                path.write_bytes(content)
            self.before.clear()

    def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        (process,) = multiprocessing.active_children()
        assert process.pid
        if self.now == Cell("mc3", False, 1):
            os.kill(process.pid, signal.SIGKILL)
        if self.now == Cell("mc3", False, 3):
            taken = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            resource.prlimit(process.pid, resource.RLIMIT_AS, (taken, taken))

    def on_epoch(self, record: EpochRecord) -> None:
        if self.now == Cell("mc3", False, 5):
            for key in read_split(self.now.folder(self.out), self.keys).test:
                self.before[self.data / key] = (self.data / key).read_bytes()
                huge = np.full((1, 5, 16, 17), 3e38, np.float32)
                write_nifti(Volume(huge, np.diag([8.0, 7.0, 7.5, 1])[[2, 1, 0, 3]]), self.data / key)

    @property
    def keys(self) -> list[str]:
        return [sample.key for sample in read_prepared_cohort(self.data).samples]


@pytest.mark.soak
def test_six_cells_of_which_one_is_killed_one_lacks_memory_and_one_gives_no_numbers(tmp_path: Path) -> None:
    """The first of them ended all others, with a traceback and without a report."""
    data, out = write_cohort(tmp_path / "data", volumes=18), tmp_path / "run"
    trouble = Trouble(data, out)
    config = dataclasses.replace(CONFIG, epochs=1)
    told = {"on_cell": trouble.on_cell, "on_step": trouble.on_step, "on_epoch": trouble.on_epoch}
    result = run(data, out, config=config, folds=6, **told)
    cells = [Cell("mc3", False, fold) for fold in range(1, 7)]
    bad = cells[::2]
    assert result.states == {cell: "failed" if cell in bad else "trained" for cell in cells}
    assert list(result.errors) == bad and result.missing == tuple(bad) and result.exit_code == 3
    assert "signal 9" in result.errors[bad[0]] and "memory" in result.errors[bad[1]]
    page = write_cv_report(out).read_text()
    for cell in bad:
        assert f"{cell.name}: failed" in page and html.escape(result.errors[cell]) in page
    assert multiprocessing.active_children() == []
    again = run(data, out, config=config, folds=6)
    assert again.states == {cell: "trained" if cell in bad else "finished" for cell in cells}
    assert again.exit_code == 0 and "failed" not in write_cv_report(out).read_text()


def test_a_volume_that_cannot_be_read_costs_the_cells_that_need_it(data: Path, tmp_path: Path) -> None:
    """An empty file ended the run before its first cell, in the audit, and every cell where its cost was measured."""
    other, out = Path(shutil.copytree(data, tmp_path / "data")), tmp_path / "run"
    (other / "volumes" / "s0.nii.gz").write_bytes(b"")
    result = run(other, out)
    assert result.exit_code == 3 and set(result.states.values()) == {"failed"}
    assert all("s0.nii.gz: expected a preprocessed volume" in error for error in result.errors.values())
    assert "s0.nii.gz" in write_cv_report(out).read_text()


def test_a_signal_stops_all_cells(data: Path, tmp_path: Path) -> None:
    def interrupt(epoch: int, step: int, steps: int, loss: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    result = run(data, tmp_path / "run", on_step=interrupt)
    assert result.states == {FIRST: "interrupted"}
    assert result.exit_code == 143 and result.missing == (FIRST, SECOND)


def test_pretrained_cells_miss_their_weights_before_anything_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("SSCLF_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(ModelError, match="ssclf weights import mc3_18"):
        run(data, tmp_path / "run", pretrained=(False, True))
    assert not (tmp_path / "run").exists()


def test_two_classes_from_kinetics_weights(data: Path, tmp_path: Path) -> None:
    """A file as torchvision writes it; two classes, which the paper's tables do not fit."""
    other = Path(shutil.copytree(data, tmp_path / "data"))
    lines = (data / "manifest.csv").read_text().splitlines()
    (other / "manifest.csv").write_text("\n".join(line for line in lines if ",healthy," not in line))
    weights = tmp_path / "weights.pth"
    torch.manual_seed(1)
    torch.save(video_models.mc3_18(weights=None).state_dict(), weights)
    config = dataclasses.replace(CONFIG, epochs=1)
    out = tmp_path / "run"
    result = run(other, out, config=config, pretrained=(True,), weights=weights)
    cells = [Cell("mc3", True, fold) for fold in (1, 2)]
    assert result.states == dict.fromkeys(cells, "trained")
    training = json.loads((cells[0].folder(out) / "provenance.json").read_text())["training"]
    assert training["initial_weights"] == "weights.pth"
    page = write_cv_report(out).read_text()
    assert "mc3" in page and "Table 2" not in page
    with (out / "tables.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"HGG", "LGG", ""} or {"HGG", "LGG"} < {
        row["class"] for row in rows
    }
    assert not any(row["paper"] for row in rows)
    onnx = ExportConfig(formats=("onnx",), brain_extraction=False)
    machine = Machine(device="cpu", workers=0, weights=weights)
    (bundle,) = export_cv(out, tmp_path / "two", onnx, machine=machine).bundles
    assert open_bundle(bundle).spec.class_names == ("HGG", "LGG")


def test_processes_started_together_are_told_how(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="--only"):
        run(data, tmp_path / "run")


def test_the_divisions_of_the_paper_overlap_and_share_no_subject(data: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, validation=0.34)

    def interrupt(epoch: int, step: int, steps: int, loss: float) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    run(data, tmp_path / "run", scheme="paper", folds=3, config=config, on_step=interrupt)
    splits = json.loads((tmp_path / "run" / "splits.json").read_text())["splits"]
    assert [[len(split[role]) for role in ("train", "validation", "test")] for split in splits] == [
        [3, 3, 3]
    ] * 3
    assert len({tuple(split["test"]) for split in splits}) > 1


def test_a_bundle_of_everything_carries_the_folds_scores(data: Path, copy: Path, tmp_path: Path) -> None:
    exported = export_cv(copy, tmp_path / "all", INT8, machine=Machine(device="cpu", workers=0))
    assert exported.bundles == (tmp_path / "all",)
    spec = open_bundle(tmp_path / "all").spec
    training = spec.training
    assert training["volumes"]["train"] == {"HGG": 3, "LGG": 3, "healthy": 3}
    assert training["calibration"] == {
        "temperature": spec.temperature,
        "fitted_on": "out-of-fold",
        "volumes": 9,
    }
    assert sum(map(sum, training["scores"]["out-of-fold"]["raw"]["confusion"])) == 9
    assert len(training["voxels"]) == 9 and spec.synthetic
    card = (tmp_path / "all" / "MODEL_CARD.md").read_text()
    assert "Out-of-fold part, synthetic" in card
    # nothing was held out: 8 bits are compared on training volumes that gave no range, and the card says so
    assert spec.int8 and (spec.int8.part, spec.int8.volumes, sum(spec.int8.calibrated_on.values())) == (
        "train",
        4,
        5,
    )
    assert spec.int8.temperature == spec.temperature and "since nothing was held out" in card
    with pytest.raises(DatasetError, match="volumes of the cross-validation"):
        lines = (data / "manifest.csv").read_text().splitlines()
        other = Path(shutil.copytree(data, tmp_path / "other"))
        (other / "manifest.csv").write_text("\n".join(lines[:-1]))
        export_cv(copy, tmp_path / "second", data=other)


def test_a_bundle_a_fold_carries_the_same_temperature(copy: Path, tmp_path: Path) -> None:
    exported = export_cv(copy, tmp_path / "mine", INT8, per_fold=True)
    assert [path.name for path in exported.bundles] == ["mine-fold1", "mine-fold2"]
    specs = [open_bundle(path).spec for path in exported.bundles]
    assert specs[0].temperature == specs[1].temperature != 1
    assert not set(specs[0].training["voxels"]) & {f"{k:064x}" for k in numbers_tested(copy, FIRST)}
    assert specs[1].training["cross_validation"]["fold"] == 2
    for spec in specs:
        assert spec.int8 and (spec.int8.part, spec.int8.fitted_on) == ("test", None)
        assert spec.int8.temperature == spec.temperature
    (SECOND.folder(copy) / "provenance.json").unlink()
    with pytest.raises(ModelError, match="mc3/scratch/2 missing"):
        export_cv(copy, tmp_path / "none", per_fold=True)


def predictions(out: Path, cell: Cell) -> list[dict[str, str]]:
    with (cell.folder(out) / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def numbers_tested(out: Path, cell: Cell) -> list[int]:
    return [int(row["subject"][1:]) for row in predictions(out, cell)]
