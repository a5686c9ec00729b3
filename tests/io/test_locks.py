from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ssclf.errors import OutputError
from ssclf.io.locks import Lock, lock

HOLDER = """
import sys
from pathlib import Path
from ssclf.io.locks import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.take(shared=sys.argv[2] == "shared"), flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(path: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline().strip() == "True"
    try:
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_a_lock_keeps_others_away_until_its_process_is_gone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held_by_another(path, "alone") as holder:
        with lock(path) as ours:
            assert not ours
        with Lock(path) as file:
            assert not file.take() and not file.take(shared=True)
        holder.kill()
        holder.wait()
        with lock(path) as ours:
            assert ours
    assert path.read_bytes() == b""


def test_a_shared_lock_keeps_away_only_who_wants_it_alone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with held_by_another(path, "shared"), Lock(path) as file:
        assert not file.take()
        assert file.take(shared=True)
    with Lock(path) as file:
        assert file.take(wait=True)


def test_a_lock_is_held_beyond_a_block_until_it_is_closed(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / ".lock"), Lock(tmp_path / ".lock")
    assert first.take() and not second.take()
    first.close()
    assert second.take()
    second.close()


def test_a_lock_file_that_was_removed_keeps_nobody_away_and_is_made_anew(tmp_path: Path) -> None:
    """A run that ended removed its folder while the next had opened the lock in it: two runs held "the" lock."""
    path = tmp_path / "work" / "lock"
    path.parent.mkdir()
    ending, next_run, third = Lock(path), Lock(path), Lock(path)
    assert ending.take()
    path.unlink()
    ending.close()
    assert next_run.take() and path.exists()
    assert not third.take()
    path.unlink()
    path.parent.rmdir()
    next_run.close()
    with third, pytest.raises(FileNotFoundError):
        third.take()


def test_a_lock_in_no_folder_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "absent" / ".lock"
    with pytest.raises(OutputError, match=r"\.lock: cannot be written"), lock(path):
        pass
    with pytest.raises(FileNotFoundError):
        Lock(path)
