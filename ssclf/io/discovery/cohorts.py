"""Labelled cohorts: which class, subject and source each volume of a data set belongs to.

Understood are manifests (CSV), BraTS and IXI as they are distributed, BIDS, and a folder per class. What a
layout does not say is never guessed: a volume without a label is left out and counted, or the cohort is
refused with the reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ssclf.config import canonical_contrast
from ssclf.domain.labels import Labelled, check_look_alikes, clean_text, is_missing, read_label
from ssclf.errors import ConfigError, DatasetError
from ssclf.io.discovery.folders import FolderContent, walk_folder
from ssclf.io.discovery.naming import OTHER_CONTRAST, cases_by_name
from ssclf.io.discovery.scans import Case, Scan
from ssclf.io.discovery.sources import contrast_columns, source_identity, table_source
from ssclf.io.discovery.subjects import (
    BRATS_RELEASE,
    IXI,
    MANIFEST,
    PARTICIPANTS,
    ClassLevel,
    Place,
    Who,
    bids_session,
    bids_subject,
    check_persons,
    find_class_level,
    identify,
    is_running_number,
    name_by_class,
    name_key,
)
from ssclf.io.paths import is_file, is_there, real_path
from ssclf.io.records.tables import TABLE_ENDINGS, Table, TableRow, read_table
from ssclf.io.volumes.dicom_files import HeaderWorkers, Limits
from ssclf.io.volumes.dicom_series import DicomSeries, find_series

GRADES = ("HGG", "LGG")
HEALTHY = "healthy"
#: Where a healthy volume has no contrast of the first kind, the second stands in for it: nobody gives a
#: volunteer a contrast agent. Source: Chatterjee et al., Sec. 2.4 (T1 of IXI beside T1ce of BraTS).
STAND_IN = {"t1ce": "t1"}
#: A tree with more first-level folders than this is no tree of classes.
MAX_CLASSES = 20

_LABEL_COLUMNS = ("label", "grade", "class", "diagnosis", "group", "dx")
_LAYOUTS = (
    "a BraTS or IXI folder, one folder per class, BIDS with participants.tsv, or a manifest (CSV) with the "
    "columns subject, label and one for each contrast"
)


@dataclass(frozen=True)
class Found:
    """Volumes of one class from one source, before and after the limit."""

    label: str
    source: str
    volumes: int
    subjects: int
    taken: int


@dataclass(frozen=True)
class Cohort:
    """Attributes:
    cases: sorted by subject, then path.
    found: per class and source, sorted.
    left_out: reason → number of files or volumes.
    notes: what was understood that a reader should look at, a sentence each.
    """

    cases: tuple[Case, ...]
    found: tuple[Found, ...]
    left_out: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CohortQuery:
    """Which labelled volumes to take from where.

    Attributes:
        sources: folders and manifests.
        contrasts: in channel order; a volume that lacks one is left out.
        labels: table with the columns subject and label (or grade), for folders that do not say, such as
            BraTS 2021; subjects are names of cases or of their folders.
        label_column: of participants.tsv and manifests; None for the first of label, grade, class,
            diagnosis, group, dx.
        class_map: other names for labels as found, such as {"GBM": "HGG"}.
        limit: class → at most so many volumes, drawn at random: with a greater limit the same and more.
        seed: of that draw.
        min_classes: fewer are an error. With 0, scans of which none has a label are taken too, without one.
        pattern, series: as for `ssclf.io.discovery.sources.discover`.
        subjects_by_class: a name under two classes is two persons; otherwise it is refused.
    """

    sources: tuple[Path, ...]
    contrasts: tuple[str, ...]
    labels: Path | None = None
    label_column: str | None = None
    class_map: Mapping[str, str] = field(default_factory=dict)
    limit: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    min_classes: int = 2
    pattern: str | None = None
    series: str | None = None
    subjects_by_class: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "contrasts", tuple(canonical_contrast(name) for name in self.contrasts))


@dataclass
class _NameTable:
    """What tables say of subjects: their labels, and which names of several releases mean one case.

    Names are looked up with `name_key`.
    """

    labels: dict[str, Labelled] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)

    def add(self, table: Table, label_column: str | None, renamed: Mapping[str, str]) -> None:
        """Take in a table with a label and one or several columns of names, such as BraTS 2020's name_mapping.csv.

        Args:
            renamed: as `CohortQuery.class_map`.

        Raises:
            DatasetError: a column is missing, or a name has two labels.
        """
        label_column = _label_column(table, label_column)
        columns = [c for c in table.columns if c in ("subject", "participant_id") or c.endswith("_id")]
        if not columns:
            table.require("subject", label_column)
        for row in table.rows:
            names = {c: clean_text(row[c]) for c in columns if not is_missing(row[c])}
            here = Labelled(clean_text(row[label_column]), f"{table.path.name} line {row.line}")
            if not read_label(here.label, renamed):
                continue
            releases = [names[c] for c in sorted(names, reverse=True) if BRATS_RELEASE.match(names[c])]
            for name in names.values():
                other = self.labels.setdefault(name_key(name), here)
                if read_label(other.label, renamed) != read_label(here.label, renamed):
                    raise DatasetError(
                        f"{here.place} and {other.place}: expected one label for {name}, found {here.label} and "
                        f"{other.label}; correct one of the lines."
                    )
                if releases:
                    self.cases[name_key(name)] = BRATS_RELEASE.sub("", releases[0])


@dataclass
class _Search:
    """What all sources share, and what they leave out."""

    query: CohortQuery
    workers: HeaderWorkers | None = None
    names: _NameTable = field(default_factory=_NameTable)
    left_out: Counter[str] = field(default_factory=Counter)
    #: Labels as the sources state them.
    stated: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def unlabelled(self) -> bool:
        """Whether a source may state no class at all."""
        return self.query.min_classes == 0

    @property
    def wanted(self) -> tuple[str, ...]:
        return tuple(canonical_contrast(contrast) for contrast in self.query.contrasts)

    def label(self, found: str) -> str:
        """The class that a cell or a folder names, "" where it names none."""
        self.stated.add(clean_text(found))
        return read_label(found, self.query.class_map)

    def stand_in(self, contrast: str, found: str) -> str:
        """The contrast that may take another's place in a volume labelled so; "" where none may."""
        healthy = HEALTHY in (clean_text(found), self.label(found))
        return STAND_IN.get(canonical_contrast(contrast), "") if healthy else ""

    def walk(self, root: Path) -> FolderContent:
        content = walk_folder(root, self.query.pattern)
        self.left_out.update(content.other)
        self.left_out.update(content.problems.values())
        return content


