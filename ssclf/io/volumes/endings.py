"""Endings by which a file is taken for a volume: data, so that what looks at names need not import readers."""

from __future__ import annotations

#: Endings by which a file is taken for a volume, in lower case.
VOLUME_ENDINGS: tuple[str, ...] = (
    ".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz", ".mgz", ".mgh", ".mgh.gz", ".nrrd", ".nhdr",
    ".mha", ".mhd",
)  # fmt: skip
#: Files that end so claim to be DICOM.
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_LONGEST_FIRST = sorted(VOLUME_ENDINGS, key=len, reverse=True)
_LAST_ENDINGS = {"." + ending.rsplit(".", 1)[1] for ending in VOLUME_ENDINGS}


def volume_ending(name: str) -> str:
    """The ending that makes a file a volume, as written; empty where there is none."""
    lower = name.lower()
    dot = lower.rfind(".")
    if dot < 0 or lower[dot:] not in _LAST_ENDINGS:  # most names end here: folders hold 100,000 files
        return ""
    return next((name[-len(ending) :] for ending in _LONGEST_FIRST if lower.endswith(ending)), "")
