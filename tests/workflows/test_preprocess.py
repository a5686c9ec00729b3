"""From labelled scans to the folder that training reads: exact, resumable, and honest about what failed."""

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.config import PreprocessConfig
from ssclf.domain.likeness import is_readable
from ssclf.domain.preprocessing import voxel_hash
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import ConfigError, DatasetError, LeakageError, OutputError
from ssclf.io.discovery.cohorts import CohortQuery
from ssclf.io.discovery.scans import Scan
from ssclf.io.preparation import SkullError, prepare_scan
from ssclf.io.records.preprocessed import read_prepared_cohort
from ssclf.io.volumes.nifti import read_nifti, read_written, write_nifti
from ssclf.workflows.preprocess import PreprocessSummary, preprocess_cohort

CONFIG = PreprocessConfig(spacing=(6.0, 7.0, 8.0))
MakeVolume = Callable[..., Volume]


@pytest.fixture
def cohort(tmp_path: Path, make_volume: MakeVolume) -> Path:
    """Two classes in folders: two subjects and one, whose name is not safe as a file name."""
    for seed, name in enumerate(("HGG/ann", "HGG/bob", "LGG/cé d")):
        write_nifti(make_volume(seed=seed), tmp_path / f"data/{name}.nii.gz")
    return tmp_path / "data"


def run(cohort: Path, config: PreprocessConfig = CONFIG, **options: Any) -> PreprocessSummary:
    return preprocess_cohort(query(cohort, config), cohort.parent / "out", config, **options)


def query(source: Path, config: PreprocessConfig = CONFIG) -> CohortQuery:
    return CohortQuery(sources=(source,), contrasts=config.contrasts)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "volumes").iterdir()}


def make_head(make_volume: MakeVolume) -> Volume:
    """A brain in a bright scalp, with a dark skull between them."""
    brain = make_volume((40, 52, 44), (5.0, 5.0, 5.0))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in brain.shape), indexing="ij"))
    radius = (grid**2).sum(axis=0)
    scalp = (radius >= 0.8) & (radius < 1.0)
    data = np.where(radius < 0.55, brain.data[0], np.where(scalp, 700, np.where(radius < 0.8, 30, 0)))
    return Volume(data[None].astype(np.float32), brain.affine)


def test_the_manifest_says_what_each_volume_is(cohort: Path) -> None:
    summary = run(cohort)
    out = cohort.parent / "out"
    rows = read_csv(out / "manifest.csv")
    assert summary.exit_code == 0 and [dict(row) for row in rows] == [
        {key: value for key, value in row.items() if key != "drawn"} for row in summary.rows
    ]
    assert [(r["subject"], r["label"], r["source"]) for r in rows] == [
        ("ann", "HGG", "data"),
        ("bob", "HGG", "data"),
        ("cé d", "LGG", "data"),
    ]
    assert rows[0]["path"] == "volumes/ann.nii.gz"
    assert rows[2]["path"].isascii() and " " not in rows[2]["path"]
    assert rows[0]["spacing"] == "6 x 7 x 8"
    assert (rows[0]["original_shape"], rows[0]["original_spacing"]) == ("22 x 26 x 20", "6.5 x 6 x 7")
    assert (rows[0]["original_orientation"], rows[0]["extraction"], rows[0]["contrasts"]) == (
        "RAS",
        "none",
        "t1ce",
    )
    assert {row["settings"] for row in rows} == {CONFIG.hash}
    assert json.loads((out / "settings.json").read_text())["hash"] == CONFIG.hash
    assert read_csv(out / "failed.csv") == []


