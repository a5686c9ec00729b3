from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ssclf.errors import OutputError
from ssclf.io.records.results import Journal, ResultRow, csv_columns, read_rows, row_to_json, write_csv

CLASSES = ("LGG", "HGG", "healthy")


def make_row(path: str = "a.nii.gz", **values: object) -> ResultRow:
    base = {
        "series": "",
        "status": "ok",
        "prediction": "HGG",
        "probabilities": (0.1, 0.7, 0.2),
        "fingerprint": "f",
    }
    return ResultRow(**{"path": path, **base, **values})  # type: ignore[arg-type]


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_the_contract_columns_in_order(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [make_row()], CLASSES)
    row = read_table(tmp_path / "r.csv")[0]
    assert list(row) == csv_columns(CLASSES)
    assert list(row) == [
        "path", "series", "status", "prediction", "confidence", "p_LGG", "p_HGG", "p_healthy", "flags", "error",
        "brain_ml", "seconds", "model", "model_sha256", "ssclf_version", "precision",
    ]  # fmt: skip
    assert (row["confidence"], row["p_HGG"]) == ("0.700000", "0.700000")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_starts_as_a_formula(tmp_path: Path, start: str) -> None:
    rows = [
        make_row(f"{start}cmd|' /C calc'!A0.nii"),
        make_row("b", status="failed", error=f"{start}1+1", probabilities=()),
    ]
    write_csv(tmp_path / "r.csv", rows, ("=1", "b", "c"))
    with (tmp_path / "r.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.reader(file):
            assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in line)


def test_names_with_commas_quotes_newlines_and_bad_bytes_survive(tmp_path: Path) -> None:
    hostile = 'a,"b"\nc.nii'
    write_csv(tmp_path / "r.csv", [make_row(hostile), make_row("bad\udcff.nii")], CLASSES)
    assert [row["path"] for row in read_table(tmp_path / "r.csv")] == [hostile, "bad\\udcff.nii"]


def test_errors_stay_on_one_line(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [make_row(status="failed", error="one\n  two", probabilities=())], CLASSES)
    assert read_table(tmp_path / "r.csv")[0]["error"] == "one two"


def test_rows_survive_a_round_trip_through_json(tmp_path: Path) -> None:
    row = make_row(flags=("thick_slices",), brain_ml=1234.5, seconds=1.0, extra={"thumbnail": "data:"})
    (tmp_path / "r.json").write_text(json.dumps({"rows": [json.loads(row_to_json(row))]}))
    assert read_rows(tmp_path / "r.json") == [row]
    assert read_rows(tmp_path / "absent.json") == []
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(OutputError, match=r"other\.json"):
        read_rows(tmp_path / "other.json")


def test_an_interrupted_journal_gives_its_whole_rows_back(tmp_path: Path) -> None:
    first = Journal(tmp_path / "r.csv")
    assert first.open() == []
    first.append(make_row("a"))
    first.append(make_row("b"))
    first.close(finished=False)
    lines = (first.folder / "journal.jsonl").read_text()
    (first.folder / "journal.jsonl").write_text(lines[:-20])  # killed in the middle of a write
    second = Journal(tmp_path / "r.csv")
    assert [row.path for row in second.open()] == ["a"]
    second.append(make_row("c"))
    second.close(finished=False)
    third = Journal(tmp_path / "r.csv")
    assert [row.path for row in third.open()] == ["a", "c"]
    third.close(finished=True)
    assert list(tmp_path.iterdir()) == []


def test_the_work_folder_is_private_and_locked(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "r.csv")
    journal.open()
    assert journal.folder.stat().st_mode & 0o077 == 0
    with pytest.raises(OutputError, match="another ssclf run"):
        Journal(tmp_path / "r.csv").open()
    journal.close(finished=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        Journal(tmp_path / "file" / "r.csv").open()
    with pytest.raises(OutputError, match="cannot be written"):
        write_csv(tmp_path / "file" / "r.csv", [], CLASSES)
