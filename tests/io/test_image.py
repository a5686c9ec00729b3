"""The container image as a hospital runs it: no network, nothing writable but the output folder, any user.

Needs an image: `scripts/build-image --test` builds one and runs this file on it (SSCLF_TEST_IMAGE names the image,
SSCLF_TEST_ENGINE docker or podman).
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from dicom_writer import WrittenSeries

import ssclf
from ssclf.domain.volume import Volume
from ssclf.io.models.checksums import write_checksums
from ssclf.io.volumes.nifti import write_nifti

HARDENED = ("--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
STRANGER = 1234


@dataclass(frozen=True)
class Image:
    name: str
    engine: str

    def run(
        self,
        *arguments: str,
        mounts: Mapping[Path, str] | None = None,
        options: tuple[str, ...] = ("--rm", *HARDENED),
        user: int = STRANGER,
    ) -> subprocess.CompletedProcess[str]:
        """`mounts`: folder here → place in the container, with `:ro` where it is read only."""
        volumes = [f"--volume={folder}:{place}" for folder, place in (mounts or {}).items()]
        command = [self.engine, "run", *options, f"--user={user}:{user}", *volumes, self.name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=500)

    def inspect(self, template: str) -> str:
        command = [self.engine, "image", "inspect", self.name, "--format", template]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="session")
def image() -> Image:
    name = os.environ.get("SSCLF_TEST_IMAGE")
    if not name:
        pytest.skip("no image named in SSCLF_TEST_IMAGE: scripts/build-image --test builds one and tests it")
    return Image(name, os.environ.get("SSCLF_TEST_ENGINE", "podman"))


@pytest.fixture(scope="session")
def bundle(
    image: Image, tiny_bundle: Path, extraction_models: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The untrained bundle with what strips skulls, as `ssclf export` would leave it."""
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    shutil.copytree(tiny_bundle, folder)
    for path in extraction_models:
        shutil.copy(path, folder)
    write_checksums(folder)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder that the container's user may write."""
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def make_head() -> Volume:
    """SYNTHETIC head with scalp, skull and brain on a noisy background, 3 mm; axes to superior, anterior, right."""
    rng = np.random.default_rng(0)
    shape, spacing = (64, 76, 62), 3.0
    grid = np.stack(np.meshgrid(*((np.arange(n) - n / 2 + 0.5) * spacing for n in shape), indexing="ij"))

    def inside(*radii: float) -> np.ndarray:
        return ((grid / np.array(radii).reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1

    data = rng.normal(12, 3, shape)
    for radii, level in (((88, 106, 86), 220), ((80, 97, 77), 40), ((73, 89, 70), 70), ((68, 84, 65), 150)):
        data = np.where(inside(*radii), level + rng.normal(0, 4, shape), data)
    data = np.where(inside(45, 60, 42), data + 45, data)  # white matter
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = spacing
    affine[:3, 3] = [-spacing * n / 2 for n in reversed(shape)]
    affine[3, 3] = 1
    return Volume(data.clip(0).astype(np.float32)[None], affine)


def predict_outside(scans: Path, bundle: Path, out: Path) -> int:
    command = [sys.executable, "-m", "ssclf", "predict", str(scans), "--out", str(out), "--workers", "2"]
    return subprocess.run([*command, "--model", str(bundle), "--quiet"], timeout=500).returncode


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_rows(inside: Path, outside: Path, count: int) -> None:
    """Equal but for the seconds, numbers to 1e-4."""
    tables = [read_rows(path) for path in (inside, outside)]
    assert [len(table) for table in tables] == [count, count]
    for ours, theirs in zip(*tables, strict=True):
        assert list(ours) == list(theirs)
        for column in set(ours) - {"seconds"}:
            if column.startswith("p_") and ours["status"] == "ok":
                assert float(ours[column]) == pytest.approx(float(theirs[column]), abs=1e-4), ours["path"]
            elif column in ("confidence", "brain_ml") and ours["status"] == "ok":
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-3), ours["path"]
            else:
                assert ours[column] == theirs[column], ours["path"]


def test_classifies_as_outside_and_writes_nothing_but_the_results(
    image: Image, bundle: Path, out: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    scans = tmp_path / "scans"
    write_nifti(make_volume(), scans / "stripped.nii.gz")
    write_nifti(make_head(), scans / "head.nii.gz")
    pixels = make_volume(seed=1).data[0].clip(0).astype(np.uint16)
    WrittenSeries(pixels).write(scans / "series")
    shutil.copy(scans / "stripped.nii.gz", scans / "cut.nii.gz")
    os.truncate(scans / "cut.nii.gz", 3000)
    (scans / "letter.nrrd").write_text("Dear colleague")
    before = {path: path.stat().st_mtime_ns for path in sorted(scans.rglob("*"))}

    result = image.run(
        *("predict", "/scans", "--out", "/out/results.csv", "--workers", "2"),
        mounts={scans: "/scans:ro", bundle: "/model:ro", out: "/out"},
    )

    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "results.json"]
    assert {path: path.stat().st_mtime_ns for path in sorted(scans.rglob("*"))} == before
    assert (out / "results.csv").stat().st_uid == STRANGER or os.getuid() != 0
    rows = read_rows(out / "results.csv")
    assert {row["path"]: row["status"] for row in rows} == {
        "cut.nii.gz": "failed",
        "head.nii.gz": "ok",
        "letter.nrrd": "failed",
        "series": "ok",
        "stripped.nii.gz": "ok",
    }
    assert predict_outside(scans, bundle, tmp_path / "outside.csv") == 3
    assert_same_rows(out / "results.csv", tmp_path / "outside.csv", count=5)


def test_real_heads_are_classified_as_outside(
    image: Image, bundle: Path, out: Path, tmp_path: Path, shared_data: Path
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in (
        "head/ixi/IXI034-HH-1260_T1.nii.gz",
        "head/niivue_otsu_T1_head.nii.gz",
        "brats18/HGG/Brats18_TCIA02_135_1/Brats18_TCIA02_135_1_t1ce.nii.gz",
    ):
        shutil.copy(shared_data / path, scans)
    mounts = {scans: "/scans:ro", bundle: "/model:ro", out: "/out"}
    result = image.run("predict", "/scans", "--out", "/out/results.csv", "--workers", "2", mounts=mounts)
    assert result.returncode == 0, result.stderr
    assert predict_outside(scans, bundle, tmp_path / "outside.csv") == 0
    assert_same_rows(out / "results.csv", tmp_path / "outside.csv", count=3)


def test_a_root_that_could_be_written_stays_as_it_is(
    image: Image, bundle: Path, out: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    write_nifti(make_volume(), tmp_path / "scans" / "a.nii.gz")
    name = f"ssclf-test-{os.getpid()}"
    mounts = {tmp_path / "scans": "/scans:ro", bundle: "/model:ro", out: "/out"}
    try:
        result = image.run(
            *("predict", "/scans", "--out", "/out/results.csv", "--skull-strip", "none"),
            mounts=mounts,
            options=("--network=none", f"--name={name}"),
            user=0,
        )
        assert result.returncode == 0, result.stderr
        changes = subprocess.run(
            [image.engine, "diff", name], capture_output=True, text=True, check=True
        ).stdout
    finally:
        subprocess.run([image.engine, "rm", "--force", name], capture_output=True, check=True)
    # the engine itself makes the places of the mounts, and files such as /etc/hosts
    made = [line[2:] for line in changes.splitlines() if line.startswith("A ")]
    assert [path for path in made if not path.startswith(("/scans", "/out", "/etc/", "/run"))] == []


@pytest.mark.parametrize(
    ("mounted", "arguments", "words"),
    [
        ("", "predict /scans --out /out/results.csv", ["this image holds no model", "-v", "/model:ro"]),
        ("scans out", "predict /scans --out /out/results.csv", ["this image holds no model", "/model:ro"]),
        ("model out", "predict /scans --out /out/results.csv", ["/scans", "-v /path/to/scans:/scans:ro"]),
        ("model scans", "predict /scans --out /out/results.csv", ["/out", "-v /path/to/results:/out"]),
        (
            "model scans out",
            "predict /home/me/scans --out /out/r.csv",
            ["/home/me/scans", "only mounted folders"],
        ),
        ("model scans", "predict /scans", ["cannot be written", "--user"]),
        (
            "model scans sealed",
            "predict /scans --out /out/results.csv",
            ["cannot be written", "--user $(id -u)"],
        ),
        ("model hidden out", "predict /scans --out /out/results.csv", ["/scans", "--user $(id -u)"]),
        ("model hidden out", "predict /scans/a.nii.gz --out /out/results.csv", ["--user $(id -u)"]),
        ("locked scans out", "predict /scans --out /out/results.csv", ["/model", "--user $(id -u)"]),
        (
            "model scans out",
            "predict /scans --out /out/r.csv --device cuda",
            ["--device cuda", "gpu", "--gpus all"],
        ),
        ("model scans out", "/scans", ["No such command"]),
        ("", "", ["predict", "Usage"]),
    ],
)
def test_a_mistyped_run_is_told_what_to_do(
    image: Image,
    bundle: Path,
    out: Path,
    tmp_path: Path,
    make_volume: Callable[..., Volume],
    mounted: str,
    arguments: str,
    words: list[str],
) -> None:
    if os.getuid() != 0 and {"sealed", "hidden", "locked"} & set(mounted.split()):
        pytest.skip("only root can make folders that are another user's")
    places: dict[str, tuple[Path, str]] = {"model": (bundle, "/model:ro"), "out": (out, "/out")}
    for name, place, mode in (
        ("scans", "/scans:ro", 0o755),
        ("hidden", "/scans:ro", 0o700),
        ("sealed", "/out", 0o755),
        ("locked", "/model:ro", 0o700),
    ):
        folder = tmp_path / name
        write_nifti(make_volume(), folder / "a.nii.gz")
        folder.chmod(mode)
        places[name] = folder, place
    result = image.run(*arguments.split(), mounts=dict(places[name] for name in mounted.split()))
    said = " ".join((result.stdout + result.stderr).split())
    assert result.returncode in (1, 2), said
    assert "Traceback" not in said
    for word in words:
        assert word in said


def test_a_container_without_shared_memory_is_told_so(
    image: Image, bundle: Path, out: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    write_nifti(make_volume(), tmp_path / "scans" / "a.nii.gz")
    (tmp_path / "nothing").mkdir()
    mounts = {tmp_path / "scans": "/scans:ro", bundle: "/model:ro", out: "/out"}
    mounts[tmp_path / "nothing"] = "/dev/shm:ro"
    result = image.run("predict", "/scans", "--out", "/out/results.csv", mounts=mounts)
    assert result.returncode == 1
    assert "needs a writable /dev/shm" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_an_incompatible_bundle_is_refused(
    image: Image, bundle: Path, out: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    write_nifti(make_volume(), tmp_path / "scans" / "a.nii.gz")
    newer = tmp_path / "newer"
    shutil.copytree(bundle, newer)
    spec = json.loads((newer / "spec.json").read_text("utf-8"))
    mine = spec["format"]
    spec["format"] = mine + 1
    (newer / "spec.json").write_text(json.dumps(spec), "utf-8")
    write_checksums(newer)
    mounts = {tmp_path / "scans": "/scans:ro", newer: "/model:ro", out: "/out"}
    result = image.run("predict", "/scans", "--out", "/out/results.csv", mounts=mounts)
    assert result.returncode == 1
    assert f"expected a bundle of format {mine}, found {mine + 1}" in " ".join(result.stderr.split())
    assert image.inspect('{{index .Config.Labels "ssclf.bundle-format"}}') == str(mine)


def test_doctor_finds_the_install_whole(image: Image, bundle: Path) -> None:
    empty = image.run("doctor")
    assert empty.returncode == 0, empty.stdout
    whole = image.run("doctor", mounts={bundle: "/model:ro"})
    assert whole.returncode == 0, whole.stdout
    assert "brain extraction deepbet" in whole.stdout
    assert image.run("doctor", "--device", "cuda").returncode == 1


def test_the_reference_model_is_taken_where_it_is_named_and_nowhere_else(
    image: Image, out: Path, tmp_path: Path, make_volume: Callable[..., Volume]
) -> None:
    if image.run("doctor", "--model", "reference").returncode != 0:
        pytest.skip("the image was built without the reference model")
    write_nifti(make_volume(), tmp_path / "scans" / "a.nii.gz")
    (tmp_path / "nothing").mkdir()
    for mounts in ({}, {tmp_path / "nothing": "/model:ro"}):
        mounts |= {tmp_path / "scans": "/scans:ro", out: "/out"}
        result = image.run("predict", "/scans", "--out", "/out/results.csv", mounts=mounts)
        said = " ".join(result.stderr.split())
        assert result.returncode == 1 and "this image holds no model" in said
        assert "there is --model reference:" in said and not (out / "results.csv").exists()
    mounts = {tmp_path / "scans": "/scans:ro", out: "/out"}
    named = ("predict", "/scans", "--out", "/out/results.csv", "--model", "reference")
    result = image.run(*named, mounts=mounts)
    assert result.returncode == 0, result.stderr
    (row,) = read_rows(out / "results.csv")
    assert "reference_model" in row["flags"].split(";")
    assert "CC-BY-SA-4.0" in image.inspect('{{index .Config.Labels "org.opencontainers.image.licenses"}}')


def test_nothing_is_inside_that_prediction_does_not_need(image: Image) -> None:
    script = (
        "import importlib.util as u, shutil, sys;"
        "print([m for m in ('torch', 'pip', 'setuptools', 'scipy', 'ensurepip') if u.find_spec(m)],"
        "[p for p in ('gcc', 'cc', 'pip', 'pip3') if shutil.which(p)]);"
        "sys.stdout.write(open('/sbom.cdx.json').read())"
    )
    result = image.run("-c", script, options=("--rm", *HARDENED, "--entrypoint=python"))
    found, _, document = result.stdout.partition("\n")
    assert found == "[] []"
    bill = json.loads(document)
    assert bill["bomFormat"] == "CycloneDX"
    versions = {component["name"]: component["version"] for component in bill["components"]}
    assert versions["ssclf"] == ssclf.__version__
    assert any(name.startswith("onnxruntime") for name in versions)


def test_the_image_says_what_it_is(image: Image) -> None:
    assert image.inspect("{{.Config.User}}").split(":")[0].isdecimal()
    assert image.inspect("{{.Config.User}}") != "0:0"
    assert image.inspect("{{json .Config.Entrypoint}}") == '["ssclf"]'
    assert image.inspect('{{index .Config.Labels "org.opencontainers.image.version"}}') == ssclf.__version__
    names = [line.split("=")[0] for line in json.loads(image.inspect("{{json .Config.Env}}"))]
    assert {"ORT_DISABLE_TELEMETRY", "SSCLF_MODEL"} <= set(names)
    assert not [name for name in names if name.startswith("PIP_") or name.lower().endswith("_proxy")]
