"""Every command in its turn on real files: generate, preprocess, train, export, predict."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from ssclf.errors import OutputError
from ssclf.io.models.bundle import open_bundle
from ssclf.reporting.console import DemoDisplay
from ssclf.workflows.demo import TRUTH, read_first_rows, run_demo


def test_the_whole_way_leaves_what_the_contract_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages: list[str] = []
    out = tmp_path / "demo"
    result = run_demo(out, training_volumes=3, held_out_volumes=2, epochs=1, on_stage=stages.append)
    assert len(stages) == 5
    assert [title for title, _ in result.stages] == stages
    monkeypatch.setenv("COLUMNS", "200")
    DemoDisplay().summary(result, read_first_rows(result.results))
    shown = capsys.readouterr().out
    for title, seconds in result.stages:
        assert seconds > 0 and re.search(rf"{re.escape(title)} .* {seconds:.1f} ", shown), shown
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (out / TRUTH).open(encoding="utf-8", newline="") as file:
        truth = {f"{row['subject']}.nii.gz": row["label"] for row in csv.DictReader(file)}
    assert [row["path"] for row in rows] == sorted(truth)
    assert {row["status"] for row in rows} == {"ok"}
    right = sum(row["prediction"] == truth[row["path"]] for row in rows)
    assert result.accuracy == pytest.approx(right / len(truth))
    bundle = open_bundle(result.bundle)
    assert bundle.spec.synthetic and bundle.onnx and bundle.torchscript and len(bundle.extraction) == 2
    for page in (result.report, result.qc, result.bundle / "MODEL_CARD.md"):
        assert "synthetic" in page.read_text("utf-8").lower(), page
    with pytest.raises(OutputError, match="exists already"):
        run_demo(out)