def find_cases(query: CohortQuery, limits: Limits | None = None) -> Cohort:
    """Find the labelled volumes of one or several sources.

    Args:
        limits: of worker processes that look at DICOM headers; None: this process does.

    Raises:
        DatasetError: a source is missing or not understood, a manifest has errors (with their lines), a
            subject has two labels, a label of `class_map` is none of theirs, or there are too few classes.
        ConfigError: `series` is no regular expression, or a class of `class_map` is named as none, or twice.
    """
    with HeaderWorkers(limits) if limits else nullcontext() as workers:
        return _find_cases(query, _Search(query, workers))


def _find_cases(query: CohortQuery, search: _Search) -> Cohort:
    _check_names(query.class_map)
    if query.labels is not None:
        search.names.add(read_table(query.labels), query.label_column, query.class_map)
    cases: dict[str, Case] = {}
    identities: set[tuple[str, ...]] = set()
    for source in query.sources:
        for unique, case in _cases_of(source, search):
            identity = tuple(source_identity(part) for part in case.scan.contrasts)
            if identity in identities:
                search.left_out["the same file or series again"] += 1
            elif unique in cases:
                search.left_out["a second volume of a case"] += 1
            else:
                identities.add(identity)
                cases[unique] = case
    _check_renamed(query.class_map, search)
    found = name_by_class(list(cases.values())) if query.subjects_by_class else list(cases.values())
    check_look_alikes(Labelled(case.label, case.place) for case in found if case.label)
    found.sort(key=lambda case: case.order)
    _check(found, search.left_out, query.min_classes)
    taken = _draw(found, {clean_text(name): count for name, count in query.limit.items()}, query.seed)
    left_out = dict(sorted((+search.left_out).items()))
    return Cohort(tuple(taken), tuple(_count(found, taken)), left_out, tuple(search.notes))


