"""What a killed process was writing goes with the next start; what a living one writes stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import indent
from typing import Literal

import pytest

from ssclf.errors import ModelError, OutputError
from ssclf.io.files import sweep, whole_file, whole_folder, whole_path, write_whole
from ssclf.io.models.bundle import choose_bundles
from ssclf.io.records.training_run import CONFIG, LAST, own_folder

pytestmark = pytest.mark.timeout(120)
WRITER = """
import signal, sys
from pathlib import Path
from ssclf.io.files import whole_file, whole_folder, whole_path
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background ignores it
kind, path = sys.argv[1], Path(sys.argv[2])
if kind == "file":
    with whole_file(path) as file:
        file.write("half")
        file.flush()
        print("writes", flush=True)
        sys.stdin.read()
if kind == "path":
    with whole_path(path, ending=".nii.gz") as partial:
        partial.write_bytes(bytes(1 << 20))
        print("writes", flush=True)
        sys.stdin.read()
if kind in ("keep", "refuse", "replace"):
    with whole_folder(path, there=kind) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_bytes(bytes(1 << 20))
        print("writes", flush=True)
        sys.stdin.read()
"""


def begin(kind: str, path: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of writing, until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, kind, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None and process.stdout.readline() == "writes\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    process.communicate("")
    return process.returncode


@pytest.mark.parametrize("kind", ["file", "path", "keep", "refuse", "replace"])
def test_the_dead_are_swept_and_the_living_finish(kind: str, tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    (tmp_path / ".a.partial").touch()  # somebody else's
    killed, living = begin(kind, tmp_path / "killed"), begin(kind, tmp_path / "living")
    killed.kill()
    end(killed)
    assert len([path for path in tmp_path.iterdir() if ".partial" in path.name]) == 3
    write_whole(tmp_path / "next", "")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in left if name.startswith(".killed")] == []
    assert len([name for name in left if name.startswith(".living")]) == 1
    assert end(living) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.partial", ".hidden", "living", "next"]


def test_a_process_that_may_finish_clears_away_what_it_wrote(tmp_path: Path) -> None:
    process = begin("refuse", tmp_path / "folder")
    process.send_signal(signal.SIGINT)
    assert end(process) != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["path", "file"])
def test_a_run_that_was_killed_while_it_saved_is_swept_where_it_goes_on(kind: str, tmp_path: Path) -> None:
    """A checkpoint has 184 MB, and each kill left one more."""
    run = tmp_path / "run"
    (run / LAST).parent.mkdir(parents=True)
    for place in (run / LAST, run / CONFIG):
        killed = begin(kind, place)
        killed.kill()
        end(killed)
    with own_folder(run):
        assert [path.name for path in run.rglob(".*")] == [".lock-training"]


def test_a_bundle_in_the_making_is_no_model(tiny_bundle: Path, tmp_path: Path) -> None:
    """It was counted, and asked for, and opened where it was the only one."""
    with whole_folder(tmp_path / "mine") as partial:
        shutil.copytree(tiny_bundle, partial, dirs_exist_ok=True)
        with pytest.raises(ModelError, match="holds 0 bundles"):
            choose_bundles([], {}, tmp_path)
    assert choose_bundles([], {}, tmp_path) == [tmp_path / "mine"]


def test_sigterm_lets_a_command_clear_away(tmp_path: Path) -> None:
    code = (
        f"from ssclf.workflows.interruption import end_orderly\nwith end_orderly():\n{indent(WRITER, '    ')}"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "refuse", str(tmp_path / "bundle")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"writes\n"
        process.terminate()
        assert process.wait() == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("there", ["refuse", "replace"])
@pytest.mark.parametrize("kind", ["file", "empty folder", "folder", "link"])
def test_what_appeared_meanwhile_is_left_alone(
    there: Literal["refuse", "replace"], kind: str, tmp_path: Path
) -> None:
    """An export removed what another had put in its place, to put its own there."""
    path = tmp_path / "bundle"
    with pytest.raises(OutputError, match="appeared while"), whole_folder(path, there=there):
        if kind == "file":
            path.write_text("theirs")
        elif kind == "link":
            path.symlink_to(tmp_path / "nowhere")
        else:
            path.mkdir()
            if kind == "folder":
                (path / "theirs").touch()
    assert list(tmp_path.iterdir()) == [path]
    assert (
        path.is_symlink()
        or path.is_file()
        or [p.name for p in path.iterdir()] == ["theirs"] * (kind == "folder")
    )


def test_what_was_replaced_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    with (
        pytest.raises(OutputError, match="appeared while"),
        whole_folder(path, there="replace"),
        whole_folder(path, there="replace") as faster,
    ):
        (faster / "faster").touch()
    assert [p.name for p in path.iterdir()] == ["faster"] and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_another_machine_go_after_a_day(tmp_path: Path) -> None:
    """Over a network file system their locks may not be seen here."""
    with whole_file(tmp_path / "table.csv") as file:
        ours = Path(file.name)
    machine = ours.name.split(".")[-2].partition("-")[0]
    theirs, earlier = (ours.with_name(ours.name.replace(machine, who)) for who in ("00000000", "4711"))
    for path in (ours, theirs, earlier):
        path.touch()
    sweep(tmp_path)
    assert not ours.exists() and theirs.exists() and earlier.exists()
    for path in (theirs, earlier):
        os.utime(path, (0, 0))
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_planted_link_leads_a_sweep_nowhere(tmp_path: Path) -> None:
    with whole_path(tmp_path / "table.csv") as partial:
        name = partial.name
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "kept").touch()
    (tmp_path / name).symlink_to(tmp_path / "theirs")
    sweep(tmp_path)
    assert (tmp_path / "theirs" / "kept").exists() and (tmp_path / name).is_symlink()
