from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssclf.config import PredictConfig, TrainConfig
from ssclf.domain.generator.draw import draw_brain
from ssclf.domain.trust import contrast_profiles
from ssclf.domain.volume import Volume
from ssclf.io.models.bundle import open_bundle
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.io.volumes.nifti import read_written, write_nifti
from ssclf.learning.loops import Predictions
from ssclf.learning.statistics import training_statistics
from ssclf.workflows.export import ExportConfig, export_run
from ssclf.workflows.lesions import with_lesions
from ssclf.workflows.predict import iterate, predict
from ssclf.workflows.train import Machine, train


def predictions(features: np.ndarray) -> Predictions:
    count = len(features)
    return Predictions(np.zeros((count, 3), np.float32), np.zeros(count, np.int64), features, 0.0)


def test_held_out_volumes_set_the_limit(preprocessed: Callable[..., Path]) -> None:
    cohort = read_prepared_cohort(preprocessed(per_class=8, contrasts=("t1", "t1ce")))
    rng = np.random.default_rng(0)
    draw = lambda n, spread: (spread * rng.standard_normal((n, 32))).astype(np.float32)  # noqa: E731
    volumes = [read_written(sample.path) for sample in cohort.samples[:12]]
    found = {
        "train": predictions(draw(12, 1)),
        "validation": predictions(draw(4, 3)),
        "test": predictions(draw(8, 3)),
    }
    with_held_out = training_statistics(volumes, found)
    without = training_statistics(volumes, {"train": found["train"]})
    assert with_held_out["features"]["centre"] == without["features"]["centre"]
    assert with_held_out["features"]["limit"] > without["features"]["limit"]
    assert len(with_held_out["contrasts"]) == 2
    assert with_held_out["contrasts"][0] != with_held_out["contrasts"][1]
    assert training_statistics(volumes[:5], {"train": predictions(draw(5, 1))}) == {}


def test_volumes_that_are_drawn_are_described_as_they_were_drawn(
    preprocessed: Callable[..., Path], tmp_path: Path
) -> None:
    """Lesions and scanners are what such a network is trained on: the brains before say nothing of them."""
    torch.set_num_threads(1)
    data = preprocessed(labels=("healthy",), per_class=9)
    config = TrainConfig.preset(
        "default", architecture="small", epochs=1, lesions=True, holdout=0.0, augmentation="none"
    )
    run = train(data, tmp_path / "run", config, machine=Machine(device="cpu", workers=0)).run
    told = json.loads((run / "provenance.json").read_text())["training"]["statistics"]["contrasts"]
    cohort = with_lesions(read_prepared_cohort(data, min_classes=0))
    profiles = []
    for index, key in enumerate(json.loads((run / "split.json").read_text())["splits"][0]["train"]):
        (sample,) = cohort.select([key])
        volume, _ = draw_brain(read_written(sample.path), sample.label, (0, 0, index))  # type: ignore[arg-type]
        profiles.append(contrast_profiles(volume.data, volume.affine)[0])
    assert len(profiles) == 27
    assert [float(x) for x in told[0]["centre"].split()] == pytest.approx(np.mean(profiles, axis=0), abs=1e-5)


def test_statistics_reach_the_rows_of_predict(
    preprocessed: Callable[..., Path], without_marks: Callable[[Path], None], tmp_path: Path
) -> None:
    """From training to a flag, through the bundle, with both engines and in an ensemble."""
    torch.set_num_threads(1)
    data = preprocessed(per_class=5, shape=(9, 20, 18), name="data")
    config = TrainConfig(
        epochs=1, learning_rate=1e-3, batch_size=3, holdout=0.0, precision="32-true", augmentation="none"
    )
    run = train(data, tmp_path / "run", config, machine=Machine(device="cpu", workers=0)).run
    bundle = export_run(run, tmp_path / "with", ExportConfig(brain_extraction=False))
    statistics = open_bundle(bundle).spec.training["statistics"]
    assert statistics["features"]["volumes"] == 15
    assert open_bundle(bundle / "model.onnx").spec.training["statistics"] == statistics
    provenance = json.loads((run / "provenance.json").read_text())
    del provenance["training"]["statistics"]
    (run / "provenance.json").write_text(json.dumps(provenance))
    without_marks(run / "provenance.json")
    plain = export_run(run, tmp_path / "without", ExportConfig(brain_extraction=False))

    original = read_written(data / "HGG/HGG0.nii.gz")
    phantom = np.select([original.data > 0.5, original.data > 0], [1, 0.01]).astype(np.float32)
    write_nifti(Volume(original.data * 0.999, original.affine), tmp_path / "scans" / "like.nii.gz")
    write_nifti(Volume(phantom, original.affine), tmp_path / "scans" / "unlike.nii.gz")

    def flags(models: list[Path], engine: str) -> dict[str, set[str]]:
        options = PredictConfig(skull_strip="none", engine=engine, device="cpu", threads=1)  # type: ignore[arg-type]
        interesting = {"wrong_contrast", "unlike_training"}
        rows = list(iterate([tmp_path / "scans"], models, options))
        assert [row.error for row in rows] == ["", ""]
        return {row.path: interesting.intersection(row.flags) for row in rows}

    alone = flags([bundle], "onnx")
    assert alone["like.nii.gz"] == set()
    assert "wrong_contrast" in alone["unlike.nii.gz"]
    assert flags([bundle], "torchscript") == alone
    assert flags([plain, bundle], "onnx") == alone
    assert not any(flags([plain], "onnx").values())

    # thousands of numbers are for the bundle, not for every table
    predict(
        [tmp_path / "scans"], tmp_path / "r.csv", [bundle], PredictConfig(skull_strip="none", device="cpu")
    )
    (model,) = json.loads((tmp_path / "r.json").read_text())["run"]["models"]
    assert "statistics" not in model["training"] and model["training"]["synthetic"]
