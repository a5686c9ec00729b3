"""Discovery takes what a folder holds, counts the rest, and never hangs, follows out or stays silent."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writer import WrittenSeries

from ssclf.errors import ConfigError, DatasetError
from ssclf.io.discovery.sources import Discovery, discover

BRATS_2018 = ("_t1", "_t1ce", "_t2", "_flair", "_seg")
BRATS_2023 = ("-t1n", "-t1c", "-t2w", "-t2f", "-seg")


def touch(root: Path, *names: str) -> Path:
    """Empty files: discovery reads names, not volumes."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def find(*paths: Path, contrasts: tuple[str, ...] = ("t1ce",), **options: Any) -> Discovery:
    return discover(paths, contrasts=contrasts, **options)


def keys(found: Discovery) -> list[str]:
    return [scan.path for scan in found.scans]


def make_series(**changes: object) -> WrittenSeries:
    pixels = np.random.default_rng(0).integers(0, 500, (9, 10, 11), np.uint16)
    return WrittenSeries(pixels, **changes)  # type: ignore[arg-type]


def test_every_ending_in_any_nesting_is_found_and_the_rest_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a/x.NII", "a/b/c.mgz", "n.nrrd", "m.mha", "notes.txt", "README", "old.mnc")
    found = find(tmp_path)
    assert keys(found) == ["a/b/c.mgz", "a/x.NII", "b.nii.gz", "m.mha", "n.nrrd"]
    assert found.scans[0].contrasts == (tmp_path / "a/b/c.mgz",)
    assert found.other_files == {
        "not a volume (.txt)": 1,
        "not a volume (no ending of a volume)": 1,
        "a volume in a format that is not read (.mnc)": 1,
    }


def test_hidden_and_unfinished_files_are_no_volumes(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "._a.nii.gz", ".git/b.nii.gz", "__MACOSX/c.nii.gz", "d.nii.gz.part")
    found = find(tmp_path)
    assert keys(found) == ["a.nii.gz"]
    assert found.other_files == {"hidden": 3, "an unfinished or temporary file": 1}


def test_a_header_and_its_voxels_are_one_volume(tmp_path: Path) -> None:
    touch(tmp_path, "a.hdr", "a.img", "b.hdr.gz", "b.img.gz", "lone.img")
    assert keys(find(tmp_path)) == ["a.hdr", "b.hdr.gz", "lone.img"]


@pytest.mark.parametrize("endings", [BRATS_2018, BRATS_2023])
def test_of_siblings_only_the_wanted_contrast_is_taken(tmp_path: Path, endings: tuple[str, ...]) -> None:
    touch(tmp_path, *(f"HGG/case1/case1{end}.nii.gz" for end in endings), "HGG/other.nii.gz")
    found = find(tmp_path)
    assert keys(found) == [f"HGG/case1/case1{endings[1]}.nii.gz", "HGG/other.nii.gz"]
    assert found.other_files == {"another contrast of a case": 3, "a mask beside a volume": 1}


def test_a_case_without_the_wanted_contrast_keeps_its_volumes(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a_t1.nii.gz",
        "a_t2.nii.gz",
        "a_seg.nii.gz",
        "b.nii.gz",
        "b_brain_mask.nii.gz",
        "lone_seg.nii.gz",
    )
    assert keys(find(tmp_path)) == ["a_t1.nii.gz", "a_t2.nii.gz", "b.nii.gz", "lone_seg.nii.gz"]


def test_contrasts_named_by_file_alone_or_by_bids(tmp_path: Path) -> None:
    touch(tmp_path, "case/t1.nii.gz", "case/t1ce.nii.gz")
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_ce-gadolinium_T1w.nii.gz")
    assert keys(find(tmp_path)) == ["case/t1ce.nii.gz", "sub-1/anat/sub-1_ce-gadolinium_T1w.nii.gz"]
    assert keys(find(tmp_path, contrasts=("t1",))) == ["case/t1.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz"]


