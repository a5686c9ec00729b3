"""What goes wrong around a run: full disks, outputs that cannot be written, inputs that go, scripts of all kinds."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import PredictConfig
from ssclf.domain.volume import Volume
from ssclf.errors import DatasetError, OutputError
from ssclf.io.models import runtime
from ssclf.io.records.results import ResultRow
from ssclf.io.volumes.nifti import write_nifti
from ssclf.workflows.predict import predict

runner = CliRunner()


@pytest.fixture
def scans(tmp_path: Path, make_volume: Callable[..., Volume]) -> Path:
    for seed in range(5):
        write_nifti(make_volume(seed=seed), tmp_path / "scans" / f"sub-{seed}.nii.gz")
    return tmp_path / "scans"


def words(scans: Path, bundle: Path, out: Path) -> list[str]:
    return [
        "predict",
        str(scans),
        "--model",
        str(bundle),
        "--assume-stripped",
        "--workers",
        "1",
        "--out",
        str(out),
    ]


def test_a_full_disk_stops_the_run_and_keeps_its_rows(tiny_bundle: Path, scans: Path, tmp_path: Path) -> None:
    """No file may grow beyond 2,000 bytes, three rows of the journal: what a full disk says, without filling one."""
    out = tmp_path / "r.csv"
    command = [sys.executable, "-m", "ssclf", *words(scans, tiny_bundle, out)]

    def fill_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    full = subprocess.run(command, preexec_fn=fill_disk, capture_output=True, text=True, check=False)
    assert full.returncode == 1, full.stderr
    assert "cannot be written" in full.stderr and "are kept" in full.stderr and "Traceback" not in full.stderr
    assert not out.exists()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    done_before = int(again.stderr.split(" done before")[0].split()[-1])
    assert 0 < done_before < 5
    assert len(out.read_text().splitlines()) == 6


@pytest.mark.parametrize("option", ["--maps", "--report"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    option: str, tiny_bundle: Path, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    result = runner.invoke(
        app, [*words(scans, tiny_bundle, tmp_path / "r.csv"), option, str(tmp_path / "file" / "x")]
    )
    assert result.exit_code == 1, result.output
    assert str(tmp_path / "file") in result.output and not (tmp_path / "r.csv").exists()


def test_a_map_that_cannot_be_written_keeps_the_rows_before(
    tiny_bundle: Path, scans: Path, tmp_path: Path
) -> None:
    """A disk that is full, here a limit on the size of files, is no fault of one volume."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = PredictConfig(skull_strip="none")
    seen: list[str] = []

    def fill(row: ResultRow) -> None:
        seen.append(row.path)
        if len(seen) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, limit[1]))

    try:
        with pytest.raises(OutputError, match="the map cannot be written"):
            predict([scans], tmp_path / "r.csv", [tiny_bundle], config, maps=tmp_path / "maps", on_row=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    arguments = [*words(scans, tiny_bundle, tmp_path / "r.csv"), "--maps", str(tmp_path / "maps")]
    again = runner.invoke(app, arguments)
    assert again.exit_code == 0 and "3 rows kept" in again.output, again.output
    assert len(list((tmp_path / "maps").iterdir())) == 5


def test_a_map_whose_name_is_taken_costs_its_own_row(tiny_bundle: Path, scans: Path, tmp_path: Path) -> None:
    """It ended the run, every night again."""
    maps = tmp_path / "maps"
    arguments = [*words(scans, tiny_bundle, tmp_path / "r.csv"), "--maps", str(maps)]
    runner.invoke(app, arguments)
    (blocked,) = maps.glob("sub-3*")
    for path in (tmp_path / "r.csv", tmp_path / "r.json", blocked):
        path.unlink()
    (blocked / "folder").mkdir(parents=True)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 3 and "the map cannot be written" in result.output, result.output
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["path"] for row in rows if row["status"] == "failed"] == ["sub-3.nii.gz"] and len(rows) == 5
    shutil.rmtree(blocked)
    again = runner.invoke(app, [*arguments, "--retry-failed"])
    assert again.exit_code == 0 and "4 rows kept" in again.output, again.output
    assert blocked.is_file()


def test_inputs_that_go_stop_the_run_and_are_no_failed_rows(
    tiny_bundle: Path, scans: Path, tmp_path: Path
) -> None:
    config = PredictConfig(skull_strip="none")
    away = tmp_path / "away"
    seen: list[str] = []

    def unmount(row: object) -> None:
        if not seen:
            scans.rename(away)
        seen.append(str(row))

    with pytest.raises(DatasetError, match="run the same command again"):
        predict([scans], tmp_path / "r.csv", [tiny_bundle], config, on_row=unmount)
    away.rename(scans)
    summary = predict([scans], tmp_path / "r.csv", [tiny_bundle], config)
    assert summary.failed == 0 and len(summary.rows) == 5 and summary.reused == len(seen) > 0


