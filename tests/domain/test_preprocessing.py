from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssclf.config import PreprocessConfig, config_from_dict, config_to_dict
from ssclf.domain.geometry import orientation, reorient
from ssclf.domain.intensity import check_intensities, percentile_range
from ssclf.domain.preprocessing import preprocess, voxel_hash
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, VolumeError

COARSE = PreprocessConfig(spacing=(6.0, 6.0, 6.0))


def test_input_of_the_network_is_scaled_and_empty_outside(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    prepared = preprocess(volume, COARSE)
    assert prepared.data.dtype == np.float32 and prepared.data.ndim == 4
    assert prepared.data.min() == 0 and prepared.data.max() <= 1
    assert prepared.data[0, 0, 0, 0] == 0
    expected = np.count_nonzero(volume.data) * np.prod(volume.spacing) / 1000
    assert prepared.brain_ml == pytest.approx(expected)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.uint64]
)
def test_percentiles_are_those_of_numpy_for_every_type(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    info = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else None
    low, high = (max(info.min, -30000), min(info.max, 30000)) if info else (-1e4, 1e4)
    values = rng.uniform(low, high, 12345).astype(dtype)
    expected = np.percentile(values.astype(np.float64), [0.5, 99.5])
    np.testing.assert_allclose(percentile_range(values, (0.5, 99.5)), expected, rtol=1e-6)


def test_empty_slices_around_the_brain_do_not_change_its_values(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(spacing=(6.0, 6.0, 6.0))
    padded = Volume(np.pad(volume.data, ((0, 0), (4, 4), (0, 0), (2, 2))), volume.affine)
    inner = preprocess(padded, COARSE).data[:, 4:-4, :, 2:-2]
    np.testing.assert_array_equal(inner, preprocess(volume, COARSE).data)


def test_cropping_removes_what_the_field_of_view_adds(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume(spacing=(6.0, 6.0, 6.0))
    padded = Volume(np.pad(volume.data, ((0, 0), (9, 3), (0, 5), (2, 8))), volume.affine)
    settings = replace(COARSE, crop="brain")
    volume_wide = Volume(np.pad(volume.data, ((0, 0), (3, 3), (3, 3), (3, 3))), volume.affine)
    np.testing.assert_array_equal(
        preprocess(padded, settings).data[:, 1:-1], preprocess(volume_wide, settings).data[:, 1:-1]
    )


@pytest.mark.parametrize(("gain", "offset"), [(0.01, 0.0), (3.7, 0.0), (2.0, 500.0)])
def test_scanner_gain_does_not_matter(gain: float, offset: float, make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    louder = Volume((volume.data * np.float32(gain) + np.float32(offset)).astype(np.float32), volume.affine)
    np.testing.assert_allclose(preprocess(louder, COARSE).data, preprocess(volume, COARSE).data, atol=1e-5)


def test_the_background_is_exactly_0_whatever_the_intensities(make_volume: Callable[..., Volume]) -> None:
    """Interpolation weights need not sum to exactly 1: a bright lower bound left a haze around the brain."""
    volume = make_volume(shape=(40, 52, 44), spacing=(3.1, 3.3, 2.9))
    bright = Volume(np.where(volume.data > 0, volume.data * 7 + 90000, 0).astype(np.float32), volume.affine)
    prepared = preprocess(bright, COARSE)
    empty = preprocess(volume, COARSE).data == 0
    assert empty.mean() > 0.2
    assert not prepared.data[empty].any()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_lie_across_the_plane(plane: str, make_volume: Callable[..., Volume]) -> None:
    settings = config_from_dict(PreprocessConfig, {**config_to_dict(COARSE), "plane": plane})
    prepared = preprocess(reorient(make_volume(), "LIA"), settings)
    across = {"axial": "S", "coronal": "A", "sagittal": "R"}[plane]
    assert orientation(Volume(prepared.data, prepared.affine))[0] == across


def test_a_mask_decides_what_is_brain(make_volume: Callable[..., Volume]) -> None:
    volume = make_volume()
    head = Volume(volume.data + 50, volume.affine)
    brain = volume.data[0] > 0
    masked = preprocess(head, COARSE, brain)
    np.testing.assert_allclose(masked.data, preprocess(volume, COARSE).data, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: np.where(data > 480, np.nan, data), "NaN"),
        (lambda data: np.where(data > 480, np.inf, data), "infinite"),
        (lambda data: np.zeros_like(data), "constant"),
        (lambda data: np.full_like(data, 7), "constant"),
        (lambda data: np.where(data > 0, 9, 0), "constant"),
    ],
)
def test_unusable_voxels_are_named(
    spoil: Callable[[np.ndarray], np.ndarray], words: str, make_volume: Callable[..., Volume]
) -> None:
    volume = make_volume()
    with pytest.raises(VolumeError, match=words):
        preprocess(Volume(spoil(volume.data).astype(np.float32), volume.affine), COARSE)


@pytest.mark.parametrize("outside", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("offset", [0.0, -450.0, 90000.0])
def test_a_background_without_numbers_is_background(
    outside: float, offset: float, make_volume: Callable[..., Volume]
) -> None:
    """SPM and masked maps hold NaN there; the voxels inside decide what the network sees, whatever their sign."""
    volume = make_volume()
    brain = volume.data > 0
    masked = Volume(np.where(brain, volume.data + np.float32(offset), np.float32(outside)), volume.affine)
    expected = preprocess(Volume(np.where(brain, volume.data + 1000, 0), volume.affine), COARSE)
    found = preprocess(masked, COARSE)
    np.testing.assert_allclose(found.data, expected.data, atol=1e-3)
    assert found.brain_ml == expected.brain_ml


def test_a_border_without_numbers_joins_the_background_inside_it(make_volume: Callable[..., Volume]) -> None:
    """A stripped volume that was resliced into a larger field of view: NaN around, 0 within, brain."""
    volume = make_volume()
    resliced = Volume(volume.data.copy(), volume.affine)
    resliced.data[:, :2] = resliced.data[:, :, -2:] = np.nan
    resliced.data[:, 0, 0] = np.inf
    resliced.data[:, 0, 1] = -np.inf
    np.testing.assert_array_equal(preprocess(resliced, COARSE).data, preprocess(volume, COARSE).data)


def test_the_settings_hash_is_stable_and_sees_every_setting() -> None:
    assert PreprocessConfig().hash == "4b4241f999061800"  # models of earlier versions rely on it
    changes: list[dict[str, object]] = [
        {"spacing": (2.0, 2.0, 1.0)}, {"percentiles": (1.0, 99.0)}, {"plane": "coronal"}, {"crop": "brain"},
        {"contrasts": ("t1ce", "flair")}, {"contrasts": ("flair", "t1ce")},
    ]  # fmt: skip
    hashes = {replace(PreprocessConfig(), **change).hash for change in changes}  # type: ignore[arg-type]
    assert len(hashes | {PreprocessConfig().hash}) == len(changes) + 1
    assert PreprocessConfig.preset("paper") == PreprocessConfig()
    assert PreprocessConfig.preset("default", plane="coronal") == PreprocessConfig(
        crop="brain", plane="coronal"
    )
    assert PreprocessConfig.preset("default", crop="none") == PreprocessConfig()
    assert config_from_dict(PreprocessConfig, config_to_dict(COARSE)) == COARSE


@pytest.mark.parametrize(
    "values",
    [
        {"spacing": (0.0, 2.0, 2.0)},
        {"spacing": (2.0, 2.0)},
        {"percentiles": (99.5, 0.5)},
        {"plane": "oblique"},
        {"crop": "head"},
        {"contrasts": ()},
        {"contrasts": ("t1", "t1")},
        {"colour": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        config_from_dict(PreprocessConfig, values)


def test_equal_voxels_have_equal_hashes(make_volume: Callable[..., Volume]) -> None:
    prepared = preprocess(make_volume(), COARSE).data
    assert voxel_hash(prepared) == voxel_hash(np.asfortranarray(prepared))
    assert voxel_hash(prepared) != voxel_hash(prepared.transpose(0, 1, 3, 2))
    assert voxel_hash(prepared) != voxel_hash(np.nextafter(prepared, 2))


def test_a_label_map_is_no_volume() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, (1, 20, 22, 24)).astype(np.int16)
    with pytest.raises(VolumeError, match="found only the values 1, 2, 3, 4 besides 0: a mask"):
        check_intensities(labels)
    check_intensities(random.integers(0, 16, (1, 20, 22, 24)))
    check_intensities(100 * labels)
    check_intensities(random.random((2, 8, 9, 10), np.float32))
