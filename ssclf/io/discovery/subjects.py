"""Who is one subject: the one rule for every layout, from names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssclf.domain.labels import clean_text
from ssclf.io.paths import real_path
from ssclf.io.volumes.dicom_series import DicomSeries

_BRATS_CASE = re.compile(r"^brats(\d{2}|\d{4})?[_-].*\d", re.IGNORECASE)
#: 2017 to 2019 name a case alike behind the prefix; later years number them anew.
BRATS_RELEASE = re.compile(r"^brats1[789]_", re.IGNORECASE)
_BRATS_TIME_POINT = re.compile(r"^(brats-[a-z]+-\d+)-\d+$", re.IGNORECASE)
IXI = re.compile(r"^(?P<subject>IXI\d+)-(?P<site>[A-Za-z]+)-\d+")


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
    """

    subject: str
    source: str
    unique: str
    named_by_class: bool = False
    contrast_optional: bool = True


@dataclass(frozen=True)
class Place:
    """A case or series in a folder: the names of the folders around it, from the outermost, and its own."""

    folders: tuple[str, ...]
    name: str
    content: dict[str, list[str]] | DicomSeries


def class_level(places: Sequence[tuple[str, ...]]) -> int:
    """How many folders all places share before they part: behind these come the classes."""
    level = 0
    while all(len(folders) > level + 1 for folders in places) and len({f[level] for f in places}) == 1:
        level += 1
    return level


def class_folder(place: Place, level: int) -> str:
    """The folder that may name a class; those named by a data set do not."""
    name = place.folders[level] if len(place.folders) > level else ""
    return "" if "brats" in name.lower() or name.upper().startswith("IXI") else name


def identify(root: Path, place: Place, level: int, releases: Mapping[str, str]) -> Who:
    names = [place.name, *reversed(place.folders)]
    brats = next((name for name in names if _BRATS_CASE.match(name)), "")
    if brats:
        case = releases.get(name_key(brats), BRATS_RELEASE.sub("", brats))
        year = re.search(r"\d+", brats[:9])
        source = f"BraTS 20{year[0][-2:]}" if year else "BraTS"
        return Who(_BRATS_TIME_POINT.sub(r"\1", case), source, case, contrast_optional=place.name == brats)
    ixi = next((match for name in names if (match := IXI.match(name))), None)
    if ixi:
        named = f"IXI-{ixi['site']}"
        return Who(ixi["subject"], named, ixi["subject"], contrast_optional=place.name == ixi[0])
    inside = place.folders[level + 1 :] if class_folder(place, level) else place.folders[level:]
    subject = inside[0] if inside else place.name
    unique = "/".join((str(root), *place.folders, place.name))
    return Who(subject, real_path(root).name, unique, named_by_class=bool(class_folder(place, level)))
