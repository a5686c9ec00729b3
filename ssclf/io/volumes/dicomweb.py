"""Series that a DICOMweb server has (PS3.18): searched for by `ssclf.io.discovery.dicomweb`, retrieved here.

Only the server that the user named is asked: redirections are refused, and nothing is read from the machine's own
files of passwords and proxies. Messages name no address with a query in it, which may tell of a patient.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssclf.errors import ConfigError, VolumeError
from ssclf.io.volumes.dicom_headers import quiet_pydicom

#: Seconds to connect, and between two pieces of an answer.
_TIMEOUT_S = (10, 120)


class ServerError(VolumeError):
    """A server gave something else than was asked for."""


@dataclass(frozen=True)
class ServerSeries:
    """Attributes:
    name: as `DicomSeries.name`.
    server: address of the service.
    study, uid: StudyInstanceUID and SeriesInstanceUID.
    images: how many objects the server says it has of it, None where it does not say.
    """

    name: str
    server: str = field(repr=False)
    study: str = field(repr=False)
    uid: str = field(repr=False)
    images: int | None = None


def open_client(server: str) -> Any:
    """A client of a server, with the credentials of the environment.

    Raises:
        ConfigError: the address is none.
    """
    import requests
    from dicomweb_client.api import DICOMwebClient

    logging.getLogger("dicomweb_client").setLevel(
        logging.CRITICAL
    )  # it logs addresses with what was asked for
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
    if token := os.environ.get("SSCLF_DICOMWEB_TOKEN"):
        session.headers["Authorization"] = f"Bearer {token}"
    elif user := os.environ.get("SSCLF_DICOMWEB_USER"):
        session.auth = (user, os.environ.get("SSCLF_DICOMWEB_PASSWORD", ""))
    try:
        client = DICOMwebClient(server, session=session, timeout=_TIMEOUT_S)
    except ValueError as exc:
        raise ConfigError(f"{server}: expected the address of a DICOMweb service.") from exc
    client.set_http_retry_params(max_attempts=3)
    return client


@contextlib.contextmanager
def talking_to(server: str) -> Iterator[None]:
    """Say what went wrong between us and a server.

    Raises:
        ServerError: something did.
    """
    import requests

    try:
        yield
    except requests.HTTPError as exc:
        status = None if exc.response is None else exc.response.status_code
        more = "; check the SSCLF_DICOMWEB variables" if status in (401, 403) else ""
        raise ServerError(f"the server {server} refused with status {status}{more}.") from exc
    except requests.TooManyRedirects as exc:
        raise ServerError(f"the server {server} sends on to another place; name that one.") from exc
    except requests.exceptions.SSLError as exc:
        raise ServerError(
            f"the certificate of {server} is not trusted; name the file of your site's in REQUESTS_CA_BUNDLE."
        ) from exc
    except requests.Timeout as exc:
        raise ServerError(f"the server {server} did not answer in time.") from exc
    except requests.RequestException as exc:
        raise ServerError(
            f"no connection to the server {server}, or it broke off ({type(exc).__name__})."
        ) from exc
    except (ValueError, KeyError, TypeError, AttributeError, EOFError) as exc:
        raise ServerError(
            f"the server {server} answered with something else than DICOMweb ({type(exc).__name__})."
        ) from exc


def retrieve(series: ServerSeries, folder: Path) -> Path:
    """Fetch the objects of a series, as the server keeps them.

    Args:
        folder: to be made; private to the user by the one that it lies in.

    Returns:
        the folder.

    Raises:
        ServerError: not all of them came.
    """
    folder.mkdir()
    count = 0
    with talking_to(series.server), quiet_pydicom():
        found = open_client(series.server).iter_series(
            series.study, series.uid, media_types=(("application/dicom", "*"),)
        )
        for count, dataset in enumerate(found, start=1):
            dataset.save_as(folder / f"{count:06d}.dcm", enforce_file_format=True)
    if not count or series.images not in (None, count):
        raise ServerError(
            f"{series.name}: expected {series.images or 'some'} objects of the series, the server gave {count}."
        )
    return folder
