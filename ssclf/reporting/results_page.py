"""`results.html`: what `ssclf predict` found, for people: a picture, probabilities and flags per volume."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ssclf.domain.flags import FLAGS, HARMLESS
from ssclf.domain.metrics import ENOUGH_TO_CALIBRATE
from ssclf.domain.provenance import Provenance
from ssclf.domain.visible import visible
from ssclf.io.records.results import ResultRow
from ssclf.reporting.html import write_page
from ssclf.reporting.thumbnails import AGAINST_COLOUR, FOR_COLOUR

#: Key of a row's picture in `ResultRow.extra`.
THUMBNAIL = "thumbnail"
#: About 10 kB each: more would make a page that browsers take seconds to open.
MAX_PICTURES = 3000
_PICTURE = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/]+=*")


def write_results_page(
    path: Path,
    rows: Sequence[ResultRow],
    class_names: Sequence[str],
    run_info: Mapping[str, Any],
    *,
    max_pictures: int = MAX_PICTURES,
) -> None:
    """Write one self-contained page; it appears whole or not at all.

    Args:
        rows: in the order of the page; `extra["thumbnail"]` is a picture as a data URI, where there is one.
        run_info: the "run" part of `results.json`. Read here, each where present: `models` (with `name`,
            `sha256`, `synthetic`, `training`), `config`, `ssclf_version`, `device`, `seconds`, `finished`.
        max_pictures: where there are more, the flagged and then the least sure volumes keep theirs.

    Raises:
        OutputError: it cannot be written.
    """
    names = [visible(name) for name in class_names]
    models = [_describe(model, class_names) for model in run_info.get("models", ())]
    pictured = [row for row in rows if _PICTURE.fullmatch(str(row.extra.get(THUMBNAIL, "")))]
    pictured.sort(key=lambda row: (not _warns(row), row.confidence or 0.0))
    index = {row.key: number for number, row in enumerate(pictured[:max_pictures])}
    counts = Counter(flag for row in rows for flag in row.flags)
    write_page(
        "results.html",
        path,
        count=len(rows),
        class_names=names,
        synthetic=False,  # that banner speaks of the volumes; this page says it of the model
        synthetic_model=any(model["synthetic"] for model in models),
        reference_model=any(model["lesions"] for model in models),
        models=models,
        facts=_facts(rows, class_names, run_info),
        flags=[{**_flag(code), "count": counts[code]} for code in sorted(counts)],
        without_picture=len(pictured) - len(index),
        columns=_columns(names),
        rows=(_cells(row, len(names), index.get(row.key)) for row in rows),
        pictures=(row.extra[THUMBNAIL] for row in pictured[:max_pictures]),
        for_colour=FOR_COLOUR,
        against_colour=AGAINST_COLOUR,
        map_method=run_info.get("config", {}).get("map_method"),
    )


def _columns(class_names: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Key, title, and whether it holds numbers."""
    return [
        ("path", "volume", False),
        ("status", "status", False),
        ("prediction", "prediction", False),
        ("confidence", "confidence", True),
        *((f"p{k}", f"p {name}", True) for k, name in enumerate(class_names)),
        ("remark", "flags, error", False),
        ("brain", "brain, ml", True),
    ]


def _cells(row: ResultRow, classes: int, picture: int | None) -> dict[str, Any]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    shares = [number(p, 3) for p in row.probabilities] or [""] * classes
    cells = {
        "path": visible(row.path),
        "series": visible(row.series),
        "status": row.status,
        "prediction": visible(row.prediction),
        "confidence": number(row.confidence, 3),
        "error": visible(row.error),
        "brain_ml": number(row.brain_ml, 0),
    }
    sort = {
        "path": f"{cells['path']} {cells['series']}",
        "status": cells["status"],
        "prediction": cells["prediction"],
        "confidence": number(row.confidence, 6),
        **{f"p{k}": number(p, 6) for k, p in enumerate(row.probabilities)},
        "remark": cells["error"] or ";".join(row.flags),
        "brain": cells["brain_ml"],
        "flags": ";".join(row.flags),
    }
    flags = [_flag(code) for code in row.flags]
    return {**cells, "sort": sort, "shares": shares, "flags": flags, "picture": picture}


def _flag(code: str) -> dict[str, Any]:
    meaning = FLAGS.get(code, "a flag of another version of ssclf")
    return {"code": code, "meaning": meaning, "harmless": code in HARMLESS}


def _warns(row: ResultRow) -> bool:
    return not HARMLESS.issuperset(row.flags)


def _describe(model: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    training = Provenance.from_dict(model.get("training", {}))
    sources = training.class_sources
    known = [
        _isolated(name)
        + " from "
        + Markup(", ").join(_isolated(source) + f" ({count})" for source, count in sources[name].items())
        for name in class_names
        if sources.get(name)
    ]
    words = "Its probabilities are not calibrated."
    if training.calibration.fitted_on:
        words = "Its probabilities are calibrated."
        if count := training.calibration.volumes:
            few = ", too few to rely on" if count < ENOUGH_TO_CALIBRATE else ""
            words = f"Its probabilities are calibrated on {count} volumes{few}."
    return {
        "name": visible(str(model.get("name", ""))),
        "synthetic": bool(model.get("synthetic", False)),
        "lesions": training.pretrained_on_lesions,
        "volumes": Markup("; ").join(known) or "not stated in the model",
        "calibration": words,
    }


def _facts(
    rows: Sequence[ResultRow], class_names: Sequence[str], run_info: Mapping[str, Any]
) -> list[tuple[str, str]]:
    counts = Counter(row.prediction for row in rows if row.status == "ok")
    outcome = [_isolated(name) + f" {counts[name]}" for name in class_names]
    outcome.append(Markup("failed {}").format(sum(row.status != "ok" for row in rows)))
    outcome.append(Markup("flagged for a second look {}").format(sum(map(_warns, rows))))
    facts = [
        (
            "model",
            f"{m.get('name')}, {'in 8 bits, ' * (m.get('precision') == 'int8')}sha256 {m.get('sha256')}",
        )
        for m in run_info.get("models", ())
    ]
    for label, key in (("ssclf", "ssclf_version"), ("device", "device"), ("finished", "finished")):
        if key in run_info:
            facts.append((label, str(run_info[key])))
    if "seconds" in run_info:
        facts.append(("time", f"{float(run_info['seconds']):.0f} s"))
    return [("outcome", Markup(", ").join(outcome)), *((label, visible(value)) for label, value in facts)]


def _isolated(name: object) -> Markup:
    """A name that leaves the order of what stands beside it alone, also where it is written from right to left."""
    return Markup("<bdi>{}</bdi>").format(visible(str(name)))
