from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio
from scipy.spatial.transform import Rotation
from scipy.stats import ks_2samp

from ssclf.config import Augmentation, Plane
from ssclf.domain.augmentation import (
    ARTEFACTS,
    Transform,
    bend_in_voxels,
    draw_transform,
    place_matrix,
)
from ssclf.domain.geometry import PLANE_ORIENTATION
from ssclf.learning.augmentation import add_artefacts, move, move_batch

RAS = "RAS"
Augment = Callable[..., np.ndarray]


def augmenter(kind: Augmentation, seed: int) -> Augment:
    """All that happens to one volume between its file and the network."""

    def augment(data: np.ndarray, affine: np.ndarray, *, epoch: int, index: int) -> np.ndarray:
        transform = draw_transform(kind, data.shape[1:], affine, (seed, epoch, index))
        if transform is None:
            return data
        moved = move(torch.from_numpy(data), transform).numpy()
        return add_artefacts(moved, affine, transform) if transform.artefacts else moved

    return augment


def affine_of(plane: Plane, spacing: tuple[float, float, float]) -> np.ndarray:
    """(d, h, w) to RAS+ mm for the orientation codes that preprocessing gives this plane."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, code in enumerate(PLANE_ORIENTATION[plane]):
        world = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        affine[world, axis] = spacing[axis] * (1 if code in RAS else -1)
    return affine


def oblique(affine: np.ndarray) -> np.ndarray:
    turned = affine.copy()
    turned[:3, :3] = Rotation.from_euler("xyz", [20, -10, 15], degrees=True).as_matrix() @ affine[:3, :3]
    turned[:3, 3] = 5, -7, 11
    return turned


AFFINES = [
    affine_of("axial", (6, 4, 3)),
    affine_of("sagittal", (6, 4, 3)),
    oblique(affine_of("coronal", (3, 6, 4))),
]


def brain(channels: int = 1, shape: tuple[int, int, int] = (14, 18, 16)) -> np.ndarray:
    random = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2).sum(axis=0) < 0.7
    return (inside * (0.3 + 0.6 * random.random((channels, *shape)))).astype(np.float32)


def image_of(data: np.ndarray, affine: np.ndarray) -> Any:
    """TorchIO's, whose order is (C, W, H, D)."""
    tensor = torch.from_numpy(np.ascontiguousarray(data.transpose(0, 3, 2, 1)))
    return tio.ScalarImage(tensor=tensor, affine=affine[:, [2, 1, 0, 3]])


def by_torchio(transform: tio.Transform, data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(transform(image_of(data, affine)).numpy().transpose(0, 3, 2, 1))


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_the_result_is_network_input_again(kind: Augmentation) -> None:
    data = brain(channels=2)
    augment = augmenter(kind, 0)
    changed = 0
    for index in range(12):
        result = augment(data, affine_of("axial", (8, 7, 6)), epoch=1, index=index)
        assert result.shape == data.shape
        assert result.dtype == np.float32
        assert result.min() == 0 and result.max() <= 1
        # artefacts of k-space reach everywhere; corners are background and stay so
        assert not result[:, :2, :2, :2].any()
        assert result.any()
        changed += not np.array_equal(result, data)
    assert changed == 12


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_the_same_draw_comes_back_and_the_global_state_stays(kind: Augmentation) -> None:
    data, affine = brain(), affine_of("axial", (8, 7, 6))
    state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"]
    first = augmenter(kind, 5)(data, affine, epoch=2, index=3)
    torch.manual_seed(77)
    torch.rand(3)
    again = augmenter(kind, 5)(data, affine, epoch=2, index=3)
    np.testing.assert_array_equal(first, again)
    others = [
        augmenter(kind, 6)(data, affine, epoch=2, index=3),
        augmenter(kind, 5)(data, affine, epoch=3, index=3),
        augmenter(kind, 5)(data, affine, epoch=3, index=2),
    ]
    for i, left in enumerate([first, *others]):
        for right in others[i:]:
            assert not np.array_equal(left, right)
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    augmenter(kind, 5)(data, affine, epoch=2, index=3)
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy_state)


