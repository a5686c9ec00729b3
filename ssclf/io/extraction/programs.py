"""Brain extraction by programs of the user's, started where they are on the PATH: bet (FSL), hd-bet and synthstrip."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from ssclf.domain.volume import Mask, Volume
from ssclf.errors import MissingDependencyError, VolumeError
from ssclf.io.children import run_child
from ssclf.io.volumes.nifti import read_nifti, write_nifti

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


def find_program(engine: str) -> Path | None:
    for name in PROGRAMS.get(engine, ()):
        found = shutil.which(name)
        if found:
            return Path(found)
    return None


def program_version(engine: str, program: Path) -> str:
    """From the file that FSL and FreeSurfer keep beside their programs; none of the three has a --version."""
    stamp = {"bet": "etc/fslversion", "synthstrip": "build-stamp.txt"}.get(engine)
    try:
        return (program.resolve().parents[1] / stamp).read_text().strip()[:80] if stamp else "unknown"
    except (OSError, ValueError):
        return "unknown"


def run_program(engine: str, head: Volume, work_dir: Path | None, threads: int, device: str) -> Mask:
    program = find_program(engine)
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
    """Run a program; it outlives neither this process, nor an interrupt, nor the time limit."""
    try:
        done = run_child(
            command, environment=environment, folder=None, timeout_s=TIME_LIMIT_S, errors_only=True
        )
    except TimeoutError as exc:
        raise VolumeError(f"{engine} did not end within {TIME_LIMIT_S} s; try the volume by hand.") from exc
    lines = done.said.decode(errors="replace").strip().splitlines()
    if done.never_began:
        raise MissingDependencyError(
            f"brain extraction with {engine}: {command[0]} cannot be started (exit code {done.code})."
        )
    if done.code != 0:
        reason = f": {lines[-1][:200]}" if lines else ""
        raise VolumeError(f"{engine} failed on this volume (exit code {done.code}{reason}).")
