"""The command as an operator runs it: real files, real processes, a real (untrained) exported network."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

import ssclf
from ssclf.cli.app import app
from ssclf.config import PredictConfig
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

runner = CliRunner()
STRIPPED = PredictConfig(skull_strip="none")


def read_table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def without_seconds(path: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_table(path).values()]


@pytest.fixture
def predict(tiny_bundle: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run `ssclf predict` in this process; returns exit code and everything it printed."""

    def run(*arguments: object, model: Path = tiny_bundle) -> tuple[int, str]:
        words = [
            "predict",
            *map(str, arguments),
            "--model",
            str(model),
            "--workers",
            "2",
            "--skull-strip",
            "none",
        ]
        result = runner.invoke(app, words)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


@pytest.fixture
def scans(tmp_path: Path, make_volume: Callable[..., Volume]) -> Path:
    folder = tmp_path / "scans"
    for seed in range(4):
        write_nifti(make_volume(seed=seed), folder / f"site{seed % 2}" / f"sub-{seed}.nii.gz")
    return folder


def test_every_volume_gets_a_row_and_probabilities_sum_to_one(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path
) -> None:
    (scans / "notes.txt").write_text("no volume")
    code, output = predict(scans, "--out", tmp_path / "r.csv")
    assert code == 0, output
    rows = read_table(tmp_path / "r.csv")
    assert list(rows) == [f"site{s % 2}/sub-{s}.nii.gz" for s in (0, 2, 1, 3)]
    for row in rows.values():
        assert sum(float(row[f"p_{name}"]) for name in ("LGG", "HGG", "healthy")) == pytest.approx(
            1, abs=1e-5
        )
        assert float(row["confidence"]) == float(row[f"p_{row['prediction']}"])
        assert row["error"] == ""
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "scans") == ["r.csv", "r.json"]


