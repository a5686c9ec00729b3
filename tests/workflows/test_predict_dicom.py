"""`predict --dicom-out`: a report of every study, whatever is found beside it, and nothing of a patient elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_tools import check_with_tools, need_tools
from dicom_writer import PRIVATE, WrittenSeries, write
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

pytest.importorskip("highdicom", reason="pip install 'ssclf[dicom]'")


@pytest.fixture
def study(make_volume: Callable[..., Volume]) -> Callable[..., str]:
    """Writes the series of one study, described and numbered; returns its StudyInstanceUID."""

    def make(folder: Path, *descriptions: str, gap: bool = False) -> str:
        uid, frame = generate_uid(), generate_uid()
        for number, description in enumerate(descriptions, start=1):
            volume = make_volume(seed=number)
            one = WrittenSeries(
                volume.data[0][:, ::-1, ::-1].astype(np.uint16),
                spacing=volume.spacing,
                number=number,
                attributes={
                    "SeriesDescription": description,
                    "StudyInstanceUID": uid,
                    "FrameOfReferenceUID": frame,
                },
            )
            slices = one.slices()
            for index, ds in enumerate(slices[:9] + slices[11:] if gap else slices):
                write(ds, folder / f"{number}" / f"{index:03d}")
        return uid

    return make


@pytest.fixture
def predict(tiny_bundle: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    def run(*words: object) -> tuple[int, str]:
        fixed = [tmp_path / "scans", "--model", tiny_bundle, "--out", tmp_path / "r.csv", "--workers", 1]
        asked = [str(word) for word in (*fixed, "--assume-stripped", *words)]
        result = CliRunner().invoke(app, ["predict", *asked])
        return result.exit_code, " ".join(result.output.split())

    return run


def objects(folder: Path) -> dict[str, list[pydicom.Dataset]]:
    """Data sets by the kind that their names say, sorted."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted(folder.glob("*.dcm")):
        found.setdefault(path.name.partition("-")[0], []).append(pydicom.dcmread(path))
    return found


def text_of(ds: pydicom.Dataset) -> str:
    return "\n".join(str(element.value) for element in ds.iterall() if element.VR != "SQ")


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return list(json.loads((tmp_path / "r.json").read_text())["rows"])


