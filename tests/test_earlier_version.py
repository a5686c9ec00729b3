"""What an earlier ssclf left on disk is read, resumed and continued by this one.

The earlier one is a commit, taken from the history and run as its users ran it. This one is run from the command
line only, so that the test outlives any move of its modules.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("torch")
if np.lib.NumpyVersion(np.__version__) < "2.0.0":
    pytest.skip("the earlier version's augmentation needs NumPy 2", allow_module_level=True)
#: The last commit before the command line and io became packages.
EARLIER = "f811ad85ff79f9fd92a209bd7983111db260e8fc"
ROOT = Path(__file__).parents[1]
CLASSES = ("HGG", "LGG", "healthy")
FIRST, SECOND = "mc3/scratch/1", "mc3/scratch/2"
#: Commands that both versions are given.
LIMITS = [word for name in CLASSES for word in ("--limit", f"{name}=4")]
PREPROCESS = ["preprocess", "synthetic", "--out", "cohort", "--spacing", "9,8,8.5", "--seed", 1, *LIMITS]
ON_COHORT = ["--data", "cohort", "--device", "cpu", "--workers", 0]
TINY = [
    "--preset", "paper", "--learning-rate", "1e-3", "--batch-size", 2, "--precision", "32-true", "--seed", 3,
    "--augmentation", "none",  # what it drew at random, it drew otherwise
]  # fmt: skip
TRAIN = ["train", *ON_COHORT, *TINY, "--epochs", 4, "--holdout", 0.25, "--validation", 0.34]
CV = ["cv", *ON_COHORT, *TINY, "--epochs", 1, "--models", "mc3", "--scheme", "kfold", "--folds", 2]
EXPORT = ["export", "whole", "--no-brain-extraction"]
PREDICT = ["predict", "synthetic", "--device", "cpu", "--threads", 1, "--workers", 1]
#: What two runs of one computation may differ in.
TIMES, VERSIONS = ("seconds", "wait_share"), ("ssclf_version", "versions")
#: Columns of results that came later: empty in rows of an earlier version.
LATER = ("precision",)


@dataclass(frozen=True)
class Ssclf:
    """The command line of one version; `package` is the folder that holds its `ssclf/`."""

    package: Path
    work: Path

    @contextlib.contextmanager
    def running(self, *words: object) -> Iterator[subprocess.Popen[str]]:
        """A process of this version; nothing of it is left afterwards."""
        # in `work`, since -m puts the current folder first; one thread, so that training repeats to the last bit
        environment = {**os.environ, "PYTHONPATH": str(self.package), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=self.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def __call__(self, *words: object) -> str:
        """Run a command to its end; returns what it printed."""
        with self.running("-m", "ssclf", *words) as process:
            out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"ssclf {words[0]} of {self.package}: {errors}"
        return out

    def stop(self, number: signal.Signals, when: Callable[[], bool], *words: object) -> int:
        """Run a command and send it a signal in the middle; returns its exit code."""
        with self.running("-m", "ssclf", *words) as process:
            while not when():
                assert process.poll() is None, f"ssclf {words[0]} ended too early: {process.communicate()[1]}"
                time.sleep(0.002)
            os.killpg(process.pid, number)
            process.communicate(timeout=300)
        return process.returncode

    def check(self) -> None:
        """Another ssclf may be installed: make sure that it is not the one that runs."""
        with self.running("-c", "import ssclf; print(ssclf.__file__)") as process:
            found = Path(process.communicate(timeout=60)[0].strip())
        assert found.parent == self.package / "ssclf", f"ran {found} in the place of {self.package}"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, make_volume: Callable[..., Any]) -> Ssclf:
    """The earlier version, and in `work` what it made. Synthetic.

    synthetic/   24 scans in class folders      cohort/      12 of them, preprocessed
    whole/       a finished run                 bundle/      it, exported
    stopped/     the same run, stopped by SIGTERM after its first epoch
    cv/          two folds, of which one is finished
    whole.csv    the table of all scans         killed.csv   the same, killed: its journal alone
    """
    package, work = tmp_path_factory.mktemp("earlier"), tmp_path_factory.mktemp("work")
    try:
        archive = subprocess.run(
            ["git", "-C", ROOT, "archive", EARLIER, "ssclf"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"commit {EARLIER[:7]} is not here: a tarball, a shallow clone, or no git")
    subprocess.run(["tar", "-xC", package], input=archive.stdout, check=True)
    old = Ssclf(package, work)
    old.check()
    for seed in range(24):
        volume, target = make_volume(seed=seed), seed % 3
        volume.data[:, 6:14, 9:17, 7:15] *= (0.5, 1, 1.5)[target]  # what tells the classes apart
        path = work / "synthetic" / CLASSES[target] / f"sub-{seed:02}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume.data[0].T, volume.affine[:, [2, 1, 0, 3]]), path)
    old(*PREPROCESS)

    def finish_and_predict() -> None:
        old(*TRAIN, "--out", "whole")
        old(*EXPORT, "--out", "bundle")
        old(*PREDICT, "--model", "bundle", "--out", "whole.csv")
        killed = [*PREDICT, "--model", "bundle", "--out", "killed.csv"]
        old.stop(signal.SIGKILL, lambda: len(journal(work)) > 2, *killed)
        assert len(journal(work)) < 24 and not (work / "killed.csv").exists(), "the kill came too late"

    def stop_halfway() -> None:
        begun = (work / "stopped/metrics.csv").exists
        assert old.stop(signal.SIGTERM, begun, *TRAIN, "--out", "stopped") == 143
        assert (work / "stopped/checkpoints/last.pt").is_file()
        assert not (work / "stopped/provenance.json").exists(), "the signal came too late"
        old(*CV, "--out", "cv", "--only", FIRST)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(finish_and_predict), pool.submit(stop_halfway)]:
            done.result()
    return old


@pytest.fixture(scope="module")
def ssclf(earlier: Ssclf) -> Ssclf:
    """This version, where the earlier one worked."""
    new = Ssclf(ROOT, earlier.work)
    new.check()
    return new


def journal(work: Path) -> list[dict[str, Any]]:
    """The finished rows of killed.csv; the last line may be half written."""
    path = work / ".killed.csv.ssclf-work" / "journal.jsonl"
    text = path.read_text("utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def as_before(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what came later."""
    return [{name: value for name, value in row.items() if name not in LATER} for row in rows]