def _check_names(class_map: Mapping[str, str]) -> None:
    renamed: dict[str, str] = {}
    for label, name in class_map.items():
        if is_missing(name):
            raise ConfigError(
                f"--class {label}={name}: expected the name of a class, found one that says none."
            )
        if (other := renamed.setdefault(clean_text(label), name)) != name:
            raise ConfigError(f"--class {label}={name}: expected one name for a label, found {other} too.")


def _check_renamed(class_map: Mapping[str, str], search: _Search) -> None:
    """Raises:
    DatasetError: no source states a label that was given another name: a slip of the pen, after which its volumes
        would be a class of their own.
    """
    stated = search.stated | {each.label for each in search.names.labels.values()}
    for label, name in class_map.items():
        if clean_text(label) not in stated:
            known = sorted(filter(None, stated))
            raise DatasetError(
                f"--class {label}={name}: expected a label of the data ({', '.join(known[:MAX_CLASSES])}"
                f"{', …' if len(known) > MAX_CLASSES else ''}), found none that reads {label!r}; write it as it stands "
                "there, or leave the option out."
            )


def _cases_of(source: Path, search: _Search) -> Iterator[tuple[str, Case]]:
    """Cases of one source, each with a name that is the same for the same case in another release."""
    if not is_there(source):
        raise DatasetError(f"{source}: expected a folder or a manifest, found nothing there; check the path.")
    if is_file(source):
        if not source.name.lower().endswith(TABLE_ENDINGS):
            raise DatasetError(f"{source}: a single file says nothing of classes; expected {_LAYOUTS}.")
        return _manifest_cases(source, search)
    if is_file(source / "participants.tsv"):
        return _bids_cases(source, search)
    if is_file(source / "dataset_description.json"):
        raise DatasetError(f"{source}: expected participants.tsv in a BIDS folder, found none.")
    return _folder_cases(source, search)


def _manifest_cases(path: Path, search: _Search) -> Iterator[tuple[str, Case]]:
    table = read_table(path)
    if {"voxels", "settings"} <= set(table.columns):
        raise DatasetError(f"{path.name}: these volumes are preprocessed already; train on their folder.")
    label_column = (search.query.label_column or "label").lower()
    required: tuple[str, ...] = ("subject", label_column)
    if (
        search.unlabelled
        and not search.query.label_column
        and not any(search.label(row[label_column]) for row in table.rows)
    ):
        required = ("subject",)
    table.require(*required)
    columns = contrast_columns(table, search.query.contrasts)
    if len(columns) < len(search.query.contrasts):
        table.require(*required, *search.query.contrasts)
    errors: list[str] = []
    lines: dict[tuple[str, ...], int] = {}
    for row in table.rows:
        try:
            _require_value(table, row, "subject", "" if is_missing(row["subject"]) else row["subject"])
            if label_column in required:
                _require_value(table, row, label_column, search.label(row[label_column]))
            case = _manifest_case(table, row, columns, label_column, search)
        except DatasetError as exc:
            errors.append(str(exc))
            continue
        identity = tuple(source_identity(part) for part in case.scan.contrasts)
        if lines.setdefault(identity, row.line) != row.line:
            place = f"{path.name} line {row.line}"
            errors.append(f"{place}: names the same volume as line {lines[identity]}; keep one of them.")
        yield f"{path} {row.line}", case
    if errors:
        more = f" … and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise DatasetError(" ".join(errors[:5]) + more)


def _require_value(table: Table, row: TableRow, column: str, understood: str) -> None:
    if not understood:
        found = f"{row[column]!r}, which says that there is none" if row[column] else "an empty cell"
        raise DatasetError(
            f"{table.path.name} line {row.line}: expected a value in column {column}, found {found}."
        )


