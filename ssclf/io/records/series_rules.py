"""A site's own rules for which series of a study is answered: TOML or JSON that people write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ssclf.domain.series_rules import SeriesRule, rules_from_list
from ssclf.errors import ConfigError, MissingDependencyError


def read_series_rules(path: Path) -> tuple[SeriesRule, ...]:
    """Read a file of rules: tables `[[rule]]`, or the JSON `{"rule": [...]}`.

    Raises:
        ConfigError: it cannot be read, or holds something else.
        MissingDependencyError: TOML on a Python that does not read it.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: expected rules of series, cannot be read ({exc}).") from exc
    try:
        values = json.loads(text) if path.suffix.lower() == ".json" else _parse_toml(text)
    except ValueError as exc:
        raise ConfigError(f"{path}: expected TOML, or JSON in a file that ends in .json ({exc}).") from exc
    if not isinstance(values, dict) or set(values) != {"rule"}:
        raise ConfigError(f"{path}: expected tables [[rule]] and nothing else.")
    return rules_from_list(values["rule"], str(path))


def _parse_toml(text: str) -> dict[str, Any]:
    """Raises:
    ValueError: it is none.
    """
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(text)
    raise MissingDependencyError("rules in TOML need Python 3.11; write them as JSON.")
