"""Rows depend on the scans alone: not on how they are packed, on workers, on names, or on what ssclf wrote before."""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

sys.path.insert(0, str(Path(__file__).parents[1] / "io"))
from dicom_writer import WrittenSeries

runner = CliRunner()
pytestmark = pytest.mark.timeout(300)


def rows(out: Path) -> list[dict[str, str]]:
    with out.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(bundle: Path, out: Path | str, *words: object) -> tuple[int, str]:
    command = ["predict", *words, "--model", bundle, "--assume-stripped", "--out", out]
    result = runner.invoke(app, [str(word) for word in command])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, " ".join(result.output.split())


def told(row: dict[str, str]) -> tuple[str, ...]:
    names = (
        "status",
        "prediction",
        "confidence",
        "p_LGG",
        "p_HGG",
        "p_healthy",
        "flags",
        "error",
        "brain_ml",
    )
    return tuple(row[name] for name in names)


def archive(path: Path, members: dict[str, Path]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, file in members.items():
            packed.write(file, name)
    return path


def pack(slices: list[Path], root: Path, draw: random.Random) -> None:
    """One scan as a folder, over folders, in archives, and with copies of slices, of itself, and junk beside it."""
    names = {file.name: file for file in slices}
    for place in ("folder", "copies/a", "copies/b", "junk"):
        shutil.copytree(slices[0].parent, root / place)
    parts = [root / f"spread/{part}" for part in range(3)]
    for part in parts:
        part.mkdir(parents=True)
    for file in slices:
        shutil.copy(file, draw.choice(parts))
    again = draw.choice(slices)
    shutil.copy(again, parts[0] / f"{again.name} again")
    (root / "junk/._00001").write_bytes(b"\0\5\x16\7" + bytes(300))
    (root / "junk/Thumbs.db").write_bytes(b"x")
    inner = archive(root / "inner.zip", {f"deep/{name}": file for name, file in names.items()})
    archive(root / "outer.zip", {"a/in.zip": inner, "__MACOSX/._in.zip": inner})
    archive(root / "both.zip", {f"{copy}/{name}": file for name, file in names.items() for copy in "ab"})


def test_one_scan_in_any_arrangement_gives_one_row_whatever_the_workers(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("dcm2niix")
    rng = np.random.default_rng(3)
    slices = WrittenSeries(rng.integers(1, 900, (22, 26, 20)).astype(np.uint16)).write(tmp_path / "slices")
    pack(slices, tmp_path / "in", random.Random(1))
    tables = []
    for workers in (1, 4):
        out = tmp_path / f"{workers}.csv"
        code, output = run(tiny_bundle, out, tmp_path / "in", "--workers", workers)
        assert code == 0, output
        tables.append(rows(out))
    # copies keep a row each: folder, copies/a and /b, junk, spread, inner.zip, outer.zip, both.zip/a and /b
    for table in tables:
        assert len({(row["path"], row["series"]) for row in table}) == len(table) == 9
        assert {told(row) for row in table} == {told(table[0])}
    assert [(row["path"], told(row)) for row in tables[0]] == [(row["path"], told(row)) for row in tables[1]]


@pytest.fixture
def scans(tmp_path: Path, make_volume: Callable[..., Volume]) -> Path:
    for seed, name in enumerate(("a.nii.gz", "sub/b.nii.gz", f"{'n' * 240}.nii.gz")):
        write_nifti(make_volume(seed=seed), tmp_path / "scans" / "tmp.nii.gz")
        (tmp_path / "scans" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "scans" / "tmp.nii.gz").rename(tmp_path / "scans" / name)
    return tmp_path / "scans"


def test_what_a_run_wrote_is_no_input_of_the_next_wherever_it_is_moved(
    tiny_bundle: Path, scans: Path
) -> None:
    """Maps in the scanned folder doubled the rows at every run; a long name with --maps ended it."""
    out = scans / "r.csv"
    asked = (scans, "--maps", scans / "maps", "--report", scans / "r.html")
    assert run(tiny_bundle, out, *asked)[0] == 0
    first = rows(out)
    assert len(first) == 3 and len(list((scans / "maps").rglob("*.map.nii.gz"))) == 3
    shutil.copytree(scans / "maps", scans / "moved")
    for number, path in enumerate((scans / "moved").rglob("*.nii.gz")):
        path.rename(scans / f"T1 {number}.nii.gz")
    unpacked = nib.load(scans / "T1 0.nii.gz")
    nib.save(unpacked, scans / "T1.nii")
    code, output = run(tiny_bundle, out, *asked)
    assert code == 0 and rows(out) == first
    assert "7 a map that ssclf predict wrote" in output
    assert "3 a table, page or record that ssclf wrote" in output
    code, output = run(tiny_bundle, scans / "named.csv", scans / "T1.nii", scans / "a.nii.gz")
    assert code == 3
    assert ["a map that ssclf predict wrote" in row["error"] for row in rows(scans / "named.csv")] == [
        True,
        False,
    ]


def test_preprocessed_volumes_are_no_scans(
    tiny_bundle: Path, scans: Path, make_volume: Callable[..., Volume]
) -> None:
    for seed, label in enumerate(("HGG", "LGG")):
        write_nifti(make_volume(seed=seed), scans / "cohort" / label / f"{label}.nii.gz")
    result = runner.invoke(
        app, ["preprocess", str(scans / "cohort"), "--contrasts", "t1", "--assume-stripped", "--spacing", "6",
              "--out", str(scans / "done")]
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (scans / "done/volumes").rename(scans / "taken along")
    (scans / "done/settings.json").unlink()
    run(tiny_bundle, scans / "r.csv", scans)
    assert len(rows(scans / "r.csv")) == 5


def test_named_files_that_are_missing_cost_their_rows(tiny_bundle: Path, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "dangling.nii.gz").symlink_to(tmp_path / "nothing")
    (tmp_path / "itself.zip").symlink_to(tmp_path / "itself.zip")
    named = [
        scans / "a.nii.gz",
        tmp_path / "gone.nii.gz",
        tmp_path / "dangling.nii.gz",
        tmp_path / "itself.zip",
    ]
    named.append(tmp_path / f"{'l' * 300}.nii.gz")
    code, output = run(tiny_bundle, tmp_path / "r.csv", *named)
    assert code == 3, output
    found = {Path(row["path"]).name[:12]: row for row in rows(tmp_path / "r.csv")}
    assert [name for name, row in found.items() if row["status"] == "ok"] == ["a.nii.gz"] and len(found) == 5
    assert (
        "is not there" in found["gone.nii.gz"]["error"]
        and "a link to nothing" in found["dangling.nii"]["error"]
    )
    for lost in ("list.csv", "folder"):  # what they list is not known without them
        code, output = run(tiny_bundle, tmp_path / "other.csv", scans, tmp_path / lost)
        assert code == 1 and lost in output


def test_a_table_is_written_to_a_file_of_its_own_only(tiny_bundle: Path, scans: Path, tmp_path: Path) -> None:
    """An empty name was a traceback, a pipe hung the run, a link was replaced and its target stayed old."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "kept.csv").write_text("")
    (tmp_path / "link.csv").symlink_to(tmp_path / "kept.csv")
    (tmp_path / "nowhere.csv").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "beside.json")
    for name in ("pipe.csv", "link.csv", "nowhere.csv", "beside.csv"):
        code, output = run(tiny_bundle, tmp_path / name, scans)
        assert code == 1 and "names the file to write" in output, name
    for name in ("", ".", ".."):
        code, output = run(tiny_bundle, name, scans)
        assert code == 1 and "add a file name" in output, name
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "kept.csv").read_text() == ""


def test_a_working_folder_that_is_gone_is_told_in_one_line(
    tiny_bundle: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    code, output = run(tiny_bundle, tmp_path / "r.csv", scans)
    monkeypatch.chdir(tmp_path)
    assert code == 1 and output.startswith("error: the working folder is gone")


def test_brackets_in_names_are_text(tiny_bundle: Path, scans: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[b]x[/red] :brain:"  # closes what was never opened: markup of that kind raises
    folder.parent.mkdir()
    scans.rename(folder)
    code, output = run(tiny_bundle, folder / "r[red].csv", folder)
    assert code == 0 and "[b]x[/red]:brain:/r[red].csv" in output.replace(" ", "")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older ones look for modules where they are started")
def test_what_lies_where_it_is_started_is_no_program(
    tiny_bundle: Path, make_volume: Callable[..., Volume], tmp_path: Path
) -> None:
    """A clone, and a file that is named as a library: neither is imported by any process."""
    write_nifti(make_volume(), tmp_path / "scans" / "a.nii.gz")
    (tmp_path / "ssclf" / "ssclf").mkdir(parents=True)
    for name in ("numpy.py", "ssclf.py", "nibabel.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    command = Path(sys.executable).with_name(
        "ssclf"
    )  # as people start it; `python -c` would look here itself
    if not command.is_file():
        pytest.skip("ssclf is not installed beside this Python")
    words = [
        "predict",
        "scans",
        "--model",
        tiny_bundle,
        "--assume-stripped",
        "--out",
        "r.csv",
        "--workers",
        2,
    ]
    found = subprocess.run(
        [command, *map(str, words)], cwd=tmp_path, capture_output=True, text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert [row["status"] for row in rows(tmp_path / "r.csv")] == ["ok"]
    assert not (tmp_path / "imported").exists()
