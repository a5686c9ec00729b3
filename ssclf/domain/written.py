"""Marks of what was written, by which a change by hand is found: of each value of a record, and of each row of a table.

They guard against mistakes: an edit, a column sorted alone, a file of another run. Who also takes the marks away has a
record as earlier versions wrote it, which is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

#: Of a record: where its marks stand.
MARKS: Final = "written"
#: So many values or rows are named in a message.
_NAMED: Final = 3


def mark(value: Any) -> str:
    """Equal for JSON values that are equal, in whatever order and form they stand in a file."""
    plain = json.loads(json.dumps(value))  # before keys are sorted, they are texts
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def mark_all(named: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Name → mark, in their order; a name that comes again is a name of its own."""
    marks: dict[str, str] = {}
    for name, value in named:
        while name in marks:
            name += " again"
        marks[name] = mark(value)
    return marks


def mark_rows(
    rows: Iterable[Mapping[str, str]], key: str, columns: Sequence[str] | None = None
) -> dict[str, str]:
    """Key of a row → its mark.

    Equal for rows of the same cells, in whatever order the columns stand; an empty cell is as good as none.

    Args:
        key: the column that names a row, as no other.
        columns: that are looked at; None for all.
    """

    def said(row: Mapping[str, str]) -> dict[str, str]:
        return {name: row[name] for name in (columns or row) if row.get(name)}

    return mark_all((row[key], said(row)) for row in rows)


def changes(written: object, found: Mapping[str, str]) -> str:
    """How marks differ from those that were written, in words: "a other, b gone, c new"; "" where they are the same."""
    if not isinstance(written, Mapping):
        return f"{written!r} in the place of its marks"
    named = {
        "other": [name for name in found if name in written and found[name] != written[name]],
        "gone": [name for name in written if name not in found],
        "new": [name for name in found if name not in written],
    }
    return ", ".join(
        f"{', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''} {what}"
        for what, names in named.items()
        if names
    )
