"""How well the class can be told from what should not matter: a network that scores no better may see no more.

Plain features (brain mask shape, intensity histogram, stored intensities, header fields, source) go into two plain
classifiers on the same folds as the networks: a support vector machine, for many faint hints, and a tree of depth
three, for a single plain one. The better of them counts, and is judged against the better of them with labels
shuffled over subjects.
With few subjects shuffled labels often equal the true ones, or are told by chance in every test part, so nothing can
beat them: then the audit says so, and not that it found nothing.
scikit-learn is imported where it is used, since prediction does without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]
Indices = NDArray[np.intp]

#: A predictor counts when it beats all of so many shuffles: chance does that once in 200 times.
PERMUTATIONS = 199
#: A hint below this, half-way from chance to certainty, is shown and not warned of: with many volumes even a
#: difference in age between classes beats every shuffle, and lesions do change a histogram.
PLAIN = 0.75
#: A class of more subjects is not told completely in every test part by chance.
MANY = 20
_ROUNDING = 1e-9
_BINS = 16
_PROFILE = 6


@dataclass(frozen=True)
class Finding:
    """What one kind of features tells about the class.

    Attributes:
        per_class: class → how well it is told from the rest: mean of recall and specificity, then over folds;
            chance is 0.5.
        threshold: the highest such value, of any class, with shuffled labels.
        too_few: whether even features that tell the classes completely would not have beaten shuffled labels.
    """

    name: str
    per_class: Mapping[str, float]
    threshold: float
    too_few: bool = False

    @property
    def best(self) -> str:
        """The class that is told best."""
        return max(self.per_class, key=lambda name: self.per_class[name])

    @property
    def score(self) -> float:
        return self.per_class[self.best]

    @property
    def complete(self) -> bool:
        """Whether a class is told without a mistake in every test part."""
        return self.score >= 1 - _ROUNDING

    @property
    def verdict(self) -> Literal["found", "faint", "nothing", "too few"]:
        if self.too_few:
            return "too few"
        if self.score <= self.threshold:
            return "nothing"
        return "found" if self.score >= PLAIN else "faint"


def shape_features(volume: NDArray[np.float32], spacing: Sequence[float]) -> Features:
    """What a brain mask looks like and where it lies in the array, in mm: no intensity in it.

    Args:
        volume: (C, D, H, W) network input, background 0.
        spacing: (D, H, W) in mm.

    Returns:
        (36,) volume, surface, extents, axes, place in the field of view, and areas of cuts along each axis.
    """
    mask = volume.any(axis=0)
    steps = np.asarray(spacing, float)
    fov = np.array(mask.shape) * steps
    where = np.argwhere(mask) * steps
    if len(where) < 2:
        return np.zeros(18 + 3 * _PROFILE)
    low, high = where.min(axis=0), where.max(axis=0) + steps
    centre = where.mean(axis=0)
    axes = np.sqrt(np.linalg.eigvalsh(np.cov(where.T) + 1e-6 * np.eye(3)))
    millilitres = len(where) * steps.prod() / 1000
    faces = [np.count_nonzero(np.diff(mask, axis=a)) * steps.prod() / steps[a] for a in range(3)]
    cuts = []
    for axis in range(3):
        area = mask.sum(axis=tuple(a for a in range(3) if a != axis)).astype(float)
        inside = area[np.flatnonzero(area)[0] : np.flatnonzero(area)[-1] + 1]
        spots = np.linspace(0, len(inside) - 1, _PROFILE)
        cuts.append(np.interp(spots, np.arange(len(inside)), inside) / inside.max())
    return np.concatenate(
        [
            [np.cbrt(millilitres), sum(faces) / (1000 * millilitres) ** (2 / 3)],
            [1000 * millilitres / (high - low).prod()],
            high - low,
            axes,
            (centre - low) / (high - low),
            low,
            fov - high,
            *cuts,
        ]
    )


def histogram_features(volume: NDArray[np.float32]) -> Features:
    """Intensities inside the brain, wherever they are.

    Args:
        volume: (C, D, H, W) network input in [0, 1], background 0.

    Returns:
        (C * 18,) per channel the shares of 16 bins, as square roots, then mean and deviation.
    """
    rows = []
    for channel in volume:
        inside = channel[channel > 0].astype(float)
        counts = np.histogram(inside, _BINS, (0, 1))[0] / max(inside.size, 1)
        moments = [inside.mean(), inside.std()] if inside.size else [0.0, 0.0]
        rows.append(np.concatenate([np.sqrt(counts), moments]))
    return np.concatenate(rows)


def table_features(rows: Sequence[Mapping[str, str]]) -> Features:
    """Cells of a table as numbers: `2 x 2 x 2.5` becomes three, any other text one column for each value.

    Args:
        rows: the same columns each; the features are what differs between rows.

    Returns:
        (N, F).
    """
    columns: list[Features] = []
    for name in rows[0]:
        cells = [row[name] for row in rows]
        numbers = [_numbers(cell) for cell in cells]
        lengths = {len(n) for n in numbers if n}
        if len(lengths) == 1 and all(n or not cell for n, cell in zip(numbers, cells, strict=True)):
            (length,) = lengths
            known = np.array([n or [np.nan] * length for n in numbers])
            columns.append(_compressed(np.where(np.isnan(known), np.nanmedian(known, axis=0), known)))
            columns.append(np.isnan(known[:, :1]).astype(float))
        else:
            values = sorted(set(cells))
            columns.append(np.array([[cell == value for value in values] for cell in cells], float))
    return np.concatenate(columns, axis=1) if columns else np.zeros((len(rows), 0))


def audit(
    name: str,
    features: Features,
    targets: NDArray[np.integer[Any]],
    subjects: Sequence[str],
    folds: Sequence[tuple[Indices, Indices]],
    class_names: Sequence[str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    complete_fails: bool | None = None,
) -> Finding:
    """Tell the class from features, on the networks' folds.

    Args:
        name: of the features, for the report.
        features: (N, F).
        targets: (N,) class indices.
        subjects: N names; labels are shuffled over them, and volumes follow.
        folds: indices of training and test volumes.
        complete_fails: what `complete_separation_fails` says of the same subjects and folds; None: it is asked.
    """
    own, index = _subject_targets(targets, subjects)
    too_few = cannot_be_significant(np.bincount(own).tolist(), permutations)
    if complete_fails is None and not too_few:
        complete_fails = complete_separation_fails(
            targets, subjects, folds, len(class_names), permutations=permutations, seed=seed
        )
    if features.shape[1] == 0 or not features.std(axis=0).any():
        few = too_few or bool(complete_fails)
        return Finding(name, dict.fromkeys(class_names, 0.5), 0.5, few)
    parts = [_part(features, train, test) for train, test in folds]
    told = _balanced_accuracies(parts, targets, len(class_names))
    threshold = _best_of_shuffles(parts, own, index, len(class_names), permutations, seed)
    # shuffles that are told completely leave nothing to beat, unless a subject on both sides was known again
    unbeatable = threshold >= 1 - _ROUNDING and not any(
        set(index[train]) & set(index[test]) for train, test in folds
    )
    few = too_few or bool((complete_fails or unbeatable) and told.max() <= threshold)
    return Finding(name, dict(zip(class_names, told.tolist(), strict=True)), threshold, few)


def cannot_be_significant(counts: Sequence[int], permutations: int = PERMUTATIONS) -> bool:
    """Whether so few subjects a class that no permutation test on them can reach its level, whatever it looks at.

    Of N subjects a class of n is drawn in one of C(N, n) ways, all equally likely when labels are shuffled. One of
    them is the true one, and a class of the same size that is drawn there is told as well. So a class that is told
    completely has p >= m / C(N, n) with m classes of its size; with B shuffles, the audit asks for 1 / (B + 1).

    Source: Phipson and Smyth, Permutation P-values Should Never Be Zero, 2010 (the smallest p is that of the number
    of distinct permutations); Ojala and Garriga, Permutation Tests for Studying Classifier Performance, 2010.

    Args:
        counts: subjects of each class; those without any do not count.
        permutations: B.
    """
    present = [count for count in counts if count]
    total = sum(present)
    least = min((present.count(n) / comb(total, n) for n in present), default=1.0)
    return least > 1 / (permutations + 1)


def complete_separation_fails(
    targets: NDArray[np.integer[Any]],
    subjects: Sequence[str],
    folds: Sequence[tuple[Indices, Indices]],
    classes: int,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> bool:
    """Whether the audit would miss features that hold nothing but the class: tried with just these.

    Test parts are small: with few subjects, shuffled labels are told completely in all of them by chance alone.
    """
    own, index = _subject_targets(targets, subjects)
    if min(Counter(own.tolist()).values()) > MANY:
        return False
    parts = [_part(np.eye(classes)[targets], train, test) for train, test in folds]
    told = _balanced_accuracies(parts, targets, classes).max()
    return bool(told <= _best_of_shuffles(parts, own, index, classes, permutations, seed))


def _subject_targets(
    targets: NDArray[np.integer[Any]], subjects: Sequence[str]
) -> tuple[NDArray[np.integer[Any]], Indices]:
    """The class of each subject, its most frequent one, and of each volume which subject it is of."""
    owners, index = np.unique(np.asarray(subjects), return_inverse=True)
    own = [Counter(targets[index == k].tolist()).most_common(1)[0][0] for k in range(len(owners))]
    return np.array(own), index


def _best_of_shuffles(
    parts: Sequence[_Part],
    own: NDArray[np.integer[Any]],
    index: Indices,
    classes: int,
    permutations: int,
    seed: int,
) -> float:
    """How well the best class is told when labels are shuffled over subjects, in the best of all shuffles."""
    random = np.random.default_rng(seed)
    return max(
        float(_balanced_accuracies(parts, random.permutation(own)[index], classes).max())
        for _ in range(permutations)
    )


def coinciding(cohort: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    """Classes whose every source holds no other class, where there are several sources.

    Args:
        cohort: class → source → number of volumes.
    """
    owners = Counter(source for sources in cohort.values() for source in sources)
    if len(owners) < 2:
        return ()
    return tuple(name for name, sources in cohort.items() if sources and all(owners[s] == 1 for s in sources))


def warnings(findings: Sequence[Finding], cohort: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What a reader must know before believing the networks' scores; empty where nothing was found."""
    found = [
        f"{f.name} alone tells {f.best} from the rest with a balanced accuracy of {f.score:.3f} (chance 0.5; shuffled "
        f"labels never got above {f.threshold:.3f}): part of any network's score may come from there"
        for f in findings
        if f.verdict == "found"
    ]
    few = [f for f in findings if f.verdict == "too few"]
    if few:
        complete = [f"{f.name} tells {f.best} from the rest completely" for f in few if f.complete]
        told = f"; {', '.join(complete)}, which may be chance or all that a network sees" if complete else ""
        found.append(
            f"too few subjects a class to tell what else tells the class ({', '.join(f.name for f in few)}): shuffled "
            f"labels do as well as a complete separation would{told}. No score on these data can rule it out"
        )
    for name in coinciding(cohort):
        sources = ", ".join(cohort[name])
        found.append(
            f"class {name} comes from {sources} only, and nothing else does: scanner, site and preprocessing "
            f"tell {name} from the rest as well as the disease does, and no score on these data can tell them apart"
        )
    return found


