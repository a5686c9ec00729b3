"""Every format gives the same volume, and every file at hand ends as docs/formats.md says."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest

from ssclf.domain.flags import FLAGS
from ssclf.domain.geometry import orientation, reorient
from ssclf.domain.volume import Volume
from ssclf.errors import SsclfError, VolumeError
from ssclf.io.discovery.folders import FolderContent
from ssclf.io.volumes.dicom_series import find_series, is_dicom
from ssclf.io.volumes.endings import VOLUME_ENDINGS
from ssclf.io.volumes.nifti import write_nifti
from ssclf.io.volumes.read import read_volume, stack_contrasts

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def volume() -> Volume:
    """Unequal sizes and spacings, a flipped axis, oblique; (d, h, w) as `Volume` has it."""
    data = np.random.default_rng(3).integers(0, 3000, (22, 26, 20)).astype(np.int16)
    turn = np.radians(12)
    rotation = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[0, 0, -6.5], [0, 6.0, 0], [7.0, 0, 0]])
    affine[:3, 3] = [70, -80, -60]
    return Volume(data[None], affine)


def file_affine(volume: Volume) -> Any:
    """(i, j, k) to RAS+ mm"""
    return volume.affine[:, [2, 1, 0, 3]]


def write_mgh(volume: Volume, path: Path) -> Path:
    nib.save(nib.MGHImage(volume.data[0].transpose(2, 1, 0), file_affine(volume)), path)
    return path


def write_nrrd(volume: Volume, path: Path, *, space: str = "left-posterior-superior", **options: Any) -> Path:
    signs = np.diag([1.0, 1, 1, 1]) if space.startswith("right") else RAS_TO_LPS
    affine = signs @ file_affine(volume)
    header = {"space": space, "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    data = volume.data[0].transpose(2, 1, 0)
    nrrd.write(str(path), data, {**header, **options.pop("header", {})}, **options)
    return path


def write_metaimage(volume: Volume, path: Path, **fields: Any) -> Path:
    """As ITK writes them; `fields` replace or (None) remove lines."""
    affine = RAS_TO_LPS @ file_affine(volume)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    raw = volume.data.astype(">i2" if fields.get("BinaryDataByteOrderMSB") == "True" else "<i2").tobytes()
    if fields.get("CompressedData") == "True":
        raw = zlib.compress(raw)
        fields["CompressedDataSize"] = len(raw)
    lines = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(f"{value:.17g}" for value in (affine[:3, :3] / spacing).T.ravel()),
        "Offset": " ".join(f"{value:.17g}" for value in affine[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": " ".join(f"{value:.17g}" for value in spacing),
        "DimSize": " ".join(str(n) for n in volume.shape[::-1]),
        "ElementType": "MET_SHORT",
        **fields,
        "ElementDataFile": fields.get("ElementDataFile", "LOCAL"),  # has to be the last one
    }
    text = "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None).encode()
    name = str(lines["ElementDataFile"])
    path.write_bytes(text + (raw if name == "LOCAL" else b""))
    if name != "LOCAL" and not set(name) & set("/%\0"):
        (path.parent / name).write_bytes(raw)
    return path


WRITERS: dict[str, Callable[[Volume, Path], Path]] = {
    "a.mgh": write_mgh,
    "a.mgz": write_mgh,
    "a.nrrd": write_nrrd,
    "ras.nrrd": lambda v, p: write_nrrd(v, p, space="right-anterior-superior"),
    "raw.nrrd": lambda v, p: write_nrrd(v, p, header={"encoding": "raw"}),
    "big.nrrd": lambda v, p: write_nrrd(
        Volume(v.data.astype(">i2"), v.affine), p, header={"encoding": "raw", "endian": "big"}
    ),
    "a.nhdr": lambda v, p: write_nrrd(v, p, header={"encoding": "gzip"}, detached_header=True),
    "a.mha": write_metaimage,
    "big.mha": lambda v, p: write_metaimage(v, p, BinaryDataByteOrderMSB="True"),
    "packed.mha": lambda v, p: write_metaimage(v, p, CompressedData="True"),
    "a.mhd": lambda v, p: write_metaimage(v, p, ElementDataFile="a.raw"),
    "end.mhd": lambda v, p: write_metaimage(v, p, ElementDataFile="end.raw", HeaderSize=-1),
    "b.nii.gz": lambda v, p: write_nifti(v, p) or p,  # type: ignore[func-returns-value]
}


def assert_same(first: Volume, second: Volume) -> None:
    first, second = reorient(first, "SAR"), reorient(second, "SAR")
    np.testing.assert_array_equal(first.data, second.data)
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)


class OnDisk:
    """What sorting a file asks beyond its name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_dicom(self) -> bool:
        return is_dicom(self.path)

    def is_readable(self) -> bool:
        return True

    def start(self) -> bytes:
        return self.path.read_bytes()[:1024] if self.path.is_file() else b""


