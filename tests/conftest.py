"""Shared fixtures: tiny volumes on which a swapped axis cannot pass, and the optional folder of real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssclf.domain.volume import Volume


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real MR volumes for development: beside the checkout, or where SSCLF_TEST_DATA points."""
    folder = Path(os.environ.get("SSCLF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "manifest.csv").is_file():
        pytest.skip("the developers' real MR volumes are not here (set SSCLF_TEST_DATA to their folder)")
    return folder


@pytest.fixture
def make_volume() -> Callable[..., Volume]:
    """A stripped "brain": a textured ellipsoid on a background of 0, unequal sizes and spacings."""

    def make(
        shape: tuple[int, int, int] = (20, 26, 22),
        spacing: tuple[float, float, float] = (7.0, 6.0, 6.5),
        *,
        seed: int = 0,
        dtype: type[np.generic] = np.float32,
    ) -> Volume:
        rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        inside = (grid**2).sum(axis=0) < 0.8
        texture = 400 + 100 * np.sin(5 * grid).sum(axis=0) + rng.normal(0, 20, shape)
        data = np.where(inside, texture, 0).astype(dtype)
        affine = np.zeros((4, 4))
        # (d, h, w) grow towards superior, anterior, right
        affine[2, 0], affine[1, 1], affine[0, 2] = spacing
        affine[:, 3] = [-70.0, -80.0, -60.0, 1.0]
        return Volume(data[None], affine)

    return make
