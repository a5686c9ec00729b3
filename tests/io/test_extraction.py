"""Brain extraction: deepbet on ONNX Runtime, and programs of the user's, of which small fakes stand here."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ssclf.config import StripEngine
from ssclf.domain.geometry import orientation, reorient
from ssclf.domain.masks import fill_holes, largest_component
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import ConfigError, MissingDependencyError, ModelError, VolumeError
from ssclf.io.extraction import deepbet, programs
from ssclf.io.extraction.deepbet import BrainExtractor
from ssclf.io.extraction.engines import EngineStatus, available_engines, extract_brain
from ssclf.io.volumes.nifti import read_nifti

MakeVolume = Callable[..., Volume]

#: Stands for each of the three programs: takes what is brighter than half of the maximum, if the file
#: it gets is oriented to RAS. `write` names the mask from the arguments.
FAKE = """\
#!{python}
import sys
import nibabel as nib, numpy as np
arguments = sys.argv[1:]
source, target = {paths}
image = nib.load(source)
if nib.aff2axcodes(image.affine) != ("R", "A", "S"):
    sys.exit("not RAS")
data = image.get_fdata()
nib.save(nib.Nifti1Image((data > data.max() / 2).astype(np.uint8), image.affine), target)
"""
FAKE_PATHS = {
    "bet": "arguments[0], arguments[1] + '_mask.nii.gz'",
    "hd-bet": (
        "arguments[arguments.index('-i') + 1], "
        "arguments[arguments.index('-o') + 1].replace('.nii.gz', '_bet.nii.gz')"
    ),
    "mri_synthstrip": "arguments[arguments.index('-i') + 1], arguments[arguments.index('-m') + 1]",
}


@pytest.fixture
def extractor(extraction_models: list[Path]) -> BrainExtractor:
    return BrainExtractor(extraction_models, threads=2)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Put a program on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(name: str, text: str) -> Path:
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    return install


def dice(one: Mask, other: Mask) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))


def test_the_mask_is_one_piece_on_the_grid_of_the_volume(
    extractor: BrainExtractor, make_volume: MakeVolume
) -> None:
    volume = make_volume()
    mask = extract_brain(volume, "deepbet", extractor=extractor)
    assert mask.shape == volume.shape and mask.dtype == bool
    assert dice(mask, volume.data[0] > 0) > 0.9
    assert np.array_equal(largest_component(mask), mask)
    assert np.array_equal(fill_holes(mask), mask)
    in_a_worker = pickle.loads(pickle.dumps(extractor))  # after use, with its networks loaded
    assert in_a_worker.threads == extractor.threads
    assert np.array_equal(extract_brain(volume, "deepbet", extractor=in_a_worker), mask)


def test_orientation_type_and_threads_change_nothing(
    extractor: BrainExtractor, extraction_models: list[Path], make_volume: MakeVolume
) -> None:
    volume = make_volume(dtype=np.int16)
    expected = extract_brain(volume, "deepbet", extractor=extractor)
    for codes, dtype, threads in (("PSR", ">i2", 1), ("IRA", "<f8", 2)):
        turned = reorient(Volume(volume.data.astype(dtype), volume.affine), codes)
        mask = extract_brain(turned, "deepbet", extractor=BrainExtractor(extraction_models, threads=threads))
        back = reorient(Volume(mask[None], turned.affine), orientation(volume)).data[0]
        assert np.array_equal(back, expected)


def test_the_wanted_contrast_is_looked_at(extractor: BrainExtractor, make_volume: MakeVolume) -> None:
    volume = make_volume()
    both = Volume(np.concatenate([np.zeros_like(volume.data), volume.data]), volume.affine)
    with pytest.raises(VolumeError, match="empty or constant"):
        extract_brain(both, "deepbet", extractor=extractor)
    mask = extract_brain(both, "deepbet", extractor=extractor, channel=1)
    assert dice(mask, volume.data[0] > 0) > 0.9


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros((9, 12, 10), np.float32), "empty or constant"),
        (np.full((9, 12, 10), 7, np.int16), "empty or constant"),
        (np.full((9, 12, 10), np.nan, np.float32), "NaN or infinite"),
        (np.geomspace(1, 1e200, 1080).reshape(9, 12, 10), "NaN or infinite"),
        (np.ones((1, 1, 1), np.uint8), "empty or constant"),
    ],
    ids=["empty", "constant", "nan", "beyond float32", "one voxel"],
)
def test_what_is_no_head_is_refused(
    extractor: BrainExtractor, data: np.ndarray[tuple[int, int, int], np.dtype[np.generic]], reason: str
) -> None:
    with pytest.raises(VolumeError, match=reason):
        extract_brain(Volume(data[None], np.diag([2.0, 3.0, 4.0, 1.0])), "deepbet", extractor=extractor)


@pytest.mark.parametrize("shape", [(3, 5, 7), (300, 2, 61)])
def test_odd_shapes_end_as_a_mask_or_a_reason(extractor: BrainExtractor, shape: tuple[int, int, int]) -> None:
    noise = np.random.default_rng(3).normal(0, 1e30, (1, *shape)).astype(np.float32)
    volume = Volume(noise, np.diag([4.0, 1.0, 1.5, 1.0]))
    try:
        assert extract_brain(volume, "deepbet", extractor=extractor).shape == shape
    except VolumeError as exc:
        assert "found no brain" in str(exc)


def test_deepbet_runs_without_torch_and_scipy(extraction_models: list[Path]) -> None:
    code = """
