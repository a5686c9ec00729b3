"""`ssclf serve`: what is sent or laid down has its row, whatever ends the process in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dicom_writer import PRIVATE, WrittenSeries, write
from serving import Service, brain, running, study, wait_until

from ssclf.domain.volume import Volume
from ssclf.io.volumes.nifti import write_nifti

pytest.importorskip("pynetdicom", reason="pip install 'ssclf[dicom]'")


def predicted(bundle: Path, folder: Path, out: Path) -> dict[str, str]:
    """The one row that `ssclf predict` writes for a folder."""
    service = Service(folder.parent / "unused", bundle)
    words = [
        *service.command()[:3],
        "predict",
        folder,
        "--out",
        out,
        "--model",
        bundle,
        "--assume-stripped",
        "-q",
    ]
    subprocess.run([str(word) for word in words], check=True)
    service.out.parent.mkdir()
    shutil.copy(out, service.out)
    (row,) = service.rows()
    return row


def test_a_sent_study_has_the_row_that_predict_writes(
    tmp_path: Path, tiny_bundle: Path, storescu: None
) -> None:
    sent = study(1, tmp_path / "sent")
    resolve = tmp_path / "service" / "resolve.csv"
    service = Service(tmp_path / "service", tiny_bundle, ("--resolve", str(resolve)))
    with running(service):
        service.send(sent)
        (row,) = service.wait_for_rows(1)
        wait_until(lambda: not list((service.spool / "kept").iterdir()), "the images are deleted")
        doctor = [*service.command()[:3], "doctor", "--service", f"127.0.0.1:{service.health}"]
        assert subprocess.run(doctor, capture_output=True).returncode == 0
        assert service.end() == 0
    expected = predicted(tiny_bundle, sent, tmp_path / "predicted.csv")
    ours = {name: text for name, text in row.items() if name not in ("path", "seconds")}
    assert ours == {name: expected[name] for name in ours}
    uid = WrittenSeries(brain(1)).slices()[0]  # of another study; only its form counts
    assert resolve.stat().st_mode & 0o777 == 0o600
    names = dict(line.replace('"', "").split(",") for line in resolve.read_text().split()[1:])
    assert names[row["path"]].startswith(str(uid.StudyInstanceUID)[:20])
    resolve.unlink()
    assert not any(word.encode() in service.said() for word in PRIVATE)


def test_a_kill_loses_nothing_that_was_accepted(tmp_path: Path, tiny_bundle: Path, storescu: None) -> None:
    service = Service(tmp_path / "service", tiny_bundle)
    with running(service):
        service.send(study(2, tmp_path / "sent"))
        service.end(signal.SIGKILL)
        assert not service.rows()
        assert len(list(service.spool.glob("incoming/*/*.dcm"))) == 20
        service.start()
        service.wait_for_rows(1)


def test_a_study_that_ends_the_process_again_and_again_is_given_up(
    tmp_path: Path, tiny_bundle: Path, storescu: None
) -> None:
    """As six kills would leave it; the study beside it has its row."""
    service = Service(tmp_path / "service", tiny_bundle)
    with running(service):
        service.send(study(13, tmp_path / "bad"))
        service.end(signal.SIGKILL)
        (bad,) = (service.spool / "incoming").iterdir()
        for number in range(1, 7):
            (service.spool / "begun" / f"{bad.name}.{number}").touch()
        service.start()
        service.send(study(14, tmp_path / "good"))
        rows = {row["path"]: row for row in service.wait_for_rows(2)}
    assert "gave it up" in rows.pop(bad.name)["error"]
    assert [row["status"] for row in rows.values()] == ["ok"]


def test_one_process_serves_from_a_spool(tmp_path: Path, tiny_bundle: Path) -> None:
    with running(Service(tmp_path / "service", tiny_bundle)) as service:
        other = Service(tmp_path / "service", tiny_bundle)
        done = subprocess.run(other.command(), capture_output=True, text=True)
        assert done.returncode == 1
        assert "another ssclf serve works with this --spool" in done.stderr
        assert service.metrics()["ssclf_table_rows"] == 0


def test_images_that_come_late_make_a_second_version(
    tmp_path: Path, tiny_bundle: Path, storescu: None
) -> None:
    files = sorted(study(3, tmp_path / "all").iterdir())
    for part, names in (("first", files[:14]), ("late", files[14:])):
        (tmp_path / part).mkdir()
        for path in names:
            shutil.copy(path, tmp_path / part / path.name)
    with running(Service(tmp_path / "service", tiny_bundle, ("--keep",))) as service:
        service.send(tmp_path / "first")
        (first,) = service.wait_for_rows(1)
        service.send(tmp_path / "late")
        wait_until(lambda: service.rows() != [first], "there is another version")
        (row,) = service.rows()
        assert (row["path"], row["series"]) == (first["path"], first["series"])
        expected = predicted(tiny_bundle, tmp_path / "all", tmp_path / "predicted.csv")
        assert row["confidence"] == expected["confidence"]
        assert "incomplete_series" not in row["flags"]
        assert len(list(service.spool.glob("kept/*/*.dcm"))) == 20


def test_late_images_of_a_study_whose_others_are_gone_are_said_to_be_incomplete(
    tmp_path: Path, tiny_bundle: Path, storescu: None
) -> None:
    files = sorted(study(4, tmp_path / "all").iterdir())
    with running(Service(tmp_path / "service", tiny_bundle, quiet_s=0.5)) as service:
        service.send(tmp_path / "all")
        service.wait_for_rows(1)
        wait_until(lambda: not list((service.spool / "kept").iterdir()), "the images are deleted")
        for path in files[:4]:
            path.unlink()
        service.send(tmp_path / "all")
        wait_until(lambda: "incomplete_series" in service.rows()[0]["flags"], "the row is flagged")
        assert len(service.rows()) == 1


def test_entries_of_a_watched_folder(
    tmp_path: Path, tiny_bundle: Path, make_volume: Callable[..., Volume]
) -> None:
    """Names of files may be those of people: they are in no row, also where one cannot be read."""
    watched = tmp_path / "watched"
    study(5, watched / "Secret^Person study")
    write_nifti(make_volume(seed=6), watched / "Secret^Person.nii.gz")
    (watched / "two").mkdir()
    write_nifti(make_volume(seed=7), watched / "two" / "a.nii.gz")
    (watched / "two" / "Secret^Person broken.nii").write_bytes(b"no volume")
    service = Service(tmp_path / "service", tiny_bundle, ("--watch", str(watched)))
    with running(service):
        rows = service.wait_for_rows(4)
        assert sorted(row["status"] for row in rows) == ["failed", "ok", "ok", "ok"]
        assert len({row["path"].partition("/")[0] for row in rows}) == 3
        assert b"Secret" not in service.said()
        assert service.end() == 0
        before = service.out.stat().st_mtime_ns
        service.start()
        write_nifti(make_volume(seed=8), watched / "late.nii.gz")
        assert len(service.wait_for_rows(5)) == 5
        assert service.metrics()['ssclf_rows_total{status="ok"}'] == 1  # the others were not done again
        assert service.out.stat().st_mtime_ns > before


def test_an_entry_that_is_being_copied_waits(
    tmp_path: Path, tiny_bundle: Path, make_volume: Callable[..., Volume]
) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    write_nifti(make_volume(seed=9), tmp_path / "whole.nii")
    content = (tmp_path / "whole.nii").read_bytes()
    with running(
        Service(tmp_path / "service", tiny_bundle, ("--watch", str(watched)), quiet_s=4.0)
    ) as service:
        with (watched / "scan.nii").open("wb") as file:
            for begin in range(0, len(content), len(content) // 4):
                file.write(content[begin : begin + len(content) // 4])
                file.flush()
                assert not service.rows()
                time.sleep(1.0)
        (row,) = service.wait_for_rows(1)
        assert row["status"] == "ok"


def test_a_full_spool_refuses_and_goes_on(tmp_path: Path, tiny_bundle: Path, storescu: None) -> None:
    """Room for one study at a time: the other is refused, sent again later, and taken."""
    for seed in (10, 11):
        WrittenSeries(brain(seed, (20, 160, 150))).write(tmp_path / str(seed))
    service = Service(tmp_path / "service", tiny_bundle, ("--spool-limit", "0.0012"), quiet_s=3.0)
    with running(service):
        service.send(tmp_path / "10")
        service.send(tmp_path / "11", check=False)
        assert service.metrics()['ssclf_objects_refused_total{reason="full"}'] > 0
        service.wait_for_rows(1)
        wait_until(lambda: service.send(tmp_path / "11", check=False) == 0, "there is room again")
        assert len(service.wait_for_rows(2)) == 2


def test_a_study_without_anything_to_classify_is_counted(
    tmp_path: Path, tiny_bundle: Path, storescu: None
) -> None:
    for number, ds in enumerate(WrittenSeries(brain(12)).slices()):
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        write(ds, tmp_path / "localizer" / str(number))
    with running(Service(tmp_path / "service", tiny_bundle)) as service:
        service.send(tmp_path / "localizer")
        wait_until(
            lambda: service.metrics()["ssclf_studies_without_volume_total"] == 1, "the study is counted"
        )
        assert not list((service.spool / "closed").iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "name where studies come from"),
        (("--listen", "127.0.0.1:0"), "expected HOST:PORT"),
        (("--listen", "127.0.0.1:11112"), "name who may send"),
        (("--listen", "127.0.0.1:11112", "--allow", "FAR\\TOO@x"), "expected an AE title"),
        (("--watch", ".", "--send", "ARCHIVE"), "expected AET@HOST:PORT"),
        (("--watch", ".", "--stow", "https://me:pass@host/dicom-web"), "holds credentials"),
        (("--watch", ".", "--stow", "http://192.0.2.1/dicom-web"), "use https://"),
        (("--watch", "no such folder",), "expected a folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    command = [*Service(tmp_path, tmp_path).command()[:4], "--spool", str(tmp_path / "spool"), *options]
    environment = {**os.environ, "SSCLF_STOW_TOKEN": "token", "COLUMNS": "300"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert not (tmp_path / "spool").exists()


def test_rows_of_another_kind_of_model_are_not_mixed(tmp_path: Path, tiny_bundle: Path) -> None:
    service = Service(tmp_path / "service", tiny_bundle)
    service.folder.mkdir()
    row = {"path": "a", "series": "", "status": "ok", "probabilities": [0.5, 0.5], "flags": []}
    service.out.with_suffix(".json").write_text(json.dumps({"run": {"volumes": 1}, "rows": [row]}))
    done = subprocess.run(service.command(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "rows of a model with other classes" in done.stderr
