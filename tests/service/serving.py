"""A running `ssclf serve`, senders and an archive: real programs, on this machine alone, that end with their test."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dicom_writer import WrittenSeries
from numpy.typing import NDArray

#: Where packages of Linux distributions put Orthanc's DICOMweb plugin.
_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")
USER, PASSWORD = "ssclf", "not-a-secret"
#: How long anything here may take, on a machine that does other things, too.
PATIENCE_S = 120.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(what: Callable[[], Any], saying: str, patience_s: float = PATIENCE_S) -> Any:
    """What a question answers once its answer is true."""
    end = time.monotonic() + patience_s
    while not (answer := what()):
        assert time.monotonic() < end, f"waited in vain until {saying}"
        time.sleep(0.1)
    return answer


def brain(seed: int, shape: tuple[int, int, int] = (20, 26, 22)) -> NDArray[np.uint16]:
    """Pixels of a stripped "brain", synthetic, different for each seed."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    texture = 400 + 100 * np.sin((5 + seed % 3) * grid).sum(axis=0) + random.normal(0, 20, shape)
    return np.where((grid**2).sum(axis=0) < 0.8, texture, 0).astype(np.uint16)


def study(seed: int, folder: Path, **attributes: Any) -> Path:
    """A study of one series of 20 slices, below a folder."""
    WrittenSeries(brain(seed), attributes=attributes).write(folder)
    return folder


@functools.cache
def sender() -> str:
    """DCMTK's storescu, "" where there is none: pynetdicom brings a program of the same name with other options."""
    for folder in os.get_exec_path():
        program = shutil.which("storescu", path=folder)
        if (
            program
            and "dcmtk" in subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        ):
            return program
    return ""


def missing_programs(*names: str) -> str:
    """Why a test cannot run here, "" where it can."""
    if absent := [name for name in names if not (sender() if name == "storescu" else shutil.which(name))]:
        return f"not installed: {', '.join(absent)} (apt-get install dcmtk orthanc orthanc-dicomweb)"
    if "Orthanc" in names and not _dicomweb_plugin():
        return "Orthanc's DICOMweb plugin is not installed (apt-get install orthanc-dicomweb)"
    return ""


def _dicomweb_plugin() -> Path | None:
    found = (path for place in _PLUGINS for path in sorted(Path(place).glob("libOrthancDicomWeb.so*")))
    return next(found, None)


@dataclass
class Service:
    """`ssclf serve` on free ports, with its folders below one."""

    folder: Path
    bundle: Path
    options: Sequence[str] = ()
    quiet_s: float = 1.0
    port: int = field(default_factory=free_port)
    health: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def out(self) -> Path:
        return self.folder / "results.csv"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def command(self) -> list[str]:
        words: list[object] = [
            sys.executable, "-m", "ssclf", "serve", "--model", self.bundle, "--spool", self.spool,
            "--out", self.out, "--listen", f"127.0.0.1:{self.port}", "--allow", "SENDER", "--workers", 1,
            "--health", f"127.0.0.1:{self.health}", "--quiet", self.quiet_s, "--assume-stripped", *self.options,
        ]  # fmt: skip
        return [str(word) for word in words]

    def start(self, **environment: str) -> None:
        """Start it and wait until it is ready."""
        self.folder.mkdir(exist_ok=True)
        said = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, env={**os.environ, **environment}
            )

        def is_ready() -> bool:
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            return b"ready\n" in self.log.read_bytes()[said:]

        wait_until(is_ready, "the service is ready")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.process = None
        return code

    def rows(self) -> list[dict[str, str]]:
        if not self.out.exists():
            return []
        with self.out.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def wait_for_rows(self, count: int) -> list[dict[str, str]]:
        wait_until(lambda: len(self.rows()) >= count, f"there are {count} rows")
        return self.rows()

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.health}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def memory(self) -> int:
        """Bytes of this process in memory, the greatest so far."""
        return self._status("VmHWM:")

    def memory_now(self) -> int:
        """Bytes of this process in memory."""
        return self._status("VmRSS:")

    def _status(self, line: str) -> int:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition(line)[2].split()[0])

    def send(self, *folders: Path, check: bool = True, title: str = "SENDER") -> int:
        """Send all files below folders with DCMTK's storescu, in one association; returns its exit code."""
        command = [sender(), "-aet", title, "-aec", "SSCLF", "127.0.0.1", str(self.port), "+sd", "+r", "-R"]
        done = subprocess.run([*command, *map(str, folders)], capture_output=True, timeout=PATIENCE_S)
        assert not check or done.returncode == 0, done.stderr.decode()
        return done.returncode

    def said(self) -> bytes:
        """Everything that this service wrote but pixels: logs, tables, metrics, and the names of its files."""
        names = "\n".join(str(path) for path in self.folder.rglob("*"))
        texts = [p.read_bytes() for p in self.folder.rglob("*") if p.is_file() and p.suffix != ".dcm"]
        return b"\n".join([names.encode(), *texts])


@contextlib.contextmanager
def running(service: Service, **environment: str) -> Iterator[Service]:
    """Started, and killed at the end if it still runs."""
    service.start(**environment)
    try:
        yield service
    finally:
        if service.process is not None:
            service.end(signal.SIGKILL)


@dataclass
class Archive:
    """An Orthanc with DICOMweb, on free ports of this machine."""

    folder: Path
    dicom: int = field(default_factory=free_port)
    http: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def node(self) -> str:
        return f"ARCHIVE@127.0.0.1:{self.dicom}"

    @property
    def stow(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def start(self) -> None:
        plugin = _dicomweb_plugin()
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "Plugins": [str(plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ARCHIVE",
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                ["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log
            )
        wait_until(self._answers, "Orthanc answers")

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, (self.folder / "log.txt").read_text()
        try:
            return bool(self.ask("/system"))
        except OSError:
            return False

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)
            self.process = None

    def ask(self, path: str) -> Any:
        """What its HTTP interface answers, with the tests' user."""
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, f"http://127.0.0.1:{self.http}", USER, PASSWORD)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(passwords)
        )
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}{path}",
            headers={"Accept": "application/dicom+json, application/json"},
        )
        with opener.open(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def instances(self, modality: str) -> list[dict[str, Any]]:
        """All instances of a modality, asked for with QIDO-RS."""
        fields = "&".join(f"includefield={tag}" for tag in ("0020000D", "00080018", "0008103E"))
        found: list[dict[str, Any]] = (
            self.ask(f"/dicom-web/instances?Modality={modality}&limit=100000&{fields}") or []
        )
        return found


def value(instance: dict[str, Any], tag: str) -> str:
    """A value of DICOM JSON as text."""
    return str(instance[tag]["Value"][0])
