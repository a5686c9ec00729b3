"""A scan is known again however it is stored, and no other scan is taken for it."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from ssclf.config import PreprocessConfig
from ssclf.domain.equal_volumes import Known, equal_pairs, join_subjects
from ssclf.domain.likeness import (
    BITS,
    TOLERANCE,
    VERSION,
    SeenVolumes,
    describe_likeness,
    first_alike,
    read_bits,
)
from ssclf.domain.model_spec import ModelSpec
from ssclf.domain.preprocessing import preprocess
from ssclf.domain.provenance import Provenance
from ssclf.domain.synthetic import make_synthetic_volume
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError
from ssclf.io.discovery.scans import Scan
from ssclf.io.preparation import prepare_scan
from ssclf.io.volumes.read import read_volume

LABELS = ("HGG", "LGG", "healthy")
CONFIG = PreprocessConfig(spacing=(4.0, 4.0, 4.0))


def likeness(path: Path, config: PreprocessConfig = CONFIG) -> str:
    prepared = prepare_scan(Scan("", (path,)), config, skull_strip="none").volume
    return describe_likeness(prepared.data, prepared.affine)


def apart(one: str, two: str) -> int:
    """How many bits differ."""
    bits = read_bits([one, two])
    return int((bits[0] != bits[1]).sum())


def store(volume: Volume, path: Path, chance: random.Random) -> Path:
    """One of very many ways to store a volume: type, scale, axes, form and compression are drawn."""
    data = volume.data[0].T.astype(np.float64) * chance.choice((1.0, 0.01, 7.5))
    affine = volume.affine[:, [2, 1, 0, 3]]
    axes = np.array([[axis, chance.choice((-1, 1))] for axis in chance.sample(range(3), 3)])
    affine = affine @ inv_ornt_aff(axes, data.shape)
    data = apply_orientation(data, axes)
    dtype, largest = chance.choice((("u1", 255), ("i2", 4000), ("u2", 60000), ("f4", 0), ("f8", 0)))
    if largest:
        data = np.round(data * (largest / data.max()))
    image = nib.Nifti1Image(data.astype(dtype), None)
    form = chance.choice(("sform", "qform", "both"))
    image.set_sform(affine, int(form != "qform"))
    image.set_qform(affine, int(form != "sform"))
    stored = path.with_suffix(chance.choice((".nii", ".nii.gz")))
    nib.save(image, stored)
    return stored


@pytest.fixture(scope="module")
def brains() -> list[Volume]:
    """SYNTHETIC."""
    rng = np.random.default_rng(3)
    return [make_synthetic_volume(LABELS[k % 3], rng, spacing=(3.0, 2.5, 3.5)) for k in range(6)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def likenesses(brains: list[Volume]) -> list[str]:
    made = [preprocess(brain, CONFIG) for brain in brains]
    return [describe_likeness(each.data, each.affine) for each in made]


@pytest.mark.parametrize("seed", range(24))
def test_a_scan_is_known_in_every_storage_and_no_other_is(
    brains: list[Volume], likenesses: list[str], tmp_path: Path, seed: int
) -> None:
    """A training scan that was stored with another data type passed as unseen."""
    number = seed % len(brains)
    again = likeness(store(brains[number], tmp_path / "again", random.Random(seed)))
    assert apart(again, likenesses[number]) <= TOLERANCE
    assert SeenVolumes.of([likenesses[number]]).hold("", lambda: again)
    others = [text for k, text in enumerate(likenesses) if k != number]
    assert min(apart(again, other) for other in others) > 3 * TOLERANCE
    assert not SeenVolumes.of(others).hold("", lambda: again)


def test_scans_of_different_persons_are_far_apart(shared_data: Path) -> None:
    config = PreprocessConfig()
    found = {}
    for path in [
        *sorted(shared_data.glob("head/ixi/*_T1.nii.gz")),
        *sorted(shared_data.glob("anatomy/*_T1.nii.gz"))[:14],
    ]:
        brain = read_volume(path.with_name(path.name.replace("_T1.", "_T1_DLMUSE."))).data[0] > 0
        made = preprocess(read_volume(path), config, brain)
        found[path.name] = describe_likeness(made.data, made.affine)
    for path in sorted(shared_data.glob("brats18/*/*/*_t1ce.nii.gz")):
        found[path.name] = likeness(path, config)
    assert len(found) == 28
    assert min(apart(one, two) for one, two in itertools.combinations(found.values(), 2)) > 5 * TOLERANCE
    assert first_alike(list(found.values())) == [None] * len(found)


def test_real_scans_are_known_in_every_storage(shared_data: Path, tmp_path: Path) -> None:
    config = PreprocessConfig()
    for seed, path in enumerate(sorted(shared_data.glob("brats18/*/*/*_t1ce.nii.gz"))):
        volume = read_volume(path)
        again = likeness(store(volume, tmp_path / f"again{seed}", random.Random(seed)), config)
        assert apart(again, likeness(path, config)) <= TOLERANCE


def test_equal_scans_are_found_among_many(likenesses: list[str]) -> None:
    texts = [*likenesses, "", "2-ab", likenesses[4], likenesses[1], ""]
    assert first_alike(texts) == [None] * 8 + [4, 1, None]
    flipped = f"{int(likenesses[2][2:], 16) ^ (2**TOLERANCE - 1):0{BITS // 4}x}"
    assert first_alike([likenesses[2], VERSION + flipped]) == [None, 0]
    further = f"{int(likenesses[2][2:], 16) ^ (2 ** (TOLERANCE + 1) - 1):0{BITS // 4}x}"
    assert first_alike([likenesses[2], VERSION + further]) == [None, None]


def test_subjects_that_share_scans_are_one_through_any_chain(likenesses: list[str]) -> None:
    a, b, c = likenesses[:3]
    volumes = [
        Known("1", "zoe", "HGG", "", a),
        Known("2", "ann", "HGG", "", b),
        Known("3", "bob", "HGG", "", a),
        Known("4", "bob", "HGG", "x", c),
        Known("5", "ann", "HGG", "x", likenesses[3]),
    ]
    assert [(one.place, two.place) for one, two in equal_pairs(volumes)] == [("1", "3"), ("4", "5")]
    assert join_subjects(equal_pairs(volumes)) == {"zoe": "ann", "bob": "ann"}


def test_bundles_of_other_versions_are_read(
    likenesses: list[str], make_volume: Callable[..., Volume]
) -> None:
    old = Provenance.from_dict({"voxels": ["ab"]}).seen
    assert (
        old.hold("ab", lambda: "")
        and not old.hold("", lambda: likenesses[0])
        and not old.hold("", lambda: "")
    )
    later = Provenance.from_dict({"voxels": ["ab"], "likenesses": ["2-cd", likenesses[0]]}).seen
    assert later.hold("", lambda: likenesses[0]) and not later.hold("", lambda: "2-cd")
    spec = ModelSpec(name="m", architecture="mc3", class_names=("a", "b"), preprocess=CONFIG)
    with pytest.raises(ConfigError, match="training"):
        dataclasses.replace(spec, training={"likenesses": [VERSION + "zz"]})
    empty = make_volume().data * 0
    assert describe_likeness(empty, np.eye(4)) == ""