def _manifest_case(
    table: Table, row: TableRow, columns: Mapping[str, str], label_column: str, search: _Search
) -> Case:
    found = row[label_column]
    chosen = dict(columns)
    extra = {}
    for contrast in search.query.contrasts:
        other = search.stand_in(contrast, found)
        column = contrast_columns(table, (other,)).get(other, "") if other else ""
        if not row[chosen[contrast]] and row[column]:
            chosen[contrast] = column
            extra["stand_in"] = f"{contrast}={other}"
    voxels = tuple(
        table_source(table.path, row, chosen[c], search.query.series, search.workers)
        for c in search.query.contrasts
    )
    if row["synthetic"]:
        extra["synthetic"] = row["synthetic"]
    place = (table.path.parent / row[chosen[search.query.contrasts[0]]]).as_posix()
    key = place if len(voxels) == 1 else f"{table.path.as_posix()}#{row['subject']}"
    names = "+".join(part.name for part in voxels if isinstance(part, DicomSeries))
    subject = BRATS_RELEASE.sub("", clean_text(row["subject"]))
    return Case(
        Scan(key, voxels, names),
        subject,
        search.label(found),
        row["source"] or table.path.stem,
        place=f"{table.path.name} line {row.line}",
        extra=extra,
        session=clean_text(row["session"] or row["session_id"]),
        named_by=MANIFEST,
    )


def _bids_cases(root: Path, search: _Search) -> Iterator[tuple[str, Case]]:
    table = read_table(root / "participants.tsv")
    label_column = _label_column(table, search.query.label_column)
    people = _participants(table, label_column, search)
    content = search.walk(root)
    anatomical = [path for path in content.volumes if _is_anatomical(path)]
    search.left_out["not in sub-*/anat of the BIDS folder"] += len(content.volumes) - len(anatomical)
    for (folder, name), files in cases_by_name(anatomical, search.wanted, search.left_out).items():
        row = people.get(clean_text(folder.split("/")[0]))
        found = row[label_column] if row else ""
        if row is None or not search.label(found):
            search.left_out[f"a case without {label_column} in participants.tsv"] += 1
            continue
        bids_subject(f"{folder}/{name}")
        who = Who(
            clean_text(row["participant_id"]),
            row["site"] or root.name,
            f"{root} {folder}/{name}",
            contrast_optional=False,
            session=bids_session(f"{folder}/{name}"),
            named_by=PARTICIPANTS,
        )
        stated = Labelled(found, f"participants.tsv line {row.line}")
        yield from _choose(root, files, who, stated, search)


def _participants(table: Table, label_column: str, search: _Search) -> dict[str, TableRow]:
    """participant_id → its line; of several lines that say the same, the first.

    Raises:
        DatasetError: two lines of one participant say different things of what is read here.
    """
    table.require("participant_id")
    people: dict[str, TableRow] = {}
    for row in table.rows:
        name = clean_text(row["participant_id"])
        other = people.setdefault(name, row)
        for column, one, two in (
            (label_column, search.label(other[label_column]), search.label(row[label_column])),
            ("site", other["site"], row["site"]),
        ):
            if one != two:
                raise DatasetError(
                    f"{table.path.name} lines {other.line} and {row.line}: expected one {column} for {name}, found "
                    f"{one or 'none'} and {two or 'none'}; correct or remove one of the lines."
                )
    return people


def _is_anatomical(path: str) -> bool:
    parts = path.split("/")
    return len(parts) in (3, 4) and parts[0].startswith("sub-") and parts[-2] == "anat"


