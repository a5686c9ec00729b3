"""`--model reference` as a user has it: in a clone, installed, absent, and beside a folder of that name."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ssclf.domain.volume import Volume
from ssclf.errors import ModelError
from ssclf.io.models.bundle import open_bundle
from ssclf.io.models.checksums import write_checksums
from ssclf.io.volumes.nifti import write_nifti

ROOT = Path(__file__).parents[2]
FILES = shutil.ignore_patterns("model", "weights", "build", "*.egg-info", "__pycache__")


@dataclass
class Ssclf:
    """A copy of ssclf in a folder of its own, and a folder to work in."""

    home: Path
    work: Path
    environment: dict[str, str] = field(default_factory=dict)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(self.home), **self.environment}
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.work, env=environment, capture_output=True, text=True
        )

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = self.python("-m", "ssclf", *arguments)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == code and "Traceback" not in said, said
        return said

    def rows(self, name: str = "results.csv") -> dict[str, dict[str, str]]:
        with (self.work / name).open(encoding="utf-8", newline="") as file:
            return {row["path"]: row for row in csv.DictReader(file)}


@pytest.fixture
def reference_bundle(tiny_bundle: Path, tmp_path: Path, describe_anew: Callable[[Path, str], None]) -> Path:
    """A bundle that says that it was made by `ssclf pretrain`."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    spec = json.loads((folder / "spec.json").read_text("utf-8"))
    spec["training"]["config"] = {"lesions": True}
    describe_anew(folder, json.dumps(spec))
    return folder


@pytest.fixture
def ssclf(tmp_path: Path, make_volume: Callable[..., Volume]) -> Ssclf:
    """ssclf without a reference model; `scans` are two volumes in folders by class, and one that is broken."""
    made = Ssclf(tmp_path / "home", tmp_path / "work")
    shutil.copytree(ROOT / "ssclf", made.home / "ssclf", ignore=FILES)
    for number, label in enumerate(("LGG", "HGG")):
        write_nifti(make_volume(seed=number), made.work / "scans" / label / f"{number}.nii.gz")
    (made.work / "scans" / "LGG" / "broken.nii").write_bytes(b"no volume")
    return made


def as_clone(ssclf: Ssclf, **bundles: Path) -> None:
    shutil.copytree(ROOT / "reference", ssclf.home / "reference", ignore=FILES)
    for name, bundle in bundles.items():
        shutil.copytree(bundle, ssclf.home / "reference" / "ssclf_reference" / name)


