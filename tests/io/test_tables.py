from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from ssclf.io.records.tables import read_table, read_written_rows, write_table


def test_cells_that_a_spreadsheet_would_run_come_back_as_they_were(tmp_path: Path) -> None:
    """The quote that keeps them from running once stayed: negative numbers were text, and "-1.nii" was not found."""
    path = tmp_path / "table.csv"
    rows = [("-1.nii.gz", "-3.5 x 2 x 1"), ("=1+1", "'quoted"), ("a, b", "")]
    write_table(path, ("path", "numbers"), rows)
    assert "'=1+1" in path.read_text()
    assert [(row["path"], row["numbers"]) for row in read_table(path).rows] == rows


def test_text_is_defused_and_numbers_are_written_as_their_column_says(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [
        ("-text", -1.5, -2 / 3, 7, None, "ok"),
        ('a,"b"\nc', 0.1 + 0.2, float("nan"), 12345678, 1e-9, "bad\udcff"),
        ("ü", np.float32(0.1), -0.00000001, True, 123456789012.0, ""),
    ]
    write_table(
        path, ("=name", "short", "six", "whole", "plain", "end"), rows, formats={"six": ".6f", "whole": "d"}
    )
    assert path.read_bytes().decode().split("\r\n") == [
        "'=name,short,six,whole,plain,end",
        '"\'-text",-1.5,-0.666667,7,,"ok"',
        '"a,""b""\nc",0.3,nan,12345678,1e-09,"bad\\udcff"',
        '"ü",0.1,-0.000000,1,1.2345679e+11,',
        "",
    ]


def test_a_row_of_another_length_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer"):
        write_table(tmp_path / "table.csv", ("a", "b"), [("1", "2"), ("3",)])
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_of_ours_is_read_however_a_spreadsheet_saved_it(
    separator: str, encoding: str, tmp_path: Path
) -> None:
    """A mark before the first column's name made it another, and a class called "a;b;c" is no separator."""
    columns = ("path", "p_a;b;c;d;e", "label")
    rows = [("v/1.nii.gz", 0.25, "=a"), ("v/2, 3.nii.gz", -1.5, 'é "b"\tc')]
    write_table(tmp_path / "ours.csv", columns, rows)
    with (tmp_path / "ours.csv").open(newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file))
    with (tmp_path / "saved.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(cells)
    expected = [dict(zip(columns, map(str, row), strict=True)) for row in rows]
    assert read_written_rows(tmp_path / "ours.csv", "path") == expected
    assert read_written_rows(tmp_path / "saved.csv", "path") == expected


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "path,b\n1\n", "path,b\n1,2,3\n"])
def test_what_is_no_table_of_ours_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=r"t\.csv: expected"):
        read_written_rows(tmp_path / "t.csv", "path")
