from __future__ import annotations

import numpy as np
import pytest
import torch

from ssclf.config import Augmentation, Plane
from ssclf.domain.geometry import PLANE_ORIENTATION
from ssclf.learning.augmentation import Augmenter

RAS = "RAS"


def global_state() -> object:
    return np.random.get_state(legacy=False)["state"]["key"]


def affine_of(plane: Plane, spacing: tuple[float, float, float]) -> np.ndarray:
    """(d, h, w) to RAS+ mm for the orientation codes that preprocessing gives this plane."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, code in enumerate(PLANE_ORIENTATION[plane]):
        world = next(i for i, pair in enumerate(("RL", "AP", "SI")) if code in pair)
        affine[world, axis] = spacing[axis] * (1 if code in RAS else -1)
    return affine


def brain(channels: int = 1, shape: tuple[int, int, int] = (14, 18, 16)) -> np.ndarray:
    random = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2).sum(axis=0) < 0.7
    return (inside * (0.3 + 0.6 * random.random((channels, *shape)))).astype(np.float32)


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_the_result_is_network_input_again(kind: Augmentation) -> None:
    data = brain(channels=2)
    augment = Augmenter(kind, 0)
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
    state, numpy_state = torch.get_rng_state(), global_state()
    first = Augmenter(kind, 5)(data, affine, epoch=2, index=3)
    torch.manual_seed(77)
    torch.rand(3)
    again = Augmenter(kind, 5)(data, affine, epoch=2, index=3)
    np.testing.assert_array_equal(first, again)
    others = [
        Augmenter(kind, 6)(data, affine, epoch=2, index=3),
        Augmenter(kind, 5)(data, affine, epoch=3, index=3),
        Augmenter(kind, 5)(data, affine, epoch=3, index=2),
    ]
    for i, left in enumerate([first, *others]):
        for right in others[i:]:
            assert not np.array_equal(left, right)
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    Augmenter(kind, 5)(data, affine, epoch=2, index=3)
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(global_state(), numpy_state)


@pytest.mark.parametrize(("plane", "axis"), [("axial", 3), ("coronal", 3), ("sagittal", 1)])
def test_flips_are_from_left_to_right_in_every_plane(plane: Plane, axis: int) -> None:
    # a gradient along every axis: scaling and small rotations keep its sign, a flip turns it
    shape = (16, 18, 20)
    ramps = np.stack(np.meshgrid(*(np.linspace(0.1, 0.9, n) for n in shape), indexing="ij")).astype(
        np.float32
    )
    augment = Augmenter("light", 0)
    flips = np.zeros(4, int)
    centre = (slice(None), slice(5, -5), slice(5, -5), slice(5, -5))
    for index in range(80):
        result = augment(ramps, affine_of(plane, (5, 6, 7)), epoch=0, index=index)[centre]
        for channel in range(3):
            flips[channel + 1] += np.diff(result[channel], axis=channel).mean() < 0
    assert 8 <= flips[axis] <= 34
    assert flips.sum() == flips[axis]


def test_rotation_and_scale_are_in_millimetres() -> None:
    # a ball of 30 mm on a grid with unequal spacing stays a ball of 27 to 36 mm along each axis, give or take a voxel
    spacing = np.array([6.0, 4.0, 3.0])
    shape = (20, 28, 36)
    grid = np.stack(
        np.meshgrid(
            *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
        )
    )
    ball = ((grid**2).sum(axis=0) < 30**2).astype(np.float32)[None]
    augment = Augmenter("light", 0)
    extents = []
    for index in range(20):
        result = augment(ball, affine_of("axial", tuple(spacing)), epoch=0, index=index)[0] > 0.5
        extents.append([np.ptp(np.nonzero(result)[axis]) * spacing[axis] / 2 for axis in range(3)])
    assert np.all(np.min(extents, axis=0) > 27 - spacing)
    assert np.all(np.max(extents, axis=0) < 36 + spacing)
    assert np.all(np.ptp(extents, axis=0) > 0)


def test_none_changes_nothing() -> None:
    data = brain()
    assert Augmenter("none", 0)(data, np.eye(4), epoch=0, index=0) is data
