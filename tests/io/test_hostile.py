"""What was made to do harm costs its own row: the run ends, within its memory, the good volumes are as before."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from dicom_writer import WrittenSeries
from hostile_writer import KINDS

from ssclf.domain.volume import Volume
from ssclf.io.discovery.sources import discover
from ssclf.io.volumes.dicom_elements import MAX_HEADER_BYTES, Window, read_elements
from ssclf.io.volumes.nifti import write_nifti

pytest.importorskip("dcm2niix")
pytestmark = pytest.mark.timeout(600)

LIMIT = 4 << 30
#: Of the main process, in KiB.
MOST_MEMORY = 1 << 20
GOOD = 3
_RUN = """
import json, sys
from ssclf.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as exc:
    # ru_maxrss would count what the process was before it became Python: a copy of the one that runs the tests
    (peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("ENDED", json.dumps([exc.code or 0, int(peak)]))
"""


def write_good(folder: Path, make_volume: Callable[..., Volume]) -> None:
    """A file, a series in a folder, a series in an archive."""
    write_nifti(make_volume(seed=1), folder / "good" / "file.nii.gz")
    brain = make_volume((14, 26, 20), seed=2).data[0]
    for name, number in (("series", "1.2.3.1"), ("packed", "1.2.3.2")):
        WrittenSeries(brain.clip(0).astype(np.uint16), uid=number).write(folder / "good" / name)
    shutil.make_archive(str(folder / "good" / "packed"), "zip", folder / "good" / "packed")
    shutil.rmtree(folder / "good" / "packed")


def predict(bundle: Path, scans: Path, out: Path) -> tuple[int, int, list[dict[str, str]]]:
    """Exit code, peak memory of the main process in KiB, rows; with 4 GiB of addresses for each process."""
    words = [
        "predict",
        scans,
        "--model",
        bundle,
        "--assume-stripped",
        "--out",
        out,
        "--workers",
        "2",
        "--quiet",
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, words)],
        capture_output=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )
    said = done.stdout.decode(errors="replace")
    assert "ENDED" in said, (done.returncode, said, done.stderr.decode(errors="replace")[-3000:])
    code, peak = json.loads(said.rpartition("ENDED")[2])
    with out.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return code, peak, list(csv.DictReader(file))


def told(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of the good volumes, but for how long they took."""
    good = [row for row in rows if row["path"].startswith("good/")]
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in good]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "scans"
    folder.mkdir()
    yield folder
    for parent, folders, _ in os.walk(folder):  # a user who is not root removes no file from such a folder
        if "closed" in folders:
            Path(parent, "closed").chmod(0o700)


def test_good_volumes_are_as_they_were_without_hostile_ones(
    tree: Path, tmp_path: Path, tiny_bundle: Path, make_volume: Callable[..., Volume]
) -> None:
    write_good(tree, make_volume)
    alone_code, _, alone = predict(tiny_bundle, tree, tmp_path / "alone.csv")
    assert alone_code == 0 and [row["status"] for row in alone] == ["ok"] * GOOD
    for number, write in enumerate(KINDS.values()):
        (tree / f"bad{number}").mkdir()
        write(tree / f"bad{number}")
    code, peak, rows = predict(tiny_bundle, tree, tmp_path / "r.csv")
    assert code == 3 and told(rows) == told(alone)
    assert peak < MOST_MEMORY
    bad = [row for row in rows if not row["path"].startswith("good/")]
    assert {row["status"] for row in bad} == {"failed"} and all(row["error"] for row in bad)
    for number, name in enumerate(KINDS):
        place = f"bad{number}"
        assert any(row["path"] == place or row["path"].startswith(f"{place}/") for row in bad), name
    assert {path.name for path in tmp_path.iterdir()} >= {"alone.csv", "r.csv", "r.json"}
    code, _, again = predict(tiny_bundle, tree, tmp_path / "r.csv")
    assert code == 3 and again == rows


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(8))
def test_any_tree_of_hostile_items(
    seed: int, tree: Path, tmp_path: Path, tiny_bundle: Path, make_volume: Callable[..., Volume]
) -> None:
    draw = random.Random(seed)
    write_good(tree, make_volume)
    _, _, alone = predict(tiny_bundle, tree, tmp_path / "alone.csv")
    for number in range(draw.randrange(1, 10)):
        folder = tree / "/".join(f"d{draw.randrange(3)}" for _ in range(draw.randrange(4))) / f"bad{number}"
        folder.mkdir(parents=True)
        draw.choice(list(KINDS.values()))(folder)
    code, peak, rows = predict(tiny_bundle, tree, tmp_path / "r.csv")
    assert code == 3 and told(rows) == told(alone) and len(told(rows)) == GOOD
    assert peak < MOST_MEMORY
    # a run that goes on from another one's table, of the good volumes alone
    (tmp_path / "alone.json").rename(tmp_path / "resumed.json")
    (tmp_path / "alone.csv").rename(tmp_path / "resumed.csv")
    code, _, resumed = predict(tiny_bundle, tree, tmp_path / "resumed.csv")
    assert code == 3
    assert [row | {"seconds": ""} for row in resumed] == [row | {"seconds": ""} for row in rows]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_hostile_things_are_found_and_nothing_is_raised(name: str, tree: Path) -> None:
    KINDS[name](tree)
    found = discover([tree], contrasts=("t1",))
    assert found.scans and all(len(scan.problem) < 300 for scan in found.scans)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users to become")
