"""What nodes do for a partition, called here as Ray would call it there."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest

from ssclf.config import PredictConfig, PreprocessConfig
from ssclf.errors import ParityError
from ssclf.io.discovery.scans import Scan
from ssclf.io.preparation import SkullError
from ssclf.io.records.results import ResultRow

pytest.importorskip("ray", reason="pip install 'ssclf[ray]'")
pytest.importorskip("pyarrow", reason="pip install 'ssclf[ray]'")
from ssclf.cluster.inventory import Selection, Source, plan_name
from ssclf.cluster.partitions import Planned, decode_results, encode_plan, encode_results
from ssclf.cluster.store import Store
from ssclf.cluster.tasks import Fatal, Job, Part, Unfinished, finish, finish_anyway, look_at, part_name
from ssclf.workflows.classification import Origin

CLASSES = ("LGG", "HGG")
STAGED = "_stage/part=00000/run-{}.parquet"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job without models: what finishes a partition needs none."""
    return Job(
        run="run",
        version="",
        source=Source("scans", Store.at(str(tmp_path))),
        out=Store.at(str(tmp_path / "out")),
        selection=Selection(("t1ce",)),
        config=PredictConfig(),
        settings=(PreprocessConfig(),),
        class_names=CLASSES,
        method=b"",
        origin=Origin("model", "sha"),
        bundles=(),
        models=None,
        extraction=None,
        attempts=None,
    )


def plan(job: Job, *names: str) -> list[Planned]:
    volumes = [Planned(Scan(name, (job.base / name,)), f"made from {name}") for name in names]
    job.out.write(plan_name(0), encode_plan(volumes, job.base))
    return volumes


def row(name: str, **values: Any) -> ResultRow:
    made = {"fingerprint": f"made from {name}", "probabilities": (0.25, 0.75), "prediction": "HGG"}
    return ResultRow(name, "", "ok", **{**made, **values})


def rows_of(job: Job) -> list[ResultRow]:
    return decode_results(job.out.read(part_name(0)))[0]


def test_a_partition_is_written_when_every_planned_volume_has_its_row(job: Job) -> None:
    plan(job, "c", "a", "b")
    job.out.write(STAGED.format("1"), encode_results([row("c"), row("a")], CLASSES))
    # twice, of a volume that is no longer planned, and of one that has changed since
    stale = [row("a"), row("gone"), row("b", fingerprint="made from what it was")]
    job.out.write(STAGED.format("2"), encode_results(stale, CLASSES))
    assert look_at(job, 0) == Unfinished(3)  # what this run has staged itself does not count
    assert look_at(dataclasses.replace(job, run="next"), 0) == Unfinished(1)
    assert finish(job, 0) == Unfinished(1)
    assert job.out.kind(part_name(0)) == ""
    job.out.write(STAGED.format("3"), encode_results([row("b")], CLASSES))
    assert finish(job, 0) == Part(0, 3, 0, ("a", ""), ("c", ""))
    assert [one.path for one in rows_of(job)] == ["a", "b", "c"]
    assert job.out.kind("_stage/part=00000") == ""
    assert finish(job, 0) == look_at(job, 0) == Part(0, 3, 0, ("a", ""), ("c", ""))


@pytest.mark.parametrize("order", list(itertools.permutations("123")))
def test_the_row_that_counts_does_not_depend_on_the_names_of_what_is_staged(
    order: tuple[str, ...], job: Job
) -> None:
    """Runs have random names. Rows of an interrupted run with another model hid those of the next one, where its name
    came later: volumes that were classified twice were written off as lost."""
    (volume,) = plan(job, "a")
    stale = row("a", fingerprint="made with another model")
    failed = ResultRow("a", "", "failed", error="out of memory", fingerprint=volume.fingerprint)
    for name, one in zip(order, (row("a"), stale, failed), strict=True):
        job.out.write(f"_stage/part=00000/{name}-x.parquet", encode_results([one], CLASSES))
    assert finish(job, 0) == Part(0, 1, 0, ("a", ""), ("a", ""))
    assert rows_of(job) == [row("a")]


def test_what_was_lost_has_failed_and_no_model_is_opened_to_say_so(job: Job) -> None:
    """Every node that finished such a partition unpacked and verified all models for one line of text."""
    plan(job, "a", "b")
    job.out.write(STAGED.format("1"), encode_results([row("b")], CLASSES))
    assert finish_anyway(job, 0) == Part(0, 2, 1, ("a", ""), ("b", ""))
    lost, kept = rows_of(job)
    assert lost.status == "failed" and "the process that had it died" in lost.error
    assert (lost.model, lost.model_sha256, lost.fingerprint) == ("model", "sha", "made from a")
    assert lost.ssclf_version
    assert kept == row("b")
    # failed rows are as good as others, until they are asked for again
    assert isinstance(look_at(job, 0), Part)
    again = dataclasses.replace(job, config=PredictConfig(retry_failed=True))
    assert look_at(again, 0) == Unfinished(1)


@pytest.mark.parametrize("error", [ParityError("expected one thing"), SkullError("a head")])
def test_errors_keep_their_kind_on_the_way_to_the_driver(error: Exception) -> None:
    """They travelled as "Type:message"; a type that errors.py does not list came out as another."""
    assert isinstance(error, (ParityError, SkullError))
    arrived = pickle.loads(pickle.dumps(Fatal(error))).error
    assert (type(arrived), str(arrived)) == (type(error), str(error))
