"""From a sender through the service into a real archive (Orthanc), by both ways."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from dicom_writer import PRIVATE
from serving import PASSWORD, USER, Archive, Service, running, study, value, wait_until

for module in ("pynetdicom", "highdicom", "dicomweb_client"):
    pytest.importorskip(module, reason="pip install 'ssclf[dicom]'")
STUDY, INSTANCE = "0020000D", "00080018"
CREDENTIALS = {"SSCLF_STOW_USER": USER, "SSCLF_STOW_PASSWORD": PASSWORD}


def ways(archive: Archive, *names: str) -> tuple[str, ...]:
    options = {"send": ("--send", archive.node), "stow": ("--stow", archive.stow)}
    return tuple(word for name in names for word in options[name])


def reports(archive: Archive) -> Counter[str]:
    """How many reports each study has in the archive."""
    return Counter(value(found, STUDY) for found in archive.instances("SR"))


def test_a_real_series_has_its_report_and_map_in_both_archives(
    tmp_path: Path, tiny_bundle: Path, shared_data: Path, archive: Archive
) -> None:
    with zipfile.ZipFile(shared_data / "dicom" / "datalad_T1w_384_slices.zip") as content:
        content.extractall(tmp_path / "sent")
    one = pydicom.dcmread(next((tmp_path / "sent").rglob("*.dcm")), stop_before_pixels=True)
    other = Archive(tmp_path / "other")
    with contextlib.ExitStack() as stack:
        stack.callback(other.end)
        archive.start()
        other.start()
        rules = (
            tmp_path / "rules.json"
        )  # the series has no contrast agent, which the model's own rules ask for
        rules.write_text('{"rule": [{"name": "any"}]}')
        options = (*ways(archive, "send"), *ways(other, "stow"), "--series-rules", str(rules))
        service = stack.enter_context(
            running(Service(tmp_path / "service", tiny_bundle, options), **CREDENTIALS)
        )
        service.send(tmp_path / "sent")
        (row,) = service.wait_for_rows(1)
        assert row["status"] == "ok"
        wait_until(lambda: service.metrics()["ssclf_objects_made_total"], "results are made")
        wait_until(lambda: not list((service.spool / "outbox").rglob("*.dcm")), "all has been sent")
        for place in (archive, other):
            assert reports(place) == {str(one.StudyInstanceUID): 1}
            (shown,) = place.instances("OT")  # the map
            assert value(shown, STUDY) == one.StudyInstanceUID
        assert PASSWORD.encode() not in service.said()


def test_what_cannot_be_sent_waits_and_is_sent_once(
    tmp_path: Path, tiny_bundle: Path, archive: Archive
) -> None:
    """The archive is not there, and the service is killed while its results wait; both ways bring the same objects."""
    service = Service(tmp_path / "service", tiny_bundle, ways(archive, "send", "stow"))
    with running(service, **CREDENTIALS):
        service.send(study(1, tmp_path / "sent"))
        service.wait_for_rows(1)
        wait_until(lambda: len(list((service.spool / "outbox").rglob("SR-*.dcm"))) == 2, "reports wait")
        wait_until(
            lambda: sum(v for k, v in service.metrics().items() if "send_failures" in k) >= 2,
            "both ways were tried",
        )
        service.end(signal.SIGKILL)
        archive.start()
        service.start(**CREDENTIALS)
        wait_until(lambda: not list((service.spool / "outbox").rglob("*.dcm")), "all has been sent")
        first = archive.instances("SR")
        assert len(first) == 1
        service.send(tmp_path / "sent")  # again
        sent = 'ssclf_studies_total{source="listen"}'
        wait_until(lambda: service.metrics().get(sent, 0) >= 1, "it is classified again")
        wait_until(lambda: not list((service.spool / "outbox").rglob("*.dcm")), "all has been sent")
        assert [value(found, INSTANCE) for found in archive.instances("SR")] == [value(first[0], INSTANCE)]
        assert len(service.rows()) == 1
        said = service.said()
        assert not any(word.encode() in said for word in (*PRIVATE, PASSWORD))


def test_results_in_a_folder(tmp_path: Path, tiny_bundle: Path, storescu: None) -> None:
    made = tmp_path / "made"
    with running(Service(tmp_path / "service", tiny_bundle, ("--dicom-out", str(made)))) as service:
        service.send(study(2, tmp_path / "sent"))
        service.wait_for_rows(1)
        wait_until(lambda: service.metrics()["ssclf_objects_made_total"] == 2, "report and map are made")
    kinds = sorted(pydicom.dcmread(path).Modality for path in made.iterdir())
    assert kinds == ["OT", "SR"]


def test_five_kills_and_four_senders_lose_and_repeat_nothing(
    tmp_path: Path, tiny_bundle: Path, archive: Archive
) -> None:
    """Twelve studies; senders try again until they have an answer for every object, as senders do."""
    folders = [study(seed, tmp_path / f"sent{seed}") for seed in range(20, 32)]
    uids = {
        str(pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True).StudyInstanceUID)
        for folder in folders
    }
    archive.start()
    service = Service(tmp_path / "service", tiny_bundle, ways(archive, "send"))
    done = threading.Event()

    def send(mine: list[Path]) -> None:
        for folder in mine:
            while not done.is_set() and service.send(folder, check=False) != 0:
                time.sleep(0.5)

    with running(service):
        senders = [threading.Thread(target=send, args=(folders[part::4],)) for part in range(4)]
        for sender in senders:
            sender.start()
        try:
            for number in range(5):
                seen = len(service.rows())
                if number > 1:
                    wait_until(lambda seen=seen: len(service.rows()) > seen, "a study was classified")  # type: ignore[misc]
                else:
                    time.sleep(1.0)
                service.end(signal.SIGKILL)
                service.start()
            for sender in senders:
                sender.join()
        finally:
            done.set()
        rows = service.wait_for_rows(12)
        wait_until(lambda: len(reports(archive)) == 12, "every study has a report")
        wait_until(lambda: not list((service.spool / "outbox").rglob("*.dcm")), "all has been sent")
        assert service.end() == 0
    assert len({row["path"] for row in rows}) == len(service.rows()) == 12
    assert reports(archive) == dict.fromkeys(uids, 1)
