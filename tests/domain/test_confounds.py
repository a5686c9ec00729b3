from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ssclf.config import PreprocessConfig
from ssclf.domain.confounds import (
    Features,
    audit,
    cannot_be_significant,
    coinciding,
    histogram_features,
    shape_features,
    table_features,
    warnings,
)
from ssclf.domain.preprocessing import preprocess
from ssclf.domain.splits import disjoint_folds, holdout_splits
from ssclf.domain.synthetic import make_synthetic_volume
from ssclf.domain.volume import Volume

CLASSES = ("HGG", "LGG", "healthy")
PER_CLASS = 16
SPACING = (14.0, 13.0, 12.0)
TARGETS = np.repeat(np.arange(3), PER_CLASS)
SUBJECTS = [f"s{k}" for k in range(len(TARGETS))]
Change = Callable[[Volume, int], Volume]


def folds(scheme_seed: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    subjects = {name: name for name in SUBJECTS}
    labels = dict(zip(SUBJECTS, (CLASSES[t] for t in TARGETS), strict=True))
    position = {name: k for k, name in enumerate(SUBJECTS)}
    return [
        tuple(np.array([position[key] for key in part]) for part in (split.train, split.test))  # type: ignore[misc]
        for split in holdout_splits(subjects, labels, seed=scheme_seed)
    ]


@pytest.fixture(scope="module")
def volumes() -> list[Volume]:
    rng = np.random.default_rng(5)
    return [make_synthetic_volume(CLASSES[t], rng, spacing=(7, 6.5, 6)) for t in TARGETS]  # type: ignore[arg-type]


def features(volumes: list[Volume], kind: str, change: Change = lambda volume, target: volume) -> Features:
    config = PreprocessConfig(spacing=SPACING)
    rows = []
    for volume, target in zip(volumes, TARGETS, strict=True):
        data = preprocess(change(volume, int(target)), config).data
        rows.append(shape_features(data, SPACING) if kind == "shape" else histogram_features(data))
    return np.array(rows)


def find(values: Features, name: str = "it") -> bool:
    return audit(name, values, TARGETS, SUBJECTS, folds(), CLASSES, permutations=99).verdict == "found"


@pytest.mark.parametrize("kind", ["shape", "histogram"])
@pytest.mark.needs("sklearn")
def test_quiet_where_the_generator_plants_nothing(volumes: list[Volume], kind: str) -> None:
    assert not find(features(volumes, kind))


@pytest.mark.needs("sklearn")
def test_quiet_on_noise() -> None:
    """With 19 shuffles, one run in 20 is to give a false alarm."""
    random = np.random.default_rng(0)
    noise = [random.normal(size=(48, 6)) for _ in range(8)]
    found = [
        audit("noise", values, TARGETS, SUBJECTS, folds(k), CLASSES, permutations=19)
        for k, values in enumerate(noise)
    ]
    assert sum(finding.verdict != "nothing" for finding in found) <= 2


@pytest.mark.needs("sklearn")
def test_another_intensity_scale_is_found(volumes: list[Volume]) -> None:
    def brighten(volume: Volume, target: int) -> Volume:
        data = volume.data / volume.data.max()
        return Volume(data**0.6 if target == 1 else data, volume.affine)

    values = features(volumes, "histogram", brighten)
    finding = audit("intensity histogram", values, TARGETS, SUBJECTS, folds(), CLASSES)
    assert finding.verdict == "found"
    assert finding.best == "LGG"
    assert not find(features(volumes, "shape", brighten))


@pytest.mark.needs("sklearn")
def test_another_field_of_view_is_found(volumes: list[Volume]) -> None:
    def cut(volume: Volume, target: int) -> Volume:
        return Volume(volume.data[:, 4:], volume.affine) if target == 2 else volume

    assert find(features(volumes, "shape", cut))


@pytest.mark.needs("sklearn")
def test_header_fields_are_read_as_numbers_or_as_names() -> None:
    rows = [
        {"spacing": f"{1 + 0.1 * (t == 0):g} x 1 x 1", "orientation": "RAS" if t else "LPS", "empty": ""}
        for t in TARGETS
    ]
    values = table_features(rows)
    assert values.shape == (48, 3 + 1 + 2 + 1)
    finding = audit("header fields", values, TARGETS, SUBJECTS, folds(), CLASSES)
    assert finding.verdict == "found" and finding.per_class["HGG"] == 1
    (text,) = warnings([finding], {name: {"one": PER_CLASS} for name in CLASSES})
    assert text.startswith("header fields alone tells HGG from the rest")


@pytest.mark.needs("sklearn")
def test_a_stored_scale_is_found_though_numbers_range_widely() -> None:
    """Brains of 300 to 3000 in two classes, ten times that in the third; some below zero."""
    random = np.random.default_rng(2)
    scales = np.exp(random.uniform(np.log(300), np.log(3000), len(TARGETS))) * np.where(TARGETS == 1, 10, 1)
    rows = [{"intensity": f"{0.3 * scale:.4g} x {scale:.4g} x {1.4 * scale:.4g}"} for scale in scales]
    rows[0]["intensity"] = "-120 x 400 x 900"
    finding = audit("stored intensities", table_features(rows), TARGETS, SUBJECTS, folds(), CLASSES)
    assert finding.verdict == "found" and finding.best == "LGG"


@pytest.mark.needs("sklearn")
def test_a_table_that_says_the_same_of_all_tells_nothing() -> None:
    finding = audit("source", table_features([{"source": "a"}] * 48), TARGETS, SUBJECTS, folds(), CLASSES)
    assert finding.verdict == "nothing" and finding.score == 0.5


@pytest.mark.needs("sklearn")
def test_volumes_of_a_subject_are_shuffled_together() -> None:
    """24 subjects with two equal volumes each: shuffled one by one, the labels would look too hard to guess."""
    random = np.random.default_rng(3)
    subjects = [f"s{k // 2}" for k in range(48)]
    values = np.repeat(random.normal(size=(24, 4)), 2, axis=0)
    split = [(np.arange(48)[k::2], np.arange(48)[1 - k :: 2]) for k in range(2)]  # twins on both sides
    assert audit("it", values, TARGETS, subjects, split, CLASSES).verdict == "nothing"
    assert audit("it", values, TARGETS, [f"s{k}" for k in range(48)], split, CLASSES).verdict != "nothing"


def test_classes_that_coincide_with_their_source_are_named() -> None:
    paper = {"HGG": {"BraTS": 259}, "LGG": {"BraTS": 73}, "healthy": {"IXI-Guys": 200, "IXI-HH": 59}}
    assert coinciding(paper) == ("healthy",)
    assert coinciding({"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 1}}) == ()
    assert coinciding({"a": {"x": 5}, "b": {"x": 5}}) == ()
    assert coinciding({"a": {"x": 5}, "b": {"y": 5}}) == ("a", "b")
    assert "healthy comes from IXI-Guys, IXI-HH only" in warnings([], paper)[0]


@pytest.mark.parametrize("per_class", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("scheme", ["kfold", "paper"])
@pytest.mark.needs("sklearn")
def test_too_few_to_tell_is_said_and_nothing_found_is_not(per_class: int, scheme: str) -> None:
    """A feature that told every class completely got "nothing found" up to 6 subjects a class: shuffles do as well."""
    names = [f"s{k}" for k in range(3 * per_class)]
    targets = np.repeat(np.arange(3), per_class)
    subjects = {name: name for name in names}
    labels = {name: CLASSES[t] for name, t in zip(names, targets, strict=True)}
    splits = (
        disjoint_folds(subjects, labels, count=2) if scheme == "kfold" else holdout_splits(subjects, labels)
    )
    parts = [
        (np.array([names.index(key) for key in s.train]), np.array([names.index(key) for key in s.test]))
        for s in splits
    ]
    values = targets[:, None] * 10 + np.random.default_rng(0).normal(0, 0.01, (len(names), 1))
    finding = audit("it", values, targets, names, parts, CLASSES)
    if per_class <= 4:
        assert cannot_be_significant([per_class] * 3) and finding.verdict == "too few"
    assert finding.verdict != "nothing" or not finding.complete
    if finding.verdict == "too few":
        (text,) = warnings([finding], {name: {"one": per_class} for name in CLASSES})
        assert text.startswith("too few subjects a class")
        assert ("tells" in text.partition(":")[2]) == finding.complete


def test_the_least_number_of_subjects_by_hand() -> None:
    """Two classes of 5 are drawn in 252 ways, in two of which they are told: p 2/252, above the 1/200 asked for."""
    assert cannot_be_significant([5, 5]) and not cannot_be_significant([6, 6])  # 2/924
    assert cannot_be_significant([4, 4, 4]) and not cannot_be_significant([5, 5, 5])  # 3/495, 3/3003
    assert cannot_be_significant([1, 198]) and not cannot_be_significant([1, 199])  # 1/199, 1/200
    assert cannot_be_significant([7]) and cannot_be_significant([0, 7]), (
        "one class alone is told from nothing"
    )