def test_volumes_are_what_prediction_would_see_to_the_last_bit(cohort: Path) -> None:
    run(cohort)
    row = read_csv(cohort.parent / "out/manifest.csv")[0]
    written = read_nifti(cohort.parent / "out" / row["path"])
    expected = prepare_scan(Scan("", (cohort / "HGG/ann.nii.gz",)), CONFIG).volume
    assert np.array_equal(written.data, expected.data) and written.data.dtype == np.float32
    assert np.allclose(written.affine, expected.affine, atol=1e-4)
    assert row["voxels"] == voxel_hash(expected.data)
    assert float(row["brain_ml"]) == pytest.approx(expected.brain_ml, abs=0.05)


def test_voxels_do_not_depend_on_the_number_of_workers(cohort: Path) -> None:
    preprocess_cohort(query(cohort), cohort.parent / "one", CONFIG, workers=1)
    preprocess_cohort(query(cohort), cohort.parent / "two", CONFIG, workers=2)
    one, two = (read_csv(cohort.parent / name / "manifest.csv") for name in ("one", "two"))
    assert one == two


def test_a_second_run_does_only_what_is_not_done(cohort: Path, make_volume: MakeVolume) -> None:
    run(cohort)
    out = cohort.parent / "out"
    before = times(out)
    os.utime(cohort / "HGG/ann.nii.gz", (1, 1))  # copied: another time, the same content
    write_nifti(make_volume(seed=9), cohort / "HGG/bob.nii.gz")
    write_nifti(make_volume(seed=5), cohort / "LGG/new.nii.gz")
    (out / "volumes/.123-half.nii.gz").write_bytes(b"left by a killed run")
    summary = run(cohort)
    after = times(out)
    assert summary.reused == 2 and len(summary.rows) == 4
    assert {name for name in before if before[name] != after[name]} == {"bob.nii.gz"}
    assert set(after) - set(before) == {"new.nii.gz"}
    (cohort / "LGG/new.nii.gz").unlink()
    summary = run(cohort)
    assert (summary.reused, summary.left_over, len(summary.rows)) == (3, 1, 3)


def test_a_damaged_output_is_made_again(cohort: Path) -> None:
    first = run(cohort)
    volume = cohort.parent / "out/volumes/ann.nii.gz"
    good = volume.read_bytes()
    volume.write_bytes(good[:100])
    (cohort.parent / "out/records/bob.json").write_text("{")
    assert run(cohort).reused == 1
    assert (
        volume.read_bytes()[:100] == good[:100]
        and voxel_hash(read_nifti(volume).data) == first.rows[0]["voxels"]
    )


def test_other_settings_make_every_volume_again(cohort: Path) -> None:
    first = run(cohort).rows
    second = run(cohort, PreprocessConfig(spacing=(6.0, 7.0, 8.0), plane="coronal")).rows
    assert [row["voxels"] for row in first] != [row["voxels"] for row in second]
    assert read_csv(cohort.parent / "out/manifest.csv")[0]["settings"] == second[0]["settings"]


