"""What `ssclf serve` was asked for: addresses, peers and places, read from texts and refused before anything starts."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ssclf.errors import ConfigError

#: PS3.5, 6.2: up to 16 characters, without backslash or control characters; blanks around it do not count.
_AE_TITLE = re.compile(r"(?! )[ -\[\]-~]{1,16}(?<! )")


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    @staticmethod
    def parse(text: str, option: str) -> Address:
        """Read "host:port"; an IPv6 address stands in brackets.

        Raises:
            ConfigError: it is none.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigError(f"{option}: expected HOST:PORT such as 127.0.0.1:11112, found {text!r}.")
        return Address(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Node:
    """Another DICOM node: its AE title and where it listens."""

    ae_title: str
    address: Address

    @staticmethod
    def parse(text: str, option: str) -> Node:
        """Read "AET@HOST:PORT".

        Raises:
            ConfigError: it is none.
        """
        title, at, address = text.partition("@")
        if not at:
            raise ConfigError(f"{option}: expected AET@HOST:PORT, found {text!r}.")
        return Node(ae_title(title, option), Address.parse(address, option))


@dataclass(frozen=True)
class Senders:
    """Who may send.

    Attributes:
        hosts: AE title → addresses that it may come from; empty for any.
    """

    hosts: Mapping[str, frozenset[str]]

    @staticmethod
    def parse(texts: Sequence[str], option: str) -> Senders:
        """Read several of "AET" or "AET@HOST"; names of hosts are looked up once, now.

        Raises:
            ConfigError: a title or host is none.
        """
        hosts: dict[str, frozenset[str]] = {}
        for text in texts:
            title, at, host = text.partition("@")
            title = ae_title(title, option)
            known = hosts.get(title)
            if not at:
                hosts[title] = frozenset()
            elif known is None or known:
                hosts[title] = (known or frozenset()) | _addresses(host, option)
        return Senders(hosts)

    def allow(self, title: str, host: str) -> bool:
        named = self.hosts.get(title)
        return named is not None and (not named or _plain(host) in named)


def ae_title(text: str, option: str) -> str:
    """Raises:
    ConfigError: it is no AE title.
    """
    if not _AE_TITLE.fullmatch(text):
        raise ConfigError(
            f"{option}: expected an AE title of 1 to 16 plain characters, not \\ or @, found {text!r}."
        )
    return text


def _addresses(host: str, option: str) -> frozenset[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ConfigError(f"{option}: the host {host!r} is not known here ({exc.strerror or exc}).") from exc
    return frozenset(_plain(str(entry[4][0])) for entry in found)


def _plain(host: str) -> str:
    """An address in one form: IPv4 also where it comes as IPv6."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@dataclass(frozen=True)
class Stow:
    """A DICOMweb server.

    Attributes:
        token, user, password: credentials, from the environment alone; not shown.
        certificates: file of the authorities that it is held against; "": those of the system.
    """

    url: str
    token: str = field(default="", repr=False)
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    certificates: str = ""

    @staticmethod
    def parse(url: str, environment: Mapping[str, str]) -> Stow:
        """Raises:
        ConfigError: no such URL, credentials in it, or credentials that would go over the network for all to read.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("--stow: expected https://HOST/PATH, the root of a DICOMweb server.")
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                "--stow: the URL holds credentials, which every user of this machine could see; put them into "
                "SSCLF_STOW_USER and SSCLF_STOW_PASSWORD, or SSCLF_STOW_TOKEN."
            )
        found = Stow(
            url.rstrip("/"),
            environment.get("SSCLF_STOW_TOKEN", ""),
            environment.get("SSCLF_STOW_USER", ""),
            environment.get("SSCLF_STOW_PASSWORD", ""),
            environment.get("REQUESTS_CA_BUNDLE", ""),
        )
        here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if parts.scheme == "http" and not here and (found.token or found.user):
            raise ConfigError(
                "--stow: credentials over http:// could be read on the way; use https://, or unset SSCLF_STOW_*."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class ServeRequest:
    """Everything that `ssclf serve` was asked for, but models and how they are applied.

    Attributes:
        listen: where images may be sent; None: nowhere.
        ae_title: of this service, to those that send and those that are sent to.
        senders: who may.
        watch: folders whose entries are studies.
        spool: private folder of the queue.
        spool_bytes: that the queue may take.
        quiet_s: after so long without a change a study is taken for complete.
        out: the table.
        resolve: private table of what the names in `out` stand for.
        send, stow, dicom_out: where DICOM results go.
        series_rules: file that says which series of a study is answered; None: the model says.
        dicom_picture: whether DICOM results show the evidence as a picture instead of a map.
        keep: whether received images stay.
        health: where counts can be asked for.
    """

    spool: Path
    out: Path
    listen: Address | None = None
    ae_title: str = "SSCLF"
    senders: Senders = field(default_factory=lambda: Senders({}))
    watch: tuple[Path, ...] = ()
    spool_bytes: int = 20 << 30
    quiet_s: float = 30.0
    resolve: Path | None = None
    send: Node | None = None
    stow: Stow | None = None
    dicom_out: Path | None = None
    series_rules: Path | None = None
    dicom_picture: bool = False
    keep: bool = False
    health: Address | None = None

    def __post_init__(self) -> None:
        if self.listen is None and not self.watch:
            raise ConfigError(
                "serve: name where studies come from: --listen HOST:PORT, --watch FOLDER, or both."
            )
        if self.listen is not None and not self.senders.hosts:
            raise ConfigError("--listen: name who may send, with --allow AET or --allow AET@HOST.")
        if self.listen is None and self.senders.hosts:
            raise ConfigError("--allow: goes with --listen.")
        ae_title(self.ae_title, "--ae-title")
        if (self.series_rules or self.dicom_picture) and not self.makes_objects:
            raise ConfigError(
                "--series-rules and --dicom-picture go with --send, --stow or --dicom-out, which take DICOM results."
            )
        if not self.quiet_s > 0:
            raise ConfigError(f"--quiet: expected seconds above 0, found {self.quiet_s:g}.")
        if self.spool_bytes < 1 << 20:
            raise ConfigError("--spool-limit: expected at least 0.001 GB.")

    @property
    def makes_objects(self) -> bool:
        """Whether results leave as DICOM, too."""
        return bool(self.send or self.stow or self.dicom_out)
