"""DICOM: what is found, what makes a volume, and what is refused with which reason."""

from __future__ import annotations

import logging
import pickle
import re
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_writer import PRIVATE, WrittenSeries, write
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, generate_uid

from ssclf.domain.geometry import reorient
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, VolumeError
from ssclf.io.volumes.dicom_series import find_series, is_dicom
from ssclf.io.volumes.dicom_volume import read_series
from ssclf.io.volumes.nifti import read_nifti
from ssclf.io.volumes.read import read_volume

dcm2niix = pytest.importorskip("dcm2niix")

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def make_series() -> Callable[..., WrittenSeries]:
    rng = np.random.default_rng(5)

    def make(count: int = 22, **options: Any) -> WrittenSeries:
        return WrittenSeries(rng.integers(0, 1000, (count, 26, 20)).astype(np.uint16), **options)

    return make


def the_only(folder: Path, work: Path) -> Volume:
    search = find_series(folder)
    assert [left.reason for left in search.left_out] == []
    (series,) = search.series
    return read_series(series, work)


def assert_same(volume: Volume, expected: Volume, *, mm: float = 1e-3) -> None:
    volume, expected = reorient(volume, "SAR"), reorient(expected, "SAR")
    np.testing.assert_array_equal(volume.data, expected.data)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=mm)


def oblique(degrees: float, *, sagittal: bool) -> tuple[float, ...]:
    """Directions of growing column and row, turned about the left-right axis and a little about the vertical."""
    a, b = np.radians([degrees, degrees / 2])
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]]) @ turn
    columns, rows = ([0, 1, 0], [0, 0, -1]) if sagittal else ([1, 0, 0], [0, 1, 0])
    return (*(turn @ columns), *(turn @ rows))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"directions": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)},
        {"directions": oblique(0, sagittal=True)},
        {"directions": oblique(25, sagittal=True)},
        {"directions": oblique(-12, sagittal=False), "attributes": {"Manufacturer": "Philips"}},
        {"attributes": {"Manufacturer": "GE MEDICAL SYSTEMS"}},
    ],
    ids=["axial", "descending", "sagittal", "oblique sagittal", "oblique axial", "GE"],
)
def test_slices_become_the_volume_they_are(
    make_series: Callable[..., WrittenSeries], tmp_path: Path, options: dict[str, Any]
) -> None:
    series = make_series(**options)
    series.write(tmp_path / "in")
    assert_same(the_only(tmp_path / "in", tmp_path), series.volume)


@pytest.mark.parametrize("manufacturer", ["SIEMENS", "Philips"])
@pytest.mark.parametrize("order", [range(22), range(21, -1, -1), [*range(0, 22, 2), *range(1, 22, 2)]])
def test_enhanced_multiframe(
    make_series: Callable[..., WrittenSeries], tmp_path: Path, order: list[int], manufacturer: str
) -> None:
    series = make_series(attributes={"Manufacturer": manufacturer})
    write(series.enhanced(order), tmp_path / "in" / "one.dcm")
    assert_same(the_only(tmp_path / "in", tmp_path), series.volume)


MAKERS = (
    "SIEMENS",
    "GE MEDICAL SYSTEMS",
    "Philips Medical Systems",
    "TOSHIBA_MEC",
    "CANON_MEC",
    "UIH",
    "Bruker BioSpin MRI GmbH",
    "Hitachi, Ltd.",
    None,
)


