"""Work spread over processes, so that a file that crashes, hangs or eats memory costs itself and nothing else."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from pebble import ProcessExpired, ProcessPool

from ssclf.errors import MissingDependencyError, ResourceError, SsclfError
from ssclf.io.memory import limit_memory

#: Starts of new workers, one after the other, with which no item was finished.
_MOST_RENEWALS = 10
#: Python looks for no module in the folder where it was started.
_SAFE_PATH = "PYTHONSAFEPATH"
#: How long no worker may take an item before they are taken for stuck: longer than any of them needs to start.
_STUCK_S = 300.0
#: How long to wait for an outcome until the processes are looked at.
_TICK_S = 0.5
#: What ending them may take.
_END_S = 10.0
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or one line that says why there is none."""

    item: Item
    result: Result | None
    error: str = ""


class WithoutScript(BaseProcess):
    """A process that does not run the main script again, as multiprocessing's would: that script may not guard its
    calls, may come from stdin, or may import what costs seconds."""

    def start(self) -> None:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = script


class _Worker(WithoutScript, ForkServerProcess):
    pass


class _Context(ForkServerContext):
    Process = _Worker


def run_in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    timeout_s: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    pool: Workers | None = None,
    memory: int | None = None,
) -> Iterator[Outcome[Item, Result]]:
    """Call a function on every item in worker processes; outcomes come in the order of completion.

    At most two items a worker are under way, so that memory does not grow with their number.

    Args:
        function: a picklable callable (an importable module's function, or a partial of one; none of a script).
        items: picklable; taken lazily.
        timeout_s: after this long a worker is killed and its item gets an error.
        stop: asked before each new item; once true, nothing is begun, and what is in flight is finished, or has no
            outcome where its process was ended as well.
        pool: which this call leaves running; None: one of its own, with so much `memory` for each (see `Workers`).

    Raises:
        MissingDependencyError: the system has no semaphores, as in a container without /dev/shm.
    """
    batches = run_in_batches(
        function, items, workers=workers, timeout_s=timeout_s, stop=stop, pool=pool, memory=memory
    )
    with closing(batches):
        for (outcome,) in batches:
            yield outcome


def run_in_batches(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    most: Callable[[], int] = lambda: 1,
    patience_s: float = 0.0,
    **settings: Any,
) -> Generator[list[Outcome[Item, Result]], None, None]:
    """As `run_in_processes`, with outcomes that are there together.

    Args:
        most: so many at once; asked with each outcome.
        patience_s: how long the first waits for others that are not there yet.
        settings: see `run_in_processes`. Beyond what is under way there, outcomes that wait are held.
    """
    held, first = list[Outcome[Item, Result]](), 0.0

    def left() -> float:
        return max(first + patience_s - time.monotonic(), 0.0) if held else _TICK_S

    with closing(_outcomes(function, items, left, **settings)) as outcomes:
        for outcome in outcomes:
            if outcome is not None:
                first = first if held else time.monotonic()
                held.append(outcome)
            if held and (len(held) >= most() or (outcome is None and not left())):
                together, held = held, []
                yield together
    if held:
        yield held


def _outcomes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    tick: Callable[[], float],
    *,
    workers: int,
    timeout_s: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    pool: Workers | None = None,
    memory: int | None = None,
) -> Generator[Outcome[Item, Result] | None, None, None]:
    """See `run_in_processes`. None: for as long as `tick` said when it was asked, there was none."""
    running = pool or Workers(workers, memory)
    remaining, again, ended = iter(items), list[Item](), list[Item]()
    pending, watch = dict[Future[Any], Item](), _Watch()
    try:
        while True:
            while len(pending) < 2 * workers and not stop():
                again += itertools.islice(remaining, not again)
                if not again:
                    break
                item = again.pop()
                try:
                    pending[running.schedule(partial(_call, function, item), timeout_s)] = item
                except BrokenProcessPool:
                    again += [item, *_taken(pending)]
                    running.renew()
            if not pending:
                return
            done, _ = wait(pending, timeout=tick(), return_when=FIRST_COMPLETED)
            if not done:
                yield None
            # as they were given, not as a set has them
            for future in [each for each in pending if each in done]:
                item = pending.pop(future)
                # who ends a service ends all of its processes: that says nothing of the item
                if not _was_ended(future) or (item in ended and not _soon(stop)):
                    running.renewals = 0
                    yield _outcome(item, future, timeout_s)
                elif not _soon(stop):
                    ended.append(item)
                    again.append(item)
            if any(map(_was_ended, done)) or watch.is_stuck(pending):
                again += _taken(pending)
                running.renew()
    finally:
        for future in pending:
            future.cancel()
        if pool is None:
            running.stop()


