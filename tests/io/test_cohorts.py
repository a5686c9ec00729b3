"""Data sets as they are distributed: who is who, which class, and what is refused instead of guessed."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_writer import WrittenSeries

from ssclf.errors import ConfigError, DatasetError
from ssclf.io.discovery.cohorts import Cohort, CohortQuery, find_cases


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def brats(root: Path, grade: str, *cases: str, contrasts: str = "t1 t1ce t2 flair seg") -> Path:
    return touch(root, *(f"{grade}/{case}/{case}_{c}.nii.gz" for case in cases for c in contrasts.split()))


def find(*sources: Path, contrasts: tuple[str, ...] = ("t1ce",), **options: Any) -> Cohort:
    return find_cases(CohortQuery(sources=sources, contrasts=contrasts, **options))


def summary(cohort: Cohort) -> list[tuple[str, str, str]]:
    return [(case.subject, case.label, case.source) for case in cohort.cases]


def names(cohort: Cohort) -> list[str]:
    return [Path(case.scan.path).name for case in cohort.cases]


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_brats_2018_and_2019_by_grade_folder(tmp_path: Path) -> None:
    root = tmp_path / "MICCAI_BraTS_2019_Data_Training"
    brats(root, "HGG", "BraTS19_CBICA_AAB_1", "BraTS19_TCIA01_201_1")
    brats(root, "LGG", "BraTS19_TCIA10_628_1")
    touch(root, "name_mapping.csv").joinpath("name_mapping.csv").write_text("Grade,BraTS_2019_subject_ID\n")
    cohort = find(root)
    assert summary(cohort) == [
        ("CBICA_AAB_1", "HGG", "BraTS 2019"),
        ("TCIA01_201_1", "HGG", "BraTS 2019"),
        ("TCIA10_628_1", "LGG", "BraTS 2019"),
    ]
    assert names(cohort)[0] == "BraTS19_CBICA_AAB_1_t1ce.nii.gz"
    assert cohort.left_out["a mask beside a volume"] == 3
    assert [(f.label, f.source, f.volumes, f.taken) for f in cohort.found] == [
        ("HGG", "BraTS 2019", 2, 2),
        ("LGG", "BraTS 2019", 1, 1),
    ]


def test_one_case_of_two_releases_is_one_subject(tmp_path: Path) -> None:
    brats(tmp_path / "b18", "HGG", "Brats18_TCIA01_201_1", "Brats18_TCIA02_135_1")
    brats(tmp_path / "b19", "HGG", "BraTS19_TCIA01_201_1")
    brats(tmp_path / "b19", "LGG", "BraTS19_TCIA10_628_1")
    cohort = find(tmp_path / "b18", tmp_path / "b19")
    assert [case.subject for case in cohort.cases] == ["TCIA01_201_1", "TCIA02_135_1", "TCIA10_628_1"]
    assert cohort.left_out["a second volume of a case"] == 1


def test_brats_2020_takes_grades_and_older_names_from_its_mapping(tmp_path: Path) -> None:
    cases = [f"BraTS20_Training_00{n}" for n in (1, 2, 3)]
    brats(tmp_path / "b20", "MICCAI_BraTS2020_TrainingData", *cases)
    brats(tmp_path / "b20", "MICCAI_BraTS2020_ValidationData", "BraTS20_Validation_001")
    table(
        tmp_path / "b20/MICCAI_BraTS2020_TrainingData/name_mapping.csv",
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,"
        "BraTS_2020_subject_ID",
        "HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001",
        "LGG,NA,NA,NA,BraTS19_TCIA10_628_1,BraTS20_Training_002",
        "HGG,NA,NA,NA,NA,BraTS20_Training_003",
    )
    table(
        tmp_path / "b20/name_mapping_validation_data.csv", "BraTS_2020_subject_ID", "BraTS20_Validation_001"
    )
    brats(tmp_path / "b19", "HGG", "BraTS19_CBICA_AAB_1")
    cohort = find(tmp_path / "b20", tmp_path / "b19")
    assert summary(cohort) == [
        ("BraTS20_Training_003", "HGG", "BraTS 2020"),
        ("CBICA_AAB_1", "HGG", "BraTS 2020"),
        ("TCIA10_628_1", "LGG", "BraTS 2020"),
    ]
    assert cohort.left_out["a case whose class nothing states"] == 1


def test_brats_2021_has_no_grades_and_asks_for_a_table(tmp_path: Path) -> None:
    root = brats(tmp_path / "b21", "BraTS2021_Training_Data", "BraTS2021_00000", "BraTS2021_00002")
    with pytest.raises(DatasetError, match="subject and label"):
        find(root)
    labels = table(tmp_path / "grades.csv", "subject,label", "BraTS2021_00000,LGG", "brats2021_00002,HGG")
    assert summary(find(root, labels=labels)) == [
        ("BraTS2021_00000", "LGG", "BraTS 2021"),
        ("BraTS2021_00002", "HGG", "BraTS 2021"),
    ]


def test_time_points_of_brats_2023_are_one_subject(tmp_path: Path) -> None:
    for case in ("BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00006-000"):
        touch(
            tmp_path / "b",
            f"{case}/{case}-t1c.nii.gz",
            f"{case}/{case}-t1n.nii.gz",
            f"{case}/{case}-seg.nii.gz",
        )
    labels = table(tmp_path / "l.csv", "subject,label", "BraTS-GLI-00005-000,HGG", "BraTS-GLI-00005-001,HGG",
                   "BraTS-GLI-00006-000,LGG")  # fmt: skip
    cohort = find(tmp_path / "b", labels=labels)
    assert [case.subject for case in cohort.cases] == ["BraTS-GLI-00005"] * 2 + ["BraTS-GLI-00006"]


def test_ixi_is_healthy_by_site_and_its_t1_stands_in_for_t1ce(tmp_path: Path) -> None:
    sites = ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI013-IOP-1212")
    touch(tmp_path / "IXI-T1", *(f"{case}-T1.nii.gz" for case in sites))
    touch(
        tmp_path / "IXI-T1", "IXI002-Guys-0828-PD.nii.gz", "IXI014-HH-1236-T2.nii.gz", "IXI015-HH-1258.nii.gz"
    )
    brats(tmp_path / "b", "LGG", "Brats18_TCIA10_628_1")
    cohort = find(tmp_path / "IXI-T1", tmp_path / "b")
    assert summary(cohort) == [
        ("IXI002", "healthy", "IXI-Guys"),
        ("IXI012", "healthy", "IXI-HH"),
        ("IXI013", "healthy", "IXI-IOP"),
        ("IXI015", "healthy", "IXI-HH"),
        ("TCIA10_628_1", "LGG", "BraTS 2018"),
    ]
    assert names(cohort)[0] == "IXI002-Guys-0828-T1.nii.gz"
    assert [case.extra.get("stand_in", "") for case in cohort.cases] == ["t1ce=t1"] * 3 + [""] * 2
    assert cohort.left_out["a case without t1ce"] == 1


def test_nothing_stands_in_for_a_tumours_contrast(tmp_path: Path) -> None:
    brats(tmp_path, "HGG", "Brats18_A_1_1", contrasts="t1")
    brats(tmp_path, "HGG", "Brats18_B_1_1")
    brats(tmp_path, "LGG", "Brats18_C_1_1")
    cohort = find(tmp_path)
    assert [case.subject for case in cohort.cases] == ["B_1_1", "C_1_1"]
    assert cohort.left_out["a case without t1ce"] == 1


def test_several_contrasts_in_the_order_asked_for(tmp_path: Path) -> None:
    brats(tmp_path, "HGG", "Brats18_A_1_1")
    brats(tmp_path, "LGG", "Brats18_B_1_1", contrasts="t1ce")
    brats(tmp_path, "LGG", "Brats18_C_1_1")
    cohort = find(tmp_path, contrasts=("flair", "t1ce"))
    assert [[Path(str(p)).name for p in case.scan.contrasts] for case in cohort.cases] == [
        ["Brats18_A_1_1_flair.nii.gz", "Brats18_A_1_1_t1ce.nii.gz"],
        ["Brats18_C_1_1_flair.nii.gz", "Brats18_C_1_1_t1ce.nii.gz"],
    ]


def test_a_folder_per_class_and_a_folder_per_subject(tmp_path: Path) -> None:
    touch(tmp_path, "data/tumour/anna/a.nii.gz", "data/tumour/anna/b.nrrd", "data/tumour/bert.mgz")
    touch(tmp_path, "data/control/cora/2020/scan.nii", "data/control/.hidden.nii")
    cohort = find(tmp_path)
    assert summary(cohort) == [
        ("anna", "tumour", tmp_path.name),
        ("anna", "tumour", tmp_path.name),
        ("bert", "tumour", tmp_path.name),
        ("cora", "control", tmp_path.name),
    ]
    assert find(tmp_path, class_map={"tumour": "HGG"}).cases[0].label == "HGG"


def test_classes_that_number_their_subjects_alike_do_not_share_them(tmp_path: Path) -> None:
    touch(tmp_path, "a/001.nii.gz", "b/001.nii.gz", "b/002.nii.gz")
    assert [case.subject for case in find(tmp_path).cases] == ["002", "a-001", "b-001"]


def test_another_name_is_for_a_label_that_is_there(tmp_path: Path) -> None:
    """`--class gmb=HGG` was taken, and did nothing: GBM became a class of its own."""
    touch(tmp_path, "one/GBM/a.nii.gz", "one/LGG/b.nii.gz", "two/LGG/c.nii.gz", "two/MET/d.nii.gz")
    table(tmp_path / "three.csv", "subject,label,path", "e, 2 ,one/GBM/a.nii.gz", "f,LGG,two/LGG/c.nii.gz")
    with pytest.raises(DatasetError, match=r"--class gmb=HGG: expected a label of the data \(GBM, LGG\)"):
        find(tmp_path / "one", class_map={"gmb": "HGG"})
    for source, label in (("one", "MET"), ("two", "GBM"), ("three.csv", "GBM")):
        with pytest.raises(DatasetError, match=f"--class {label}=HGG"):
            find(tmp_path / source, class_map={label: "HGG"})
    assert {case.label for case in find(tmp_path / "three.csv", class_map={"2\u200b": "HGG"}).cases} == {
        "HGG",
        "LGG",
    }
    both = find(tmp_path / "one", tmp_path / "two", class_map={"GBM": "HGG", "MET": "other"})
    assert {case.label for case in both.cases} == {"HGG", "LGG", "other"}
    with pytest.raises(ConfigError, match="one name for a label, found HGG too"):
        find(tmp_path / "one", class_map={"GBM": "HGG", "GBM ": "LGG"})


def test_another_name_may_be_for_a_label_that_only_the_table_has(tmp_path: Path) -> None:
    touch(tmp_path, "data/a/a_t1.nii.gz", "data/b/b_t1.nii.gz")
    table(tmp_path / "labels.csv", "subject,label", "a,GBM", "b,LGG", "elsewhere,MET")
    query: dict[str, Any] = {"labels": tmp_path / "labels.csv", "contrasts": ("t1",)}
    cohort = find(tmp_path / "data", class_map={"GBM": "HGG", "MET": "other"}, **query)
    assert [case.label for case in cohort.cases] == ["HGG", "LGG"]
    with pytest.raises(
        DatasetError, match=r"--class gbm=HGG: expected a label of the data \(GBM, LGG, MET\)"
    ):
        find(tmp_path / "data", class_map={"gbm": "HGG"}, **query)


def test_dicom_in_class_folders(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 500, (9, 10, 11), np.uint16)
    WrittenSeries(pixels, number=3).write(tmp_path / "HGG/ann/study/series")
    WrittenSeries(pixels, number=5).write(tmp_path / "slices")
    (tmp_path / "LGG").mkdir()
    with zipfile.ZipFile(tmp_path / "LGG/bob.zip", "w") as archive:
        for path in (tmp_path / "slices").iterdir():
            archive.write(path, path.name)
    shutil.rmtree(tmp_path / "slices")
    cohort = find(tmp_path)
    assert summary(cohort) == [("ann", "HGG", tmp_path.name), ("bob", "LGG", tmp_path.name)]
    assert [case.scan.series[:2] for case in cohort.cases] == ["3-", "5-"]
    with pytest.raises(DatasetError, match="several contrasts are wanted"):
        find(tmp_path, contrasts=("t1", "t1ce"))


def test_a_folder_of_subjects_is_not_taken_for_classes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"subject{n:02d}/t.nii.gz" for n in range(30)))
    with pytest.raises(DatasetError, match="look like subjects"):
        find(tmp_path)


def test_bids_labels_come_from_participants(tmp_path: Path) -> None:
    touch(tmp_path, "sub-1/ses-1/anat/sub-1_ses-1_ce-gadolinium_T1w.nii.gz", "sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz",
          "sub-1/ses-2/anat/sub-1_ses-2_ce-gadolinium_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz",
          "sub-3/anat/sub-3_ce-gd_T1w.nii.gz", "sub-2/func/sub-2_bold.nii.gz",
          "derivatives/x/sub-1/anat/sub-1_ce-gadolinium_T1w.nii.gz")  # fmt: skip
    table(tmp_path / "participants.tsv", "participant_id\tsite\tdiagnosis", "sub-1\tA\tHGG", "sub-2\tA\thealthy",
          "sub-3\tB\tn/a")  # fmt: skip
    cohort = find(tmp_path)
    assert summary(cohort) == [("sub-1", "HGG", "A"), ("sub-1", "HGG", "A"), ("sub-2", "healthy", "A")]
    assert all("ce-gadolinium" in name for name in names(cohort)[:2])
    assert cohort.left_out["not in sub-*/anat of the BIDS folder"] == 2
    assert cohort.left_out["a case without diagnosis in participants.tsv"] == 1
    with pytest.raises(DatasetError, match="grading"):
        find(tmp_path, label_column="grading")


def test_a_manifest_with_its_own_subjects_and_sources(tmp_path: Path) -> None:
    touch(tmp_path, "v/a.nii.gz", "v/b.nii.gz", "v/c.nii.gz")
    manifest = table(
        tmp_path / "all.csv",
        "subject,label,source,T1,T1CE",
        "Brats18_TCIA01_201_1,HGG,here,,v/a.nii.gz",
        "b,healthy,,v/b.nii.gz,",
        f"c,LGG,there,,{tmp_path}/v/c.nii.gz",
    )
    assert summary(find(manifest)) == [
        ("TCIA01_201_1", "HGG", "here"),
        ("b", "healthy", "all"),
        ("c", "LGG", "there"),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["subject,path", "a,a.nii.gz"], "label is missing"),
        (["subject,label", "a,HGG"], "t1ce is missing"),
        (
            ["subject,label,path", "a,HGG,a.nii.gz", "", "b,,b.nii.gz"],
            "line 4: expected a value in column label",
        ),
        (["subject,label,path", ",HGG,a.nii.gz"], "line 2: expected a value in column subject"),
        (
            ["subject,label,path", "a,HGG,a.nii.gz", "b,LGG,gone.nii.gz"],
            "line 3: .* found no file gone.nii.gz",
        ),
        (
            ["subject,label,path", "a,HGG,a.nii.gz", "b,LGG,a.nii.gz"],
            "line 3: names the same volume as line 2",
        ),
        (["subject,label,path", "a,HGG,a.nii.gz", "a,LGG,b.nii.gz"], "one label for each subject"),
        (["subject,label,path", "a,HGG,a.nii.gz", "b,HGG,b.nii.gz"], "at least 2 classes, found HGG"),
        (["subject,label,path", "a,HGG,a.nii.gz,extra"], "line 2: expected 3 cells, found 4"),
        (["subject,label,label,path", "a,HGG,HGG,a.nii.gz"], "each column once"),
        ([""], "empty file"),
        (["subject,label,path,voxels,settings", "a,HGG,a.nii.gz,0,0"], "preprocessed already"),
    ],
)
def test_a_manifest_with_a_mistake_is_refused_with_its_line(
    tmp_path: Path, lines: list[str], message: str
) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii.gz")
    with pytest.raises(DatasetError, match=message):
        find(table(tmp_path / "m.csv", *lines))


def test_the_limit_draws_the_same_cases_wherever_they_lie(tmp_path: Path) -> None:
    for place in ("one", "two/deeper"):
        touch(tmp_path / place / "IXI", *(f"IXI{n:03d}-HH-1{n:03d}-T1.nii.gz" for n in range(1, 41)))
        brats(tmp_path / place, "HGG", "Brats18_A_1_1")
    draws = [
        {case.subject for case in find(tmp_path / place, limit={"healthy": n}, seed=seed).cases} - {"A_1_1"}
        for place, n, seed in (("one", 10, 7), ("two/deeper", 10, 7), ("one", 15, 7), ("one", 10, 8))
    ]
    assert draws[0] == draws[1] and len(draws[0]) == 10
    assert draws[0] < draws[2]
    assert draws[0] != draws[3]
    assert [f.taken for f in find(tmp_path / "one", limit={"healthy": 10}).found] == [1, 10]
    with pytest.raises(DatasetError, match="helthy"):
        find(tmp_path / "one", limit={"helthy": 10})


@pytest.mark.parametrize("content", [(), ("flat.nii.gz", "other.nii.gz"), ("notes.txt",)])
def test_a_folder_that_says_nothing_is_refused_with_what_was_expected(
    tmp_path: Path, content: tuple[str, ...]
) -> None:
    touch(tmp_path, *content)
    with pytest.raises(DatasetError, match="one folder per class"):
        find(tmp_path)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        find(tmp_path / "nowhere")


SPELLINGS = ("HGG", "HGG ", "H\u200bGG", "\ufeffHGG", "HGG\u00a0")


@pytest.mark.parametrize("nothing", ["NA", "nan", "n/a", "None", "?", "-", ""])
def test_labels_are_read_alike_in_every_table(tmp_path: Path, nothing: str) -> None:
    """A manifest made classes of NA and of a zero-width space, a BIDS table did not."""
    for number in range(5):
        touch(
            tmp_path,
            f"m/{number}.nii.gz",
            f"b/sub-{number}/anat/sub-{number}_T1w.nii.gz",
            f"l/c{number}/t1.nii.gz",
        )
    touch(tmp_path, "m/5.nii.gz", "b/sub-5/anat/sub-5_T1w.nii.gz", "l/c5/t1.nii.gz", "b/sub-6/anat/sub-6_T1w.nii.gz",
          "l/c6/t1.nii.gz", "l/c7/t1.nii.gz")  # fmt: skip
    labels = [*SPELLINGS, "LGG"]
    manifest = table(
        tmp_path / "m/m.csv", "subject,label,path", *(f"{k},{x},{k}.nii.gz" for k, x in enumerate(labels))
    )
    table(tmp_path / "b/participants.tsv", "participant_id\tdx",
          *(f"sub-{k}\t{x}" for k, x in enumerate([*labels, nothing])))  # fmt: skip
    table(tmp_path / "l.csv", "subject,label", *(f"c{k},{x}" for k, x in enumerate([*labels, nothing])))
    wanted = ["HGG"] * 5 + ["LGG"]
    for cohort in (
        find(manifest),
        find(tmp_path / "b", contrasts=("t1",)),
        find(tmp_path / "l", labels=tmp_path / "l.csv", contrasts=("t1",)),
    ):
        assert [case.label for case in cohort.cases][:6] == wanted
    assert find(tmp_path / "b", contrasts=("t1",)).left_out["a case without dx in participants.tsv"] == 1
    table(tmp_path / "m/n.csv", "subject,label,path", "a,HGG,0.nii.gz", f"b,{nothing},1.nii.gz")
    with pytest.raises(DatasetError, match=r"n\.csv line 3: expected a value in column label"):
        find(tmp_path / "m/n.csv")


def test_look_alikes_are_joined_by_the_option_that_the_refusal_names(tmp_path: Path) -> None:
    touch(tmp_path, "Tumour/a.nii.gz", "tumour/b.nii.gz", "control/c.nii.gz")
    with pytest.raises(DatasetError, match=r"--class tumour=Tumour") as refused:
        find(tmp_path)
    assert "Tumour/a.nii.gz" in str(refused.value) and "tumour/b.nii.gz" in str(refused.value)
    joined = find(tmp_path, class_map={"tumour": "Tumour"})
    assert sorted(case.label for case in joined.cases) == ["Tumour", "Tumour", "control"]
    with pytest.raises(ConfigError, match="--class control=NA"):
        find(tmp_path, class_map={"control": "NA"})
