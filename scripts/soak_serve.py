#!/usr/bin/env python3
"""Many studies through `ssclf serve` into a real archive, with kills: nothing lost, nothing twice, memory flat.

    scripts/soak_serve.py --model BUNDLE [--studies 200] [--senders 4] [--kills 5] [--folder FOLDER]

Needs ssclf[cpu,dicom,dev], storescu, Orthanc and its DICOMweb plugin (apt-get install dcmtk orthanc orthanc-dicomweb).
All studies are synthetic. Kills fall into the first half; in the second, memory is looked at.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pydicom

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "io"), str(ROOT / "tests" / "service")]
from serving import Archive, Service, missing_programs, running, study, value, wait_until  # noqa: E402

_PATIENCE_S = 7200.0


def main() -> int:
    """0 where every study has one row and one report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if why := missing_programs("storescu", "Orthanc"):
        print(why)
        return 1
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        archive = Archive(Path(name) / "archive")
        archive.start()
        try:
            return soak(Path(name), archive, asked)
        finally:
            archive.end()


def soak(folder: Path, archive: Archive, asked: argparse.Namespace) -> int:
    folders = [study(seed, folder / f"sent{seed}") for seed in range(asked.studies)]
    uids = {
        str(pydicom.dcmread(next(sent.iterdir()), stop_before_pixels=True).StudyInstanceUID)
        for sent in folders
    }
    service = Service(folder / "service", asked.model, ("--send", archive.node))
    begin, done = time.monotonic(), threading.Event()
    with running(service):
        senders = [
            threading.Thread(target=send, args=(service, folders[part :: asked.senders], done))
            for part in range(asked.senders)
        ]
        for sender in senders:
            sender.start()
        try:
            for number in range(asked.kills):
                rows = asked.studies * (number + 1) // (2 * asked.kills + 1)
                wait_until(lambda rows=rows: len(service.rows()) >= rows, f"{rows} rows", _PATIENCE_S)  # type: ignore[misc]
                service.end(signal.SIGKILL)
                service.start()
                say(begin, f"killed and started again at {len(service.rows())} rows")
            memory = watch_memory(service, asked.studies, begin)
        finally:
            done.set()
        for sender in senders:
            sender.join()
        wait_until(
            lambda: not list((service.spool / "outbox").rglob("*.dcm")), "all has been sent", _PATIENCE_S
        )
        code, rows = service.end(), service.rows()
    reports = Counter(value(found, "0020000D") for found in archive.instances("SR"))
    say(
        begin,
        f"{len(rows)} rows of {len({row['path'] for row in rows})} studies, {sum(reports.values())} reports of "
        f"{len(reports)} studies, exit code {code}; MB of the service after the kills: "
        + ", ".join(f"{size / 1e6:.0f}" for size in memory),
    )
    whole = len(rows) == asked.studies and dict(reports) == dict.fromkeys(uids, 1)
    return 0 if whole and code == 0 else 1


def send(service: Service, folders: list[Path], done: threading.Event) -> None:
    """Each until it was answered as a whole, as senders do."""
    for sent in folders:
        while not done.is_set() and service.send(sent, check=False) != 0:
            time.sleep(0.5)


def watch_memory(service: Service, studies: int, begin: float) -> list[int]:
    """What the service has in memory each time another twelfth of the studies has its rows, until all have."""
    sizes: list[int] = []
    known = len(service.rows())
    while known < studies:
        goal = min(studies, known + max(1, studies // 12))
        wait_until(lambda goal=goal: len(service.rows()) >= goal, f"{goal} rows", _PATIENCE_S)  # type: ignore[misc]
        known = len(service.rows())
        sizes.append(service.memory_now())
        say(begin, f"{known} rows, {sizes[-1] / 1e6:.0f} MB")
    return sizes


def say(begin: float, text: str) -> None:
    print(f"[{time.monotonic() - begin:6.0f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
