"""DICOM objects that others send (C-STORE): who may, what, and how much of it.

pynetdicom speaks the protocol. What it leaves to its user is kept here: a length that a peer states takes no memory,
a connection that says nothing ends, an object that finds no room is dropped while it comes, and nothing of what is
sent reaches a log.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydicom.uid import (
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
)
from pynetdicom import AE, _config, evt
from pynetdicom.transport import AssociationSocket, ThreadedAssociationServer

from ssclf.errors import OutputError
from ssclf.service.metrics import Metrics
from ssclf.service.request import Address, Senders
from ssclf.service.spool import Spool, Taken

log = logging.getLogger(__name__)
#: What can be classified; nothing else is negotiated.
_CLASSES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
_VERIFICATION = "1.2.840.10008.1.1"
#: As stored: nothing is decoded here. Deflated data sets and big endian are left out; senders have another at hand.
_SYNTAXES = [
    f"1.2.840.10008.1.2{end}"
    for end in (".1", "", ".5", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91")
]
_ASSOCIATIONS = 8
#: Connections that have not said yet what they want count, too.
_CONNECTIONS = 4 * _ASSOCIATIONS
_PDU_BYTES, _MOST_PDU_BYTES = 1 << 17, 1 << 20
#: Of the one command that stands before an object, and of an object in memory, which none of ours is.
_COMMAND_BYTES, _OTHER_BYTES = 1 << 16, 1 << 20
#: An object that is larger is no MR series that could be classified here.
MAX_OBJECT_BYTES = 1 << 30
#: For the first word of a connection, for the next word of an association, for the next bytes, and for one PDU.
_GREETING_S, _IDLE_S, _STALL_S, _PDU_S = 10.0, 60.0, 20.0, 60.0
#: Requests that one association may have sent ahead; each waits for its answer.
_AHEAD = 4
#: PS3.4, B.2.3; PS3.7, annex C. "Cannot understand" is 0xCxxx, whose digits are ours.
STATUS = {Taken.KEPT: 0x0000, Taken.FULL: 0xA700, Taken.UNREADABLE: 0xC001, Taken.OTHER_PATIENT: 0xC002}


@dataclass
class _Receiving:
    """What one association is sending.

    Attributes:
        command, data: bytes so far of the message that comes.
        dropped: files of objects that found no room.
    """

    command: int = 0
    data: int = 0
    dropped: set[str] = field(default_factory=set)


class _Server(ThreadedAssociationServer):
    """Takes no more connections than it has threads for."""

    on_refused: Callable[[], None]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """As `socketserver.BaseServer` asks before a thread is started."""
        free = len(self.active_associations) < _CONNECTIONS
        if not free:
            self.on_refused()
        return free

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ends before its thread has begun is no news, and would be printed."""