def test_a_report_of_every_study_and_no_patient_elsewhere(
    predict: Callable[..., tuple[int, str]],
    study: Callable[..., str],
    make_volume: Callable[..., Volume],
    tmp_path: Path,
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "dicom"
    answered = study(scans / "a", "t1 mprage", "t1 mprage post gd", "t2 tse")
    unanswered = study(scans / "b", "t2 flair")
    write_nifti(make_volume(seed=9), scans / "c.nii.gz")
    asked = [
        "--dicom-out",
        out,
        "--maps",
        tmp_path / "maps",
        "--report",
        tmp_path / "r.html",
        "--log-level",
        "debug",
    ]
    code, output = predict(*asked)
    assert code == 0, output
    found = objects(out)
    assert sorted(found) == ["MAP", "SR"] and [len(found[kind]) for kind in ("MAP", "SR")] == [1, 2]
    assert "volumes without a report (no DICOM series): 1" in output
    assert "studies with a DICOM report: 1" in output and "without a class" in output
    reports = {ds.StudyInstanceUID: text_of(ds) for ds in found["SR"]}
    assert "Probability" in reports[answered] and "Probability" not in reports[unanswered]
    assert reports[answered].count("Reason why the series is not answered") == 2
    # the same values at the same places as the NIfTI map
    (heat,) = found["MAP"]
    (row,) = (row for row in rows(tmp_path) if len(row["extra"].get("dicom", {}).get("files", [])) == 2)
    assert row["path"] == "a/2"
    nifti = nib.Nifti1Image.from_filename(tmp_path / "maps" / row["extra"]["map"])
    values, to_voxel = nifti.get_fdata(), np.linalg.inv(nifti.affine)
    frames = np.frombuffer(heat.FloatPixelData, "<f4").reshape(-1, heat.Rows, heat.Columns)
    (shared,) = heat.SharedFunctionalGroupsSequence
    along = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    for frame, group in zip(frames, heat.PerFrameFunctionalGroupsSequence, strict=True):
        start = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for at in ((5, 7), (13, 11), (20, 3)):
            lps = start + along[3:] * rows_mm * at[0] + along[:3] * columns_mm * at[1]
            voxel = to_voxel @ [-lps[0], -lps[1], lps[2], 1]
            assert np.abs(voxel - np.round(voxel)).max() < 1e-3
            assert frame[at] == np.float32(values[tuple(np.round(voxel[:3]).astype(int))])
    # the patient is named in the objects, and nowhere else
    assert all(str(ds.PatientName) == PRIVATE[0] for kind in found.values() for ds in kind)
    elsewhere = [output, *(path.read_text("latin-1") for path in tmp_path.glob("r.*"))]
    assert len(elsewhere) == 4 and not any(word in text for text in elsewhere for word in PRIVATE)
    # again: nothing is done, nothing changes
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, output = predict(*asked)
    assert code == 0 and "5 rows kept" in output
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_is_lost_is_made_again_and_what_is_out_of_date_goes(
    predict: Callable[..., tuple[int, str]], study: Callable[..., str], tmp_path: Path
) -> None:
    """As after a kill: rows without their objects do not stand."""
    out = tmp_path / "dicom"
    study(tmp_path / "scans" / "a", "t1 post", "t2")
    assert predict("--dicom-out", out)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    next(out.glob("MAP-*")).unlink()
    code, output = predict("--dicom-out", out)
    assert code == 0 and "1 rows kept" in output
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "second"\ndescription = "T2"\n')
    code, output = predict("--dicom-out", out, "--series-rules", tmp_path / "rules.toml")
    assert code == 0, output
    after = {path.name for path in out.iterdir()}
    assert len(after) == 2 and not after & set(before)
    assert predict("--dicom-out", out, "--dicom-picture")[0] == 0
    found = objects(out)
    assert (
        sorted(found) == ["PIC", "SR"]
        and found["PIC"][0].SOPClassUID.name == "Secondary Capture Image Storage"
    )
    need_tools()
    for path in out.iterdir():
        check_with_tools(path)


def test_a_series_that_fails_is_reported_without_a_class(
    predict: Callable[..., tuple[int, str]], study: Callable[..., str], tmp_path: Path
) -> None:
    study(tmp_path / "scans" / "a", "t1 post", gap=True)
    code, output = predict("--dicom-out", tmp_path / "dicom")
    assert code == 3, output
    ((report,),) = objects(tmp_path / "dicom").values()
    assert "2 slices missing" in text_of(report) and "Probability" not in text_of(report)


def test_of_several_shards_one_reports_a_study(
    predict: Callable[..., tuple[int, str]], study: Callable[..., str], tmp_path: Path
) -> None:
    study(tmp_path / "scans", *(f"t1 post {number}" for number in range(4)))
    for shard in ("1/2", "2/2"):
        code, output = predict("--dicom-out", tmp_path / "dicom", "--shard", shard)
        assert code == 0, output
    assert len(objects(tmp_path / "dicom")["SR"]) == 1


def test_a_dry_run_says_what_would_be_answered_and_writes_nothing(
    predict: Callable[..., tuple[int, str]], study: Callable[..., str], tmp_path: Path
) -> None:
    study(tmp_path / "scans" / "a", "t1 post", "t2 SECRETWORD")
    before = {path for path in tmp_path.rglob("*")}
    code, output = predict("--dry-run")
    assert code == 0, output
    assert "2 volumes found" in output and "answered is a/1" in output and "a/2 2-" in output
    assert not any(word in output for word in (*PRIVATE, "SECRETWORD"))
    (tmp_path / "rules.json").write_text('{"rule": [{"name": "none", "slices": 1000}]}')
    code, output = predict("--dry-run", "--series-rules", tmp_path / "rules.json")
    assert code == 0 and "no series is answered" in output and "fewer slices" in output
    assert {path for path in tmp_path.rglob("*")} == before | {tmp_path / "rules.json"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dicom-picture"], "--dicom-out"),
        (["--series-rules", "x.toml"], "--dicom-out"),
        (["--dicom-out", "d", "--series-rules", "absent.toml"], "absent.toml"),
    ],
)
def test_options_that_say_nothing_alone(
    words: list[str], said: str, predict: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "scans").mkdir()
    code, output = predict(*words)
    assert code == 1 and said in output


def test_without_the_extra_it_says_what_to_install_and_nothing_else_needs_it(
    tiny_bundle: Path, make_volume: Callable[..., Volume], tmp_path: Path
) -> None:
    write_nifti(make_volume(), tmp_path / "a.nii.gz")
    code = "import sys; sys.modules['highdicom'] = None; from ssclf.cli.app import main; main()"
    words = [
        "predict",
        tmp_path / "a.nii.gz",
        "--model",
        tiny_bundle,
        "--assume-stripped",
        "--out",
        tmp_path / "r.csv",
    ]

    def run(*more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, (*words, *more))]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("--dicom-out", tmp_path / "dicom")
    assert done.returncode == 1 and "pip install 'ssclf[dicom]'" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "dicom").exists()
    assert run().returncode == 0


