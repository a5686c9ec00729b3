"""Reasons to doubt a prediction that only the model's training can tell."""

from __future__ import annotations

from collections.abc import Iterator

from ssclf.domain.model_spec import ModelSpec
from ssclf.domain.preprocessing import PreparedVolume, voxel_hash


def trust_flags(spec: ModelSpec, prepared: PreparedVolume, extraction: str) -> Iterator[str]:
    """Compare a volume with what the model was trained on.

    Args:
        prepared: the network's input.
        extraction: the engine that removed the skull, "none" where it was gone already.
    """
    training = spec.training
    if voxel_hash(prepared.data) in set(training.get("voxels", ())):
        yield "trained_on"
    engines = training.get("extraction", {})
    if extraction != "none" and engines and extraction not in engines:
        yield "other_extraction"
