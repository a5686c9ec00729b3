"""Maps lie where the evidence lies: a change at one place of a scan changes the map there, however it is stored."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import PreprocessConfig
from ssclf.domain.model_spec import ModelSpec

runner = CliRunner()


BundleAt = Callable[[float], Path]
#: Options, mm of the grid, and how far off the map may be, in mm.
Method = tuple[list[str], float, list[float]]


@pytest.fixture
def bundle_at(tiny_bundle: Path, tmp_path: Path, describe_anew: Callable[[Path, str], None]) -> BundleAt:
    """The untrained network on a grid of so many mm."""

    def make(mm: float) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(tiny_bundle, folder)
        spec = ModelSpec.from_json((folder / "spec.json").read_text(), "spec.json")
        other = dataclasses.replace(spec, preprocess=PreprocessConfig(spacing=(mm, mm, mm)))
        describe_anew(folder, other.to_json())
        return folder

    return make


#: Of the "brain", in mm.
MIDDLE = np.array([10, -20, 15])


def head(lesion: NDArray[np.float64] | None) -> nib.Nifti1Image:
    """A textured "brain" about MIDDLE, in RAS, with a bright ball of 14 mm at `lesion` mm."""
    shape, spacing = (56, 50, 44), np.array([3.0, 3.5, 3.0])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = MIDDLE - spacing * (np.array(shape) - 1) / 2
    world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * spacing + affine[:3, 3]
    inside = (((world - MIDDLE) / [70, 80, 60]) ** 2).sum(axis=-1) < 1
    data = 400 + 60 * np.sin(world / 9).sum(axis=-1)
    if lesion is not None:
        data[((world - lesion) ** 2).sum(axis=-1) < 14**2] = 560
    return nib.Nifti1Image(np.where(inside, data, 0).astype(np.float32), affine)


#: At 2 mm a cell has 2 x 32 x 32 mm, and across slices it draws on its neighbours.
USUAL: Method = ([], 2, [32, 32, 12])
#: Cubes of 32 mm and more, whatever the cells (16 x 256 x 256 mm); the volume and its mirror image.
HIDDEN: Method = (["--map-method", "occlusion", "--flip"], 16, [32, 32, 32])
MIRROR: Method = (["--map-method", "mirror", "--flip"], 16, [32, 32, 32])


@pytest.mark.parametrize(
    ("codes", "method"),
    [("RAS", USUAL), ("LPI", USUAL), ("PSR", USUAL), ("LPI", HIDDEN), ("PIR", MIRROR)],
)
def test_a_lesion_moves_the_map_where_it_lies(
    codes: str, method: Method, bundle_at: BundleAt, tmp_path: Path
) -> None:
    options, mm, reach = method
    lesion = np.array([52.0, -50.0, 40.0])  # turned over or with axes swapped, it lies 50 mm away and more
    turn = ornt_transform(io_orientation(head(None).affine), axcodes2ornt(codes))
    (tmp_path / "scans").mkdir()
    for name, place in (("without", None), ("with", lesion)):
        nib.save(head(place).as_reoriented(turn), tmp_path / "scans" / f"{name}.nii.gz")
    words = [
        tmp_path / "scans",
        "--model",
        bundle_at(mm),
        *options,
        "--out",
        tmp_path / "r.csv",
        "--maps",
        tmp_path / "maps",
    ]
    result = runner.invoke(app, ["predict", "--assume-stripped", *map(str, words)])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len({row["prediction"] for row in rows}) == 1  # maps of one class can be compared
    maps = [tmp_path / "maps" / row["extra"]["map"] for row in rows]
    with_, without = (nib.Nifti1Image.from_filename(path) for path in maps)
    assert nib.aff2axcodes(with_.affine) == tuple(codes)
    change = with_.get_fdata() - without.get_fdata()
    peak = nib.affines.apply_affine(with_.affine, np.unravel_index(np.abs(change).argmax(), change.shape))
    if method is MIRROR:
        # the other side is hidden behind the lesion's mirror image, which counts as much, the other way
        opposite = np.array([2 * MIDDLE[0] - peak[0], *peak[1:]])
        there, here = (
            change[tuple(np.round(nib.affines.apply_affine(np.linalg.inv(with_.affine), place)).astype(int))]
            for place in (opposite, peak)
        )
        assert there * here < 0
        peak[0] = max(peak[0], opposite[0])
    assert (np.abs(peak - lesion) < reach).all(), peak


def test_another_method_makes_the_maps_anew_and_the_usual_one_keeps_them(
    bundle_at: BundleAt, tmp_path: Path
) -> None:
    nib.save(head(np.array([52.0, -50.0, 40.0])), tmp_path / "head.nii.gz")
    words = [
        tmp_path / "head.nii.gz",
        "--model",
        bundle_at(16),
        "--assume-stripped",
        "--out",
        tmp_path / "r.csv",
    ]

    def maps(*options: str) -> NDArray[np.float64]:
        result = runner.invoke(app, ["predict", *map(str, words), "--maps", str(tmp_path / "maps"), *options])
        assert result.exit_code == 0, result.output
        (path,) = (tmp_path / "maps").rglob("*.nii.gz")
        return np.asarray(nib.Nifti1Image.from_filename(path).get_fdata(), np.float64)

    usual, *hidden = maps(), maps("--map-method", "occlusion"), maps("--map-method", "mirror")
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations([usual, *hidden], 2))
    np.testing.assert_array_equal(maps(), usual)


def test_a_method_without_maps_is_refused(bundle_at: BundleAt, tmp_path: Path) -> None:
    words = [tmp_path, "--model", bundle_at(16), "--out", tmp_path / "r.csv", "--map-method", "occlusion"]
    result = runner.invoke(app, ["predict", *map(str, words)])
    assert result.exit_code == 1 and "--maps" in result.output
