from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import typer

from ssclf.cli.train import _report_cv
from ssclf.config import PreprocessConfig, TrainConfig, config_to_dict
from ssclf.errors import ModelError
from ssclf.reporting.cv_report import write_cv_report
from ssclf.workflows.cross_validate import CvResult

PAPER = ("HGG", "LGG", "healthy")
AUDIT: dict[str, Any] = {
    "findings": [
        {
            "name": "header fields", "per_class": dict.fromkeys(PAPER, 0.9), "threshold": 0.7, "best": "HGG",
            "score": 0.9, "verdict": "found",
        }
    ],
    "warnings": ["class healthy comes from <IXI> only"],
}  # fmt: skip


def write_run(
    folder: Path,
    *,
    variants: tuple[str, ...] = ("mc3/scratch", "r3d/pretrained"),
    finished: dict[str, dict[int, list[int]]],
    class_names: tuple[str, ...] = PAPER,
    synthetic: bool = True,
    audit: dict[str, Any] | None = None,
    preprocess: PreprocessConfig | None = None,
) -> Path:
    """A folder as `ssclf cv` leaves it: six volumes tested a fold, two of each class, with what was said of them."""
    settings: dict[str, Any] = {
        "format": 1,
        "config": {
            k: v for k, v in config_to_dict(TrainConfig()).items() if k not in ("architecture", "pretrained")
        },
        "scheme": "kfold",
        "folds": 2,
        "variants": list(variants),
        "class_names": list(class_names),
        "preprocess": config_to_dict(preprocess or PreprocessConfig()),
        "synthetic": synthetic,
        "volumes": "",
        "cohort": {name: {"one": 3, "two": 1} for name in class_names},
        "data": "data",
    }
    folder.mkdir(parents=True)
    (folder / "cv.json").write_text(json.dumps(settings))
    if audit:
        (folder / "audit.json").write_text(json.dumps(audit))
    for variant, folds in finished.items():
        for fold, said in folds.items():
            cell = folder / "cells" / variant / str(fold)
            cell.mkdir(parents=True)
            rows = [
                "path,subject,source,part,label,prediction," + ",".join(f"logit_{n}" for n in class_names)
            ]
            for number, answer in enumerate(said):
                label = class_names[number % len(class_names)]
                logits = ",".join(str(3.0 * (k == answer)) for k in range(len(class_names)))
                source = "one" if number < 3 else "two"
                rows.append(f"v{fold}{number},s{fold}{number},{source},test,{label},,{logits}")
            (cell / "predictions.csv").write_text("\n".join(rows))
            (cell / "metrics.csv").write_text("epoch,train_loss,val_loss,seconds\n1,0.9,,6\n2,0.5,,9\n")
            training = {"volumes": {"train": {"any": 3}}, "chosen_epoch": 2}
            (cell / "provenance.json").write_text(
                json.dumps({"class_names": class_names, "training": training})
            )
            cost = {
                "parameters": 11472963, "gflops": 1.25, "shape": [1, 6, 7, 8], "seconds_per_volume": 0.5,
                "device": "cpu, 2 threads", "peak_training_mb": 900.0 + fold, "peak_of": "memory of the process",
            }  # fmt: skip
            (cell / "cost.json").write_text(json.dumps(cost))
    return folder


def table(run: Path) -> dict[tuple[str, str, str, str], dict[str, str]]:
    with (run / "tables.csv").open(newline="") as file:
        return {
            (row["network"], row["class"], row["metric"], row["probabilities"]): row
            for row in csv.DictReader(file)
        }


def text_of(page: str) -> str:
    shown = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", shown).split())


