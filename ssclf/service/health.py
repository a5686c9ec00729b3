"""The page with the counts, and how `ssclf doctor --service` reads it."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ssclf.errors import OutputError
from ssclf.service.metrics import Metrics
from ssclf.service.request import Address
from ssclf.workflows.doctor import Check

_TIMEOUT_S = 5.0
_MOST_THREADS = 16
_MOST_BYTES = 1 << 20
_LINE = re.compile(r"(ssclf_\w+)(\{[^}]*\})? (\S+)")


class _Handler(BaseHTTPRequestHandler):
    """Answers `GET /metrics` and `GET /health`, and nothing else."""

    server: _Server
    timeout = _TIMEOUT_S
    server_version, sys_version = "ssclf", ""

    def do_GET(self) -> None:
        """Counts in Prometheus' text format; or 200 while every part runs, 503 otherwise."""
        if self.path == "/metrics":
            self._answer(200, self.server.metrics.page())
        elif self.path == "/health":
            trouble = self.server.trouble()
            self._answer(503 if trouble else 200, f"{trouble or 'ok'}\n")
        else:
            self._answer(404, "expected /metrics or /health\n")

    def _answer(self, code: int, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Who asks is no news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, place: tuple[str, int], metrics: Metrics, trouble: Callable[[], str]) -> None:
        self.metrics, self.trouble = metrics, trouble
        self._free = threading.Semaphore(_MOST_THREADS)
        super().__init__(place, _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """As `socketserver.BaseServer` asks before a thread is started."""
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up is no news, and would be printed."""


class Health:
    """Serves the page while it is open; use as a context manager."""

    def __init__(self, address: Address, metrics: Metrics, trouble: Callable[[], str]) -> None:
        """Args:
        trouble: what does not run, "" while everything does.
        """
        self._address, self._metrics, self._trouble = address, metrics, trouble
        self._server: _Server | None = None

    def __enter__(self) -> Health:
        """Raises:
        OutputError: nothing can listen there.
        """
        try:
            self._server = _Server((self._address.host, self._address.port), self._metrics, self._trouble)
        except OSError as exc:
            raise OutputError(
                f"--health {self._address}: nothing can listen there ({exc.strerror or exc})."
            ) from exc
        threading.Thread(target=self._server.serve_forever, daemon=True, name="health").start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


def ask_service(address: Address) -> Iterator[Check]:
    """What a running service says of itself, for `ssclf doctor`."""
    try:
        code, health = _get(address, "/health")
        _, page = _get(address, "/metrics")
    except (OSError, http.client.HTTPException) as exc:
        yield Check(
            f"service {address}",
            False,
            f"does not answer ({type(exc).__name__}); does it run?",
            required=True,
        )
        return
    yield Check(f"service {address}", code == 200, health.strip()[:200], required=True)
    values = {name + (label or ""): value for name, label, value in _LINE.findall(page)}
    waiting = {key: value for key, value in values.items() if key.startswith("ssclf_outbox_objects")}
    failures = sum(float(v) for key, v in values.items() if key.startswith("ssclf_send_failures_total"))
    yield Check("table", True, f"{values.get('ssclf_table_rows', '0')} rows")
    for stage in ("incoming", "closed"):
        key = f'ssclf_studies{{stage="{stage}"}}'
        yield Check(f"studies {stage}", True, values.get(key, "0"))
    for key, value in sorted(waiting.items()):
        words = f"{value} waiting, {failures:.0f} failed tries so far"
        yield Check(f"outbox {key.partition('=')[2].strip('}')}", True, words)
    used, limit = (float(values.get(f"ssclf_spool_{name}", "0")) for name in ("bytes", "limit_bytes"))
    full = limit > 0 and used > 0.9 * limit
    yield Check("spool", not full, f"{used / 2**30:.2f} of {limit / 2**30:.2f} GB", required=True)


def _get(address: Address, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(_MOST_BYTES).decode("utf-8", "replace")
    finally:
        connection.close()
