"""Peers that are wrong, broken or mean: each is refused as docs/service.md says, and the service goes on."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicom_writer import PRIVATE, WrittenSeries
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from serving import Service, brain, running, sender, study, wait_until

pynetdicom = pytest.importorskip("pynetdicom", reason="pip install 'ssclf[dicom]'")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, storescu: None) -> Iterator[Service]:
    """One for all tests of this module: each finds it alive after the one before."""
    folder = tmp_path_factory.mktemp("hostile")
    with running(Service(folder / "service", tiny_bundle, ("--spool-limit", "0.02"))) as found:
        yield found


@pytest.fixture(autouse=True)
def lives(service: Service, tmp_path: Path) -> Iterator[None]:
    """After each test the service takes an ordinary study."""
    yield
    before = service.metrics()["ssclf_studies_total" + '{source="listen"}' * bool(service.rows())]
    service.send(study(int(time.time() * 1000) % 100_000, tmp_path / "ordinary"))
    wait_until(
        lambda: service.metrics().get('ssclf_studies_total{source="listen"}', 0) > before, "it takes a study"
    )


def associate(service: Service, title: str = "SENDER", called: str = "SSCLF") -> Any:
    ae = pynetdicom.AE(ae_title=title)
    ae.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
    return ae.associate("127.0.0.1", service.port, ae_title=called)


def refusals(service: Service, name: str) -> float:
    return sum(count for key, count in service.metrics().items() if key.startswith(name))


@pytest.mark.parametrize(("title", "called"), [("STRANGER", "SSCLF"), ("SENDER", "OTHER")])
def test_wrong_titles_are_rejected(service: Service, title: str, called: str) -> None:
    before = refusals(service, "ssclf_associations_refused_total")
    assoc = associate(service, title, called)
    assert assoc.is_rejected
    wait_until(
        lambda: refusals(service, "ssclf_associations_refused_total") == before + 1, "the refusal is counted"
    )


def test_a_title_counts_only_from_its_host(tmp_path: Path, tiny_bundle: Path, storescu: None) -> None:
    options = ("--allow", "HOME@127.0.0.1", "--allow", "AWAY@192.0.2.7")
    with running(Service(tmp_path / "service", tiny_bundle, options)) as service:
        assert associate(service, "AWAY").is_rejected
        assoc = associate(service, "HOME")
        assert assoc.is_established
        assoc.release()


def test_an_object_of_another_patient_is_refused(service: Service) -> None:
    slices = WrittenSeries(brain(41)).slices()
    slices[1].PatientID = "SOMEBODY-ELSE"
    assoc = associate(service)
    answers = [assoc.send_c_store(_whole(ds)).Status for ds in slices[:3]]
    assoc.release()
    assert answers == [0x0000, 0xC002, 0x0000]


def test_what_is_no_whole_object_is_refused(service: Service) -> None:
    first, second, *_ = WrittenSeries(brain(42)).slices()
    del first.StudyInstanceUID
    assoc = associate(service)
    assert assoc.send_c_store(_whole(first)).Status == 0xC001
    assert assoc.send_c_store(_whole(second)).Status == 0x0000
    assoc.release()


def test_other_kinds_of_objects_are_not_negotiated(service: Service, tmp_path: Path) -> None:
    ae = pynetdicom.AE(ae_title="SENDER")
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2")  # CT
    assoc = ae.associate("127.0.0.1", service.port, ae_title="SSCLF")
    assert not assoc.is_established  # pynetdicom aborts where no context was accepted


def test_half_an_object_leaves_nothing(service: Service, tmp_path: Path) -> None:
    """The sender is killed in the middle of an object: of the study, the whole ones are classified."""
    big = WrittenSeries(brain(43, (4, 700, 700)))
    big.write(tmp_path / "big")
    before = service.metrics()["ssclf_objects_received_total"]
    sending = subprocess.Popen(
        [
            sender(),
            "-aet",
            "SENDER",
            "-aec",
            "SSCLF",
            "127.0.0.1",
            str(service.port),
            "+sd",
            str(tmp_path / "big"),
        ]
    )
    with contextlib.suppress(AssertionError):
        wait_until(lambda: list((service.spool / "receiving").iterdir()), "an object is on its way", 5.0)
    sending.kill()
    sending.wait()
    wait_until(lambda: not list((service.spool / "receiving").iterdir()), "half an object is gone")
    assert service.metrics()["ssclf_objects_received_total"] <= before + 4


def test_an_object_beyond_the_limit_is_dropped_while_it_comes(service: Service, tmp_path: Path) -> None:
    """2 GB for a spool of 20 MB: neither memory nor disk holds it."""
    path = write_hollow(tmp_path / "big.dcm", 1 << 31)
    memory, largest, done = service.memory(), 0, threading.Event()

    def look() -> None:
        nonlocal largest
        while not done.wait(0.02):
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, sum(p.stat().st_size for p in service.spool.rglob("*") if p.is_file()))

    looking = threading.Thread(target=look)
    looking.start()
    words = [sender(), "-v", "-aet", "SENDER", "-aec", "SSCLF", "127.0.0.1", str(service.port), str(path)]
    sent = subprocess.run(words, capture_output=True, text=True)
    done.set()
    looking.join()
    assert "Refused: OutOfResources" in sent.stdout + sent.stderr
    assert largest < 24e6
    assert service.memory() - memory < 24e6


def write_hollow(path: Path, length: int) -> Path:
    """A DICOM object whose image is `length` bytes of nothing, of which the disk holds none."""
    ds = _whole(WrittenSeries(brain(44)).slices()[0])
    del ds.PixelData
    ds.Rows = ds.Columns = 32768
    ds.save_as(path, enforce_file_format=True)
    with path.open("ab") as file:
        file.write(struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, length))
        file.truncate(file.tell() + length)
    return path


def test_a_length_that_a_peer_states_takes_no_memory(service: Service) -> None:
    """A PDU of 4 GB is announced, and as much as the peer may send of it sent."""
    memory = service.memory()
    with socket.create_connection(("127.0.0.1", service.port)) as peer, contextlib.suppress(OSError):
        peer.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFFF))
        for _ in range(64):
            peer.sendall(bytes(1 << 20))
    assert service.memory() - memory < 16e6


def test_a_flood_of_connections_that_say_nothing(service: Service) -> None:
    """More than there are threads for; and associations that send nothing, more than are taken at a time."""
    peers = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(200)]
    for peer in peers[::2]:
        with contextlib.suppress(OSError):  # some have been closed already
            peer.sendall(b"\x01\x00\x00")  # the first half of a length
    threads = len(list(Path(f"/proc/{service.process.pid if service.process else 0}/task").iterdir()))
    assert threads < 120
    assert service.metrics()['ssclf_associations_refused_total{reason="too_many"}'] > 0
    for peer in peers:
        peer.close()
    wait_until(lambda: service.metrics()["ssclf_associations_open"] == 0, "all have gone")
    taken = []
    for _ in range(12):
        assoc = associate(service)
        taken.append(assoc.is_established)
    assert taken.count(False) >= 1
    for assoc in threading.enumerate():
        if isinstance(assoc, pynetdicom.association.Association):
            assoc.abort()
    wait_until(lambda: service.metrics()["ssclf_associations_open"] == 0, "all have gone")


def test_nothing_of_a_header_is_written(service: Service) -> None:
    """After all of the above; the series of these tests are marked."""
    said = service.said()
    for word in (*PRIVATE, "SOMEBODY-ELSE"):
        assert word.encode() not in said
    assert b"Traceback" not in service.log.read_bytes()
    assert (service.spool.stat().st_mode & 0o777, (service.spool / "key").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )


def _whole(ds: pydicom.Dataset) -> pydicom.Dataset:
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds
