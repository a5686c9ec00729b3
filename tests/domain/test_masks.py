"""The largest piece and the holes of a mask, against scipy's labelling where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from ssclf.domain.masks import fill_holes, largest_component
from ssclf.domain.volume import Mask


def _random_masks() -> list[Mask]:
    rng = np.random.default_rng(7)
    return [rng.random(tuple(rng.integers(1, 9, 3))) < rng.random() for _ in range(200)]


def test_pieces_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((5, 4, 6), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 0, 2] = True  # a diagonal of three
    mask[4, 2:4, 4:] = True  # four voxels apart from it
    mask[0, 3, 5] = True
    expected = np.zeros_like(mask)
    expected[4, 2:4, 4:] = True
    assert np.array_equal(largest_component(mask), expected)
    mask[3, 1, 3] = True  # now the diagonal reaches the four: eight in one piece
    assert largest_component(mask).sum() == 8


def test_rows_and_slices_do_not_run_into_each_other() -> None:
    mask = np.zeros((2, 3, 4), bool)
    mask[0, 0, 3] = mask[0, 2, 0] = True  # neighbours in memory order only once rows are joined
    mask[0, 2, 3] = mask[1, 0, 0] = True
    assert largest_component(mask).sum() == 1


def test_a_cavity_is_filled_and_a_tunnel_is_not() -> None:
    ball = np.ones((5, 6, 7), bool)
    cavity = ball.copy()
    cavity[2, 2, 2:4] = False
    assert np.array_equal(fill_holes(cavity), ball)
    tunnel = cavity.copy()
    tunnel[:2, 2, 2] = False
    assert np.array_equal(fill_holes(tunnel), tunnel)
    leak = cavity.copy()
    leak[1, 1, 1] = leak[0, 0, 0] = False  # open along a diagonal only: air does not pass edges or corners
    assert fill_holes(leak)[2, 2, 2]


def test_same_pieces_and_holes_as_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    for mask in _random_masks():
        labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
        kept = largest_component(mask)
        if count:
            assert kept.sum() == np.bincount(labels[mask]).max()
            assert np.unique(labels[kept]).size == 1
        assert not (kept & ~mask).any()
        assert np.array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_a_long_winding_piece_stays_whole() -> None:
    snake = np.zeros((9, 33, 17), bool)
    snake[::2, ::2] = True
    snake[::2, 1::4, -1] = snake[::2, 3::4, 0] = True
    snake[1::4, -1, -1] = snake[3::4, 0, 0] = True
    scattered = snake.copy()
    scattered[1, 10, 5] = True
    assert np.array_equal(largest_component(snake), snake)
    assert largest_component(scattered).sum() >= snake.sum()


def test_empty_masks_stay_empty() -> None:
    empty = np.zeros((3, 4, 5), bool)
    assert not largest_component(empty).any()
    assert not fill_holes(empty).any()
