"""One class is written in many ways: what no eye tells apart is one class, what looks alike is for the user to say."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

import pytest

from ssclf.domain.labels import Labelled, check_look_alikes, clean_text, is_missing, look, read_label
from ssclf.errors import DatasetError

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202a\ufe0f\x00\x07\x7f"
BLANKS = " \t\n\r\u00a0\u2003\u3000"
NAMES = ("HGG", "low grade", "Gliom Ö2", "1", "2.5", "astrocytoma IDH-1", "健康")
SEEDS = range(40)


def unseen(name: str, chance: random.Random) -> str:
    """The name with changes that nobody sees: Unicode form, invisible characters, blanks at the ends and for blanks."""
    text = unicodedata.normalize(chance.choice(("NFC", "NFD")), name)
    text = "".join(chance.choice(BLANKS) * chance.randint(1, 3) if c == " " else c for c in text)
    for _ in range(chance.randint(0, 4)):
        at = chance.randint(0, len(text))
        text = text[:at] + chance.choice(INVISIBLE) + text[at:]
    return chance.choice(BLANKS) * chance.randint(0, 2) + text + chance.choice(BLANKS) * chance.randint(0, 2)


def alike(name: str, chance: random.Random) -> str:
    """The name with changes that are seen and mean nothing: case, width, a hyphen for a blank, a number's digits."""
    if name.replace(".", "").isdigit():
        return chance.choice((f"{float(name):.2f}", f"0{name}", f"{float(name):.1f}".replace(".", ",")))
    changes: tuple[Callable[[str], str], ...] = (str.lower, str.upper, str.swapcase, wide, hyphened)
    return chance.choice(changes)(name)


def hyphened(text: str) -> str:
    return text.replace(" ", "-")


def wide(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_nobody_sees_makes_no_class(seed: int) -> None:
    chance = random.Random(seed)
    for name in NAMES:
        written = unseen(name, chance)
        assert read_label(written) == name
        assert clean_text(clean_text(written)) == clean_text(written)
        assert look(written) == look(name)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_looks_alike_is_refused_with_the_option_that_joins_it(seed: int) -> None:
    chance = random.Random(seed)
    for name in NAMES[:-1]:
        written = clean_text(alike(name, chance))
        if written == name:
            continue
        assert look(written) == look(name)
        found = [
            Labelled(name, "a.csv line 2"),
            Labelled(name, "a.csv line 3"),
            Labelled(written, "b.csv line 9"),
        ]
        chance.shuffle(found)
        with pytest.raises(DatasetError, match=r"a\.csv line [23].*b\.csv line 9") as refused:
            check_look_alikes(found)
        told = f"{written}={name}"
        assert f"--class '{told}'" in str(refused.value) or f"--class {told} " in f"{refused.value} ".replace(
            "`", " "
        )
        check_look_alikes(Labelled(read_label(each.label, {written: name}), each.place) for each in found)


def test_letters_of_another_script_are_told() -> None:
    """A Cyrillic letter typed for a Latin one made a class of its own that nobody could tell from the first."""
    assert look("\u041dGG") == look("HGG")
    with pytest.raises(DatasetError, match="look alike"):
        check_look_alikes([Labelled("HGG", "a"), Labelled("\u041dGG", "b")])


def test_names_that_differ_stay_apart() -> None:
    names = (
        "HGG",
        "LGG",
        "1",
        "2",
        "-1",
        "12",
        "1-2",
        "1.5",
        "15",
        "IDH1",
        "IDH-1",
        "IDH2",
        "none-seen",
        "NAWM",
        "null2",
    )
    assert len({look(name) for name in names}) == len(names)
    check_look_alikes(Labelled(name, "m.csv") for name in names)
    assert not any(is_missing(name) for name in names)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_no_class_however_it_is_written(seed: int) -> None:
    chance = random.Random(seed)
    for word in (
        "",
        "NA",
        "n/a",
        "N/A",
        "nan",
        "None",
        "null",
        "#N/A",
        "<NA>",
        "?",
        "??",
        "-",
        "\u2013",
        "--",
        "(none)",
    ):
        written = unseen(chance.choice((str.lower, str.upper, str))(word), chance)
        assert is_missing(written) and read_label(written) == "", repr(written)
    assert read_label("None", {"None": "healthy"}) == "healthy", "what the user names is a class"