@st.composite
def enhanced_files(draw: Any) -> tuple[WrittenSeries, dict[str, Any]]:
    """A series with a random order of frames, scalings, maker and number of stacks."""
    maker = draw(st.sampled_from(MAKERS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(10, 16))
    series = WrittenSeries(
        rng.integers(0, 1000, (count, 14, 18)).astype(np.uint16),
        directions=oblique(draw(st.integers(-20, 20)), sagittal=draw(st.booleans())),
        attributes={"Manufacturer": maker},
    )
    kind = draw(st.sampled_from(["none", "one", "each"]))
    slopes = {"none": None, "one": [1.5] * count, "each": rng.uniform(0.25, 4, count).round(3).tolist()}[kind]
    scaling = slopes and [(slope, draw(st.sampled_from([0.0, -7.0]))) for slope in slopes]
    order = draw(st.permutations(range(count)) | st.sampled_from([range(count), range(count - 1, -1, -1)]))
    return series, {
        "order": list(order),
        "scaling": scaling,
        "numbered_as_stored": draw(st.booleans()),
        "stacks": draw(st.sampled_from([1, 1, 2])),
    }


def check_the_frames_are_the_volume(
    series: WrittenSeries, options: dict[str, Any], folder: Path, *, single: bool = False
) -> bool:
    """Right voxels in the right place, but for one factor and offset, or a refusal; whether they were read."""
    if single:  # one enhanced file for each frame
        for number, frame in enumerate(options["order"]):
            ds = series.enhanced(**{**options, "order": [frame]})
            ds.InstanceNumber = number + 1
            write(ds, folder / "in" / f"{number}.dcm")
    else:
        write(series.enhanced(**options), folder / "in" / "one.dcm")
    scaling = np.array(options["scaling"] or [(1.0, 0.0)] * len(series.pixels))[..., None, None]
    own = Volume((series.pixels * scaling[:, 0] + scaling[:, 1])[None], series.volume.affine)
    try:
        found = reorient(the_only(folder / "in", folder), "SAR")
    except VolumeError:
        return False
    expected = reorient(own, "SAR")
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-3)
    places = [
        np.unravel_index(end, expected.data.shape) for end in (expected.data.argmin(), expected.data.argmax())
    ]
    (a, b), (x, y) = ([float(v.data[place]) for place in places] for v in (expected, found))
    factor = (y - x) / (b - a)
    assert factor > 0
    np.testing.assert_allclose(found.data, x + factor * (expected.data - a), atol=1e-4 * (abs(x) + abs(y)))
    return True


FEW = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
    phases=[Phase.generate],
)


