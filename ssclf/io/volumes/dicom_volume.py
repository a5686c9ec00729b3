"""Read one DICOM series: our own check of its slices, dcm2niix for the pixels, and the two have to agree.

dcm2niix knows vendors and transfer syntaxes, but it stacks what it is given: with slices missing it warns,
ends with code 0 and writes a volume. Given one file, it converts the folder around it. So it sees a private
folder with the files of one series only, and its result counts only where it is a single volume on the grid
that the headers give, and its slices are compared with the pixels of their frames.
"""

from __future__ import annotations

import filecmp
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.multival import MultiValue

from ssclf.domain.slices import Slice, Stack, stack_slices
from ssclf.domain.volume import Volume
from ssclf.errors import MissingDependencyError, VolumeError
from ssclf.io.children import run_child
from ssclf.io.paths import is_file, real_path
from ssclf.io.volumes.dicom_archive import copy_member
from ssclf.io.volumes.dicom_files import MAX_ARCHIVE_BYTES, MAX_FILE_BYTES, open_archive
from ssclf.io.volumes.dicom_headers import get, quiet_pydicom, read_header
from ssclf.io.volumes.dicom_pixels import Frame, checked_voxels, must_be_assembled, own_voxels, rescaling
from ssclf.io.volumes.dicom_series import DicomSeries
from ssclf.io.volumes.dicom_uniform import make_uniform, parting_values
from ssclf.io.volumes.nifti import read_nifti
from ssclf.io.volumes.voxels import MAX_VOXELS

#: A series of 384 slices takes a second; a converter still busy after so long is stuck.
TIME_LIMIT_S = 300
#: Share of a voxel by which dcm2niix's steps may differ from the headers' own.
_ROUNDING = 0.05
#: What dcm2niix says when it mended, merged or dropped something. Its hints on BIDS fields are none of these.
_DOUBTS = {
    "duplicates removed": "dropped slices as duplicates",
    "slices skipped": "skipped slices",
    "slice positions repeated": "found positions with several slices",
    "interslice distance varies": "found uneven slice distances",
    "not equidistant": "found uneven slice distances",
    "gantry tilt": "found a tilted gantry",
    "check whether slices are flipped": "could not tell the direction of the slices",
    "unable to determine slice": "could not tell the position of the slices",
    "unable to determine spatial": "could not tell the orientation of the slices",
    "intensity scaling varies": "found intensities scaled in different ways",
    "slope/intercept varies": "found intensities scaled in different ways",
    "unable to decode": "could not decode the pixels",
    "unable to decompress": "could not decompress the pixels",
    "unsupported transfer syntax": "does not know the compression of the pixels",
    "rle header corrupted": "could not decompress the pixels",
    "corrupt file": "found a damaged file",
    "not large enough": "found a file that is cut short",
}
#: Signs that the scanner announced more slices than there are.
_LACKING = ("dicoms, number of slices", "dicom images may be missing", "missing images")
#: Transfer syntaxes whose pixels have a length that can be checked: little endian (2), big endian.
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})


def read_series(series: DicomSeries, work: Path) -> Volume:
    """Convert a series.

    Args:
        series: from `ssclf.io.volumes.dicom_series.find_series`.
        work: existing private folder; what is written there is removed again.

    Returns:
        data (1, D, H, W), affine (4, 4). Its geometry is sound as a stack of slices; whether it can show
        a brain is for `ssclf.domain.fitness` to judge.

    Raises:
        VolumeError: the files are no single complete volume, or dcm2niix cannot read them.
        MissingDependencyError: dcm2niix is not installed.
    """
    # Absolute: dcm2niix runs inside this folder.
    with tempfile.TemporaryDirectory(prefix="dicom-", dir=work.absolute()) as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        target.mkdir()
        files = gather(series, source)
        with quiet_pydicom():
            values: dict[Path, dict[str, str]] = {}
            found = list(_read_slices(series, files, values))
            stack = stack_slices([piece for _, piece in found])
            make_uniform(values)
            frames = _number_along_stack([found[index] for index in stack.order])
        if series.lost:
            stack = replace(stack, flags=(*stack.flags, "incomplete_series"))
        if math.prod(stack.shape) > MAX_VOXELS:
            raise VolumeError(f"expected at most {MAX_VOXELS:.1g} voxels, found {stack.shape}.")
        with quiet_pydicom():
            if must_be_assembled(frames):
                return Volume(own_voxels(frames)[None], stack.affine, stack.flags)
        converted, doubts = _convert(source, target, Path(folder))
        volume = _on_the_grid_of(stack, _read_converted(converted))
        with quiet_pydicom():
            volume = _with_the_voxels_of(frames, stack, volume)
    flags = dict.fromkeys((*volume.flags, *stack.flags, *doubts))
    return Volume(volume.data, volume.affine, tuple(flags))


