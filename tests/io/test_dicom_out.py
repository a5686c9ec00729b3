"""DICOM objects that are written about a series: in the right place, the same again, and what others can read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_tools import check_with_tools, need_tools
from dicom_writer import PRIVATE, WrittenSeries, write
from numpy.typing import NDArray

from ssclf.domain.series_rules import OtherSeries
from ssclf.domain.study_report import NOTICE, StudyReport, study_report
from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.dicom_out.source import read_facts, read_source
from ssclf.io.dicom_out.write import Evidence, write_objects
from ssclf.io.volumes.dicom_series import DicomSeries, find_series
from ssclf.io.volumes.nifti import write_nifti
from ssclf.io.volumes.read import read_volume

pytest.importorskip("highdicom", reason="pip install 'ssclf[dicom]'")

#: ImageOrientationPatient: LPS+ directions of columns' and rows' growing index.
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
SPACING = (7.5, 6.0, 7.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def turned(degrees: float, about: int) -> tuple[float, ...]:
    """Axial directions, turned about an axis of the body."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(3)
    others = [axis for axis in range(3) if axis != about]
    turn[np.ix_(others, others)] = [[c, -s], [s, c]]
    return tuple(float(v) for v in np.concatenate([turn[:, 0], turn[:, 1]]))


def pixels(seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(100, 900, (9, 12, 10)).astype(np.uint16)


MADE: dict[str, WrittenSeries] = {
    "axial": WrittenSeries(pixels(), spacing=SPACING),
    "sagittal": WrittenSeries(pixels(), spacing=SPACING, directions=SAGITTAL),
    "coronal": WrittenSeries(pixels(), spacing=SPACING, directions=CORONAL),
    "oblique": WrittenSeries(pixels(), directions=turned(27.0, 0), spacing=(7.3, 5.7, 6.9)),
    "twice oblique": WrittenSeries(
        pixels(), spacing=SPACING, directions=turned(-12.5, 1), origin=(31.7, -4.2, 12.9)
    ),
    "left-handed": WrittenSeries(pixels(), spacing=SPACING, directions=(-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
}


@dataclass(frozen=True)
class Written:
    series: DicomSeries
    volume: Volume
    folder: Path

    def objects(self, report: StudyReport, evidence: Evidence | None, name: str = "out") -> list[Path]:
        out, work = self.folder / name, self.folder / "work"
        for each in (out, work):
            each.mkdir(exist_ok=True)
        return [out / file for file in write_objects(report, [read_source(self.series, work)], out, evidence)]


def read(found: Path, folder: Path) -> Written:
    (series,) = find_series(found).series
    return Written(series, read_volume(series, folder), folder)


def stored(made: WrittenSeries, folder: Path, how: str) -> Path:
    """Write a series: in the order of space, reversed, in any order, as one enhanced file, or in an archive."""
    slices = made.slices()
    if how == "enhanced":
        write(made.enhanced([4, 0, 8, 2, 6, 1, 3, 7, 5]), folder / "in" / "enhanced.dcm")
    elif how == "archive":
        with zipfile.ZipFile(folder / "in.zip", "w") as archive:
            for index, ds in enumerate(slices):
                archive.write(write(ds, folder / "tmp" / f"{index}.dcm"), f"s/{index}.dcm")
        return folder / "in.zip"
    else:
        order = {"along": range(9), "reversed": range(8, -1, -1), "shuffled": [3, 8, 0, 5, 1, 7, 2, 6, 4]}[
            how
        ]
        for name, index in enumerate(order):
            write(slices[index], folder / "in" / f"{name:03d}.dcm")
    return folder / "in"


def a_report(**changes: Any) -> StudyReport:
    values: dict[str, Any] = {
        "class_names": ("LGG", "HGG", "healthy"),
        "probabilities": (0.12345678, 0.7, 0.17654322),
        "prediction": "HGG",
        "status": "ok",
        "error": "",
        "flags": ("low_confidence",),
        "models": (("tiny", "ab" * 32),),
        "version": "0.0",
        "settings": "flip False",
        "synthetic": True,
        "rule": "t1ce",
        "others": (OtherSeries("1.2.840.1", 4, "meets no rule: another description."),),
    }
    return study_report(**{**values, **changes})


def marked(shape: tuple[int, ...], place: tuple[int, ...]) -> NDArray[np.float32]:
    values = np.zeros(shape, np.float32)
    values[place] = np.float32(1.2345678)
    return values


def place_of_peak(path: Path) -> tuple[NDArray[np.float64], np.float32]:
    """Where the highest value of a parametric map lies in RAS+ mm, from its own functional groups alone."""
    ds = pydicom.dcmread(path)
    assert "FloatPixelData" in ds and "PixelData" not in ds
    values = np.frombuffer(ds.FloatPixelData, "<f4").reshape(-1, ds.Rows, ds.Columns)
    frame, row, column = np.unravel_index(values.argmax(), values.shape)
    (shared,) = ds.SharedFunctionalGroupsSequence
    along = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    group = ds.PerFrameFunctionalGroupsSequence[int(frame)]
    start = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
    lps = start + along[:3] * between_columns * column + along[3:] * between_rows * row
    return lps * [-1, -1, 1], values[frame, row, column]


@pytest.mark.parametrize("how", ["along", "reversed", "shuffled", "enhanced", "archive"])
@pytest.mark.parametrize("name", MADE)
def test_a_marked_voxel_lies_where_the_nifti_map_has_it(name: str, how: str, tmp_path: Path) -> None:
    made = read(stored(MADE[name], tmp_path, how), tmp_path)
    place = tuple(int(n * share) for n, share in zip(made.volume.shape, (0.3, 0.7, 0.2), strict=True))
    heat = marked(made.volume.shape, place)
    write_nifti(Volume(heat[None], made.volume.affine), tmp_path / "map.nii.gz")
    nifti = nib.Nifti1Image.from_filename(tmp_path / "map.nii.gz")
    at = np.unravel_index(nifti.get_fdata().argmax(), nifti.shape)
    expected = nib.affines.apply_affine(nifti.affine, at)
    _, found = made.objects(a_report(), Evidence(heat, made.volume.affine))
    lies, value = place_of_peak(found)
    assert np.abs(lies - expected).max() < 0.1
    assert value == np.float32(1.2345678)


def test_a_map_of_uneven_slices_lies_where_its_values_belong(tmp_path: Path) -> None:
    """Slices may lie a tenth of their distance beside even steps; a map's values are worked out at the even ones."""
    slices = WrittenSeries(pixels(), spacing=(8.0, 7.0, 7.5)).slices()
    x, y, z = map(float, slices[4].ImagePositionPatient)
    slices[4].ImagePositionPatient = [x, y, z + 0.7]
    for index, ds in enumerate(slices):
        write(ds, tmp_path / "in" / f"{index}.dcm")
    (series,) = find_series(tmp_path / "in").series
    stack = read_source(series, tmp_path).stack
    assert stack is not None
    made = Written(series, Volume(np.zeros((1, *stack.shape), np.uint16), stack.affine), tmp_path)
    _, found = made.objects(a_report(), Evidence(marked(stack.shape, (4, 5, 6)), stack.affine))
    assert np.abs(place_of_peak(found)[0] - (stack.affine @ [4, 5, 6, 1])[:3]).max() < 0.1


def test_a_map_of_another_grid_is_refused(tmp_path: Path) -> None:
    made = read(stored(MADE["axial"], tmp_path, "along"), tmp_path)
    askew = made.volume.affine @ np.diag([1.1, 1, 1, 1])
    with pytest.raises(VolumeError, match="changed since"):
        made.objects(a_report(), Evidence(marked(made.volume.shape, (1, 1, 1)), askew))


def test_the_same_again_is_the_same_bytes_and_another_model_another_object(tmp_path: Path) -> None:
    made = read(stored(MADE["axial"], tmp_path, "shuffled"), tmp_path)
    evidence = Evidence(marked(made.volume.shape, (4, 5, 6)), made.volume.affine)
    first, again = (made.objects(a_report(), evidence, name) for name in ("one", "two"))
    assert [path.name for path in first] == [path.name for path in again]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    rounded = a_report(probabilities=(0.12345679, 0.7, 0.17654321))  # another machine's
    assert [p.read_bytes() for p in made.objects(rounded, evidence, "three")] == [
        p.read_bytes() for p in first
    ]
    others = [
        a_report(models=(("tiny", "cd" * 32),)),
        a_report(version="0.1"),
        a_report(settings="flip True"),
        a_report(status="failed", error="too slow."),
        a_report(others=()),
    ]
    names = {path.name for report in others for path in made.objects(report, evidence, "four")}
    assert not names & {path.name for path in first} and len(names) == 2 * len(others) - 1


def text_of(path: Path) -> str:
    """Every value of an object."""
    return "\n".join(str(element.value) for element in pydicom.dcmread(path).iterall() if element.VR != "SQ")


def test_what_a_report_says(tmp_path: Path) -> None:
    made = read(stored(MADE["axial"], tmp_path, "along"), tmp_path)
    report, found = made.objects(
        a_report(), Evidence(marked(made.volume.shape, (1, 2, 3)), made.volume.affine)
    )
    ds, source = pydicom.dcmread(report), pydicom.dcmread(next((tmp_path / "in").iterdir()))
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDescription", "StudyDate"):
        assert ds[keyword].value == source[keyword].value
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID and ds.Modality == "SR"
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert "RESEARCH USE ONLY" in ds.SeriesDescription and ds.ContentQualification == "RESEARCH"
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    counts = {s.SeriesInstanceUID: len(s.ReferencedSOPSequence) for s in study.ReferencedSeriesSequence}
    heat = pydicom.dcmread(found)
    assert counts == {source.SeriesInstanceUID: 9, heat.SeriesInstanceUID: 1}
    assert heat.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert "RESEARCH USE ONLY" in heat.SeriesDescription and "RESEARCH USE ONLY" in heat.ContentDescription
    text = text_of(report)
    for said in (
        NOTICE, "ab" * 32, "ssclf tiny", "High grade glioma (HGG)", "low confidence", "0.1235", "0.7", "393564001",
        "1.2.840.1", "meets no rule: another description.", "trained on synthetic volumes",
    ):  # fmt: skip
        assert said in text, said
    assert "InstanceCreationDate" not in ds and ds.ContentDate == "20200101"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "failed", "error": "expected evenly spaced slices."}, "evenly spaced"),
        ({"flags": ("wrong_contrast",)}, "does not look like the contrast"),
        ({"flags": ("partial_coverage", "oblique")}, "field of view"),
        ({"rule": ""}, "No series of this study meets a rule"),
    ],
)
def test_what_may_not_be_said_is_not(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    made = read(stored(MADE["sagittal"], tmp_path, "along"), tmp_path)
    evidence = Evidence(marked(made.volume.shape, (1, 2, 3)), made.volume.affine)
    (report,) = made.objects(a_report(**changes), evidence)
    text = text_of(report)
    assert reason in text and "No classification" in text and NOTICE in text
    assert "Probability" not in text and "glioma" not in text and "Glioma" not in text


def test_a_series_that_makes_no_stack_is_told_of_and_has_no_map(tmp_path: Path) -> None:
    slices = MADE["axial"].slices()
    for index in (0, 1, 5, 6, 8):
        write(slices[index], tmp_path / "in" / f"{index}")
    (series,) = find_series(tmp_path / "in").series
    made = Written(series, MADE["axial"].volume, tmp_path)
    (report,) = made.objects(a_report(status="failed", error="slices are missing."), None)
    assert "slices are missing." in text_of(report)


@pytest.mark.parametrize(
    ("charset", "name"), [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 192", "山田^太郎"), (None, "plain")]
)
def test_names_in_any_alphabet_arrive(charset: str | None, name: str, tmp_path: Path) -> None:
    attributes: dict[str, Any] = {"PatientName": name}
    if charset:
        attributes["SpecificCharacterSet"] = charset
    one = replace(MADE["axial"], attributes=attributes)
    made = read(stored(one, tmp_path, "along"), tmp_path)
    evidence = Evidence(marked(made.volume.shape, (1, 2, 3)), made.volume.affine)
    paths = made.objects(a_report(class_names=("größer", "HGG", "healthy")), evidence)
    for path in paths:
        assert str(pydicom.dcmread(path).PatientName) == name
    assert "größer" in text_of(paths[0])


@pytest.mark.filterwarnings("ignore:The value length")  # of the writer here
def test_headers_that_break_the_standard_cost_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """highdicom's own warning of a name without a caret quotes it."""
    slices = replace(MADE["axial"], attributes={"PatientName": "SECRETNAME"}).slices()
    for index, ds in enumerate(slices):
        for keyword in ("StudyDate", "StudyTime", "PatientID", "SliceThickness"):
            delattr(ds, keyword)
        ds.PatientSex, ds.AccessionNumber = "UNKNOWN", "longer than it may be"
        write(ds, tmp_path / "in" / f"{index}")
    made = read(tmp_path / "in", tmp_path)
    paths = made.objects(a_report(), Evidence(marked(made.volume.shape, (1, 2, 3)), made.volume.affine))
    ds = pydicom.dcmread(paths[0])
    assert ds.ContentDate == "19000101" and len(paths) == 2 and ds.PatientSex == ""
    assert ds.AccessionNumber == "longer than it may be"  # what an archive files it by stays as it is
    assert "SECRETNAME" not in caplog.text


def kinds() -> Iterator[tuple[str, str]]:
    yield from (("axial", how) for how in ("along", "shuffled", "enhanced"))
    yield from (("oblique", "reversed"), ("sagittal", "enhanced"))


@pytest.mark.parametrize(("name", "how"), kinds())
def test_others_accept_what_is_written(name: str, how: str, tmp_path: Path) -> None:
    need_tools()
    made = read(stored(MADE[name], tmp_path, how), tmp_path)
    heat = Evidence(marked(made.volume.shape, (1, 2, 3)), made.volume.affine)
    picture = Evidence(np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8))
    reports = [
        (a_report(), heat),
        (a_report(), picture),
        (a_report(), None),
        (a_report(flags=("wrong_contrast",)), heat),
        (a_report(rule="", others=(OtherSeries("1.2.3", 0, "meets no rule: fewer slices."),)), None),
        (a_report(class_names=("größer", "b" * 80, "c"), prediction="b" * 80), heat),
    ]
    for report, evidence in reports:
        for path in made.objects(report, evidence):
            check_with_tools(path)


def test_facts_of_a_series(tmp_path: Path) -> None:
    one = replace(
        MADE["sagittal"], attributes={"ContrastBolusAgent": "Gadovist", "ScanningSequence": ["GR", "IR"]}
    )
    (series,) = find_series(stored(one, tmp_path, "along")).series
    facts = read_facts(series, ("in", series.name), tmp_path)
    assert (facts.agent, facts.sequences, facts.plane) == (True, ("GR", "IR"), "sagittal")
    assert (facts.number, facts.thickness_mm, facts.slices, facts.uid) == (3, 7.5, 9, one.uid)
    assert facts.description == "T1 MPRAGE post" and "MPRAGE" not in repr(facts)
    (tmp_path / "e").mkdir()
    (series,) = find_series(stored(replace(one, attributes={}), tmp_path / "e", "enhanced")).series
    facts = read_facts(series, ("in", series.name), tmp_path)
    assert (facts.agent, facts.plane, facts.thickness_mm, facts.slices) == (False, "sagittal", 7.5, 9)


@pytest.fixture
def real(shared_data: Path, tmp_path: Path) -> Callable[[str], Written]:
    def unpack(name: str) -> Written:
        found = shared_data / "dicom" / name
        if found.suffix == ".zip":
            with zipfile.ZipFile(found) as archive:
                archive.extractall(tmp_path / "in")
            found = tmp_path / "in"
        return read(found, tmp_path)

    return unpack


@pytest.mark.parametrize("name", ["datalad_T1w_384_slices.zip", "pacsman_phantom_series.zip"])
def test_real_series(name: str, real: Callable[[str], Written], tmp_path: Path) -> None:
    made = real(name)
    place = tuple(int(n * share) for n, share in zip(made.volume.shape, (0.3, 0.7, 0.2), strict=True))
    heat = marked(made.volume.shape, place)
    paths = made.objects(a_report(), Evidence(heat, made.volume.affine))
    expected = made.volume.affine @ [*place, 1]
    assert np.abs(place_of_peak(paths[1])[0] - expected[:3]).max() < 0.1
    need_tools()
    for path in paths:
        check_with_tools(path)


def test_a_series_without_a_frame_of_reference_has_a_report_and_no_map(tmp_path: Path) -> None:
    slices = MADE["axial"].slices()
    for index, ds in enumerate(slices):
        del ds.FrameOfReferenceUID
        write(ds, tmp_path / "in" / f"{index}")
    made = read(tmp_path / "in", tmp_path)
    (report,) = made.objects(a_report(), Evidence(marked(made.volume.shape, (1, 2, 3)), made.volume.affine))
    assert "High grade glioma (HGG)" in text_of(report)


def test_no_name_of_a_file_tells_of_the_patient(tmp_path: Path) -> None:
    made = read(stored(MADE["axial"], tmp_path, "along"), tmp_path)
    for path in made.objects(a_report(), None):
        assert not any(word in path.name for word in PRIVATE) and made.series.uid not in path.name
