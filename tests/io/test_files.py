from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ssclf.domain.volume import Volume
from ssclf.errors import OutputError
from ssclf.io.discovery.folders import walk_folders
from ssclf.io.files import whole_file, whole_folder, whole_path, write_whole
from ssclf.io.volumes.nifti import write_nifti

Write = Callable[[Path], AbstractContextManager[object]]


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "x" * 251 + ".csv",
        "ü" * 125 + ".csv",
        "\U0001f9e0" * 62 + ".nii",
        os.fsdecode(b"\xff" * 250 + b".csv"),
        "a\nb 'c'.csv",
    ],
    ids=["short", "long", "long in two bytes", "long in four bytes", "no UTF-8", "hostile"],
)
def test_every_name_that_the_file_system_takes_can_be_written_whole(name: str, tmp_path: Path) -> None:
    """Long names could not: what lies beside them was named longer still."""
    path = tmp_path / name
    path.write_text("before")
    write_whole(path, "after")
    assert path.read_text() == "after"
    with whole_path(path, ending=".nii.gz") as partial:
        partial.write_text("once more")
    assert path.read_text() == "once more"
    path.unlink()
    with whole_folder(path) as folder:
        (folder / "file").touch()
    assert [entry.name for entry in path.iterdir()] == ["file"] and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_each_write_it_whole(tmp_path: Path) -> None:
    """Processes of two nodes may have the same number, by which the partial files were told apart."""
    path = tmp_path / "table.csv"
    with whole_file(path) as first:
        first.write("first ")
        with whole_file(path) as second:
            second.write("second")
        assert path.read_text() == "second"
        first.write("whole")
    assert path.read_text() == "first whole"


@pytest.mark.parametrize("write", [whole_file, whole_path, whole_folder])
def test_what_fails_leaves_what_was_there_and_nothing_else(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "place"
    path.write_text("before")
    with pytest.raises(KeyError), write(path) as partial:
        if isinstance(partial, Path) and not partial.exists():
            partial.write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "before"


@pytest.mark.parametrize("ending", ["", ".nii.gz", ".csv"])
def test_what_a_killed_process_leaves_is_hidden_marked_and_no_volume(
    ending: str, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    with whole_path(tmp_path / "scan.nii.gz", ending=ending) as partial:
        write_nifti(make_volume(), tmp_path / "whole.nii.gz")
        partial.write_bytes((tmp_path / "whole.nii.gz").read_bytes())
        assert partial.name.startswith(".scan.nii.gz.")
        assert ".partial" in partial.name
        (found,) = walk_folders(tmp_path, None)
        assert found.volumes == ["whole.nii.gz"] and found.other == {"hidden": 1}


def test_a_folder_that_came_first_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with whole_folder(path) as slower:
        (slower / "slower").touch()
        with whole_folder(path) as faster:
            (faster / "faster").touch()
    assert [entry.name for entry in path.iterdir()] == ["faster"]
    with whole_folder(path, there="replace") as better:
        assert better.stat().st_mode & 0o077 == 0
        (better / "better").touch()
        assert [entry.name for entry in path.iterdir()] == ["faster"]
    assert [entry.name for entry in path.iterdir()] == ["better"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_of_a_folder_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(NotADirectoryError), whole_folder(path):
        path.write_text("")
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"place\.csv: cannot be written \(Not a directory\)"):
        write_whole(tmp_path / "file" / "place.csv", "")
    (tmp_path / "place.csv").mkdir()
    with pytest.raises(OutputError, match=r"place\.csv: cannot be written \(Is a directory\)"):
        write_whole(tmp_path / "place.csv", "")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "place.csv"]