def test_a_pattern_decides_instead_of_siblings(tmp_path: Path) -> None:
    touch(tmp_path, "x/a_t1.nii.gz", "x/a_t1ce.nii.gz", "y/b_t1.nii.gz")
    assert keys(find(tmp_path, pattern="*_t1.nii.gz")) == ["x/a_t1.nii.gz", "y/b_t1.nii.gz"]
    assert keys(find(tmp_path, pattern="y/*")) == ["y/b_t1.nii.gz"]
    assert find(tmp_path, pattern="y/*").other_files == {"not matching --pattern": 2}


def test_several_contrasts_come_from_siblings_and_are_named_by_their_folder(tmp_path: Path) -> None:
    touch(tmp_path, "one/a_t1.nii.gz", "one/a_t1ce.nii.gz", "one/a_seg.nii.gz")
    touch(tmp_path, "flat/b_t1.nii.gz", "flat/b_t1ce.nii.gz", "flat/c_t1.nii.gz", "single.nii.gz")
    found = {scan.path: scan for scan in find(tmp_path, contrasts=("t1ce", "t1")).scans}
    assert sorted(found) == ["flat/b", "flat/c", "one", "single.nii.gz"]
    assert [p.name for p in found["one"].contrasts if isinstance(p, Path)] == ["a_t1ce.nii.gz", "a_t1.nii.gz"]
    assert found["flat/b"].problem == ""
    assert "1 × t1" in found["flat/c"].problem
    assert "t1ce, t1" in found["single.nii.gz"].problem


def test_keys_are_relative_to_one_folder_and_as_given_for_several(tmp_path: Path) -> None:
    touch(tmp_path, "a/x/s.nii.gz", "b/x/s.nii.gz")
    assert keys(find(tmp_path / "a")) == ["x/s.nii.gz"]
    both = find(tmp_path / "a", tmp_path / "b")
    assert keys(both) == [f"{tmp_path}/a/x/s.nii.gz", f"{tmp_path}/b/x/s.nii.gz"]
    assert keys(find(tmp_path / "a/x/s.nii.gz")) == [f"{tmp_path}/a/x/s.nii.gz"]


def test_a_file_reached_twice_is_one_scan(tmp_path: Path) -> None:
    touch(tmp_path, "a/s.nii.gz")
    (tmp_path / "alias").symlink_to(tmp_path / "a")
    found = find(tmp_path / "a", tmp_path / "a/s.nii.gz", tmp_path / "alias")
    assert len(found.scans) == 1
    assert found.other_files == {"the same file or series again": 2}


def test_links_are_not_followed_out_and_loops_do_not_hang(tmp_path: Path) -> None:
    touch(tmp_path, "outside/secret.nii.gz", "in/.store/kept.nii.gz", "in/plain.nii.gz")
    inside = tmp_path / "in"
    (inside / "loop").symlink_to(inside)
    (inside / "leak.nii.gz").symlink_to(tmp_path / "outside/secret.nii.gz")
    (inside / "door").symlink_to(tmp_path / "outside")
    (inside / "annexed.nii.gz").symlink_to(inside / ".store/kept.nii.gz")
    (inside / "broken.nii.gz").symlink_to(inside / "nothing.nii.gz")
    (inside / "itself.nii.gz").symlink_to(inside / "itself.nii.gz")
    found = {scan.path: scan.problem for scan in find(inside).scans}
    assert sorted(path for path, problem in found.items() if not problem) == [
        "annexed.nii.gz",
        "plain.nii.gz",
    ]
    assert all("leads out" in found[path] for path in ("leak.nii.gz", "door"))
    assert all("nowhere" in found[path] for path in ("broken.nii.gz", "itself.nii.gz"))


def test_what_cannot_be_looked_into_costs_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "open/a.nii.gz", "locked/b.nii.gz")
    listing = os.scandir

    def scandir(path: Path) -> object:  # root may read everything, so permissions cannot be tested as root
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert {s.path: s.problem for s in find(tmp_path).scans} == {
        "locked": "the folder cannot be read (Permission denied).",
        "open/a.nii.gz": "",
    }
    with pytest.raises(DatasetError, match="locked: the folder cannot be read"):
        find(tmp_path / "locked")


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    assert find(tmp_path).scans == ()