def test_a_field_of_view_beyond_the_memory_costs_its_own_row(
    tiny_bundle: Path,
    scans: Path,
    tmp_path: Path,
    make_volume: Callable[..., Volume],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_nifti(make_volume((40, 52, 44)), scans / "wide.nii.gz")
    monkeypatch.setattr(runtime, "free_memory", lambda: 60_000_000)
    result = runner.invoke(app, words(scans, tiny_bundle, tmp_path / "r.csv"))
    assert result.exit_code == 3, result.output
    rows = {row["path"]: row for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert [path for path, row in rows.items() if row["status"] == "failed"] == ["wide.nii.gz"]
    assert "46 x 52 x 47 voxels" in rows["wide.nii.gz"]["error"]


@pytest.mark.parametrize("way", ["stdin", "file"])
def test_a_script_needs_no_guard_and_may_come_from_stdin(
    way: str, tiny_bundle: Path, scans: Path, tmp_path: Path
) -> None:
    """Workers used to run the calling script again, and died where it called ssclf unguarded or was no file."""
    script = tmp_path / "script.py"
    script.write_text(
        "import ssclf\nfrom ssclf.config import PredictConfig\n"
        f"rows = ssclf.predict([{str(scans)!r}], models=[{str(tiny_bundle)!r}], "
        "config=PredictConfig(skull_strip='none'))\nprint(sorted((row.path, row.status) for row in rows))\n"
    )
    done = subprocess.run(
        [sys.executable, "-" if way == "stdin" else script], input=script.read_text(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([(f"sub-{seed}.nii.gz", "ok") for seed in range(5)])


def test_an_archive_with_damaged_data_costs_itself(tiny_bundle: Path, scans: Path, tmp_path: Path) -> None:
    """zlib's error went through discovery and ended the run."""
    packed = scans / "series.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.dcm", bytes(128) + b"DICM" + random.Random(0).randbytes(4000) + bytes(4000))
    whole = bytearray(packed.read_bytes())
    whole[40:400] = b"\xff" * 360
    packed.write_bytes(whole)
    result = runner.invoke(app, words(scans, tiny_bundle, tmp_path / "r.csv"))
    assert result.exit_code == 3, result.output
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["path"] for row in rows if row["status"] == "failed"] == ["series.zip"]


def test_damaged_files_cost_their_rows_and_tell_nothing_of_headers(
    tiny_bundle: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Real files cut short, with flipped bits, and with odd values in their headers, which carry a name."""
    draw = random.Random(0)
    originals = [p for folder in ("edge", "edge_derived") for p in sorted((shared_data / folder).iterdir())]
    originals = [p for p in originals if p.suffix in (".gz", ".nii", ".mgz") and p.stat().st_size < 1_000_000]
    folder = tmp_path / "damaged"
    folder.mkdir()
    for number in range(100):
        original = draw.choice(originals)
        content = bytearray(original.read_bytes())
        with contextlib.suppress(OSError, EOFError, zlib.error):
            content = bytearray(gzip.decompress(content))
        content[148 : 148 + 11] = b"ZZPATIENTZZ"  # NIfTI's "descrip"
        for _ in range(draw.choice([1, 3, 30])):
            content[draw.randrange(min(348, len(content)))] = draw.choice([0, 1, 127, 128, 255])
        if draw.random() < 0.3:
            del content[draw.randrange(len(content)) :]
        packed = original.suffix == ".gz"
        damaged = gzip.compress(content, 1) if packed else bytes(content)
        if packed and draw.random() < 0.3:
            damaged = damaged[: draw.randrange(len(damaged))]
        (folder / f"{number:03}-{original.name}").write_bytes(damaged)
    out = tmp_path / "r.csv"
    result = runner.invoke(app, [*words(folder, tiny_bundle, out), "--report", str(tmp_path / "r.html")])
    assert result.exit_code == 3, result.output
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len(rows) == 100
    assert 50 < sum(row["status"] == "failed" for row in rows) < 100
    for row in rows:
        assert bool(row["error"]) == (row["status"] == "failed")
        assert "unexpected" not in row["error"], row
    for text in (
        result.output,
        out.read_text(),
        (tmp_path / "r.json").read_text(),
        (tmp_path / "r.html").read_text(),
    ):
        assert "ZZPATIENT" not in text and "Traceback" not in text
