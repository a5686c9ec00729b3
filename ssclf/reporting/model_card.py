"""MODEL_CARD.md: what a bundle was trained on, how well it did, and what it must not be used for."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from ssclf.domain.model_spec import ModelSpec


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
    return environment.get_template("model_card.md.j2").render(spec=spec, training=spec.training)
