"""`results.csv`, and the journal that keeps finished rows while a run is under way.

Rows live in three places, each complete in itself: the journal while a run goes on (a line per finished
volume, flushed to disk), `results.csv` for people, and `results.json` beside it with the same rows, what
each was made from, and everything about the run. A later run takes finished rows from the last two.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ssclf.domain.visible import visible, visible_lines
from ssclf.domain.written import MARKS, mark, mark_all
from ssclf.errors import OutputError
from ssclf.io.files import own_folder, write_whole
from ssclf.io.image_hints import image_hint
from ssclf.io.locks import Lock
from ssclf.io.records.sealed import check_marks
from ssclf.io.records.tables import Cell, write_table

#: Columns around the probabilities; see docs/results.md.
HEAD = ("path", "series", "status", "prediction", "confidence")
TAIL = ("flags", "error", "brain_ml", "seconds", "model", "model_sha256", "ssclf_version", "precision")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResultRow:
    """The outcome of one volume; `probabilities` is empty when it failed.

    `fingerprint` says what the row was made from (files, models, settings): equal means still valid.
    """

    path: str
    series: str
    status: str
    prediction: str = ""
    probabilities: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()
    error: str = ""
    brain_ml: float | None = None
    seconds: float | None = None
    model: str = ""
    model_sha256: str = ""
    ssclf_version: str = ""
    precision: str = ""
    fingerprint: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return self.path, self.series

    @property
    def confidence(self) -> float | None:
        return max(self.probabilities) if self.probabilities else None


def row_to_json(row: ResultRow, **more: Any) -> str:
    return json.dumps({**asdict(row), **more}, ensure_ascii=True, allow_nan=False)


def row_from_dict(values: dict[str, Any]) -> ResultRow:
    lists = {name: tuple(values[name]) for name in ("probabilities", "flags")}
    return ResultRow(**{**values, **lists})


def csv_columns(class_names: Sequence[str]) -> list[str]:
    return [*HEAD, *(f"p_{name}" for name in class_names), *TAIL]


def _cells(row: ResultRow, class_names: Sequence[str]) -> list[Cell]:
    return [
        visible_lines(row.path),
        visible_lines(row.series),
        row.status,
        visible_lines(row.prediction),
        row.confidence,
        *(row.probabilities or [None] * len(class_names)),
        ";".join(row.flags),
        visible(" ".join(row.error.split())),
        row.brain_ml,
        row.seconds,
        row.model,
        row.model_sha256,
        row.ssclf_version,
        row.precision,
    ]


def write_csv(path: Path, rows: Iterable[ResultRow], class_names: Sequence[str]) -> None:
    """Write the table whole: beside its place, then renamed. UTF-8, RFC 4180.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    columns = csv_columns(class_names)
    six = dict.fromkeys(("confidence", *(f"p_{name}" for name in class_names)), ".6f")
    formats = {**six, "brain_ml": ".1f", "seconds": ".2f"}
    write_table(path, columns, (_cells(row, class_names) for row in rows), formats=formats)


def write_details(path: Path, run: Mapping[str, Any], rows: Iterable[ResultRow]) -> None:
    """Write `results.json`: everything about a run, its rows, one a line, and the marks of both.

    Raises:
        OutputError: it cannot be written.
    """
    rows = list(rows)
    lines = ",\n".join(map(row_to_json, rows))
    marks = json.dumps({"run": mark_all(run.items()), "rows": _mark_rows(map(asdict, rows))})
    about = json.dumps(run, allow_nan=False)
    write_whole(path, f'{{"run": {about},\n"rows": [\n{lines}\n],\n"{MARKS}": {marks}}}\n')


def _mark_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return mark_all((f"{row['path']} {row['series']}".rstrip(), row) for row in rows)


def read_rows(path: Path) -> list[ResultRow]:
    """Rows of a `results.json` for a run that goes on; none where there is no such file.

    A row that was changed since it was written is left out: its volume is done again.

    Raises:
        OutputError: the file is something else.
    """
    try:
        values = json.loads(path.read_text("utf-8-sig"))
        rows, marks = values["rows"], _mark_rows(values["rows"])
        written = values[MARKS]["rows"] if MARKS in values else marks
        kept = [
            row for row, (name, found) in zip(rows, marks.items(), strict=True) if written.get(name) == found
        ]
        if len(kept) < len(rows):
            log.warning("%s: %d rows were changed, their volumes are done again", path, len(rows) - len(kept))
        return [row_from_dict(row) for row in kept]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise OutputError(
            f"{path}: expected the results of an earlier `ssclf predict`, found something else; "
            "move it away or choose another --out."
        ) from exc


