"""Nothing gets out of its folder: names that others wrote, links that others planted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ssclf.domain.visible import visible_lines
from ssclf.domain.volume import Volume
from ssclf.errors import DatasetError, OutputError, VolumeError
from ssclf.io.files import own_folder, whole_file
from ssclf.io.locks import Lock
from ssclf.io.records.map_names import map_name
from ssclf.io.records.results import Journal, ResultRow, row_to_json, write_csv
from ssclf.io.records.tables import defuse, read_table, undefuse, write_table
from ssclf.io.volumes.nifti import read_nifti


def test_voxels_are_not_read_through_a_link_out_of_the_folder(tmp_path: Path) -> None:
    import nibabel as nib

    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    nib.save(nib.Nifti1Pair(np.ones((4, 5, 6), np.int16), np.eye(4)), outside / "pair.hdr")
    (inside / "pair.hdr").write_bytes((outside / "pair.hdr").read_bytes())
    (inside / "pair.img").symlink_to(outside / "pair.img")
    with pytest.raises(VolumeError, match="leads out of its folder"):
        read_nifti(inside / "pair.hdr")
    (inside / "pair.img").unlink()
    (inside / "real").write_bytes((outside / "pair.img").read_bytes())
    (inside / "pair.img").symlink_to("real")
    volume: Volume = read_nifti(inside / "pair.hdr")
    assert volume.data.sum() == 120


@pytest.mark.parametrize("series", ["../../../out", "1.2/../../../x", "/abs", "..", "1\0.2"])
@pytest.mark.parametrize("path", ["a/b.dcm", "../../b.dcm", "/b.dcm"])
def test_a_map_stays_in_its_folder_whatever_a_uid_says(path: str, series: str) -> None:
    name = map_name(path, series)
    assert not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


@pytest.mark.parametrize(
    "cell", ["../x", "/abs/x", "a/../../x", "file:///x", "local://x", "s3://b/../x", "a\0b"]
)
def test_a_cell_of_a_remote_manifest_cannot_leave_its_storage(cell: str, tmp_path: Path) -> None:
    store = pytest.importorskip("ssclf.cluster.store").Store("s3://bucket/folder")
    for use in (
        lambda: store.check_inside(cell),
        lambda: store.fetch(cell, tmp_path),
        lambda: store.fetch_all([cell], tmp_path),
    ):
        with pytest.raises(DatasetError, match="leads elsewhere"):
            use()
    store.check_inside("a/b.nii.gz")
    store.check_inside("s3://other/b.nii.gz")


def test_a_planted_work_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "scratch").mkdir(parents=True)
    (victim / "scratch" / "thesis.txt").write_text("years")
    victim.chmod(0o755)
    (tmp_path / ".r.csv.ssclf-work").symlink_to(victim)
    with pytest.raises(OutputError, match="found a link"), Journal(tmp_path / "r.csv") as journal:
        journal.open()
    assert (victim / "scratch" / "thesis.txt").read_text() == "years"
    assert sorted(p.name for p in victim.iterdir()) == ["scratch"]
    assert victim.stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_work_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    os.chown(tmp_path / "work", 12345, 12345)
    with pytest.raises(OutputError, match="another user"):
        own_folder(tmp_path / "work")


def test_planted_links_are_not_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "new")
    with pytest.raises(OSError):
        Lock(tmp_path / "lock")
    assert not (tmp_path / "new").exists()
    # somebody who guesses the name of a partial file
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    monkeypatch.setattr("ssclf.io.files._kernel", lambda: "0" * 8)
    (tmp_path / ".r.csv.00000000-00000000.partial").symlink_to(target)
    with pytest.raises(OutputError), whole_file(tmp_path / "r.csv") as file:
        file.write("other")
    assert target.read_text() == "mine"


def test_text_of_any_kind_survives_a_table(tmp_path: Path) -> None:
    texts = ["=1", "'=1", "''=1", "'", "''", "'a", "-x", "@", 'a"b', "a;=1", "a,b", "a\t=1", "plain", "a\nb"]
    assert [undefuse(defuse(text)) for text in texts] == texts
    assert not any(defuse(text).startswith(("=", "+", "-", "@")) for text in texts)
    write_table(tmp_path / "t.csv", ("name", "number"), [(text, 1.5) for text in texts])
    lines = (tmp_path / "t.csv").read_bytes().decode("utf-8").split("\r\n")
    assert lines[0] == "name,number" and all(line.startswith('"') for line in lines[1:-1])
    assert [row["name"] for row in read_table(tmp_path / "t.csv").rows] == texts


def test_control_characters_are_shown(tmp_path: Path) -> None:
    assert visible_lines("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\nc\\u202e"
    row = ResultRow("a\x1b[2J.nii", "", "failed", error="b\x07ad")
    write_csv(tmp_path / "r.csv", [row], ["A", "B"])
    written = (tmp_path / "r.csv").read_bytes()
    assert b"\x1b" not in written and b"\x07" not in written and b"a\\x1b[2J.nii" in written
    with pytest.raises(ValueError):
        row_to_json(ResultRow("a", "", "ok", probabilities=(float("nan"), 1.0)))
