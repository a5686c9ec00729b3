"""Brains drawn for pretraining: repeatable, told by their lesion and by nothing else."""

from __future__ import annotations

from dataclasses import fields
from dataclasses import replace as replace_typed
from typing import Any, get_args

import numpy as np
import pytest

from ssclf.config import PreprocessConfig
from ssclf.domain.confounds import audit, shape_features
from ssclf.domain.generator.draw import draw_brain
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.domain.geometry import reorient
from ssclf.domain.preprocessing import preprocess
from ssclf.domain.synthetic import SyntheticLabel, make_synthetic_volume
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError

pytestmark = pytest.mark.needs("scipy")
LABELS = get_args(SyntheticLabel)


def replace(settings: GeneratorSettings, **values: Any) -> GeneratorSettings:
    return replace_typed(settings, **values)


#: What moves nothing, adds nothing and changes no intensity; lesions stay as they are.
PLAIN = replace(
    GeneratorSettings(),
    **{
        field.name: 0.0
        for field in fields(GeneratorSettings)
        if field.name.endswith("_chance") and field.name != "stays_on_side_chance"
    },
    **dict.fromkeys(("gamma", "bias", "noise", "leftover_vessel", "mass_effect"), (0.0, 0.0)),
)
CHANCES = [
    field.name
    for field in fields(GeneratorSettings)
    if getattr(PLAIN, field.name) == 0.0 and field.name.endswith("_chance")
]


def head(spacing: tuple[float, float, float], seed: int = 0) -> Volume:
    config = PreprocessConfig(spacing=spacing, crop="brain")
    found = preprocess(
        make_synthetic_volume("healthy", np.random.default_rng(seed), spacing=(4, 4, 4)), config
    )
    return Volume(found.data, found.affine)


@pytest.fixture(scope="module")
def brain() -> Volume:
    return head((7, 6, 6))


@pytest.mark.parametrize("label", LABELS)
def test_the_same_seed_is_the_same_brain(label: SyntheticLabel, brain: Volume) -> None:
    seeds = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (7, 500, 100_000)]
    first = [draw_brain(brain, label, seed)[0].data for seed in seeds]
    backwards = [draw_brain(brain, label, seed)[0].data for seed in reversed(seeds)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, backwards, strict=True))
    assert len({a.tobytes() for a in first}) == len(seeds)


@pytest.mark.parametrize("seed", range(20))
def test_a_brain_is_network_input_with_one_outline_for_all_labels(seed: int, brain: Volume) -> None:
    before = brain.data.copy()
    drawn = {label: draw_brain(brain, label, (seed,)) for label in LABELS}
    assert np.array_equal(brain.data, before)
    for label, (volume, where) in drawn.items():
        data = volume.data
        assert data.shape == brain.data.shape and data.dtype == np.float32
        assert np.array_equal(volume.affine, brain.affine)
        assert data.min() == 0 and 0.5 < data.max() <= 1
        assert np.array_equal(data > 0, drawn["healthy"][0].data > 0)
        assert where.any() == (label != "healthy") and not where[data[0] == 0].any()
    assert np.array_equal(drawn["LGG"][1], drawn["HGG"][1])


def test_with_nothing_drawn_a_healthy_brain_comes_back_as_it_was(brain: Volume) -> None:
    volume, _ = draw_brain(brain, "healthy", (3,), PLAIN)
    np.testing.assert_allclose(volume.data, brain.data, atol=2e-3)


def test_beside_its_lesion_a_brain_is_the_healthy_one(brain: Volume) -> None:
    """All findings and intensities are those of the same seed; only the scale is set anew, as preprocessing would."""
    local = ("smooth_chance", "slices_chance", "ghost_chance", "motion_chance")  # they smear the lesion
    settings = replace(
        GeneratorSettings(),
        **dict.fromkeys((*local, "low_grade_oedema_chance"), 0.0),
        mass_effect=(0.0, 0.0),
        oedema_mm=(1.0, 5.0),
        radius_mm=(8.0, 20.0),
    )
    for seed in range(10):
        healthy = draw_brain(brain, "healthy", (seed,), settings)[0].data[0]
        for label in ("LGG", "HGG"):
            volume, where = draw_brain(brain, label, (seed,), settings)
            far = _far_from(where, brain, 25) & (healthy > 0.1) & (healthy < 0.9)
            far &= (volume.data[0] > 0.01) & (volume.data[0] < 0.99)
            assert far.sum() > 100
            assert np.corrcoef(healthy[far], volume.data[0][far])[0, 1] > 0.9999


def _far_from(where: np.ndarray[Any, Any], brain: Volume, mm: float) -> np.ndarray[Any, Any]:
    from scipy import ndimage

    return np.asarray(ndimage.distance_transform_edt(~where, sampling=brain.spacing) > mm)


@pytest.mark.parametrize("chance", CHANCES)
def test_each_finding_changes_a_brain(chance: str, brain: Volume) -> None:
    always = replace(PLAIN, **{chance: 1.0})
    parent = {"flat_chance": "remapped_chance", "faint_enhancement_chance": "contrast_chance"}.get(chance)
    before = replace(PLAIN, **{parent: 1.0}) if parent else PLAIN
    if parent:
        always = replace(always, **{parent: 1.0})
    changed = [
        label
        for label in LABELS
        for seed in range(3)
        if not np.array_equal(
            draw_brain(brain, label, (seed,), before)[0].data,
            draw_brain(brain, label, (seed,), always)[0].data,
        )
    ]
    of_one = {
        "haemorrhage_chance": "HGG", "low_grade_oedema_chance": "LGG", "calcification_chance": "LGG",
        "cyst_chance": "LGG", "faint_enhancement_chance": "LGG",
    }  # fmt: skip
    assert set(changed) == ({of_one[chance]} if chance in of_one else set(LABELS))