@pytest.mark.parametrize("affine", AFFINES)
def test_the_affine_is_torchio_s(affine: np.ndarray) -> None:
    random = np.random.default_rng(0)
    data = random.random((2, 12, 15, 17), np.float32)  # up to the borders, where brain crop leaves brain
    shape = (12, 15, 17)
    for _ in range(4):
        scales, degrees = random.uniform(0.9, 1.2, 3), random.uniform(-10, 10, 3)
        theirs = tio.Affine(tuple(scales), tuple(degrees), (0, 0, 0), default_pad_value=0)
        ours = move(torch.from_numpy(data), Transform(shape, place_matrix(scales, degrees, shape, affine)))
        np.testing.assert_allclose(ours.numpy(), by_torchio(theirs, data, affine), rtol=0, atol=1e-5)


@pytest.mark.parametrize("affine", AFFINES)
def test_the_elastic_deformation_is_torchio_s(affine: np.ndarray) -> None:
    random = np.random.default_rng(0)
    data = 0.2 + 0.8 * random.random(
        (2, 12, 15, 17), np.float32
    )  # what lies beyond is the least of a channel
    points = random.uniform(-7.5, 7.5, (3, 3, 3, 3))
    theirs = tio.ElasticDeformation(itk_points(points, data, affine), (7.5, 7.5, 7.5))
    expected = by_torchio(theirs, data, affine)
    ours = move(torch.from_numpy(data), Transform((12, 15, 17), bend=bend_in_voxels(points, affine))).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
    assert np.abs(ours - data).max() > 0.3


