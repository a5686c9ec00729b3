"""A network in 8 bits: made from a real run, let through the gate or refused, and asked for by name."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import PredictConfig, TrainConfig, config_to_dict
from ssclf.domain.scores import softmax
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, DatasetError, ModelError, ParityError
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.checksums import write_checksums
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.models.runtime import open_classifier
from ssclf.io.volumes.nifti import read_written, write_nifti
from ssclf.workflows.classification import method_digest
from ssclf.workflows.predict import predict

torch = pytest.importorskip("torch", reason="pip install 'ssclf[train]'")
from ssclf.learning.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402
from ssclf.workflows.export import ExportConfig, export_run  # noqa: E402
from ssclf.workflows.train import Machine, train  # noqa: E402

INT8 = ExportConfig(formats=["onnx"], brain_extraction=False, int8=True)
SMALL = TrainConfig(
    architecture="small", epochs=15, learning_rate=2e-3, batch_size=4, holdout=0.34, precision="32-true",
    augmentation="none",
)  # fmt: skip


@pytest.fixture
def run(preprocessed: Callable[..., Path], tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return train(preprocessed(per_class=6), tmp_path / "run", SMALL, machine=Machine(workers=0)).run


@pytest.fixture
def scans(make_volume: Callable[..., Volume], tmp_path: Path) -> Path:
    for seed in range(2):
        write_nifti(make_volume(seed=seed), tmp_path / "scans" / f"{seed}.nii.gz")
    return tmp_path / "scans"


def invoke(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def test_the_network_in_8_bits_is_close_small_and_described(run: Path, tmp_path: Path) -> None:
    bundle = open_bundle(export_run(run, tmp_path / "model", INT8))
    assert bundle.int8 and bundle.onnx and bundle.precision == "fp32"
    assert bundle.int8.stat().st_size < 0.4 * bundle.onnx.stat().st_size
    eight = bundle.spec.int8
    assert eight and eight.calibrated_on == {"HGG": 4, "LGG": 4, "healthy": 4}
    assert (eight.part, eight.fitted_on, eight.volumes) == ("test", "test", 6)
    assert eight.largest_difference <= 0.02 and eight.temperature != bundle.spec.temperature
    # what the gate promises, looked at from outside: what `predict` says of the volumes that were held out
    both = [bundle.at("fp32"), bundle.at("int8")]
    test = json.loads((run / "split.json").read_text())["splits"][0]["test"]
    volumes = [read_written(run.parent / "preprocessed" / key).data[None] for key in test]
    plain, small = (
        [softmax(classifier.classify(v).logits[0], classifier.spec.temperature) for v in volumes]
        for classifier in (open_classifier(one, device="cpu", threads=1) for one in both)
    )
    difference = np.abs(np.array(plain) - small).max()
    assert 0 < difference == pytest.approx(eight.largest_difference, abs=1e-4)
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert (
        "8 bits" in card and f"{eight.largest_difference:.4f}" in card and f"{eight.temperature:.3f}" in card
    )
    alone = open_bundle(bundle.int8)
    assert alone.at("int8").spec == both[1].spec
    with pytest.raises(ModelError, match="--precision int8"):
        Ensemble([alone], PredictConfig())


def test_default_rows_are_what_they_were_and_int8_makes_its_own(
    run: Path, scans: Path, tmp_path: Path
) -> None:
    plain = export_run(run, tmp_path / "plain" / "model", dataclasses.replace(INT8, int8=False))
    both = export_run(run, tmp_path / "both" / "model", INT8)
    assert (plain / "model.onnx").read_bytes() == (both / "model.onnx").read_bytes()
    config, int8 = PredictConfig(threads=1), PredictConfig(threads=1, precision="int8")
    digests = [method_digest(Ensemble([open_bundle(path)], config), config) for path in (plain, both)]
    assert digests[0] == digests[1] != method_digest(Ensemble([open_bundle(both)], int8), int8)
    out = tmp_path / "results.csv"
    first = predict([scans], out, [plain], config)
    again = predict([scans], out, [both], config)
    assert (again.reused, again.rows) == (2, first.rows)
    anew = predict([scans], out, [both], int8, report=tmp_path / "page.html", maps=tmp_path / "maps")
    assert anew.reused == 0 and not anew.failed
    assert {row.precision for row in first.rows} == {"fp32"} and {row.precision for row in anew.rows} == {
        "int8"
    }
    assert {row.model_sha256 for row in anew.rows} == {open_bundle(both).int8_sha256}
    details = json.loads(out.with_suffix(".json").read_text())["run"]
    assert details["models"][0]["precision"] == details["config"]["precision"] == "int8"
    assert (
        len(list((tmp_path / "maps").iterdir())) == 2 and "in 8 bits" in (tmp_path / "page.html").read_text()
    )
    hiding = dataclasses.replace(int8, map_method="occlusion")
    several = predict(
        [scans / "0.nii.gz"], tmp_path / "two.csv", [both, both], hiding, maps=tmp_path / "hidden"
    )
    assert [(row.status, row.precision) for row in several.rows] == [("ok", "int8")]


def test_evaluate_scores_the_network_in_8_bits_at_its_own_temperature(run: Path, tmp_path: Path) -> None:
    """As `predict --precision int8` answers; volumes that trained it are left out for either precision."""
    model = export_run(run, tmp_path / "model", INT8)
    test = json.loads((run / "split.json").read_text())["splits"][0]["test"]
    scored = {}
    for precision in ("fp32", "int8"):
        code, _ = invoke("evaluate", run.parent / "preprocessed", "--model", model, "--leave-out-seen",
                         "--precision", precision, "--out", tmp_path / precision, "--quiet")  # fmt: skip
        assert code == 0
        with (tmp_path / precision / "predictions.csv").open(newline="") as file:
            scored[precision] = {row["path"]: row for row in csv.DictReader(file)}
        assert json.loads((tmp_path / precision / "metrics.json").read_text())["precision"] == precision
        page = (tmp_path / precision / "report.html").read_text()
        assert f'<th scope="row">precision</th><td class="wrap">{precision}</td>' in page
    eight = open_bundle(model).at("int8")
    assert scored["int8"].keys() == scored["fp32"].keys() == set(test)
    assert [r["logit_HGG"] for r in scored["int8"].values()] != [
        r["logit_HGG"] for r in scored["fp32"].values()
    ]
    for key, row in scored["int8"].items():
        data = read_written(run.parent / "preprocessed" / key).data[None]
        p = softmax(
            open_classifier(eight, device="cpu", threads=1).classify(data).logits[0], eight.spec.temperature
        )
        assert [float(row[f"p_{name}"]) for name in eight.spec.class_names] == pytest.approx(p, abs=1e-5)
    code, said = invoke("evaluate", run.parent / "preprocessed", "--model", model, "--leave-out-seen",
                        "--precision", "int8", "--engine", "torchscript", "--out", tmp_path / "no")  # fmt: skip
    assert code == 1 and "leave --engine torchscript" in said and not (tmp_path / "no").exists()


def test_the_digest_of_default_rows_is_that_of_the_versions_before(tiny_bundle: Path) -> None:
    """Rows of a finished run stay valid: a setting that came later is not in what they were made from."""
    config = PredictConfig()
    bundle = open_bundle(tiny_bundle)
    settings = config_to_dict(dataclasses.replace(config, timeout_s=None, review_below=0))
    for later in ("map_method", "precision"):
        del settings[later]
    text = json.dumps([bundle.sha256, [bundle.spec.to_json()], settings])
    assert method_digest(Ensemble([bundle], config), config) == hashlib.sha256(text.encode()).digest()


def test_a_network_that_8_bits_ruin_is_refused_with_the_volumes(run: Path, tmp_path: Path) -> None:
    """One channel of each layer carries numbers ten thousand times as large as the others, which the next layer takes
    back: the same function, and 8 bits see that channel alone."""
    checkpoint = load_checkpoint(run / "checkpoints" / "chosen.pt")
    weights = checkpoint["network"]
    names = [name for name in weights if name.endswith(".weight") and weights[name].ndim == 5]
    for name, following in itertools.pairwise(names):
        stage, index, _ = name.split(".")
        norm = f"{stage}.{int(index) + 1}"
        for part in ("weight", "bias"):
            weights[f"{norm}.{part}"][0] *= 1e4
        weights[following][:, 0] *= 1e-4
    save_checkpoint(checkpoint, run / "checkpoints" / "chosen.pt")
    out = tmp_path / "exported" / "model"
    with pytest.raises(
        ParityError, match=r"(?s)6 volumes of the test.*difference.*32 bits.*8 bits.*volume\n.*nii\.gz"
    ):
        export_run(run, out, INT8)
    assert list(out.parent.iterdir()) == []
    assert open_bundle(export_run(run, out, dataclasses.replace(INT8, int8=False))).int8 is None


def test_a_changed_file_and_a_changed_description_are_found(run: Path, tmp_path: Path) -> None:
    path = export_run(run, tmp_path / "model", INT8)
    shutil.copytree(path, tmp_path / "byte")
    content = bytearray((path / "model.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "byte" / "model.int8.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.int8\.onnx: expected SHA-256"):
        open_bundle(tmp_path / "byte")
    shutil.copytree(path, tmp_path / "spec")
    spec = json.loads((path / "spec.json").read_text())
    spec["int8"]["temperature"] *= 2
    (tmp_path / "spec" / "spec.json").write_text(json.dumps(spec))
    write_checksums(tmp_path / "spec")
    with pytest.raises(ModelError, match=r"int8 is not what model\.int8\.onnx was exported with"):
        open_bundle(tmp_path / "spec")
    shutil.copytree(path, tmp_path / "other")
    shutil.copyfile(path / "model.int8.onnx", tmp_path / "other" / "model.onnx")
    write_checksums(tmp_path / "other")
    with pytest.raises(ModelError, match="32 or 16 bits"):
        open_bundle(tmp_path / "other")


def test_what_has_no_8_bits_is_refused_before_any_row(run: Path, scans: Path, tmp_path: Path) -> None:
    both = export_run(run, tmp_path / "both", INT8)
    plain = export_run(run, tmp_path / "plain", dataclasses.replace(INT8, int8=False))
    out = tmp_path / "results.csv"
    words = ("predict", scans, "--out", out, "--precision", "int8", "--model", both, "--workers", 1)
    code, said = invoke(*words, "--model", plain)
    assert code == 1 and "plain: expected model.int8.onnx" in said and "ssclf export RUN --int8" in said
    assert not out.exists()
    for option in (("--device", "cuda"), ("--engine", "torchscript")):
        code, said = invoke(*words, *option)
        assert code == 1 and "--precision int8" in said and option[0] in said
    code, _ = invoke(*words, "--threads", 1, "--quiet")
    assert code == 0 and out.read_text().count('"int8"') == 2
    code, said = invoke("doctor", "--model", both, "--model", plain, "--bench")
    assert code == 0 and "in 8 bits" in said and "times as fast" in said and "ssclf export RUN --int8" in said


def test_what_it_needs_of_the_run_is_said(run: Path, tmp_path: Path) -> None:
    data = run.parent / "preprocessed"
    data.rename(tmp_path / "moved")
    with pytest.raises(DatasetError, match=r"needs the preprocessed volumes.*preprocessed.*--data"):
        export_run(run, tmp_path / "model", INT8)
    assert export_run(run, tmp_path / "model", INT8, data=tmp_path / "moved").is_dir()
    manifest = tmp_path / "moved" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("HGG00000", "abc00000"))
    with pytest.raises(DatasetError, match="these are others"):
        export_run(run, tmp_path / "again", INT8, data=tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"--int8.*--format onnx"):
        ExportConfig(formats=["torchscript"], int8=True)
