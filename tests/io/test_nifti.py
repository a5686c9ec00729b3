"""NIfTI: every variant gives the same volume; a header is a claim that is checked."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from isal import isal_zlib
from numpy.typing import NDArray

from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.volumes.nifti import read_nifti, write_nifti

#: (i, j, k) to RAS+ mm: unequal sizes, one axis flipped, axes swapped, a little oblique.
AFFINE = np.array(
    [[0.0, 6.1, 0.4, -70.0], [-6.8, 0.0, 0.0, 80.0], [0.0, -0.4, 6.3, -60.0], [0.0, 0.0, 0.0, 1.0]]
)


@pytest.fixture
def voxels() -> NDArray[np.int16]:
    """(i, j, k)"""
    return np.random.default_rng(3).integers(0, 120, (20, 26, 22)).astype(np.int16)


def save(path: Path, data: NDArray[Any], *, kind: Any = nib.Nifti1Image, **fields: Any) -> Path:
    """Through nibabel, with header fields set afterwards."""
    image = kind(data, AFFINE, dtype=data.dtype)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def patch(path: Path, **fields: Any) -> Path:
    """Write header fields into an existing file, whatever nibabel thinks of them."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)
    return path


def assert_is(volume: Volume, voxels: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> None:
    np.testing.assert_array_equal(volume.data[0], voxels.transpose(2, 1, 0))
    # the affine takes (d, h, w); headers hold float32
    np.testing.assert_allclose(volume.affine, affine[:, [2, 1, 0, 3]], rtol=1e-6)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr", "a.img", "a.img.gz", "UPPER.NII"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_endings_and_versions(tmp_path: Path, voxels: NDArray[np.int16], name: str, kind: Any) -> None:
    pairs = {nib.Nifti1Image: nib.Nifti1Pair, nib.Nifti2Image: nib.Nifti2Pair}
    paired = name.startswith(("a.hdr", "a.img"))
    assert_is(read_nifti(save(tmp_path / name, voxels, kind=pairs[kind] if paired else kind)), voxels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_data_types_and_byte_orders(
    tmp_path: Path, voxels: NDArray[np.int16], dtype: str, order: str
) -> None:
    image = nib.Nifti1Image(voxels.astype(dtype), AFFINE, dtype=np.dtype(dtype))
    image = nib.Nifti1Image(image.dataobj, AFFINE, image.header.as_byteswapped(order))
    nib.save(image, tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.data.dtype.isnative and volume.data.dtype.itemsize <= 4
    assert_is(volume, voxels)


def test_one_time_point_is_a_volume(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    assert_is(read_nifti(save(tmp_path / "a.nii", voxels[..., None, None])), voxels)


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        (0, 7, (1, 0)),
        (np.nan, 7, (1, 0)),
        (1, 0, (1, 0)),
        (2.5, -3, (2.5, -3)),
        (-1, 0, (-1, 0)),
        (1, 5, (1, 5)),
    ],
)
def test_scaling(
    tmp_path: Path,
    voxels: NDArray[np.int16],
    slope: float,
    intercept: float,
    expected: tuple[float, float],
) -> None:
    path = patch(save(tmp_path / "a.nii", voxels), scl_slope=slope, scl_inter=intercept)
    assert_is(read_nifti(path), (voxels * expected[0] + expected[1]).astype(np.float32))


def test_gzip_of_several_members(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    raw = save(tmp_path / "a.nii", voxels).read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(b"".join(gzip.compress(raw[start : start + 5000]) for start in range(0, len(raw), 5000)))
    assert_is(read_nifti(path), voxels)


def test_many_gzip_members_are_no_more_work_than_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member was handed all that followed it: 125 MB took 94 s. Counted here: bytes that the inflater gets."""
    real, handed = isal_zlib.decompressobj, [0]

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._real = real(wbits)

        def decompress(self, data: Any, limit: int) -> bytes:
            handed[0] += len(data)
            return bytes(self._real.decompress(data, limit))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    monkeypatch.setattr(isal_zlib, "decompressobj", Counting)
    work = []
    for side in (64, 128):  # eight times the bytes
        noise = np.random.default_rng(1).integers(0, 1 << 15, (side, side, side)).astype(np.int16)
        raw = save(tmp_path / "a.nii", noise).read_bytes()
        members = [gzip.compress(raw[at : at + 5000], 1) for at in range(0, len(raw), 5000)]
        (tmp_path / "b.nii.gz").write_bytes(b"".join(members))
        handed[0] = 0
        assert_is(read_nifti(tmp_path / "b.nii.gz"), noise)
        work.append(handed[0])
    assert work[1] < 10 * work[0]


def test_gzip_under_a_plain_name_and_the_reverse(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    raw = save(tmp_path / "a.nii", voxels).read_bytes()
    (tmp_path / "b.nii").write_bytes(gzip.compress(raw))
    (tmp_path / "c.nii.gz").write_bytes(raw)
    for name in ("b.nii", "c.nii.gz"):
        assert_is(read_nifti(tmp_path / name), voxels)


def test_extensions_and_bytes_behind_the_voxels_are_passed_over(
    tmp_path: Path, voxels: NDArray[np.int16]
) -> None:
    image = nib.Nifti1Image(voxels, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"of no interest" * 40))
    nib.save(image, tmp_path / "a.nii.gz")
    nib.save(image, tmp_path / "b.nii")
    with (tmp_path / "b.nii").open("ab") as file:
        file.write(b"more")
    for name in ("a.nii.gz", "b.nii"):
        assert_is(read_nifti(tmp_path / name), voxels)


@pytest.mark.parametrize(("unit", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (10, 1)])
def test_units_of_length(tmp_path: Path, voxels: NDArray[np.int16], unit: int, mm: float) -> None:
    image = nib.Nifti1Image(voxels, np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ AFFINE)
    image.header["xyzt_units"] = unit
    nib.save(image, tmp_path / "a.nii")
    assert_is(read_nifti(tmp_path / "a.nii"), voxels)


@pytest.mark.parametrize("qfac", [1, -1, 0])
def test_qform_alone(tmp_path: Path, voxels: NDArray[np.int16], qfac: int) -> None:
    """qfac 0 means 1; nibabel rejects such files, which old tools wrote."""
    affine = np.diag([6.0, 6.5, 7.0 if qfac >= 0 else -7.0, 1])
    image = nib.Nifti1Image(voxels, None)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "a.nii")
    volume = read_nifti(patch(tmp_path / "a.nii", pixdim=[qfac, 6, 6.5, 7, 1, 0, 0, 0], sform_code=0))
    assert_is(volume, voxels, affine)
    assert volume.flags == ()


def test_conflicting_forms(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_qform(AFFINE + np.outer([1, 0, 0, 0], [0, 0, 0, 4]), 1)
    nib.save(image, tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.flags == ("form_conflict",)
    assert_is(volume, voxels)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"qform_code": 0, "sform_code": 0}, "states no orientation"),
        ({"pixdim": [1, 0, 0, 0, 1, 0, 0, 0], "qform_code": 1, "sform_code": 0}, "not finite"),
        ({"pixdim": [1, -6, 6, 6, 1, 0, 0, 0], "qform_code": 1, "sform_code": 0}, "not finite"),
        ({"srow_x": [np.nan] * 4, "qform_code": 0, "sform_code": 1}, "not finite"),
        ({"srow_x": [0] * 4, "qform_code": 0, "sform_code": 1}, "singular"),
        ({"datatype": 999}, "unknown data type code 999"),
        ({"datatype": 0}, "no numbers"),
        ({"datatype": 32, "bitpix": 64}, "complex numbers"),
        ({"datatype": 128, "bitpix": 24}, "colours"),
        ({"dim": [4, 20, 26, 11, 2, 1, 1, 1]}, "one file per contrast"),
        ({"dim": [2, 20, 26, 1, 1, 1, 1, 1]}, "3D volume"),
        ({"dim": [3, 20, 0, 22, 1, 1, 1, 1]}, "3D volume"),
        ({"dim": [3, 20, -26, 22, 1, 1, 1, 1]}, "3D volume"),
        ({"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}, r"claims 5\.4e\+04 GB"),
        ({"dim": [3, 20, 26, 23, 1, 1, 1, 1]}, "cut short"),
        ({"vox_offset": -352}, "at byte -352"),
        ({"vox_offset": np.nan}, "at byte nan"),
        ({"vox_offset": 1e12}, "further into the file"),
        ({"vox_offset": 5000}, "cut short"),
        ({"scl_slope": np.inf}, "scaling is not finite"),
        ({"xyzt_units": 5}, "another unit"),
        ({"magic": b""}, "ANALYZE"),
    ],
)
def test_headers_that_cannot_be(
    tmp_path: Path, voxels: NDArray[np.int16], fields: dict[str, Any], reason: str
) -> None:
    path = patch(save(tmp_path / "a.nii", voxels), **fields)
    with pytest.raises(VolumeError, match=reason) as caught:
        read_nifti(path)
    assert str(caught.value).startswith("a.nii: ") and str(caught.value).count("a.nii") == 1


@pytest.mark.parametrize("kept", [0, 3, 200, 348, 2000, -200, -4])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_files_cut_short(tmp_path: Path, voxels: NDArray[np.int16], name: str, kept: int) -> None:
    path = save(tmp_path / name, voxels)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(VolumeError, match=r"cut short|too short"):
        read_nifti(path)


def test_damaged_gzip(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    path = save(tmp_path / "a.nii.gz", voxels)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(VolumeError, match=r"corrupt|cut short"):
        read_nifti(path)


def test_a_bomb_is_not_inflated(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    """2 GB of zeros in 2 MB, under a header that claims few voxels, and one that claims all of it."""
    raw = save(tmp_path / "a.nii", voxels).read_bytes()
    block = gzip.compress(bytes(1 << 27), 1)
    for name, dim in (("small", [3, 20, 26, 22, 1, 1, 1, 1]), ("large", [3, 1024, 1024, 1024, 1, 1, 1, 1])):
        head = tmp_path / f"{name}.nii"
        head.write_bytes(raw)
        patch(head, dim=dim)
        (tmp_path / f"{name}.nii.gz").write_bytes(gzip.compress(head.read_bytes()) + block * 16)
    tracemalloc.start()
    assert_is(read_nifti(tmp_path / "small.nii.gz"), voxels)
    with pytest.raises(VolumeError, match="at most"):
        read_nifti(tmp_path / "large.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_half_a_pair(tmp_path: Path, voxels: NDArray[np.int16]) -> None:
    save(tmp_path / "a.hdr", voxels, kind=nib.Nifti1Pair)
    (tmp_path / "a.img").unlink()
    with pytest.raises(VolumeError, match="found only one of them"):
        read_nifti(tmp_path / "a.hdr")


def test_no_nifti(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"something else entirely, and long enough" * 20)
    with pytest.raises(VolumeError, match="expected a NIfTI header"):
        read_nifti(tmp_path / "a.nii")
    with pytest.raises(VolumeError, match=r"missing\.nii: cannot be read"):
        read_nifti(tmp_path / "missing.nii")


def test_written_volumes_are_read_back(tmp_path: Path, make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    write_nifti(volume, tmp_path / "sub" / "a.nii.gz")
    again = read_nifti(tmp_path / "sub" / "a.nii.gz")
    np.testing.assert_array_equal(again.data, volume.data)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-6)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.nii.gz"]


def test_real_files_are_read_as_nibabel_reads_them(shared_data: Path) -> None:
    compared = 0
    for path in sorted(shared_data.rglob("*.nii*")):
        if path.stat().st_size > 2_000_000:  # no variant that smaller files lack
            continue
        try:
            volume = read_nifti(path)
        except VolumeError:
            continue
        image: Any = nib.load(path)
        expected = np.squeeze(np.asarray(image.dataobj)).transpose(2, 1, 0)
        assert np.abs(volume.data[0] - expected).max() <= 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(volume.affine, image.affine[:, [2, 1, 0, 3]], atol=1e-6)
        compared += 1
    assert compared > 60
