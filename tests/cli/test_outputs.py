"""Every file and folder that a command is told to write is looked at before work begins, in one way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.domain.volume import Volume
from ssclf.errors import OutputError
from ssclf.io.paths import check_output_file, check_output_folder
from ssclf.io.volumes.nifti import write_nifti

#: What may stand in the place of a plain file, and what a message says of it.
WRONG_FILES = {
    "": "add a file name",
    ".": "add a file name",
    "..": "add a file name",
    "folder": "found a folder",
    "pipe": "found a pipe",
    "link": "found a link",
    "dangling": "found a link",
    "nowhere/r.csv": "does not exist",
    "kept.csv/r.csv": "cannot be written",
    "n" * 300: "cannot be written",
}
WRONG_FOLDERS = {
    "pipe": "found something else",
    "kept.csv": "found something else",
    "kept.csv/x/y": "found something else",
    "dangling": "found something else",
    "loop": "found something else",
    "n" * 300: "cannot be written",
}


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which something has every wrong name."""
    folder = tmp_path / "here"
    (folder / "folder").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "beside.json")
    (folder / "kept.csv").write_text("kept")
    (folder / "link").symlink_to("kept.csv")
    (folder / "dangling").symlink_to("nothing")
    (folder / "loop").symlink_to("loop")
    (folder / "to-folder").symlink_to("folder")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def shards(
    tiny_bundle: Path, make_volume: Callable[..., Volume], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the tables of two shards."""
    root = tmp_path_factory.mktemp("shards")
    for number in range(3):
        write_nifti(make_volume(seed=number), root / "scans" / f"s{number}.nii.gz")
    for part in ("1/2", "2/2"):
        words = ["predict", root / "scans", "--model", tiny_bundle, "--assume-stripped", "--workers", 1]
        code, output = invoke(*words, "--out", root / "r.csv", "--shard", part)
        assert code == 0, output
    shutil.rmtree(root / "scans")
    return root


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
        for path in folder.iterdir()
    }


@pytest.mark.parametrize("name", WRONG_FILES, ids=lambda name: name[:20] or "empty")
def test_a_result_is_a_plain_file_with_a_name(name: str, here: Path, shards: Path, tiny_bundle: Path) -> None:
    """`merge --out ""` was a traceback; a pipe or a link was replaced; so did rates, and pages."""
    with pytest.raises(OutputError, match=WRONG_FILES[name]):
        check_output_file("out", Path(name))
    before = contents(here)
    tables = sorted(shards.glob("r*.csv"))
    assert len(tables) == 2
    for words in (
        ["merge", *tables, "--out", name],
        ["merge", *tables, "--out", "m.csv", "--report", name],
        ["doctor", "--model", tiny_bundle, "--bench", "--json", name],
    ):
        code, output = invoke(*words)
        assert code == 1 and WRONG_FILES[name] in output, (words[0], output)
    assert contents(here) == before


@pytest.mark.parametrize("name", WRONG_FILES, ids=lambda name: name[:20] or "empty")
def test_a_table_of_a_cluster_is_asked_for_before_the_cluster(
    name: str, here: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray", reason="pip install 'ssclf[ray]'")
    words = ["predict", here, "--ray", "local", "--out", tmp_path / "parts", "--model", tiny_bundle]
    code, output = invoke(*words, "--csv", name)
    assert code == 1 and WRONG_FILES[name] in output, output
    assert not ray.is_initialized()


def test_merge_spares_what_is_not_its_own(here: Path, shards: Path) -> None:
    tables = sorted(shards.glob("r*.csv"))
    for name, told in (
        ("beside.csv", "found a pipe"),  # where its results.json would go
        ("kept.csv", "was not written by ssclf"),
        ("m.json", "choose another ending"),
    ):
        code, output = invoke("merge", *tables, "--out", name)
        assert code == 1 and told in output, (name, output)
    for page in ("m.csv", "m.json", "../here/m.csv"):
        code, output = invoke("merge", *tables, "--out", "m.csv", "--report", page)
        assert code == 1 and "--report names a page of its own" in output, (page, output)
    assert (here / "kept.csv").read_text() == "kept"
    for part, told in (("", "found a folder"), ("beside.csv", "beside.json"), ("n" * 300, "beside it")):
        code, output = invoke("merge", part, "--out", "m.csv")
        assert code == 1 and told in output, (part, output)
    assert not (here / "m.csv").exists()


def test_merge_takes_names_as_text(here: Path, shards: Path) -> None:
    folder = here / "[b]x[/red] :brain:"
    shutil.copytree(shards, folder)
    for _ in range(2):  # its own table is written again
        code, output = invoke(
            "merge",
            *sorted(folder.glob("r*.csv")),
            "--out",
            folder / "m[red].csv",
            "--report",
            folder / "m[b].html",
        )
        assert code == 0 and "[b]x[/red] :brain:/m[red].csv: 3 volumes, 0 failed" in output, output
    assert len(json.loads((folder / "m[red].json").read_text())["rows"]) == 3
    assert (folder / "m[b].html").is_file()


@pytest.mark.parametrize("name", WRONG_FOLDERS, ids=lambda name: name[:20])
def test_a_folder_to_write_is_no_other_thing(
    name: str,
    here: Path,
    tiny_bundle: Path,
    make_volume: Callable[..., Volume],
    preprocessed: Callable[..., Path],
) -> None:
    """Some commands found out after their work, and `demo` and `export` with a traceback."""
    with pytest.raises(OutputError, match=WRONG_FOLDERS[name]):
        check_output_folder("out", Path(name))
    data = preprocessed(per_class=2)
    for number, label in enumerate(("HGG", "LGG")):
        write_nifti(make_volume(seed=number), data.parent / "scans" / label / f"s{number}.nii.gz")
    before = contents(here)
    for words in (
        ["preprocess", data.parent / "scans", "--workers", 1],
        ["evaluate", data.parent / "scans", "--model", tiny_bundle, "--workers", 1],
        ["demo", "--workers", 1],
        ["export", data.parent / "run"],
        ["train", "--data", data, "--device", "cpu"],
        ["cv", "--data", data, "--device", "cpu"],
    ):
        code, output = invoke(*words, "--out", name)
        assert code == 1, words
        assert WRONG_FOLDERS[name] in output or "cannot be written" in output, (words[0], output)
    assert contents(here) == before


def test_a_folder_may_be_there_or_not_and_be_linked(here: Path) -> None:
    for name in ("", ".", "..", "folder", "to-folder", "to-folder/new/newer", "new"):
        check_output_folder("out", Path(name))
    assert not (here / "new").exists()
