from __future__ import annotations

from pathlib import Path

import pytest

from ssclf.io.records.tables import read_table, write_table


def test_cells_that_a_spreadsheet_would_run_come_back_as_they_were(tmp_path: Path) -> None:
    """The quote that keeps them from running once stayed: negative numbers were text, and "-1.nii" was not found."""
    path = tmp_path / "table.csv"
    rows = [("-1.nii.gz", "-3.5 x 2 x 1"), ("=1+1", "'quoted"), ("a, b", "")]
    write_table(path, ("path", "numbers"), rows)
    assert "'=1+1" in path.read_text()
    assert [(row["path"], row["numbers"]) for row in read_table(path).rows] == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("stated", ["", "sep={}\r\n", '"sep={}"\n', "SEP={}\n"])
def test_tables_as_spreadsheets_write_them(
    tmp_path: Path, encoding: str, separator: str, stated: str
) -> None:
    """UTF-16 was a column named ÿþ..., and "sep=;" the header."""
    text = f"subject{separator}label\r\nMüller{separator}a b\r\n\r\nsub-2{separator}LGG\r\n"
    path = tmp_path / "labels.csv"
    path.write_bytes((stated.format(separator) + text).encode(encoding))
    table = read_table(path)
    assert table.columns == ("subject", "label")
    assert [(row["subject"], row["label"]) for row in table.rows] == [("Müller", "a b"), ("sub-2", "LGG")]
    first = 3 if stated else 2
    assert [row.line for row in table.rows] == [first, first + 2]


def test_a_stated_separator_counts_for_more_than_the_commonest(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("sep=;\nname, first, last;label\nA, B, C;HGG\n")
    assert read_table(path).columns == ("name, first, last", "label")
