"""Where commands write tables and pages: checked before anything is begun."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ssclf.errors import OutputError
from ssclf.io.image_hints import image_hint
from ssclf.io.paths import check_output_file, real_path


@dataclass(frozen=True)
class Outputs:
    """Where a run writes.

    Attributes:
        out: the CSV.
        report: HTML page, if any.
        maps: folder for a map per scan, if any.
        dicom: folder for DICOM objects, if any.
        fhir: folder for reports in FHIR's form, if any.
    """

    out: Path
    report: Path | None = None
    maps: Path | None = None
    dicom: Path | None = None
    fhir: Path | None = None

    def __post_init__(self) -> None:
        check_output_file("out", self.out)
        if self.details == self.out:
            raise OutputError(
                f"{self.out}: --out names the CSV; results.json is written beside it, so choose another ending."
            )
        if self.report and real_path(self.report) in (real_path(self.out), real_path(self.details)):
            raise OutputError(f"{self.report}: --report names a page of its own; the table takes that name.")

    @property
    def details(self) -> Path:
        """`results.json`, beside the CSV."""
        return self.out.with_suffix(".json")

    def check(self) -> None:
        """A CSV that is not ours is not overwritten, and nothing is begun whose results could not be written.

        Raises:
            OutputError: an output names a folder, lies in none, cannot be written, or is somebody else's.
        """
        for option, path in (("out", self.details), ("report", self.report)):
            if path is not None:
                check_output_file(option, path)
        folders = {"report": self.report and self.report.parent, "maps": self.maps}
        folders |= {"dicom-out": self.dicom, "fhir": self.fhir}
        for option, folder in folders.items():
            if folder is not None:
                _check_writable(option, folder)
        # with its results.json a table is ours, whatever a user has made of it since
        if self.out.exists() and not self.details.exists():
            header = _first_line(self.out)
            if header.strip() and not header.startswith("path,series,status,"):
                raise OutputError(f"{self.out}: exists and was not written by ssclf; choose another --out.")


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline()
    except OSError as exc:
        raise OutputError(
            f"{path}: exists and cannot be read ({exc.strerror or exc}); choose another --out."
        ) from exc


def _check_writable(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as exc:
        raise OutputError(
            f"{folder}: cannot be written ({exc.strerror or exc}); give --{option} a place where this user "
            f"may write.{image_hint('user')}"
        ) from exc
