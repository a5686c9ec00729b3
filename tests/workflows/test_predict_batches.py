"""What a GPU machine does otherwise, on a CPU: several volumes at once, and brain extraction run by one process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ssclf.config import PredictConfig
from ssclf.domain.preprocessing import PreparedVolume
from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.discovery.sources import discover
from ssclf.io.extraction.owner import NetworkOwner
from ssclf.io.models import batches
from ssclf.io.models.batches import Batches
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.checksums import write_checksums
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.models.runtime import Classifier, ClassifierOutput, OnnxClassifier, open_classifier
from ssclf.io.records.results import ResultRow
from ssclf.io.volumes.nifti import write_nifti
from ssclf.workflows import classification
from ssclf.workflows.classification import RowMaker

MakeVolume = Callable[..., Volume]
SHAPES = ((20, 26, 22), (20, 26, 22), (18, 24, 22), (20, 26, 22), (18, 24, 22), (20, 26, 22))


class Small:
    """A real classifier that, as a GPU with little memory, takes no more than so many volumes."""

    def __init__(self, inner: Classifier, most: int) -> None:
        self.spec, self.engine, self.device = inner.spec, inner.engine, inner.device
        self.inner, self.most, self.asked = inner, most, list[int]()

    def classify(self, batch: NDArray[np.float32]) -> ClassifierOutput:
        self.asked.append(len(batch))
        if len(batch) > self.most:
            raise RuntimeError("CUDA failure 2: out of memory")
        return self.inner.classify(batch)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Four at once on a CPU; what networks are given is noted."""
    monkeypatch.setitem(batches.TOGETHER, "cpu", 4)
    monkeypatch.setattr(classification, "_PATIENCE_S", 60.0)
    sizes = list[int]()
    classify = OnnxClassifier.classify

    def noted(self: OnnxClassifier, batch: NDArray[np.float32]) -> ClassifierOutput:
        sizes.append(len(batch))
        return classify(self, batch)

    monkeypatch.setattr(OnnxClassifier, "classify", noted)
    return sizes


@pytest.fixture
def scans(tmp_path: Path, make_volume: MakeVolume) -> Path:
    folder = tmp_path / "scans"
    for seed, shape in enumerate(SHAPES):
        write_nifti(make_volume(shape, seed=seed), folder / f"sub-{seed}.nii.gz")
    return folder


def rows(
    folder: Path, bundles: Sequence[Path], config: PredictConfig, **settings: object
) -> dict[str, ResultRow]:
    ensemble = Ensemble([open_bundle(path) for path in bundles], config)
    found = discover([folder], contrasts=ensemble.contrasts).scans
    scratch = folder.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    maker = RowMaker(ensemble, config, scratch, **settings)  # type: ignore[arg-type]
    return {row.path: row for row in maker.rows(found, lambda: False)}


