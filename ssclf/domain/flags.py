"""Codes of the `flags` column, with what they tell a reader. One place, so that documentation, reports
and rows cannot disagree."""

from __future__ import annotations

from typing import Final

#: Of every row of a model that `ssclf pretrain` made.
REFERENCE_MODEL: Final = "reference_model"

FLAGS: Final[dict[str, str]] = {
    "stripped_by_ssclf": "the skull was removed by ssclf; the volume came with it",
    "assumed_stripped": "taken as stripped because the user said so, although it does not look it",
    "other_extraction": "the skull was removed by another engine than in the training volumes",
    "implausible_brain_volume": "the brain found is smaller than 0.8 l or larger than 2.2 l",
    "form_conflict": "qform and sform of the NIfTI header disagree by more than 1 mm or 2 degrees; sform used",
    "repaired_affine": "one of the NIfTI header's two matrices cannot be used; the other one was",
    "shear": "the axes are not perpendicular (by more than 1 degree)",
    "oblique": "the axes are more than 20 degrees from the body's",
    "thick_slices": "a voxel is longer than 4 mm along one axis",
    "partial_coverage": "the field of view is shorter than 100 mm along one axis: hardly a whole brain",
    "incomplete_series": "the numbers of the DICOM slices suggest that some are missing at an end or between, or "
    "files beside them could not be read or are no MR image",
    "wrong_contrast": "does not look like the contrast that the model was trained on",
    "low_confidence": "the highest probability is below the review threshold",
    "unlike_training": "the features lie further from the training volumes than those do from each other",
    "trained_on": "the model was trained on this scan, or its epoch was chosen with it: its probabilities say nothing",
    REFERENCE_MODEL: "the model has seen no patient: all it knows of disease are synthetic lesions in healthy brains",
}

#: These describe a volume and are no reason to look at it again.
HARMLESS: Final = frozenset({"stripped_by_ssclf"})
