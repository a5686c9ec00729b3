from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pebble.pool.channel import WorkerChannel

import ssclf.io.workers
from ssclf.errors import VolumeError
from ssclf.io.workers import run_in_batches, run_in_processes


def work(item: str) -> str:
    """What volumes do to the process that reads them."""
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "hang":
        signal.pause()
    if item == "ended":
        os.kill(os.getpid(), signal.SIGTERM)
    if item == "large":
        return str(len(bytearray(3 << 30)))
    if item == "takes another":
        (channel,) = (found for found in gc.get_objects() if isinstance(found, WorkerChannel))
        channel.recv()
        os.kill(os.getpid(), signal.SIGKILL)
    if item.startswith("/") and not os.path.exists(item):  # noqa: PTH110
        Path(item).touch()
        os.kill(os.getpid() if item.endswith("worker") else os.getppid(), signal.SIGTERM)
        signal.pause()
    if item.startswith("after "):
        while not Path(item.removeprefix("after ")).exists():
            time.sleep(0.05)
        return "LATE"
    if item == "bad":
        raise VolumeError("bad: expected a volume.")
    if item == "memory":
        raise MemoryError
    if item == "bug":
        raise KeyError("field")
    return item.upper()


def test_each_item_costs_only_itself() -> None:
    items = ["a", "crash", "b", "hang", "c", "bad", "memory", "killed", "bug", "d"]
    outcomes = {o.item: o for o in run_in_processes(work, items, workers=2, timeout_s=2)}
    assert sorted(outcomes) == sorted(items)
    assert [outcomes[i].result for i in "abcd"] == ["A", "B", "C", "D"]
    assert "signal 11" in outcomes["crash"].error
    assert "memory" in outcomes["killed"].error
    assert "--timeout 2 s" in outcomes["hang"].error
    assert outcomes["bad"].error == "bad: expected a volume."
    assert "memory" in outcomes["memory"].error
    assert "KeyError" in outcomes["bug"].error


def test_items_are_taken_no_faster_than_they_are_finished() -> None:
    taken = []

    def items() -> object:
        for number in range(20):
            taken.append(number)
            yield str(number)

    outcomes = run_in_processes(work, items(), workers=1)  # type: ignore[arg-type]
    next(outcomes)
    assert len(taken) <= 3
    outcomes.close()  # type: ignore[attr-defined]


def test_stop_finishes_what_was_begun() -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    results = [o.result for o in run_in_processes(work, "abcdefgh", workers=2, stop=stop)]
    assert sorted(str(r) for r in results) == ["A", "B", "C"]


@pytest.mark.parametrize("who", ["worker", "server"])
def test_what_was_ended_from_outside_is_done_again(who: str, tmp_path: Path) -> None:
    """Who stops a service ends all of its processes: every volume in flight got a failed row, for good."""
    items = ["a", str(tmp_path / who), "b"]
    outcomes = {o.item: o for o in run_in_processes(work, items, workers=2)}
    assert [outcomes[item].result for item in items] == [item.upper() for item in items]
    items[1] += "-" + who
    stop = Path(items[1]).exists
    assert items[1] not in {o.item for o in run_in_processes(work, items, workers=2, stop=stop)}
    assert "15" in next(run_in_processes(work, ["ended"], workers=1)).error


def test_an_item_that_was_lost_between_two_processes_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may end a worker that has taken an item and not said so: the run waited for it for ever."""
    monkeypatch.setattr(ssclf.io.workers, "_STUCK_S", 5.0)
    outcomes = {o.item: o for o in run_in_processes(work, ["takes another", "a", "b"], workers=1)}
    assert [outcomes[item].result for item in "ab"] == ["A", "B"]
    assert "signal 9" in outcomes["takes another"].error


def test_a_process_ends_whose_work_was_left_unfinished() -> None:
    """An error leaves the iteration to the end of the interpreter, where no thread begins any more."""
    code = (
        "from ssclf.io.workers import run_in_processes\nfrom os.path import basename\n"
        "left = run_in_processes(basename, ['a', 'b', 'c'], workers=1)\nprint(next(left).result)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "a\n"), done.stderr


def test_a_worker_takes_its_share_of_memory_and_no_more() -> None:
    outcomes = {o.item: o for o in run_in_processes(work, ["large", "a"], workers=1, memory=1 << 30)}
    assert "not enough memory" in outcomes["large"].error and outcomes["a"].result == "A"


def test_what_is_there_together_comes_together_and_waits_for_no_more_than_it_may(tmp_path: Path) -> None:
    sizes = [len(some) for some in run_in_batches(work, "abcdefg", most=lambda: 3, patience_s=600, workers=2)]
    assert sizes == [3, 3, 1]  # the last is the end, and not waited for
    late = tmp_path / "late"
    found = []
    for some in run_in_batches(work, ["a", f"after {late}"], most=lambda: 3, patience_s=0.1, workers=2):
        found.append([outcome.result for outcome in some])
        late.touch()  # were the first kept until the second is there, neither would come
    assert found == [["A"], ["LATE"]]


def test_what_is_held_when_it_stops_is_given() -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    (some,) = run_in_batches(work, "abcdefgh", most=lambda: 8, patience_s=600, workers=2, stop=stop)
    assert sorted(str(outcome.result) for outcome in some) == ["A", "B", "C"]
