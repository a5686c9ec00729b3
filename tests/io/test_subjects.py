"""Who is one subject: a person with two visits must never train a network and test it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssclf.errors import DatasetError
from ssclf.io.discovery.cohorts import Cohort, CohortQuery, find_cases
from ssclf.io.discovery.subjects import Subject, list_subjects

#: How people lay out persons p of classes c with visits v.
LAYOUTS: dict[str, Callable[[str, str, int], str]] = {
    "flat BIDS names": lambda c, p, v: f"{c}/sub-{p}_ses-{v}_T1w.nii.gz",
    "more entities": lambda c, p, v: f"{c}/sub-{p}_ses-{v}_acq-mprage_run-{v}_T1w.nii.gz",
    "BIDS folders in class folders": lambda c, p, v: f"{c}/sub-{p}/ses-{v}/anat/sub-{p}_ses-{v}_T1w.nii.gz",
    "sub- in a folder only": lambda c, p, v: f"{c}/sub-{p}/ses-{v}/t1.nii.gz",
    "sub- above the visit's class": lambda c, p, v: f"sub-{p}/ses-{v}/{c}/t1.nii.gz",
    "a folder per visit": lambda c, p, v: f"{c}/ses-{v}/{p}_t1.nii.gz",
    "a folder per visit, then person": lambda c, p, v: f"{c}/session {v}/{p}/t1.nii.gz",
    "a folder per person, then visit": lambda c, p, v: f"{c}/{p}/visit{v}/t1.nii.gz",
    "a folder per contrast": lambda c, p, v: f"{c}/T1/{p}_ses-{v}_T1.nii.gz",
    "names with a visit": lambda c, p, v: f"{c}/{p}_ses-{v}_t1.nii.gz",
    "a folder per name with a visit": lambda c, p, v: f"{c}/{p}_ses-{v}/t1.nii.gz",
}


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def find(*sources: Path, **options: Any) -> Cohort:
    return find_cases(CohortQuery(sources=sources, contrasts=("t1",), **options))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_person_is_one_subject_however_visits_are_laid_out(tmp_path: Path, layout: str, seed: int) -> None:
    chance = random.Random(seed)
    persons = {f"{chance.choice('PQ')}{chance.randint(10, 99)}{k}": ("HGG", "LGG")[k % 2] for k in range(6)}
    visits = [(person, visit) for person in persons for visit in range(1, chance.randint(2, 4))]
    touch(tmp_path, *(LAYOUTS[layout](persons[person], person, visit) for person, visit in visits))
    cohort = find(tmp_path)
    assert len(cohort.cases) == len(visits)
    found = list_subjects(cohort.cases)
    assert sorted(each.subject.removeprefix("sub-") for each in found) == sorted(persons)
    for each in found:
        person = each.subject.removeprefix("sub-")
        assert (each.label, each.volumes) == (persons[person], sum(p == person for p, _ in visits))
        assert len(each.sessions) == each.volumes and len(each.named_by) == 1


def test_one_name_under_two_classes_is_refused_with_both_files(tmp_path: Path) -> None:
    """It was taken for two persons without a word: an LGG that became an HGG was on both sides of a split."""
    touch(tmp_path, "LGG/P7/t1.nii.gz", "HGG/P7/t1.nii.gz", "HGG/P8/t1.nii.gz")
    with pytest.raises(
        DatasetError, match=r"HGG/P7/t1\.nii\.gz and .*LGG/P7/t1\.nii\.gz: .* HGG and LGG for P7"
    ):
        find(tmp_path)
    two = find(tmp_path, subjects_by_class=True)
    assert [case.subject for case in two.cases] == ["HGG-P7", "LGG-P7", "P8"]


def test_numbers_that_each_class_gives_anew_are_persons_of_their_own_and_said_so(tmp_path: Path) -> None:
    touch(tmp_path, "a/001.nii.gz", "b/001.nii.gz")
    cohort = find(tmp_path)
    assert [case.subject for case in cohort.cases] == ["a-001", "b-001"]
    assert "1 numbers stand under several classes (001)" in cohort.notes[0]
    touch(tmp_path, "a/4711234.nii.gz", "b/4711234.nii.gz")  # a hospital's number, not a running one
    with pytest.raises(DatasetError, match="4711234"):
        find(tmp_path)


def test_a_path_that_names_two_persons_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "HGG/sub-1/anat/sub-2_T1w.nii.gz", "LGG/sub-3_T1w.nii.gz")
    with pytest.raises(DatasetError, match=r"found sub-1 in sub-1 and sub-2 in sub-2"):
        find(tmp_path)


def test_a_manifest_may_not_tear_a_person_apart(tmp_path: Path) -> None:
    touch(tmp_path, "one/sub-A_ses-1_T1w.nii.gz", "one/sub-A_ses-2_T1w.nii.gz", "two/sub-A_T1w.nii.gz")
    manifest = tmp_path / "m.csv"
    lines = ["subject,label,path", "x,HGG,one/sub-A_ses-1_T1w.nii.gz", "y,LGG,two/sub-A_T1w.nii.gz"]
    manifest.write_text("\n".join(lines))
    assert len(find(manifest).cases) == 2, "another folder's sub-A is another person"
    manifest.write_text("\n".join([*lines, "z,HGG,one/sub-A_ses-2_T1w.nii.gz"]))
    with pytest.raises(DatasetError, match=r"m\.csv line 2 and m\.csv line 4: .*sub-A.* x and z"):
        find(manifest)
    manifest.write_text(
        "\n".join([lines[0], "x,HGG,one/sub-A_ses-1_T1w.nii.gz", "x,LGG,two/sub-A_T1w.nii.gz"])
    )
    with pytest.raises(DatasetError, match=r"m\.csv line 2 and m\.csv line 3: expected one label for each"):
        find(manifest)


@pytest.mark.parametrize(
    ("again", "told"),
    [
        ("sub-1\tHGG\tA", ""),
        ("sub-1\t HGG\u200b\tA", ""),
        ("sub-1\tLGG\tA", "lines 2 and 4: expected one dx for sub-1, found HGG and LGG"),
        ("sub-1\tn/a\tA", "lines 2 and 4: expected one dx for sub-1, found HGG and none"),
        ("sub-1\tHGG\tB", "lines 2 and 4: expected one site for sub-1, found A and B"),
    ],
)
def test_lines_of_one_participant_agree_or_are_refused(tmp_path: Path, again: str, told: str) -> None:
    """The last line won."""
    touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-2/ses-b/anat/sub-2_ses-b_T1w.nii.gz")
    lines = ["participant_id\tdx\tsite", "sub-1\tHGG\tA", "sub-2\tLGG\tA", again]
    (tmp_path / "participants.tsv").write_text("\n".join(lines), "utf-8")
    if told:
        with pytest.raises(DatasetError, match=f"participants.tsv {told}"):
            find(tmp_path)
    else:
        assert list_subjects(find(tmp_path).cases) == [
            Subject("sub-1", "HGG", ("A",), (), 1, ("participants.tsv",)),
            Subject("sub-2", "LGG", ("A",), ("b",), 1, ("participants.tsv",)),
        ]


def test_a_table_of_labels_makes_no_class_of_those_it_leaves_out(tmp_path: Path) -> None:
    """Folders of subjects that the table did not name became classes."""
    touch(tmp_path, *(f"tree/{name}/t1.nii.gz" for name in ("ann", "bob", "cora")))
    labels = tmp_path / "labels.csv"
    labels.write_text("subject,label\nann,HGG\nbob,LGG\ncora,n/a\n")
    cohort = find(tmp_path / "tree", labels=labels)
    assert [(case.subject, case.label) for case in cohort.cases] == [("ann", "HGG"), ("bob", "LGG")]
    assert cohort.left_out["a case whose class nothing states"] == 1
