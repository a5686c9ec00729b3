from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssclf.config import PreprocessConfig, config_to_dict
from ssclf.domain.likeness import describe_likeness
from ssclf.domain.scores import softmax
from ssclf.domain.volume import Volume
from ssclf.errors import DatasetError, LeakageError
from ssclf.io.discovery.scans import Scan
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.runtime import open_classifier
from ssclf.io.preparation import prepare_scan
from ssclf.io.volumes.nifti import read_written, write_nifti
from ssclf.workflows.evaluate import evaluate

SETTINGS = PreprocessConfig(spacing=(6.0, 6.0, 6.0))  # those of tiny_bundle
LABELS = ("HGG", "LGG", "HGG", "healthy", "LGG", "healthy")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Six preprocessed volumes of unequal shapes. Synthetic, and unknown to the model."""
    folder = tmp_path / "cohort"
    random = np.random.default_rng(4)
    rows = ["subject,label,source,path,settings,voxels,extraction"]
    for number, label in enumerate(LABELS):
        data = random.random((1, 9 + number % 2, 14, 11 + number), np.float32)
        write_nifti(Volume(data, np.diag([6.0, 6, 6, 1])[[2, 1, 0, 3]]), folder / f"v{number}.nii.gz")
        rows.append(f"s{number},{label},site{number % 2},v{number}.nii.gz,{SETTINGS.hash},{number:064x},none")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    values = {"preprocess": config_to_dict(SETTINGS), "hash": SETTINGS.hash, "synthetic": True}
    (folder / "settings.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def knowing_bundle(tiny_bundle: Path, tmp_path: Path, describe_anew: Callable[[Path, str], None]) -> Path:
    """A model that says it was trained on the first two volumes of the cohort, with a temperature."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "knowing"))
    spec = json.loads((folder / "spec.json").read_text())
    spec["training"]["voxels"] = [f"{k:064x}" for k in range(2)]
    spec["calibration"]["temperature"] = 2.0
    describe_anew(folder, json.dumps(spec))
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_bundle_s_own_answers(
    cohort: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    done: list[tuple[int, int]] = []
    found = evaluate(
        cohort, tiny_bundle, tmp_path / "out", device="cpu", threads=1, on_volume=lambda *n: done.append(n)
    )
    assert done == [(k, 6) for k in range(1, 7)]
    bundle = open_bundle(tiny_bundle)
    classifier = open_classifier(bundle, device="cpu", threads=1)
    right = 0
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    for row, label in zip(rows, LABELS, strict=True):
        p = softmax(classifier.classify(read_written(cohort / row["path"]).data[None]).logits[0])
        assert row["prediction"] == bundle.spec.class_names[p.argmax()]
        assert [float(row[f"p_{name}"]) for name in bundle.spec.class_names] == pytest.approx(p, abs=1e-5)
        right += row["prediction"] == row["label"] == label
    assert found.raw is not None and found.raw.accuracy == pytest.approx(right / 6)
    assert [sum(row) for row in found.raw.confusion] == [2, 2, 2]
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (
        values["synthetic"] is True and values["volumes"] == 6 and values["not_checked_for_being_seen"] == 6
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Evaluation (synthetic)" in page and "site1" in page and "Research use only" in page
    assert {row["network"] for row in rows_of(tmp_path / "out" / "tables.csv")} == {"tiny"}
    assert (tmp_path / "out" / "figures" / "confusion.png").is_file()


def test_a_report_that_cannot_be_written_costs_no_scores(
    cohort: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    found = evaluate(cohort, tiny_bundle, tmp_path / "out", device="cpu", threads=1)
    assert not found.reported and found.exit_code == 3
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["volumes"] == 6
    assert len(rows_of(tmp_path / "out" / "predictions.csv")) == 6


def test_volumes_of_the_training_are_refused_or_left_out(
    cohort: Path, knowing_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(LeakageError, match="trained on 2 of these 6 volumes"):
        evaluate(cohort, knowing_bundle, tmp_path / "out", device="cpu", threads=1)
    assert not (tmp_path / "out").exists()
    found = evaluate(cohort, knowing_bundle, tmp_path / "out", seen="leave-out", device="cpu", threads=1)
    assert (found.volumes, found.seen, found.unchecked) == (4, 2, 0)
    assert [row["path"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == [
        f"v{k}.nii.gz" for k in range(2, 6)
    ]
    assert (
        "2 volumes were left out: the model was trained on them"
        in (tmp_path / "out" / "report.html").read_text()
    )
    assert found.raw and found.calibrated
    assert found.raw.accuracy == found.calibrated.accuracy and found.raw.brier != found.calibrated.brier


def test_classes_and_settings_must_be_the_model_s(cohort: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = cohort / "manifest.csv"
    text = manifest.read_text()
    manifest.write_text(text.replace("LGG", "metastasis"))
    with pytest.raises(DatasetError, match="found metastasis"):
        evaluate(cohort, tiny_bundle, tmp_path / "out")
    other = PreprocessConfig(spacing=(5.0, 6.0, 6.0))
    manifest.write_text(text.replace(SETTINGS.hash, other.hash))
    values = {"preprocess": config_to_dict(other), "hash": other.hash, "synthetic": True}
    (cohort / "settings.json").write_text(json.dumps(values))
    with pytest.raises(DatasetError, match="other settings"):
        evaluate(cohort, tiny_bundle, tmp_path / "out")


def test_scans_are_preprocessed_as_the_model_needs_them(
    make_volume: Callable[..., Volume], tiny_bundle: Path, tmp_path: Path
) -> None:
    for number, label in enumerate(("LGG", "healthy", "LGG", "healthy")):
        write_nifti(make_volume(seed=number), tmp_path / "scans" / label / f"s{number}.nii.gz")
    found = evaluate(tmp_path / "scans", tiny_bundle, tmp_path / "out", device="cpu", threads=1)
    assert found.volumes == 4 and found.failed == 0 and found.exit_code == 0
    settings = json.loads((tmp_path / "out" / "network-input" / "settings.json").read_text())
    assert settings["hash"] == SETTINGS.hash
    again = evaluate(
        tmp_path / "out" / "network-input", tiny_bundle, tmp_path / "again", device="cpu", threads=1
    )
    assert again.raw == found.raw
    # HGG is a class of the model, and none is here
    assert again.raw is not None and again.raw.per_class["HGG"].roc_auc is None


def test_a_cohort_of_one_class_can_be_scored_though_not_trained_on(
    make_volume: Callable[..., Volume], tiny_bundle: Path, tmp_path: Path
) -> None:
    for number in range(3):
        write_nifti(make_volume(seed=number), tmp_path / "scans" / "LGG" / f"s{number}.nii.gz")
    found = evaluate(tmp_path / "scans", tiny_bundle, tmp_path / "out", device="cpu", threads=1)
    assert found.raw is not None
    recall = found.raw.per_class["LGG"].recall
    assert recall == found.raw.accuracy
    assert found.raw.macro_f1 == found.raw.per_class["LGG"].f1, "absent classes are no zeros in the mean"
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_training_scan_is_left_out_however_it_is_stored(
    make_volume: Callable[..., Volume],
    tiny_bundle: Path,
    tmp_path: Path,
    describe_anew: Callable[[Path, str], None],
    without_marks: Callable[[Path], None],
) -> None:
    """Only equal voxels were known again: a scan rounded to whole numbers passed as unseen."""
    for number, label in enumerate(("LGG", "healthy", "LGG", "healthy")):
        write_nifti(make_volume(seed=number), tmp_path / "scans" / label / f"s{number}.nii.gz")
    seen = prepare_scan(Scan("", (tmp_path / "scans/LGG/s2.nii.gz",)), SETTINGS).volume
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "knowing"))
    spec = json.loads((bundle / "spec.json").read_text())
    spec["training"]["likenesses"] = [describe_likeness(seen.data, seen.affine)]
    describe_anew(bundle, json.dumps(spec))
    volume = make_volume(seed=2)
    rounded = Volume(np.round(volume.data).astype(np.int16), volume.affine)
    (tmp_path / "scans/LGG/s2.nii.gz").unlink()
    write_nifti(rounded, tmp_path / "scans/LGG/s2-again.nii")
    found = evaluate(tmp_path / "scans", bundle, tmp_path / "out", seen="leave-out", device="cpu", threads=1)
    assert (found.volumes, found.seen, found.unchecked) == (3, 1, 0)
    assert "volumes/s2-again.nii.gz" not in [
        row["path"] for row in rows_of(tmp_path / "out" / "predictions.csv")
    ]
    prepared = tmp_path / "out" / "network-input"
    rows = (prepared / "manifest.csv").read_text().splitlines()
    without = [line.rsplit(",", 1)[0] for line in rows]  # as an earlier version wrote it
    (prepared / "manifest.csv").write_text("\n".join(without) + "\n")
    without_marks(prepared / "settings.json")
    with pytest.raises(LeakageError, match="trained on 1 of these 4 volumes"):
        evaluate(prepared, bundle, tmp_path / "again", device="cpu", threads=1)


def test_an_unknown_class_is_refused_before_anything_is_preprocessed(
    make_volume: Callable[..., Volume], tiny_bundle: Path, tmp_path: Path
) -> None:
    """It was refused after all volumes had been preprocessed."""
    for number, label in enumerate(("lgg-", "healthy", "metastasis")):
        write_nifti(make_volume(seed=number), tmp_path / "scans" / label / f"s{number}.nii.gz")
    with pytest.raises(
        DatasetError, match=r"found lgg- \(.*lgg-/s0\.nii\.gz\), metastasis \(.*s2\.nii\.gz\)"
    ) as refused:
        evaluate(tmp_path / "scans", tiny_bundle, tmp_path / "out", device="cpu", threads=1)
    assert "--class lgg-=LGG" in str(refused.value)
    assert not (tmp_path / "out").exists()
