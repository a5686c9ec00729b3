"""The folder that `ssclf bids` writes: a BIDS derivative with a table per participant and one of all.

Source: Brain Imaging Data Structure, specification 1.10, "BIDS Derivatives".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from ssclf import __version__
from ssclf.domain.flags import FLAGS
from ssclf.errors import DatasetError, OutputError
from ssclf.io.discovery.bids import DESCRIPTION
from ssclf.io.files import write_json, write_whole
from ssclf.io.paths import is_there, real_path
from ssclf.io.records.results import ResultRow, csv_columns
from ssclf.io.records.tables import write_tsv

NOTICE = "Research use only, not a medical device."
_README = f"""# ssclf

Classification of brain MR volumes by ssclf. {NOTICE}

`sub-X/sub-X_classification.tsv` has a row per volume of a participant, `group_classification.tsv` those of all; the
`.json` beside each says what the columns hold. BIDS knows no such suffix, so `.bidsignore` names them.
"""
_DESCRIPTIONS = {
    "participant_id": "the participant",
    "filename": "the volume, or the folder of one made of several contrasts, below the source data set",
    "status": "ok, or failed, and then error says why",
    "prediction": f"the class with the highest probability. {NOTICE}",
    "confidence": "that probability",
    "flags": "reasons to look at the volume, separated by ;",
    "error": "what was expected, what was found, what to do",
    "brain_ml": "volume of the brain in millilitres",
    "seconds": "time spent on the volume",
    "model": "name of the model",
    "model_sha256": "its checksum",
    "ssclf_version": "version of ssclf",
}


def begin_derivative(out: Path, bids: Path) -> None:
    """Make the folder, with what says what it is.

    Raises:
        OutputError: the place is the source, or a data set that ssclf did not write.
    """
    if real_path(out) == real_path(bids):
        raise OutputError(f"{out}: expected a folder for what is derived, found the BIDS data set itself.")
    if is_there(out / DESCRIPTION) and not _is_ours(out / DESCRIPTION):
        raise OutputError(f"{out}: holds a data set that ssclf did not write; name another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        source = json.loads((bids / DESCRIPTION).read_text("utf-8-sig"))
    except OSError as exc:
        raise OutputError(f"{exc.filename}: cannot be written or read ({exc.strerror or exc}).") from exc
    except ValueError as exc:
        raise DatasetError(f"{bids / DESCRIPTION}: expected JSON, found something else ({exc}).") from exc
    write_whole(out / "README.md", _README)
    write_whole(out / ".bidsignore", "*_classification.tsv\n*_classification.json\n")
    write_json(out / DESCRIPTION, _description(source if isinstance(source, dict) else {}, out, bids))


def _description(source: Mapping[str, Any], out: Path, bids: Path) -> dict[str, Any]:
    where = PurePosixPath(os.path.relpath(real_path(bids), real_path(out))).as_posix()
    known = {"DOI": source.get("DatasetDOI")} if isinstance(source.get("DatasetDOI"), str) else {}
    return {
        "Name": f"ssclf: {source.get('Name') or bids.name}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "ssclf", "Version": __version__, "Description": NOTICE}],
        "SourceDatasets": [{"URL": where, **known}],
    }


def _is_ours(description: Path) -> bool:
    try:
        made = json.loads(description.read_text("utf-8-sig"))["GeneratedBy"]
        return any(one["Name"] == "ssclf" for one in made)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_participant(
    out: Path, participant: str, rows: Iterable[ResultRow], class_names: Sequence[str]
) -> None:
    """Raises:
    OutputError: it cannot be written.
    """
    place = _table_of(out, participant)
    place.parent.mkdir(parents=True, exist_ok=True)
    _write(place, _columns(class_names), [_cells(participant, row, class_names) for row in rows])


def write_group(out: Path, participants: Iterable[str]) -> tuple[Path, int, int]:
    """Join the tables of participants.

    Returns:
        the table, its rows, and how many of these failed.

    Raises:
        DatasetError: a participant has none, or one of other columns.
    """
    columns: list[str] = []
    rows: list[list[str]] = []
    for participant in participants:
        path = _table_of(out, participant)
        try:
            header, *found = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
        except (OSError, ValueError) as exc:
            raise DatasetError(
                f"{path}: expected the table of a participant, found none; run the level `participant` first."
            ) from exc
        columns = columns or header
        if header != columns or any(len(row) != len(columns) for row in found):
            raise DatasetError(
                f"{path}: expected the columns {', '.join(columns)}, found others; classify all participants with "
                "models of the same classes."
            )
        rows += found
    table = out / "group_classification.tsv"
    _write(table, columns, rows)
    return table, len(rows), sum(row[columns.index("status")] == "failed" for row in rows)


def _table_of(out: Path, participant: str) -> Path:
    return out / participant / f"{participant}_classification.tsv"


def _columns(class_names: Sequence[str]) -> list[str]:
    own = [name for name in csv_columns(class_names) if name not in ("path", "series")]
    return ["participant_id", "filename", *own]


def _cells(participant: str, row: ResultRow, class_names: Sequence[str]) -> list[str]:
    named = {"participant_id": participant, "filename": row.path, "flags": ";".join(row.flags)}
    scores = zip((f"p_{name}" for name in class_names), row.probabilities, strict=False)
    values = {**asdict(row), **named, "confidence": row.confidence, **dict(scores)}
    found = [values.get(name) for name in _columns(class_names)]
    return [f"{v:.6f}" if isinstance(v, float) else str(v or "") for v in found]


def _write(table: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    write_tsv(table, columns, rows)
    about: dict[str, Any] = {
        name: {
            "Description": _DESCRIPTIONS.get(name) or f"probability of the class {name.removeprefix('p_')}"
        }
        for name in columns
    }
    about["flags"]["Levels"] = FLAGS
    write_json(table.with_suffix(".json"), about)