def test_bad_files_cost_their_own_row(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    good = (scans / "site0" / "sub-0.nii.gz").read_bytes()
    (scans / "cut.nii.gz").write_bytes(good[: len(good) // 2])
    (scans / "text.nii").write_text("something else")
    (scans / "empty.nii.gz").write_bytes(b"")
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    data = make_volume().data[0].transpose(2, 1, 0).astype(np.float32)
    nib.save(nib.Nifti1Image(np.stack([data, data], 3), affine), scans / "four.nii.gz")
    nib.save(nib.Nifti1Image(data[:, :, 10], affine), scans / "two.nii.gz")
    nib.save(nib.Nifti1Image(np.where(data > 450, np.nan, data), affine), scans / "nan.nii.gz")
    nib.save(nib.Nifti1Image(np.full_like(data, 7), affine), scans / "constant.nii.gz")
    singular = nib.Nifti1Image(data, affine)
    singular.header["sform_code"], singular.header["qform_code"] = 1, 0
    singular.header["srow_x"] = singular.header["srow_y"] = [6, 0, 0, 0]
    with gzip.open(scans / "singular.nii.gz", "wb") as file:
        file.write(singular.header.binaryblock + b"\0\0\0\0" + data.tobytes(order="F"))
    code, output = predict(scans, "--out", tmp_path / "r.csv")
    assert code == 3, output
    assert "Traceback" not in output
    rows = read_table(tmp_path / "r.csv")
    expected = {
        "cut.nii.gz": "cut short",
        "text.nii": "NIfTI",
        "empty.nii.gz": "",
        "four.nii.gz": "3D",
        "two.nii.gz": "3D",
        "nan.nii.gz": "NaN",
        "constant.nii.gz": "constant",
        "singular.nii.gz": "singular",
    }
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(expected)
    for name, words in expected.items():
        assert words in rows[name]["error"], rows[name]["error"]
        assert rows[name]["error"]
        assert rows[name]["prediction"] == rows[name]["p_HGG"] == ""


def test_running_again_keeps_adds_redoes_and_drops(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    predict(scans, "--out", tmp_path / "r.csv", "--maps", tmp_path / "maps")
    before = read_table(tmp_path / "r.csv")
    (scans / "site0" / "sub-0.nii.gz").unlink()
    write_nifti(make_volume(seed=40), scans / "site1" / "sub-1.nii.gz")
    write_nifti(make_volume(seed=9), scans / "new.nii.gz")
    code, output = predict(scans, "--out", tmp_path / "r.csv", "--maps", tmp_path / "maps")
    assert code == 0
    assert "2 rows kept" in output and "1 rows dropped" in output
    after = read_table(tmp_path / "r.csv")
    assert set(after) == {"new.nii.gz", "site0/sub-2.nii.gz", "site1/sub-1.nii.gz", "site1/sub-3.nii.gz"}
    maps = {path.name for path in (tmp_path / "maps").rglob("*.nii.gz")}
    assert maps == {f"{Path(name).name.removesuffix('.nii.gz')}-nii-gz.map.nii.gz" for name in after}
    for kept in ("site0/sub-2.nii.gz", "site1/sub-3.nii.gz"):
        assert after[kept] == before[kept]
    assert after["site1/sub-1.nii.gz"]["p_HGG"] != before["site1/sub-1.nii.gz"]["p_HGG"]


def test_failed_rows_are_tried_again_only_on_request(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path
) -> None:
    (scans / "bad.nii").write_text("no volume")
    _, first = predict(scans, "--out", tmp_path / "r.csv")
    assert predict(scans, "--out", tmp_path / "r.csv")[1].count("bad.nii:") == 0
    assert predict(scans, "--out", tmp_path / "r.csv", "--retry-failed")[1].count("bad.nii:") == 1
    assert first.count("bad.nii:") == 1


def test_prediction_does_not_depend_on_how_a_volume_is_stored(
    predict: Callable[..., tuple[int, str]], tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    volume = make_volume(dtype=np.int16)
    image = nib.Nifti1Image(volume.data[0].transpose(2, 1, 0), volume.affine[:, [2, 1, 0, 3]])
    folder = tmp_path / "stored"
    folder.mkdir()
    nib.save(image, folder / "ras.nii")
    nib.save(nib.Nifti2Image(image.dataobj, image.affine), folder / "nifti2.nii.gz")
    for codes in ("LPS", "ARI", "SLA"):
        ornt = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
        )
        nib.save(image.as_reoriented(ornt), folder / f"{codes}.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float64), image.affine), folder / "float64.nii")
    big = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, big), folder / "big_endian.nii")
    gained = np.asarray(image.dataobj, np.float32) * 0.25 + 3
    nib.save(nib.Nifti1Image(gained, image.affine), folder / "gain.nii")
    code, output = predict(folder, "--out", tmp_path / "r.csv")
    assert code == 0, output
    rows = read_table(tmp_path / "r.csv")
    assert len(rows) == 8
    table = np.array([[float(row[f"p_{n}"]) for n in ("LGG", "HGG", "healthy")] for row in rows.values()])
    assert np.ptp(table, axis=0).max() < 1e-4
    alone = tmp_path / "alone.csv"
    predict(folder / "ras.nii", "--out", alone)
    (row,) = read_table(alone).values()
    assert row["p_HGG"] == rows["ras.nii"]["p_HGG"]


def test_the_engines_agree(predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path) -> None:
    predict(scans, "--out", tmp_path / "onnx.csv", "--engine", "onnx")
    code, output = predict(scans, "--out", tmp_path / "ts.csv", "--engine", "torchscript")
    assert code == 0, output
    onnx, torchscript = read_table(tmp_path / "onnx.csv"), read_table(tmp_path / "ts.csv")
    for path, row in onnx.items():
        for name in ("p_LGG", "p_HGG", "p_healthy"):
            assert float(row[name]) == pytest.approx(float(torchscript[path][name]), abs=1e-4)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_engines_and_workers_agree_on_every_real_file(
    tiny_bundle: Path, shared_data: Path, tmp_path: Path
) -> None:
    tables = {}
    for engine, workers in (("onnx", 1), ("onnx", 4), ("torchscript", 2)):
        out = tmp_path / f"{engine}{workers}.csv"
        result = runner.invoke(
            app,
            ["predict", str(shared_data), "--model", str(tiny_bundle), "--out", str(out), "--assume-stripped",
             "--engine", engine, "--workers", str(workers)],
        )  # fmt: skip
        assert result.exit_code == 3, result.output
        tables[engine, workers] = read_table(out)
    expected = tables.pop(("onnx", 1))
    readable = {path for path, row in expected.items() if row["status"] == "ok"}
    assert len(readable) > 50 and any(row["status"] == "failed" for row in expected.values())
    for table in tables.values():
        assert {path: (row["status"], row["error"]) for path, row in table.items()} == {
            path: (row["status"], row["error"]) for path, row in expected.items()
        }
        for path in readable:
            for name in ("p_LGG", "p_HGG", "p_healthy"):
                assert float(table[path][name]) == pytest.approx(float(expected[path][name]), abs=1e-4)


def test_without_torch_prediction_works(tiny_bundle: Path, scans: Path, tmp_path: Path) -> None:
    """In a process (and workers) where torch, scipy and the like cannot be imported."""
    hidden = [
        "torch",
        "torchvision",
        "torchio",
        "scipy",
        "sklearn",
        "SimpleITK",
        "matplotlib",
        "pandas",
        "onnx",
        "lightning_fabric",
    ]
    block = tmp_path / "block"
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        f"import sys\nfor name in {hidden!r}:\n    sys.modules[name] = None\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ssclf",
            "predict",
            scans,
            "--out",
            tmp_path / "r.csv",
            "--model",
            tiny_bundle,
            "--assume-stripped",
            "--workers",
            "1",
        ],
        env={**os.environ, "PYTHONPATH": str(block)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(read_table(tmp_path / "r.csv")) == 4


def test_several_models_are_averaged(
    predict: Callable[..., tuple[int, str]],
    tiny_bundle: Path,
    other_bundle: Path,
    scans: Path,
    tmp_path: Path,
) -> None:
    predict(scans, "--out", tmp_path / "a.csv")
    predict(scans, "--out", tmp_path / "b.csv", model=other_bundle)
    predict(scans, "--out", tmp_path / "ab.csv", "--model", other_bundle)
    a, b, ab = (read_table(tmp_path / f"{name}.csv") for name in ("a", "b", "ab"))
    for path, row in ab.items():
        mean = (float(a[path]["p_HGG"]) + float(b[path]["p_HGG"])) / 2
        assert float(row["p_HGG"]) == pytest.approx(mean, abs=2e-6)
        assert set(row["model"].split("+")) == {tiny_bundle.name, other_bundle.name}


def test_another_review_limit_classifies_nothing_again(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path
) -> None:
    def flags() -> list[bool]:
        rows = read_table(tmp_path / "r.csv").values()
        return ["low_confidence" in row["flags"].split(";") for row in rows]

    predict(scans, "--out", tmp_path / "r.csv", "--review-below", "1")
    assert flags() == [True] * 4
    code, output = predict(scans, "--out", tmp_path / "r.csv", "--review-below", "0")
    assert code == 0 and "4 rows kept from before" in output
    assert flags() == [False] * 4
    _, output = predict(scans, "--out", tmp_path / "r.csv", "--report", tmp_path / "r.html")
    assert "done again: 4 volumes that lack the picture" in " ".join(output.split())


def test_shards_merge_into_the_whole(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path
) -> None:
    predict(scans, "--out", tmp_path / "whole.csv")
    for number in (1, 2):
        predict(scans, "--out", tmp_path / "r.csv", "--shard", f"{number}/2", "--report", tmp_path / "r.html")
        assert (tmp_path / f"r.{number}-of-2.html").is_file(), "a shard's page must not replace another's"
    parts = [str(tmp_path / f"r.{number}-of-2.csv") for number in (1, 2)]
    assert runner.invoke(app, ["merge", parts[0], "--out", str(tmp_path / "m.csv")]).exit_code == 1
    merged = runner.invoke(app, ["merge", *parts, "--out", str(tmp_path / "m.csv")])
    assert merged.exit_code == 0, merged.output
    assert without_seconds(tmp_path / "m.csv") == without_seconds(tmp_path / "whole.csv")
    # once more, with all tables of the folder: the joined one is no part
    again = [*parts, str(tmp_path / "m.csv"), "--out", str(tmp_path / "m.csv")]
    assert runner.invoke(app, ["merge", *again, "--report", str(tmp_path / "m.html")]).exit_code == 0
    assert (tmp_path / "m.html").read_text().count("data:image") >= 2


def test_an_edited_row_is_done_again_and_not_merged(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path
) -> None:
    """Numbers that somebody had put into `results.json` came back in the next table, and in that of all shards."""
    predict(scans, "--out", tmp_path / "r.csv")
    details, before = tmp_path / "r.json", without_seconds(tmp_path / "r.csv")
    values = json.loads(details.read_text())
    values["rows"][1]["prediction"] = "nothing"
    values["rows"][2]["probabilities"] = [1.0, 0.0, 0.0]
    details.write_text(json.dumps(values))
    refused = runner.invoke(app, ["merge", str(tmp_path / "r.csv"), "--out", str(tmp_path / "m.csv")])
    told = " ".join(refused.output.split())
    assert (
        refused.exit_code == 1 and "found it changed: site0/sub-2.nii.gz, site1/sub-1.nii.gz other;" in told
    )
    code, output = predict(scans, "--out", tmp_path / "r.csv")
    assert code == 0 and "2 rows were changed, their volumes are done again" in " ".join(output.split())
    assert without_seconds(tmp_path / "r.csv") == before
    values = json.loads(details.read_text())
    del values["rows"][0], values["written"]  # as of an earlier version
    details.write_text(json.dumps(values))
    refused = runner.invoke(app, ["merge", str(tmp_path / "r.csv"), "--out", str(tmp_path / "m.csv")])
    assert "expected 4 rows, as it says, found 3" in " ".join(refused.output.split())


@pytest.mark.parametrize(
    ("number", "everybody"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGTERM, True)]
)
def test_a_stopped_run_keeps_its_rows_and_goes_on(
    number: signal.Signals,
    everybody: bool,
    tiny_bundle: Path,
    tmp_path: Path,
    make_volume: Callable[..., Volume],
) -> None:
    """`everybody`: as systemd and Slurm do it, every process of the service gets the signal."""
    folder = tmp_path / "many"
    for seed in range(40):
        write_nifti(make_volume(seed=seed), folder / f"sub-{seed:02}.nii.gz")
    out = tmp_path / "r.csv"
    command = [
        sys.executable,
        "-m",
        "ssclf",
        "predict",
        str(folder),
        "--out",
        str(out),
        "--model",
        str(tiny_bundle),
    ]
    command += ["--assume-stripped", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / ".r.csv.ssclf-work" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size > 200) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
    children = psutil.Process(process.pid).children(recursive=True) if everybody else []
    for one in (*children, process):
        one.send_signal(number)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 128 + number, messages
    assert not out.exists()
    finished = len(journal.read_text().splitlines())
    assert 0 < finished < 40
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{finished} done before" in again.stderr
    rows = read_table(out)
    assert len(rows) == 40 and {row["status"] for row in rows.values()} == {"ok"}
    assert not journal.exists()


def usage_errors(scans: Path, tmp_path: Path, bundle: Path) -> dict[str, tuple[list[object], str]]:
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    with (changed / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\0\0\0\1")
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(b"no model")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "foreign.csv").write_text("name,age\n")
    table = tmp_path / "manifest.csv"
    table.write_text("subject,label\na,HGG\n")
    good = ["--model", bundle]
    out = ["--out", tmp_path / "r.csv"]
    return {
        "missing file": ([tmp_path / "absent.nii.gz", *good, *out], "absent.nii.gz"),
        "empty folder": ([tmp_path / "nothing", *good, *out], "found no files"),
        "changed bundle": ([scans, "--model", changed, *out], "SHA-256"),
        "corrupt model": ([scans, "--model", corrupt, *out], "corrupt.onnx"),
        "no bundle": ([scans, "--model", tmp_path / "none", *out], "ssclf export"),
        "foreign output": ([scans, *good, "--out", tmp_path / "foreign.csv"], "not written by ssclf"),
        "output folder": ([scans, *good, "--out", tmp_path / "no" / "r.csv"], "does not exist"),
        "no cuda": ([scans, *good, *out, "--device", "cuda"], "CUDA"),
        "manifest without the contrast": ([table, *good, *out], "t1ce"),
    }


def test_what_cannot_be_done_is_said_in_one_message(scans: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    for name, (arguments, words) in usage_errors(scans, tmp_path, tiny_bundle).items():
        result = runner.invoke(app, ["predict", *map(str, arguments)])
        assert result.exit_code == 1, (name, result.output)
        assert words in result.output and "Traceback" not in result.output, (name, result.output)
        assert not (tmp_path / "r.csv").exists(), name


def test_a_lone_model_file_carries_its_spec(
    predict: Callable[..., tuple[int, str]], tiny_bundle: Path, scans: Path, tmp_path: Path
) -> None:
    predict(scans, "--out", tmp_path / "whole.csv")
    for name in ("model.onnx", "model.torchscript.pt"):
        shutil.copy(tiny_bundle / name, tmp_path / name)
        engine = "torchscript" if name.endswith(".pt") else "auto"
        words = ("--out", tmp_path / "lone.csv", "--engine", engine)
        code, output = predict(scans, *words, model=tmp_path / name)
        assert code == 0, output
        for path, row in read_table(tmp_path / "lone.csv").items():
            expected = float(read_table(tmp_path / "whole.csv")[path]["p_LGG"])
            assert float(row["p_LGG"]) == pytest.approx(expected, abs=1e-4)


def test_the_details_hold_the_run_and_no_absolute_paths(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path
) -> None:
    predict(scans, "--out", tmp_path / "r.csv")
    text = (tmp_path / "r.json").read_text()
    run = json.loads(text)["run"]
    assert run["volumes"] == 4 and run["failed"] == 0
    assert run["class_names"] == ["LGG", "HGG", "healthy"]
    assert str(tmp_path) not in text


def test_real_orientations_give_one_answer(
    predict: Callable[..., tuple[int, str]], shared_data: Path, tmp_path: Path
) -> None:
    code, output = predict(shared_data / "orient48", "--out", tmp_path / "r.csv")
    assert code == 0, output
    rows = read_table(tmp_path / "r.csv")
    assert len(rows) == 26
    table = np.array([[float(row[f"p_{n}"]) for n in ("LGG", "HGG", "healthy")] for row in rows.values()])
    assert np.ptp(table, axis=0).max() < 1e-4


def test_the_python_interface_gives_the_rows_of_the_table(
    predict: Callable[..., tuple[int, str]], tiny_bundle: Path, scans: Path, tmp_path: Path
) -> None:
    (scans / "bad.nii").write_text("no volume")
    predict(scans, "--out", tmp_path / "r.csv")
    expected = read_table(tmp_path / "r.csv")
    rows = {row.path: row for row in ssclf.predict([scans], models=[tiny_bundle], config=STRIPPED)}
    assert set(rows) == set(expected)
    for path, row in rows.items():
        assert (row.status, row.prediction, row.error) == tuple(
            expected[path][name] for name in ("status", "prediction", "error")
        )


def test_maps_lie_in_the_space_of_their_scans_and_the_report_stands_alone(
    predict: Callable[..., tuple[int, str]], scans: Path, tmp_path: Path
) -> None:
    asked = ["--maps", tmp_path / "maps", "--report", tmp_path / "r.html"]
    code, output = predict(scans, "--out", tmp_path / "r.csv")
    code, output = predict(scans, "--out", tmp_path / "r.csv", *asked)
    assert code == 0, output
    for path in read_table(tmp_path / "r.csv"):
        scan: Any = nib.load(scans / path)
        (found,) = (tmp_path / "maps" / Path(path).parent).glob(
            f"{Path(path).name.split('.')[0]}*.map.nii.gz"
        )
        heat: Any = nib.load(found)
        assert heat.shape == scan.shape
        np.testing.assert_allclose(heat.affine, scan.affine, atol=1e-4)
        values = np.asarray(heat.dataobj)
        assert np.ptp(values) > 0 and not values[np.asarray(scan.dataobj) == 0].any()
    page = (tmp_path / "r.html").read_text()
    assert "esearch use only" in page and "SYNTHETIC" in page.upper()
    assert not re.search(r"(?:src|href)=\"?https?:", page)
    _, again = predict(scans, "--out", tmp_path / "r.csv", *asked)
    assert "4 rows kept" in again
