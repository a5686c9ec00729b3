"""Inputs on which ssclf was once wrong, each beside the same scan in another storage: rows and network input agree.

The kinds have properties of their own (test_storages, test_dicom, test_arrangements, test_formats); these are the files
by which they were found. What reading many gzip members costs is counted in test_nifti.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import PreprocessConfig
from ssclf.io.discovery.sources import discover
from ssclf.io.preparation import prepare_scan

#: Rows of one scan, by path and the number of the series: all ok, with the same flags and probabilities.
ALIKE = {
    "01_crop_margin_rounding": [
        [
            "scan_1sform.nii.gz",
            "scan_2qform.nii.gz",
            "scan_6resaved_by_itk.nii.gz",
            "scan_3.mgz",
            "scan_4.nrrd",
            "scan_5.mha",
        ],
    ],
    "02_enhanced_frame_order": [["Philips/I.dcm 3", "reference.nii.gz"]],
    "03_enhanced_slope_per_frame": [["GE/I.dcm 3", "reference.nii.gz"]],
    "04_series_split_by_a_repeated_slice": [["whole 3", "one_slice_twice 3", "reference.nii.gz"]],
    "06_zip_same_member_names": [["only_a.zip 3", "both.zip 3"], ["only_b.zip 4", "both.zip 4"]],
    "08_damaged_slices_not_told": [["reference.nii.gz"]],
    "09_maps_name_too_long": [["a.nii.gz", "z.nii.gz", f"{'x' * 233}.nii.gz"]],
    "13_nrrd_that_itk_reads": [
        ["plain.nrrd", "blanks_in_vectors.nrrd"],
        ["one_time_point.mha", "one_time_point.nrrd"],
    ],
    "14_nibabel_lower_bound": [["stored_ijk.nii.gz", "stored_kji.nii.gz"], ["ushort.mgz"]],
    "15_limits_without_tolerance": [
        ["10mm_0_qform.nii.gz", "10mm_0_sform.nii.gz"],
        ["4mm_3_qform.nii.gz", "4mm_3_sform.nii.gz"],
    ],
}
#: Series that have lost slices: told by a row of the lost ones, and by a flag on what is left, if anything is.
DAMAGED = ["first_100_bytes", "zero_bytes", "zero_bytes_in_a_zip_is_told.zip", "zeros"]


@pytest.fixture(params=ALIKE)
def case(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    """A folder with a fault. A new one must be said above."""
    folder = shared_data / "faults" / str(request.param)
    if not folder.is_dir():
        pytest.skip("the developers' faults are not here")
    there = {path.name for path in folder.parent.glob("[0-9]*")}
    assert there == {*ALIKE, "11_many_gzip_members"}
    return folder


def key(path: str, series: str) -> str:
    return f"{path} {series.partition('-')[0]}".strip()


def test_rows_of_one_scan_are_equal(case: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out, maps = tmp_path / "r.csv", tmp_path / "maps"
    words = ["predict", case, "--model", tiny_bundle, "--assume-stripped", "--workers", 1, "--out", out]
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--maps", maps)])
    damaged = DAMAGED if case.name.startswith("08") else []
    assert done.exit_code == (3 if damaged else 0), done.output
    with out.open(encoding="utf-8", newline="") as file:
        table = {key(row["path"], row["series"]): row for row in csv.DictReader(file)}
    for group in ALIKE[case.name]:
        rows = [table.pop(name) for name in group]
        assert {row["status"] for row in rows} == {"ok"}
        assert len({(row["prediction"], row["flags"]) for row in rows}) == 1
        assert "incomplete_series" not in rows[0]["flags"]
        for name in ("p_LGG", "p_HGG", "p_healthy"):
            assert np.ptp([float(row[name]) for row in rows]) < 1e-4, (group, name)
    for name in damaged:
        assert table.pop(name)["status"] == "failed"
        assert "incomplete_series" in table.pop(f"{name} 3")["flags"].split(";")
    if damaged:
        assert "git lfs pull" in table.pop("lfs_pointers_all")["error"]
    assert not table, "rows that nobody has asked for"
    found = sum(1 for _ in maps.rglob("*.map.nii.gz"))
    assert found == sum(map(len, ALIKE[case.name])) + len(damaged)


@pytest.mark.parametrize("crop", ["none", "brain"])
def test_the_network_sees_the_same(crop: Literal["none", "brain"], case: Path, tmp_path: Path) -> None:
    """Probabilities of a network that has learned nothing forgive much: what it is shown does not."""
    config = replace(PreprocessConfig(spacing=(4.0, 4.0, 4.0)), crop=crop)
    scans = {key(scan.path, scan.series): scan for scan in discover([case], contrasts=config.contrasts).scans}
    for first, *others in ALIKE[case.name]:
        expected, *found = (
            prepare_scan(scans[name], config, skull_strip="none", work=tmp_path).volume.data
            for name in (first, *others)
        )
        for name, data in zip(others, found, strict=True):
            assert data.shape == expected.shape, (first, name)
            assert np.abs(data - expected).mean() < 1e-3, (first, name)
            assert np.corrcoef(data.ravel(), expected.ravel())[0, 1] > 0.9999, (first, name)