def read_csv(path: Path, *, without: tuple[str, ...] = ()) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(file)]


def read_json(path: Path, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {k: v for k, v in json.loads(path.read_text("utf-8")).items() if k not in without}


def logits(details: Path, bundle: Path) -> np.ndarray[Any, Any]:
    """Of every row. A network trained this little gets a temperature that makes all probabilities alike: undo it."""
    temperature = read_json(bundle / "spec.json")["calibration"]["temperature"]
    found = temperature * np.log([row["probabilities"] for row in read_json(details)["rows"]])
    return np.asarray(found - found.mean(axis=1, keepdims=True))


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_cohort_keeps_its_volumes(ssclf: Ssclf) -> None:
    cohort = ssclf.work / "cohort"
    volumes, records = contents(cohort / "volumes"), contents(cohort / "records")
    manifest = read_csv(cohort / "manifest.csv")
    ssclf(*PREPROCESS, "--preset", "paper")
    assert len(volumes) == 12
    assert contents(cohort / "volumes") == volumes, "volumes were made again"
    assert contents(cohort / "records") == records, "records were written again"
    # this version quotes text and adds columns behind those of the earlier one
    rows = read_csv(cohort / "manifest.csv")
    assert list(rows[0])[: len(manifest[0])] == list(manifest[0])
    assert [{name: row[name] for name in manifest[0]} for row in rows] == manifest, (
        "the manifest, with its voxel hashes, is another"
    )


def test_a_stopped_run_goes_on_to_the_numbers_of_one_that_never_stopped(ssclf: Ssclf) -> None:
    stopped, whole = ssclf.work / "stopped", ssclf.work / "whole"
    before = read_csv(stopped / "metrics.csv")
    ssclf("train", "--resume", "--out", "stopped", *ON_COHORT)
    assert 0 < len(before) < len(read_csv(whole / "metrics.csv"))
    assert read_csv(stopped / "metrics.csv")[: len(before)] == before, "epochs of the earlier version changed"
    for name in ("metrics.csv", "predictions.csv"):
        ours, theirs = (read_csv(run / name, without=TIMES) for run in (stopped, whole))
        assert ours == theirs, f"{name}: the earlier version alone came to other numbers"
    sources = [read_json(run / "provenance.json", without=VERSIONS) for run in (stopped, whole)]
    # this version adds by what the volumes that trained or chose the epoch are known again
    assert len(sources[0]["training"].pop("likenesses")) == 9
    # settings that it did not have
    for name in ("freeze", "optimizer", "settle", "lesions"):
        sources[0]["training"]["config"].pop(name)
    # and marks of what it wrote
    assert sources[0].pop("written") and sources[0].pop("tables")
    assert sources[0] == sources[1], "provenance.json"


def test_a_finished_run_is_exported_to_the_same_network(ssclf: Ssclf) -> None:
    work = ssclf.work
    ssclf(*EXPORT, "--out", "again")
    names = [{path.name for path in (work / bundle).iterdir()} for bundle in ("again", "bundle")]
    assert names[0] == names[1]
    ours, theirs = (
        read_json(work / name / "spec.json", without=("name", *VERSIONS)) for name in ("again", "bundle")
    )
    assert ours == theirs, "spec.json"
    ssclf(*PREDICT, "--model", "again", "--out", "again.csv")
    expected = logits(work / "whole.json", work / "bundle")
    assert np.ptp(expected, axis=0).max() > 1e-4, "the network was to tell the scans apart"
    np.testing.assert_allclose(logits(work / "again.json", work / "again"), expected, rtol=0, atol=1e-6)


def test_a_cross_validation_goes_on_and_is_exported(ssclf: Ssclf) -> None:
    cv = ssclf.work / "cv"
    first, splits = contents(cv / "cells" / FIRST), (cv / "splits.json").read_bytes()
    assert not (cv / "cells" / SECOND / "provenance.json").exists()
    out = ssclf("cv", "--resume", "--out", "cv", "--device", "cpu", "--workers", 0)
    assert "not finished" not in out and (cv / "report.html").is_file()
    assert contents(cv / "cells" / FIRST) == first, "the finished cell was touched"
    assert (cv / "splits.json").read_bytes() == splits, "other folds"
    for cell in (FIRST, SECOND):
        assert read_json(cv / "cells" / cell / "provenance.json")["training"]["epochs"] == 1
    tables = [read_csv(cv / "cells" / cell / "predictions.csv") for cell in (FIRST, SECOND)]
    tested = [row["path"] for table in tables for row in table]
    assert len(tested) == len(set(tested)) == 12, "every volume is tested once"
    ssclf("export", "cv", "--folds", "--out", "mean", "--format", "torchscript", "--no-brain-extraction")
    for fold in (1, 2):
        spec = read_json(ssclf.work / f"mean-fold{fold}" / "spec.json")
        assert spec["training"]["cross_validation"]["fold"] == fold
        assert spec["training"]["calibration"]["volumes"] == 12


def test_a_finished_table_is_kept(ssclf: Ssclf) -> None:
    table, details = ssclf.work / "whole.csv", ssclf.work / "whole.json"
    before, rows = read_csv(table), read_json(details)["rows"]
    ssclf(*PREDICT, "--model", "bundle", "--out", "whole.csv")
    after = read_json(details)
    assert after["run"]["reused"] == len(rows) == 24, "volumes were done again: their fingerprints changed"
    assert as_before(after["rows"]) == as_before(rows)
    assert as_before(read_csv(table)) == as_before(before), "cells changed (their text is quoted now)"
    flagged = sum("trained_on" in row["flags"] for row in rows)
    assert flagged == 6, "the bundle knows the volumes of its training"


def test_a_killed_table_is_continued(ssclf: Ssclf) -> None:
    work, done = ssclf.work, journal(ssclf.work)
    ssclf(*PREDICT, "--model", "bundle", "--out", "killed.csv")
    after = read_json(work / "killed.json")
    assert after["run"]["reused"] == len(done), "rows of the journal were done again"
    rows = {row["path"]: row for row in after["rows"]}
    assert as_before([rows[row["path"]] for row in done]) == as_before(done), "rows of the journal changed"
    ours, theirs = (
        read_csv(work / name, without=TIMES + VERSIONS + LATER) for name in ("killed.csv", "whole.csv")
    )
    assert ours == theirs, "the earlier version alone came to another table"
    assert not (work / ".killed.csv.ssclf-work").exists()


def test_maps_that_an_earlier_version_wrote_are_no_scans(earlier: Ssclf, ssclf: Ssclf) -> None:
    """They carry no mark, and doubled the rows at every run where they lie in the scanned folder."""
    scans = ssclf.work / "mapped"
    scans.mkdir()
    for number in range(3):
        shutil.copy(ssclf.work / "synthetic" / CLASSES[number] / f"sub-{number:02}.nii.gz", scans)
    words = ["predict", "mapped", *PREDICT[2:], "--model", "bundle"]
    earlier(*words, "--out", "before.csv", "--maps", "mapped/maps")
    assert len(list((scans / "maps").iterdir())) == 3
    ssclf(*words, "--out", "after.csv", "--maps", "mapped/new")
    paths = [f"sub-{number:02}.nii.gz" for number in range(3)]
    assert [row["path"] for row in read_csv(ssclf.work / "after.csv")] == paths
    assert read_json(ssclf.work / "after.json")["run"]["other_files"] == {"a map that ssclf predict wrote": 3}


def test_a_bundle_is_evaluated(ssclf: Ssclf) -> None:
    work = ssclf.work
    ssclf("evaluate", "cohort", "--model", "bundle", "--out", "scores", "--leave-out-seen", "--device", "cpu")
    found = read_json(work / "scores" / "metrics.json")
    assert (found["volumes"], found["left_out_as_seen"], found["not_checked_for_being_seen"]) == (6, 6, 0)
    columns = [f"{number}_{name}" for number in ("p", "logit") for name in CLASSES]
    ours, theirs = (
        {row["path"]: [float(row[column]) for column in columns] for row in read_csv(run / "predictions.csv")}
        for run in (work / "scores", work / "whole")
    )
    assert ours.keys() == theirs.keys(), "others than the volumes that did not fit the weights"
    for path, expected in theirs.items():
        assert ours[path] == pytest.approx(expected, abs=1e-4), path


@pytest.mark.soak
def test_a_bundle_is_trained_on(ssclf: Ssclf) -> None:
    ssclf("train", "--from", "bundle", *ON_COHORT, *TINY, "--epochs", 1, "--holdout", 0, "--out", "tuned")
    training = read_json(ssclf.work / "tuned" / "provenance.json")["training"]
    parent = read_json(ssclf.work / "bundle" / "spec.json")["training"]
    assert training["started_from"]["name"] == "bundle"
    assert set(parent["voxels"]) < set(training["voxels"]), (
        "the volumes of the earlier training are forgotten"
    )