@pytest.mark.parametrize(
    ("preprocess", "told"),
    [
        (PreprocessConfig.preset("paper", crop_margin_mm=3), ""),
        (PreprocessConfig.preset("default"), "crop brain"),
        (
            PreprocessConfig(
                spacing=(14, 10, 10), percentiles=(1, 99.9), plane="coronal", contrasts=("t1", "flair")
            ),
            "spacing 14 x 10 x 10 mm, percentiles 1 to 99.9, plane coronal, contrasts t1 and flair",
        ),
    ],
)
def test_the_title_says_what_of_the_preprocessing_is_not_the_papers(
    preprocess: PreprocessConfig, told: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", finished={}, synthetic=False, preprocess=preprocess)
    page = write_cv_report(run).read_text("utf-8")
    expected = f"Cross-validation, not preprocessed as in the paper: {told}" if told else "Cross-validation"
    assert f"<title>{expected}</title>" in page and f"<h1>{expected}</h1>" in page


RIGHT = [0, 1, 2, 0, 1, 2]
ONE_WRONG = [0, 1, 2, 0, 0, 2]  # an LGG called HGG: F1 of HGG 4/5, of LGG 2/3


def test_scores_beside_the_papers(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        finished={"mc3/scratch": {1: RIGHT, 2: ONE_WRONG}, "r3d/pretrained": {1: ONE_WRONG}},
        audit=AUDIT,
    )
    page = write_cv_report(run).read_text("utf-8")
    rows = table(run)
    f1 = rows["mc3/scratch", "LGG", "f1", "any"]
    assert float(f1["mean"]) == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
    assert float(f1["sd"]) == pytest.approx(np.std([1, 2 / 3], ddof=1), abs=1e-6)
    assert (f1["paper"], f1["paper_sd"], f1["folds"]) == ("0.7734", "0.031", "2")
    assert float(f1["ci_low"]) < float(f1["mean"]) <= float(f1["ci_high"])
    recall = rows["mc3/scratch", "LGG", "recall", "any"]
    assert (float(recall["mean"]), recall["paper"]) == (0.75, "0.886")
    specificity = rows["r3d/pretrained", "HGG", "specificity", "any"]
    assert (float(specificity["mean"]), specificity["sd"], specificity["paper"]) == (0.75, "", "0.9378")
    assert rows["r3d/pretrained", "", "macro_f1", "any"]["paper"] == "0.8925"
    assert {row["data"] for row in rows.values()} == {"synthetic"}
    # the paper's accuracy is no share of volumes, so it stands in its footnote only
    assert rows["mc3/scratch", "", "accuracy", "any"]["paper"] == ""
    text = text_of(page)
    assert text.count("96.98") == 1 and "cannot be the share of volumes classified right" in text
    assert "r3d/pretrained/2" in text and "Not complete" in text
    for number in ("0.833 ± 0.236", "0.7734 ± 0.031", "0.8607", "11,472,963", "33,150,522", "901"):
        assert number in text, number
    assert "Research use only" in text and "Cross-validation (synthetic)" in text
    assert "class healthy comes from &lt;IXI&gt; only" in page
    assert "tells HGG" in text


def test_the_page_is_one_file_and_its_figures_lie_beside_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished={"mc3/scratch": {1: RIGHT, 2: ONE_WRONG}})
    page = write_cv_report(run).read_text("utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/svg+xml;base64,") == 4
    names = {path.name for path in (run / "figures").iterdir()}
    stems = ("confusion", "per-class", "reliability", "learning-curves")
    assert names == {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg")}
    assert "Not looked at yet" in page
    again = write_cv_report(run).read_text("utf-8")
    assert text_of(again) == text_of(page)


HOSTILE = (
    ("cost $5_a^$", r"$\frac{", "$$"),
    (r"\$a\$", "100 % {x}", "<b>&'\""),
    ("\u8133 $\u00fc$", "bell\x07 and $\x1b$", "a; b = #"),
)


@pytest.mark.parametrize("names", HOSTILE)
def test_class_names_are_text_in_figures(names: tuple[str, ...], tmp_path: Path) -> None:
    """Two dollar signs made a formula of what stood between them, and ended the report after all trainings."""
    run = write_run(tmp_path / "run", finished={"mc3/scratch": {1: RIGHT, 2: ONE_WRONG}}, class_names=names)
    with mpl.rc_context({"svg.fonttype": "none"}):
        write_cv_report(run)
    shown = ET.parse(run / "figures" / "confusion.svg").getroot()
    texts = ["".join(element.itertext()) for element in shown.iter("{http://www.w3.org/2000/svg}text")]
    for name in names:
        plain = "".join(c if c.isprintable() else "\ufffd" for c in name)
        assert texts.count(plain) == 2, (plain, texts)  # an axis each


def test_a_report_that_cannot_be_written_costs_no_training(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished={"mc3/scratch": {1: RIGHT}})
    (run / "report.html").mkdir()
    result = CvResult(run, {}, ())
    with pytest.raises(typer.Exit) as found:
        _report_cv(result, None)
    assert found.value.exit_code == 3


def test_an_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variants=("mc3/scratch",), finished={})
    text = text_of(write_cv_report(run).read_text("utf-8"))
    assert "No training is finished yet" in text
    assert "mc3/scratch/1, mc3/scratch/2" in text
    assert table(run) == {}


def test_other_classes_and_real_volumes_stand_alone(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        finished={"mc3/scratch": {1: [0, 1, 0, 1]}},
        class_names=("=a", "b"),
        synthetic=False,
    )
    text = text_of(write_cv_report(run).read_text("utf-8"))
    assert "paper's Table" not in text and "96.98" not in text
    assert "synthetic" not in text.lower()
    rows = table(run)
    assert rows["mc3/scratch", "'=a", "f1", "any"]["paper"] == ""
    assert rows["mc3/scratch", "", "macro_f1", "any"]["mean"] == "1.000000"
    assert rows["mc3/scratch", "", "macro_f1", "any"]["data"] == "as given"


def test_sources_are_scored_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variants=("mc3/scratch",), finished={"mc3/scratch": {1: ONE_WRONG}})
    text = text_of(write_cv_report(run).read_text("utf-8"))
    assert "from scratch one 3 1.000 1.000 1.000 1.000" in text
    assert "from scratch two 3 0.667 1.000 0.000 1.000" in text


def test_a_folder_that_is_no_cross_validation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cv\.json"):
        write_cv_report(tmp_path)
