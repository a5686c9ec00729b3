"""What file names say: the case, and which contrast of it. BraTS, IXI and BIDS agree on the last word.

BraTS 2018 to 2021: `<case>_t1ce.nii.gz`; BraTS 2023: `<case>-t1c.nii.gz`; IXI: `<subject>-T1.nii.gz`;
BIDS: `sub-01_ce-gadolinium_T1w.nii.gz`; also `<case folder>/t1ce.nii.gz`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ssclf.config import CONTRASTS, canonical_contrast
from ssclf.io.volumes.endings import volume_ending

#: Marks a file that holds labels, not intensities.
MASK = "mask"

_WORDS = {
    **{word: name for name, words in CONTRASTS.items() for word in (name, *words)},
    **{word: word for word in ("t2star", "swi", "dwi", "adc", "dti", "mra", "asl", "bold")},
    **dict.fromkeys(("seg", "segm", "dseg", "segmentation", "mask", "brainmask", "label", "labels"), MASK),
}
_LAST_WORD = re.compile(r"^(?:(?P<case>.*)[_-])?(?P<word>[A-Za-z0-9]+)$", re.DOTALL)
_BIDS_CONTRAST_AGENT = re.compile(r"_ce-[A-Za-z0-9]+")
OTHER_CONTRAST = "another contrast of a case"
MASK_BESIDE = "a mask beside a volume"
#: The folder that was given, seen from itself.
ITSELF = "."


@dataclass(frozen=True)
class VolumeName:
    """Attributes:
    case: what siblings of one case share; the whole stem where no contrast is named.
    contrast: such as "t1", "t1ce", "t2", "flair", "adc" or MASK; "" where none is named.
    stem: the name without its ending.
    """

    case: str
    contrast: str
    stem: str


def parse_name(name: str, wanted: tuple[str, ...] = ()) -> VolumeName:
    """Split a file name.

    Args:
        name: without folder, with or without the ending of a volume.
        wanted: further words that name a contrast.
    """
    ending = volume_ending(name)
    stem = name[: -len(ending)] if ending else name
    match = _LAST_WORD.match(stem)
    word = match["word"].lower() if match else ""
    contrast = _WORDS.get(word) or next((w for w in wanted if w.lower() == word), "")
    if match is None or not contrast:
        return VolumeName(stem, "", stem)
    case = match["case"] or ""
    if contrast == MASK:
        case = re.sub(r"[_-]brain$", "", case)
    if agent := _BIDS_CONTRAST_AGENT.search(case):
        case = case.replace(agent[0], "")
        contrast = "t1ce" if contrast == "t1" else contrast
    return VolumeName(case, contrast, stem)


def names_contrast(word: str) -> bool:
    """Whether a word is one that names a contrast or a mask."""
    return word.strip().lower() in _WORDS


def needs_manifest(contrasts: Sequence[str], found: str) -> str:
    return (
        f"the model takes {', '.join(contrasts)} of one case, found {found}; "
        "give a manifest with a column for each contrast."
    )


def cases_by_name(
    paths: Iterable[str], wanted: tuple[str, ...], other: Counter[str]
) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Volumes by the case that their names state.

    Args:
        paths: POSIX paths of volumes.
        wanted: names of contrasts beyond the usual ones.
        other: counts masks that lie beside a volume; a mask alone is taken for a volume, since its name alone is
            no reason to leave it out.

    Returns:
        (folder, case) → contrast, or "" where the name states none → paths, sorted.
    """
    cases: dict[tuple[str, str], dict[str, list[str]]] = {}
    stems: set[tuple[str, str]] = set()
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        parsed = parse_name(name, wanted)
        cases.setdefault((folder, parsed.case), {}).setdefault(parsed.contrast, []).append(path)
        if parsed.contrast != MASK:
            stems.add((folder, parsed.stem))
    for key, case in list(cases.items()):
        masks = case.pop(MASK, [])
        if masks and not case and key not in stems:
            case[""] = masks
        elif masks:
            other[MASK_BESIDE] += len(masks)
            if not case:
                del cases[key]
    return cases


def group_contrasts(
    paths: Iterable[str], contrasts: tuple[str, ...], other: Counter[str]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Choose, from volumes that are contrasts of one case, those that the model takes.

    Args:
        paths: POSIX paths of volumes; those of one folder whose names differ in the contrast belong together.
        contrasts: wanted ones, in channel order.
        other: counts what is left out.

    Yields:
        key, sources in channel order, problem. For one contrast the key is the file itself: the wanted
        contrast of each case that has it, and every volume of a case that does not. For several it is the
        folder, or folder/case where the folder holds more than one case.
    """
    wanted = tuple(canonical_contrast(contrast) for contrast in contrasts)
    cases = cases_by_name(paths, wanted, other)
    named = Counter(folder for (folder, _), case in cases.items() if set(case) - {""})
    for (folder, name), case in cases.items():
        if len(wanted) == 1:
            chosen = case.get(wanted[0]) or [path for group in case.values() for path in group]
            other[OTHER_CONTRAST] += sum(map(len, case.values())) - len(chosen)
            yield from ((path, (path,), "") for path in chosen)
            continue
        for path in case.pop("", []):
            yield path, (path,), needs_manifest(contrasts, "one file whose name states no contrast")
        if not case:
            continue
        key = folder if named[folder] == 1 or not name else f"{folder}/{name}"
        key = key.lstrip("/") or ITSELF
        sources = [case.get(contrast, []) for contrast in wanted]
        other[OTHER_CONTRAST] += sum(map(len, case.values())) - sum(map(len, sources))
        if all(len(group) == 1 for group in sources):
            yield key, tuple(group[0] for group in sources), ""
        else:
            have = ", ".join(f"{len(group)} × {contrast}" for contrast, group in sorted(case.items()))
            first = next(path for group in case.values() for path in group)
            yield key, (first,), needs_manifest(contrasts, have)
    if not other[OTHER_CONTRAST]:
        del other[OTHER_CONTRAST]