@settings(FEW, max_examples=40)
@given(file=enhanced_files(), single=st.booleans())
def test_enhanced_frames_come_to_their_place_with_their_scaling(
    file: tuple[WrittenSeries, dict[str, Any]], single: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """dcm2niix left 2 of 77 slices in place, or gave all frames the scaling of the first, and the row was ok."""
    check_the_frames_are_the_volume(*file, tmp_path_factory.mktemp("case"), single=single)


@pytest.mark.parametrize("maker", MAKERS)
def test_enhanced_files_of_every_maker_are_read(maker: str | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    series = WrittenSeries(
        rng.integers(0, 1000, (12, 14, 18)).astype(np.uint16), attributes={"Manufacturer": maker}
    )
    shuffled = rng.permutation(12).tolist()
    slopes = [(1 + n / 8, 0.0) for n in range(12)]
    for number, (order, scaling) in enumerate(((range(12), None), (shuffled, None), (shuffled, slopes))):
        options = {"order": list(order), "scaling": scaling, "numbered_as_stored": True}
        assert check_the_frames_are_the_volume(series, options, tmp_path / str(number))


def test_enhanced_files_of_several_volumes_are_refused(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    series = make_series(12)
    for name, order, reason in (
        ("twice", [*range(12), *range(12)], "slices where another one lies"),
        ("gap", [*range(4), *range(6, 12)], "2 slices missing"),
    ):
        write(series.enhanced(order), tmp_path / name / "one.dcm")
        with pytest.raises(VolumeError, match=reason):
            the_only(tmp_path / name, tmp_path)
    for keyword, group, values in (
        ("TemporalPositionIndex", "FrameContentSequence", (1, 2)),
        ("EffectiveEchoTime", "MREchoSequence", (3.0, 90.0)),
    ):
        ds = series.enhanced([*range(12), *range(12)])
        for index, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
            item = frame.get(group, [pydicom.Dataset()])[0]
            setattr(item, keyword, values[index // 12])
            setattr(frame, group, [item])
        write(ds, tmp_path / keyword / "one.dcm")
        with pytest.raises(VolumeError, match=r"a series of 2 (time points|echoes)"):
            the_only(tmp_path / keyword, tmp_path)


@pytest.mark.parametrize("ordered", [True, False])
def test_pixels_that_nothing_here_decodes_are_believed_only_in_order(
    make_series: Callable[..., WrittenSeries],
    tmp_path: Path,
    ordered: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What pydicom cannot decode, dcm2niix may: of frames out of order its word is not enough."""
    monkeypatch.setattr(get_decoder(RLELossless), "_available", {})
    series = make_series(12)
    ds = write(series.enhanced(range(12) if ordered else [*range(6, 12), *range(6)]), tmp_path / "a")
    packed = pydicom.dcmread(ds)
    packed.compress(RLELossless, generate_instance_uid=False)
    (tmp_path / "in").mkdir()
    packed.save_as(tmp_path / "in" / "one.dcm")
    if ordered:
        assert_same(the_only(tmp_path / "in", tmp_path), series.volume)
    else:
        with pytest.raises(VolumeError, match="frames stored in the order of space"):
            the_only(tmp_path / "in", tmp_path)


def test_nested_folders_and_archives_give_the_same(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    series = make_series()
    files = series.write(tmp_path / "flat")
    with zipfile.ZipFile(tmp_path / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for index, file in enumerate(files):
            nested = tmp_path / "nested" / "study" / f"part{index % 3}" / f"IM{index}"
            nested.parent.mkdir(parents=True, exist_ok=True)
            nested.write_bytes(file.read_bytes())
            archive.write(file, f"any/where/{index % 2}/{file.name}.dcm")
        archive.writestr("readme.txt", "no image")
    for place in ("flat", "nested", "series.zip"):
        (found,) = find_series(tmp_path / place).series
        assert_same(read_series(found, tmp_path), series.volume)
    assert find_series(tmp_path / "nested").series[0].location == tmp_path / "nested" / "study"
    assert find_series(tmp_path / "series.zip").series[0].location == tmp_path / "series.zip"


def test_relative_places_serve_as_well(
    make_series: Callable[..., WrittenSeries], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dcm2niix runs inside the work folder, where a relative path of that folder led nowhere."""
    made = make_series()
    made.write(tmp_path / "scans")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    assert_same(the_only(Path("scans"), Path("work")), made.volume)


def test_a_file_list_is_searched_like_a_folder(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    files = make_series().write(tmp_path / "in")
    assert find_series(files).series == find_series(tmp_path / "in").series


def test_several_series_in_one_folder_stay_apart(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    first, second = make_series(number=2), make_series(20, number=7)
    for name, series in (("a", first), ("b", second)):
        for index, ds in enumerate(series.slices()):
            write(ds, tmp_path / "in" / f"{index}{name}")
    found = find_series(tmp_path / "in").series
    assert [one.name.split("-")[0] for one in found] == ["2", "7"]
    for one, series in zip(found, (first, second), strict=True):
        assert_same(read_series(one, tmp_path), series.volume)


def test_copies_of_a_series_are_series_of_their_own(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    """A second copy elsewhere must not change what the first one gives."""
    series = make_series()
    files = series.write(tmp_path / "in" / "a")
    for file in files:
        (tmp_path / "in" / "b").mkdir(exist_ok=True)
        (tmp_path / "in" / "b" / file.name).write_bytes(file.read_bytes())
    found = find_series(tmp_path / "in").series
    assert [one.location.name for one in found] == ["a", "b"]
    for one in found:
        assert_same(read_series(one, tmp_path), series.volume)


def test_a_file_copied_beside_itself_counts_once(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    series = make_series()
    files = series.write(tmp_path / "in")
    (tmp_path / "in" / "copy").write_bytes(files[3].read_bytes())
    assert_same(the_only(tmp_path / "in", tmp_path), series.volume)


def test_without_preamble(make_series: Callable[..., WrittenSeries], tmp_path: Path) -> None:
    series = make_series()
    (tmp_path / "in").mkdir()
    for index, ds in enumerate(series.slices()):
        path = tmp_path / "in" / str(index)
        pydicom.dcmwrite(path, ds, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM" and is_dicom(path)
    assert_same(the_only(tmp_path / "in", tmp_path), series.volume)


def test_run_length_encoded_and_big_endian(make_series: Callable[..., WrittenSeries], tmp_path: Path) -> None:
    series = make_series()
    for index, ds in enumerate(series.slices()):
        big = write(ds, tmp_path / "big" / str(index))
        ds.PixelData = series.pixels[index].astype(">u2").tobytes()
        write(ds, big, ExplicitVRBigEndian)
        ds.PixelData = series.pixels[index].astype("<u2").tobytes()
        packed = pydicom.dcmread(write(ds, tmp_path / "rle" / str(index)))
        packed.compress(RLELossless, generate_instance_uid=False)
        packed.save_as(tmp_path / "rle" / str(index))
    assert_same(the_only(tmp_path / "big", tmp_path), series.volume)
    assert_same(the_only(tmp_path / "rle", tmp_path), series.volume)


@pytest.mark.parametrize("manufacturer", ["SIEMENS", "Philips"])
@pytest.mark.parametrize("numbers", ["shuffled", "equal", "none"])
def test_instance_numbers_need_not_follow_positions(
    make_series: Callable[..., WrittenSeries], tmp_path: Path, numbers: str, manufacturer: str
) -> None:
    """dcm2niix sorts by them and skips slices; the files that we were given stay as they are."""
    series = make_series(attributes={"Manufacturer": manufacturer})
    shuffled = np.random.default_rng(1).permutation(22) + 1
    for index, ds in enumerate(series.slices()):
        ds.InstanceNumber = {"shuffled": int(shuffled[index]), "equal": 1, "none": None}[numbers]
        write(ds, tmp_path / "in" / str(index))
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    assert_same(the_only(tmp_path / "in", tmp_path), series.volume)
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


@pytest.mark.parametrize("decimals", [1, 2])
def test_rounded_positions(make_series: Callable[..., WrittenSeries], tmp_path: Path, decimals: int) -> None:
    """The step between two slices is off by a few per cent then, the mean over all slices is not."""
    series = make_series(70, spacing=(1.3333, 6.0, 7.0))
    for index, ds in enumerate(series.slices()):
        ds.ImagePositionPatient = [round(value, decimals) for value in ds.ImagePositionPatient]
        write(ds, tmp_path / "in" / str(index))
    assert_same(the_only(tmp_path / "in", tmp_path), series.volume, mm=0.1)


def test_intensities_scaled_slice_by_slice(make_series: Callable[..., WrittenSeries], tmp_path: Path) -> None:
    series = make_series()
    slopes = 1 + np.arange(22) / 8
    for index, ds in enumerate(series.slices()):
        ds.RescaleSlope, ds.RescaleIntercept = slopes[index], -5
        write(ds, tmp_path / "in" / str(index))
    expected = Volume(series.pixels[None] * slopes[:, None, None] - 5, series.volume.affine)
    volume = reorient(the_only(tmp_path / "in", tmp_path), "SAR")
    np.testing.assert_allclose(volume.data, reorient(expected, "SAR").data, rtol=1e-5)


def break_series(series: WrittenSeries, kind: str) -> list[pydicom.Dataset]:
    slices = series.slices()
    if kind == "missing":
        return slices[:8] + slices[10:]
    if kind == "single":
        return slices[:1]
    if kind == "doubled":
        again = WrittenSeries(series.pixels[::-1].copy(), uid=series.uid).slices()[4]
        return [*slices, again]
    if kind in ("echoes", "types", "times"):
        kinds: dict[str, dict[str, Any]] = {
            "echoes": {"EchoTime": 90.0},
            "types": {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},
            "times": {"AcquisitionNumber": 2},
        }
        return slices + WrittenSeries(series.pixels, uid=series.uid, attributes=kinds[kind]).slices()
    if kind == "directions":
        other = WrittenSeries(series.pixels, uid=series.uid, directions=(0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
        return slices + other.slices()
    if kind == "sizes":
        return slices + WrittenSeries(series.pixels[:3, :20], uid=series.uid, origin=(0, 0, 300)).slices()
    if kind == "pixel size":
        slices[2].PixelSpacing = [6.0, 6.5]
    elif kind == "uneven":
        for index, ds in enumerate(slices):
            ds.ImagePositionPatient = [-70, -80, -60 + 6.5 * index + 0.2 * index**1.5]
    elif kind == "shifted":
        for index, ds in enumerate(slices):
            ds.ImagePositionPatient = [-70 + 9 * (index % 2), -80, -60 + 6.5 * index]
    elif kind == "no position":
        del slices[5].ImagePositionPatient
    elif kind == "colour":
        slices[0].PhotometricInterpretation = "MONOCHROME1"
    elif kind == "mosaic":
        for ds in slices:
            ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    return slices


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "2 slices missing"),
        ("single", "a single one"),
        ("doubled", "1 of 23 slices where another one lies"),
        ("echoes", "2 echoes"),
        ("types", "2 image types"),
        ("times", "2 time points"),
        ("directions", "localiser or holds several stacks"),
        ("sizes", "slices of one size"),
        ("pixel size", "one pixel size"),
        ("uneven", "evenly spaced"),
        ("shifted", "shifted against each other"),
        ("no position", "no position"),
        ("colour", "grey values"),
        ("mosaic", "mosaic"),
    ],
)
def test_what_is_no_volume_says_why(
    make_series: Callable[..., WrittenSeries], tmp_path: Path, kind: str, reason: str
) -> None:
    for index, ds in enumerate(break_series(make_series(), kind)):
        write(ds, tmp_path / "in" / f"{index:03d}")
    (series,) = find_series(tmp_path / "in").series
    with pytest.raises(VolumeError, match=reason) as caught:
        read_volume(series, tmp_path)
    assert str(caught.value).startswith(f"{series.location.name}: ") and "\n" not in str(caught.value)


def test_tilted_slices_are_refused(make_series: Callable[..., WrittenSeries], tmp_path: Path) -> None:
    make_series(tilt=15.0).write(tmp_path / "in")
    with pytest.raises(VolumeError, match=r"tilt of 15\.0 degrees"):
        the_only(tmp_path / "in", tmp_path)


@pytest.mark.parametrize("gone", [slice(0, 3), slice(1, 22, 2)], ids=["at the start", "every second one"])
def test_slices_missing_where_positions_cannot_tell_are_flagged(
    make_series: Callable[..., WrittenSeries], tmp_path: Path, gone: slice
) -> None:
    files = make_series().write(tmp_path / "in")
    for file in files[gone]:
        file.unlink()
    assert the_only(tmp_path / "in", tmp_path).flags == ("incomplete_series",)


def test_announced_images_that_are_not_there_are_flagged(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    make_series(attributes={"ImagesInAcquisition": 30}).write(tmp_path / "in")
    assert the_only(tmp_path / "in", tmp_path).flags == ("incomplete_series",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Modality": "CT", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, "the modality is CT, not MR."),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser."),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "no MR image"),
        ({"Rows": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "a DICOM object without an image."),
    ],
)
def test_what_is_left_out(
    make_series: Callable[..., WrittenSeries], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    kept = make_series()
    kept.write(tmp_path / "in" / "kept")
    make_series(3, attributes=change).write(tmp_path / "in" / "other")
    search = find_series(tmp_path / "in")
    assert [one.uid for one in search.series] == [kept.uid]
    (left,) = search.left_out
    assert left.reason.startswith(reason) and not left.broken
    assert (left.files, left.path) == (3, tmp_path / "in" / "other")


def test_series_are_chosen_by_their_description(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    make_series(number=1).write(tmp_path / "a")
    make_series(number=2, attributes={"SeriesDescription": "T2 tse"}).write(tmp_path / "b")
    search = find_series(tmp_path, matching="mprage|spgr")
    assert [one.name[:2] for one in search.series] == ["1-"]
    assert [left.reason for left in search.left_out] == ["the series description does not match --series."]
    with pytest.raises(ConfigError, match="--series"):
        find_series(tmp_path, matching="(")


def test_broken_files_are_not_passed_over(make_series: Callable[..., WrittenSeries], tmp_path: Path) -> None:
    """A damaged last slice leaves an even stack behind; it has to show up all the same."""
    files = make_series().write(tmp_path / "in")
    files[-1].write_bytes(files[-1].read_bytes()[:200])
    (tmp_path / "in" / "other.dcm").write_bytes(b"no DICOM")
    broken = [left for left in find_series(tmp_path / "in").left_out if left.broken]
    assert {left.path.name for left in broken} == {files[-1].name, "other.dcm"}


def test_pixels_cut_short(make_series: Callable[..., WrittenSeries], tmp_path: Path) -> None:
    files = make_series().write(tmp_path / "in")
    files[4].write_bytes(files[4].read_bytes()[:-100])
    with pytest.raises(VolumeError, match="cut short"):
        the_only(tmp_path / "in", tmp_path)


def test_deflated_data_sets_are_refused_before_they_are_inflated(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    for index, ds in enumerate(make_series(4).slices()):
        write(ds, tmp_path / "in" / str(index), DeflatedExplicitVRLittleEndian)
    search = find_series(tmp_path / "in")
    assert search.series == ()
    assert [(left.files, left.broken) for left in search.left_out] == [(4, True)]
    assert "deflated" in search.left_out[0].reason


def test_archives_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    search = find_series(tmp_path)
    reasons = {left.path.name: (left.reason, left.broken) for left in search.left_out}
    assert reasons["empty.zip"] == ("the archive holds no DICOM.", False)
    assert "damaged" in reasons["bad.zip"][0] and reasons["bad.zip"][1]


def test_members_of_an_archive_cannot_leave_the_work_folder(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    series = make_series()
    files = series.write(tmp_path / "flat")
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        for file in files:
            archive.write(file, f"../../escaped-{file.name}")
    work = tmp_path / "deep" / "er" / "work"
    work.mkdir(parents=True)
    assert_same(the_only(tmp_path / "slip.zip", work), series.volume)
    assert not list(tmp_path.rglob("escaped-*"))
    assert list(work.iterdir()) == []


def test_archives_have_limits(
    make_series: Callable[..., WrittenSeries], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_series().write(tmp_path / "flat")
    with zipfile.ZipFile(tmp_path / "series.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    monkeypatch.setattr("ssclf.io.volumes.dicom_files.MAX_ARCHIVE_FILES", 10)
    (left,) = find_series(tmp_path / "series.zip").left_out
    assert "more than is opened" in left.reason and left.broken


def test_links_out_of_the_folder_are_not_followed(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    files = make_series().write(tmp_path / "outside")
    (tmp_path / "in").mkdir()
    for file in files:
        (tmp_path / "in" / file.name).symlink_to(file)
    assert find_series(tmp_path / "in").series == ()


def test_neighbours_in_the_folder_do_not_matter(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    """dcm2niix, given one file, converts the whole folder around it."""
    series = make_series()
    write(series.enhanced(range(22)), tmp_path / "in" / "wanted.dcm")
    write(make_series().enhanced(range(22)), tmp_path / "in" / "other.dcm")
    assert_same(read_volume(tmp_path / "in" / "wanted.dcm", tmp_path), series.volume)


def test_nothing_of_a_person_is_kept_and_nobody_is_warned(
    make_series: Callable[..., WrittenSeries],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    series = make_series()
    for index, ds in enumerate(series.slices()):
        path = write(ds, tmp_path / "in" / str(index))
        # an impossible date and a wrong padding, as hospitals' archives have them
        path.write_bytes(path.read_bytes().replace(b"20200101", b"2020-1-1"))
    work = tmp_path / "work"
    work.mkdir()
    (found,) = find_series(tmp_path / "in").series
    read_series(found, work)
    out, err = capfd.readouterr()
    assert (out, err, caplog.text) == ("", "", "")
    assert list(work.iterdir()) == []
    said = repr(found) + found.name
    assert not any(word in said for word in (*PRIVATE, series.uid, "MPRAGE"))
    assert re.fullmatch(r"3-[0-9a-f]{8}", found.name)
    assert pickle.loads(pickle.dumps(found)) == found and hash(found) == hash(found)


def test_series_that_vanished_since_the_search(
    make_series: Callable[..., WrittenSeries], tmp_path: Path
) -> None:
    files = make_series().write(tmp_path / "in")
    (series,) = find_series(tmp_path / "in").series
    files[0].unlink()
    with pytest.raises(VolumeError, match="cannot be read"):
        read_series(series, tmp_path)


def test_damaged_headers_end_as_reasons(make_series: Callable[..., WrittenSeries], tmp_path: Path) -> None:
    """Bytes of one header or of all changed at random: the volume, a reason, never another exception."""
    series = make_series(10)
    files = series.write(tmp_path / "in")
    good = [file.read_bytes() for file in files]
    rng = np.random.default_rng(2)
    outcomes = {"read": 0, "refused": 0, "broken": 0}
    for attempt in range(60):
        places = rng.integers(132, len(good[0]) - series.pixels[0].nbytes - 16, 3)
        values = rng.integers(0, 256, 3)
        for index, (file, content) in enumerate(zip(files, good, strict=True)):
            raw = bytearray(content)
            for place, value in zip(places, values, strict=True):
                if attempt % 2 or index == attempt % 10:
                    raw[place] = value
            file.write_bytes(raw)
        search = find_series(tmp_path / "in")
        outcomes["broken"] += any(left.broken for left in search.left_out)
        for found in search.series:
            try:
                read_volume(found, tmp_path)
                outcomes["read"] += 1
            except VolumeError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 0


def test_no_dicom_at_all(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x" * 400)
    assert not is_dicom(tmp_path / "notes.txt") and not is_dicom(tmp_path / "missing")
    assert find_series(tmp_path) == find_series([])


# Real series


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("d2n_ge_anatomical", "d2n_ge_anatomical_expected.nii.gz"),
        ("d2n_generic_jpeg2000", "d2n_generic_jpeg2000_expected.nii.gz"),
        ("d2n_generic_rle", "d2n_generic_jpeg2000_expected.nii.gz"),  # the same noise, compressed otherwise
    ],
)
def test_series_agree_with_the_expected_conversion(
    shared_data: Path, tmp_path: Path, folder: str, expected: str
) -> None:
    volume = the_only(shared_data / "dicom" / folder, tmp_path)
    assert_same(volume, read_nifti(shared_data / "dicom" / expected))


def test_real_series_from_folder_archive_and_nifti(shared_data: Path, tmp_path: Path) -> None:
    archive = shared_data / "dicom" / "datalad_T1w_384_slices.zip"
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "folder")
    (tmp_path / "nifti").mkdir()
    subprocess.run(
        [dcm2niix.bin, "-b", "n", "-f", "v", "-o", tmp_path / "nifti", tmp_path / "folder"],
        check=True,
        capture_output=True,
    )
    (found,) = find_series(archive).series
    from_archive = read_volume(found, tmp_path)
    assert from_archive.shape[0] == 384 and from_archive.flags == ()
    assert_same(from_archive, the_only(tmp_path / "folder", tmp_path), mm=0)
    assert_same(from_archive, read_volume(tmp_path / "nifti" / "v.nii"))


def test_unique_identifiers_are_hashed(make_series: Callable[..., WrittenSeries], tmp_path: Path) -> None:
    uid = generate_uid()
    make_series(uid=uid).write(tmp_path)
    (found,) = find_series(tmp_path).series
    assert found.uid == uid and uid not in found.name