def itk_points(points: np.ndarray, data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Control points (R A S, d, h, w) in the order of the grid that ITK lays, whose axes it chooses itself."""
    import SimpleITK

    grid = SimpleITK.BSplineTransformInitializer(image_of(data[:1], affine).as_sitk(), [4, 4, 4])
    lps = np.diag([-1.0, -1.0, 1.0])
    directions = lps @ affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.array(grid.GetTransformDomainDirection()).reshape(3, 3).T @ directions
    axes = np.abs(cosines).argmax(axis=1)
    found = np.einsum("ij,jabc->iabc", lps, points).transpose(0, *(1 + axes))
    found = np.flip(found, tuple(1 + i for i in range(3) if cosines[i, axes[i]] < 0))
    result = np.zeros((7, 7, 7, 3))
    result[2:5, 2:5, 2:5] = np.moveaxis(found, 0, -1)
    return result


def torchio_draws(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(count, 3) scales and angles, and whether it was flipped."""
    affine, flip = (
        tio.RandomAffine(scales=(0.9, 1.2), degrees=10),
        tio.RandomFlip(axes=(0,), flip_probability=0.25),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = [
            affine.get_params(affine.scales, affine.degrees, affine.translation, affine.isotropic)[:2]
            for _ in range(count)
        ]
        flips = [flip.get_params(flip.flip_probability)[0] for _ in range(count)]
    scales, degrees = (np.array([pair[k].numpy() for pair in drawn]) for k in (0, 1))
    return scales, degrees, np.array(flips)


def parameters(transform: Transform, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Scales and angles of a drawn matrix, and whether it mirrors."""
    assert transform.matrix is not None
    linear = affine[:3, :3] @ transform.matrix[:, :3] @ np.linalg.inv(affine[:3, :3])
    mirrored = bool(np.linalg.det(linear) < 0)
    turn = np.linalg.inv(linear)
    if mirrored:  # along the array axis that runs from left to right, which here is the world's: undone first
        turn = np.diag([-1, 1, 1]) @ turn
    scales = np.linalg.norm(turn, axis=1)
    rotation = np.diag([-1, -1, 1]) @ (turn / scales[:, None]) @ np.diag([-1, -1, 1])
    z, x, y = Rotation.from_matrix(rotation).as_euler("ZXY", degrees=True)
    return scales, np.array([-x, -y, z]), mirrored


def test_two_thousand_draws_are_distributed_as_torchio_s() -> None:
    affine, shape = affine_of("axial", (6, 4, 3)), (12, 15, 17)
    drawn = [draw_transform("light", shape, affine, (7, k // 50, k % 50)) for k in range(2000)]
    found = [parameters(transform, affine) for transform in drawn if transform]
    scales, degrees, flips = (np.array(column) for column in zip(*found, strict=True))
    their_scales, their_degrees, their_flips = torchio_draws(0, 2000)
    for ours, theirs in ((scales, their_scales), (degrees, their_degrees)):
        for axis in range(3):
            # that two such samples of one distribution look so unlike happens once in ten thousand times
            assert ks_2samp(ours[:, axis], theirs[:, axis]).pvalue > 1e-4
            assert (
                theirs[:, axis].min() - 0.1 < ours[:, axis].min()
                and ours[:, axis].max() < theirs[:, axis].max() + 0.1
            )
    assert abs(flips.mean() - 0.25) < 0.04 and abs(their_flips.mean() - 0.25) < 0.04
    everything = np.column_stack([scales, degrees, flips])
    assert np.abs(np.corrcoef(everything.T) - np.eye(7)).max() < 0.1, "what is drawn hangs together"


def test_known_points_go_where_torchio_takes_them() -> None:
    """A ramp along each axis says where every value was taken from."""
    shape, affine = (20, 24, 22), affine_of("coronal", (5, 6, 7))
    ramps = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")).astype(np.float32)
    middle = (slice(None), slice(6, -6), slice(6, -6), slice(6, -6))
    wrong = []
    for number in range(40):
        transform = draw_transform("light", shape, affine, (1, 0, number))
        assert transform is not None
        scales, degrees, mirrored = parameters(transform, affine)
        expected = by_torchio(
            tio.Affine(tuple(scales), tuple(degrees), (0, 0, 0), default_pad_value=0), ramps, affine
        )
        expected = np.flip(expected, 3) if mirrored else expected
        wrong.append(np.abs(move(torch.from_numpy(ramps), transform).numpy() - expected)[middle].max())
    assert max(wrong) * (max(shape) - 1) < 1e-3, "voxels"


@pytest.mark.parametrize(
    ("kind", "turned", "flipped"),
    [("light", 1, 0.25), ("half", 0.5, 0.5), ("flip", 0, 0.5), ("heavy", 1, 0.25)],
)
def test_as_many_as_should_are_turned_flipped_bent_and_spoilt(
    kind: Augmentation, turned: float, flipped: float
) -> None:
    affine, shape = affine_of("axial", (6, 4, 3)), (12, 15, 17)
    drawn = [draw_transform(kind, shape, affine, (3, 0, k)) for k in range(2000)]
    assert all(drawn)
    found = [transform for transform in drawn if transform]
    share = np.mean([transform.matrix is not None for transform in found])
    assert share == turned if turned in (0, 1) else abs(share - turned) < 0.05
    mirrored = [t.mirrored == 2 if t.matrix is None else parameters(t, affine)[2] for t in found]
    assert abs(np.mean(mirrored) - flipped) < 0.05
    heavy = kind == "heavy"
    assert abs(np.mean([t.bend is not None for t in found]) - 0.5 * heavy) < 0.05 * heavy + 1e-9
    for name in ARTEFACTS:
        assert abs(np.mean([name in t.artefacts for t in found]) - 0.25 * heavy) < 0.05 * heavy + 1e-9
    points = [affine[:3, :3] @ t.bend.reshape(3, -1) for t in found if t.bend is not None]
    if heavy:
        assert 7.4 < np.abs(points).max() <= 7.5 and abs(np.std(points) - 7.5 / 3**0.5) < 0.05


@pytest.mark.parametrize("kind", ["light", "half", "heavy"])
def test_a_volume_does_not_depend_on_its_batch_nor_on_threads(kind: Augmentation) -> None:
    affine = affine_of("axial", (8, 7, 6))
    volumes = [brain(2, (14, 18, 16)), brain(2, (11, 20, 13)), brain(2, (14, 18, 16))]
    transforms = [draw_transform(kind, v.shape[1:], affine, (0, 0, k)) for k, v in enumerate(volumes)]
    batch = torch.zeros(3, 2, 14, 20, 16)
    batch[0, :, :, 1:19], batch[2, :, :, 1:19] = torch.from_numpy(volumes[0]), torch.from_numpy(volumes[2])
    batch[1, :, 1:12, :, 1:14] = torch.from_numpy(volumes[1])
    together = move_batch(batch, transforms)
    assert batch[0, :, :, 1:19].numpy().tobytes() == volumes[0].tobytes(), "the batch itself was changed"
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            alone = [move(torch.from_numpy(v), t) for v, t in zip(volumes, transforms, strict=True) if t]
            assert torch.equal(together[0, :, :, 1:19], alone[0])
            assert torch.equal(together[1, :, 1:12, :, 1:14], alone[1])
            assert torch.equal(together[2, :, :, 1:19], alone[2])
    finally:
        torch.set_num_threads(before)
    assert together[1, :, 12:].sum() == together[1, :, :, :, 14:].sum() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_a_gpu_does_the_same(kind: Augmentation) -> None:
    data, affine = torch.from_numpy(brain(2, (26, 40, 38))), affine_of("axial", (8, 7, 6))
    for number in range(6):
        transform = draw_transform(kind, (26, 40, 38), affine, (0, 0, number))
        assert transform is not None
        there = move(data.cuda(), transform).cpu()
        # of a mask, a point halfway between two voxels may round either way
        assert ((there - move(data, transform)).abs() < 1e-4).float().mean() > 0.9999


@pytest.mark.parametrize(("plane", "axis"), [("axial", 3), ("coronal", 3), ("sagittal", 1)])
def test_flips_are_from_left_to_right_in_every_plane(plane: Plane, axis: int) -> None:
    # a gradient along every axis: scaling and small rotations keep its sign, a flip turns it
    shape = (16, 18, 20)
    ramps = np.stack(np.meshgrid(*(np.linspace(0.1, 0.9, n) for n in shape), indexing="ij")).astype(
        np.float32
    )
    for kind, low, high in (("light", 8, 34), ("flip", 25, 55)):
        augment = augmenter(kind, 0)  # type: ignore[arg-type]
        flips = np.zeros(4, int)
        centre = (slice(None), slice(5, -5), slice(5, -5), slice(5, -5))
        for index in range(80):
            result = augment(ramps, affine_of(plane, (5, 6, 7)), epoch=0, index=index)[centre]
            for channel in range(3):
                flips[channel + 1] += np.diff(result[channel], axis=channel).mean() < 0
        assert low <= flips[axis] <= high
        assert flips.sum() == flips[axis]


def test_mirror_images_alone_are_exact() -> None:
    data, affine = brain(2), affine_of("axial", (8, 7, 6))
    found = {augmenter("flip", 0)(data, affine, epoch=0, index=k).tobytes() for k in range(20)}
    assert found == {data.tobytes(), np.ascontiguousarray(data[..., ::-1]).tobytes()}


def test_rotation_and_scale_are_in_millimetres() -> None:
    # a ball of 30 mm on a grid with unequal spacing stays one of 27 to 36 mm along each axis, as far as voxels can tell
    spacing = np.array([6.0, 4.0, 3.0])
    shape = (20, 28, 36)
    grid = np.stack(
        np.meshgrid(
            *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
        )
    )
    ball = ((grid**2).sum(axis=0) < 30**2).astype(np.float32)[None]
    augment = augmenter("light", 0)
    extents = []
    for index in range(20):
        result = augment(ball, affine_of("axial", tuple(spacing)), epoch=0, index=index)[0] > 0.5
        extents.append([np.ptp(np.nonzero(result)[axis]) * spacing[axis] / 2 for axis in range(3)])
    assert np.all(np.min(extents, axis=0) > 27 - 1.5 * spacing)
    assert np.all(np.max(extents, axis=0) < 36 + 1.5 * spacing)
    assert np.all(np.ptp(extents, axis=0) > 0)


def test_none_changes_nothing() -> None:
    assert draw_transform("none", (3, 4, 5), np.eye(4), (0, 0, 0)) is None
    batch = torch.rand(2, 1, 3, 4, 5)
    assert move_batch(batch, (None, None)) is batch
