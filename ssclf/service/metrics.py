"""What the service has counted, and its page for Prometheus. No label comes from a header or a peer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping

#: Counters with their help; each may have one label.
COUNTERS = {
    "ssclf_objects_received_total": "DICOM objects that were accepted.",
    "ssclf_objects_refused_total": "DICOM objects that were refused, by reason.",
    "ssclf_associations_total": "DICOM associations that were accepted.",
    "ssclf_associations_refused_total": "DICOM associations that were refused or cut off, by reason.",
    "ssclf_studies_total": "Studies that were classified, by source.",
    "ssclf_studies_without_volume_total": "Studies that hold nothing to classify.",
    "ssclf_rows_total": "Rows that were made, by status.",
    "ssclf_objects_made_total": "DICOM results that were made.",
    "ssclf_objects_failed_total": "Rows whose DICOM result could not be made.",
    "ssclf_sent_total": "DICOM results that were acknowledged, by way.",
    "ssclf_send_failures_total": "Sendings that failed and will be tried again, by way.",
}
#: Values of now.
GAUGES = {
    "ssclf_studies": "Studies in the queue, by stage.",
    "ssclf_outbox_objects": "DICOM results that wait for their acknowledgement, by way.",
    "ssclf_outbox_oldest_seconds": "Age of the oldest of them.",
    "ssclf_spool_bytes": "Bytes in the spool.",
    "ssclf_spool_limit_bytes": "Bytes that the spool may hold.",
    "ssclf_associations_open": "DICOM associations now.",
    "ssclf_table_rows": "Rows of the table.",
}


class Metrics:
    """Counters, and where the gauges are asked. Safe for threads."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._guard = threading.Lock()
        self._gauges: list[Callable[[], Mapping[tuple[str, str], float]]] = []

    def add(self, name: str, label: str = "", count: int = 1) -> None:
        """Args:
        label: as `reason="full"`, or nothing.
        """
        assert name in COUNTERS
        with self._guard:
            self._counts[name, label] += count

    def ask(self, gauges: Callable[[], Mapping[tuple[str, str], float]]) -> None:
        """Have gauges asked for whenever the page is."""
        self._gauges.append(gauges)

    def page(self) -> str:
        """All of them in Prometheus' text format."""
        with self._guard:
            values: dict[tuple[str, str], float] = {(name, ""): 0.0 for name in COUNTERS}
            values |= self._counts
        labelled = {name for name, label in values if label}
        values = {key: value for key, value in values.items() if key[1] or key[0] not in labelled}
        for gauges in self._gauges:
            values |= gauges()
        lines = []
        for kind, known in (("counter", COUNTERS), ("gauge", GAUGES)):
            for name, about in known.items():
                found = sorted((label, value) for (other, label), value in values.items() if other == name)
                if found:
                    lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
                    lines += [
                        f"{name}{{{label}}} {value:.15g}" if label else f"{name} {value:.15g}"
                        for label, value in found
                    ]
        return "\n".join(lines) + "\n"
