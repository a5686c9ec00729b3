"""A stripped brain is known from a head; where it is not sure, it is a head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssclf.domain.geometry import reorient, resample
from ssclf.domain.stripping import judge_stripping
from ssclf.domain.volume import Volume
from ssclf.io.volumes.read import read_volume

SPACING = (3.0, 3.2, 2.8)


def make_ball(*shells: tuple[float, float], size: float = 1.0, noise: float = 5.0) -> Volume:
    """Concentric shells on a background of 0. Synthetic.

    Args:
        shells: (outer radius in mm on the short axis, intensity), from the outside in.
    """
    shape = (70, 76, 66)
    rng = np.random.default_rng(0)
    axes = [(np.arange(n) - n / 2) * mm for n, mm in zip(shape, SPACING, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(z**2 + (y / 1.2) ** 2 + x**2) / size
    data = np.zeros(shape)
    for outer, intensity in shells:
        inside = radius < outer
        data[inside] = intensity + rng.normal(0, noise, int(inside.sum()))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *SPACING, 1.0
    return Volume(data[None].astype(np.float32), affine)


BRAIN = ((66, 300), (60, 420), (40, 500))
#: Scalp, skull, brain as on T1; and as after contrast agent, where fat outshines even the blurred skull.
HEAD = ((80, 400), (75, 40), *BRAIN)
BRIGHT_HEAD = ((84, 1500), (75, 650), *BRAIN)


def test_a_brain_is_stripped_and_a_head_is_not() -> None:
    assert judge_stripping(make_ball(*BRAIN)).stripped
    assert not judge_stripping(make_ball(*HEAD)).stripped


def test_a_small_bright_head_is_no_brain() -> None:
    """Volume and the darkest shell alone took these for brains."""
    found = judge_stripping(make_ball(*BRIGHT_HEAD, size=0.9))
    assert found.shell_ratio > 0.55 and found.foreground_ml < 2700
    assert not found.stripped


def test_ventricles_at_the_backgrounds_value_do_not_count_as_outside() -> None:
    brain = make_ball(*BRAIN)
    hollow = make_ball((12, 1.0), noise=0).data[0] > 0
    brain.data[0][hollow] = 0
    assert judge_stripping(brain).stripped


@pytest.mark.parametrize("codes", ["RAS", "PIL", "LSA"])
def test_stored_orientation_changes_nothing(codes: str) -> None:
    brain = make_ball(*BRAIN)
    assert judge_stripping(reorient(brain, codes)) == judge_stripping(brain)


@pytest.mark.parametrize("offset", [-1000, 7, 0])
def test_the_background_may_have_any_value(offset: float) -> None:
    for shells, stripped in ((BRAIN, True), (HEAD, False)):
        volume = make_ball(*shells)
        assert judge_stripping(Volume(volume.data + np.float32(offset), volume.affine)).stripped is stripped


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (6.0, 1.5, 1.5), (5.0, 5.0, 5.0)])
def test_grids_from_fine_to_coarse(spacing: tuple[float, float, float]) -> None:
    for shells, stripped in ((BRAIN, True), (HEAD, False)):
        assert judge_stripping(resample(make_ball(*shells), spacing)).stripped is stripped


def test_what_is_not_sure_is_a_head() -> None:
    rng = np.random.default_rng(1)
    brain = make_ball(*BRAIN)
    noisy = np.abs(brain.data + rng.normal(0, 20, brain.data.shape)).astype(np.float32)
    for doubtful in (noisy, np.zeros_like(brain.data), np.ones_like(brain.data)):
        assert not judge_stripping(Volume(doubtful, brain.affine)).stripped
    assert not judge_stripping(make_ball(*BRAIN, size=0.5)).stripped


def test_real_volumes(shared_data: Path) -> None:
    brains = [*shared_data.glob("brats18/*/*/*_t1*.nii.gz"), *shared_data.glob("healthy_stripped/*.*z")]
    heads = [*shared_data.glob("head/ixi/*_T1.nii.gz"), *shared_data.glob("head/*_head.*")]
    assert len(brains) == 10 and len(heads) == 12
    for paths, stripped in ((brains, True), (heads, False)):
        for path in paths:
            assert judge_stripping(read_volume(path)).stripped is stripped, path.name