def gather(series: DicomSeries, target: Path) -> list[Path]:
    """Link the files of a series, or extract them from their archive, under names of our own."""
    files = [target / f"{index:06d}.dcm" for index in range(len(series.files))]
    if not series.in_archive:
        for name, file in zip(series.files, files, strict=True):
            file.symlink_to(real_path(series.root / name))
        return files
    left = MAX_ARCHIVE_BYTES
    try:
        with open_archive(series.root) as archive:
            for entry, file in zip(series.entries, files, strict=True):
                with archive.open(entry) as member, file.open("wb") as out:
                    left -= copy_member(member, out, min(left, MAX_FILE_BYTES))
    except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError) as exc:
        raise VolumeError(f"the archive is damaged or has changed ({type(exc).__name__}).") from exc
    except OSError as exc:
        raise VolumeError(f"the archive cannot be read ({exc.strerror or exc}).") from exc
    return files


def _read_slices(
    series: DicomSeries, files: list[Path], values: dict[Path, dict[str, str]]
) -> Iterator[tuple[Frame, Slice]]:
    """The slices of a series, each with where its pixels are; a file that repeats another byte for byte is removed.

    Args:
        values: gets what of each file's header dcm2niix parts by.
    """
    instances: dict[str, Path] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                header = read_header(stream)
                rest = os.fstat(stream.fileno()).st_size - stream.tell()
            first = instances.setdefault(str(get(header, "SOPInstanceUID", file.name)), file)
            if first != file and filecmp.cmp(first, file, shallow=False):
                file.unlink()
                continue
        except OSError as exc:
            raise VolumeError(f"a file of the series cannot be read ({exc.strerror or exc}).") from exc
        if not series.holds(str(get(header, "SeriesInstanceUID", ""))):
            raise VolumeError("a file of the series is one of another series by now; run again.")
        values[file] = parting_values(header)
        for index, (piece, scaling) in enumerate(slices_of(header, rest)):
            yield Frame(file, index, *scaling), piece


def _number_along_stack(found: list[tuple[Frame, Slice]]) -> list[Frame]:
    """Where instance numbers do not follow the positions, put copies that do in the place of the links.

    dcm2niix sorts by them, for some vendors without looking at the positions (Siemens: "Slices skipped").

    Returns:
        the frames, where their pixels are now.
    """
    frames = [frame for frame, _ in found]
    steps = np.diff([piece.number for _, piece in found])
    if (steps > 0).all() or (steps < 0).all() or len({frame.file for frame in frames}) < len(found):
        return frames
    for number, frame in enumerate(frames, start=1):
        # A new name: writing to the link would write to the user's own file.
        copy = frame.file.with_suffix(f".{number}.dcm")
        try:
            header = pydicom.dcmread(frame.file, force=True)
            header.InstanceNumber = number
            header.save_as(copy)
        except Exception as exc:  # pydicom raises what its parts raise
            raise VolumeError(
                "the slices are numbered out of order, and a header is too damaged to mend that."
            ) from exc
        frame.file.unlink()
        frames[number - 1] = replace(frame, file=copy)
    return frames