def test_a_folder_that_may_be_listed_and_not_searched_costs_its_own_rows() -> None:
    """chmod 744: names can be had, nothing else; asking what one of them is raised."""
    with tempfile.TemporaryDirectory() as name:  # tmp_path may be entered by its owner only
        root = Path(name)
        root.chmod(0o755)
        closed = root / "closed"
        (closed / "below").mkdir(parents=True)
        for file in ("a.nii.gz", "b.dcm", "c.zip", "d.hdr", "e.img"):
            (closed / file).write_bytes(bytes(400))
        (closed / "f.nii.gz").symlink_to(root / "good.nii.gz")
        (root / "good.nii.gz").write_bytes(bytes(400))
        discover([root], contrasts=("t1",))  # imports what it needs
        closed.chmod(0o744)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            if user and closed.stat().st_uid == user:
                closed.chmod(0o400)
            with pytest.raises(PermissionError):
                (closed / "a.nii.gz").stat()
            scans = discover([root], contrasts=("t1",)).scans
        finally:
            os.seteuid(user)
            closed.chmod(0o755)
    told = {scan.path: scan.problem for scan in scans}
    assert set(told) == {
        "good.nii.gz",
        *(f"closed/{n}" for n in ("a.nii.gz", "b.dcm", "c.zip", "d.hdr", "e.img", "below")),
    } | {"closed/f.nii.gz"}
    assert "may not be looked at" in told["closed/b.dcm"] and told["closed/below"] and told["closed/c.zip"]


def test_a_cell_of_300_characters_is_a_row(tree: Path, make_volume: Callable[..., Volume]) -> None:
    write_nifti(make_volume(), tree / "a.nii.gz")
    (tree / "list.csv").write_text(f"subject,path\n1,a.nii.gz\n2,{'x' * 300}.nii.gz\n3,{'y' * 5000}\n")
    scans = discover([tree / "list.csv"], contrasts=("t1",)).scans
    assert [bool(scan.problem) for scan in scans] == [False, True, True]


def test_of_a_header_no_more_is_read_than_it_may_have(tree: Path) -> None:
    """Elements without content went on for hours; and the window counts what it steps over in an archive."""

    class Endless:
        taken = 0

        def read(self, count: int) -> bytes:
            self.taken += count
            return (b"\x09\0\x10\x10\0\0\0\0" * (count // 8 + 1))[:count]

    endless = Endless()
    with pytest.raises(Exception, match="within the first 4 MiB"):
        read_elements(Window(endless, seeks=False), frozenset({0x00280010}))  # type: ignore[arg-type]
    assert endless.taken <= MAX_HEADER_BYTES + (1 << 17)


@pytest.mark.parametrize("case", ["imagetype_not_text", "dropped_slice"])
def test_cases_of_the_security_test(case: str, shared_data: Path) -> None:
    folder = shared_data / "faults" / "hostile" / case
    found = discover([folder], contrasts=("t1",))
    if case == "dropped_slice":
        (archive,) = folder.glob("*.zip")
        for paths in ([folder], [archive]):
            scans = discover(paths, contrasts=("t1",)).scans
            (series,) = (scan for scan in scans if scan.series)
            assert series.contrasts[0].lost == 1  # type: ignore[union-attr]
            assert [scan.problem for scan in scans if not scan.series] == ["cannot be read from the archive."]
    else:
        assert [scan.path for scan in found.scans] == ["a.dcm"]