class _Watch:
    """One that is killed in the middle of a message may take an item, or the right to take one, with it."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def is_stuck(self, pending: Iterable[Future[Any]]) -> bool:
        """Whether for long nothing was done of what is to do."""
        now = time.monotonic()
        if any(future.running() or future.done() for future in pending):
            self._since = now
        elif now - self._since > _STUCK_S:
            self._since = now
            return True
        return False


def _taken(pending: dict[Future[Any], Item]) -> list[Item]:
    """All that was under way, of which nothing more will be heard."""
    items = list(pending.values())
    pending.clear()
    return items


class Workers:
    """Worker processes for several calls of `run_in_processes`; they end with this process."""

    def __init__(self, count: int, memory: int | None = None) -> None:
        """Start them.

        Args:
            memory: bytes that each may take (Linux); what needs more is that item's error. None: as many as there are.

        Raises:
            MissingDependencyError: the system has no semaphores, as in a container without /dev/shm.
        """
        self._start = partial(_start_pool, count, memory)
        self._pool = self._start()
        self.renewals = 0

    def schedule(self, call: Callable[[], Any], timeout_s: float | None) -> Future[Any]:
        """What a picklable call will have returned or raised; TimeoutError where it took longer.

        Raises:
            BrokenProcessPool: so many of them ended at once that pebble gives up.
        """
        try:
            future: Future[Any] = self._pool.schedule(call, timeout=timeout_s)
        except RuntimeError as exc:
            raise BrokenProcessPool(str(exc)) from exc
        return future

    def renew(self) -> None:
        """Start new ones in place of those that are left.

        Raises:
            ResourceError: they end as often as they are started.
        """
        self.stop()
        self.renewals += 1
        if self.renewals > _MOST_RENEWALS:
            raise ResourceError("worker processes end as soon as they are started; look what ends them.")
        self._pool = self._start()

    def stop(self) -> None:
        self._pool.stop()
        if sys.is_finalizing():  # no thread begins or goes on any more; workers end with us
            return
        # Where one was killed in the middle of a message, pebble may wait for the rest of it.
        ending = threading.Thread(target=self._pool.join, daemon=True)
        ending.start()
        ending.join(_END_S)


def _start_pool(workers: int, memory: int | None) -> ProcessPool:
    # Forked from a small server that has imported what workers need: as clean as spawn, as quick as fork.
    context = _Context()
    context.set_forkserver_preload(["ssclf.io.preparation"])
    with _as_workers_need_it():
        forkserver.ensure_running()
    try:
        context.Lock()
    except OSError as exc:
        raise MissingDependencyError(
            f"worker processes need semaphores, and this system gives none ({exc.strerror}); "
            "a container needs a writable /dev/shm (a few kilobytes are enough)."
        ) from exc
    # the server keeps the environment that it was started in
    ours = {
        name: value for name, value in os.environ.items() if name.startswith("SSCLF_") or name == _SAFE_PATH
    }
    return ProcessPool(
        max_workers=workers, context=context, initializer=_start_worker, initargs=(memory, ours)
    )


@contextmanager
def _as_workers_need_it() -> Iterator[None]:
    """Workers inherit their server's environment: a thread each for numpy, or they fight over the cores; and what lies
    where we were started, such as a clone of ssclf, is no module (Python 3.11 and later)."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", _SAFE_PATH)
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker(memory: int | None, environment: Mapping[str, str]) -> None:
    """Signals to the terminal's process group are for the parent, which decides; its death ends us."""
    os.environ.pop(_SAFE_PATH, None)  # programs that we start are their own
    os.environ.update(environment)
    if memory is not None:
        limit_memory(memory)
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """However the process ends that started this one, this one ends too."""
    pr_set_pdeathsig = 1
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):  # Linux
        libc.prctl(pr_set_pdeathsig, signal.SIGKILL)
    # A fork server may be our parent, and lives as long as one of us does; who waits for us is another process.
    started_by = parent_process()
    if started_by is not None:
        threading.Thread(target=_end_with, args=(started_by.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for_any([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _call(function: Callable[[Item], Result], item: Item) -> tuple[Result | None, str]:
    """Errors travel as text: an exception's own arguments may not survive the way between processes."""
    try:
        return function(item), ""
    except SsclfError as exc:
        return None, str(exc)
    except MemoryError:
        return None, "not enough memory for this volume; free some, or use fewer --workers."
    except OSError as exc:
        return None, f"cannot be read ({exc.strerror or type(exc).__name__})."
    except Exception as exc:
        # not its text, which may quote a header
        place = traceback.extract_tb(exc.__traceback__)[-1]
        return None, (
            f"unexpected {type(exc).__name__} ({Path(place.filename).name}, line {place.lineno}); please report this "
            "volume's format to ssclf."
        )


def _was_ended(future: Future[Any]) -> bool:
    """Whether a worker was told to end by somebody else, or lost the server that it came from."""
    told_to_end, no_server = (signal.SIGTERM, -signal.SIGTERM), 255  # pebble's way, and the system's
    exc = future.exception()
    return _is_broken(future) or (
        isinstance(exc, ProcessExpired) and exc.exitcode in (*told_to_end, no_server)
    )


def _is_broken(future: Future[Any]) -> bool:
    """Whether so many workers ended at once that pebble gives up."""
    return isinstance(future.exception(), BrokenProcessPool)


def _soon(stop: Callable[[], bool]) -> bool:
    """Whether this process is told to stop as well, which may reach it after its workers."""
    never = threading.Event()
    return stop() or (never.wait(0.5) or stop())


def _outcome(item: Item, future: Future[Any], timeout_s: float | None) -> Outcome[Item, Any]:
    try:
        result, error = future.result()
        return Outcome(item, result, error)
    except FutureTimeout:
        return Outcome(item, None, f"took longer than --timeout {timeout_s:g} s and was stopped.")
    except ProcessExpired as exc:
        hint = "; the system may have run out of memory" if exc.exitcode == -signal.SIGKILL else ""
        return Outcome(item, None, f"the process that read it died ({how_it_died(exc.exitcode)}){hint}.")
    except BrokenProcessPool:
        return Outcome(item, None, "the process that read it died, with all others.")


def how_it_died(code: int) -> str:
    """An exit code of multiprocessing's, in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
