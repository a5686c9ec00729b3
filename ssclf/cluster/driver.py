"""`ssclf predict SOURCE --out DIR --ray ADDRESS`: the same rows, from the nodes of a Ray cluster.

    plan (tasks)        names → partitions of scans                        OUT/_plan/
    Ray Data            read → prepare (CPU tasks) → classify (actors)     OUT/_stage/part=NNNNN/
    finish (tasks)      rows against the plan, one each, sorted            OUT/part-NNNNN.parquet

Ray schedules, moves arrays, holds back what runs ahead, and repeats what a lost node had. What it repeats may be
staged twice; a partition appears once it has exactly one row for each volume of its plan, and only then. This
process sees numbers of partitions and counts of rows, never volumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import heapq
import json
import logging
import os
import queue
import secrets
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

# Ray reports usage to its makers unless told not to before it is imported.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A thread that is late would start a cluster of its own.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# Its core warns, at the level of errors, of arguments that an actor needs to start again; Ray Data keeps them.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
import ray
import ray.data
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode

from ssclf import __version__
from ssclf.cluster.inventory import Selection, Settled, Source
from ssclf.cluster.node_scratch import remove_run
from ssclf.cluster.partitions import decode_results
from ssclf.cluster.store import Store
from ssclf.cluster.tasks import (
    Attempts,
    Classify,
    Fatal,
    Job,
    Part,
    Unfinished,
    finish,
    finish_anyway,
    join_folders,
    look_at,
    part_name,
    prepare_batch,
    probe,
    read_todo,
    settle_units,
    walk,
)
from ssclf.config import ClusterConfig, PredictConfig, config_to_dict
from ssclf.errors import DatasetError, OutputError, SsclfError
from ssclf.io.locks import Lock
from ssclf.io.models.bundle import Bundle
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.paths import check_output_file
from ssclf.io.records.results import ResultRow, write_csv
from ssclf.workflows.classification import Origin, method_digest, open_models
from ssclf.workflows.interruption import exit_code, note_signals

log = logging.getLogger(__name__)
T = TypeVar("T")
_PLAN = "_plan/plan.json"
_RUN = "run.json"
#: Of a copy of the models on CPUs. Two small copies do more than one large one, and hold their inputs twice.
_THREADS = 2


@dataclass(frozen=True)
class ClusterSummary:
    """What a run did; `reused` counts partitions that were complete before it."""

    volumes: int
    failed: int
    parts: int
    reused: int
    other_files: Mapping[str, int]
    interrupted: int = 0

    @property
    def exit_code(self) -> int:
        """Contract, "Exit codes"."""
        return exit_code(failed=bool(self.failed), interrupted=self.interrupted)


def predict_on_ray(
    source: str,
    out: str,
    models: Sequence[Path],
    config: PredictConfig,
    cluster: ClusterConfig,
    *,
    csv: Path | None = None,
    on_start: Callable[[int, int], None] = lambda volumes, parts: None,
    on_part: Callable[[Part], None] = lambda part: None,
) -> ClusterSummary:
    """Classify everything found under a source, on a cluster.

    Args:
        source: folder, file or manifest, as a path that all nodes see or an fsspec URL such as s3://bucket/scans.
        out: folder for the partitions, likewise; what an earlier run has finished there is kept.
        models: bundles on this machine; they travel to the nodes, where their checksums are verified again.
        csv: also write the table of all partitions here, on this machine.
        on_start: called with the number of volumes and of partitions.
        on_part: called with every partition, as it is complete.

    Raises:
        SsclfError: nothing can be done at all. What one volume cannot do is a row.
    """
    ensemble = open_models(models, config)
    store = Store.at(out)
    if csv:
        check_output_file("csv", csv)
    # Ray's core takes over SIGTERM as it starts: ours goes after it.
    saying = "stopping; the same command goes on later"
    with _one_run(store), _connected(cluster), note_signals(saying) as stopped:
        run = _Run(source, store, ensemble.bundles, ensemble, config, cluster, lambda: bool(stopped))
        try:
            summary = run.go(on_start, on_part)
            if csv and not stopped:
                write_csv(csv, run.rows_in_order(), ensemble.class_names)
        except _Stopped:
            summary = run.summary()
        except RayTaskError as exc:
            if isinstance(exc.cause, SsclfError):
                raise exc.cause from None
            raise
        except RayError as exc:
            raise DatasetError(
                f"the Ray cluster failed ({type(exc).__name__}); finished partitions and staged rows are kept, "
                "the same command goes on once it is back."
            ) from exc
        finally:
            run.clean_nodes()
    return dataclasses.replace(summary, interrupted=stopped[0]) if stopped else summary


@dataclass(frozen=True)
class _Arrived(Generic[T]):
    """A batch, passed on from another thread."""

    batch: T


@dataclass(frozen=True)
class _Ended:
    """There are no more batches: they are through, or what made them has failed."""

    error: BaseException | None = None


class _Stopped(Exception):  # noqa: N818 - no error
    """The user wants an end."""


@contextlib.contextmanager
def _one_run(out: Store) -> Iterator[None]:
    """Two runs in one folder would each finish what the other has begun; object stores have no locks."""
    if out.local is None:
        yield
        return
    try:
        out.local.mkdir(parents=True, exist_ok=True)
        lock = Lock(out.local / ".lock")
    except OSError as exc:
        raise OutputError(f"{out.url}: cannot be written ({exc.strerror}).") from exc
    with lock:
        if not lock.take():
            raise OutputError(f"{out.url}: another ssclf run is writing there; wait for it.")
        yield


@contextlib.contextmanager
def _connected(cluster: ClusterConfig) -> Iterator[None]:
    """Ray for the time of the block; a connection of the caller's own is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address == "local":
        # one core is enough to run, but not for a task and an actor to be counted side by side
        cores = max(2, len(os.sched_getaffinity(0)))
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cores}
        # Ray listens on every interface. Since 2.59 it asks for a token where it starts a cluster itself; one of this
        # run, known to its processes alone, instead of a file in the home folder that every run shares.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        options |= {"address": cluster.address}
    try:
        with _silent_stderr():
            ray.init(**options)
    except (ConnectionError, RayError, RuntimeError, ValueError) as exc:
        why = str(exc).strip().split("\n")[0]
        raise DatasetError(
            f"--ray {cluster.address}: no Ray cluster answers there ({why}); start one with "
            "`ray start --head`, give its address as host:6379, or use --ray local."
        ) from exc
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's core tells of itself past Python's logging; what goes wrong comes as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@dataclass
class _Run:
    """The driver's side. What it holds grows with the number of partitions only."""

    source_text: str
    out: Store
    bundles: tuple[Bundle, ...]
    ensemble: Ensemble
    config: PredictConfig
    cluster: ClusterConfig
    stop: Callable[[], bool]
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    done: dict[int, Part] = field(default_factory=dict)
    other: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0) + time.perf_counter() - begin, 2)

    def go(self, on_start: Callable[[int, int], None], on_part: Callable[[Part], None]) -> ClusterSummary:
        ctx = ray.data.DataContext.get_current()
        ctx.enable_progress_bars = False
        ctx.print_on_execution_start = False
        # A task gives one block: what Ray repeats after a loss must fall into the same pieces as before.
        ctx.target_max_block_size = None
        # What dies with its process is repeated, within the limit of `Attempts`. What our own code raises on a node
        # is no volume's fault (those are rows by then) and ends the run.
        ctx.max_errored_blocks = 0
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        with self._timed("send the models"):
            job = self._job()
        with self._timed("plan"):
            plan = self._plan(job)
        volumes = sum(plan.values())
        if not volumes:
            others = "; ".join(f"{count} {reason}" for reason, count in sorted(self.other.items()))
            raise DatasetError(
                f"{self.source_text}: expected volumes (NIfTI, MGZ, NRRD, MetaImage or DICOM), "
                + (f"found none, but left out: {others}." if others else "found no files at all.")
            )
        on_start(volumes, len(plan))
        left: dict[int, int] = {}
        for number, state in self._spread(look_at, job, plan):
            if isinstance(state, Part):
                self.reused += 1
                self._complete(state, on_part)
            else:
                left[number] = state.volumes
        log.info("%d partitions, %d of them complete", len(plan), self.reused)
        # What dies with its process takes its batch along: the second time everything goes alone, so that a volume
        # that kills costs its own row. What has none after that has failed.
        for batch in (self.cluster.batch, 1):
            with self._timed("classify"):
                self._classify(job, left, batch, on_part)
            left = dict(self._missing(job, left, on_part))
            if not left:
                break
            log.warning("%d volumes were lost with the processes that had them", sum(left.values()))
        for _, part in self._spread(finish_anyway, job, left):
            self._complete(part, on_part)
        self._close(job, plan)
        return self.summary()

    def _job(self) -> Job:
        """Send the models out and see that the nodes are what they must be."""
        config = dataclasses.replace(self.config, threads=self.config.threads or _THREADS)
        gpus = ray.cluster_resources().get("GPU", 0)
        if config.device == "cuda" and not gpus:
            raise DatasetError("--device cuda: the Ray cluster has no GPU; start its nodes with --num-gpus.")
        names = [f"model-{index}" for index in range(len(self.bundles))]
        files: dict[str, Any] = {}
        for name, bundle in zip(names, self.bundles, strict=True):
            inside = [bundle.path] if bundle.path.is_file() else sorted(bundle.path.iterdir())
            files |= {f"{name}/{path.name}": np.fromfile(path, np.uint8) for path in inside if path.is_file()}
        paths = tuple(
            f"{name}/{bundle.path.name}" if bundle.path.is_file() else name
            for name, bundle in zip(names, self.bundles, strict=True)
        )
        extraction = {path.name: np.fromfile(path, np.uint8) for path in self.bundles[0].extraction}
        here = OnNode(ray.get_runtime_context().get_node_id(), soft=False)
        job = Job(
            run=self.id,
            version=__version__,
            source=Source.at(self.source_text),
            out=self.out,
            selection=Selection(self.ensemble.contrasts, config.pattern, config.series, config.keep_uids),
            config=config,
            settings=self.ensemble.settings,
            class_names=self.ensemble.class_names,
            # partitions are kept or not: none is opened to review its rows again
            method=method_digest(self.ensemble, self.config) + str(config.review_below).encode(),
            origin=Origin.of(self.ensemble),
            bundles=paths,
            models=ray.put(files),
            extraction=ray.put(extraction),
            attempts=ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote(),
        )
        token = f"_plan/{self.id}.token"
        self.out.write(token, b"")
        try:
            self._wait(ray.remote(probe).options(num_cpus=0).remote(job, token))
        finally:
            self.out.remove(token)
        return job

    def _plan(self, job: Job) -> dict[int, int]:
        """Partition → number of volumes. An unfinished run goes on with its own plan."""
        about = {
            "source": job.source.base.url,
            "file": job.source.file,
            "method": hashlib.sha256(job.method).hexdigest(),
            "partition": self.cluster.partition,
        }
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            plan = json.loads(self.out.read(_PLAN))
            if all(plan[name] == value for name, value in about.items()) and not plan["finished"]:
                self.other = Counter(plan["other_files"])
                return {int(number): count for number, count in plan["volumes"].items()}
        self.out.remove("_plan")
        walking = ray.remote(walk).options(num_cpus=0)
        count, other = self._wait(walking.remote(job, self.cluster.partition))
        self.other = Counter(other)
        volumes: dict[int, int] = {}
        left_out: dict[int, Mapping[str, int]] = {}
        dicom: list[int] = []
        for number, settled in self._spread(settle_units, job, range(count)):
            volumes[number], left_out[number] = settled.volumes, settled.other_files
            dicom += [number] if settled.dicom else []
        if dicom:
            joined: list[Settled] = self._wait(
                ray.remote(join_folders).options(num_cpus=1).remote(job, sorted(dicom))
            )
            for settled in joined:
                volumes[settled.number] = settled.volumes
                left_out[settled.number] = settled.other_files
        for counts in left_out.values():
            self.other.update(counts)
        plan = {
            **about,
            "volumes": dict(sorted(volumes.items())),
            "other_files": dict(self.other),
            "finished": False,
        }
        self.out.write(_PLAN, json.dumps(plan).encode())
        return dict(sorted(volumes.items()))

    def _classify(
        self, job: Job, left: Mapping[int, int], batch: int, on_part: Callable[[Part], None]
    ) -> None:
        """Everything that is left, through Ray Data; partitions are finished as their last rows come in."""
        if not sum(left.values()):
            return
        actors = self._actors(job)
        data = (
            ray.data.from_items([{"part": number} for number in left], override_num_blocks=len(left))
            .flat_map(partial(read_todo, job=job), num_cpus=0.1)
            .repartition(target_num_rows_per_block=batch)
            .map_batches(partial(prepare_batch, job=job), batch_size=None, num_cpus=1)
            .map_batches(Classify, fn_constructor_args=(job,), batch_size=None, **actors)
        )
        batches = data.iter_batches(batch_size=None, prefetch_batches=0)
        # rows that each partition still waits for, as far as the actors have said
        waiting = dict(left)
        finishing: set[Any] = set()
        finisher = ray.remote(finish).options(num_cpus=0)
        with contextlib.closing(self._polled(batches)) as arriving:
            for outcome in (one for batch in arriving for one in batch["outcome"]):
                if isinstance(outcome, Fatal):
                    raise outcome.error
                for number, count in outcome.rows.items():
                    waiting[number] -= count
                    # Only a guess: what a lost node had done is staged, and counted, once more. `finish` looks at the
                    # rows themselves; where it came too early, the partition is among what is missing in the end.
                    if waiting[number] <= 0:
                        finishing.add(finisher.remote(job, number))
                # what is finished by now is told by now, and what is not keeps no batch waiting
                if finishing:
                    ready, _ = ray.wait(list(finishing), num_returns=len(finishing), timeout=0)
                    for reference in ready:
                        finishing.remove(reference)
                        self._finished(ray.get(reference), on_part)
        for reference in finishing:
            self._finished(self._wait(reference), on_part)

    def _finished(self, state: Part | Unfinished, on_part: Callable[[Part], None]) -> None:
        if isinstance(state, Part):
            self._complete(state, on_part)

    def _complete(self, part: Part, on_part: Callable[[Part], None]) -> None:
        self.done[part.number] = part
        on_part(part)

    def _missing(
        self, job: Job, left: Mapping[int, int], on_part: Callable[[Part], None]
    ) -> Iterator[tuple[int, int]]:
        """Partitions that lack rows still, and how many."""
        for number, state in self._spread(finish, job, [n for n in left if n not in self.done]):
            if isinstance(state, Part):
                self._complete(state, on_part)
            else:
                yield number, state.volumes

    def _actors(self, job: Job) -> dict[str, Any]:
        """How many copies of the models, and what each of them asks of a node."""
        resources = ray.cluster_resources()
        cpus, gpus = resources.get("CPU", 1), resources.get("GPU", 0)
        share = self.cluster.gpus_per_actor
        if gpus and self.config.network_device != "cpu":
            count = self.cluster.actors or max(1, int(gpus / share))
            return {"num_gpus": share, "num_cpus": 0.5, "concurrency": count}
        # On CPUs the network shares the cores with reading, and takes most of their time: copies enough to use all
        # of them, and less asked for than they use, so that readers fit between. Asking for as much as a reader
        # would make Ray fuse the two, and reading wait for the network.
        count = self.cluster.actors or max(1, int(cpus / job.config.threads))
        return {"num_cpus": 0.375 * job.config.threads, "concurrency": (1, count)}

    def _close(self, job: Job, plan: Mapping[int, int]) -> None:
        """Remove what belongs to no partition of this plan, and say what the run was."""
        names = {part_name(number) for number in plan}
        for entry in self.out.entries():
            if entry.name.startswith("part-") and entry.name not in names:
                self.out.remove(entry.name)
        self.out.remove("_stage")
        about = json.loads(self.out.read(_PLAN))
        self.out.write(_PLAN, json.dumps({**about, "finished": True}).encode())
        summary = self.summary()
        run = {
            "ssclf_version": __version__,
            "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
            "config": config_to_dict(self.config),
            "models": [
                {
                    "name": b.spec.name,
                    "sha256": b.sha256,
                    "engine": self.ensemble.engine,
                    "precision": precision,
                    "synthetic": b.spec.synthetic,
                }
                for b, precision in zip(self.ensemble.bundles, self.ensemble.precisions, strict=True)
            ],
            "class_names": list(self.ensemble.class_names),
            "volumes": summary.volumes,
            "failed": summary.failed,
            "partitions": summary.parts,
            "other_files": dict(sorted(summary.other_files.items())),
            "seconds": self.seconds,
            "notice": "Research use only, not a medical device.",
        }
        self.out.write(_RUN, json.dumps(run, indent=1, allow_nan=False).encode())

    def summary(self) -> ClusterSummary:
        return ClusterSummary(
            volumes=sum(part.volumes for part in self.done.values()),
            failed=sum(part.failed for part in self.done.values()),
            parts=len(self.done),
            reused=self.reused,
            other_files=dict(self.other),
        )

    def rows_in_order(self) -> Iterator[ResultRow]:
        """Every row, sorted as in `results.csv`; memory holds the partitions whose keys overlap."""
        coming = sorted((p for p in self.done.values() if p.volumes), key=lambda p: p.first, reverse=True)
        open_rows: list[tuple[tuple[str, str], int, ResultRow, Iterator[ResultRow]]] = []
        while coming or open_rows:
            if coming and (not open_rows or coming[-1].first <= open_rows[0][0]):
                part = coming.pop()
                name = part_name(part.number)
                rows = iter(decode_results(self.out.read(name), name)[0])
                first = next(rows)
                heapq.heappush(open_rows, (first.key, part.number, first, rows))
                continue
            _, number, row, rows = open_rows[0]
            yield row
            following = next(rows, None)
            if following is None:
                heapq.heappop(open_rows)
            else:
                heapq.heapreplace(open_rows, (following.key, number, following, rows))

    def _wait(self, reference: Any) -> Any:
        """The result of a task, unless the user wants an end before."""
        while True:
            if self.stop():
                raise _Stopped
            ready, _ = ray.wait([reference], timeout=0.5)
            if ready:
                return ray.get(reference)

    def _spread(
        self, function: Callable[[Job, int], T], job: Job, numbers: Iterable[int]
    ) -> Iterator[tuple[int, T]]:
        """Call a function for many partitions, a few at a time; results as they come."""
        task = ray.remote(function).options(num_cpus=1, max_retries=5)
        shared = ray.put(job)
        window = 2 * int(ray.cluster_resources().get("CPU", 1)) + 2
        remaining = iter(numbers)
        running: dict[Any, int] = {}
        while True:
            for number in remaining:
                running[task.remote(shared, number)] = number
                if len(running) >= window:
                    break
            if not running:
                return
            if self.stop():
                raise _Stopped
            ready, _ = ray.wait(list(running), timeout=0.5)
            for reference in ready:
                yield running.pop(reference), ray.get(reference)

    def _polled(self, batches: Iterable[T]) -> Generator[T, None, None]:
        """Pass batches on from another thread, so that a signal need not wait for the next of them."""
        arrived: queue.SimpleQueue[_Arrived[T] | _Ended] = queue.SimpleQueue()
        left = threading.Event()

        def pull() -> None:
            try:
                for batch in batches:
                    if left.is_set():
                        break
                    arrived.put(_Arrived(batch))
                arrived.put(_Ended())
            except BaseException as exc:  # handed over, raised below
                arrived.put(_Ended(exc))

        pulling = threading.Thread(target=pull, daemon=True)
        pulling.start()
        try:
            while True:
                if self.stop():
                    raise _Stopped
                try:
                    one = arrived.get(timeout=0.5)
                except queue.Empty:
                    continue
                if isinstance(one, _Arrived):
                    yield one.batch
                elif one.error is not None:
                    raise one.error
                else:
                    return
        finally:
            # Where an error ends it early, Ray's reading should not outlive the connection. A signal waits for nothing:
            # the thread goes with this process, and is told nothing, or it would close what is being torn down.
            if not self.stop():
                left.set()
                pulling.join(timeout=10)

    def clean_nodes(self) -> None:
        """Remove the run's files from every node; one that is gone has taken them along, or cleans up later."""
        with contextlib.suppress(RayError, RuntimeError):
            task = ray.remote(remove_run)
            running = [
                task.options(num_cpus=0, scheduling_strategy=OnNode(node["NodeID"], soft=False)).remote(
                    self.id
                )
                for node in ray.nodes()
                if node["Alive"]
            ]
            ray.wait(running, num_returns=len(running), timeout=10)
