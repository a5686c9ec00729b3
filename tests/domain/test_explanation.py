"""Class maps end where their evidence lies, whatever the orientation, obliquity and spacing of the scan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from ssclf.config import Architecture, Crop, PreprocessConfig
from ssclf.domain.explanation import (
    BrainGrid,
    cell_stride,
    class_evidence,
    hide,
    lost_evidence,
    map_to_scan,
    occlusion_cubes,
    other_side,
    place_map,
    without_structure,
)
from ssclf.domain.geometry import reorient
from ssclf.domain.intensity import foreground
from ssclf.domain.preprocessing import PreparedVolume, preprocess
from ssclf.domain.scores import softmax
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import read_nifti, write_nifti

CONFIG = PreprocessConfig(spacing=(2.0, 3.0, 2.5))
STRIDES = (8, 16, 16)
STORED = ("SAR", "LPI", "ARS", "ILP", "PSL")


def turn(degrees: float) -> NDArray[np.float64]:
    """(4, 4) rotation about a skew axis."""
    x, y, z = np.array([2.0, -1.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    rotation = np.eye(4)
    rotation[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return rotation


def tilted(volume: Volume, codes: str, degrees: float) -> Volume:
    """The volume stored along other axes, in a head that is turned."""
    stored = reorient(volume, codes)
    return Volume(stored.data, turn(degrees) @ stored.affine)


def world(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Positions (3, *shape) in mm."""
    return np.einsum("ab,bijk->aijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]


@pytest.mark.parametrize(
    ("length", "cells", "stride"),
    [(77, 77, 1), (77, 10, 8), (120, 8, 16), (113, 8, 16), (17, 2, 16), (5, 1, 8)],
)
def test_strides_follow_from_shapes(length: int, cells: int, stride: int) -> None:
    assert cell_stride(length, cells) == stride


@pytest.mark.parametrize("architecture", ["mc3", "r3d", "r2plus1d"])
@pytest.mark.parametrize("shape", [(9, 33, 18), (16, 17, 32)])
def test_cells_lie_at_the_centres_of_their_receptive_fields(
    architecture: Architecture, shape: tuple[int, int, int]
) -> None:
    """Kernels with nothing but their central tap pass on, cell by cell, the voxel at the centre."""
    torch = pytest.importorskip("torch")
    from ssclf.learning.networks import build_network

    network = build_network(architecture, channels=1, classes=2).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            centre = tuple(size // 2 for size in module.kernel_size)
            weight = torch.zeros_like(module.weight)
            here = (slice(None), slice(None), *centre)
            weight[here] = 1 / weight.shape[1]
            module.weight = torch.nn.Parameter(weight)
    volume = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = network.features(volume)[0, 0].numpy()
    voxels = world(place_map(features, shape, np.eye(4)).affine, features.shape).astype(int)
    expected = volume[0, 0].numpy()[tuple(voxels)]
    np.testing.assert_allclose(features / features.max(), expected / expected.max(), rtol=1e-3)


@pytest.mark.parametrize("crop", ["none", "brain"])
@pytest.mark.parametrize("degrees", [0.0, 13.0])
@pytest.mark.parametrize("codes", STORED)
@pytest.mark.parametrize("mirrored", [None, 0, 2])
def test_linear_maps_arrive_unchanged(
    make_volume: Callable[..., Volume], codes: str, degrees: float, mirrored: int | None, crop: Crop
) -> None:
    """Linear interpolation is exact for a map that is linear in world coordinates, if it is put where it belongs."""
    scan = tilted(make_volume(), codes, degrees)
    brain = foreground(scan.data)
    prepared = preprocess(scan, PreprocessConfig(spacing=CONFIG.spacing, crop=crop, crop_margin_mm=9), brain)

    def linear(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 0.03 * x[0] - 0.05 * x[1] + 0.02 * x[2] + 4

    shape = prepared.data.shape[1:]
    seen = linear(world(prepared.affine, shape))
    seen = seen if mirrored is None else np.flip(seen, mirrored)
    cells = seen[:: STRIDES[0], :: STRIDES[1], :: STRIDES[2]].astype(np.float32)
    placed = place_map(cells, shape, prepared.affine, mirrored=mirrored)

    result = map_to_scan([placed], BrainGrid.of(scan, brain))

    index = np.einsum(
        "ab,bijk->aijk", np.linalg.inv(placed.affine)[:3, :3], world(scan.affine, scan.shape)
    ) + np.linalg.inv(placed.affine)[:3, 3].reshape(3, 1, 1, 1)
    between_cells = ((index >= 0) & (index <= np.reshape(cells.shape, (3, 1, 1, 1)) - 1)).all(axis=0)
    assert np.count_nonzero(brain & between_cells) > 500
    expected = linear(world(scan.affine, scan.shape))
    np.testing.assert_allclose(result[brain & between_cells], expected[brain & between_cells], atol=2e-4)
    assert result.dtype == np.float32 and not result[~brain].any()


@pytest.mark.parametrize("degrees", [0.0, 17.0])
@pytest.mark.parametrize("codes", STORED)
def test_map_overlays_the_scan_in_a_viewer(
    make_volume: Callable[..., Volume], tmp_path: Path, codes: str, degrees: float
) -> None:
    """A network that sees a lesion lights up there, also for who reads both files with nibabel alone."""
    healthy = make_volume((40, 52, 44), (3.5, 3.0, 3.25))
    brain = foreground(healthy.data)
    centre = np.array([18, 33, 14])
    distance = np.linalg.norm(
        np.moveaxis(np.indices(healthy.shape), 0, -1) * healthy.spacing - centre * healthy.spacing, axis=-1
    )
    blob = 3000 * np.exp(-((distance / 25) ** 2))
    scan = tilted(Volume(np.where(brain, healthy.data[0] + blob, 0)[None], healthy.affine), codes, degrees)
    write_nifti(scan, tmp_path / "scan.nii.gz")
    read = read_nifti(tmp_path / "scan.nii.gz")
    prepared = preprocess(read, PreprocessConfig(percentiles=(0.5, 100)), foreground(read.data))
    d, h, w = STRIDES
    cells = prepared.data[0, ::d, ::h, ::w]  # a network that looks at the voxel in the middle

    mapped = map_to_scan(
        [place_map(cells, prepared.data.shape[1:], prepared.affine)],
        BrainGrid.of(read, foreground(read.data)),
    )
    write_nifti(Volume(mapped[None], read.affine), tmp_path / "map.nii.gz")

    image, map_image = (nib.Nifti1Image.from_filename(tmp_path / f"{n}.nii.gz") for n in ("scan", "map"))
    assert map_image.shape == image.shape
    np.testing.assert_allclose(map_image.affine, image.affine, atol=1e-5)
    peak = np.unravel_index(map_image.get_fdata().argmax(), map_image.shape)
    peak_mm = nib.affines.apply_affine(map_image.affine, peak)
    lesion_mm = (turn(degrees) @ healthy.affine @ [*centre, 1])[:3]
    off = np.linalg.inv(prepared.affine[:3, :3]) @ (peak_mm - lesion_mm)
    assert (np.abs(off) <= np.array(STRIDES) / 2 + 2).all()


def test_beyond_the_outermost_cells_their_value_stays() -> None:
    scan = Volume(np.ones((1, 3, 4, 9), np.float32), np.eye(4))
    placed = place_map(np.array([[[1.0]], [[3.0]]], np.float32), (2, 7, 5), np.diag([2.0, 1.0, 1.0, 1.0]))
    mapped = map_to_scan([placed], BrainGrid.of(scan, np.ones(scan.shape, bool)))
    np.testing.assert_allclose(mapped, np.broadcast_to(np.array([1, 2, 3])[:, None, None], scan.shape))


def test_several_maps_are_averaged() -> None:
    scan = Volume(np.ones((1, 3, 5, 7), np.float32), np.eye(4))
    brain = np.arange(105).reshape(3, 5, 7) % 4 > 0
    maps = [place_map(np.full((2, 1, 1), value, np.float32), (9, 5, 7), np.eye(4)) for value in (1, 4)]
    np.testing.assert_allclose(map_to_scan(maps, BrainGrid.of(scan, brain)), 2.5 * brain)


def test_evidence_leaves_out_what_speaks_for_all_classes_alike() -> None:
    rng = np.random.default_rng(5)
    cam = rng.normal(size=(3, 2, 3, 4)).astype(np.float32)
    shared = rng.normal(size=(2, 3, 4)).astype(np.float32)
    ours = np.stack([class_evidence(cam + shared, k) for k in range(3)])
    np.testing.assert_allclose(ours, np.stack([class_evidence(cam, k) for k in range(3)]), atol=1e-6)
    np.testing.assert_allclose(
        softmax(ours.mean(axis=(1, 2, 3)), 1), softmax(cam.mean(axis=(1, 2, 3)), 1), 1e-5
    )


def test_prepared_grid_takes_maps_too(make_volume: Callable[..., Volume]) -> None:
    """Pictures are drawn on the network's input: there the map has its cells' values at their centres."""
    prepared: PreparedVolume = preprocess(make_volume(), CONFIG)
    shape = prepared.data.shape[1:]
    cells = np.random.default_rng(2).normal(size=[-(-n // s) for n, s in zip(shape, STRIDES, strict=True)])
    grid = BrainGrid.of(Volume(prepared.data, prepared.affine), np.ones(shape, bool))
    mapped = map_to_scan([place_map(cells.astype(np.float32), shape, prepared.affine)], grid)
    np.testing.assert_allclose(mapped[:: STRIDES[0], :: STRIDES[1], :: STRIDES[2]], cells, atol=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (6.0, 2.0, 40.0)])
@pytest.mark.parametrize("shape", [(37, 20, 9), (3, 40, 1)])
def test_cubes_cover_the_brain(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    brain = np.random.default_rng(0).random(shape) < 0.6
    covered = np.zeros(shape, int)
    for cube in occlusion_cubes(brain, spacing, 12):
        assert brain[cube].mean() >= 0.1
        covered[cube] += 1
    assert covered[brain].min() >= 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("aside", [-4, -1, 0, 3])
def test_a_symmetric_brain_is_its_own_other_side_wherever_it_lies(axis: int, aside: int) -> None:
    """Off the middle of the grid, and cut off there; what has no opposite voxel shows the mean."""
    random = np.random.default_rng(0)
    half = np.exp(
        2 * random.standard_normal((2, 11, 12, 7), np.float32)
    )  # much more texture than brains have
    symmetric = np.concatenate([half, half[..., ::-1]], axis=-1)
    brain = np.pad(symmetric, ((0, 0), (2, 2), (2, 2), (5 + aside, 5 - aside)))
    data = np.ascontiguousarray(np.moveaxis(brain, -1, axis + 1))
    np.testing.assert_array_equal(other_side(data, axis, 3.0), data)
    cut = np.moveaxis(brain.copy(), -1, axis + 1)
    gone = (slice(None),) * (axis + 1) + (slice(0, 5 + aside + 2),)
    cut[gone] = 0
    other = other_side(np.ascontiguousarray(cut), axis, 3.0)
    np.testing.assert_array_equal(other > 0, cut > 0)
    for channel, original in zip(other, cut, strict=True):
        alone = (original > 0) & (np.flip(np.roll(original, -2 * aside, axis), axis) == 0)
        assert alone.any()
        np.testing.assert_allclose(channel[alone], original[original > 0].mean(), rtol=1e-6)


def test_without_structure_the_brain_shows_its_mean_and_the_background_stays() -> None:
    data = np.random.default_rng(0).random((2, 6, 7, 8), np.float32) + 1
    data[:, :2] = 0
    for channel, original in zip(without_structure(data), data, strict=True):
        assert (channel[:2] == 0).all()
        np.testing.assert_allclose(channel[2:], original[2:].mean(), rtol=1e-6)


def test_a_cube_hides_what_it_covers_and_nothing_else() -> None:
    data = np.random.default_rng(0).random((2, 6, 7, 8), np.float32) + 1
    data[:, :2] = 0
    before = data.copy()
    cube = (slice(1, 4), slice(0, 3), slice(5, 8))
    hidden = hide(data, 2 * data, cube)
    np.testing.assert_array_equal(data, before)
    changed = hidden != data
    assert changed[:, 2:4, 0:3, 5:8].all() and changed.sum() == 2 * 2 * 3 * 3
    np.testing.assert_array_equal(hidden[changed], 2 * data[changed])


def test_a_volume_without_brain_has_no_other_side() -> None:
    empty = np.zeros((1, 4, 5, 6), np.float32)
    np.testing.assert_array_equal(other_side(empty, 2, 2.0), empty)


@pytest.mark.parametrize("behind", [without_structure, partial(other_side, axis=2, spacing_mm=1.0)])
def test_evidence_of_a_sum_over_voxels_is_lost_where_it_lies(
    behind: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> None:
    """For a network that adds up voxels, hiding costs what is above what it shows instead."""
    shape = (20, 22, 24)
    data = np.ones((1, *shape), np.float32)
    data[0, 12:15, 4:7, 17:20] = 3
    cubes = occlusion_cubes(data[0] > 0, (1, 1, 1), 6)
    other = behind(data)
    lost = lost_evidence([float((data - hide(data, other, cube)).sum()) for cube in cubes], cubes, shape)
    peak = np.unravel_index(lost.argmax(), shape)
    assert (np.abs(np.subtract(peak, (13, 5, 18))) <= 3).all()
    assert lost[:5].max() < 0.1 * lost.max()
