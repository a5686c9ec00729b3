"""Planning: rates measured for real, arithmetic checked by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError
from ssclf.io.volumes.nifti import write_nifti
from ssclf.workflows.plan import RAY_START_S, RAY_VOLUME_S, Rates, estimate

RATES = Rates(
    read_s=1.0,
    strip_s=4.0,
    infer_core_s=2.0,
    infer_gpu_s=0.1,
    file_bytes=3_000_000,
    input_bytes=4_000_000,
    reader_bytes=500_000_000,
    model_bytes=200_000_000,
    typical="synthetic",
)


def test_work_is_shared_out_over_cores() -> None:
    need = estimate(RATES, 36_000, nodes=5, cores=4)
    assert need.core_hours == pytest.approx(10 * (1 + 2 + RAY_VOLUME_S))
    assert need.hours == pytest.approx(need.core_hours / 20 + RAY_START_S / 3600)
    assert (need.bound, need.gpu_hours) == ("cores", 0)
    assert need.network_bytes == 108_000_000_000
    assert estimate(RATES, 72_000, nodes=10, cores=4).hours == pytest.approx(need.hours)


def test_gpus_take_the_network_over_and_skulls_cost() -> None:
    need = estimate(RATES, 36_000, nodes=1, cores=100, gpus=1, stripped=0.5)
    assert need.core_hours == pytest.approx(10 * (1 + 2 + RAY_VOLUME_S))
    assert need.gpu_hours == pytest.approx(1.0)
    assert need.bound == "GPUs"
    assert estimate(RATES, 36_000, nodes=1, cores=2, gpus=1).bound == "cores"


def test_what_was_not_measured_is_not_guessed() -> None:
    plain = dataclasses.replace(RATES, infer_gpu_s=None, strip_s=None)
    with pytest.raises(ConfigError, match="without one"):
        estimate(plain, 10, nodes=1, cores=1, gpus=1)
    with pytest.raises(ConfigError, match="no brain extraction"):
        estimate(plain, 10, nodes=1, cores=1, stripped=0.9)
    with pytest.raises(ConfigError, match="--nodes: expected at least 1"):
        estimate(plain, 10, nodes=0, cores=1)


def test_rates_are_measured_written_and_read(
    tiny_bundle: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    runner = CliRunner()
    for seed in range(2):
        write_nifti(make_volume(seed=seed), tmp_path / "scans" / f"{seed}.nii.gz")
    options = ["--bench", "--engine", "onnx", "--json", str(tmp_path / "rates.json")]
    result = runner.invoke(
        app, ["doctor", "--model", str(tiny_bundle), *options, "--typical", str(tmp_path / "scans")]
    )
    assert result.exit_code == 0, result.output
    rates = json.loads((tmp_path / "rates.json").read_text())
    sizes = [path.stat().st_size for path in (tmp_path / "scans").iterdir()]
    assert rates["file_bytes"] == round(sum(sizes) / 2)
    assert rates["input_bytes"] % 4 == 0
    assert rates["input_bytes"] > 4 * 20**3
    assert 0 < rates["read_s"] < rates["infer_core_s"] * 1000
    planned = runner.invoke(
        app,
        [
            "plan",
            "--volumes",
            "2000000",
            "--nodes",
            "20",
            "--cores",
            "32",
            "--rates",
            str(tmp_path / "rates.json"),
        ],
    )
    assert planned.exit_code == 0, planned.output
    assert "2000000 volumes like 2 scans, tiny, on 20 × 32 cores" in planned.output
    (tmp_path / "rates.json").write_text("{}")
    refused = runner.invoke(app, ["plan", "--volumes", "1", "--rates", str(tmp_path / "rates.json")])
    assert refused.exit_code == 1
    assert "expected rates that" in refused.output
