"""Prediction on a Ray cluster: real raylets on this machine, a real S3-compatible server in a process of its own."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writer import WrittenSeries
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import PredictConfig
from ssclf.domain.volume import Volume
from ssclf.errors import DatasetError, ModelError
from ssclf.io.models.checksums import write_checksums
from ssclf.io.volumes.nifti import write_nifti

ray = pytest.importorskip("ray", reason="pip install 'ssclf[ray]'")
pq = pytest.importorskip("pyarrow.parquet")

CONFIG = PredictConfig(skull_strip="none", workers=1)
runner = CliRunner()
MakeVolume = Callable[..., Volume]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Address of an S3-compatible server."""
    pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    waiting = threading.Event()
    for _ in range(300):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                break
        waiting.wait(0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


def start_cluster(nodes: int) -> Any:
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(**options)
    return cluster


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator[str]:
    """Two raylets, to which this process is connected."""
    del s3  # its address must be in the environment before
    running = start_cluster(2)
    ray.init(address=running.address, log_to_driver=False, logging_level="error")
    yield running.address
    ray.shutdown()
    running.shutdown()


def run(source: object, out: object, model: Path, address: str = "auto", **options: Any) -> Any:
    from ssclf.cluster.driver import predict_on_ray
    from ssclf.config import ClusterConfig

    csv_path = options.pop("csv", None)
    config = options.pop("config", CONFIG)
    return predict_on_ray(
        str(source),
        str(out),
        [model],
        config,
        ClusterConfig(address=address, **{"partition": 5, "batch": 3, **options}),
        csv=csv_path,
    )


def plain(source: Path, table: Path, model: Path) -> dict[str, int]:
    from ssclf.workflows.predict import predict

    return dict(predict([source], table, [model], CONFIG).other_files)


def without_seconds(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def parts(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def scans(tmp_path: Path, make_volume: MakeVolume) -> Path:
    """What a real folder holds, in small: every rule of discovery has something to do."""
    folder = tmp_path / "scans"
    for seed in range(5):
        write_nifti(make_volume(seed=seed), folder / f"site{seed % 2}" / f"sub-{seed}.nii.gz")
    write_nifti(make_volume(seed=5), folder / "a-b" / "case_t1ce.nii.gz")
    write_nifti(make_volume(seed=6), folder / "a-b" / "case_t2.nii.gz")
    write_nifti(make_volume(seed=7), folder / "a" / "=1+1.nii.gz")
    (folder / "cut.nii.gz").write_bytes(b"\x1f\x8b")
    (folder / "notes.txt").write_text("no volume")
    (folder / ".hidden").mkdir()
    (folder / "linked.nii.gz").symlink_to(folder / "site0" / "sub-0.nii.gz")
    pixels = make_volume(seed=8).data[0].astype(np.uint16)
    series = WrittenSeries(pixels)
    series.write(folder / "dicom" / "whole")
    split = WrittenSeries(pixels[::-1])
    split.write(folder / "dicom" / "split" / "one")
    (folder / "dicom" / "split" / "two").mkdir()
    files = sorted((folder / "dicom" / "split" / "one").iterdir())
    for file in files[len(files) // 2 :]:
        file.rename(folder / "dicom" / "split" / "two" / file.name)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for file in sorted((folder / "dicom" / "whole").iterdir()):
            archive.write(file, file.name)
    return folder


def test_rows_are_those_of_one_machine(
    cluster: str, scans: Path, tiny_bundle: Path, tmp_path: Path, make_volume: MakeVolume
) -> None:
    other = plain(scans, tmp_path / "plain.csv", tiny_bundle)
    summary = run(scans, tmp_path / "out", tiny_bundle, cluster, csv=tmp_path / "ray.csv")
    expected = without_seconds(tmp_path / "plain.csv")
    assert len(expected) == 11
    assert without_seconds(tmp_path / "ray.csv") == expected
    assert dict(summary.other_files) == other
    assert (summary.volumes, summary.failed, summary.exit_code) == (11, 1, 3)
    # Parquet: the same columns, with numbers as numbers
    schema = pq.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert schema.names == (tmp_path / "ray.csv").read_text("utf-8").split("\n")[0].strip().split(",")
    assert {str(schema.field(name).type) for name in ("confidence", "p_HGG", "seconds")} == {"double"}
    assert not (tmp_path / "out" / "_stage").exists()
    # again: nothing to do; then one volume more, one changed, one gone
    again = run(scans, tmp_path / "out", tiny_bundle, cluster)
    assert again.reused == again.parts == summary.parts
    write_nifti(make_volume(seed=20), scans / "site1" / "sub-1.nii.gz")
    write_nifti(make_volume(seed=21), scans / "zz.nii.gz")
    (scans / "cut.nii.gz").unlink()
    before = {row["path"]: row["seconds"] for row in parts(tmp_path / "out")}
    plain(scans, tmp_path / "plain.csv", tiny_bundle)
    run(scans, tmp_path / "out", tiny_bundle, cluster, csv=tmp_path / "ray.csv")
    assert without_seconds(tmp_path / "ray.csv") == without_seconds(tmp_path / "plain.csv")
    after = {row["path"]: row["seconds"] for row in parts(tmp_path / "out")}
    assert before["a-b/case_t1ce.nii.gz"] == after["a-b/case_t1ce.nii.gz"]
    assert before["site1/sub-1.nii.gz"] != after["site1/sub-1.nii.gz"]


def test_s3_in_and_out(cluster: str, scans: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    s3fs = pytest.importorskip("s3fs")
    (scans / "linked.nii.gz").unlink()
    shutil.rmtree(scans / ".hidden")
    plain(scans, tmp_path / "plain.csv", tiny_bundle)
    fs = s3fs.S3FileSystem()
    fs.mkdir("bucket")
    fs.put(str(scans), "bucket/scans", recursive=True)
    summary = run("s3://bucket/scans", "s3://bucket/out", tiny_bundle, cluster, csv=tmp_path / "ray.csv")
    assert summary.exit_code == 3
    assert without_seconds(tmp_path / "ray.csv") == without_seconds(tmp_path / "plain.csv")
    fs.invalidate_cache()
    assert sorted(path.rpartition("/")[2] for path in fs.ls("bucket/out", detail=False)) == [
        "_plan", *(f"part-{n:05d}.parquet" for n in range(summary.parts)), "run.json",
    ]  # fmt: skip
    again = run("s3://bucket/scans", "s3://bucket/out", tiny_bundle, cluster)
    assert again.reused == again.parts
    # a manifest there: cells below it, whole URLs, DICOM folders
    rows = [
        "subject,path",
        "a,scans/a/=1+1.nii.gz",
        "b,s3://bucket/scans/site0/sub-0.nii.gz",
        "c,scans/dicom/whole",
    ]
    fs.pipe_file("bucket/list.csv", "\n".join([*rows, "d,scans/absent.nii.gz"]).encode())
    run("s3://bucket/list.csv", tmp_path / "listed", tiny_bundle, cluster)
    listed = {row["path"]: row for row in parts(tmp_path / "listed")}
    table = {row["path"]: row for row in without_seconds(tmp_path / "plain.csv")}
    assert "absent.nii.gz" in listed.pop("scans/absent.nii.gz")["error"]
    assert {path.rpartition("scans/")[2] for path in listed} == {
        "a/=1+1.nii.gz",
        "site0/sub-0.nii.gz",
        "dicom/whole",
    }
    for path, row in listed.items():
        expected = table[path.rpartition("scans/")[2]]
        assert f"{row['p_HGG']:.6f}" == expected["p_HGG"]


def test_a_manifest(cluster: str, scans: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    rows = ["subject,path", "a,site0/sub-0.nii.gz", "b,dicom/whole", "c,not-there.nii", "d,"]
    (scans / "list.csv").write_text("\n".join(rows), "utf-8")
    plain(scans / "list.csv", tmp_path / "plain.csv", tiny_bundle)
    run(scans / "list.csv", tmp_path / "out", tiny_bundle, cluster, csv=tmp_path / "ray.csv", partition=2)
    assert without_seconds(tmp_path / "ray.csv") == without_seconds(tmp_path / "plain.csv")
    assert len(parts(tmp_path / "out")) == 4


@pytest.fixture
def many(tmp_path: Path, make_volume: MakeVolume) -> Callable[[int], Path]:
    def write(count: int) -> Path:
        folder = tmp_path / "many"
        for seed in range(count):
            small = make_volume(shape=(10, 14, 12), spacing=(9.0, 8.0, 9.5), seed=seed)
            write_nifti(small, folder / f"site{seed % 5}" / f"sub-{seed:05d}.nii")
        return folder

    return write


KILLED = """
import sys, threading
from pathlib import Path
from ray.cluster_utils import Cluster
from ssclf.config import PredictConfig
from ssclf.cluster.driver import predict_on_ray
from ssclf.config import ClusterConfig
source, out, model, table, partition, after = sys.argv[1:]
options = {"num_cpus": 1, "object_store_memory": 200 << 20}
cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
nodes = [cluster.add_node(**options) for _ in range(2)]

def kill():
    waiting = threading.Event()
    while len(list(Path(out).glob("_stage/*/*.parquet"))) < int(after):
        waiting.wait(0.05)
    cluster.remove_node(nodes[0], allow_graceful=False)
    print("\\nkilled\\n", flush=True)  # a raylet's last words come on the same stream, without an end of line

killer = threading.Thread(target=kill)
killer.start()
config = PredictConfig(skull_strip="none", workers=1)
summary = predict_on_ray(source, out, [Path(model)], config,
                         ClusterConfig(address=cluster.address, partition=int(partition)), csv=Path(table))
killer.join()
print(summary.volumes, summary.failed, summary.parts)
cluster.shutdown()
"""


@pytest.mark.parametrize(
    ("volumes", "partition", "after"), [(96, 32, 2), pytest.param(2000, 250, 60, marks=pytest.mark.soak)]
)
def test_a_node_that_is_killed_costs_no_row_and_doubles_none(
    volumes: int,
    partition: int,
    after: int,
    many: Callable[[int], Path],
    tiny_bundle: Path,
    tmp_path: Path,
) -> None:
    source = many(volumes)
    plain(source, tmp_path / "plain.csv", tiny_bundle)
    (tmp_path / "script.py").write_text(KILLED)
    words = [source, tmp_path / "out", tiny_bundle, tmp_path / "ray.csv", partition, after]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()  # among what Ray says of the node
    assert "killed" in lines
    assert lines[-1] == f"{volumes} 0 {-(-volumes // partition)}"
    assert without_seconds(tmp_path / "ray.csv") == without_seconds(tmp_path / "plain.csv")
    assert len({row["path"] for row in parts(tmp_path / "out")}) == len(parts(tmp_path / "out")) == volumes


@pytest.mark.soak
def test_a_run_that_was_interrupted_goes_on(
    many: Callable[[int], Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    source = many(300)
    command = [sys.executable, "-m", "ssclf", "predict", str(source), "--out", str(tmp_path / "out")]
    command += ["--model", str(tiny_bundle), "--skull-strip", "none", "--ray", "local", "--partition", "100"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    waiting = threading.Event()
    while not list(tmp_path.glob("out/_stage/*/*.parquet")) and first.poll() is None:
        waiting.wait(0.05)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=100)
    assert first.returncode == 143, errors
    assert "Traceback" not in errors
    staged = {
        row["path"]: row["seconds"]
        for path in tmp_path.glob("out/**/*.parquet")
        if "_plan" not in path.parts
        for row in pq.read_table(path, partitioning=None).to_pylist()
    }
    assert 0 < len(staged) < 300
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    rows = {row["path"]: row["seconds"] for row in parts(tmp_path / "out")}
    assert len(rows) == 300
    assert {path: rows[path] for path in staged} == staged


DEADLY = """
import os
import ssclf.workflows.predict as predict
classified = predict.RowMaker.classified
def die(self, scan, preparation):
    if scan.path.endswith("sub-00007.nii"):
        os._exit(1)
    return classified(self, scan, preparation)
predict.RowMaker.classified = die
"""


@pytest.mark.soak
def test_a_volume_that_takes_its_process_with_it_costs_its_own_row(
    many: Callable[[int], Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    """An engine that crashes, played by a module that every process of the run imports as it starts."""
    source = many(20)
    (tmp_path / "deadly").mkdir()
    (tmp_path / "deadly" / "sitecustomize.py").write_text(DEADLY)
    path = os.pathsep.join([str(tmp_path / "deadly"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "ssclf", "predict", str(source), "--out", str(tmp_path / "out")]
    command += ["--model", str(tiny_bundle), "--skull-strip", "none", "--ray", "local"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, timeout=500, check=False)
    assert done.returncode == 3
    rows = {Path(row["path"]).name: row for row in parts(tmp_path / "out")}
    assert len(rows) == 20
    failed = {name: row["error"] for name, row in rows.items() if row["status"] == "failed"}
    assert list(failed) == ["sub-00007.nii"]
    assert "the process that had it died" in failed["sub-00007.nii"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "b", "--ray", "local"], "expected one folder"),
        (["a", "--ray", "local", "--report", "r.html"], "--report: does not go with --ray"),
        (["a", "--ray", "local", "--out", "r.csv"], "with --ray it is a folder"),
        (["a", "--ray", "ray://head:10001"], "start ssclf on a node of the cluster"),
        (["a", "--csv", "r.csv"], "--csv: goes with --ray"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], words: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["predict", *arguments, "--model", str(tiny_bundle)])
    assert result.exit_code == 1
    assert words in " ".join(result.output.split())


@pytest.mark.parametrize("package", ["ray", "pyarrow", "fsspec"])
def test_without_the_extra_the_message_names_it(package: str, tiny_bundle: Path, tmp_path: Path) -> None:
    words = [
        "predict",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(tiny_bundle),
        "--ray",
        "local",
    ]
    code = f"import sys; sys.modules[{package!r}] = None; from ssclf.cli.app import app; app({words!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "ssclf[ray]"' in done.stderr


def test_what_no_node_can_do_ends_the_run(
    cluster: str, scans: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bundle, model, ignore=shutil.ignore_patterns("*.pt"))
    write_checksums(model)
    with pytest.raises(ModelError, match="expected a model for --engine torchscript"):
        run(scans, tmp_path / "out", model, cluster, config=dataclasses.replace(CONFIG, engine="torchscript"))
    assert not list((tmp_path / "out").glob("part-*"))


def test_what_is_not_there_is_said(cluster: str, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found nothing there"):
        run(tmp_path / "absent", tmp_path / "out", tiny_bundle, cluster)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match=r"found none, but left out: 1 not a volume \(.txt\)"):
        run(tmp_path / "empty", tmp_path / "out", tiny_bundle, cluster)
