"""Tables that people write and read: manifests and label tables in, `manifest.csv` and `failed.csv` out."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ssclf.domain.visible import visible
from ssclf.errors import DatasetError
from ssclf.io.files import whole_file

Cell = str | float | None
#: Tables end so; anything else is taken for a volume.
TABLE_ENDINGS = (".csv", ".tsv")
#: A spreadsheet runs cells that begin so (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")

#: Excel's own way to say what separates cells.
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t])"?[,;\t]*', re.IGNORECASE)


@dataclass(frozen=True)
class TableRow:
    """Cells by lower-case column name, stripped; `line` is where the row starts in the file, from 1."""

    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


@dataclass(frozen=True)
class Table:
    path: Path
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]

    def require(self, *columns: str) -> None:
        """Raises:
        DatasetError: one of the columns is missing.
        """
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise DatasetError(
                f"{self.path.name}: expected the columns {', '.join(columns)}, found {', '.join(self.columns)}; "
                f"{', '.join(missing)} is missing."
            )


def read_table(path: Path) -> Table:
    """Read a CSV or TSV file: UTF-8, UTF-16 or Latin-1, separated by comma, semicolon or tab, header first.

    A line such as "sep=;" before the header, as spreadsheets write it, says what separates cells.

    Cells come back as they were before `write_table` kept them from running as formulas.

    Raises:
        DatasetError: unreadable, empty, a column twice, or a row with more cells than columns.
    """
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read ({exc.strerror or exc}).") from exc
    text, delimiter, start = _table_text(raw)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines: list[tuple[int, list[str]]] = []
    skipped = start - 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((start, [undefuse(cell.strip()) for cell in cells]))
            start = reader.line_num + 1 + skipped
    except csv.Error as exc:
        raise DatasetError(
            f"{path.name} line {reader.line_num + skipped}: expected a table, found {exc}."
        ) from exc
    if not lines:
        raise DatasetError(f"{path.name}: expected a table with a header line, found an empty file.")
    columns = tuple(name.lower() for name in lines[0][1])
    named = [name for name in columns if name]
    if len(set(named)) != len(named):
        raise DatasetError(f"{path.name}: expected each column once, found {', '.join(columns)}.")
    for line, cells in lines[1:]:
        if len(cells) > len(columns) and any(cells[len(columns) :]):
            raise DatasetError(
                f"{path.name} line {line}: expected {len(columns)} cells, found {len(cells)}; "
                "put quotes around cells that contain the separator."
            )
    rows = tuple(TableRow(line, dict(zip(columns, cells, strict=False))) for line, cells in lines[1:])
    return Table(path, columns, rows)


def _table_text(raw: bytes) -> tuple[str, str, int]:
    """The text of a table from its header on, what separates its cells, and the line where the header stands."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = raw.decode("utf-16", "replace")
    elif b"\0" in raw[:2]:  # no mark, but a header's first character is ASCII
        text = raw.decode("utf-16-le" if raw[:1] != b"\0" else "utf-16-be", "replace")
    else:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
    first, _, rest = text.partition("\n")
    stated = _SEPARATOR_LINE.fullmatch(first.rstrip("\r"))
    if stated:
        return rest, stated[1], 2
    return text, max(",;\t", key=first.count), 1


def write_table(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    formats: Mapping[str, str] = MappingProxyType({}),
    private: bool = False,
) -> None:
    """Write a CSV file whole: UTF-8, RFC 4180, no cell that a spreadsheet would run.

    Text is kept from being taken for a formula; numbers stay numbers, also those below zero.

    Args:
        rows: one cell a column: text, a number, or None for an empty one; taken one after the other.
        formats: column → how its numbers are written, as in `format`; elsewhere with eight digits that count.
        private: nobody but this user may read it.

    Raises:
        OutputError: it cannot be written.
    """
    digits = [formats.get(column, ".8g") for column in columns]
    with whole_file(path, private=private) as file:
        # plain names stand as they are: `ssclf.io.own_output` knows a table of ours by them
        csv.writer(file, lineterminator="\r\n").writerow(map(defuse, columns))
        for row in rows:
            file.write(",".join(_written(c, how) for c, how in zip(row, digits, strict=True)) + "\r\n")


def write_tsv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table as BIDS has it: separated by tabs, nothing quoted, "n/a" for an empty cell.

    Source: Brain Imaging Data Structure, specification 1.10, "Tabular files".

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(path) as file:
        for row in (columns, *rows):
            file.write("\t".join(visible(cell) or "n/a" for cell in row) + "\n")


def _written(cell: Cell, how: str) -> str:
    if not cell and not isinstance(cell, (int, float)):
        return ""
    return _quoted(defuse(cell)) if isinstance(cell, str) else format(cell, how)


def _quoted(text: str) -> str:
    """All text is quoted: a program that separates cells by something else than a comma sees one cell, too."""
    return '"' + text.replace('"', '""') + '"'


def defuse(text: str) -> str:
    """Text that a spreadsheet shows and does not run: a quote before what would start a formula, or is one already."""
    return "'" + text if text.startswith(("'", *_FORMULA_STARTS)) else text


def undefuse(text: str) -> str:
    """The inverse of `defuse`, for reading back what ssclf wrote."""
    return text[1:] if text.startswith("'") and text[1:].startswith(("'", *_FORMULA_STARTS)) else text


def read_written_rows(path: Path, key: str) -> list[dict[str, str]]:
    """Rows of a table that ssclf wrote, as they were before cells were kept from running as formulas.

    What a spreadsheet changes of its form is read alike: encoding, separator, quotes, line ends.

    Args:
        key: a column that it has, which tells what separates cells: names of classes hold anything.

    Raises:
        OSError: it cannot be read.
        ValueError: no such column, or a row has more or fewer cells than the header.
    """
    text, _, _ = _table_text(path.read_bytes())
    for delimiter in ",;\t":
        columns, *lines = list(
            filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        ) or [[]]
        if key in columns:
            break
    else:
        raise ValueError(f"{path.name}: expected the column {key}, found none")
    if ragged := [number for number, cells in enumerate(lines, 2) if len(cells) != len(columns)]:
        raise ValueError(
            f"{path.name}: expected {len(columns)} cells in every row, found others in row {ragged[0]}"
        )
    return [dict(zip(columns, map(undefuse, cells), strict=True)) for cells in lines]
