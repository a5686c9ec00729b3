"""What a user asks a DICOMweb server for."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import parse_qsl, urlsplit

from ssclf.errors import ConfigError

#: What an input that a DICOMweb server has begins with.
SERVER = "dicomweb+"


@dataclass(frozen=True, kw_only=True)
class ServerQuery:
    """Studies of a DICOMweb server.

    Attributes:
        url: of its service, without the query.
        filters: keyword of DICOM → what studies must match.
    """

    url: str
    filters: tuple[tuple[str, str], ...]


def parse_server(text: str) -> ServerQuery:
    """`dicomweb+https://host/path?PatientID=…&StudyDate=…`.

    Raises:
        ConfigError: no such address, one with a password in it, one that others could read along, or no filter.
    """
    try:
        parts = urlsplit(text.removeprefix(SERVER))
        host = parts.hostname or ""
    except ValueError:
        host = ""
    place = text.partition("?")[0].rpartition("@")[2]  # neither password nor query
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError(f"{place}: expected {SERVER}https://HOST/PATH?KEYWORD=VALUE.")
    if parts.username is not None:
        raise ConfigError(
            f"{place}: expected no user in the address; set SSCLF_DICOMWEB_USER and SSCLF_DICOMWEB_PASSWORD, or "
            "SSCLF_DICOMWEB_TOKEN."
        )
    if parts.scheme == "http" and not _is_this_machine(host):
        raise ConfigError(f"{place}: expected {SERVER}https; http is for servers of this machine only.")
    filters = tuple(parse_qsl(parts.query))
    if not filters or len(dict(filters)) < len(filters):
        raise ConfigError(
            f"{place}: expected which studies, each keyword once, such as ?StudyDate=20260101-20261231&"
            "ModalitiesInStudy=MR."
        )
    return ServerQuery(url=f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", filters=filters)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