import sys
for name in ("torch", "scipy", "deepbet", "cc3d", "fill_voids", "pandas", "onnx"):
    sys.modules[name] = None
from pathlib import Path
import numpy as np
from ssclf.domain.volume import Volume
from ssclf.io.extraction.engines import BrainExtractor, extract_brain
axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (20, 30, 25)), indexing="ij")
ball = (sum(axis**2 for axis in axes) < 0.7).astype(np.uint8)
volume = Volume(ball[None], np.diag([7.0, 5.0, 6.0, 1.0]))
print(extract_brain(volume, "deepbet", extractor=BrainExtractor([Path(p) for p in sys.argv[1:]])).sum())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, extraction_models)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000
    assert done.stderr == ""


def test_missing_networks_are_named(tmp_path: Path, make_volume: MakeVolume) -> None:
    with pytest.raises(ModelError, match=r"brain-extraction-box\.onnx"):
        BrainExtractor([tmp_path / "brain-extraction-box.onnx"])
    with pytest.raises(MissingDependencyError, match="deepbet"):
        extract_brain(make_volume(), "deepbet")


def test_a_damaged_network_is_named(tmp_path: Path, make_volume: MakeVolume) -> None:
    paths = [tmp_path / deepbet.BOX_MODEL, tmp_path / deepbet.MASK_MODEL]
    for path in paths:
        path.write_bytes(b"not a network")
    with pytest.raises(ModelError, match=r"brain-extraction-box\.onnx"):
        extract_brain(make_volume(), "deepbet", extractor=BrainExtractor(paths))
    assert not available_engines(paths)[0].available


def test_none_takes_what_differs_from_the_background(make_volume: MakeVolume) -> None:
    volume = make_volume()
    assert np.array_equal(extract_brain(volume, "none"), volume.data[0] != 0)


def test_an_unknown_engine_is_a_wrong_setting(make_volume: MakeVolume) -> None:
    with pytest.raises(ConfigError, match="synthstrip"):
        extract_brain(make_volume(), "robex")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "name"), [("bet", "bet"), ("hd-bet", "hd-bet"), ("synthstrip", "mri_synthstrip")]
)
def test_a_program_gets_ras_and_its_mask_is_turned_back(
    engine: StripEngine,
    name: str,
    program: Callable[[str, str], Path],
    make_volume: MakeVolume,
    tmp_path: Path,
) -> None:
    program(name, FAKE.format(python=sys.executable, paths=FAKE_PATHS[name]))
    volume = reorient(make_volume(dtype=np.int16), "PIL")
    work = tmp_path / "work"
    work.mkdir()
    mask = extract_brain(volume, engine, work_dir=work)
    assert np.array_equal(mask, volume.data[0] > volume.data.max() / 2)
    assert not list(work.iterdir())


