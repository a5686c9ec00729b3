"""Shared fixtures: tiny volumes on which a swapped axis cannot pass, and the optional folder of real data."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from ssclf.config import PreprocessConfig, config_to_dict
from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

if TYPE_CHECKING:
    from serving import Archive

#: How long a machine takes says nothing of what is right.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        (module,) = mark.args
        pytest.importorskip(module, reason="pip install 'ssclf[train]'")


@pytest.fixture(autouse=True)
def log_as_found() -> Iterator[None]:
    """A command sends the log to the stderr of its test, which ends with it."""
    logger = logging.getLogger("ssclf")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate, logger.level = before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real MR volumes for development: beside the checkout, or where SSCLF_TEST_DATA points."""
    folder = Path(os.environ.get("SSCLF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "manifest.csv").is_file():
        pytest.skip("the developers' real MR volumes are not here (set SSCLF_TEST_DATA to their folder)")
    return folder


@pytest.fixture(scope="session")
def extraction_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """deepbet's networks as ONNX with their licence, converted once per run."""
    for module in ("torch", "onnx", "deepbet"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install 'ssclf[train]'")
    from ssclf.learning.extraction_export import export_brain_extraction

    return export_brain_extraction(tmp_path_factory.mktemp("extraction"))


@pytest.fixture(scope="session")
def make_volume() -> Callable[..., Volume]:
    """A stripped "brain": a textured ellipsoid on a background of 0, unequal sizes and spacings."""

    def make(
        shape: tuple[int, int, int] = (20, 26, 22),
        spacing: tuple[float, float, float] = (7.0, 6.0, 6.5),
        *,
        seed: int = 0,
        dtype: type[np.generic] = np.float32,
    ) -> Volume:
        rng = np.random.default_rng(seed)
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        inside = (grid**2).sum(axis=0) < 0.8
        texture = 400 + 100 * np.sin(5 * grid).sum(axis=0) + rng.normal(0, 20, shape)
        data = np.where(inside, texture, 0).astype(dtype)
        affine = np.zeros((4, 4))
        # (d, h, w) grow towards superior, anterior, right
        affine[2, 0], affine[1, 1], affine[0, 2] = spacing
        affine[:, 3] = [-70.0, -80.0, -60.0, 1.0]
        return Volume(data[None], affine)

    return make


def _write_untrained_bundle(folder: Path, seed: int, architecture: str) -> Path:
    """A real bundle of an untrained network, on a 6 mm grid; its weights spread the probabilities."""
    torch = pytest.importorskip("torch")
    from ssclf.config import PreprocessConfig
    from ssclf.domain.model_spec import ModelSpec
    from ssclf.io.models.checksums import write_checksums
    from ssclf.learning.exporting import PLANAR, export_onnx, export_torchscript
    from ssclf.learning.networks import build_network

    folder.mkdir()
    torch.manual_seed(seed)
    network = build_network(architecture, channels=1, classes=3).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        network.fc.weight.mul_(20)
    spec = ModelSpec(
        name=folder.name,
        architecture=architecture,
        class_names=("LGG", "HGG", "healthy"),
        preprocess=PreprocessConfig(spacing=(6.0, 6.0, 6.0)),
        training={"synthetic": True},
        versions={"ssclf": "test"},
    )
    metadata = {"spec.json": spec.to_json()}
    (folder / "spec.json").write_text(metadata["spec.json"])
    export_onnx(network, 1, folder / "model.onnx", metadata, planar=architecture in PLANAR)
    export_torchscript(network, 1, folder / "model.torchscript.pt", metadata)
    write_checksums(folder)
    return folder


@pytest.fixture
def describe_anew() -> Callable[[Path, str], None]:
    """Gives a bundle another description as an export would: beside its network and in it. Its TorchScript goes."""
    onnx = pytest.importorskip("onnx")
    from ssclf.io.models.checksums import write_checksums

    def describe(folder: Path, spec: str) -> None:
        model = onnx.load(folder / "model.onnx")
        onnx.helper.set_model_props(model, {"spec.json": spec})
        onnx.save(model, folder / "model.onnx")
        (folder / "spec.json").write_text(spec)
        for name in ("model.torchscript.pt", "SHA256SUMS"):
            (folder / name).unlink()
        write_checksums(folder)

    return describe


@pytest.fixture
def without_marks() -> Callable[[Path], None]:
    """Makes a record one that an earlier version wrote: nothing tells of an edit."""

    def take(record: Path) -> None:
        values = json.loads(record.read_text("utf-8"))
        record.write_text(json.dumps({k: v for k, v in values.items() if k not in ("rows", "written")}))

    return take


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_untrained_bundle(tmp_path_factory.mktemp("bundles") / "tiny", 0, "mc3")


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_untrained_bundle(tmp_path_factory.mktemp("bundles") / "other", 1, "mc3")


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the network that takes the least time."""
    return _write_untrained_bundle(tmp_path_factory.mktemp("bundles") / "small", 2, "small")


@pytest.fixture
def preprocessed(tmp_path: Path) -> Callable[..., Path]:
    """A folder as `ssclf preprocess` leaves it: classes differ by where a bright blob lies. Synthetic."""

    def write(
        *,
        per_class: int = 4,
        shape: tuple[int, int, int] = (6, 20, 18),
        labels: tuple[str, ...] = ("HGG", "LGG", "healthy"),
        contrasts: tuple[str, ...] = ("t1ce",),
        name: str = "preprocessed",
    ) -> Path:
        folder = tmp_path / name
        config = PreprocessConfig(spacing=(8.0, 7.0, 7.0), contrasts=contrasts)
        random = np.random.default_rng(0)
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 8.0, 7.0, 7.0, 1.0
        rows = ["subject,label,source,path,settings,voxels,extraction"]
        for target, label in enumerate(labels):
            for number in range(per_class):
                data = 0.4 * random.random((len(contrasts), *shape), np.float32)
                data[:, :, 4 * target : 4 * target + 4] += 0.6
                data[:, :, :, :3] = 0
                key = f"{label}/{label}{number}.nii.gz"
                write_nifti(Volume(data, affine), folder / key)
                rows.append(
                    f"{label}{number},{label},synthetic,{key},{config.hash},{label}{number:040x},none"
                )
        (folder / "manifest.csv").write_text("\n".join(rows) + "\n", "utf-8")
        settings = {"preprocess": config_to_dict(config), "hash": config.hash, "synthetic": True}
        (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
        return folder

    return write


@pytest.fixture
def preprocessed_others(preprocessed: Callable[..., Path]) -> Callable[..., Path]:
    """The same with other people and other voxels, to stand beside `preprocessed`."""

    def write(*, per_class: int, shape: tuple[int, int, int]) -> Path:
        folder = preprocessed(per_class=per_class, shape=shape, name="others")
        manifest = folder / "manifest.csv"
        head, *rows = manifest.read_text("utf-8").splitlines()
        others = [f"other-{row}".replace("0" * 20, "f" * 20) for row in rows]
        manifest.write_text("\n".join([head, *others]) + "\n", "utf-8")
        return folder

    return write


@pytest.fixture(scope="session")
def storescu() -> None:
    """DCMTK's sender is there."""
    from serving import missing_programs

    if why := missing_programs("storescu"):
        pytest.skip(why)


@pytest.fixture
def archive(tmp_path: Path, storescu: None) -> Iterator[Archive]:
    """An archive (Orthanc) that has not been started."""
    from serving import Archive, missing_programs

    if why := missing_programs("Orthanc"):
        pytest.skip(why)
    found = Archive(tmp_path / "archive")
    yield found
    found.end()
