"""Who is one subject: the one rule for every layout, from names of files and folders.

Splits keep subjects together, so a person who counts as two may train a network and test it. The first of these that
says something decides:

1. a manifest's column `subject`
2. BIDS entities: `sub-X` in the name of the file or of a folder around it is the person, `ses-Y` one of the visits
3. the case names of BraTS and IXI
4. the first folder below the class that can be a person's; folders named after a visit (`ses-1`, `visit 2`), a kind of
   volume (`anat`) or a contrast (`T1`) cannot
5. the file's name, without its contrast and without what begins with `_ses-`

Source of 2: Brain Imaging Data Structure, specification 1.10, "Entities".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath

from ssclf.domain.labels import clean_text
from ssclf.errors import DatasetError
from ssclf.io.discovery.naming import names_contrast
from ssclf.io.discovery.scans import Case
from ssclf.io.paths import real_path
from ssclf.io.volumes.dicom_series import DicomSeries

_BRATS_CASE = re.compile(r"^brats(\d{2}|\d{4})?[_-].*\d", re.IGNORECASE)
#: 2017 to 2019 name a case alike behind the prefix; later years number them anew.
BRATS_RELEASE = re.compile(r"^brats1[789]_", re.IGNORECASE)
_BRATS_TIME_POINT = re.compile(r"^(brats-[a-z]+-\d+)-(\d+)$", re.IGNORECASE)
IXI = re.compile(r"^(?P<subject>IXI\d+)-(?P<site>[A-Za-z]+)-\d+")
_SUB = re.compile(r"(?:^|_)sub-([^_/]+?)(?=[_-]ses-|_|$)", re.IGNORECASE)
_SES = re.compile(r"(?:^|[_-])ses-([^_/]+)", re.IGNORECASE)
_VISIT = re.compile(r"ses-.+|(?:session|visit|time[ _-]?point)[ _-]?\d+", re.IGNORECASE)
_BIDS_KINDS = frozenset(("anat", "func", "dwi", "fmap", "perf", "pet", "mrs"))
#: What named the subject, where no name of a file or folder did.
MANIFEST, PARTICIPANTS = "manifest", "participants.tsv"
#: A number that each class gives its subjects anew; longer ones may be a hospital's.
_RUNNING_NUMBER = re.compile(r"\d{1,4}")


def name_key(name: str) -> str:
    """Equal for a name in a table and the same name of a file, which some systems store in another Unicode form."""
    return clean_text(name).lower()


@dataclass(frozen=True)
class Who:
    """Attributes:
    subject: the person.
    source: where the volume comes from.
    unique: equal for the same case in two releases.
    named_by_class: the subject's name says nothing outside its class folder.
    contrast_optional: a file whose name states no contrast is taken for the wanted one. Not where a data set names
        all of its contrasts, unless the user has chosen the file with a pattern.
    session: the visit, "" where nothing names one.
    named_by: what told the subject, for people.
    """

    subject: str
    source: str
    unique: str
    named_by_class: bool = False
    contrast_optional: bool = True
    session: str = ""
    named_by: str = ""


@dataclass(frozen=True)
class Place:
    """A case or series in a folder: the names of the folders around it, from the outermost, and its own."""

    folders: tuple[str, ...]
    name: str
    content: dict[str, list[str]] | DicomSeries


@dataclass(frozen=True)
class ClassLevel:
    """Attributes:
    depth: so many folders lie above those that may name classes.
    of_subjects: what lies there are subjects, since a table of labels names one of them.
    """

    depth: int
    of_subjects: bool = False

    def folder(self, place: Place) -> str:
        """The folder that may name a class; those named by a data set, after a person or after a visit do not."""
        name = place.folders[self.depth] if len(place.folders) > self.depth else ""
        by_others = "brats" in name.lower() or name.upper().startswith("IXI") or _is_entity(name)
        return "" if by_others or self.of_subjects else name


def find_class_level(places: Sequence[Place], people: Mapping[str, object]) -> ClassLevel:
    """How many folders all places share before they part: behind these come the classes.

    Args:
        people: `name_key` of those whom a table of labels names.
    """
    above = [tuple(takewhile(lambda name: not _is_entity(name), place.folders)) for place in places]
    depth = 0
    while all(len(folders) > depth + 1 for folders in above) and len({f[depth] for f in above}) == 1:
        depth += 1
    return ClassLevel(
        depth, any(name_key(folders[depth]) in people for folders in above if len(folders) > depth)
    )


def _is_entity(folder: str) -> bool:
    return bool(_SUB.match(folder) or _VISIT.fullmatch(folder))


def identify(root: Path, place: Place, level: ClassLevel, releases: Mapping[str, str]) -> Who:
    """Rules 2 to 5 of this module.

    Args:
        releases: `name_key` of a BraTS case → its name in an earlier release.

    Raises:
        DatasetError: file and folders name two subjects.
    """
    names = [place.name, *reversed(place.folders)]
    path = "/".join((*place.folders, place.name))
    who = _brats(names, releases) or _ixi(names) or _in_folders(root, place, level)
    who = replace(who, session=bids_session(path) or who.session)
    subject = bids_subject(path)
    return replace(who, subject=subject, named_by="sub- in the name") if subject else who


def bids_subject(path: str) -> str:
    """The person whom `sub-X` in a path names, as "sub-X"; "" where none is.

    Args:
        path: POSIX, with or without the ending of the file.

    Raises:
        DatasetError: it names two.
    """
    found = {f"sub-{match[1]}": name for name in path.split("/") if (match := _SUB.search(name))}
    if len(found) > 1:
        (one, first), (other, second) = sorted(found.items())[:2]
        raise DatasetError(
            f"{path}: expected one subject, found {one} in {first} and {other} in {second}; correct one of the names."
        )
    return next(iter(found), "")


def bids_session(path: str) -> str:
    """The visit that `ses-Y` in a path names, the innermost of several; "" where none is."""
    return next((found[1] for name in reversed(path.split("/")) if (found := _SES.search(name))), "")


def _brats(names: Sequence[str], releases: Mapping[str, str]) -> Who | None:
    name = next((name for name in names if _BRATS_CASE.match(name)), "")
    if not name:
        return None
    case = releases.get(name_key(name), BRATS_RELEASE.sub("", name))
    year = re.search(r"\d+", name[:9])
    source = f"BraTS 20{year[0][-2:]}" if year else "BraTS"
    visit = _BRATS_TIME_POINT.match(case)
    return Who(
        visit[1] if visit else case,
        source,
        case,
        contrast_optional=names[0] == name,
        session=visit[2] if visit else "",
        named_by="BraTS case",
    )


def _ixi(names: Sequence[str]) -> Who | None:
    found = next((match for name in names if (match := IXI.match(name))), None)
    if found is None:
        return None
    subject, optional = found["subject"], names[0] == found[0]
    return Who(subject, f"IXI-{found['site']}", subject, contrast_optional=optional, named_by="IXI name")


def _in_folders(root: Path, place: Place, level: ClassLevel) -> Who:
    class_folder = level.folder(place)
    inside = place.folders[level.depth + 1 :] if class_folder else place.folders[level.depth :]
    people = [name for name in inside if not _VISIT.fullmatch(name) and not _is_kind(name)]
    found = people[0] if people else place.name or (*place.folders, real_path(root).name)[-1]
    before, *_, behind = (*_SES.split(found), "")[:3]
    alone = "DICOM series" if isinstance(place.content, DicomSeries) else "file name"
    below = "folder below the class" if class_folder else "folder"
    return Who(
        clean_text(before or behind.strip("_-") or found),
        real_path(root).name,
        "/".join((str(root), *place.folders, place.name)),
        named_by_class=bool(class_folder),
        session=next((name for name in inside if _VISIT.fullmatch(name)), ""),
        named_by=below if people else alone,
    )


def _is_kind(folder: str) -> bool:
    return folder.lower() in _BIDS_KINDS or names_contrast(folder)


def is_running_number(subject: str) -> bool:
    """Whether a name is a number that each class may give its subjects anew, such as 001."""
    return bool(_RUNNING_NUMBER.fullmatch(subject))


def check_persons(cases: Sequence[Case]) -> None:
    """Refuse one person under two names, and one name under two classes.

    Raises:
        DatasetError: with both places.
    """
    named: dict[tuple[str, str], Case] = {}
    labelled: dict[str, Case] = {}
    for case in cases:
        if case.named_by == MANIFEST and (person := _innermost_person(case.scan.path)):
            other = named.setdefault(person, case)
            if other.subject != case.subject:
                raise DatasetError(
                    f"{other.place} and {case.place}: expected one subject for {person[1]}, whom both files name, "
                    f"found {other.subject} and {case.subject}; give them one."
                )
        other = labelled.setdefault(case.subject, case)
        if other.label != case.label:
            raise DatasetError(
                f"{other.place} and {case.place}: expected one label for each subject, found {other.label or 'none'} "
                f"and {case.label or 'none'} for {case.subject}; correct one, or leave one out. If these are different "
                "persons with one name, give them different names in a manifest, or all such names in one go with "
                "`ssclf preprocess --subjects-by-class`."
            )


def _innermost_person(path: str) -> tuple[str, str] | None:
    """The folder in which `sub-X` is one person, and "sub-X"; None where no name in the path says so."""
    parts = PurePosixPath(path).parts
    names = [match[1] if (match := _SUB.search(part)) else "" for part in parts]
    person = next((name for name in reversed(names) if name), "")
    return ("/".join(parts[: names.index(person)]), f"sub-{person}") if person else None


def name_by_class(cases: Sequence[Case]) -> list[Case]:
    """Subjects whose name stands under several classes as one person for each class, named after both."""
    labels: dict[str, set[str]] = {}
    for case in cases:
        labels.setdefault(case.subject, set()).add(case.label)
    return [
        replace(case, subject=f"{case.label}-{case.subject}") if len(labels[case.subject]) > 1 else case
        for case in cases
    ]


@dataclass(frozen=True)
class Subject:
    """What was understood of one person.

    Attributes:
        sources, sessions, named_by: sorted, without repetition.
        volumes: how many.
    """

    subject: str
    label: str
    sources: tuple[str, ...]
    sessions: tuple[str, ...]
    volumes: int
    named_by: tuple[str, ...]


def list_subjects(cases: Sequence[Case]) -> list[Subject]:
    """By name; a person with several labels once for each."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.subject, case.label), []).append(case)
    return [
        Subject(
            subject,
            label,
            tuple(sorted({case.source for case in group})),
            tuple(sorted({case.session for case in group} - {""})),
            len(group),
            tuple(sorted({case.named_by for case in group})),
        )
        for (subject, label), group in sorted(groups.items())
    ]