def test_one_bad_file_costs_its_row_only(cohort: Path) -> None:
    whole = (cohort / "HGG/bob.nii.gz").read_bytes()
    (cohort / "HGG/bob.nii.gz").write_bytes(whole[: len(whole) // 2])
    seen: list[tuple[str, str]] = []
    summary = run(cohort, on_case=lambda case, error: seen.append((case.subject, error)))
    assert summary.exit_code == 3
    assert [row["subject"] for row in summary.rows] == ["ann", "cé d"]
    (failed,) = read_csv(cohort.parent / "out/failed.csv")
    assert failed["subject"] == "bob" and "cut short" in failed["error"]
    assert sorted(seen) == [("ann", ""), ("bob", failed["error"]), ("cé d", "")]
    (cohort / "HGG/bob.nii.gz").write_bytes(whole)
    assert run(cohort).exit_code == 0


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (PreprocessConfig(spacing=(7.0, 6.0, 6.5)), (1, 20, 26, 22)),
        (PreprocessConfig(spacing=(7.0, 6.0, 6.5), plane="coronal"), (1, 22, 23, 22)),
        (PreprocessConfig(spacing=(7.0, 6.0, 6.5), contrasts=("t1", "t1ce")), (2, 20, 26, 22)),
        (PreprocessConfig(spacing=(7.0, 6.0, 6.5), crop="brain", crop_margin_mm=0), None),
    ],
)
def test_plane_contrasts_and_crop(
    tmp_path: Path, make_volume: MakeVolume, config: PreprocessConfig, shape: tuple[int, ...] | None
) -> None:
    for person, label in enumerate(("HGG", "LGG")):
        for seed, contrast in enumerate(("t1", "t1ce")):
            path = tmp_path / f"data/{label}/Brats18_{label}_1/Brats18_{label}_1_{contrast}.nii.gz"
            write_nifti(make_volume(seed=seed + 2 * person), path)
    row = run(tmp_path / "data", config).rows[0]
    volume = read_written(tmp_path / "out" / row["path"])
    expected = prepare_scan(
        Scan(
            "", tuple(tmp_path / f"data/HGG/Brats18_HGG_1/Brats18_HGG_1_{c}.nii.gz" for c in config.contrasts)
        ),
        config,
    ).volume
    assert np.array_equal(volume.data, expected.data)
    if shape is None:  # cropped: nothing but the brain's box is left
        inside = volume.data[0] > 0
        assert all(inside.any(axis=axes).all() for axes in ((1, 2), (0, 2), (0, 1)))
    else:
        assert volume.data.shape == shape


def test_the_page_shows_every_volume_and_asks_no_server(cohort: Path) -> None:
    (cohort / "LGG/<b>bad.nii.gz").write_bytes(b"no volume")
    run(cohort)
    page = (cohort.parent / "out/qc.html").read_text("utf-8")
    assert page.count("<tr data-subject") == 3
    assert "Research use only" in page and "Synthetic data" not in page
    assert "&lt;b&gt;bad.nii.gz" in page and "<b>bad" not in page
    assert "http://" not in page and "https://" not in page


def test_synthetic_sources_are_called_so(cohort: Path) -> None:
    manifest = cohort / "m.csv"
    manifest.write_text(
        "subject,label,source,path\na,HGG,synthetic,HGG/ann.nii.gz\nb,LGG,synthetic,HGG/bob.nii.gz\n"
    )
    preprocess_cohort(query(manifest), cohort.parent / "out", CONFIG)
    assert "Synthetic data" in (cohort.parent / "out/qc.html").read_text("utf-8")
    assert json.loads((cohort.parent / "out/settings.json").read_text())["synthetic"] is True


def test_two_scans_of_a_subject_get_two_files(tmp_path: Path, make_volume: MakeVolume) -> None:
    for seed, name in enumerate(("HGG/ann/one", "HGG/ann/two", "LGG/bob/one", "LGG/BOB/one")):
        write_nifti(make_volume(seed=seed), tmp_path / f"data/{name}.nii.gz")
    rows = run(tmp_path / "data").rows
    assert len({row["path"].lower() for row in rows}) == 4
    assert len({row["voxels"] for row in rows}) == 4


def test_a_folder_in_use_or_of_something_else_is_left_alone(cohort: Path) -> None:
    out = cohort.parent / "out"
    out.mkdir()
    (out / "manifest.csv").write_text("subject,label\nmine,HGG\n")
    with pytest.raises(OutputError, match="not written by ssclf"):
        run(cohort)
    assert (out / "manifest.csv").read_text() == "subject,label\nmine,HGG\n"
    (out / "manifest.csv").unlink()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another ssclf run"):
            run(cohort)


def test_a_planted_link_is_not_followed(cohort: Path) -> None:
    """What the link leads to was emptied as our own scratch folder."""
    theirs, out = cohort.parent / "theirs", cohort.parent / "out"
    theirs.mkdir()
    (theirs / "kept").touch()
    out.mkdir()
    (out / ".work").symlink_to(theirs)
    with pytest.raises(OutputError, match="found a link"):
        run(cohort)
    assert (theirs / "kept").exists()


