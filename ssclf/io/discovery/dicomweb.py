"""Discovery on a DICOMweb server: the MR series of the studies that the user asks for. Nothing is retrieved yet."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ssclf.domain.server_query import ServerQuery
from ssclf.errors import ConfigError, DatasetError
from ssclf.io.discovery.naming import needs_manifest
from ssclf.io.discovery.scans import Scan, with_own_keys
from ssclf.io.discovery.sources import Discovery
from ssclf.io.volumes.dicom_series import series_name
from ssclf.io.volumes.dicomweb import ServerError, ServerSeries, open_client, talking_to

_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
_STUDY, _SERIES, _MODALITY, _NUMBER = "0020000D", "0020000E", "00080060", "00200011"
_DESCRIPTION, _COUNT, _IMAGE_TYPE = "0008103E", "00201209", "00080008"
Found = dict[str, Any]


def discover_servers(
    servers: Sequence[ServerQuery],
    paths: Sequence[Path],
    *,
    contrasts: tuple[str, ...],
    pattern: str | None = None,
    series: str | None = None,
    **_: object,
) -> Discovery:
    """As `discover`, for servers. A scan's path is a hash of its study, so that no key tells of a patient.

    Raises:
        DatasetError: a server cannot be asked, or has no such series.
        ConfigError: `series` is no regular expression, or `pattern` is given: a server has no file names.
    """
    if pattern:
        raise ConfigError(
            "--pattern: asks for names of files, which a server does not have; --series takes series."
        )
    try:
        described = re.compile(series or "", re.IGNORECASE)
    except re.error as exc:
        raise ConfigError(f"--series: {series!r} is no regular expression ({exc}).") from exc
    problem = "" if len(contrasts) == 1 else needs_manifest(contrasts, "a DICOM series")
    other: Counter[str] = Counter()
    scans = {
        (found.server, found.uid): Scan(f"study-{_hash(found.study)}", (found,), found.name, problem)
        for query in servers
        for found in _mr_series(query, described, other)
    }
    if not scans:
        others = "; ".join(f"{count} {reason}" for reason, count in sorted(other.items())) or "no study"
        raise DatasetError(
            f"{', '.join(query.url for query in servers)}: expected MR series, found {others}."
        )
    return Discovery(tuple(with_own_keys(scans.values())), dict(sorted(other.items())))


def _mr_series(query: ServerQuery, described: re.Pattern[str], other: Counter[str]) -> Iterator[ServerSeries]:
    client = open_client(query.url)
    filters = dict(query.filters)
    try:
        with talking_to(query.url):
            for study, _ in _all(_STUDY, partial(client.search_for_studies, search_filters=filters)):
                for uid, found in _all(_SERIES, partial(client.search_for_series, study)):
                    if reason := _left_out(client, study, uid, found, described):
                        other[reason] += 1
                        continue
                    number = int(_value(found, _NUMBER) or 0)
                    count = _value(found, _COUNT)
                    yield ServerSeries(
                        series_name(number, [uid]), query.url, study, uid, int(count) if count else None
                    )
    except ServerError as exc:
        raise DatasetError(str(exc)) from exc


def _left_out(client: Any, study: str, uid: str, found: Found, described: re.Pattern[str]) -> str:
    """Why a series is none to classify, in the words that files have; "" where it may be one."""
    if (modality := _value(found, _MODALITY)) not in ("MR", ""):
        return f"the modality is {modality if re.fullmatch('[A-Z]{2,16}', modality) else 'unknown'}, not MR"
    if not described.search(_value(found, _DESCRIPTION)):
        return "the series description does not match --series"
    first: list[Found] = []
    # what cannot be asked of a series is told by its row
    with contextlib.suppress(ServerError), talking_to(""):
        first = client.search_for_instances(study, uid, limit=1, fields=["ImageType"])
    kinds = first[0].get(_IMAGE_TYPE, {}).get("Value", []) if first else []
    return "a localiser" if "LOCALIZER" in kinds else ""


def _all(tag: str, search: Callable[..., list[Found]]) -> Iterator[tuple[str, Found]]:
    """All answers by UID, whether the server gives them at once or a page at a time."""
    found: dict[str, Found] = {}
    while True:
        page = {_value(one, tag): one for one in search(offset=len(found))}
        new = {uid: one for uid, one in page.items() if uid not in found and _UID.fullmatch(uid)}
        if not new:
            return
        found |= new
        yield from new.items()


def _value(found: Found, tag: str) -> str:
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])


def _hash(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:12]
