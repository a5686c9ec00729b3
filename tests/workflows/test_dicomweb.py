"""`ssclf predict` from a DICOMweb server: a real Orthanc on this machine's loopback."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_writer import PRIVATE, WrittenSeries
from typer.testing import CliRunner

from ssclf.cli.app import app
from ssclf.domain.volume import Volume

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PASSWORD = "opens-it"
Predict = Callable[..., tuple[int, str]]


@dataclass
class Orthanc:
    port: int
    folder: Path

    def retrieved(self) -> int:
        """How often a series was fetched, as its log tells."""
        return len(
            re.findall(r"GET /dicom-web/studies/[\d.]+/series/[\d.]+\s", (self.folder / "log").read_text())
        )

    @property
    def place(self) -> str:
        return f"dicomweb+http://127.0.0.1:{self.port}/dicom-web"

    def ask(self, path: str, data: bytes | None = None, method: str | None = None) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, method=method)
        key = base64.b64encode(f"ssclf:{PASSWORD}".encode()).decode()
        request.add_header("Authorization", f"Basic {key}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            content: bytes = answer.read()
        return content

    def store(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.ask("/instances", path.read_bytes())


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    pytest.importorskip("dicomweb_client", reason="pip install 'ssclf[dicom]'")
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("Debian's packages orthanc and orthanc-dicomweb bring the server")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "MaximumStorageCacheSize": 0,
        "OverwriteInstances": True,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"ssclf": PASSWORD},
        "Plugins": [str(PLUGIN)],
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--verbose", str(folder / "orthanc.json")], stdout=log, stderr=log
        )
    try:
        server = Orthanc(port, folder)
        for _ in range(300):
            try:
                server.ask("/system")
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def studies(orthanc: Orthanc, make_volume: Callable[..., Volume], tmp_path: Path) -> Path:
    """Two studies of one series each, one with a localiser and a CT beside it."""
    for study in json.loads(orthanc.ask("/studies")):
        orthanc.ask(f"/studies/{study}", method="DELETE")
    folder = tmp_path / "dicom"
    for number in (1, 2):
        pixels = make_volume(seed=number).data[0].astype(np.uint16)
        uid = f"1.2.3.{number}"
        of_study = {"StudyInstanceUID": f"1.2.{number}", "StudyDate": f"2026010{number}"}
        WrittenSeries(pixels, uid=uid, number=number, attributes=of_study).write(folder / uid)
        if number == 2:
            scout = {**of_study, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
            WrittenSeries(pixels[:2], uid="1.2.3.8", number=8, attributes=scout).write(folder / "scout")
            other = {**of_study, "Modality": "CT"}
            WrittenSeries(pixels[:2], uid="1.2.3.9", number=9, attributes=other).write(folder / "ct")
    orthanc.store(folder)
    return folder


@pytest.fixture
def predict(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    monkeypatch.setenv("SSCLF_DICOMWEB_USER", "ssclf")
    monkeypatch.setenv("SSCLF_DICOMWEB_PASSWORD", PASSWORD)

    def run(*words: object, out: str = "r.csv") -> tuple[int, str]:
        command = ["predict", *words, "--out", tmp_path / out, "--model", tiny_bundle, "--workers", "1"]
        done = CliRunner().invoke(app, [*map(str, command), "--skull-strip", "none"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return run


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def scores(table: Path) -> dict[str, list[str]]:
    return {row["series"]: [row[f"p_{name}"] for name in ("LGG", "HGG", "healthy")] for row in rows(table)}


def test_a_server_gives_the_rows_of_its_folder(
    predict: Predict, orthanc: Orthanc, studies: Path, tmp_path: Path
) -> None:
    code, output = predict(f"{orthanc.place}?ModalitiesInStudy=MR&StudyDate=20260101-20260131")
    assert code == 0, output
    assert predict(studies, out="folder.csv")[0] == 0
    assert scores(tmp_path / "r.csv") == scores(tmp_path / "folder.csv") != {}
    assert "1 a localiser" in output and "1 the modality is CT, not MR" in output
    written = (tmp_path / "r.csv").read_text() + (tmp_path / "r.json").read_text() + output
    assert not any(word in written for word in (*PRIVATE, "1.2.3.1", PASSWORD))
    assert all(row["path"].startswith("study-") for row in rows(tmp_path / "r.csv"))
    assert not list(tmp_path.glob(".r.csv*"))


def test_finished_series_are_not_retrieved_again(
    predict: Predict, orthanc: Orthanc, studies: Path, tmp_path: Path
) -> None:
    asked, before = f"{orthanc.place}?ModalitiesInStudy=MR", orthanc.retrieved()
    assert predict(f"{asked}&StudyDate=20260101")[0] == 0
    code, output = predict(asked)
    assert code == 0 and "1 to classify, 1 done before" in output
    code, output = predict(asked)
    assert code == 0 and "0 to classify, 2 done before" in output
    assert orthanc.retrieved() == before + 2


def test_what_a_server_does_not_give_costs_its_row_and_is_asked_for_again(
    predict: Predict, orthanc: Orthanc, studies: Path, tmp_path: Path
) -> None:
    for path in (orthanc.folder / "db").rglob("*-*-*"):
        if path.is_file() and pydicom.dcmread(path, force=True).get("InstanceNumber", 0) == 5:
            path.unlink()
    asked = f"{orthanc.place}?StudyDate=20260101"
    for _ in range(2):  # without --retry-failed
        code, output = predict(asked)
        assert code == 3 and "1 to classify" in output and "Traceback" not in output, output
        (row,) = rows(tmp_path / "r.csv")
        assert row["status"] == "failed" and "server" in row["error"]
    orthanc.store(studies)
    assert predict(asked)[0] == 0


def test_uids_only_where_they_are_asked_for(
    predict: Predict, orthanc: Orthanc, studies: Path, tmp_path: Path
) -> None:
    assert predict(f"{orthanc.place}?StudyDate=20260101", "--keep-uids")[0] == 0
    assert [row["series"] for row in rows(tmp_path / "r.csv")] == ["1.2.3.1"]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("dicomweb+http://example.org/dicom-web?StudyDate=20260101", "dicomweb+https"),
        ("dicomweb+https://me:secret@example.org/dicom-web?StudyDate=20260101", "SSCLF_DICOMWEB_USER"),
        ("dicomweb+https://example.org/dicom-web", "which studies"),
        ("dicomweb+ftp://example.org?PatientID=SECRET-ID", "dicomweb+https://HOST"),
    ],
)
def test_addresses_that_are_refused(predict: Predict, place: str, says: str) -> None:
    code, output = predict(place)
    assert code == 1 and says in output.replace("\n", " ")
    assert "secret@" not in output and "SECRET-ID" not in output


def test_a_server_that_cannot_be_asked(
    predict: Predict, orthanc: Orthanc, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        code, output = predict(f"dicomweb+http://127.0.0.1:{closed.getsockname()[1]}/x?PatientID=SECRET-ID")
    assert code == 1 and "no connection to the server" in output and "SECRET-ID" not in output
    code, output = predict(f"{orthanc.place}?PatientID=NOBODY")
    assert code == 1 and "expected MR series, found no study" in output
    monkeypatch.setenv("SSCLF_DICOMWEB_PASSWORD", "another")
    code, output = predict(f"{orthanc.place}?StudyDate=20260101")
    assert code == 1 and "status 401" in output
