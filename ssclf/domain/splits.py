"""Which volumes train and which test: by subject, stratified by class, and checked for leakage.

Splits are drawn over subjects, and every volume follows its subject. A subject with volumes of several classes
counts as its most frequent one. Both kinds of split then are plain stratified draws over subjects, so that
stratification and grouping cannot work against each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf.errors import ConfigError, DatasetError, LeakageError

FORMAT = 1


@dataclass(frozen=True)
class Split:
    """Keys of the volumes (manifest paths) in each role; every key in one role at most.

    Attributes:
        train: fits the weights.
        validation: chooses the epoch; may be empty.
        test: is scored once, at the end; may be empty.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def holdout_splits(
    subjects: Mapping[str, str],
    labels: Mapping[str, str],
    *,
    share: float = 0.3,
    count: int = 3,
    seed: int = 0,
) -> list[Split]:
    """Independent random divisions into train and test, as in the paper.

    Source: Chatterjee et al., Sec. 2.4 (three random divisions, 7:3; their test parts overlap).

    Args:
        subjects: volume key → subject.
        labels: volume key → class name.
        share: of each class's subjects that goes to the test part; 0 leaves it empty.

    Raises:
        DatasetError: a class has too few subjects to be on both sides.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"test share: expected 0 to below 1, found {share}.")
    if share == 0:
        return [Split(tuple(subjects))] * count
    names, classes = _subject_classes(subjects, labels)
    _check_enough(classes, 2, "a train and a test part")
    splits = []
    for repeat in range(count):
        random = np.random.default_rng([seed, repeat])
        drawn = []
        for label in sorted(set(classes)):
            members = names[np.array(classes) == label]
            # at least one on either side, which scikit-learn's StratifiedShuffleSplit does not promise
            size = min(max(round(share * len(members)), 1), len(members) - 1)
            drawn.append(random.permutation(members)[:size])
        splits.append(_by_subject(subjects, np.concatenate(drawn)))
    return splits


def disjoint_folds(
    subjects: Mapping[str, str], labels: Mapping[str, str], *, count: int = 3, seed: int = 0
) -> list[Split]:
    """K folds; every volume is in exactly one test part.

    Raises:
        DatasetError: a class has fewer subjects than there are folds.
    """
    if count < 2:
        raise ConfigError(f"folds: expected at least 2, found {count}.")
    names, classes = _subject_classes(subjects, labels)
    _check_enough(classes, count, f"{count} folds")

    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(n_splits=count, shuffle=True, random_state=seed)
    return [_by_subject(subjects, names[test]) for _, test in folds.split(names, classes)]


def cut_validation(
    split: Split, subjects: Mapping[str, str], labels: Mapping[str, str], *, share: float, seed: int = 0
) -> Split:
    """Move a share of the training subjects into the validation part; the test part stays.

    Raises:
        DatasetError: a class has too few training subjects.
    """
    inner = {key: subjects[key] for key in split.train}
    (cut,) = holdout_splits(inner, labels, share=share, count=1, seed=seed)
    return Split(cut.train, cut.test, split.test)


def check_leakage(split: Split, groups: Mapping[str, Hashable], what: str = "subject") -> None:
    """Every group on one side only.

    Args:
        groups: volume key → subject, or anything else that two sides must not share, as a hash of the voxels.
        what: says in the message what a group is.

    Raises:
        LeakageError: a group, or a volume, has two roles.
    """
    role_of: dict[Hashable, tuple[str, str]] = {}
    for role, part in split.roles.items():
        for key in part:
            group = groups[key]
            other_role, other = role_of.setdefault(group, (role, key))
            if other_role != role:
                raise LeakageError(
                    f"{key} ({role}) and {other} ({other_role}) have the same {what}, so the score of one part "
                    "would be flattered by the other; give them one subject in the manifest and split again."
                )
    keys = [key for part in split.roles.values() for key in part]
    if len(set(keys)) != len(keys):
        raise LeakageError(f"{Counter(keys).most_common(1)[0][0]}: this volume has two roles in the split.")


def splits_to_dict(splits: Sequence[Split]) -> dict[str, Any]:
    """Plain JSON values."""
    return {"format": FORMAT, "splits": [{k: list(v) for k, v in split.roles.items()} for split in splits]}


def splits_from_dict(values: Mapping[str, Any], source: str, keys: Sequence[str]) -> list[Split]:
    """The inverse of `splits_to_dict`.

    Args:
        source: file name for messages.
        keys: volumes that there are; the file may name no other.

    Raises:
        DatasetError: not a split file, or it belongs to another data set.
    """
    try:
        if values["format"] != FORMAT:
            raise DatasetError(
                f"{source}: expected splits of format {FORMAT}, found {values['format']}; split again."
            )
        splits = [
            Split(tuple(part["train"]), tuple(part["validation"]), tuple(part["test"]))
            for part in values["splits"]
        ]
    except (KeyError, TypeError, ValueError) as exc:
        raise DatasetError(f"{source}: expected splits as ssclf writes them, found {exc!r}.") from exc
    known = set(keys)
    unknown = sorted({key for split in splits for part in split.roles.values() for key in part} - known)
    if unknown:
        raise DatasetError(
            f"{source}: names {len(unknown)} volumes that are not in the data, for instance {unknown[0]}; "
            "the data changed since the split was made. Bring them back or start a new run."
        )
    return splits


def _subject_classes(
    subjects: Mapping[str, str], labels: Mapping[str, str]
) -> tuple[NDArray[np.str_], list[str]]:
    """Subjects in sorted order, each with its most frequent class (ties: the first by name)."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for key, subject in subjects.items():
        found[subject][labels[key]] += 1
    names = sorted(found)
    classes = [min(found[name], key=lambda label: (-found[name][label], label)) for name in names]
    return np.array(names), classes


def _check_enough(classes: Sequence[str], least: int, purpose: str) -> None:
    for label, count in sorted(Counter(classes).items()):
        if count < least:
            raise DatasetError(
                f"class {label}: expected at least {least} subjects for {purpose}, found {count}; "
                "add subjects, or ask for fewer parts."
            )


def _by_subject(subjects: Mapping[str, str], test_subjects: NDArray[np.str_]) -> Split:
    held_out = {str(name) for name in test_subjects}
    return Split(
        train=tuple(key for key, subject in subjects.items() if subject not in held_out),
        test=tuple(key for key, subject in subjects.items() if subject in held_out),
    )