def test_a_program_that_fails_costs_the_volume_only(
    program: Callable[[str, str], Path], make_volume: MakeVolume
) -> None:
    volume = make_volume()
    program("bet", "#!/bin/sh\necho 'some advice' >&2\necho 'image too dark' >&2\nexit 4\n")
    with pytest.raises(VolumeError, match=r"exit code 4: image too dark"):
        extract_brain(volume, "bet")
    program("bet", "#!/bin/sh\nexit 0\n")
    with pytest.raises(VolumeError, match="wrote no mask"):
        extract_brain(volume, "bet")
    program("bet", "no program\n")
    with pytest.raises(MissingDependencyError, match="cannot be started"):
        extract_brain(volume, "bet")


def test_a_program_that_hangs_is_ended(
    program: Callable[[str, str], Path],
    make_volume: MakeVolume,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program("bet", f"#!/bin/sh\n{sys.executable} -c 'import signal; signal.pause()' &\nwait\n")
    monkeypatch.setattr(programs, "TIME_LIMIT_S", 1)
    with pytest.raises(VolumeError, match="did not end within 1 s"):
        extract_brain(make_volume(), "bet")


def test_engines_that_are_missing_say_what_to_do(
    program: Callable[[str, str], Path], make_volume: MakeVolume
) -> None:
    engines = {status.name: status for status in available_engines()}
    assert list(engines) == ["deepbet", "bet", "hd-bet", "synthstrip", "none"]
    for name in ("bet", "hd-bet", "synthstrip"):
        assert not engines[name].available and "PATH" in engines[name].detail
    with pytest.raises(MissingDependencyError, match="FreeSurfer"):
        extract_brain(make_volume(), "synthstrip")


def test_engines_that_are_there_tell_their_version(
    program: Callable[[str, str], Path], extraction_models: list[Path], tmp_path: Path
) -> None:
    path = program("bet", "#!/bin/sh\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "fslversion").write_text("6.0.7\n")
    engines = {status.name: status for status in available_engines(extraction_models)}
    assert engines["bet"] == EngineStatus("bet", True, "6.0.7", str(path))
    assert engines["deepbet"].available and engines["deepbet"].version[0].isdigit()
    assert engines["deepbet"].version == BrainExtractor(extraction_models).version
    program("mri_synthstrip", "#!/bin/sh\n")
    engines = {status.name: status for status in available_engines()}
    assert engines["synthstrip"].available and engines["synthstrip"].version == "unknown"


#: Of the ten, the three with the lowest and the highest Dice.
SOME_HEADS = ("IXI034-HH-1260", "IXI212-HH-1643", "IXI608-HH-2599")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["three", "ten"])
def test_heads_agree_with_their_label_maps(every: bool, extractor: BrainExtractor, shared_data: Path) -> None:
    heads = sorted((shared_data / "head" / "ixi").glob("*_T1.nii.gz"))
    found = []
    for head in heads:
        if every or head.name.startswith(SOME_HEADS):
            brain = read_nifti(head.with_name(head.name.replace("_T1", "_T1_DLMUSE"))).data[0] > 0
            found.append(dice(extract_brain(read_nifti(head), "deepbet", extractor=extractor), brain))
    assert len(found) == (10 if every else 3)
    assert min(found) >= 0.97
    assert np.mean(found) >= 0.975


@pytest.mark.parametrize("shape", [(30, 41, 25), (300, 20, 61), (17, 270, 290)])
def test_counted_voxels_are_normalised_as_the_cube_that_repeats_them(shape: tuple[int, int, int]) -> None:
    """deepbet's own way: sample to the cube first, then clip, scale and normalise every voxel of it."""
    side, low, high = 256, 10.0, 900.0
    head = np.random.default_rng(0).normal(400, 300, shape)
    cube = head[np.ix_(*deepbet._nearest(shape, (side,) * 3))].astype(np.float32)
    scaled = np.clip((cube - low) / (high - low), 0, 1)
    expected = deepbet.DEVIATION * (scaled - scaled.mean()) / scaled.std(ddof=1) + deepbet.MEAN
    given = []

    def infer(cube: NDArray[np.float32]) -> NDArray[np.float32]:
        given.append(cube)
        return cube

    deepbet._run(infer, deepbet._sample(head, side), side, low, high)
    assert given[0].shape == (side, side, side) and given[0].dtype == np.float32
    np.testing.assert_allclose(given[0], expected, atol=1e-5)
