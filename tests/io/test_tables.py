from __future__ import annotations

from pathlib import Path

from ssclf.io.records.tables import read_table, write_table


def test_cells_that_a_spreadsheet_would_run_come_back_as_they_were(tmp_path: Path) -> None:
    """The quote that keeps them from running once stayed: negative numbers were text, and "-1.nii" was not found."""
    path = tmp_path / "table.csv"
    rows = [("-1.nii.gz", "-3.5 x 2 x 1"), ("=1+1", "'quoted"), ("a, b", "")]
    write_table(path, ("path", "numbers"), rows)
    assert "'=1+1" in path.read_text()
    assert [(row["path"], row["numbers"]) for row in read_table(path).rows] == rows
