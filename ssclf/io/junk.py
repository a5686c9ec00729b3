"""What lies beside volumes and is none: told by name or by first bytes, in folders and in archives alike."""

from __future__ import annotations

from pathlib import PurePosixPath

HIDDEN = "hidden"
LEFT_BY_A_SYSTEM = "left by an operating system (thumbnails, settings, deleted files)"
#: So begins the few lines that Git keeps in the place of a large file until it is fetched.
_LFS = b"version https://git-lfs.github.com/spec/"
LFS_POINTER = "a Git LFS pointer lies in the place of the file; fetch it with `git lfs pull`."

_SYSTEM_NAMES = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "@eadir",
        "$recycle.bin",
        "system volume information",
    }
)


def junk_name(name: str) -> str:
    """Why a file or folder of this name is never looked into, "" where it is.

    Hidden are names with a dot in front (AppleDouble files `._x`, `.DS_Store`, work folders of ssclf) and
    `__MACOSX`, in which macOS packs such files into archives.
    """
    if name == "__MACOSX" or (name.startswith(".") and name not in (".", "..")):
        return HIDDEN
    return LEFT_BY_A_SYSTEM if name.lower() in _SYSTEM_NAMES else ""


def junk_path(path: str) -> str:
    """As `junk_name`, for a POSIX path of which each part counts."""
    return next((reason for part in PurePosixPath(path).parts if (reason := junk_name(part))), "")


def is_lfs_pointer(start: bytes) -> bool:
    """Args:
    start: the first 40 bytes of a file or more.
    """
    return start.startswith(_LFS)