def _folder_cases(root: Path, search: _Search) -> Iterator[tuple[str, Case]]:
    content = search.walk(root)
    for name in sorted(content.tables):
        if PurePosixPath(name).name.lower().startswith("name_mapping"):
            table = read_table(root / name)
            if set(table.columns) & set(_LABEL_COLUMNS):  # the one of the validation data has none
                search.names.add(table, None, search.query.class_map)
    places = list(_places(root, content, search))
    if not places:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in sorted(search.left_out.items()))
        raise DatasetError(
            f"{root}: expected {_LAYOUTS}, found no volume ({reasons or 'the folder is empty'})."
        )
    start = find_class_level(places, search.names.labels)
    named = [
        (place, identify(root, place, start, search.names.cases), _label(root, place, start, search))
        for place in places
    ]
    labels: dict[str, set[str]] = {}
    for _, who, found in named:
        if who.named_by_class:
            labels.setdefault(who.subject, set()).add(found.label)
    classes = {found.label for _, who, found in named if who.named_by_class}
    if len(classes) > MAX_CLASSES:
        raise DatasetError(
            f"{root}: expected one folder per class, found {len(classes)} folders, which look like subjects; give "
            "the folder above, or a manifest (CSV) with the columns subject, label and path."
        )
    stated = any(search.label(found.label) for *_, found in named)
    if not stated and not search.unlabelled:
        raise DatasetError(
            f"{root}: expected {_LAYOUTS}; found {len(named)} volumes whose class nothing states (BraTS 2021 and "
            "later publish no grades). Give a table with the columns subject and label with --labels."
        )
    numbers: set[str] = set()
    for place, who, found in named:
        label = search.label(found.label)
        if not label and stated:
            search.left_out["a case whose class nothing states"] += 1
            continue
        if len(labels.get(who.subject, ())) > 1 and is_running_number(who.subject):
            numbers.add(who.subject)
            who = replace(who, subject=f"{clean_text(found.label)}-{who.subject}")
        if isinstance(place.content, DicomSeries):
            series = place.content
            if len(search.query.contrasts) == 1:
                scan = Scan(series.location.as_posix(), (series,), series.name)
                yield who.unique, _case(scan, who, found, search)
            else:
                search.left_out["a DICOM series where several contrasts are wanted (give a manifest)"] += 1
        else:
            yield from _choose(root, place.content, who, found, search)
    if numbers:
        search.notes.append(
            f"{root.name}: {len(numbers)} numbers stand under several classes ({', '.join(sorted(numbers)[:3])}"
            f"{', …' if len(numbers) > 3 else ''}) and are taken for different persons, named after both; if they are "
            "one person each, give a manifest"
        )


def _places(root: Path, content: FolderContent, search: _Search) -> Iterator[Place]:
    for (folder, name), files in cases_by_name(content.volumes, search.wanted, search.left_out).items():
        yield Place(tuple(folder.split("/")) if folder else (), name, files)
    found = find_series(
        [root / path for path in (*content.dicom, *content.archives)],
        matching=search.query.series,
        workers=search.workers,
    )
    for left in found.left_out:
        search.left_out[left.reason.rstrip(".")] += left.files
    least: dict[str, int] = {}
    for series in found.series:
        least[series.uid] = min(series.lost, least.get(series.uid, series.lost))
    for series in found.series:
        if series.lost > least[series.uid]:
            search.left_out["a part of a DICOM series that lies elsewhere whole"] += 1
            continue
        place = series.root if series.in_archive else series.location  # copies in one archive are one case
        *folders, name = place.relative_to(root).parts or ("",)
        if series.in_archive or len(series.files) == 1:
            yield Place(tuple(folders), Path(name).stem, series)
        else:
            yield Place((*folders, name) if name else (), series.name, series)


def _label(root: Path, place: Place, level: ClassLevel, search: _Search) -> Labelled:
    """The class of a case as found: from a table, a grade among the folders around it, IXI's name, or its class folder.

    Its place is the line of the table, or "" where names of files and folders tell.
    """
    names = [place.name, *reversed(place.folders)]
    for name in names:
        ixi = IXI.match(name)
        for alias in (name, BRATS_RELEASE.sub("", name), ixi["subject"] if ixi else name):
            if name_key(alias) in search.names.labels:
                return search.names.labels[name_key(alias)]
    for name in (*names, real_path(root).name):
        if name.upper() in GRADES:
            return Labelled(name.upper(), "")
    folder = level.folder(place)
    healthy = not folder and any(IXI.match(name) for name in names)
    return Labelled(HEALTHY if healthy else folder, "")


