"""A contrast has one name in settings, whichever word for it was given, and files that say another word are read."""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import CONTRASTS, PreprocessConfig, canonical_contrast, config_to_dict
from ssclf.domain.model_spec import ModelSpec
from ssclf.domain.run_data import RunData, differences
from ssclf.domain.volume import Volume
from ssclf.errors import ConfigError, DatasetError, ModelError
from ssclf.io.discovery.cohorts import CohortQuery, find_cases
from ssclf.io.discovery.scans import Scan
from ssclf.io.discovery.sources import discover
from ssclf.io.preparation import prepare_scan
from ssclf.io.records.preprocessed import describe_data, read_prepared_cohort
from ssclf.io.volumes.nifti import write_nifti

MakeVolume = Callable[..., Volume]
WORDS = [word for name, others in CONTRASTS.items() for word in (name, *others)]
#: What versions that kept the word as given wrote for it.
EARLIER_HASHES = {
    ("t1gd",): "0abef96f907f7278",
    ("t2", "t1gd"): "db2f130bd7484c0f",
    ("pdw", "t1w"): "1ca9188d3bb14bc2",
}
#: Stands for FSL's bet: takes what is brighter than half of the maximum of the contrast that it is given.
BET = """\
#!{python}
import sys
import nibabel as nib, numpy as np
image = nib.load(sys.argv[1])
data = image.get_fdata()
nib.save(nib.Nifti1Image((data > data.max() / 2).astype(np.uint8), image.affine), sys.argv[2] + "_mask.nii.gz")
"""


def spelled(contrasts: Sequence[str], draw: random.Random) -> tuple[str, ...]:
    """The same contrasts in other words, capitals and blanks."""
    how: list[Callable[[str], str]] = [str.lower, str.upper, str.title, " {} ".format]
    return tuple(draw.choice(how)(draw.choice([name, *CONTRASTS[name]])) for name in contrasts)


def test_settings_are_the_same_in_every_spelling() -> None:
    """--contrasts t1gd and t1ce had two hashes, so that neither cohorts nor models could meet."""
    draw = random.Random(0)
    for _ in range(300):
        names = tuple(draw.sample(list(CONTRASTS), draw.randint(1, 4)))
        words = spelled(names, draw)
        config, other = PreprocessConfig(contrasts=names), PreprocessConfig(contrasts=words)
        assert other == config and other.hash == config.hash, words
        assert other.contrasts == names
        assert CohortQuery(sources=(), contrasts=words).contrasts == names


def test_one_contrast_in_two_words_is_no_two_channels() -> None:
    draw = random.Random(1)
    for name in (name for name in CONTRASTS for _ in range(10)):
        with pytest.raises(ConfigError, match="four different ones"):
            PreprocessConfig(contrasts=spelled([name, name], draw))


@pytest.mark.parametrize("contrasts", [("",), (" ", "t1"), (3,)])
def test_what_is_no_name_is_refused(contrasts: Any) -> None:
    with pytest.raises(ConfigError, match="expected names"):
        PreprocessConfig(contrasts=contrasts)


def as_earlier(contrasts: tuple[str, ...]) -> dict[str, Any]:
    """Settings as an earlier version wrote them, names as given."""
    config = PreprocessConfig(contrasts=contrasts)
    return {**config_to_dict(config), "contrasts": list(contrasts)}


@pytest.mark.parametrize("contrasts", EARLIER_HASHES)
def test_a_bundle_in_another_spelling_is_read(contrasts: tuple[str, ...]) -> None:
    spec = ModelSpec(
        name="m",
        architecture="mc3",
        class_names=("HGG", "LGG"),
        preprocess=PreprocessConfig(contrasts=contrasts),
    )
    values = json.loads(spec.to_json())
    values["preprocess"], values["contrasts"] = as_earlier(contrasts), list(contrasts)
    for written in (EARLIER_HASHES[contrasts], spec.preprocess.hash):
        assert ModelSpec.from_json(json.dumps({**values, "preprocess_hash": written}), "spec.json") == spec
    for wrong in (*({*EARLIER_HASHES.values()} - {EARLIER_HASHES[contrasts]}), "0" * 16):
        with pytest.raises(ModelError, match="the preprocessing that trained this model"):
            ModelSpec.from_json(json.dumps({**values, "preprocess_hash": wrong}), "spec.json")


