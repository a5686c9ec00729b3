"""A map's name: one for each key, short enough for any file system, the same in every run."""

from __future__ import annotations

import random
from pathlib import PurePosixPath

import pytest

from ssclf.io.records.map_names import MAP_ENDING, map_name

WORDS = [
    "a",
    "x.nii",
    "x-nii",
    "x.nii.gz",
    "A.NII",
    "..",
    ".",
    "b.3-0a1b2c3d",
    "ü" * 100,
    "y" * 250,
    "n\n",
    "q#r",
    "~",
]
SERIES = ["", "", "3-0a1b2c3d", "3-0a1b2c3d-2", "1.2.840.10008", "../../up", "s" * 300]


def keys(count: int) -> list[tuple[str, str]]:
    draw = random.Random(2)
    found = [
        ("x.3-0a1b2c3d.nii", ""),
        ("x.nii", "3-0a1b2c3d"),
        ("/a/x.nii", ""),
        ("a/x.nii", ""),
        ("../a/x.nii", ""),
    ]
    for _ in range(count):
        path = "/".join(draw.choices(WORDS, k=draw.choice([1, 2, 3, 30])))
        found.append((draw.choice(["", "", "/", "../"]) + path, draw.choice(SERIES)))
    # names as ssclf itself makes them are keys, too, when somebody scans them
    found += [(map_name(*key).removesuffix(MAP_ENDING), "") for key in list(found)]
    return sorted(set(found))


def test_names_are_unique_short_and_inside_the_folder() -> None:
    names = {key: map_name(*key) for key in keys(3000)}
    assert len(set(names.values())) == len(names)
    for name in names.values():
        parts = name.split("/")
        assert all(part not in ("", ".", "..") for part in parts)
        # while it is written, a name has a process number in front
        assert max(len(part.encode()) for part in parts[-1:]) <= 255 - 12
        assert all(len(part.encode()) <= 255 for part in parts) and len(name.encode()) <= 1300
        assert name.endswith(MAP_ENDING)
    assert names == {key: map_name(*key) for key in reversed(names)}


@pytest.mark.parametrize(
    ("path", "series", "name"),
    [
        ("sub/a.nii.gz", "", "sub/a-nii-gz.map.nii.gz"),
        ("study/T1", "3-0a1b2c3d", "study/T1.3-0a1b2c3d.map.nii.gz"),
        ("list.csv#A", "", "list.csv#A.map.nii.gz"),
    ],
)
def test_ordinary_names_can_be_read(path: str, series: str, name: str) -> None:
    assert map_name(path, series) == name


def test_a_long_name_keeps_its_beginning() -> None:
    name = PurePosixPath(map_name(f"{'n' * 240}.nii.gz", "")).name
    assert name.startswith("nnnn") and "~" in name