def read_details(path: Path) -> tuple[dict[str, Any], list[ResultRow]]:
    """What a `results.json` says of a run, and its rows.

    Raises:
        OSError, ValueError, KeyError, TypeError, AttributeError: it is no such file.
        OutputError: it was changed since it was written, or does not hold as many rows as it says.
    """
    values = json.loads(path.read_text("utf-8-sig"))
    run, rows = values["run"], values["rows"]
    otherwise = "run that shard again."
    if MARKS in values:
        check_marks(path, values[MARKS]["run"], mark_all(run.items()), otherwise, OutputError)
        check_marks(path, values[MARKS]["rows"], _mark_rows(rows), otherwise, OutputError)
    if len(rows) != run["volumes"]:
        raise OutputError(
            f"{path}: expected {run['volumes']} rows, as it says, found {len(rows)}; {otherwise}"
        )
    return run, [row_from_dict(row) for row in rows]


class Journal:
    """Finished rows of a run under way, each on disk before the next is taken.

    The folder beside `--out` is private to the user; it also holds the run's lock and scratch files.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f".{out.name}.ssclf-work")
        self._file: TextIO | None = None
        self._lock: Lock | None = None
        self._finished = False

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(finished=self._finished)

    def finish(self) -> None:
        """Say that the rows have reached their table: at the end of the block the journal goes."""
        self._finished = True

    def open(self) -> list[ResultRow]:
        """Take the lock, clear leftovers and return the rows of a run that was interrupted.

        Raises:
            OutputError: another run writes here, or the folder cannot be written.
        """
        try:
            own_folder(self.folder)
            lock = Lock(self.folder / "lock")
            if not lock.take():
                lock.close()
                raise OutputError(
                    f"{self.folder.parent}: another ssclf run is writing the same --out; "
                    "wait for it, or choose another --out."
                )
            self._lock = lock
            # from here on everything in the folder is ours: what a killed run has left there is nobody's
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(mode=0o700)
            rows = list(self._read())
            self._file = (self.folder / "journal.jsonl").open("a", encoding="utf-8")
            # a line that a kill has cut would swallow the first row of this run
            if self._file.tell() and not self._ends_with_newline():
                self._file.write("\n")
        except OSError as exc:
            raise OutputError(
                f"{self.folder.parent}: cannot be written ({exc.strerror or exc}); "
                f"give --out a place where this user may write.{image_hint('user')}"
            ) from exc
        return rows

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def _ends_with_newline(self) -> bool:
        with (self.folder / "journal.jsonl").open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _read(self) -> Iterator[ResultRow]:
        try:
            lines = (self.folder / "journal.jsonl").read_text("utf-8").split("\n")
        except FileNotFoundError:
            return
        for line in lines:
            # A kill may have cut the line that was being written, or somebody changed it: that volume is done again.
            try:
                values = json.loads(line)
                if values.pop(MARKS, None) in (None, mark(values)):  # earlier versions marked none
                    yield row_from_dict(values)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue

    def append(self, row: ResultRow) -> None:
        """Raises:
        OutputError: the disk is full or gone; rows written before are kept.
        """
        assert self._file is not None
        try:
            self._file.write(row_to_json(row, **{MARKS: mark(asdict(row))}) + "\n")
            # as far as the disk: a machine that loses power has lost the volume in hand, and none before
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise OutputError(
                f"{self.folder}: cannot be written ({exc.strerror or exc}); rows finished before are kept, "
                "run the same command again to continue."
            ) from exc

    def empty(self) -> None:
        """Forget the rows that are in their table by now, for runs without an end.

        Raises:
            OutputError: the disk is gone.
        """
        assert self._file is not None
        try:
            self._file.truncate(0)
        except OSError as exc:
            raise OutputError(f"{self.folder}: cannot be written ({exc.strerror or exc}).") from exc

    def close(self, *, finished: bool) -> None:
        """Give the lock back; a finished run leaves nothing behind, an interrupted one its rows."""
        if self._lock is None:
            return
        if self._file:
            with contextlib.suppress(OSError):  # a full disk again: it has been told
                self._file.close()
        # the lock goes last, or another run could begin in a folder that is about to vanish
        shutil.rmtree(self.folder if finished else self.scratch, ignore_errors=True)
        self._lock.close()
        self._lock = None