class Listener:
    """Listens while it is open; use as a context manager."""

    def __init__(
        self, address: Address, ae_title: str, senders: Senders, spool: Spool, metrics: Metrics
    ) -> None:
        self._address, self._senders, self._spool, self._metrics = address, senders, spool, metrics
        self._receiving: dict[int, _Receiving] = {}
        self._ae = AE(ae_title=ae_title)
        self._ae.require_called_aet = True
        self._ae.require_calling_aet = list(senders.hosts)
        self._ae.maximum_associations = _ASSOCIATIONS
        self._ae.maximum_pdu_size = _PDU_BYTES
        self._ae.acse_timeout, self._ae.dimse_timeout, self._ae.network_timeout = (
            _GREETING_S,
            _IDLE_S,
            _IDLE_S,
        )
        for sop_class in _CLASSES:
            self._ae.add_supported_context(sop_class, _SYNTAXES)
        self._ae.add_supported_context(_VERIFICATION)
        self._server: _Server | None = None

    def __enter__(self) -> Listener:
        """Raises:
        OutputError: nothing can listen there.
        """
        _config.LOG_HANDLER_LEVEL = "none"  # or it writes every association's parameters
        _config.STORE_RECV_CHUNKED_DATASET = True  # to files, below `tempfile.tempdir`
        tempfile.tempdir = str(self._spool.receiving)
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_REJECTED, lambda event: self._refused("association")),
            (evt.EVT_ACCEPTED, lambda event: self._metrics.add("ssclf_associations_total")),
            (evt.EVT_PDU_RECV, self._came),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_RELEASED, lambda event: self._ended(event, orderly=True)),
            (evt.EVT_ABORTED, lambda event: self._ended(event, orderly=False)),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]
        place = (self._address.host, self._address.port)
        try:
            server = cast(_Server, self._ae.make_server(place, evt_handlers=handlers, server_class=_Server))
        except OSError as exc:
            raise OutputError(
                f"--listen {self._address}: nothing can listen there ({exc.strerror or exc}); is another running?"
            ) from exc
        server.on_refused = lambda: self._refused("too_many")
        threading.Thread(target=server.serve_forever, daemon=True, name="listener").start()
        self._server = server
        return self

    def __exit__(self, *_: object) -> None:
        # what is being sent was not answered: its sender has it still
        self._ae.shutdown()

    @property
    def open(self) -> int:
        """Associations and connections now."""
        return len(self._server.active_associations) if self._server else 0

    def _refused(self, reason: str) -> None:
        self._metrics.add("ssclf_associations_refused_total", f'reason="{reason}"')

    def _opened(self, event: Any) -> None:
        """A connection: from here on it is read with limits."""
        self._receiving[id(event.assoc)] = _Receiving()
        _limit_reading(cast(AssociationSocket, event.assoc.dul.socket))

    def _requested(self, event: Any) -> None:
        """pynetdicom compares titles; a title may only come from where it is at home."""
        requestor = event.assoc.requestor
        title, host = str(requestor.primitive.calling_ae_title).strip(), str(requestor.address_info.address)
        if title in self._senders.hosts and not self._senders.allow(title, host):
            self._refused("host")
            event.assoc.acse.send_reject(0x01, 0x01, 0x03)  # calling AE title not recognised
            event.assoc.kill()

    def _came(self, event: Any) -> None:
        """Runs for each PDU before its bytes are kept: in the thread that reads, so nothing comes meanwhile."""
        state = self._receiving.get(id(event.assoc))
        if state is None:
            return
        for item in getattr(event.pdu, "presentation_data_value_items", ()):
            value = item.presentation_data_value
            head = value[0] if value else 0
            if head & 1:
                state.command += len(value)
                state.data = 0
            else:
                state.command = 0
                state.data += len(value) - 1
                self._bound(event.assoc, state)
        dimse = event.assoc.dimse
        if state.command > _COMMAND_BYTES or dimse.msg_queue.qsize() > _AHEAD:
            self._cut_off(event.assoc)

    def _bound(self, assoc: Any, state: _Receiving) -> None:
        """Drop what has come of an object that finds no room; it goes on coming, and is refused when it is over."""
        message = assoc.dimse.message
        file = message and message._data_set_file
        if not file:
            if state.data > _OTHER_BYTES:
                self._cut_off(assoc)
            return
        others = sum(other.data for other in list(self._receiving.values())) - state.data
        if file.name in state.dropped or state.data > min(MAX_OBJECT_BYTES, self._spool.room - others):
            state.dropped.add(file.name)
            file.seek(0)
            file.truncate()

    def _cut_off(self, assoc: Any) -> None:
        self._refused("limits")
        assoc.abort(block=False)

    def _store(self, event: Any) -> int:
        """Answer an object: success means that it is on the disk."""
        state = self._receiving.setdefault(id(event.assoc), _Receiving())
        path = Path(event.dataset_path)
        if str(path) in state.dropped:
            state.dropped.discard(str(path))
            taken = Taken.FULL
        else:
            instance = str(event.request.AffectedSOPInstanceUID or "")
            taken = self._spool.take(path, sender=id(event.assoc), instance=instance)
        state.data = 0
        if taken is Taken.KEPT:
            self._metrics.add("ssclf_objects_received_total")
        else:
            self._metrics.add("ssclf_objects_refused_total", f'reason="{taken.value}"')
        return STATUS[taken]

    def _ended(self, event: Any, *, orderly: bool) -> None:
        self._spool.ended(id(event.assoc), orderly=orderly)

    def _closed(self, event: Any) -> None:
        """Half an object has no sender any more."""
        self._ended(event, orderly=bool(event.assoc.is_released))
        self._receiving.pop(id(event.assoc), None)
        message = event.assoc.dimse.message
        if message is not None and message._data_set_path:
            with contextlib.suppress(OSError):
                Path(message._data_set_path).unlink()


def _limit_reading(connection: AssociationSocket) -> None:
    """Read with an end to waiting, and no more than a PDU may have: pynetdicom takes the length that a peer states."""
    raw = connection.socket
    assert raw is not None
    raw.settimeout(_STALL_S)

    def receive(nr_bytes: int) -> bytearray:
        count = nr_bytes
        if count > _MOST_PDU_BYTES:
            raise OSError("more bytes than a PDU may have")
        data, end = bytearray(), time.monotonic() + _PDU_S
        while len(data) < count:
            if time.monotonic() > end:
                raise TimeoutError
            part = raw.recv(min(count - len(data), 1 << 16))
            if not part:
                break
            data += part
        return data

    connection.recv = receive  # type: ignore[method-assign]
