"""Decoded volumes: the same voxels wherever they are kept, and nothing that was made of another file."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssclf.domain.volume import Volume
from ssclf.errors import VolumeError
from ssclf.io.decoded import DecodedVolumes
from ssclf.io.memory import free_memory
from ssclf.io.records.preprocessed import PreparedCohort, read_prepared_cohort
from ssclf.io.volumes.nifti import read_written, write_nifti

SHAPE = "6 x 20 x 18"


def cohort_of(folder: Path, shape: str = SHAPE) -> PreparedCohort:
    """As the manifest of `ssclf preprocess` describes it."""
    cohort = read_prepared_cohort(folder)
    return replace(cohort, samples=tuple(replace(s, cells={"shape": shape}) for s in cohort.samples))


def check(decoded: DecodedVolumes, cohort: PreparedCohort) -> None:
    for sample in cohort.samples:
        found, expected = decoded.read(sample.path), read_written(sample.path)
        assert found.data.dtype == np.float32 and found.data.tobytes() == expected.data.tobytes()
        np.testing.assert_array_equal(found.affine, expected.affine)
        with pytest.raises(ValueError, match="read-only"):
            found.data[...] = 0


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "decoded").glob("*")}


@pytest.mark.parametrize("contrasts", [("t1ce",), ("t1ce", "flair")])
@pytest.mark.parametrize("shape", [SHAPE, "2 x 3 x 4", ""])
def test_voxels_are_those_of_the_file_in_memory_and_beside_the_cohort(
    shape: str, contrasts: tuple[str, ...], preprocessed: Callable[..., Path]
) -> None:
    folder = preprocessed(contrasts=contrasts)
    cohort = cohort_of(folder, shape)
    path = cohort.samples[3].path
    volume = read_written(path)  # not only what fewer bits would hold
    write_nifti(Volume(volume.data * np.float32(1 / 3) + np.float32(1e-7), volume.affine), path)
    in_memory, beside = DecodedVolumes(cohort), DecodedVolumes(cohort, room=0)
    assert in_memory.in_memory == bool(shape) and not beside.in_memory
    assert not files(folder), "written before anything was read"
    for _ in range(2):
        check(in_memory, cohort)
        assert in_memory.at_hand(path) == (shape == SHAPE)
    if shape:
        assert not files(folder)
    for _ in range(2):
        check(beside, cohort)
    assert len(files(folder)) == 12
    again: object = DecodedVolumes(cohort, room=0).read(path).data
    while isinstance(again, np.ndarray) and not isinstance(again, np.memmap):
        again = again.base
    assert isinstance(again, np.memmap)


def test_what_fits_is_asked_of_the_machine(preprocessed: Callable[..., Path]) -> None:
    folder = preprocessed()
    size = 64 + 12 * (4 * 6 * 20 * 18 + 160)
    cohort = cohort_of(folder)
    assert [DecodedVolumes(cohort, room=room).in_memory for room in (size - 1, size)] == [False, True]
    side = round((free_memory() / 4 / 12) ** (1 / 3))
    assert not DecodedVolumes(cohort_of(folder, f"{2 * side} x {side} x {side}")).in_memory
    assert DecodedVolumes(cohort_of(folder, f"{side // 2} x {side} x {side // 3}")).in_memory
    assert not DecodedVolumes(cohort_of(folder, f"{side // 2} x {side} x {side // 3}"), processes=8).in_memory


def test_a_volume_that_was_changed_is_decoded_anew_and_what_is_nobody_s_goes(
    preprocessed: Callable[..., Path],
) -> None:
    folder = preprocessed()
    cohort = cohort_of(folder)
    check(DecodedVolumes(cohort, room=0), cohort)
    before = files(folder)
    path = cohort.samples[5].path
    volume = read_written(path)
    write_nifti(Volume(volume.data[..., ::-1] / 2, volume.affine), path)
    left = folder / "decoded" / ".x.npy.0-00000000.partial.npy"
    for mine in (left, folder / "decoded" / "notes.txt"):
        mine.touch()
    os.utime(left, (0, 0))
    check(DecodedVolumes(cohort, room=0), cohort)
    after = files(folder)
    assert len(after) == 13 and "notes.txt" in after and left.name not in after
    assert sum(after.get(name) == when for name, when in before.items()) == 11, "the others were made again"
    DecodedVolumes(cohort_of(folder))  # also where they fit into memory
    assert files(folder) == after
    shutil.rmtree(folder / "LGG")
    DecodedVolumes(cohort)
    assert len(files(folder)) == 9


def test_a_damaged_file_is_made_again_and_a_bad_volume_named(preprocessed: Callable[..., Path]) -> None:
    folder = preprocessed()
    cohort = cohort_of(folder)
    check(DecodedVolumes(cohort, room=0), cohort)
    for number, path in enumerate(sorted((folder / "decoded").iterdir())):
        path.write_bytes((b"", b"junk" * 99, path.read_bytes()[:-1])[number % 3])
    check(DecodedVolumes(cohort, room=0), cohort)
    check(DecodedVolumes(cohort, room=0), cohort)
    path = cohort.samples[2].path
    path.write_bytes(path.read_bytes()[:300])
    for room in (0, None):
        with pytest.raises(VolumeError, match=re.escape(path.name) + ".*missing or damaged"):
            DecodedVolumes(cohort, room=room).read(path)


def test_a_folder_that_cannot_be_written_to_costs_time_alone(
    preprocessed: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = preprocessed()
    cohort = cohort_of(folder)
    (folder / "decoded").write_text("not a folder")
    caplog.set_level("INFO")
    check(DecodedVolumes(cohort, room=0), cohort)
    assert [record.message for record in caplog.records if "are not kept there" in record.message]
    assert len(caplog.records) == 1


FILL = """
import sys
from pathlib import Path
from ssclf.io.decoded import DecodedVolumes
from ssclf.io.records.preprocessed import read_prepared_cohort
cohort = read_prepared_cohort(Path(sys.argv[1]))
print("begun", flush=True)
while True:
    for sample in cohort.samples:
        DecodedVolumes(cohort, room=0).read(sample.path)
        for file in (Path(sys.argv[1]) / "decoded").glob("*.npy"):
            file.unlink()
"""


def test_what_a_kill_leaves_is_swept_and_never_read(preprocessed: Callable[..., Path]) -> None:
    folder = preprocessed(per_class=2, shape=(40, 80, 70))
    cohort = read_prepared_cohort(folder)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for number in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", FILL, str(folder)], env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout and process.stdout.readline() == "begun\n"
            time.sleep(0.05 + 0.013 * number)
            process.send_signal(signal.SIGKILL)
        decoded = DecodedVolumes(cohort, room=0)
        assert not [name for name in files(folder) if name.startswith(".")]
        check(decoded, cohort)


def test_processes_share_what_is_in_memory(preprocessed: Callable[..., Path]) -> None:
    cohort = cohort_of(preprocessed())
    decoded = DecodedVolumes(cohort)
    child = os.fork()
    if not child:
        for sample in cohort.samples:
            decoded.read(sample.path)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert all(decoded.at_hand(sample.path) for sample in cohort.samples)
    check(decoded, cohort)
