"""Where the map of a scan lies below `--maps`: a name of its own for every key, that any file system takes.

As far as it can be, the name is the scan's own path, so that people find it. A name that would be too long, that
would leave the folder, or that another key could have as well, carries a hash of its key.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

from ssclf.io.volumes.endings import VOLUME_ENDINGS, volume_ending

MAP_ENDING = ".map.nii.gz"
#: File systems take 255 bytes a name; while it is written, a map has some more in front.
_MAX_NAME = 220
#: And 4096 a path, of which the folder of the maps needs its share.
_MAX_PATH = 1024
_ENDINGS = "|".join(
    re.escape(ending.replace(".", "-")) for ending in sorted(VOLUME_ENDINGS, key=len, reverse=True)
)
_PLAIN = re.compile(
    rf"(?P<stem>.+?)(?:\.(?P<series>\d+-[0-9a-f]{{8}}))?(?P<ending>{_ENDINGS})?{re.escape(MAP_ENDING)}",
    re.DOTALL | re.IGNORECASE,
)
#: A series by number and hash (one for each contrast) or by its UID, or the ending of a volume.
_SCAN_TOLD = re.compile(
    rf"(?:\.(?:\+?\d+-[0-9a-f]{{8}})+|\.\d+(?:\.\d+){{4,}}|(?:{_ENDINGS})){re.escape(MAP_ENDING)}\Z",
    re.IGNORECASE,
)
_HASHED = re.compile(r"~[0-9a-f]{16}$")


def map_name(path: str, series: str) -> str:
    """The name of a map below `--maps`, POSIX.

    Args:
        path, series: the key of a scan; no two keys share a name, and a key has the same in every run.
    """
    folder, _, last = path.rpartition("/")
    ending = volume_ending(last)
    stem = last[: len(last) - len(ending)]
    plain = f"{stem}{f'.{series}' if series else ''}{ending.replace('.', '-')}{MAP_ENDING}"
    whole = f"{folder}/{plain}" if folder else plain
    told = f"{folder}/{last}" if folder else last
    if told == path and _is_safe(whole) and _key_of(plain) == (last, series):
        return whole
    digest = hashlib.sha256(_bytes(f"{path}\0{series}")).hexdigest()[:16]
    parts = [part for part in PurePosixPath(folder).parts if part not in ("/", "..")]
    while parts and len(_bytes("/".join(parts))) > _MAX_PATH - _MAX_NAME:
        del parts[0]
    shown = _shortened(f"{stem}.{series}" if series else stem, _MAX_NAME - len(f"~{digest}{MAP_ENDING}"))
    return "/".join([*parts, f"{shown}~{digest}{MAP_ENDING}"])


def tells_of_a_scan(name: str) -> bool:
    """Whether a file name is that of a map, and hardly any other's: its scan's ending or series stands in it."""
    return _SCAN_TOLD.search(name) is not None


def _is_safe(name: str) -> bool:
    """Whether a name stays in the folder, has room on any file system, and reads the same when put together again."""
    parts = name.split("/")
    return (
        all(part not in ("", ".", "..") and "\0" not in part for part in parts)
        and len(_bytes(parts[-1])) <= _MAX_NAME
        and len(_bytes(name)) <= _MAX_PATH
    )


def _key_of(plain: str) -> tuple[str, str]:
    """The last part of a path, and the series, of which a name was made; none for a name with a hash."""
    match = _PLAIN.fullmatch(plain)
    if match is None or _HASHED.search(plain.removesuffix(MAP_ENDING)):
        return "", ""
    return match["stem"] + (match["ending"] or "").replace("-", "."), match["series"] or ""


def _shortened(text: str, size: int) -> str:
    """The start of a name without what would part it, in at most `size` bytes."""
    text = text.replace("/", "_").replace("\0", "_")
    while len(_bytes(text)) > size:
        text = text[:-1]
    return text


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # names that are no UTF-8 come as surrogates
