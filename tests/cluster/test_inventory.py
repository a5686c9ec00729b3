"""Discovery in partitions finds what discovery in one list finds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from dicom_writer import WrittenSeries, write

from ssclf.io.discovery.scans import Scan, stored_files
from ssclf.io.discovery.sources import discover

pytest.importorskip("fsspec", reason="pip install 'ssclf[ray]'")
pytest.importorskip("pyarrow", reason="pip install 'ssclf[ray]'")
from ssclf.cluster.inventory import Selection, Source, join_series, plan_name, settle, take_inventory
from ssclf.cluster.partitions import decode_plan
from ssclf.cluster.store import Store

SELECTION = Selection(("t1ce",))


def fingerprint(scan: Scan, stamps: tuple[str, ...]) -> str:
    return f"{scan.path} {scan.series}"


def planned(given: Path, work: Path, size: int) -> list[Scan]:
    """All scans of the plan of a source on this machine."""
    source, out = Source.at(str(given)), Store.at(str(work))
    count, _ = take_inventory(source, out, SELECTION, size=size)
    dicom = [n for n in range(count) if settle(source, out, n, SELECTION, fingerprint).dicom]
    join_series(source, out, dicom, SELECTION, fingerprint)
    base = source.base.local
    assert base is not None
    return [one.scan for n in range(count) for one in decode_plan(out.read(plan_name(n)), base)]


def described(scans: Iterable[Scan], folder: Path) -> list[tuple[str, str, list[str], str]]:
    """What decides about a row; of a scan that cannot be read, no files."""

    def files(scan: Scan) -> list[str]:
        sources = () if scan.problem else scan.contrasts
        return sorted(str(file.relative_to(folder)) for source in sources for file in stored_files(source))

    return sorted((scan.path, scan.series, files(scan), scan.problem) for scan in scans)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_series_that_share_folders_are_joined_whatever_the_partitions(
    seed: int, size: int, tmp_path: Path
) -> None:
    """Slices of four series lie anywhere in six folders, so that folders hang together by chains of series."""
    draw = random.Random(seed)
    folder = tmp_path / "scans"
    for number in range(4):
        pixels = np.random.default_rng(number).integers(1, 500, (6, 8, 7)).astype(np.uint16)
        places = draw.sample(range(6), draw.choice([1, 2, 3]))
        for index, file in enumerate(WrittenSeries(pixels).write(tmp_path / "whole" / str(number))):
            target = folder / f"folder {draw.choice(places)}" / f"{number}-{index}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            file.rename(target)
    found = described(planned(folder, tmp_path / "work", size), folder)
    expected = described(discover([folder], contrasts=SELECTION.contrasts).scans, folder)
    assert len(found) == 4
    assert found == expected


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_slices_of_a_series_each_are_joined_whatever_the_folders(
    seed: int, size: int, tmp_path: Path
) -> None:
    """A volume whose slices have a UID each was joined within one folder, and plain discovery joins it across them."""
    draw = random.Random(seed)
    folder = tmp_path / "scans"
    for number, count in enumerate((5, 6, 9)):
        pixels = np.random.default_rng(number).integers(1, 500, (count, 8, 7)).astype(np.uint16)
        series = WrittenSeries(pixels, number=number + 1, uid=f"1.2.{seed}.{number}")
        places = draw.sample(range(5), draw.choice([1, 2, 4]))
        lost = draw.choice([-1, -1, 2])  # a hole: then the slices make no volume, and that is told once
        for index, ds in enumerate(series.slices()):
            ds.SeriesInstanceUID = f"1.2.{seed}.{number}.{index}"
            if index != lost:
                write(ds, folder / f"folder {draw.choice(places)}" / f"{number}-{index}.dcm")
    whole = np.random.default_rng(9).integers(1, 500, (4, 8, 7)).astype(np.uint16)
    WrittenSeries(whole).write(folder / f"folder {draw.choice(range(5))}")
    alone = WrittenSeries(whole[:1], uid=f"1.2.{seed}.0").slices()[0]  # a localiser of the first examination
    alone.SeriesInstanceUID, alone.PixelSpacing = f"1.2.{seed}.0.99", ["3.5", "3.5"]
    write(alone, folder / "localiser" / "1.dcm")
    found = described(planned(folder, tmp_path / "work", size), folder)
    expected = described(discover([folder], contrasts=SELECTION.contrasts).scans, folder)
    assert found == expected
    assert len(found) == 5


def test_units_of_every_kind_are_settled_as_in_one_list(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    series = WrittenSeries(np.arange(6 * 8 * 7, dtype=np.uint16).reshape(6, 8, 7))
    series.write(folder / "dicom")
    (folder / "empty.nii.gz").touch()
    (folder / "a_t1ce.nii").touch()
    (folder / "outside.nii").symlink_to(tmp_path / "elsewhere.nii")
    (folder / "list.csv").write_text("subject,path\na,dicom\nb,empty.nii.gz\nc,absent.nii\nd,\n")
    for source in (folder, folder / "list.csv", folder / "empty.nii.gz"):
        found = described(planned(source, tmp_path / "work" / source.name, 2), folder)
        assert found == described(discover([source], contrasts=SELECTION.contrasts).scans, folder)
        assert found
