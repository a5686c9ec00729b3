"""One scan in any arrangement of its files is one volume: folders, archives, junk, copies and damage beside it."""

from __future__ import annotations

import io
import os
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writer import WrittenSeries, write
from pydicom.uid import generate_uid

from ssclf.domain.geometry import reorient
from ssclf.errors import VolumeError
from ssclf.io.discovery.cohorts import CohortQuery, find_cases
from ssclf.io.discovery.scans import Scan, with_own_keys
from ssclf.io.discovery.sources import Discovery, discover
from ssclf.io.volumes.dicom_grouping import Member, split_copies
from ssclf.io.volumes.dicom_series import DicomSeries, find_series
from ssclf.io.volumes.read import read_volume

pytest.importorskip("dcm2niix")
pytestmark = pytest.mark.timeout(300)

JUNK = {
    "._IM0001.dcm": b"\0\5\x16\7" + bytes(200),
    ".DS_Store": bytes(600),
    "Thumbs.db": b"thumbs",
    "readme.txt": b"x",
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture
def made() -> WrittenSeries:
    return WrittenSeries(np.random.default_rng(7).integers(0, 1000, (14, 26, 20)).astype(np.uint16))


def files_of(series: WrittenSeries, folder: Path) -> dict[str, bytes]:
    for index, ds in enumerate(series.slices()):
        write(ds, folder / f"IM{index + 1:04d}.dcm")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def zipped(files: list[tuple[str, bytes]]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own on equal names, which the format allows
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def put(root: Path, files: list[tuple[str, bytes]]) -> None:
    for name, content in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def find(*paths: Path) -> Discovery:
    return discover(paths, contrasts=("t1",))


def voxels(scan: Scan, work: Path) -> Any:
    return reorient(read_volume(scan.contrasts[0], work), "SAR").data


def arrangements(
    files: dict[str, bytes], draw: random.Random
) -> Iterator[tuple[str, list[tuple[str, bytes]], int]]:
    """Name, files and number of rows that are expected."""
    plain = list(files.items())
    spread = [(f"scan/part{draw.randrange(3)}/{name}", content) for name, content in plain]
    junk = [(f"scan/{name}", content) for name, content in JUNK.items()]
    packed_junk = [*junk, *((f"__MACOSX/{name}", content) for name, content in JUNK.items())]
    inner = [(f"scan/{name}", content) for name, content in plain]
    again = [(f"scan/part0/again {name}", content) for name, content in draw.sample(plain, 3)]
    equal = [("scan/IM", content) for _, content in plain]
    copy = [(f"copy/{name}", content) for name, content in inner]
    yield "folder", inner, 1
    yield "spread over folders", spread, 1
    yield "some slices twice", spread + again, 1
    yield "junk beside", spread + junk, 1
    yield "a copy beside", inner + copy, 2
    yield "a whole folder beside one of its slices", [*inner, ("cd/IM1", draw.choice(plain)[1])], 1
    yield "zip", [("a.zip", zipped(inner + packed_junk))], 1
    yield "zip with folders, one slice twice", [("a.zip", zipped(spread + again))], 1
    yield "zip with equal names", [("a.zip", zipped(equal))], 1
    yield "zip with a copy", [("a.zip", zipped(inner + copy))], 2
    yield "zip in a zip", [("a.zip", zipped([("in/b.zip", zipped(spread)), *packed_junk]))], 1
    yield (
        "a zip and a copy of it in a zip",
        [("a.zip", zipped([(n, zipped(inner)) for n in ("b.zip", "c.zip")]))],
        2,
    )


@pytest.mark.parametrize("seed", range(3))
def test_any_arrangement_of_a_scan_gives_its_voxels(made: WrittenSeries, tmp_path: Path, seed: int) -> None:
    files = files_of(made, tmp_path / "slices")
    expected = reorient(made.volume, "SAR").data
    for number, (name, arranged, rows) in enumerate(arrangements(files, random.Random(seed))):
        root = tmp_path / str(number)
        put(root, arranged)
        found = find(root)
        keys = [(scan.path, scan.series) for scan in found.scans]
        assert len(keys) == len(set(keys)) == rows, (name, keys)
        for scan in found.scans:
            assert not scan.problem, (name, scan.problem)
            np.testing.assert_array_equal(voxels(scan, tmp_path), expected, name)


def test_two_series_with_equal_member_names_keep_their_voxels(tmp_path: Path) -> None:
    """Members were found again by name, which gave both series the voxels of the second."""
    rng = np.random.default_rng(1)
    pair = [
        WrittenSeries(rng.integers(0, 1000, (12, 26, 20)).astype(np.uint16), number=n, uid=f"1.2.3.{n}")
        for n in (3, 4)
    ]
    members = [item for one in pair for item in files_of(one, tmp_path / str(one.number)).items()]
    put(tmp_path / "in", [("both.zip", zipped(members))])
    scans = find(tmp_path / "in").scans
    assert [scan.series[:2] for scan in scans] == ["3-", "4-"]
    for scan, series in zip(scans, pair, strict=True):
        np.testing.assert_array_equal(voxels(scan, tmp_path), reorient(series.volume, "SAR").data)


def test_an_archive_that_changed_since_the_search_is_not_read(made: WrittenSeries, tmp_path: Path) -> None:
    files = files_of(made, tmp_path / "slices")
    put(tmp_path, [("a.zip", zipped(list(files.items())))])
    (series,) = find_series(tmp_path / "a.zip").series
    other = WrittenSeries(made.pixels, uid="1.2.840.99")
    put(tmp_path, [("a.zip", zipped(list(files_of(other, tmp_path / "other").items())))])
    with pytest.raises(VolumeError, match=r"another series|has changed"):
        read_volume(series, tmp_path)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "cut short": lambda content: content[:100],
    "pointer": lambda content: POINTER,
    "cut behind the mark": lambda content: content[:200],
    "text": lambda content: b"gone" * 200,
}


@pytest.mark.parametrize("place", ["folder", "zip"])
@pytest.mark.parametrize("ending", [".dcm", "", ".42"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_slices_are_known_to_their_series(
    made: WrittenSeries, tmp_path: Path, kind: str, ending: str, place: str
) -> None:
    """Slices at an end leave an even stack behind: the rest was classified as if it were whole."""
    files = list(files_of(made, tmp_path / "slices").items())
    content = [(name.replace(".dcm", ending), data) for name, data in files]
    content[-2:] = [(name, DAMAGE[kind](data)) for name, data in content[-2:]]
    put(tmp_path / "in", content if place == "folder" else [("a.zip", zipped(content))])
    found = find(tmp_path / "in").scans
    (whole,) = (scan for scan in found if not scan.problem)
    (problem,) = (scan.problem for scan in found if scan.problem)
    assert "DICOM" in problem
    source = whole.contrasts[0]
    assert isinstance(source, DicomSeries) and source.lost == 2
    assert "incomplete_series" in read_volume(source, tmp_path).flags


def test_what_is_no_slice_beside_slices_loses_none(made: WrittenSeries, tmp_path: Path) -> None:
    files = list(files_of(made, tmp_path / "slices").items())
    put(tmp_path / "in", [*files, *JUNK.items(), ("notes.txt", b""), ("VERSION", b"")])
    (scan,) = find(tmp_path / "in").scans
    assert isinstance(scan.contrasts[0], DicomSeries) and scan.contrasts[0].lost == 0


def test_pointers_in_the_place_of_a_series_or_a_volume_cost_a_row(tmp_path: Path) -> None:
    put(
        tmp_path,
        [(f"scan/IM{n}.dcm", POINTER) for n in range(9)]
        + [("t1.nii.gz", POINTER), ("a.zip", POINTER), ("a.txt", POINTER)],
    )
    assert {scan.path: "git lfs pull" in scan.problem for scan in find(tmp_path).scans} == {
        "a.zip": True,
        "scan": True,
        "t1.nii.gz": True,
    }


@pytest.mark.parametrize("manufacturer", ["SIEMENS", "GE MEDICAL SYSTEMS", "Philips", "CANON_MEC"])
@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", [3.0, 3.01, 3.02]),
        ("StudyTime", ["101010", "101011"]),
        ("StudyDate", ["20200101", "20200102"]),
        ("SeriesDescription", ["T1 MPRAGE", "T1 MPRAGE post", ""]),
        ("SeriesNumber", [3, 4]),
        ("AcquisitionNumber", list(range(1, 20))),
    ],
)
def test_values_that_vary_inside_a_series_part_nothing(
    made: WrittenSeries, tmp_path: Path, keyword: str, values: list[Any], manufacturer: str
) -> None:
    """dcm2niix makes a volume of each, and the series was refused for ever."""
    for index, ds in enumerate(made.slices()):
        ds.Manufacturer = manufacturer
        setattr(ds, keyword, values[index % len(values)])
        write(ds, tmp_path / "in" / str(index))
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    (scan,) = find(tmp_path / "in").scans
    np.testing.assert_array_equal(voxels(scan, tmp_path), reorient(made.volume, "SAR").data)
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before


def test_slices_of_two_contrasts_are_no_volume_wherever_they_lie(made: WrittenSeries, tmp_path: Path) -> None:
    for index, ds in enumerate(made.slices()):
        ds.EchoTime = [3.0, 90.0][index % 2]
        write(ds, tmp_path / "in" / str(index))
    (scan,) = find(tmp_path / "in").scans
    with pytest.raises(VolumeError, match="echo times that differ"):
        voxels(scan, tmp_path)


def uid_per_slice(series: WrittenSeries, folder: Path, *, skip: int = -1, one_number: bool = True) -> None:
    for index, ds in enumerate(series.slices()):
        ds.SeriesInstanceUID = generate_uid(entropy_srcs=[series.uid, str(series.number), str(index)])
        if not one_number:
            ds.SeriesNumber = index + 1
        if index != skip:
            write(ds, folder / f"{series.number}-{index}")


@pytest.mark.parametrize("one_number", [True, False])
def test_a_series_uid_for_each_slice_is_one_row(
    made: WrittenSeries, tmp_path: Path, one_number: bool
) -> None:
    uid_per_slice(made, tmp_path / "in", one_number=one_number)
    (scan,) = find(tmp_path / "in").scans
    np.testing.assert_array_equal(voxels(scan, tmp_path), reorient(made.volume, "SAR").data)


def test_two_volumes_with_a_series_uid_for_each_slice_stay_two(made: WrittenSeries, tmp_path: Path) -> None:
    post = WrittenSeries(made.pixels[::-1].copy(), uid=made.uid, number=5)
    for series in (made, post):
        uid_per_slice(series, tmp_path / "in" / str(series.number))
    found = find(tmp_path / "in").scans
    assert [scan.path for scan in found] == ["3", "5"]


def test_slices_with_series_uids_of_their_own_that_make_no_volume_are_one_row(
    made: WrittenSeries, tmp_path: Path
) -> None:
    uid_per_slice(made, tmp_path / "in", skip=6)
    (scan,) = find(tmp_path / "in").scans
    assert "13 series of one slice each" in scan.problem


def test_copies_hold_the_same_instances_property() -> None:
    """Random trees: every copy is whole, no file is in two, and what is left repeats images of a whole copy."""
    draw = random.Random(3)
    for _ in range(300):
        images = draw.randrange(1, 6)
        folders = [f"{a}/{b}" for a in "ab" for b in "cd"] + ["a", "b", ""]
        members = [
            Member(f"{folder}/{index}-{image}".lstrip("/"), image)
            for index, folder in enumerate(draw.choices(folders, k=draw.randrange(1, 5)))
            for image in range(images)
            if draw.random() < draw.choice([0.5, 1.0])
        ]
        if not members:
            continue
        wanted = {member.instance for member in members}
        copies, again = split_copies(members)
        parts = [*copies, *again]
        assert sorted(m.name for part in parts for m in part) == sorted(m.name for m in members)
        assert all({member.instance for member in copy} == wanted for copy in copies)


def test_a_part_of_a_series_beside_the_whole_is_known_to_lack_slices(
    made: WrittenSeries, tmp_path: Path
) -> None:
    files = list(files_of(made, tmp_path / "slices").items())
    put(tmp_path / "in", [(f"whole/{n}", c) for n, c in files] + [(f"part/{n}", c) for n, c in files[:11]])
    part, whole = find(tmp_path / "in").scans
    assert (part.path, whole.path) == ("part", "whole")
    for scan, flags in ((part, ("incomplete_series",)), (whole, ())):
        assert tuple(f for f in read_volume(scan.contrasts[0], tmp_path).flags if "incomplete" in f) == flags


def test_a_part_beside_the_whole_is_no_training_volume(made: WrittenSeries, tmp_path: Path) -> None:
    for label in ("HGG", "LGG"):
        one = WrittenSeries(
            made.pixels, number=len(label), attributes={"FrameOfReferenceUID": generate_uid()}
        )
        files = list(files_of(one, tmp_path / label / "slices").items())
        root = tmp_path / "in" / label / f"{label} 1"
        put(root, [(f"whole/{n}", c) for n, c in files] + [(f"part/{n}", c) for n, c in files[:11]])
    cohort = find_cases(CohortQuery(sources=(tmp_path / "in",), contrasts=("t1",)))
    assert [Path(case.scan.path).name for case in cohort.cases] == ["whole", "whole"]
    assert cohort.left_out["a part of a DICOM series that lies elsewhere whole"] == 2


def test_a_pipe_that_was_named_is_not_opened(tmp_path: Path) -> None:
    put(tmp_path, [("a.nii.gz", b"")])
    for name in ("pipe.zip", "pipe.nii.gz", "pipe"):
        os.mkfifo(tmp_path / name)
        problems = [scan.problem for scan in find(tmp_path / name, tmp_path / "a.nii.gz").scans]
        assert sorted(map(bool, problems)) == [False, True]


def test_keys_are_unique_property(tmp_path: Path) -> None:
    draw = random.Random(5)
    for _ in range(200):
        scans = [
            Scan(draw.choice(["a", "a#2", "a#3", "b"]), (tmp_path / str(n),), draw.choice(["", "3-1"]))
            for n in range(draw.randrange(8))
        ]
        told = with_own_keys(scans)
        assert len({(scan.path, scan.series) for scan in told}) == len(told) == len(scans)
        assert told == with_own_keys(draw.sample(scans, len(scans)))


def test_a_case_folder_and_a_case_in_a_folder_have_keys_of_their_own(tmp_path: Path) -> None:
    """`flat/b` is the case b of the folder flat, and the folder b in it."""
    for name in ("flat/b_t1", "flat/b_t2", "flat/c_t1", "flat/c_t2", "flat/b/x_t1", "flat/b/x_t2"):
        put(tmp_path, [(f"{name}.nii.gz", b"")])
    found = discover([tmp_path], contrasts=("t1", "t2"))
    assert [scan.path for scan in found.scans] == ["flat/b", "flat/b#2", "flat/c"]


def test_an_archive_that_may_not_be_read_is_not_told_as_damaged(made: WrittenSeries, tmp_path: Path) -> None:
    packed = tmp_path / "a.zip"
    packed.write_bytes(zipped(list(files_of(made, tmp_path / "slices").items())))
    packed.chmod(0)
    if os.geteuid() != 0:
        (scan,) = find(packed).scans
    else:  # root may read everything, somebody else may not
        for folder in (tmp_path, *tmp_path.parents):
            if not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o055)
        os.seteuid(65534)
        try:
            (scan,) = find(packed).scans
        finally:
            os.seteuid(0)
    assert "Permission denied" in scan.problem and "damaged" not in scan.problem