def test_the_output_of_an_earlier_run_is_no_source(cohort: Path) -> None:
    out = cohort / "preprocessed"
    first = preprocess_cohort(query(cohort), out, CONFIG)
    second = preprocess_cohort(query(cohort), out, CONFIG)
    assert [row["subject"] for row in first.rows] == [row["subject"] for row in second.rows]
    assert second.reused == 3


def test_too_few_classes_are_refused_before_work_begins(cohort: Path) -> None:
    with pytest.raises(DatasetError, match="at least 2 classes"):
        preprocess_cohort(query(cohort / "HGG"), cohort.parent / "out", CONFIG)
    assert not (cohort.parent / "out").exists()


def test_how_a_skull_is_treated(tmp_path: Path, make_volume: MakeVolume) -> None:
    class Extractor:
        """Stands in for deepbet's networks: a ball around the middle."""

        def extract(self, head: np.ndarray[Any, Any]) -> Mask:
            grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in head.shape), indexing="ij"))
            return np.asarray((grid**2).sum(axis=0) < 0.55)

    write_nifti(make_head(make_volume), tmp_path / "head.nii.gz")
    write_nifti(make_volume(), tmp_path / "brain.nii.gz")
    head, brain = (Scan("", (tmp_path / f"{name}.nii.gz",)) for name in ("head", "brain"))
    extractor: Any = Extractor()
    with pytest.raises(SkullError, match="--skull-strip"):
        prepare_scan(head, CONFIG)
    stripped = prepare_scan(head, CONFIG, extractor=extractor)
    assert stripped.engine == "deepbet" and "stripped_by_ssclf" in stripped.volume.flags
    as_it_is = prepare_scan(head, CONFIG, skull_strip="none")
    assert as_it_is.engine == "none" and "assumed_stripped" in as_it_is.volume.flags
    assert as_it_is.volume.brain_ml > stripped.volume.brain_ml
    left_alone = prepare_scan(brain, CONFIG, extractor=extractor)
    assert left_alone.engine == "none" and "stripped_by_ssclf" not in left_alone.volume.flags
    forced = prepare_scan(brain, CONFIG, skull_strip="deepbet", extractor=extractor)
    assert forced.engine == "deepbet" and forced.volume.brain_ml < left_alone.volume.brain_ml
    for wrong in ("deep", "auto:deep", "none:bet"):
        with pytest.raises(ConfigError, match="skull-strip"):
            prepare_scan(brain, CONFIG, skull_strip=wrong)


def test_a_small_brain_is_flagged(tmp_path: Path, make_volume: MakeVolume) -> None:
    write_nifti(make_volume(spacing=(5.9, 5.0, 5.5)), tmp_path / "small.nii.gz")
    prepared = prepare_scan(Scan("", (tmp_path / "small.nii.gz",)), CONFIG).volume
    assert prepared.brain_ml < 800 and "implausible_brain_volume" in prepared.flags


def test_a_query_for_other_contrasts_than_the_settings_is_refused(cohort: Path) -> None:
    other = CohortQuery(sources=(cohort,), contrasts=("flair",))
    with pytest.raises(ConfigError, match=r"t1ce.*found flair"):
        preprocess_cohort(other, cohort.parent / "out", CONFIG)
    assert not (cohort.parent / "out").exists()


