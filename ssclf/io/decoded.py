"""Preprocessed volumes, decoded once a training: kept in memory where all of them fit, else in files beside the cohort.

Both hold the stored float32, bit for bit. The files lie in `decoded/` of the cohort's folder, one a volume, and are
mapped into memory. A file's name tells of which file of the cohort it was made, as that was then, so that one which
was changed is decoded anew. What belongs to no volume of the cohort goes when a training begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import math
import mmap
import re
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.volume import Volume
from ssclf.io.files import sweep, whole_path
from ssclf.io.memory import free_memory
from ssclf.io.records.preprocessed import PreparedCohort, Sample, decoded_folder
from ssclf.io.volumes.nifti import read_written

#: Of the free memory: a step may take 0.6 of it (`workflows.recipe`), and batches are under way.
_SHARE = 0.25
#: Of a disk that stays free.
_KEPT = 0.05
#: Numbers of 32 bits before the voxels: four of a shape and sixteen of an affine, of 64 bits each.
_HEAD = 40
_NAME = re.compile(r"[0-9a-f]{32}\.npy")
log = logging.getLogger(__name__)


class DecodedVolumes:
    """The volumes of a cohort. Processes forked later share what is in memory, and add to it.

    Attributes:
        in_memory: whether all fit.
    """

    def __init__(self, cohort: PreparedCohort, *, room: int | None = None, processes: int = 1) -> None:
        """Read nothing yet.

        Args:
            room: bytes of memory to fill; None asks the machine.
            processes: that train on this machine and fill as much each.
        """
        if room is None:
            room = int(free_memory() * _SHARE) // processes
        samples = list({sample.path: sample for sample in cohort.samples}.values())
        self._memory, self._slots = _reserve(samples, len(cohort.preprocess.contrasts), room)
        self.in_memory = self._memory is not None
        self._files = _sweep_and_name(samples, cohort.folders)
        self._writes = not self.in_memory

    def read(self, path: Path) -> Volume:
        """A volume of the cohort, float32, which cannot be written to.

        Raises:
            VolumeError: the file is missing or damaged.
        """
        if self.at_hand(path):
            return _unpack(self._slots[path][1])
        file = self._files.get(path)
        if file and (found := _read_file(file)):
            return found
        volume = read_written(path)
        if self._memory is not None and path in self._slots:
            number, slot = self._slots[path]
            if len(slot) == _HEAD + volume.data.size:  # a manifest may say otherwise
                _pack(volume, slot)
                self._memory[number] = 1
        elif file and self._writes:
            self._writes = _write_file(file, volume)
        volume.data.flags.writeable = False
        return volume

    def at_hand(self, path: Path) -> bool:
        """Whether a volume is in memory."""
        return self._memory is not None and path in self._slots and self._memory[self._slots[path][0]] == 1


def manifest_shape(sample: Sample) -> tuple[int, int, int] | None:
    """(D, H, W) as the manifest says, None where it does not."""
    found = [int(number) for number in re.findall(r"\d+", sample.cells.get("shape", ""))]
    return (found[0], found[1], found[2]) if len(found) == 3 else None


def _reserve(
    samples: list[Sample], channels: int, room: int
) -> tuple[mmap.mmap | None, dict[Path, tuple[int, NDArray[np.float32]]]]:
    """Memory that is filled as volumes are read, and the number and place of each in it; none where not all fit.

    It begins with a byte for each volume, which is 1 once it is there.
    """
    shapes = [manifest_shape(sample) for sample in samples]
    counts = [_HEAD + channels * math.prod(shape) for shape in shapes if shape]
    starts = list(itertools.accumulate((4 * count for count in counts), initial=-(-len(samples) // 64) * 64))
    if len(counts) < len(samples) or starts[-1] > room:
        return None, {}
    try:
        memory = mmap.mmap(-1, max(starts[-1], 1))
    except (OSError, ValueError, OverflowError):
        return None, {}
    slots = {
        sample.path: (number, np.frombuffer(memory, np.float32, count, start))
        for number, (sample, count, start) in enumerate(zip(samples, counts, starts, strict=False))
    }
    return memory, slots


def _pack(volume: Volume, into: NDArray[np.float32]) -> None:
    """Shape, affine and voxels as one row of numbers; the first two in 64 bits."""
    into[:_HEAD].view(np.float64)[...] = (*volume.data.shape, *volume.affine.ravel())
    into[_HEAD:].reshape(volume.data.shape)[...] = volume.data


def _unpack(row: NDArray[np.float32]) -> Volume:
    head = np.array(row[:_HEAD]).view(np.float64)
    data = row[_HEAD:].reshape(head[:4].astype(int))
    data.flags.writeable = False
    return Volume(data, head[4:].reshape(4, 4))


def _sweep_and_name(samples: list[Sample], folders: tuple[Path, ...]) -> dict[Path, Path]:
    """The file of each volume, there or not; others go, and what a kill left half written."""
    files = {}
    for sample in samples:
        folder = next((folder for folder in folders if folder in sample.path.parents), None)
        if folder is None:
            continue
        with contextlib.suppress(OSError):  # who reads a volume that is gone is told
            found = sample.path.stat()
            made_of = (str(sample.path.relative_to(folder)), sample.voxels, found.st_size, found.st_mtime_ns)
            name = hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]
            files[sample.path] = decoded_folder(folder) / f"{name}.npy"
    wanted = set(files.values())
    for place in map(decoded_folder, folders):
        sweep(place)
        with contextlib.suppress(OSError):
            for file in place.iterdir():
                if _NAME.fullmatch(file.name) and file not in wanted:
                    file.unlink()
    return files


def _read_file(file: Path) -> Volume | None:
    """None where nothing was kept, or what was is damaged."""
    try:
        return _unpack(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None


def _write_file(file: Path, volume: Volume) -> bool:
    """Whether more may be kept: a disk stays usable for others."""
    row = np.empty(_HEAD + volume.data.size, np.float32)
    _pack(volume, row)
    try:
        file.parent.mkdir(exist_ok=True)
        disk = shutil.disk_usage(file.parent)
        if disk.free - row.nbytes < disk.total * _KEPT:
            raise OSError(f"{disk.free >> 20} MiB are free")
        with whole_path(file, ending=".npy") as partial:
            np.save(partial, row, allow_pickle=False)
    except OSError as exc:
        log.info("%s: decoded volumes are not kept there (%s)", file.parent, exc.strerror or exc)
        return False
    return True