def test_high_grade_enhances_with_contrast_agent_only_and_low_grade_is_dark(brain: Volume) -> None:
    without, plain = (
        replace(PLAIN, unenhanced_dark=(0.0, 0.3)),
        replace(PLAIN, low_grade_mottled=(0, 0), low_grade_dark=(0.3, 0.9)),
    )
    bright = replace(PLAIN, contrast_chance=1.0, enhancement_bright=(0.3, 0.6))
    for seed in range(8):
        tissue = brain.data[0] > np.median(brain.data[brain.data > 0])
        agent, where = draw_brain(brain, "HGG", (seed,), bright)
        unenhanced, _ = draw_brain(brain, "HGG", (seed,), without)
        patch, _ = draw_brain(brain, "LGG", (seed,), plain)
        assert agent.data[0][where].max() > unenhanced.data[0][where].max()
        assert np.quantile(agent.data[0][where], 0.9) > np.quantile(patch.data[0][where], 0.9)
        for dark in (unenhanced, patch):
            assert dark.data[0][where & tissue].mean() < 0.9 * brain.data[0][where & tissue].mean()


def test_mass_effect_moves_what_is_around_and_not_the_outline(brain: Volume) -> None:
    pushing = replace(PLAIN, mass_effect=(0.4, 0.4), low_grade_edge_mm=(1.0, 1.0))
    for seed in range(4):
        still, where = draw_brain(brain, "LGG", (seed,), PLAIN)
        moved, _ = draw_brain(brain, "LGG", (seed,), pushing)
        near = ~_far_from(where, brain, 15) & ~where & (brain.data[0] > 0)
        far = _far_from(where, brain, 45)
        change = np.abs(moved.data[0] - still.data[0])
        assert np.array_equal(moved.data > 0, still.data > 0)
        assert change[near].mean() > 2 * change[far].mean()


def test_sizes_are_in_millimetres_on_any_grid(brain: Volume) -> None:
    ball = replace(PLAIN, foci=(1.0,), radius_mm=(22.0, 22.0))
    fine = head((4, 5, 3))
    for volume in (brain, fine, reorient(fine, "RPI")):
        for seed in range(3):
            _, where = draw_brain(volume, "LGG", (seed,), ball)
            assert 0.85 < where.sum() * volume.voxel_ml / (4 / 3 * np.pi * 2.2**3) < 1.15


@pytest.mark.parametrize("codes", ["SAR", "RPI", "ASR"])
def test_a_field_of_view_ends_at_top_or_bottom_however_the_axes_lie(codes: str, brain: Volume) -> None:
    turned = reorient(brain, codes)
    whole = draw_brain(brain, "LGG", (0,), PLAIN)[0].data[0] > 0
    ends = set()
    for seed in range(12):
        data = draw_brain(turned, "LGG", (seed,), replace(PLAIN, cut_chance=1.0))[0].data
        upright = reorient(Volume(data, turned.affine), "SAR").data[0] > 0
        gone = np.flatnonzero((upright != whole).any(axis=(1, 2)))
        filled = np.flatnonzero(whole.any(axis=(1, 2)))
        assert not upright[gone].any() and len(gone) < len(filled) / 2
        ends.add("bottom" if gone[0] == filled[0] else "top" if gone[-1] == filled[-1] else "middle")
    assert ends == {"top", "bottom"}


@pytest.mark.needs("sklearn")
def test_the_outline_does_not_tell_the_class() -> None:
    brains = [head((9, 8, 8), seed) for seed in range(5)]
    labels = [LABELS[index % 3] for index in range(150)]
    shapes = []
    for index, label in enumerate(labels):
        brain = brains[index // 3 % 5]
        shapes.append(shape_features(draw_brain(brain, label, (0, 0, index))[0].data, brain.spacing))
    targets = np.array([LABELS.index(label) for label in labels])
    half = np.arange(150) < 75
    folds = [(np.flatnonzero(half), np.flatnonzero(~half)), (np.flatnonzero(~half), np.flatnonzero(half))]
    found = audit("outline", np.array(shapes), targets, [str(i) for i in range(150)], folds, LABELS)
    assert found.score < 0.65


def test_what_cannot_be_is_refused(brain: Volume) -> None:
    with pytest.raises(ConfigError, match="expected one of LGG, HGG, healthy"):
        draw_brain(brain, "GBM", (0,))  # type: ignore[arg-type]
    empty = np.zeros_like(brain.data)
    for data in (empty, np.concatenate([brain.data, brain.data])):
        with pytest.raises(ConfigError, match="a brain of one contrast"):
            draw_brain(Volume(data, brain.affine), "LGG", (0,))
    with pytest.raises(ConfigError, match="fluid, grey and white matter"):
        draw_brain(Volume((brain.data > 0) * np.float32(0.5), brain.affine), "LGG", (0,))
    for wrong in ({"radius_mm": (20, 10)}, {"cut_chance": 1.1}, {"foci": (0.5, 0.1)}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            GeneratorSettings(**wrong)
