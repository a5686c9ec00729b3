from __future__ import annotations

import json
from collections import Counter

import pytest

from ssclf.domain.splits import (
    Split,
    check_leakage,
    cut_validation,
    disjoint_folds,
    holdout_splits,
    splits_from_dict,
    splits_to_dict,
)
from ssclf.errors import ConfigError, DatasetError, LeakageError


def cohort(**sizes: int) -> tuple[dict[str, str], dict[str, str]]:
    """One to three volumes a subject."""
    subjects, labels = {}, {}
    for label, count in sizes.items():
        for number in range(count):
            for scan in range(1 + number % 3):
                key = f"{label}{number}/{scan}.nii.gz"
                subjects[key], labels[key] = f"{label}{number}", label
    return subjects, labels


def class_counts(keys: tuple[str, ...], subjects: dict[str, str], labels: dict[str, str]) -> Counter[str]:
    return Counter(dict(Counter(labels[key] for key in {subjects[k]: k for k in keys}.values())))


def test_the_papers_divisions_keep_classes_in_proportion_and_subjects_together() -> None:
    subjects, labels = cohort(LGG=73, HGG=259, healthy=259)
    splits = holdout_splits(subjects, labels, share=0.3, count=3, seed=1)
    assert len({split.test for split in splits}) == 3
    for split in splits:
        check_leakage(split, subjects)
        assert sorted(split.train + split.test) == sorted(subjects)
        assert class_counts(split.test, subjects, labels) == {"LGG": 22, "HGG": 78, "healthy": 78}
    assert splits == holdout_splits(subjects, labels, share=0.3, count=3, seed=1)
    assert splits != holdout_splits(subjects, labels, share=0.3, count=3, seed=2)


def test_a_small_class_is_on_both_sides() -> None:
    subjects, labels = cohort(LGG=2, HGG=40)
    for split in holdout_splits(subjects, labels, share=0.1, count=5):
        assert class_counts(split.test, subjects, labels)["LGG"] == 1
        assert class_counts(split.train, subjects, labels)["LGG"] == 1


@pytest.mark.needs("sklearn")
def test_folds_are_disjoint_and_cover_everything_once() -> None:
    subjects, labels = cohort(LGG=10, HGG=31, healthy=29)
    folds = disjoint_folds(subjects, labels, count=5, seed=4)
    tested = [key for fold in folds for key in fold.test]
    assert sorted(tested) == sorted(subjects)
    for fold in folds:
        check_leakage(fold, subjects)
        assert sorted(fold.train + fold.test) == sorted(subjects)
        counts = class_counts(fold.test, subjects, labels)
        assert counts["LGG"] == 2
        assert 5 <= counts["healthy"] <= 7


def test_the_validation_part_comes_from_the_training_part() -> None:
    subjects, labels = cohort(a=10, b=20)
    (split,) = holdout_splits(subjects, labels, share=0.3, count=1)
    cut = cut_validation(split, subjects, labels, share=0.25, seed=3)
    assert cut.test == split.test
    assert sorted(cut.train + cut.validation) == sorted(split.train)
    assert set(class_counts(cut.validation, subjects, labels)) == {"a", "b"}
    check_leakage(cut, subjects)


@pytest.mark.needs("sklearn")
def test_a_subject_with_two_classes_stays_whole() -> None:
    # a low-grade glioma that became a high-grade one
    subjects, labels = cohort(LGG=6, HGG=6)
    subjects["later"], labels["later"] = "LGG2", "HGG"
    for split in [*holdout_splits(subjects, labels, count=4), *disjoint_folds(subjects, labels, count=3)]:
        check_leakage(split, subjects)
        assert sorted(split.train + split.test) == sorted(subjects)


def test_leakage_is_found_between_any_two_parts() -> None:
    subjects = {"a": "s1", "b": "s2", "c": "s3", "d": "s1"}
    check_leakage(Split(("a", "d"), ("b",), ("c",)), subjects)
    for split in (
        Split(("a", "b"), (), ("c", "d")),
        Split(("a",), ("d",), ("b", "c")),
        Split(("b", "c"), ("a",), ("d",)),
    ):
        with pytest.raises(LeakageError, match="same subject"):
            check_leakage(split, subjects)
    with pytest.raises(LeakageError, match="same voxels"):
        check_leakage(Split(("a",), (), ("b",)), {"a": "hash", "b": "hash"}, "voxels")


def test_splits_survive_a_file_and_refuse_another_data_set() -> None:
    subjects, labels = cohort(a=5, b=7)
    splits = holdout_splits(subjects, labels)
    values = json.loads(json.dumps(splits_to_dict(splits)))
    assert splits_from_dict(values, "split.json", list(subjects)) == splits
    with pytest.raises(DatasetError, match=r"split\.json: names 1 volumes"):
        splits_from_dict(values, "split.json", list(subjects)[1:])
    for broken in ({}, {"format": 1}, {"format": 2, "splits": []}, {"format": 1, "splits": [["a"]]}):
        with pytest.raises(DatasetError, match=r"split\.json: expected splits"):
            splits_from_dict(broken, "split.json", list(subjects))


def test_too_few_subjects_are_named() -> None:
    subjects, labels = cohort(rare=1, common=9)
    with pytest.raises(DatasetError, match="class rare: expected at least 2"):
        holdout_splits(subjects, labels)
    with pytest.raises(DatasetError, match="class rare: expected at least 3"):
        disjoint_folds(subjects, labels, count=3)
    with pytest.raises(ConfigError, match="share"):
        holdout_splits(subjects, labels, share=1.0)
    assert holdout_splits(subjects, labels, share=0, count=1) == [Split(tuple(subjects))]