def test_a_path_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("missing", "dangling"):
        with pytest.raises(DatasetError, match=name):
            find(tmp_path / name)


def test_files_named_one_by_one_are_all_meant(tmp_path: Path) -> None:
    touch(tmp_path, "a_t1.nii.gz", "a_t1ce.nii.gz", "notes.txt")
    found = find(*(tmp_path / name for name in ("a_t1.nii.gz", "a_t1ce.nii.gz", "notes.txt")))
    assert [bool(scan.problem) for scan in found.scans] == [False, False, True]
    assert "another kind of file" in found.scans[2].problem


def test_dicom_is_found_by_content_and_split_into_series(tmp_path: Path) -> None:
    make_series(uid="1.2.3", number=3).write(tmp_path / "study/a")
    make_series(uid="1.2.4", number=4, attributes={"SeriesDescription": "T2 TSE"}).write(tmp_path / "study/b")
    for path in (tmp_path / "study/a").iterdir():
        path.rename(path.with_suffix(".42"))
    touch(tmp_path, "study/a/readme.txt")
    found = find(tmp_path)
    assert [(scan.path, scan.series[:2]) for scan in found.scans] == [("study/a", "3-"), ("study/b", "4-")]
    assert "1.2.3" not in found.scans[0].series
    only = find(tmp_path, series="tse")
    assert keys(only) == ["study/b"]
    assert only.other_files["the series description does not match --series"] == 9
    with pytest.raises(ConfigError, match="--series"):
        find(tmp_path, series="(")


def test_a_folder_that_is_itself_a_series_is_named_as_given(tmp_path: Path) -> None:
    make_series().write(tmp_path / "scan")
    assert keys(find(tmp_path / "scan")) == [f"{tmp_path}/scan"]


def test_a_zip_of_slices_is_a_scan_and_a_damaged_one_costs_its_row(tmp_path: Path) -> None:
    make_series().write(tmp_path / "slices")
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in/scan.zip", "w") as archive:
        for path in (tmp_path / "slices").iterdir():
            archive.write(path, path.name)
    (tmp_path / "in/broken.zip").write_bytes(b"PK not an archive")
    broken, whole = find(tmp_path / "in").scans
    assert (broken.path, whole.path) == ("broken.zip", "scan.zip")
    assert "archive" in broken.problem and whole.series and not whole.problem


def test_a_manifest_names_one_scan_a_row(tmp_path: Path) -> None:
    touch(tmp_path, "data/a1.nii.gz", "data/a2.nii.gz", "data/b1.nii.gz")
    table = tmp_path / "list.csv"
    table.write_text("﻿Subject;T1;T1ce\nA;data/a1.nii.gz;data/a2.nii.gz\nB;data/b1.nii.gz;\n", "utf-8")
    whole, lacking = find(table, contrasts=("t1", "t1ce")).scans
    assert (whole.path, lacking.path) == (f"{table}#A", f"{table}#B")
    assert whole.contrasts == (tmp_path / "data/a1.nii.gz", tmp_path / "data/a2.nii.gz")
    assert "line 3" in lacking.problem and "t1ce" in lacking.problem
    assert keys(find(table, contrasts=("t1",))) == ["data/a1.nii.gz", "data/b1.nii.gz"]
    with pytest.raises(DatasetError, match="flair"):
        find(table, contrasts=("flair",))


def test_a_manifest_row_may_name_a_series(tmp_path: Path) -> None:
    make_series().write(tmp_path / "a")
    make_series().write(tmp_path / "two/b")
    make_series().write(tmp_path / "two/c")
    table = tmp_path / "list.csv"
    table.write_text("path\na\ntwo\ngone\n", "utf-8")
    one, gone, two = find(table).scans
    assert one.series and not one.problem
    assert "no file gone" in gone.problem
    assert "found 2 series" in two.problem