def is_volume_file(path: Path) -> bool:
    """Whether a folder's walk takes a file for a volume."""
    content = FolderContent()
    content.sort(path.name, {other.name.lower() for other in path.parent.iterdir()}, None, OnDisk(path))
    return content.volumes == [path.name]


@pytest.mark.parametrize("name", WRITERS)
def test_formats_give_the_same_volume(volume: Volume, tmp_path: Path, name: str) -> None:
    path = WRITERS[name](volume, tmp_path / name)
    assert is_volume_file(path)
    assert_same(read_volume(path), volume)
    assert read_volume(path).flags == ("thick_slices",)


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.hdr", "z.mha", "z.mhd"]
)
def test_formats_agree_with_itk(volume: Volume, tmp_path: Path, name: str) -> None:
    """ITK wrote most NRRD and MetaImage files there are: what it writes is read as ITK means it."""
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with training only")
    affine = RAS_TO_LPS @ file_affine(volume)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = itk.GetImageFromArray(volume.data[0])  # (k, j, i), as ours
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    itk.WriteImage(image, str(tmp_path / name), useCompression=name.startswith("z"))
    assert_same(read_volume(tmp_path / name), volume)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nhdr", "big.mha", "packed.mha", "end.mhd"])
def test_itk_reads_our_test_files_as_we_do(volume: Volume, tmp_path: Path, name: str) -> None:
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with training only")
    path = WRITERS[name](volume, tmp_path / name)
    image = itk.ReadImage(str(path))
    np.testing.assert_array_equal(itk.GetArrayFromImage(image), read_volume(path).data[0])
    corner = [n - 1 for n in image.GetSize()]
    ours = read_volume(path).affine @ [*corner[::-1], 1]
    np.testing.assert_allclose(
        image.TransformIndexToPhysicalPoint(corner), (RAS_TO_LPS @ ours)[:3], atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("a.mha", {"TransformMatrix": None}, "no orientation"),
        ("a.mha", {"ElementSpacing": None}, "no orientation or voxel size"),
        ("a.mha", {"ElementSpacing": "6 0 7"}, "singular"),
        ("a.mha", {"ElementSpacing": "6 nan 7"}, "not finite"),
        ("a.mha", {"TransformMatrix": "1 0 0 1"}, "wrong number"),
        ("a.mha", {"TransformMatrix": "a b c"}, "text where numbers belong"),
        ("a.mha", {"DimSize": "20 26 23"}, "cut short"),
        ("a.mha", {"DimSize": "9999 9999 9999"}, "claims"),
        ("a.mha", {"DimSize": "20 26"}, "3D volume"),
        ("a.mha", {"DimSize": "20 26 11 2", "NDims": 4}, "one file per contrast"),
        ("a.mha", {"DimSize": "20 26 x"}, "whole sizes"),
        ("a.mha", {"ElementType": "MET_SHORT_ARRAY"}, "real intensities"),
        ("a.mha", {"ElementNumberOfChannels": 3}, "real intensities"),
        ("a.mha", {"BinaryData": "False"}, "found text"),
        ("a.mha", {"CompressedData": "yes"}, "corrupt|cut short"),
        ("a.mha", {"HeaderSize": 10**12}, "further into the file"),
        ("a.mha", {"HeaderSize": "nan"}, "HeaderSize"),
        ("a.mha", {"HeaderSize": "inf"}, "HeaderSize"),
        ("a.mha", {"HeaderSize": -7}, "HeaderSize"),
        ("a.mhd", {"ElementDataFile": "a\0.raw"}, "a NUL"),
        ("a.mha", {"DimSize": None}, "expected a MetaImage header"),
        ("a.mhd", {"ElementDataFile": "missing/a.raw"}, "the header alone"),
        ("a.mhd", {"ElementDataFile": "slice%03d.raw"}, "a list of them"),
        ("a.mhd", {"ElementDataFile": "LIST"}, "a list of them"),
    ],
)
def test_metaimage_headers_that_cannot_be(
    volume: Volume, tmp_path: Path, name: str, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(VolumeError, match=reason):
        read_volume(write_metaimage(volume, tmp_path / name, **fields))


@pytest.mark.parametrize(
    ("line", "replacement", "reason"),
    [
        (rb"space: [^\n]*", b"space dimension: 3", "which way its space runs"),
        (rb"space: [^\n]*", b"space: scanner-xyz", "which way its space runs"),
        (rb"space directions: [^\n]*\n", b"", "no orientation"),
        (rb"space directions: [^\n]*", b"space directions: (0,0,0) (0,6,0) (0,0,7)", "singular"),
        (rb"sizes: [^\n]*", b"sizes: 20 26 9999999", "claims"),
        (rb"sizes: [^\n]*", b"sizes: 20 26 24", "cut short"),
        (rb"sizes: [^\n]*", b"sizes: 20 26", "3D volume"),
        (rb"type: [^\n]*", b"type: block", "real intensities"),
        (rb"endian: [^\n]*\n", b"", "byte order"),
        (rb"encoding: [^\n]*", b"encoding: bzip2", "another encoding"),
        (rb"encoding: [^\n]*", b"encoding: raw\nbyte skip: 99999999999", "further into the file"),
        (rb"encoding: [^\n]*", b"encoding: raw\nline skip: -5", "skips -5 lines"),
        (rb"encoding: [^\n]*", b'encoding: raw\nspace units: "um" "um" "um"', "another unit"),
        (rb"encoding: [^\n]*\n", b"", "lacks encoding"),
        (rb"NRRD000\d", b"NRRD0099", "newer version"),
        (rb"NRRD000\d", b"NOTHING", "expected a NRRD header"),
    ],
)
def test_nrrd_headers_that_cannot_be(
    volume: Volume, tmp_path: Path, line: bytes, replacement: bytes, reason: str
) -> None:
    path = write_nrrd(volume, tmp_path / "a.nrrd", header={"encoding": "raw"})
    raw, count = re.subn(line, replacement, path.read_bytes(), count=1)
    assert count == 1
    path.write_bytes(raw)
    with pytest.raises(VolumeError, match=reason):
        read_volume(path)


def test_nrrd_with_one_channel_in_front(volume: Volume, tmp_path: Path) -> None:
    path = write_nrrd(volume, tmp_path / "a.nrrd", header={"encoding": "raw"})
    raw = path.read_bytes().replace(b"sizes: ", b"sizes: 1 ").replace(b"dimension: 3", b"dimension: 4", 1)
    path.write_bytes(raw.replace(b"space directions: ", b"space directions: none ", 1))
    assert_same(read_volume(path), volume)


@pytest.mark.parametrize("fields", [300, 20_000])
def test_metaimage_with_a_line_for_every_frame(volume: Volume, tmp_path: Path, fields: int) -> None:
    """Over 256 fields the header counted as no MetaImage header."""
    more = {f"Seq_Frame{n:05d}_ImageStatus": "OK" for n in range(fields)}
    assert_same(read_volume(write_metaimage(volume, tmp_path / "a.mha", **more)), volume)


def test_headers_have_an_end(volume: Volume, tmp_path: Path) -> None:
    text = b"".join(b"Frame%d = %s\n" % (n, b"x" * 60_000) for n in range(300))
    (tmp_path / "a.mha").write_bytes(text)
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n" + text.replace(b" = ", b":="))
    for name in ("a.mha", "a.nrrd"):
        with pytest.raises(VolumeError, match="header of at most 16 MiB"):
            read_volume(tmp_path / name)


@pytest.mark.parametrize(
    "space", ["space dimension: 4", "space: left-posterior-superior-time", "space: LPST"]
)
def test_nrrd_of_one_time_point(volume: Volume, tmp_path: Path, space: str) -> None:
    """ITK writes the first; as MetaImage and NIfTI the same volume was read."""
    path = write_nrrd(volume, tmp_path / "a.nrrd", header={"encoding": "raw"})
    raw = path.read_bytes().replace(b"dimension: 3", b"dimension: 4", 1)
    raw = re.sub(rb"space: [^\n]*", space.encode(), raw, count=1)
    raw = re.sub(rb"(sizes: [^\n]*)", rb"\1 1", raw, count=1)
    raw = re.sub(rb"(space (directions|origin): )([^\n]*)", _with_time, raw)
    path.write_bytes(raw)
    assert_same(read_volume(path), volume)


def _with_time(line: re.Match[bytes]) -> bytes:
    vectors = line[3].replace(b")", b",0)")
    return line[1] + (vectors + b" (0,0,0,1)" if line[2] == b"directions" else vectors)


def test_itk_writes_one_time_point_in_every_format(volume: Volume, tmp_path: Path) -> None:
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK comes with training only")
    affine = RAS_TO_LPS @ file_affine(volume)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = np.eye(4)
    directions[:3, :3] = affine[:3, :3] / spacing
    image = itk.JoinSeries([itk.GetImageFromArray(volume.data[0])])
    image.SetOrigin([*affine[:3, 3].tolist(), 0.0])
    image.SetSpacing([*spacing.tolist(), 1.0])
    image.SetDirection(directions.ravel().tolist())
    for ending in ("nrrd", "nhdr", "mha", "nii.gz"):
        itk.WriteImage(image, str(tmp_path / f"a.{ending}"))
        assert_same(read_volume(tmp_path / f"a.{ending}"), volume)


def test_nrrd_vectors_may_hold_blanks(volume: Volume, tmp_path: Path) -> None:
    path = write_nrrd(volume, tmp_path / "a.nrrd", header={"encoding": "raw"})
    header, blank, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(
        header.replace(b",", b" ,\t ").replace(b"(", b"( ").replace(b")", b" )") + blank + voxels
    )
    assert_same(read_volume(path), volume)


def test_reasons_of_a_nrrd_header_are_our_own(volume: Volume, tmp_path: Path) -> None:
    """A line that pynrrd cannot parse ended as pynrrd's own words, which quote the header."""
    good = write_nrrd(volume, tmp_path / "a.nrrd", header={"encoding": "raw"}).read_bytes()
    start = good.index(b"\n\n")
    rng = np.random.default_rng(6)
    values = (
        b"secret",
        b"(secret,1,2)",
        b"(1,2",
        b"",
        b"9" * 400,
        b"none none none",
        b'"',
        b"\xff\xfe",
        b"-1",
        b"nan",
    )
    for _ in range(300):
        lines = good[:start].split(b"\n")
        for place in rng.integers(1, len(lines), 2):
            key = lines[place].partition(b":")[0]
            lines[place] = key + b": " + values[rng.integers(len(values))]
        (tmp_path / "b.nrrd").write_bytes(b"\n".join(lines) + good[start:])
        try:
            read_volume(tmp_path / "b.nrrd")
        except VolumeError as exc:
            assert "secret" not in str(exc) and "\n" not in str(exc)


def test_mgh_of_every_type(volume: Volume, tmp_path: Path) -> None:
    """Unsigned shorts are known to nibabel from 5.4 on only."""
    good = write_mgh(volume, tmp_path / "a.mgh").read_bytes()
    for code, dtype in ((0, "u1"), (1, ">i4"), (3, ">f4"), (4, ">i2"), (10, ">u2")):
        values = (volume.data // 16).astype(dtype)
        header = good[:20] + code.to_bytes(4, "big") + good[24:284]
        (tmp_path / "b.mgh").write_bytes(header + values.tobytes())
        assert_same(read_volume(tmp_path / "b.mgh"), Volume(values, volume.affine))


def test_mgh_that_cannot_be(volume: Volume, tmp_path: Path) -> None:
    good = write_mgh(volume, tmp_path / "a.mgh").read_bytes()
    for start, value, reason in (
        (0, b"\x00\x00\x00\x07", "expected an MGH header"),
        (28, b"\x00\x00", "no orientation"),
        (20, b"\x00\x00\x00\x63", "unknown data type code 99"),
        (4, b"\x7f\xff\xff\xff", "claims"),
        (16, b"\x00\x00\x00\x02", "one file per contrast"),
        (30, b"\x7f\xc0\x00\x00", "not finite"),
    ):
        (tmp_path / "b.mgh").write_bytes(good[:start] + value + good[start + len(value) :])
        with pytest.raises(VolumeError, match=reason):
            read_volume(tmp_path / "b.mgh")
    (tmp_path / "c.mgz").write_bytes(gzip.compress(good)[:-300])
    with pytest.raises(VolumeError, match="cut short"):
        read_volume(tmp_path / "c.mgz")


@pytest.mark.parametrize("ending", ["mhd", "nhdr"])
@pytest.mark.parametrize("way", ["up", "absolute", "link"])
def test_headers_cannot_point_out_of_their_folder(
    volume: Volume, tmp_path: Path, ending: str, way: str
) -> None:
    """A header someone sent us could otherwise make any file of ours a volume."""
    folder = tmp_path / "in"
    folder.mkdir()
    secret = tmp_path / "secret.raw"
    secret.write_bytes(volume.data.tobytes())
    name = {"up": "../secret.raw", "absolute": str(secret), "link": "link.raw"}[way]
    if ending == "mhd":
        path = write_metaimage(volume, folder / "a.mhd", ElementDataFile=name)
    else:
        path = write_nrrd(volume, folder / "a.nhdr", header={"encoding": "raw"}, detached_header=True)
        path.write_bytes(re.sub(rb"data ?file: [^\n]*", f"data file: {name}".encode(), path.read_bytes()))
    if way == "link":
        (folder / "link.raw").unlink(missing_ok=True)
        (folder / "link.raw").symlink_to(secret)
    with pytest.raises(VolumeError, match="outside its own folder"):
        read_volume(path)


def test_damaged_headers_end_as_reasons(volume: Volume, tmp_path: Path) -> None:
    """Bytes changed at random, mostly in headers: a volume or a reason, never another exception."""
    rng = np.random.default_rng(11)
    outcomes = {"volume": 0, "reason": 0}
    for name, writer in WRITERS.items():
        good = writer(volume, tmp_path / name).read_bytes()
        for _ in range(60):
            raw = bytearray(good)
            for place in rng.integers(0, min(len(raw), 600), rng.integers(1, 6)):
                raw[place] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(raw)
            try:
                read_volume(tmp_path / name)
                outcomes["volume"] += 1
            except VolumeError as exc:
                outcomes["reason"] += 1
                assert "\n" not in str(exc)
    assert min(outcomes.values()) > 50


def test_the_formats_meet_in_one_volume(volume: Volume, tmp_path: Path) -> None:
    """Contrasts in different orientations and formats, on one grid."""
    other = reorient(Volume(volume.data[:, :, ::-1] // 2, volume.affine), "LIP")
    mha = read_volume(write_metaimage(Volume(volume.data, volume.affine), tmp_path / "t1.mha"))
    mgz = read_volume(write_mgh(Volume(other.data.copy(), other.affine), tmp_path / "t2.mgz"))
    both = stack_contrasts([mha, mgz], ["t1", "t2"])
    expected = reorient(
        Volume(np.concatenate([volume.data, volume.data[:, :, ::-1] // 2]), volume.affine), "SAR"
    )
    np.testing.assert_array_equal(both.data, expected.data)
    assert both.flags == ("thick_slices",)
    assert stack_contrasts([mha], ["t1"]) is mha


@pytest.mark.parametrize("change", ["moved", "cropped", "coarser"])
def test_contrasts_on_different_grids_are_refused(volume: Volume, change: str) -> None:
    affine = volume.affine.copy()
    data = volume.data
    if change == "moved":
        affine[0, 3] += 0.5
    elif change == "cropped":
        data = data[:, :-1]
    else:
        affine[:3, 0] *= 1.02
    with pytest.raises(VolumeError, match=r"registered to one grid.* t1 .* t2 "):
        stack_contrasts([volume, Volume(data, affine)], ["t1", "t2"])


def test_what_counts_as_a_volume(tmp_path: Path) -> None:
    for ending in VOLUME_ENDINGS:
        assert is_volume_file(tmp_path / f"a{ending}") and is_volume_file(tmp_path / f"A{ending.upper()}")
    for name in ("a.txt", "a.gz", "a.raw", "a.mnc", "nii", "a.nii.zip", "a.dcm"):
        assert not is_volume_file(tmp_path / name)
    (tmp_path / "pair.hdr").touch()
    assert is_volume_file(tmp_path / "pair.hdr")
    assert not is_volume_file(tmp_path / "pair.img")  # counted once
    assert is_volume_file(tmp_path / "lone.img")


def test_a_pipe_is_no_volume(tmp_path: Path) -> None:
    """Opening one would wait for a writer that never comes."""
    os.mkfifo(tmp_path / "a.nii")
    os.mkfifo(tmp_path / "b")
    with pytest.raises(VolumeError, match="expected a file"):
        read_volume(tmp_path / "a.nii")
    assert not is_dicom(tmp_path / "b") and find_series(tmp_path).series == ()


def test_other_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no volume")
    with pytest.raises(VolumeError, match=r"notes\.txt: expected DICOM or one of \.nii"):
        read_volume(tmp_path / "notes.txt")
    with pytest.raises(VolumeError, match="no such file"):
        read_volume(tmp_path / "missing")


# The table in docs/formats.md


def documented() -> dict[str, str]:
    """File or series, relative to the data folder, with its outcome as written in the table."""
    rows = re.findall(r"^\| `((?:edge|edge_derived|dicom)/[^`]+)` \| (.+) \|$", DOCUMENT.read_text(), re.M)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def outcome(read: Callable[[], Volume]) -> str:
    try:
        volume = read()
    except SsclfError as exc:
        return str(exc).partition(": ")[2]
    size = " x ".join(f"{mm:.3g}" for mm in volume.spacing)
    shape = " x ".join(str(n) for n in volume.shape)
    return "; ".join([f"**read**: {orientation(volume)} {shape}, {size} mm", *volume.flags])


def actual(root: Path) -> dict[str, str]:
    outcomes = {}
    for folder in ("edge", "edge_derived", "dicom"):
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if is_volume_file(path):
                outcomes[name] = outcome(partial(read_volume, path))
            elif path.is_file() and not is_dicom(path) and path.suffix != ".zip":
                half = path.suffix == ".img"
                outcomes[name] = "the voxels of the .hdr beside it" if half else "not taken for a volume"
        for path in sorted((root / folder / "pydicom_single").glob("*")):  # four variants of one slice
            outcomes[path.relative_to(root).as_posix()] = outcome(partial(read_volume, path))
        search = find_series(root / folder)
        for series in search.series:
            place = series.location.relative_to(root).as_posix()
            outcomes[f"{place} {series.name}"] = outcome(partial(read_volume, series))
        for left in search.left_out:
            outcomes[left.path.relative_to(root).as_posix()] = f"left out: {left.reason}"
    return outcomes


def test_every_file_ends_as_documented(shared_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert actual(shared_data) == documented()
    assert capfd.readouterr() == ("", "")


def test_flags_in_the_document_exist() -> None:
    named = set(re.findall(r"`(\w+)` \(flag\)", DOCUMENT.read_text()))
    assert named and named <= set(FLAGS)
    geometry = {"form_conflict", "repaired_affine", "shear", "oblique", "thick_slices"}
    assert named == geometry | {"partial_coverage", "incomplete_series"}