def test_a_bundle_brings_its_own_rules(
    tiny_bundle: Path, describe_anew: Callable[[Path, str], None], study: Callable[..., str], tmp_path: Path
) -> None:
    import shutil

    from ssclf.domain.model_spec import ModelSpec
    from ssclf.domain.series_rules import SeriesRule

    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    spec = ModelSpec.from_json((tmp_path / "bundle" / "spec.json").read_text(), "spec.json")
    assert "series_rules" not in spec.to_json()
    describe_anew(
        tmp_path / "bundle",
        replace(spec, series_rules=(SeriesRule("the second", description="t2"),)).to_json(),
    )
    study(tmp_path / "scans", "t1 post", "t2")
    words = ["predict", tmp_path / "scans", "--model", tmp_path / "bundle", "--dry-run"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0 and "by rule the second" in result.output, result.output


def fhir_reports(folder: Path) -> list[tuple[Any, Any]]:
    """Each DiagnosticReport with its Observation, as fhir.resources reads them."""
    r4b = pytest.importorskip("fhir.resources.R4B.bundle", reason="pip install 'ssclf[fhir]'")
    found = [r4b.Bundle.model_validate_json(path.read_text("utf-8")) for path in sorted(folder.iterdir())]
    return [tuple(entry.resource for entry in bundle.entry) for bundle in found]


def test_fhir_says_what_the_report_says(
    predict: Callable[..., tuple[int, str]],
    study: Callable[..., str],
    make_volume: Callable[..., Volume],
    tmp_path: Path,
) -> None:
    pytest.importorskip("fhir.resources", reason="pip install 'ssclf[fhir]'")
    scans, fhir = tmp_path / "scans", tmp_path / "fhir"
    study(scans / "a", "t1 mprage post gd")
    study(scans / "b", "t2 flair")  # meets no rule
    write_nifti(make_volume(seed=9), scans / "c.nii.gz")
    asked = ["--dicom-out", tmp_path / "dicom", "--fhir", fhir]
    code, output = predict(*asked)
    assert code == 0, output
    row = next(row for row in rows(tmp_path) if row["path"].startswith("a"))
    said = fhir_reports(fhir)
    assert len(said) == 2  # none of the NIfTI
    for report, observation in said:
        assert report.status == observation.status == "preliminary"
        assert "Research use only" in report.conclusion and "Research use only" in observation.note[0].text
        assert report.subject.identifier.value == PRIVATE[1] and report.subject.reference is None
        assert report.result[0].reference == f"urn:uuid:{observation.id}"
        assert report.imagingStudy[0].identifier.system == "urn:dicom:uid"
    ((_, classified),) = [one for one in said if one[1].component]
    ((silent, absent),) = [one for one in said if not one[1].component]
    assert [round(p, 4) for p in row["probabilities"]] == [
        float(component.valueQuantity.value) for component in classified.component
    ]
    assert row["prediction"] in classified.valueCodeableConcept.text
    assert "meets a rule" in absent.dataAbsentReason.text and absent.valueCodeableConcept is None
    assert "No classification" in silent.conclusion
    written = {path.name: path.read_bytes() for path in fhir.iterdir()}
    assert not any(word in name for word in PRIVATE for name in written)
    assert predict(*asked)[0] == 0
    assert {path.name: path.read_bytes() for path in fhir.iterdir()} == written
    (tmp_path / "r.json").unlink()  # made anew, it is the same
    (tmp_path / "r.csv").unlink()
    assert predict(*asked)[0] == 0
    assert {path.name: path.read_bytes() for path in fhir.iterdir()} == written


def test_fhir_gives_no_class_of_what_should_not_be_used(
    predict: Callable[..., tuple[int, str]], study: Callable[..., str], tmp_path: Path
) -> None:
    pytest.importorskip("fhir.resources", reason="pip install 'ssclf[fhir]'")
    study(tmp_path / "scans" / "gap", "t1 mprage post gd", gap=True)
    code, _ = predict("--dicom-out", tmp_path / "dicom", "--fhir", tmp_path / "fhir")
    assert code == 3
    ((report, observation),) = fhir_reports(tmp_path / "fhir")
    assert "could not be classified" in observation.dataAbsentReason.text and observation.component is None
    assert "No classification" in report.conclusion


def test_fhir_goes_with_reports_alone(predict: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, output = predict("--fhir", tmp_path / "fhir")
    assert code == 1 and "goes with --dicom-out" in output