def _choose(
    root: Path, files: Mapping[str, list[str]], who: Who, found: Labelled, search: _Search
) -> Iterator[tuple[str, Case]]:
    """Take the wanted contrasts of a case, if it has them all; a single volume need not name its contrast."""
    chosen: list[str] = []
    stand_ins: list[str] = []
    for contrast, canonical in zip(search.query.contrasts, search.wanted, strict=True):
        other = search.stand_in(contrast, found.label)
        if canonical in files:
            chosen.append(files[canonical][0])
        elif other and other in files:
            chosen.append(files[other][0])
            stand_ins.append(f"{contrast}={other}")
        elif (
            len(search.query.contrasts) == 1
            and set(files) == {""}
            and (who.contrast_optional or search.query.pattern)
        ):
            chosen.append(files[""][0])
        else:
            search.left_out[f"a case without {contrast}"] += 1
            return
    search.left_out[OTHER_CONTRAST] += sum(map(len, files.values())) - len(chosen)
    paths = [root / path for path in chosen]
    key = paths[0] if len(paths) == 1 else paths[0].parent
    extra = {"stand_in": ";".join(stand_ins)} if stand_ins else {}
    yield who.unique, _case(Scan(key.as_posix(), tuple(paths)), who, found, search, extra)


def _case(
    scan: Scan, who: Who, found: Labelled, search: _Search, extra: Mapping[str, str] | None = None
) -> Case:
    return Case(
        scan,
        who.subject,
        search.label(found.label),
        who.source,
        place=found.place or scan.path,
        extra=extra or {},
        session=who.session,
        named_by=who.named_by,
    )


def _label_column(table: Table, wanted: str | None) -> str:
    if wanted:
        table.require(wanted.lower())
        return wanted.lower()
    for column in _LABEL_COLUMNS:
        if column in table.columns:
            return column
    raise DatasetError(
        f"{table.path.name}: expected a column with labels ({', '.join(_LABEL_COLUMNS)}), found "
        f"{', '.join(table.columns)}; name it with --label-column."
    )


def _check(cases: Sequence[Case], left_out: Mapping[str, int], min_classes: int) -> None:
    check_persons(cases)
    classes = sorted({case.label for case in cases})
    if "" in classes and len(classes) > 1:
        nameless = [case for case in cases if not case.label]
        raise DatasetError(
            f"{nameless[0].source}: expected a class for every source or for none, found {len(nameless)} volumes whose "
            "class nothing states; give them labels with --labels, or preprocess them apart."
        )
    if len(classes) < max(min_classes, 1):
        reasons = "; ".join(f"{count} × {reason}" for reason, count in sorted(left_out.items()) if count)
        raise DatasetError(
            f"expected at least {max(min_classes, 1)} classes, found {', '.join(classes) or 'none'} "
            f"({len(cases)} volumes{'; left out: ' + reasons if reasons else ''}); give all sources in one call."
        )


def _draw(cases: Sequence[Case], limit: Mapping[str, int], seed: int) -> list[Case]:
    """At most so many cases of a class. Each case has a number that only it and the seed decide; the lowest stay."""
    unknown = sorted(set(limit) - {case.label for case in cases})
    if unknown:
        raise DatasetError(
            f"limit: expected classes among {', '.join(sorted({case.label for case in cases}))}, "
            f"found {', '.join(unknown)}."
        )
    if emptied := sorted(label for label, count in limit.items() if count < 1):
        raise DatasetError(
            f"limit: expected 1 or more volumes of a class, found 0 for {', '.join(emptied)}; to do without a class, "
            "leave its folder or its rows out."
        )
    kept = set()
    for label in {case.label for case in cases}:
        same = [index for index, case in enumerate(cases) if case.label == label]
        if label in limit:
            same = sorted(same, key=lambda index: (_drawn_order(cases[index], seed), index))[: limit[label]]
        kept.update(same)
    return [case for index, case in enumerate(cases) if index in kept]


def _drawn_order(case: Case, seed: int) -> bytes:
    name = f"{seed} {case.subject} {PurePosixPath(case.scan.path).name} {case.scan.series}"
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def _count(cases: Sequence[Case], taken: Sequence[Case]) -> Iterator[Found]:
    def groups(some: Sequence[Case]) -> dict[tuple[str, str], list[Case]]:
        found: dict[tuple[str, str], list[Case]] = {}
        for case in some:
            found.setdefault((case.label, case.source), []).append(case)
        return found

    kept = groups(taken)
    for (label, source), group in sorted(groups(cases).items()):
        subjects = len({case.subject for case in group})
        yield Found(label, source, len(group), subjects, len(kept.get((label, source), ())))