def test_the_table_of_subjects_says_who_was_taken_for_whom(tmp_path: Path, make_volume: MakeVolume) -> None:
    for seed, name in enumerate(("HGG/sub-A_ses-1_T1w", "HGG/sub-A_ses-2_T1w", "LGG/sub-B_T1w")):
        write_nifti(make_volume(seed=seed), tmp_path / f"data/{name}.nii.gz")
    (tmp_path / "data/LGG/sub-B_ses-9_T1w.nii.gz").write_bytes(b"no volume")
    run(tmp_path / "data", PreprocessConfig(spacing=(6.0, 7.0, 8.0), contrasts=("t1",)))
    assert [dict(row) for row in read_csv(tmp_path / "out/subjects.csv")] == [
        {"subject": "sub-A", "label": "HGG", "source": "data", "sessions": "1;2", "volumes": "2", "failed": "0",
         "named_by": "sub- in the name"},
        {"subject": "sub-B", "label": "LGG", "source": "data", "sessions": "9", "volumes": "1", "failed": "1",
         "named_by": "sub- in the name"},
    ]  # fmt: skip


def test_the_same_voxels_under_two_labels_are_refused_with_both_files(
    cohort: Path, make_volume: MakeVolume
) -> None:
    """They passed, and a network was trained on both."""
    write_nifti(make_volume(seed=0), cohort / "LGG/dora.nii.gz")  # the voxels of HGG/ann
    with pytest.raises(
        DatasetError, match=r"HGG/ann\.nii\.gz and .*LGG/dora\.nii\.gz: .* two labels, HGG and LGG"
    ):
        run(cohort)
    assert not (cohort.parent / "out/manifest.csv").exists()
    (cohort / "LGG/dora.nii.gz").unlink()
    assert run(cohort).reused == 3


def test_the_same_voxels_under_two_names_are_one_subject(
    cohort: Path, make_volume: MakeVolume, without_marks: Callable[[Path], None]
) -> None:
    write_nifti(make_volume(seed=0), cohort / "HGG/zoe.nii.gz")
    write_nifti(make_volume(seed=1), cohort / "HGG/zoe-again.nii.gz")  # the voxels of HGG/bob
    summary = run(cohort)
    rows = read_csv(cohort.parent / "out/manifest.csv")
    assert sorted(row["subject"] for row in rows) == ["ann", "ann", "bob", "bob", "cé d"]
    assert len(summary.notes) == 2 and "ann and zoe count as one subject" in " ".join(summary.notes)
    assert len(read_prepared_cohort(cohort.parent / "out").samples) == 5
    text = (cohort.parent / "out/manifest.csv").read_text("utf-8")
    (cohort.parent / "out/manifest.csv").write_text(text.replace('"ann","HGG"', '"zoe","HGG"', 1), "utf-8")
    without_marks(cohort.parent / "out/settings.json")
    with pytest.raises(
        LeakageError, match=r"line 2 and .*line 3: the same voxels have two subjects, zoe and ann"
    ):
        read_prepared_cohort(cohort.parent / "out")


def test_an_edited_manifest_is_refused_until_it_is_written_again(
    cohort: Path, without_marks: Callable[[Path], None]
) -> None:
    """Labels that were swapped by hand, a row that was taken out: training went on with them."""
    run(cohort)
    manifest = cohort.parent / "out/manifest.csv"
    text = manifest.read_text("utf-8")
    whole = read_prepared_cohort(manifest.parent)
    lines = text.splitlines()
    for edited, told in (
        (text.replace('"LGG"', '"MET"'), r" other; run `ssclf preprocess` again, which keeps the volumes"),
        ("\n".join(lines[:-1]), " gone; run"),
        (text.replace('"float32"', '"int16"', 1), r"volumes/ann\.nii\.gz other; run"),
    ):
        assert edited != text
        manifest.write_text(edited, "utf-8")
        with pytest.raises(DatasetError, match=rf"manifest\.csv: expected what ssclf wrote, found .*{told}"):
            read_prepared_cohort(manifest.parent)
    assert run(cohort).reused == 3
    assert manifest.read_text("utf-8") == text
    manifest.write_text(
        "\ufeff" + "\r\n".join([lines[0], *lines[:0:-1]]), "utf-8"
    )  # as a spreadsheet saves it
    assert read_prepared_cohort(manifest.parent) == whole
    without_marks(manifest.parent / "settings.json")
    assert [s.key for s in read_prepared_cohort(manifest.parent).samples] == [s.key for s in whole.samples][
        ::-1
    ]