def _compressed(values: Features) -> Features:
    """Columns (N, F), logarithmic beyond their middle: intensities of scanners span orders of magnitude."""
    middle = np.median(np.abs(values), axis=0)
    result: Features = np.arcsinh(values / np.where(middle > 0, middle, 1))
    return result


def _numbers(cell: str) -> list[float]:
    try:
        return [float(part) for part in cell.split(" x ")]
    except ValueError:
        return []


@dataclass(frozen=True)
class _Part:
    """One fold, with everything that does not depend on labels.

    Attributes:
        train, test: indices of volumes.
        features: standardised, (train, F) and (test, F).
        kernels: RBF, (train, train) and (test, train).
    """

    train: Indices
    test: Indices
    features: tuple[Features, Features]
    kernels: tuple[Features, Features]


def _part(features: Features, train: Indices, test: Indices) -> _Part:
    mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
    varies = deviation > 1e-9
    # what hardly varies in training must not drown the rest in testing
    scaled = ((features[:, varies] - mean[varies]) / deviation[varies]).clip(-5, 5)
    inner, outer = scaled[train], scaled[test]

    def kernel(rows: Features) -> Features:
        squares = (rows**2).sum(axis=1)[:, None] + (inner**2).sum(axis=1) - 2 * rows @ inner.T
        result: Features = np.exp(-squares / max(varies.sum(), 1))
        return result

    return _Part(train, test, (inner, outer), (kernel(inner), kernel(outer)))


def _balanced_accuracies(parts: Sequence[_Part], targets: NDArray[np.integer[Any]], classes: int) -> Features:
    """(classes,) mean over folds of (recall + specificity) / 2, of the classifier whose best class is better.

    A class that a fold's test part lacks, or fills, counts 0.5 there.
    """
    from sklearn import config_context
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    told = np.full((2, len(parts), classes), 0.5)
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for fold, part in enumerate(parts):
            known, wanted = targets[part.train], targets[part.test]
            if len(np.unique(known)) < 2 or not part.features[0].shape[1]:
                continue
            machine = SVC(kernel="precomputed", class_weight="balanced").fit(part.kernels[0], known)
            tree = DecisionTreeClassifier(
                max_depth=3, min_samples_leaf=3, class_weight="balanced", random_state=0
            ).fit(part.features[0], known)
            answers = (machine.predict(part.kernels[1]), tree.predict(part.features[1]))
            for kind, answer in enumerate(answers):
                for c in range(classes):
                    true = wanted == c
                    if 0 < true.sum() < len(true):
                        told[kind, fold, c] = ((answer[true] == c).mean() + (answer[~true] != c).mean()) / 2
    means = told.mean(axis=1)
    best: Features = means[means.max(axis=1).argmax()]
    return best
