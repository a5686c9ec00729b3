"""Parquet of a run on a cluster: the plan's partitions, and those of the results.

A result partition has the columns of `results.csv`, typed. What ssclf needs to go on later (what each row was
made from, and from which plan) is in the file's metadata, not in columns that readers would have to skip.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssclf.errors import OutputError
from ssclf.io.discovery.scans import Scan, VoxelSource
from ssclf.io.records.results import TAIL, ResultRow
from ssclf.io.volumes.dicom_series import DicomSeries

_META = b"ssclf"
_PLAN = pa.schema([(name, pa.string()) for name in ("path", "series", "scan", "fingerprint")])


@dataclass(frozen=True)
class Planned:
    """One volume of the plan: its scan, with places below the source, and what its row will be made from."""

    scan: Scan
    fingerprint: str

    @property
    def key(self) -> tuple[str, str]:
        return storable(self.scan.path), storable(self.scan.series)


def storable(text: str) -> str:
    """Names that are no UTF-8, as `results.csv` shows them."""
    return text.encode("utf-8", "backslashreplace").decode()


def scan_to_json(scan: Scan, base: Path) -> str:
    """A scan with its places below `base`, so that another machine finds them below its own."""

    def place(path: Path) -> str:
        return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)

    contrasts = [
        {**asdict(one), "root": place(one.root)} if isinstance(one, DicomSeries) else place(one)
        for one in scan.stored
    ]
    return json.dumps(
        {"path": scan.path, "series": scan.series, "contrasts": contrasts, "problem": scan.problem}
    )


def scan_from_json(text: str, base: Path) -> Scan:
    """The inverse of `scan_to_json`."""
    values = json.loads(text)

    def source(value: Any) -> VoxelSource:
        if isinstance(value, str):
            return base / value
        return DicomSeries(
            value["name"],
            base / value["root"],
            tuple(value["files"]),
            value["uid"],
            entries=tuple(map(tuple, value["entries"])),
            other_uids=tuple(value["other_uids"]),
            place=value["place"],
            lost=value["lost"],
        )

    contrasts = tuple(source(value) for value in values["contrasts"])
    return Scan(values["path"], contrasts, values["series"], values["problem"])


def encode_plan(planned: Sequence[Planned], base: Path) -> bytes:
    """A partition of the plan as a Parquet file."""
    columns = [
        [one.key[0] for one in planned],
        [one.key[1] for one in planned],
        [scan_to_json(one.scan, base) for one in planned],
        [one.fingerprint for one in planned],
    ]
    return _parquet(pa.table([pa.array(c, pa.string()) for c in columns], schema=_PLAN))


def decode_plan(content: bytes, base: Path = Path()) -> list[Planned]:
    """The inverse of `encode_plan`."""
    table = pq.read_table(pa.BufferReader(content))
    return [
        Planned(scan_from_json(scan, base), fingerprint)
        for scan, fingerprint in zip(table["scan"].to_pylist(), table["fingerprint"].to_pylist(), strict=True)
    ]


def plan_digest(planned: Iterable[Planned]) -> str:
    """Equal for plans of the same volumes, in the same state, for the same models and settings."""
    digest = hashlib.sha256()
    for key, fingerprint in sorted((one.key, one.fingerprint) for one in planned):
        digest.update(json.dumps([*key, fingerprint]).encode())
    return digest.hexdigest()[:32]


def result_schema(class_names: Sequence[str]) -> pa.Schema:
    """The columns of `results.csv`: numbers are numbers, everything else is text."""
    text = [(name, pa.string()) for name in ("path", "series", "status", "prediction")]
    numbers = [(name, pa.float64()) for name in ("confidence", *(f"p_{name}" for name in class_names))]
    tail = [(name, pa.float64() if name in ("brain_ml", "seconds") else pa.string()) for name in TAIL]
    return pa.schema([*text, *numbers, *tail])


def encode_results(rows: Sequence[ResultRow], class_names: Sequence[str], plan: str = "") -> bytes:
    """A partition of the results as a Parquet file, in the order of the rows.

    Args:
        plan: digest of the partition of the plan that these rows are all of; "" where they are a part.
    """
    schema = result_schema(class_names)
    records = []
    for row in rows:
        probabilities = row.probabilities or [None] * len(class_names)
        records.append(
            {
                "path": storable(row.path),
                "series": storable(row.series),
                "status": row.status,
                "prediction": row.prediction,
                "confidence": row.confidence,
                **{f"p_{name}": p for name, p in zip(class_names, probabilities, strict=True)},
                "flags": ";".join(row.flags),
                "error": storable(" ".join(row.error.split())),
                "brain_ml": row.brain_ml,
                "seconds": row.seconds,
                "model": row.model,
                "model_sha256": row.model_sha256,
                "ssclf_version": row.ssclf_version,
                "precision": row.precision,
            }
        )
    meta = {"plan": plan, "fingerprints": [row.fingerprint for row in rows]}
    table = pa.Table.from_pylist(records, schema=schema.with_metadata({_META: json.dumps(meta).encode()}))
    return _parquet(table)


def decode_results(content: bytes, where: str = "part") -> tuple[list[ResultRow], str]:
    """Rows of a partition, and the digest of its plan.

    Raises:
        OutputError: not written by ssclf.
    """
    try:
        table = pq.read_table(pa.BufferReader(content))
        meta = json.loads(table.schema.metadata[_META])
        return list(_rows(table, meta["fingerprints"])), meta["plan"]
    except (pa.ArrowException, KeyError, TypeError, ValueError) as exc:
        raise OutputError(
            f"{where}: expected a partition that `ssclf predict --ray` wrote, found something else; "
            "move it away or choose another --out."
        ) from exc


def _rows(table: pa.Table, fingerprints: Sequence[str]) -> Iterator[ResultRow]:
    classes = [name for name in table.column_names if name.startswith("p_")]
    for values, fingerprint in zip(table.to_pylist(), fingerprints, strict=True):
        probabilities = [values.pop(name) for name in classes]
        del values["confidence"]
        values["flags"] = tuple(flag for flag in values["flags"].split(";") if flag)
        yield ResultRow(
            **values,
            probabilities=() if probabilities[0] is None else tuple(probabilities),
            fingerprint=fingerprint,
        )


def _parquet(table: pa.Table) -> bytes:
    target = io.BytesIO()
    pq.write_table(table, target, compression="zstd")
    return target.getvalue()