def as_installed(ssclf: Ssclf, **bundles: Path) -> None:
    """What `pip install ./reference` leaves, made by pip from a copy of the folder."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the package")
    clone = Ssclf(ssclf.home.with_name("clone"), ssclf.work)
    as_clone(clone, **bundles)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    done = clone.python(
        "-m", "pip", "install", *options, "--target", str(ssclf.home), str(clone.home / "reference")
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", [as_clone, as_installed])
def test_every_row_of_it_says_that_it_has_seen_no_patient(
    ssclf: Ssclf, reference_bundle: Path, place: Callable[..., None]
) -> None:
    place(ssclf, model=reference_bundle)
    said = ssclf(
        "predict", "scans", "--model", "reference", "--skull-strip", "none", "--report", "a.html", code=3
    )
    assert "has seen no patient" in said and str(ssclf.home) in said
    rows = ssclf.rows()
    assert sorted(row["status"] for row in rows.values()) == ["failed", "ok", "ok"]
    assert all("reference_model" in row["flags"].split(";") for row in rows.values())
    page = (ssclf.work / "a.html").read_text("utf-8")
    assert "REFERENCE MODEL" in page and "has seen no" in page
    ssclf("merge", "results.csv", "--out", "all.csv", "--partial", code=3)
    assert all("reference_model" in row["flags"].split(";") for row in ssclf.rows("all.csv").values())
    api = "import ssclf; print(*{'reference_model' in r.flags for r in ssclf.predict(['scans'], ['reference'])})"
    assert ssclf.python("-c", api).stdout.split() == ["True"]
    assert "has" in ssclf("doctor", "--model", "reference")
    if place is as_installed:
        assert importlib.metadata.version("pip") and list(
            ssclf.home.glob("ssclf_reference-*.dist-info/licenses/NOTICE")
        )


def test_an_evaluation_with_it_says_so(ssclf: Ssclf, reference_bundle: Path) -> None:
    as_clone(ssclf, model=reference_bundle)
    (ssclf.work / "scans" / "LGG" / "broken.nii").unlink()
    said = ssclf("evaluate", "scans", "--model", "reference", "--skull-strip", "none")
    assert "reference_model: the model has seen no patient" in said and "2 volumes:" in said
    metrics = json.loads((ssclf.work / "evaluation" / "metrics.json").read_text("utf-8"))
    assert metrics["reference_model"] and not metrics["synthetic"]
    assert "has seen no patient" in (ssclf.work / "evaluation" / "report.html").read_text("utf-8")


def test_a_name_that_was_not_said_is_not_taken(ssclf: Ssclf, reference_bundle: Path) -> None:
    without = ssclf("predict", "scans", code=1)
    assert "--model reference, after `pip install ./reference` in a clone" in without
    assert "`pip install ./reference`" in ssclf("predict", "scans", "--model", "reference", code=1)
    assert "`pip install ./reference`" in ssclf("demo", "--heads", "scans", code=1)
    as_clone(ssclf, model=reference_bundle)
    assert "there is --model reference:" in ssclf("predict", "scans", code=1)
    (ssclf.work / "empty").mkdir()
    ssclf.environment = {"SSCLF_IMAGE": "cpu", "SSCLF_MODEL": "empty"}
    said = ssclf("predict", "scans", code=1)
    assert "this image holds no model" in said and "there is --model reference:" in said
    ssclf("predict", "scans", "--model", "absent", code=1)
    assert sorted(path.name for path in ssclf.work.iterdir()) == ["empty", "scans"]


def test_weights_alone_start_a_training_and_classify_nothing(ssclf: Ssclf, tiny_bundle: Path) -> None:
    as_clone(ssclf, weights=tiny_bundle)
    said = ssclf("predict", "scans", "--model", "reference", code=1)
    assert "docs/reference-model.md" in said and "train --from reference" in said
    pytest.importorskip("torch", reason="pip install 'ssclf[train]'")
    start = (
        "from pathlib import Path\nfrom ssclf.workflows.export import open_start\n"
        "print(open_start(Path('reference')).sha256)"
    )
    assert ssclf.python("-c", start).stdout.split() == [open_bundle(tiny_bundle).sha256]


def test_a_folder_of_that_name_is_not_exchanged_for_it(
    ssclf: Ssclf, reference_bundle: Path, tiny_bundle: Path
) -> None:
    own = ssclf.work / "reference"
    shutil.copytree(tiny_bundle, own)
    predict = ("predict", "scans", "--skull-strip", "none", "--model")
    ssclf(*predict, "reference", code=3)
    assert {row["model_sha256"] for row in ssclf.rows().values()} == {open_bundle(tiny_bundle).sha256}
    as_clone(ssclf, model=reference_bundle)
    assert f"write {own}" in ssclf(*predict, "reference", code=1)
    ssclf(*predict, str(own), code=3)
    shutil.rmtree(own)
    (own / "other").mkdir(parents=True)  # no model
    ssclf(*predict, "reference", code=3)
    assert {row["model_sha256"] for row in ssclf.rows().values()} == {open_bundle(reference_bundle).sha256}


def test_a_spec_that_hides_it_is_refused(reference_bundle: Path) -> None:
    spec = json.loads((reference_bundle / "spec.json").read_text("utf-8"))
    spec["training"]["config"]["lesions"] = False
    (reference_bundle / "spec.json").write_text(json.dumps(spec), "utf-8")
    write_checksums(reference_bundle)
    with pytest.raises(ModelError, match="pretrained_on_lesions"):
        open_bundle(reference_bundle)


def test_the_second_act_of_the_demo(
    ssclf: Ssclf, reference_bundle: Path, make_volume: Callable[..., Volume]
) -> None:
    as_clone(ssclf, model=reference_bundle)
    write_nifti(make_volume((10, 13, 11)), ssclf.work / "heads" / "small.nii.gz")  # few parts to hide in turn
    assert "results.html" in ssclf("demo", "--heads", "heads", "--workers", "1")
    out = ssclf.work / "demo" / "heads"
    assert sorted(path.name for path in out.iterdir()) == [
        "maps",
        "results.csv",
        "results.html",
        "results.json",
    ]
    assert len(list((out / "maps").rglob("*.nii.gz"))) == 1
    assert "data:image" in (out / "results.html").read_text("utf-8")
    assert "--seed" in ssclf("demo", "--heads", "heads", "--seed", "1", code=1)


def test_it_is_in_no_wheel_of_ssclf() -> None:
    setuptools = pytest.importorskip("setuptools", minversion="77")
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    include = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"][
        "find"
    ]
    found = setuptools.find_namespace_packages(str(ROOT), **include)
    assert "ssclf.domain" in found and {name.partition(".")[0] for name in found} == {"ssclf"}
    other = tomllib.loads((ROOT / "reference" / "pyproject.toml").read_text("utf-8"))["project"]
    assert (
        other["name"] == "ssclf-reference"
        and "CC-BY-SA-4.0" in other["license"]
        and "dependencies" not in other
    )


@pytest.mark.parametrize("name", ["model", "weights"])
def test_what_ships_is_whole_small_and_says_what_it_is(name: str) -> None:
    folder = ROOT / "reference" / "ssclf_reference" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not there yet")
    bundle = open_bundle(folder)
    assert bundle.spec.pretrained_on_lesions
    if name == "model":
        assert bundle.onnx and bundle.onnx.stat().st_size < 25e6 and len(bundle.extraction) == 2
    else:
        assert bundle.torchscript