def slices_of(header: pydicom.Dataset, rest: int) -> list[tuple[Slice, tuple[float, float]]]:
    """The slices in one file, of which `rest` bytes follow the header; each with its slope and intercept."""
    frames = _whole(header, "NumberOfFrames", 1)
    rows, columns = _whole(header, "Rows"), _whole(header, "Columns")
    if _whole(header, "SamplesPerPixel", 1) != 1 or get(header, "PhotometricInterpretation") != "MONOCHROME2":
        raise VolumeError("expected grey values that grow with the signal, found colours or inverted ones.")
    syntax = str(getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", "1.2.840.10008.1.2"))
    size = rows * columns * frames * (_whole(header, "BitsAllocated", 16) // 8)
    if not rows or not columns or size > MAX_FILE_BYTES or (syntax in _NATIVE and rest < size):
        raise VolumeError("a file of the series has fewer pixels than its header says; it is cut short.")
    groups = get(header, "PerFrameFunctionalGroupsSequence")
    if groups is None:
        if frames > 1:
            raise VolumeError("expected one position per frame, found a multi-frame file without positions.")
        return [_read_slice(header, [header], (rows, columns))]
    if len(groups) != frames:
        raise VolumeError(f"expected {frames} frames as the header says, found positions for {len(groups)}.")
    shared = get(header, "SharedFunctionalGroupsSequence", ())
    return [
        _read_slice(
            header, [*_flatten(group), *(d for s in shared for d in _flatten(s)), header], (rows, columns)
        )
        for group in groups
    ]


def _flatten(group: pydicom.Dataset) -> list[pydicom.Dataset]:
    """The data sets inside the functional groups of one frame."""
    try:
        return [
            item for element in group if element.VR == "SQ" and element.value for item in element.value[:1]
        ]
    except Exception as exc:  # lazily converted by pydicom, which raises whatever the conversion raises
        raise VolumeError("what the file says of one of its frames cannot be read; it is damaged.") from exc


def _read_slice(
    header: pydicom.Dataset, places: list[pydicom.Dataset], shape: tuple[int, int]
) -> tuple[Slice, tuple[float, float]]:
    """One slice and its scaling from the data sets that describe it, the nearest first."""

    def find(*keywords: str) -> Any:
        return next((v for p in places for k in keywords if (v := get(p, k)) is not None), None)

    image_type = [str(value).upper() for value in _several(find("FrameType", "ImageType"))]
    if "MOSAIC" in image_type:
        raise VolumeError("expected anatomical slices, found a mosaic of functional images.")
    position = _numbers(find("ImagePositionPatient"), 3)
    directions = _numbers(find("ImageOrientationPatient"), 6)
    spacing = _numbers(find("PixelSpacing"), 2)
    if position is None or directions is None or spacing is None or min(spacing) <= 0:
        raise VolumeError("a slice states no position, direction or pixel size.")
    piece = Slice(
        position=position,
        directions=directions,
        spacing=spacing,
        shape=shape,
        number=_whole(header, "InstanceNumber") if places == [header] else 0,
        echo=str(find("EffectiveEchoTime", "EchoTime") or ""),
        kind=_kind(image_type, find("ComplexImageComponent")),
        time=str(find("TemporalPositionIndex", "TemporalPositionIdentifier", "AcquisitionNumber") or ""),
        announced=_whole(header, "ImagesInAcquisition"),
    )
    return piece, rescaling(find("RescaleSlope"), find("RescaleIntercept"))


def _kind(image_type: list[str], component: Any) -> str:
    """Magnitude or one of its companions; vendors write it into the image type in their own ways."""
    words = {str(component or "").upper(), *image_type[2:]}
    for kind, signs in {
        "phase": {"P", "PHASE", "PHASE MAP", "P_FFE", "P_SE", "P_IR", "B0 MAP", "VELOCITY MAP"},
        "real": {"R", "REAL", "R_FFE", "R_SE", "R_IR"},
        "imaginary": {"I", "IMAGINARY", "I_FFE", "I_SE", "I_IR"},
    }.items():
        if words & signs:
            return kind
    return "magnitude"


def _convert(source: Path, target: Path, work: Path) -> tuple[Path, tuple[str, ...]]:
    """Run dcm2niix on a folder; the one volume that it wrote, and flags for what it said."""
    # No sidecar, no comment, a fixed name: nothing of the patient is written. Neither crop nor rotate.
    options = ["-b", "n", "-ba", "y", "-c", "", "-f", "volume", "-z", "n", "-x", "i", "-w", "2"]
    command = [_program(), *options, "-o", str(target), str(source)]
    try:
        # With its home elsewhere it does not take a user's ~/.dcm2nii.ini for its defaults.
        environment = {"HOME": str(work), "PATH": os.defpath, "LC_ALL": "C"}
        done = run_child(command, environment=environment, folder=work, timeout_s=TIME_LIMIT_S)
    except TimeoutError as exc:
        raise VolumeError(f"dcm2niix had not converted the series after {TIME_LIMIT_S} s.") from exc
    except OSError as exc:
        raise MissingDependencyError(
            f"dcm2niix cannot be started ({exc.strerror}); pip install dcm2niix."
        ) from exc
    if done.never_began:
        raise MissingDependencyError("dcm2niix cannot be started; pip install dcm2niix.")
    said = done.said.decode(errors="replace").lower()
    for sign, doubt in _DOUBTS.items():
        if sign in said:
            raise VolumeError(f"dcm2niix {doubt}, so its volume is not taken; export the series again.")
    written = sorted(target.iterdir())
    volumes = [file for file in written if file.suffix == ".nii"]
    if len(volumes) > 1:
        raise VolumeError(f"expected one volume, dcm2niix made {len(volumes)} of the series; split it first.")
    if not volumes or done.code != 0:
        raise VolumeError(
            f"dcm2niix could not convert the series (exit code {done.code}): its pixels are damaged, or "
            "compressed in a way that it does not know; decompress it with dcmdjpeg or gdcmconv first."
        )
    return volumes[0], ("incomplete_series",) if any(sign in said for sign in _LACKING) else ()


def _read_converted(path: Path) -> Volume:
    """What dcm2niix wrote; a reason says so instead of naming a file that nobody knows."""
    try:
        return read_nifti(path)
    except VolumeError as exc:
        reason = str(exc).removeprefix(f"{path.name}: ")
        raise VolumeError(f"dcm2niix made no single volume of the series: {reason}") from exc


def _program() -> str:
    """dcm2niix from its Python package, or from the PATH."""
    try:
        import dcm2niix
    except ImportError:
        found = shutil.which("dcm2niix")
    else:
        found = dcm2niix.bin if is_file(Path(dcm2niix.bin)) else shutil.which("dcm2niix")
    if not found:
        raise MissingDependencyError("DICOM needs dcm2niix, which is not installed; pip install dcm2niix.")
    return str(found)


def _on_the_grid_of(stack: Stack, volume: Volume) -> Volume:
    """The converted voxels with the headers' own affine, turned to the order of axes that dcm2niix chose.

    dcm2niix takes the slice distance from two slices; where positions are rounded, the mean over all is
    nearer to the truth. Beyond such rounding the two have to agree.

    Raises:
        VolumeError: they do not.
    """
    between: NDArray[np.float64] = np.linalg.inv(stack.affine) @ volume.affine
    turn = np.round(between[:3, :3])
    ones = np.abs(turn)
    last = np.array(stack.shape) - 1
    start = np.where(turn.sum(axis=1) < 0, last, 0)
    if not (
        (ones.sum(axis=0) == 1).all()
        and (ones.sum(axis=1) == 1).all()
        and tuple(ones @ volume.shape) == stack.shape
        and np.abs(between[:3, :3] - turn).max() < _ROUNDING
        and (np.abs(between[:3, 3] - start) < 0.5 + _ROUNDING * last).all()
    ):
        raise VolumeError("dcm2niix and the headers of the slices disagree about where the voxels lie.")
    exact = np.eye(4)
    exact[:3, :3], exact[:3, 3] = turn, start
    return Volume(volume.data, stack.affine @ exact, volume.flags)


def _with_the_voxels_of(frames: list[Frame], stack: Stack, volume: Volume) -> Volume:
    """The converted volume, or one put together from the frames where its voxels are not theirs.

    Args:
        frames: along the stack.
        volume: on the stack's grid, its axes turned as dcm2niix chose.

    Raises:
        VolumeError: see `checked_voxels`.
    """
    turn = np.round((np.linalg.inv(stack.affine) @ volume.affine)[:3, :3])
    order = [int(axis) for axis in np.abs(turn).argmax(axis=1)]  # of the volume's axes, as the stack has them
    flips = tuple(slice(None, None, -1 if turn[row, axis] < 0 else 1) for row, axis in enumerate(order))
    voxels = checked_voxels(volume.data[0].transpose(order)[flips], frames)
    if voxels is None:
        return volume
    return replace(volume, data=voxels[flips].transpose(np.argsort(order))[None])


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, MultiValue | list | tuple) else [] if value is None else [value]


def _numbers(value: Any, count: int) -> Any:
    """A tuple of finite floats, or None."""
    try:
        numbers = tuple(float(number) for number in _several(value))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None


def _whole(header: pydicom.Dataset, keyword: str, default: int = 0) -> int:
    try:
        return int(get(header, keyword, default))
    except (TypeError, ValueError, OverflowError):
        return default
