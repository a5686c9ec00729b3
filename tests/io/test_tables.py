from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssclf.io.records.tables import read_table, write_table


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
        "'-text,-1.5,-0.666667,7,,ok",
        '"a,""b""\nc",0.3,nan,12345678,1e-09,bad\\udcff',
        "ü,0.1,-0.000000,1,1.2345679e+11,",
        "",
    ]


def test_a_row_of_another_length_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer"):
        write_table(tmp_path / "table.csv", ("a", "b"), [("1", "2"), ("3",)])
    assert list(tmp_path.iterdir()) == []
