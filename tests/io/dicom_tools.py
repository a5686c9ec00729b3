"""What others' programs say of DICOM objects that we wrote: dicom3tools' dciodvfy and DCMTK's dsrdump."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest

#: Warnings that stay, as docs/dicom-out.md explains them.
KNOWN_WARNINGS = (
    r"Unrecognized defined term <99SSCLF> for value 1 of attribute <Coding Scheme Designator>",
    r"Unrecognized defined term <QUANTITY> for value 4 of attribute <(?:Image|Frame) Type>",
    # of the source's own header
    r"Value dubious for this VR - \(0x0010,0x0010\) PN Patient's Name .* - Retired Person Name form",
    r"Missing attribute or value that would be needed to build DICOMDIR - .*",
)


def check_with_tools(path: Path) -> None:
    """No errors, and no warning that is not known; where a program is missing, its part is skipped by the caller."""
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    assert any(line in ("EnhancedSR", "ParametricMap", "SCImage") for line in said), (
        said
    )  # it was read at all
    assert not [line for line in said if line.startswith(("Error", "Abort"))], said
    known = re.compile("|".join(KNOWN_WARNINGS))
    assert not [line for line in said if line.startswith("Warning") and not known.search(line)], said
    if pydicom.dcmread(path, stop_before_pixels=True).Modality == "SR":
        done = subprocess.run(["dsrdump", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "E:" not in done.stderr, done.stderr


def need_tools() -> None:
    for program, package in (("dciodvfy", "dicom3tools"), ("dsrdump", "dcmtk")):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (Debian: {package})")
