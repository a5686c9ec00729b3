"""A cohort for `ssclf pretrain`: each healthy brain as it is, and with either kind of lesion."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from ssclf.domain.synthetic import SyntheticLabel
from ssclf.errors import DatasetError
from ssclf.io.records.preprocessed import PreparedCohort

_HEALTHY = ("", "healthy")


def with_lesions(cohort: PreparedCohort) -> PreparedCohort:
    """Every volume three times, once for each label; the voxels are those of the healthy brain until they are read.

    Raises:
        DatasetError: a volume has another label, or several contrasts.
    """
    for sample in cohort.samples:
        if sample.label not in _HEALTHY:
            raise DatasetError(
                f"{sample.place}: expected a brain that is healthy or has no label, to put lesions into, found "
                f"{sample.label!r}; leave it out with `ssclf preprocess`."
            )
    if len(cohort.preprocess.contrasts) != 1:
        raise DatasetError(
            f"{cohort.folders[0]}: expected volumes of one contrast to put lesions into, found "
            f"{', '.join(cohort.preprocess.contrasts)}."
        )
    labels = tuple(sorted(get_args(SyntheticLabel)))
    samples = tuple(
        replace(sample, key=f"{sample.key}#{label}", label=label)
        for sample in cohort.samples
        for label in labels
    )
    return replace(cohort, samples=samples, class_names=labels, synthetic=True)
