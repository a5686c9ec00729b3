"""MODEL_CARD.md: what a bundle was trained on, how well it did, and what it must not be used for."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from ssclf.domain.eight_bits import SURE, TOLERANCE
from ssclf.domain.metrics import ENOUGH_TO_CALIBRATE
from ssclf.domain.model_spec import ModelSpec
from ssclf.domain.provenance import Provenance


def write_model_card(spec: ModelSpec) -> str:
    """Markdown for people, from nothing but the spec."""
    environment = Environment(
        loader=PackageLoader("ssclf.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown, not HTML
    )
    training = spec.provenance
    start = "random weights"
    if training.initial_weights:
        start = _describe_weights(training)
    if parent := training.started_from:
        lesions = (
            ", learnt from synthetic lesions in healthy brains" if parent.get("pretrained_on_lesions") else ""
        )
        start = f"the weights of {parent['name']} (sha256 {parent['sha256'][:12]}…{lesions})"
    few = 0 < training.calibration.volumes < ENOUGH_TO_CALIBRATE
    return environment.get_template("model_card.md.j2").render(
        spec=spec, training=training, start=start, few=few, tolerance=TOLERANCE, sure=SURE
    )


def _describe_weights(training: Provenance) -> str:
    about = training.starting_weights
    if "name" not in about:
        return f"Kinetics-400 weights {training.initial_weights}"
    return (
        f"the weights of {about['name']} ({about['file']}, sha256 {about['sha256'][:12]}…, from {about['source']}; "
        f"licence: {about['licence']}), {about['parameters']:,} of {about['of']:,} parameters, the others random,"
    )
