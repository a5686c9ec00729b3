"""The two ways to an archive: C-STORE and STOW-RS. No answer of the other side reaches a log but its number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pynetdicom import AE, _config
from requests.adapters import HTTPAdapter

from ssclf.service.outbox import Send, SendError
from ssclf.service.request import Node, Stow

_CONNECT_S, _ANSWER_S = 10.0, 120.0


def store_to(node: Node, ae_title: str) -> Send:
    """Send by C-STORE to a node."""
    return partial(_store, node, ae_title)


def _store(node: Node, ae_title: str, files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    _config.LOG_HANDLER_LEVEL = "none"
    # the bytes go as they are: nothing is decoded, and no object is in memory as a whole
    _config.STORE_SEND_CHUNKED_DATASET = True
    ae = AE(ae_title=ae_title)
    ae.connection_timeout, ae.acse_timeout = _CONNECT_S, _CONNECT_S
    ae.dimse_timeout, ae.network_timeout = _ANSWER_S, _ANSWER_S
    kinds: dict[str, set[str]] = {}
    for path in files:
        meta = pydicom.filereader.read_file_meta_info(path)
        kinds.setdefault(str(meta.MediaStorageSOPClassUID), set()).add(str(meta.TransferSyntaxUID))
    for sop_class, syntaxes in kinds.items():
        for syntax in sorted(syntaxes):
            ae.add_requested_context(sop_class, syntax)
    assoc = ae.associate(node.address.host, node.address.port, ae_title=node.ae_title)
    if not assoc.is_established:
        why = "the association was rejected" if assoc.is_rejected else "no answer"
        raise SendError(f"{node.ae_title} at {node.address}: {why}")
    try:
        for number, path in enumerate(files, 1):
            if not assoc.is_established:
                raise SendError(f"{node.ae_title} at {node.address}: the association was ended")
            try:
                status = assoc.send_c_store(path, msg_id=number)
            except ValueError:  # no context: this node does not take such objects
                yield path, "the node does not take this kind of object"
                continue
            code = int(getattr(status, "Status", -1))
            if code < 0:
                raise SendError(f"{node.ae_title} at {node.address}: no answer to an object")
            # 0xBxxx: stored, with a warning (PS3.4, B.2.3)
            yield path, "" if code == 0 or code & 0xF000 == 0xB000 else f"status 0x{code:04X}"
    finally:
        if assoc.is_established:
            assoc.release()


class _InTime(HTTPAdapter):
    """Waits so long and no longer, whoever asks."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        """As `HTTPAdapter.send`."""
        options["timeout"] = (_CONNECT_S, _ANSWER_S)
        return super().send(*arguments, **options)


def stow_to(server: Stow) -> Send:
    """Send by STOW-RS to a DICOMweb server."""
    session = requests.Session()
    session.trust_env = False  # no proxy, no credentials of a file: it goes where it was told to
    session.max_redirects = 0  # nor on to where that place points
    session.verify = server.certificates or True
    for scheme in ("https://", "http://"):
        session.mount(scheme, _InTime())
    if server.token:
        session.headers["Authorization"] = f"Bearer {server.token}"
    elif server.user:
        session.auth = (server.user, server.password)
    client = DICOMwebClient(server.url, session=session)
    client.set_http_retry_params(retry=False)  # the outbox tries again
    return partial(_stow, client)


def _stow(client: DICOMwebClient, files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for path in files:
        try:
            answer = client.store_instances([pydicom.dcmread(path)])
        except requests.HTTPError as exc:
            code = exc.response.status_code if exc.response is not None else 0
            if code in (400, 409, 413, 415):
                yield path, f"HTTP {code}"
                continue
            raise SendError(f"{client.base_url}: HTTP {code}") from exc
        except (requests.RequestException, OSError) as exc:
            raise SendError(f"{client.base_url}: {type(exc).__name__}") from exc
        failed = getattr(answer, "FailedSOPSequence", None)
        yield path, "the server says that it failed" if failed else ""
