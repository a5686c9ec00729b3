"""Brain extraction engines behind one function: volume in, mask out.

`deepbet` runs here on ONNX Runtime, with numpy alone around it: the same code for training and prediction.
`bet` (FSL), `hd-bet` and `synthstrip` are programs of the user's, started where they are on the PATH.
Every engine gets the volume turned to RAS, and its mask is turned back: stored orientation changes nothing.

deepbet: Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural
Networks", Computers in Biology and Medicine, 2024. Pre- and post-processing follow deepbet 1.0.2, whose
defaults (threshold 0.5, no dilation) are kept: on ten IXI heads they give a Dice of 0.981, at least 0.975.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ssclf.config import check_choice
from ssclf.domain.geometry import orientation, reorient
from ssclf.domain.intensity import check_finite, foreground
from ssclf.domain.masks import fill_holes, largest_component
from ssclf.domain.volume import Array, Mask, Volume
from ssclf.errors import MissingDependencyError, ModelError, VolumeError
from ssclf.io.models.onnx_session import open_session
from ssclf.io.volumes.nifti import read_nifti, write_nifti

Engine = Literal["deepbet", "bet", "hd-bet", "synthstrip", "none"]

#: deepbet's networks as ssclf stores them, and the cubes they take: the head, then the brain's box.
BOX_MODEL = "brain-extraction-box.onnx"
MASK_MODEL = "brain-extraction-mask.onnx"
LICENSE_FILE = "brain-extraction-LICENSE.txt"
BOX_SIZE = 128
MASK_SIZE = 256

#: deepbet's constants: what counts as brain, the share of a slice that makes it part of the box, the box's
#: margin on either side, the percentiles of the head, and the range of ImageNet that its networks saw.
THRESHOLD = 0.5
SLICE_SHARE = 0.02
BOX_MARGIN = 0.1
PERCENTILES = (0.005, 0.995)
MEAN, DEVIATION = 0.449, 0.226

#: A program that has not answered by then is ended. HD-BET takes minutes on a CPU; none takes half an hour.
TIME_LIMIT_S = 1800

#: Names under which a program may be found.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "bet": ("bet",),
    "hd-bet": ("hd-bet",),
    "synthstrip": ("mri_synthstrip", "synthstrip"),
}
REMEDIES: dict[str, str] = {
    "deepbet": "it comes with an exported model; for preprocessing: pip install 'ssclf[train]'",
    "bet": "install FSL and put its bin folder on the PATH",
    "hd-bet": "pip install hd-bet (version 2) and run it once, so that it has its weights",
    "synthstrip": "install FreeSurfer (7.3 or later) and source its set-up",
}


@dataclass(frozen=True)
class EngineStatus:
    """What `ssclf doctor` says of an engine: `detail` tells where it was found, or why not and what to do."""

    name: Engine
    available: bool
    version: str
    detail: str


class BrainExtractor:
    """deepbet on ONNX Runtime.

    Cheap to make and to send to a worker process: the networks are loaded at the first volume. A volume takes
    about 0.6 GB of memory while it runs, whatever its size.
    """

    def __init__(self, models: Sequence[Path], *, threads: int = 1) -> None:
        """Args:
            models: paths that include `brain-extraction-box.onnx` and `brain-extraction-mask.onnx`, as in a
                bundle's folder.
            threads: cores that one volume may use.

        Raises:
            ModelError: one of the two is not among them.
        """
        self.models = tuple(models)
        self.threads = threads
        self._paths = {path.name: path for path in self.models}
        for name in (BOX_MODEL, MASK_MODEL):
            if name not in self._paths or not self._paths[name].is_file():
                raise ModelError(
                    f"{name}: expected it beside the model, found none, so deepbet cannot run; "
                    "export the model again, or choose another engine with --skull-strip."
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(BrainExtractor, threads=self.threads), (self.models,)

    @cached_property
    def _box_network(self) -> Any:
        return self._open(BOX_MODEL)

    @cached_property
    def _mask_network(self) -> Any:
        return self._open(MASK_MODEL)

    def _open(self, name: str) -> Any:
        # A worker shall not sit on the best part of a gigabyte between two heads.
        return open_session(self._paths[name], ["CPUExecutionProvider"], self.threads, keep_memory=False)

    @property
    def version(self) -> str:
        """Of the deepbet that the networks come from."""
        return str(self._box_network.get_modelmeta().custom_metadata_map.get("version", "unknown"))

    def extract(self, head: Array) -> Mask:
        """Find the brain.

        Args:
            head: axes towards right, anterior, superior; any size and real dtype.

        Returns:
            the mask, same shape: one piece without holes, or empty.

        Raises:
            VolumeError: not finite, or without contrast.
        """
        mask = np.zeros(head.shape, bool)
        whole = _sample(head, (BOX_SIZE,) * 3)
        low, high = (float(value) for value in np.quantile(whole, PERCENTILES))
        if not 0 < high - low < float(np.finfo(np.float32).max):
            raise VolumeError(
                f"expected a head, found intensities of {low:g} to {high:g} in 99 % of the volume: "
                "it is empty or constant; check the file in a viewer."
            )
        box = _brain_box(largest_component(_run(self._box_network, whole, low, high)), head.shape)
        if box is None:
            return mask
        cube = _sample(head[box], (MASK_SIZE,) * 3)
        brain = _run(self._mask_network, cube, low, high)
        mask[box] = brain[np.ix_(*_nearest(brain.shape, mask[box].shape))]
        return fill_holes(largest_component(mask))


def extract_brain(
    volume: Volume,
    engine: Engine,
    *,
    extractor: BrainExtractor | None = None,
    work_dir: Path | None = None,
    threads: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    channel: int = 0,
) -> Mask:
    """Find the brain in a head.

    Args:
        volume: (C, D, H, W), any orientation and real dtype.
        engine: "none" takes everything that differs from the background.
        extractor: for "deepbet".
        work_dir: existing private folder; a program gets the volume through a file in there, removed
            afterwards. Default: the system's folder for temporary files.
        threads: cores that a program may use, where it can be told.
        device: for "hd-bet" and "synthstrip".
        channel: the contrast to look at, best a T1.

    Returns:
        mask (D, H, W) on the volume's grid, never empty.

    Raises:
        VolumeError: no brain was found, or the program failed on this volume.
        MissingDependencyError: the program is not installed.
    """
    check_choice("skull-strip", engine, Engine)
    if engine == "none":
        return foreground(volume.data)
    contrast = Volume(volume.data[channel : channel + 1], volume.affine)
    if engine == "deepbet":
        if extractor is None:
            raise MissingDependencyError(f"brain extraction with deepbet: no networks; {REMEDIES[engine]}.")
        head = reorient(contrast, "RAS")
        mask = extractor.extract(head.data[0])
    else:
        head = reorient(contrast, "SAR")  # (i, j, k) in the file are then R, A, S
        mask = _run_program(engine, head, work_dir, threads, device)
    if not mask.any():
        raise VolumeError(
            f"expected a head, but {engine} found no brain; check the volume in a viewer, or choose "
            "another engine with --skull-strip (none if the skull is gone already)."
        )
    return reorient(Volume(mask[None], head.affine), orientation(volume)).data[0]


def available_engines(models: Sequence[Path] = ()) -> list[EngineStatus]:
    """Which engines this machine has.

    Args:
        models: deepbet's networks where a bundle or a cache has them; without, deepbet counts as available
            where it can be converted.
    """
    found = [_deepbet_status(models)]
    for name in get_args(Engine)[1:-1]:
        program = _find_program(name)
        if program is None:
            names = " or ".join(PROGRAMS[name])
            found.append(EngineStatus(name, False, "", f"no {names} on the PATH; {REMEDIES[name]}"))
        else:
            found.append(EngineStatus(name, True, _program_version(name, program), str(program)))
    found.append(EngineStatus("none", True, "", "takes volumes as they are"))
    return found


def _deepbet_status(models: Sequence[Path]) -> EngineStatus:
    try:
        if models:
            return EngineStatus("deepbet", True, BrainExtractor(models).version, "as ONNX networks")
        version = package_version("deepbet")
        return EngineStatus("deepbet", True, version, "installed; converted to ONNX at first use")
    except PackageNotFoundError:
        return EngineStatus("deepbet", False, "", REMEDIES["deepbet"])
    except (ModelError, MissingDependencyError) as exc:
        return EngineStatus("deepbet", False, "", str(exc))


def engine_version(engine: Engine, extractor: BrainExtractor | None = None) -> str:
    """What a run records of its engine; "unknown" where a program does not say."""
    if engine == "deepbet" and extractor is not None:
        return extractor.version
    program = _find_program(engine)
    return "unknown" if program is None else _program_version(engine, program)


def _nearest(old: Sequence[int], new: Sequence[int]) -> list[NDArray[np.intp]]:
    """For each axis the old index nearest to the middle of each new voxel (torch: mode="nearest-exact")."""
    indices = []
    for have, want in zip(old, new, strict=True):
        middle = (np.arange(want, dtype=np.float32) + np.float32(0.5)) * np.float32(have / want)
        indices.append(np.minimum(middle.astype(np.intp), have - 1))
    return indices


def _sample(data: Array, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        sample = np.asarray(data[np.ix_(*_nearest(data.shape, shape))], np.float32)
    check_finite(sample)
    return sample


def _run(network: Any, head: NDArray[np.float32], low: float, high: float) -> Mask:
    """Normalise (in place) as deepbet does, and return where the network sees brain."""
    np.clip(head, low, high, out=head)
    head -= np.float32(low)
    head /= np.float32(high - low)
    deviation = head.std(ddof=1)
    if deviation > 0:
        head -= head.mean()
        head *= np.float32(DEVIATION) / deviation
        head += np.float32(MEAN)
    (probability,) = network.run(None, {"head": head[None, None]})
    return np.asarray(probability[0, 0] > THRESHOLD)


def _brain_box(mask: Mask, shape: tuple[int, ...]) -> tuple[slice, slice, slice] | None:
    """Where to look closely: the box of the slices with enough brain, and a margin; None if there are none.

    Args:
        mask: brain on the coarse grid.
        shape: of the array that the box shall cut.
    """
    box = []
    for axis, length in enumerate(shape):
        share = mask.mean(axis=tuple(other for other in range(3) if other != axis))
        slices = np.flatnonzero(share > SLICE_SHARE)
        if slices.size == 0:
            return None
        first, stop = int(slices[0]), int(slices[-1]) + 1
        scale = length / mask.shape[axis]
        center = round(scale * (first + stop) / 2)
        size = round((1 + 2 * BOX_MARGIN) * scale * (stop - first))
        start = max(int(center - size / 2), 0)
        box.append(slice(start, max(min(int(center + size / 2), length), start + 1)))
    return box[0], box[1], box[2]


def _find_program(engine: str) -> Path | None:
    for name in PROGRAMS.get(engine, ()):
        found = shutil.which(name)
        if found:
            return Path(found)
    return None


def _program_version(engine: str, program: Path) -> str:
    """From the file that FSL and FreeSurfer keep beside their programs; none of the three has a --version."""
    stamp = {"bet": "etc/fslversion", "synthstrip": "build-stamp.txt"}.get(engine)
    try:
        return (program.resolve().parents[1] / stamp).read_text().strip()[:80] if stamp else "unknown"
    except (OSError, ValueError):
        return "unknown"


def _run_program(engine: str, head: Volume, work_dir: Path | None, threads: int, device: str) -> Mask:
    program = _find_program(engine)
    if program is None:
        raise MissingDependencyError(f"brain extraction with {engine}: not on the PATH; {REMEDIES[engine]}.")
    with tempfile.TemporaryDirectory(prefix="extraction-", dir=work_dir and work_dir.absolute()) as folder:
        source = Path(folder, "head.nii.gz")
        write_nifti(Volume(head.data.astype(np.float32, copy=False), head.affine), source)
        command, target = _command(engine, program, source, device)
        environment = {
            **os.environ,
            "FSLOUTPUTTYPE": "NIFTI_GZ",
            "OMP_NUM_THREADS": str(threads),
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
        }
        _call(engine, command, environment)
        if not target.is_file():
            raise VolumeError(f"{engine} ended without an error, but wrote no mask; try the volume by hand.")
        mask = read_nifti(target).data[0] > 0
    if mask.shape != head.shape:
        raise VolumeError(f"{engine}: expected a mask of shape {head.shape}, found {mask.shape}.")
    return mask


def _command(engine: str, program: Path, source: Path, device: str) -> tuple[list[str], Path]:
    """The program's arguments, and the file in which its mask appears."""
    start, out = [str(program)], source.with_name("brain")
    if engine == "bet":
        # -R moves the starting point up from the neck; the paper does not state its options (Sec. 2.5).
        return [*start, str(source), str(out), "-m", "-n", "-R"], source.with_name("brain_mask.nii.gz")
    if engine == "hd-bet":
        # Version 2. Without mirroring at test time, as its authors advise for a CPU.
        options = ["-device", device, "--disable_tta", "--save_bet_mask", "--no_bet_image"]
        command = [*start, "-i", str(source), "-o", f"{out}.nii.gz", *options]
        return command, source.with_name("brain_bet.nii.gz")
    gpu = ["-g"] if device == "cuda" else []
    return [*start, "-i", str(source), "-m", f"{out}.nii.gz", *gpu], source.with_name("brain.nii.gz")


def _call(engine: str, command: list[str], environment: dict[str, str]) -> None:
    """Run a program in a process group of its own; the group does not outlive an interrupt or the time limit."""
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as exc:
        raise MissingDependencyError(
            f"brain extraction with {engine}: {command[0]} cannot be started ({exc.strerror})."
        ) from exc
    with process:
        try:
            _, output = process.communicate(timeout=TIME_LIMIT_S)
        except BaseException as exc:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(exc, subprocess.TimeoutExpired):
                raise VolumeError(
                    f"{engine} did not end within {TIME_LIMIT_S} s; try the volume by hand."
                ) from exc
            raise
    if process.returncode != 0:
        lines = output.decode(errors="replace").strip().splitlines()
        reason = f": {lines[-1][:200]}" if lines else ""
        raise VolumeError(f"{engine} failed on this volume (exit code {process.returncode}{reason}).")
