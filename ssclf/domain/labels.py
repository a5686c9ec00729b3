"""What a class or a person is called: one reading of it for every table, folder and option.

People write one class in several ways (`HGG`, `hgg`, `HGG` with a zero-width space, `1` and `1.0`), and a spreadsheet
writes some of them for them. What differs in nothing that can be seen is one name here; what looks alike is for the
user to join, since only the user knows; and what says that nothing is known is no class.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ssclf.errors import DatasetError

#: What tables write where nothing is known, in small letters and without blanks.
#: Source: `na_values` of pandas.read_csv, BIDS ("n/a"), and what people type.
_NOTHING = frozenset(
    ("", "na", "n/a", "n.a.", "n.a", "n\\a", "#n/a", "#n/an/a", "#na", "<na>", "nan", "#nan", "none", "null", "nil",
     "1.#ind", "1.#qnan", "missing", "empty", "notavailable", "notapplicable", ".", "..", "...")
)  # fmt: skip
_DASHES = r"\-\u2010-\u2015\u2212"
#: Marks that alone name nothing: "?", "-", "--", "???".
_MARKS_ONLY = re.compile(f"[?\\s_{_DASHES}]*")
_SEPARATORS = re.compile(f"[\\s_{_DASHES}]+")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d*)?")
#: Greek and Cyrillic capitals that are drawn as Latin ones, by code point.
#: Source: Unicode Technical Standard 39, confusables.txt.
_GREEK = (0x391, 0x392, 0x395, 0x396, 0x397, 0x399, 0x39A, 0x39C, 0x39D, 0x39F, 0x3A1, 0x3A4, 0x3A5, 0x3A7)
_CYRILLIC = (
    0x410,
    0x412,
    0x415,
    0x41A,
    0x41C,
    0x41D,
    0x41E,
    0x420,
    0x421,
    0x422,
    0x423,
    0x425,
    0x405,
    0x406,
    0x408,
)
_DRAWN_ALIKE = {
    **dict(zip(_GREEK, "ABEZHIKMNOPTYX", strict=True)),
    **dict(zip(_CYRILLIC, "ABEKMHOPCTYXSIJ", strict=True)),
}
#: Letters and symbols that are drawn as nothing, though Unicode counts them as neither blank nor format.
_BLANK = frozenset((0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)))


def clean_text(text: str) -> str:
    """A name without what cannot be seen.

    One Unicode form (NFC), no control and format characters (zero-width spaces, byte order marks, soft hyphens), each
    run of blanks one blank, none at the ends.
    """
    seen = "".join(c for c in text if c.isspace() or not _is_invisible(c))
    return unicodedata.normalize("NFC", " ".join(seen.split()))


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf") or ord(character) in _BLANK


def is_missing(text: str) -> bool:
    """Whether a cell says that nothing is known: empty, NA, n/a, nan, None, null, `?`, `-` and their like."""
    spelled = "".join(unicodedata.normalize("NFKC", clean_text(text)).casefold().split()).strip("()[]\"'")
    return spelled in _NOTHING or spelled.lstrip("-") in _NOTHING or bool(_MARKS_ONLY.fullmatch(spelled))


def read_label(text: str, renamed: Mapping[str, str] | None = None) -> str:
    """The class that a cell, a folder or an option names; "" where it names none.

    Args:
        renamed: other names for labels as found, as `--class FOUND=NAME` gives them. What is found there is a class,
            whatever it says: `none=healthy` makes one of "none".
    """
    label = clean_text(text)
    for found, name in (renamed or {}).items():
        if clean_text(found) == label:
            return clean_text(name)
    return "" if is_missing(label) else label


def look(label: str) -> str:
    """Equal for labels that a reader takes for one: in case, width, script, separators, and how a number is written."""
    drawn = clean_text(unicodedata.normalize("NFKC", clean_text(label)))
    # capitals: "\u043d" is drawn as no Latin letter, its capital as an H
    drawn = clean_text(drawn.casefold().upper().translate(_DRAWN_ALIKE).casefold())
    if _NUMBER.fullmatch(drawn):
        return _one_number(drawn)
    words = [_one_number(word) if _NUMBER.fullmatch(word) else word for word in _SEPARATORS.split(drawn)]
    return " ".join(filter(None, words)) or drawn


def _one_number(digits: str) -> str:
    return f"{float(digits.replace(',', '.')) + 0.0:.12g}"


@dataclass(frozen=True)
class Labelled:
    """A label and where it stands: "m.csv line 3", or a file."""

    label: str
    place: str


def check_look_alikes(labels: Iterable[Labelled]) -> None:
    """Refuse a cohort in which one class seems to have two names.

    Raises:
        DatasetError: two labels look alike; it names both places and the option that joins them.
    """
    places: dict[str, str] = {}
    count: Counter[str] = Counter()
    for each in labels:
        count[each.label] += 1
        places.setdefault(each.label, each.place)
    groups: dict[str, list[str]] = {}
    for label in sorted(count, key=lambda name: (-count[name], name)):
        groups.setdefault(look(label), []).append(label)
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return
    told = " and ".join(f"{label!r} ({count[label]} volumes, {places[label]})" for label in alike[0])
    options = " ".join(joining_option(other, group[0]) for group in alike for other in group[1:])
    raise DatasetError(
        f"labels: expected one name for each class, found {told}, which look alike; if they are one class, join them "
        f"with `ssclf preprocess {options}`, else give them names that differ."
    )


def joining_option(found: str, name: str) -> str:
    """The option of `ssclf preprocess` that gives a label another name, as it is typed in a shell."""
    return f"--class {shlex.quote(f'{found}={name}')}"
