"""Records and tables that carry marks of what they held when ssclf wrote them, see `domain.written`.

A record holds its own marks, so that it and they are written at once. Those of a table stand in a record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ssclf.domain.written import MARKS, changes, mark_all, mark_rows
from ssclf.errors import SsclfError
from ssclf.io.files import write_json
from ssclf.io.records.tables import read_written_rows


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record with its marks.

    Raises:
        OutputError: it cannot be written.
    """
    write_json(path, {**values, MARKS: mark_all(values.items())})


def read_sealed(path: Path, otherwise: str, error: type[SsclfError]) -> dict[str, Any]:
    """A record without its marks; one of an earlier version has none.

    Args:
        otherwise: what to do about a record that was changed.
        error: to raise for it.

    Raises:
        OSError, ValueError: it cannot be read, or is no record.
    """
    values = json.loads(path.read_text("utf-8-sig"))
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, found {type(values).__name__}")
    if MARKS in values:
        check_marks(path, values.pop(MARKS), mark_all(values.items()), otherwise, error)
    return values


def check_marks(
    path: Path, written: object, found: Mapping[str, str], otherwise: str, error: type[SsclfError]
) -> None:
    """Raises:
    error: a file does not hold what was written.
    """
    if changed := changes(written, found):
        raise error(f"{path}: expected what ssclf wrote, found it changed: {changed}; {otherwise}")


def mark_table(path: Path, key: str) -> list[tuple[str, str]]:
    """Marks of the rows of a table that ssclf wrote, as it will be read, in their order.

    Args:
        key: the column that names a row.
    """
    return list(mark_rows(read_written_rows(path, key), key).items())


def read_sealed_rows(
    path: Path, key: str, written: Iterable[tuple[str, str]] | None, otherwise: str, error: type[SsclfError]
) -> list[dict[str, str]]:
    """Rows of a table that ssclf wrote, in the order in which it wrote them.

    Args:
        written: what `mark_table` said of it; None where an earlier version wrote it.

    Raises:
        error: they are others.
        OSError, KeyError, TypeError, ValueError: it is no such table.
    """
    rows = read_written_rows(path, key)
    if written is None:
        return rows
    marks = dict(written)
    check_marks(path, marks, mark_rows(rows, key), otherwise, error)
    by_key = {row[key]: row for row in rows}
    return [by_key[name] for name in marks]
