"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ssclf.errors import OutputError


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(text)


@contextlib.contextmanager
def whole_file(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A file to write, which takes its place when the block ends well, and leaves nothing otherwise.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    try:
        with partial.open("wb") if binary else partial.open("w", **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as exc:
        raise OutputError(f"{path}: cannot be written ({exc.strerror or exc}).") from exc
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_json(path: Path, values: Any) -> None:
    """Write JSON that people may read, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    write_whole(path, json.dumps(values, indent=2) + "\n")
