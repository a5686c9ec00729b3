from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssclf.domain import geometry
from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError

CODES = [
    "".join(pair[flip] for pair, flip in zip(order, flips, strict=True))
    for order in itertools.permutations(("RL", "AP", "SI"))
    for flips in itertools.product((0, 1), repeat=3)
]


def world(volume: Volume, index: tuple[int, int, int]) -> np.ndarray:
    position: np.ndarray = (volume.affine @ [*index, 1])[:3]
    return position


@pytest.mark.parametrize("codes", CODES)
def test_all_48_orientations_come_back_to_one(codes: str, make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    stored = geometry.reorient(volume, codes)
    assert geometry.orientation(stored) == codes
    back = geometry.reorient(stored, "SAR")
    np.testing.assert_array_equal(back.data, volume.data)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)


def test_voxels_keep_their_place_when_axes_turn(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    turned = geometry.reorient(volume, "RPI")  # (d, h, w) → (w, -h, -d)
    d, h, _ = volume.shape
    assert turned.data[0, 3, h - 1 - 7, d - 1 - 5] == volume.data[0, 5, 7, 3]
    np.testing.assert_allclose(world(turned, (3, h - 1 - 7, d - 1 - 5)), world(volume, (5, 7, 3)))


def test_an_oblique_volume_stays_oblique(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    angle = np.deg2rad(12)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = Volume(volume.data, turn @ volume.affine)
    back = geometry.reorient(geometry.reorient(oblique, "LIP"), "SAR")
    np.testing.assert_allclose(back.affine, oblique.affine, atol=1e-9)


def test_resampling_to_the_own_grid_changes_nothing(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    same = geometry.resample(volume, volume.spacing)
    np.testing.assert_array_equal(same.data, volume.data)
    np.testing.assert_allclose(same.affine, volume.affine)


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (2.0, 8.0, 5.5), (11.0, 4.0, 6.5)])
def test_linear_resampling_is_exact_on_a_linear_field(
    spacing: tuple[float, float, float], make_volume: Callable[..., Volume]
) -> None:
    volume = make_volume()
    slope = np.array([0.5, -0.25, 0.125])

    def field(grid: Volume) -> np.ndarray:
        index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
        position = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        values: np.ndarray = position @ slope
        return values

    ramp = Volume(field(volume)[None].astype(np.float32), volume.affine)
    result = geometry.resample(ramp, spacing)
    inner = tuple(slice(4, -4) for _ in range(3)) if min(spacing) < 3 else (slice(1, -1),) * 3
    np.testing.assert_allclose(result.data[0][inner], field(result)[inner], atol=2e-3)
    np.testing.assert_allclose(result.spacing, spacing)


def test_the_grid_keeps_its_centre_and_the_floor_of_its_extent(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(shape=(155, 24, 20), spacing=(1.0, 2.0, 3.0))
    result = geometry.resample(volume, (2.0, 2.0, 2.0))
    assert result.shape == (77, 24, 30)

    def centre(v: Volume) -> np.ndarray:
        d, h, w = ((n - 1) / 2 for n in v.shape)
        return world(v, (d, h, w))  # type: ignore[arg-type]

    np.testing.assert_allclose(centre(result), centre(volume))


def test_a_spacing_stored_as_float32_loses_no_voxel(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(shape=(24, 24, 24), spacing=(0.9999999,) * 3)
    assert geometry.resample(volume, (2.0, 2.0, 2.0)).shape == (12, 12, 12)


def test_masks_get_no_new_values(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    mask = Volume(volume.data > 400, volume.affine)
    result = geometry.resample(mask, (3.1, 2.7, 9.0), order=0)
    assert result.data.dtype == bool
    share = mask.data.mean(), result.data.mean()
    assert share[0] == pytest.approx(share[1], abs=0.03)


def test_less_than_a_voxel_is_refused(make_volume: Callable[..., Volume]) -> None:
    with pytest.raises(VolumeError, match="too small"):
        geometry.resample(make_volume(shape=(2, 20, 20), spacing=(0.5, 1, 1)), (2.0, 2.0, 2.0))


def test_shape_positions_and_values_are_those_of_torchio(shared_data: Path) -> None:
    tio = pytest.importorskip("torchio")
    from ssclf.io.volumes.nifti import read_nifti

    transform = tio.Compose([tio.ToCanonical(), tio.Resample(2)])
    paths = sorted((shared_data / "brats18").rglob("*_t1ce.nii.gz"))
    assert len(paths) == 4
    for path in paths:
        theirs = transform(tio.ScalarImage(path))
        ours = geometry.resample(geometry.reorient(read_nifti(path), "SAR"), (2.0, 2.0, 2.0))
        expected = theirs.data.numpy().transpose(0, 3, 2, 1)
        assert ours.data.shape == expected.shape
        np.testing.assert_allclose(ours.affine[:, [2, 1, 0, 3]], theirs.affine, atol=1e-4)
        assert np.abs(ours.data - expected).max() <= 1e-3 * np.ptp(expected)