def test_a_scan_stored_again_is_the_same_scan(cohort: Path, make_volume: MakeVolume) -> None:
    """Equal but for rounding, it passed under another label."""
    volume = make_volume(seed=0)
    rounded = Volume(np.round(volume.data).astype(np.int16), volume.affine)
    write_nifti(rounded, cohort / "LGG/dora.nii")
    with pytest.raises(
        DatasetError, match=r"HGG/ann\.nii\.gz and .*LGG/dora\.nii: .* two labels, HGG and LGG"
    ):
        run(cohort)
    (cohort / "LGG/dora.nii").unlink()
    write_nifti(rounded, cohort / "HGG/dora.nii")
    rows = run(cohort).rows
    assert [row["subject"] for row in rows] == ["ann", "ann", "bob", "cé d"]
    assert rows[0]["voxels"] != rows[1]["voxels"]


def test_records_of_an_earlier_version_are_kept_and_their_volumes_told(cohort: Path) -> None:
    first = run(cohort)
    before = times(cohort.parent / "out")
    for path in (cohort.parent / "out/records").iterdir():
        record = json.loads(path.read_text())
        assert is_readable(record["cells"].pop("likeness"))
        path.write_text(json.dumps(record))
    second = run(cohort)
    assert second.reused == 3 and times(cohort.parent / "out") == before
    assert [row["likeness"] for row in second.rows] == [row["likeness"] for row in first.rows]


def test_who_was_taken_for_whom_is_printed_and_shortened(tmp_path: Path, make_volume: MakeVolume) -> None:
    for number in range(11):
        label = ("HGG", "LGG")[number % 2]
        write_nifti(make_volume(seed=number), tmp_path / f"data/{label}/sub-{number:02d}_ses-1_T1w.nii.gz")
    write_nifti(make_volume(seed=20), tmp_path / "data/HGG/sub-10_ses-2_T1w.nii.gz")
    words = ["preprocess", tmp_path / "data", "--out", tmp_path / "out", "--contrasts", "t1", "--spacing", "12",
             "--workers", "1", "--assume-stripped"]  # fmt: skip
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    shown = [" ".join(line.split()) for line in done.output.replace("\u2502", " ").splitlines()]
    assert "11 subjects, named by sub- in the name (11)" in shown
    assert "sub-10 HGG 1, 2 2" in shown and "sub-00 HGG 1 1" in shown
    assert sum(line.startswith("sub-") for line in shown) == 8
    assert any(line.startswith("\u2026 and 3 more: all will be in subjects.csv") for line in shown)
    assert len(read_csv(tmp_path / "out/subjects.csv")) == 11


def test_a_cohort_of_the_other_preset_is_not_replaced_unasked(cohort: Path, tmp_path: Path) -> None:
    """The command that made a folder with the full field of view now means the brain's box."""
    out = tmp_path / "out"
    command = ["preprocess", cohort, "--out", out, "--spacing", 6, "--workers", 1, "--assume-stripped"]

    def invoke(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*map(str, command), *words])
        return done.exit_code, " ".join(done.output.split())

    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    assert invoke("--preset", "paper")[0] == 0
    before = contents()
    code, told = invoke()
    assert code == 1 and "Say --preset paper to go on with it, --preset default to replace it" in told
    assert contents() == before
    for same in (("--preset", "paper"), ("--crop", "none")):
        assert "(3 of them from before)" in invoke(*same)[1]
    assert read_prepared_cohort(out).preprocess == PreprocessConfig(spacing=(6, 6, 6))
    code, told = invoke("--preset", "default")
    assert code == 0 and "(0 of them from before)" in told
    assert read_prepared_cohort(out).preprocess == PreprocessConfig(spacing=(6, 6, 6), crop="brain")
    assert "(3 of them from before)" in invoke()[1]
