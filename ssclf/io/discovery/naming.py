"""What file names say: the case, and which contrast of it. BraTS, IXI and BIDS agree on the last word.

BraTS 2018 to 2021: `<case>_t1ce.nii.gz`; BraTS 2023: `<case>-t1c.nii.gz`; IXI: `<subject>-T1.nii.gz`;
BIDS: `sub-01_ce-gadolinium_T1w.nii.gz`; also `<case folder>/t1ce.nii.gz`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ssclf.io.volumes.read import VOLUME_ENDINGS

#: Marks a file that holds labels, not intensities.
MASK = "mask"

_WORDS = {
    **dict.fromkeys(("t1", "t1w", "t1n", "t1pre"), "t1"),
    **dict.fromkeys(("t1ce", "t1c", "t1gd", "t1post"), "t1ce"),
    **dict.fromkeys(("t2", "t2w"), "t2"),
    **dict.fromkeys(("flair", "t2f", "t2flair"), "flair"),
    **{word: word for word in ("pd", "pdw", "t2star", "swi", "dwi", "adc", "dti", "mra", "asl", "bold")},
    **dict.fromkeys(("seg", "segm", "dseg", "segmentation", "mask", "brainmask", "label", "labels"), MASK),
}
_LAST_WORD = re.compile(r"^(?:(?P<case>.*)[_-])?(?P<word>[A-Za-z0-9]+)$", re.DOTALL)
_BIDS_CONTRAST_AGENT = re.compile(r"_ce-[A-Za-z0-9]+")
_LONGEST_FIRST = sorted(VOLUME_ENDINGS, key=len, reverse=True)
_LAST_ENDINGS = {"." + ending.rsplit(".", 1)[1] for ending in VOLUME_ENDINGS}


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


def volume_ending(name: str) -> str:
    """The ending that makes a file a volume, as written; empty where there is none."""
    lower = name.lower()
    dot = lower.rfind(".")
    if dot < 0 or lower[dot:] not in _LAST_ENDINGS:  # most names end here: folders hold 100,000 files
        return ""
    return next((name[-len(ending) :] for ending in _LONGEST_FIRST if lower.endswith(ending)), "")


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
    contrast = next((w for w in wanted if w.lower() == word), _WORDS.get(word, ""))
    if match is None or not contrast:
        return VolumeName(stem, "", stem)
    case = match["case"] or ""
    if contrast == MASK:
        case = re.sub(r"[_-]brain$", "", case)
    if agent := _BIDS_CONTRAST_AGENT.search(case):
        case = case.replace(agent[0], "")
        contrast = "t1ce" if contrast == "t1" else contrast
    return VolumeName(case, contrast, stem)


def canonical_contrast(word: str) -> str:
    """The name ssclf uses for a contrast: "T1Gd" is "t1ce"; unknown words stay, in lower case."""
    return _WORDS.get(word.strip().lower(), word.strip().lower())
