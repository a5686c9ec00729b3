"""Services and archives for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Archive, missing_programs


@pytest.fixture(scope="session")
def storescu() -> None:
    if why := missing_programs("storescu"):
        pytest.skip(why)


@pytest.fixture
def archive(tmp_path: Path, storescu: None) -> Iterator[Archive]:
    """An archive that has not been started."""
    if why := missing_programs("Orthanc"):
        pytest.skip(why)
    found = Archive(tmp_path / "archive")
    yield found
    found.end()
