"""Whether a name that others wrote stays in its folder: asked here, whatever is read, fetched or written."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ssclf.io.paths import real_path


def is_inside(folder: Path, path: Path) -> bool:
    """Whether a path lies in a folder or below it, once every link on the way has been followed."""
    return real_path(path).is_relative_to(real_path(folder))


def stays_below(name: str) -> bool:
    """Whether a name, put behind a folder that need not be here, cannot leave it: relative and without `..`."""
    return not name.startswith("/") and "\0" not in name and ".." not in PurePosixPath(name).parts
