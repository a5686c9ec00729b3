"""What ssclf wrote is known again, and what others wrote is never taken for it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssclf.domain.volume import Volume
from ssclf.io.discovery.sources import discover
from ssclf.io.own_output import MAP_MARK, OWN_VOLUMES, PREPARED_MARK, START_BYTES, own_volume
from ssclf.io.records.map_names import map_name, tells_of_a_scan
from ssclf.io.volumes.endings import VOLUME_ENDINGS
from ssclf.io.volumes.nifti import write_nifti

MakeVolume = Callable[..., Volume]
MAP = OWN_VOLUMES[MAP_MARK]
#: Keys of scans that have a file's ending or a series in their map's name.
TOLD = [
    *(("a/scan" + ending, "") for ending in VOLUME_ENDINGS),
    ("SCAN.NII.GZ", ""),
    ("study/a", "3-0a1b2c3d"),
    ("study.zip", "12-0a1b2c3d"),
]
#: Names that a person may give a file of their own.
OTHERS = [
    "t.map.nii.gz", "sub-01_stat-z.map.nii.gz", "s1.map.nii.gz", "scan.nii.gz", "scan-nii-gz.nii.gz", "nii.map.nii.gz",
    "a.3-0a1b2c3.map.nii.gz", "v1.2.3.map.nii.gz", "scan-nii-gz.map.nii.gz.nii.gz", "scan-nii-gz.map.nii",
]  # fmt: skip


def start_of(path: Path) -> bytes:
    return path.read_bytes()[:START_BYTES]


@pytest.fixture
def heat(make_volume: MakeVolume) -> Volume:
    """What a map holds: evidence of either sign, 0 outside the brain."""
    volume = make_volume()
    signed = np.where(volume.data > 0, volume.data - 400, 0).astype(np.float32)
    return Volume(signed, volume.affine)


@pytest.mark.parametrize("key", TOLD, ids=lambda key: "+".join(filter(None, key)))
def test_a_map_without_a_mark_is_known_by_name_and_header(
    key: tuple[str, str], heat: Volume, tmp_path: Path
) -> None:
    """Earlier versions set no mark: in a scanned folder their maps were scans."""
    name = map_name(*key).rpartition("/")[2]
    assert tells_of_a_scan(name)
    write_nifti(heat, tmp_path / name)
    assert own_volume(name, start_of(tmp_path / name)) == MAP
    assert discover([tmp_path], contrasts=("t1ce",)).scans == ()
    (scan,) = discover([tmp_path / name], contrasts=("t1ce",)).scans
    assert MAP in scan.problem


@pytest.mark.parametrize("name", ["list.csv#s1.3-0a1b2c3d+4-00000000", "a.1.2.840.113619.2.5"])
def test_a_series_may_stand_in_any_form(name: str) -> None:
    assert tells_of_a_scan(f"{name}.map.nii.gz")


@pytest.mark.parametrize("name", OTHERS)
def test_a_name_that_may_be_anybody_s_is_not_enough(name: str, heat: Volume, tmp_path: Path) -> None:
    assert not tells_of_a_scan(name)
    write_nifti(heat, tmp_path / name)
    assert own_volume(name, start_of(tmp_path / name)) == ""
    assert len(discover([tmp_path], contrasts=("t1ce",)).scans) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.set_qform(image.affine, 1),
        lambda image: image.set_sform(image.affine, 1),
        lambda image: image.header.set_xyzt_units("mm", "sec"),
        lambda image: image.header.__setitem__("descrip", b"FSL6.0"),
        lambda image: image.header.__setitem__("intent_name", b"zstat"),
        lambda image: image.header.set_data_dtype(np.float64),
        lambda image: image.set_data_dtype(np.int16),
    ],
    ids=["qform", "sform", "units", "descrip", "intent", "double", "int16"],
)
def test_the_name_alone_is_not_enough_either(
    change: Callable[[nib.Nifti1Image], object], heat: Volume, tmp_path: Path
) -> None:
    path = tmp_path / "scan-nii-gz.map.nii.gz"
    write_nifti(heat, path)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    assert own_volume(path.name, image.to_bytes()[:START_BYTES]) == MAP
    change(image)
    nib.save(image, path)
    assert own_volume(path.name, start_of(path)) == ""


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan-nii-gz.map.nii.gz"])
@pytest.mark.parametrize("mark", OWN_VOLUMES)
def test_a_mark_is_known_under_any_name(mark: str, name: str, heat: Volume, tmp_path: Path) -> None:
    write_nifti(heat, tmp_path / name, mark=mark)
    assert own_volume(name, start_of(tmp_path / name)) == OWN_VOLUMES[mark]
    assert {MAP_MARK, PREPARED_MARK} == set(OWN_VOLUMES)


@pytest.mark.parametrize("size", [0, 1, 80, 200, 346, 347, 348])
def test_a_start_that_is_cut_is_nobody_s_or_ours(size: int, heat: Volume, tmp_path: Path) -> None:
    path = tmp_path / "scan-nii.map.nii"
    write_nifti(heat, path)
    assert own_volume("scan-nii.map.nii.gz", start_of(path)[:size]) == (MAP if size >= 347 else "")