def inputs(shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    return [np.random.default_rng(n).random((1, *shape), np.float32) for n, shape in enumerate(shapes)]


def differ(one: dict[str, ResultRow], other: dict[str, ResultRow]) -> float:
    assert list(map(str, sorted(one))) == sorted(other) and {row.status for row in one.values()} == {"ok"}
    for path, row in one.items():
        assert (row.flags, row.brain_ml) == (other[path].flags, other[path].brain_ml)
    return max(
        float(np.abs(np.subtract(row.probabilities, other[p].probabilities)).max()) for p, row in one.items()
    )


@pytest.mark.parametrize("flip", [False, True])
def test_volumes_of_mixed_shapes_get_the_rows_that_each_gets_alone(
    flip: bool, scans: Path, tiny_bundle: Path, other_bundle: Path, together: list[int]
) -> None:
    config = PredictConfig(skull_strip="none", device="cpu", workers=2, flip=flip)
    bundles = [tiny_bundle, other_bundle]
    many = rows(scans, bundles, config)
    assert max(together) > 1 and sum(together) == len(SHAPES) * len(bundles) * (1 + flip)
    batches.TOGETHER["cpu"] = 1
    together.clear()
    alone = rows(scans, bundles, config)
    assert set(together) == {1}
    assert differ(many, alone) < 1e-4


def test_maps_are_those_of_single_volumes(
    tiny_bundle: Path, make_volume: MakeVolume, together: list[int]
) -> None:
    config = PredictConfig(device="cpu", flip=True, map_method="occlusion")
    volume = make_volume((9, 20, 18))
    bundle = open_bundle(tiny_bundle)
    prepared = {
        bundle.spec.preprocess: PreparedVolume(
            (volume.data / volume.data.max()).astype(np.float32), volume.affine, 1000.0, ()
        )
    }
    found = []
    for count in (4, 1):
        batches.TOGETHER["cpu"] = count
        ensemble = Ensemble([bundle], config)
        found.append(ensemble.evidence(ensemble.judge(prepared)))
    for many, alone in zip(*found, strict=True):
        assert np.abs(many.data - alone.data).max() < 1e-3 * np.abs(alone.data).max()


def test_what_fails_among_others_fails_alone(tiny_bundle: Path, together: list[int]) -> None:
    network = Batches(open_classifier(open_bundle(tiny_bundle), device="cpu", threads=1))
    volumes = inputs([(9, 12, 10)] * 4)
    volumes[2][:] = np.inf
    answers = network.classify(volumes)
    assert [type(answer) for answer in answers] == [ClassifierOutput] * 2 + [VolumeError, ClassifierOutput]
    assert together == [4, 2, 2, 1, 1]
    network.classify(volumes[:2] * 2)
    assert together[5:] == [4]  # one volume's fault takes no batch from the others


def test_what_does_not_fit_is_tried_with_fewer_and_remembered(tiny_bundle: Path, together: list[int]) -> None:
    classifier = open_classifier(open_bundle(tiny_bundle), device="cpu", threads=1)
    network = Batches(Small(classifier, 1))
    volumes = inputs([(9, 12, 10)] * 4)
    answers = network.classify(volumes)
    for volume, answer in zip(volumes, answers, strict=True):
        assert isinstance(answer, ClassifierOutput)
        alone = classifier.classify(volume[None])
        assert np.array_equal(answer.logits, alone.logits) and np.array_equal(answer.cam, alone.cam)
    small = network.classifier
    assert isinstance(small, Small) and small.asked == [4, 2, 1, 1, 2, 1, 1]
    small.asked.clear()
    network.classify(volumes)
    assert small.asked == [1, 1, 1, 1]
    small.most = 0
    assert {type(answer) for answer in network.classify(volumes)} == {RuntimeError}


def test_rows_are_made_one_by_one(scans: Path, tiny_bundle: Path, together: list[int]) -> None:
    """A run that is killed keeps the rows that it has told of: none is told of twice, or before it is whole."""
    config = PredictConfig(skull_strip="none", device="cpu", workers=2)
    ensemble = Ensemble([open_bundle(tiny_bundle)], config)
    found = discover([scans], contrasts=ensemble.contrasts).scans
    broken = [replace(found[0], problem="is broken."), *found[1:]]
    with_problem = RowMaker(ensemble, config, scans).rows(broken, lambda: False)
    assert next(with_problem).error == "is broken."
    assert len({row.path for row in with_problem}) == len(SHAPES) - 1


DRIVER = """
from ssclf.io.models import batches
from ssclf.workflows import classification
batches.TOGETHER["cpu"] = 4
classification._PATIENCE_S = 2.0
from ssclf.cli.app import app
app()
"""


def test_a_stopped_run_finishes_what_is_in_flight(
    tiny_bundle: Path, tmp_path: Path, make_volume: MakeVolume
) -> None:
    folder, out = tmp_path / "many", tmp_path / "r.csv"
    for seed in range(40):
        write_nifti(make_volume(seed=seed), folder / f"sub-{seed:02}.nii.gz")
    command = [sys.executable, "-c", DRIVER, "predict", str(folder), "--out", str(out)]
    command += ["--model", str(tiny_bundle), "--assume-stripped", "--workers", "1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    journal = tmp_path / ".r.csv.ssclf-work" / "journal.jsonl"
    while not (journal.exists() and journal.stat().st_size > 200):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, messages
    finished = len(journal.read_text().splitlines())
    assert 0 < finished < 40 and not out.exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert again.returncode == 0 and f"{finished} done before" in again.stderr, again.stderr
    assert len(out.read_text().splitlines()) == 41


def test_heads_get_the_same_rows_whoever_runs_brain_extraction(
    scans: Path,
    tiny_bundle: Path,
    extraction_models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    for path in extraction_models:
        shutil.copy(path, bundle)
    (bundle / "SHA256SUMS").unlink()
    write_checksums(bundle)
    for path in sorted(scans.iterdir())[2:]:
        path.unlink()
    loaded = list[list[str]]()
    leave = NetworkOwner.__exit__

    def noted(self: NetworkOwner, *words: object) -> None:
        loaded.append(self.loaded)
        leave(self, *words)

    monkeypatch.setattr(NetworkOwner, "__exit__", noted)
    config = PredictConfig(skull_strip="deepbet", device="cpu", workers=2, review_below=0)
    alone = rows(scans, [bundle], config, lent=())
    assert not loaded
    owned = rows(scans, [bundle], config, lent=(("CPUExecutionProvider", {}),))
    assert [len(names) for names in loaded] == [2]
    assert differ(owned, alone) == 0
    stripped = replace(config, skull_strip="none")
    rows(scans, [bundle], stripped, lent=(("CPUExecutionProvider", {}),))
    assert len(loaded) == 1  # nobody is asked where nothing is to be stripped
