"""`ssclf merge`: the tables of an array job's shards as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssclf.errors import OutputError
from ssclf.io.paths import is_file, real_path
from ssclf.io.records.results import ResultRow, read_details, write_csv, write_details
from ssclf.reporting.results_page import write_results_page
from ssclf.workflows.outputs import Outputs


def merge(
    parts: Sequence[Path], out: Path, *, partial: bool = False, report: Path | None = None
) -> list[ResultRow]:
    """Join the results of shards.

    Args:
        parts: the CSVs of the shards; the `.json` beside each is what is read. `out` itself is left aside.
        out: the CSV of all; its `.json` goes beside it.
        partial: whether missing shards are accepted.
        report: HTML page of all rows.

    Raises:
        OutputError: a part cannot be read, comes from another model, holds a volume that another part
            holds too, or shards are missing; or nothing can be written there.
    """
    outputs = Outputs(out, report)
    outputs.check()
    parts = [part for part in parts if real_path(part) != real_path(out)]  # `merge *.csv`, run again
    if not parts:
        raise OutputError(f"{out}: expected the tables of shards to join, found only the table to write.")
    runs, tables = map(list, zip(*map(_read_part, parts), strict=True))
    for part, run in zip(parts[1:], runs[1:], strict=True):
        for what in ("class_names", "ssclf_version"):
            if run[what] != runs[0][what]:
                raise OutputError(
                    f"{part}: expected the same {what} as in {parts[0]} ({runs[0][what]}), found {run[what]}."
                )
        if [m["sha256"] for m in run["models"]] != [m["sha256"] for m in runs[0]["models"]]:
            raise OutputError(f"{part}: its rows come from another model than those of {parts[0]}.")
    if not partial:
        _check_complete(runs)
    rows: dict[tuple[str, str], ResultRow] = {}
    for part, table in zip(parts, tables, strict=True):
        for row in table:
            if row.key in rows:
                raise OutputError(f"{part}: {row.path} stands in another part too; give each part once.")
            rows[row.key] = row
    ordered = [rows[key] for key in sorted(rows)]
    merged = {
        **runs[0],
        "shard": None,
        "merged": [part.name for part in parts],
        "volumes": len(ordered),
        "failed": sum(row.status == "failed" for row in ordered),
        "seconds": sum(run["seconds"] for run in runs),
    }
    write_csv(out, ordered, runs[0]["class_names"])
    write_details(outputs.details, merged, ordered)
    if report:
        write_results_page(report, ordered, runs[0]["class_names"], merged)
    return ordered


def _read_part(part: Path) -> tuple[dict[str, Any], list[ResultRow]]:
    details = _details(part)
    try:
        if not is_file(details):  # a pipe would wait for ever
            raise FileNotFoundError(details)
        return read_details(details)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise OutputError(
            f"{part}: expected the finished table of a shard with {details.name} beside it, found none; "
            "run that shard again until it ends."
        ) from exc


def _details(part: Path) -> Path:
    if part.name in ("", ".."):
        raise OutputError(f'"{part}": expected the table of a shard, found a folder; name the file.')
    return part.with_suffix(".json")


def _check_complete(runs: Sequence[dict[str, Any]]) -> None:
    shards = [tuple(run["shard"]) for run in runs if run["shard"]]
    counts = {count for _, count in shards}
    if len(counts) > 1:
        raise OutputError(f"the parts were cut in different ways: into {sorted(counts)} shards.")
    missing = sorted(set(range(1, max(counts, default=0) + 1)) - {number for number, _ in shards})
    if missing:
        raise OutputError(
            f"shards {', '.join(map(str, missing))} of {max(counts)} are missing; "
            "finish them, or pass --partial to do without."
        )