@pytest.mark.parametrize("contrasts", EARLIER_HASHES)
def test_a_cohort_in_another_spelling_is_read_and_joined(
    contrasts: tuple[str, ...], preprocessed: Callable[..., Path]
) -> None:
    new = preprocessed(contrasts=contrasts, labels=("HGG",), name="new")
    old = preprocessed(contrasts=contrasts, labels=("LGG",), name="old")
    settings = json.loads((old / "settings.json").read_text())
    now = settings["hash"]
    settings["preprocess"]["contrasts"] = list(contrasts)
    settings["hash"] = before = PreprocessConfig(**settings["preprocess"]).hashes(settings["preprocess"])[1]
    assert before != now
    assert PreprocessConfig(contrasts=contrasts).hashes(as_earlier(contrasts))[1] == EARLIER_HASHES[contrasts]
    (old / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(DatasetError, match=rf"other settings \({now}\) than settings.json says \({before}\)"):
        read_prepared_cohort(old, min_classes=1)
    manifest = (old / "manifest.csv").read_text()
    (old / "manifest.csv").write_text(manifest.replace(now, before))
    joined = read_prepared_cohort([new, old])
    assert joined.preprocess.hash == now
    assert joined.class_names == ("HGG", "LGG") and len(joined.samples) == 8


def test_a_run_that_began_in_another_spelling_goes_on(preprocessed: Callable[..., Path]) -> None:
    now = describe_data(read_prepared_cohort(preprocessed(contrasts=("t1ce", "flair"))))
    values = json.loads(json.dumps(now.to_dict()))
    values["preprocess"]["contrasts"] = ["t1gd", "t2f"]
    assert differences(RunData.from_dict(values), now) == []
    values["preprocess"]["contrasts"] = ["t2f", "t1gd"]
    assert differences(RunData.from_dict(values), now)


@pytest.mark.parametrize("seed", range(8))
def test_the_brain_is_found_in_the_t1_whatever_its_name(
    seed: int, make_volume: MakeVolume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With "t2,t1gd" brain extraction looked at the T2: the networks were trained on T1."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "bet").write_text(BET.format(python=sys.executable))
    (folder / "bet").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    chance = random.Random(seed)
    t1 = make_volume()
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in t1.shape), indexing="ij"))
    t1.data[0] += 1000 * ((grid**2).sum(axis=0) < 0.4)
    other = Volume(np.random.default_rng(seed).random(t1.data.shape, np.float32), t1.affine)
    places = chance.sample(range(3), 3)
    names = [("t2", "flair", chance.choice(["t1", "t1ce"]))[place] for place in places]
    words = tuple(chance.choice([name, *CONTRASTS[name]]) for name in names)
    files = []
    for place, name in zip(places, names, strict=True):
        files.append(tmp_path / f"{name}.nii.gz")
        write_nifti(t1 if place == 2 else other, files[-1])
    scan = Scan("x", tuple(files))
    prepared = prepare_scan(
        scan, PreprocessConfig(contrasts=words, spacing=(6.0, 6.0, 6.0)), skull_strip="bet"
    )
    np.testing.assert_array_equal(prepared.brain, t1.data[0] > t1.data.max() / 2)


@pytest.mark.parametrize("word", WORDS)
def test_a_column_may_have_any_name_of_its_contrast(
    word: str, make_volume: MakeVolume, tmp_path: Path
) -> None:
    write_nifti(make_volume(), tmp_path / "a.nii.gz")
    write_nifti(make_volume(seed=1), tmp_path / "b.nii.gz")
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"subject,label,{word}\ns1,HGG,a.nii.gz\ns2,LGG,b.nii.gz\n")
    for wanted in (name for name in WORDS if canonical_contrast(name) == canonical_contrast(word)):
        assert len(discover([manifest], contrasts=(wanted,)).scans) == 2
        assert len(find_cases(CohortQuery(sources=(manifest,), contrasts=(wanted,))).cases) == 2


def test_of_two_columns_for_one_contrast_none_is_guessed(make_volume: MakeVolume, tmp_path: Path) -> None:
    """The first one was taken."""
    for name in "abc":
        write_nifti(make_volume(seed=ord(name)), tmp_path / f"{name}.nii.gz")
    manifest = tmp_path / "list.csv"
    manifest.write_text("subject,label,t1gd,t1c\ns1,HGG,a.nii.gz,b.nii.gz\ns2,LGG,b.nii.gz,c.nii.gz\n")
    query = CohortQuery(sources=(manifest,), contrasts=("t1ce",))
    for find in (lambda: discover([manifest], contrasts=("t1ce",)), lambda: find_cases(query)):
        with pytest.raises(DatasetError, match=r"list.csv: expected one column for t1ce, found t1gd, t1c"):
            find()
    manifest.write_text(manifest.read_text().replace("t1c\n", "t1ce\n"))
    assert [scan.path for scan in discover([manifest], contrasts=("t1ce",)).scans] == ["b.nii.gz", "c.nii.gz"]
    assert [case.scan.contrasts[0].name for case in find_cases(query).cases] == ["b.nii.gz", "c.nii.gz"]


def test_preprocess_says_the_name_not_the_word(make_volume: MakeVolume, tmp_path: Path) -> None:
    for number, label in enumerate(("HGG", "LGG")):
        write_nifti(make_volume(seed=number), tmp_path / "in" / label / f"s{number}_t1gd.nii.gz")
    hashes = set()
    for word in ("T1Gd", "t1ce"):
        out = tmp_path / word
        words = ["preprocess", tmp_path / "in", "--out", out, "--contrasts", word, "--spacing", "10"]
        done = CliRunner().invoke(app, [*map(str, words), "--workers", "1", "--assume-stripped"])
        assert done.exit_code == 0, done.output
        settings = json.loads((out / "settings.json").read_text())
        assert settings["preprocess"]["contrasts"] == ["t1ce"]
        hashes.add(settings["hash"])
    assert len(hashes) == 1
    first, second = (read_prepared_cohort(tmp_path / word) for word in ("T1Gd", "t1ce"))
    assert dataclasses.replace(describe_data(first), folders=()) == dataclasses.replace(
        describe_data(second), folders=()
    )
