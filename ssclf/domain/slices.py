"""Do slices make a volume? A pure judgement on what the headers of one DICOM series say about positions.

A converter asked to stack slices stacks them, whatever is missing; so the stack is worked out here first,
and the converter's answer has to agree with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.tolerance import angle_at_most, length_at_most
from ssclf.errors import VolumeError

#: Cosines of one series may differ by rounding only; 2e-3 are 0.1 degrees.
_SAME_DIRECTION = 2e-3
#: How far a slice may lie from where even steps would put it, as a share of the step.
_UNEVEN = 0.1
#: MR needs no tilt, and dcm2niix corrects that of CT only.
_MAX_TILT_DEGREES = 0.5
#: DICOM has the patient's left and back as positive (PS3.3 C.7.6.2.1.1), we have right and front.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Slice:
    """What the headers say about one slice; positions and directions are LPS+, in mm.

    Attributes:
        position: of the centre of the first pixel.
        directions: of growing column index, then of growing row index (ImageOrientationPatient).
        spacing: between rows, between columns (PixelSpacing).
        shape: rows, columns.
        number: InstanceNumber, 0 where unknown.
        echo, kind, time: what else tells images at one position apart.
        announced: how many images the acquisition had (ImagesInAcquisition), 0 where unknown.
    """

    position: tuple[float, float, float]
    directions: tuple[float, float, float, float, float, float]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    number: int = 0
    echo: str = ""
    kind: str = ""
    time: str = ""
    announced: int = 0


@dataclass(frozen=True)
class Stack:
    """The volume that slices should make.

    Attributes:
        affine: of (slice, row, column) to RAS+ mm.
        order: index of each slice in the sequence that came in, along the stack.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    order: tuple[int, ...]
    flags: tuple[str, ...] = ()


def stack_slices(slices: Sequence[Slice]) -> Stack:
    """Work out the grid on which the slices of one series lie.

    Raises:
        VolumeError: they make no single volume: too few, mixed, doubled, missing or uneven slices.
    """
    if len(slices) < 2:
        raise VolumeError("expected the slices of a volume, found a single one.")
    if len({piece.shape for piece in slices}) > 1:
        raise VolumeError("expected slices of one size, found several; the series mixes images.")
    directions = np.array([piece.directions for piece in slices])
    if np.abs(directions - directions[0]).max() > _SAME_DIRECTION:
        raise VolumeError(
            "expected parallel slices, found several directions; the series is a localiser or holds several stacks."
        )
    sizes = np.array([piece.spacing for piece in slices])
    if np.abs(sizes - sizes[0]).max() > 1e-3 * sizes[0].min():
        raise VolumeError("expected one pixel size, found several; the series mixes images.")
    along_row, along_column = directions[0, :3], directions[0, 3:]
    normal = np.cross(along_row, along_column)
    if not (np.abs([along_row @ along_row - 1, along_column @ along_column - 1]) < 0.01).all() or not (
        abs(along_row @ along_column) < 0.01
    ):
        raise VolumeError("the slices' directions are no unit vectors at a right angle.")
    positions = np.array([piece.position for piece in slices])
    depths = positions @ normal
    order = np.argsort(depths, kind="stable")
    steps = np.diff(depths[order])
    _check_single(slices, steps)
    step = float(np.median(steps))
    _check_steps(steps, step)
    positions = positions[order]
    mean_step = (positions[-1] - positions[0]) / (len(slices) - 1)
    expected = positions[0] + np.arange(len(slices))[:, None] * mean_step
    if not length_at_most(np.abs(positions - expected), max(_UNEVEN * step, 0.05)).all():
        raise VolumeError("expected slices stacked along one line, found them shifted against each other.")
    tilt = float(np.degrees(np.arccos(min(mean_step @ normal / np.linalg.norm(mean_step), 1.0))))
    if not angle_at_most(tilt, _MAX_TILT_DEGREES):
        raise VolumeError(
            f"expected slices stacked at a right angle, found a tilt of {tilt:.1f} degrees (a tilted gantry, or "
            "a reformatted series); reformat it onto a rectangular grid first."
        )
    affine = np.eye(4)
    affine[:3, 0] = mean_step
    affine[:3, 1] = along_column * sizes[0, 0]
    affine[:3, 2] = along_row * sizes[0, 1]
    affine[:3, 3] = positions[0]
    flags = ("incomplete_series",) if _may_lack_slices(slices) else ()
    shape = (len(slices), *slices[0].shape)
    return Stack(_LPS_TO_RAS @ affine, shape, tuple(int(index) for index in order), flags)


def _check_single(slices: Sequence[Slice], steps: NDArray[np.float64]) -> None:
    """One image per position: echoes, image types or time points in one series are not for us to choose from."""
    largest = float(steps.max())
    same = int((steps < max(0.01, 0.02 * largest)).sum())
    kinds = {piece.kind for piece in slices}
    if not same and len(kinds) == 1:
        return
    for values, noun in (
        (kinds, "image types"),
        ({piece.echo for piece in slices}, "echoes"),
        ({piece.time for piece in slices}, "time points"),
    ):
        if len(values) > 1 and len(slices) >= 2 * len(values):
            raise VolumeError(
                f"expected one volume, found a series of {len(values)} {noun}; split it and pass one of them."
            )
    raise VolumeError(
        f"expected one slice at each position, found {same} of {len(slices)} slices where another one lies."
    )


def _check_steps(steps: NDArray[np.float64], step: float) -> None:
    ratios = steps / step
    if length_at_most(np.abs(ratios - 1), _UNEVEN).all():
        return
    whole = np.round(ratios)
    if length_at_most(np.abs(ratios / whole.clip(1) - 1), _UNEVEN).all():
        missing = int((whole - 1).sum())
        raise VolumeError(
            f"expected evenly spaced slices, found gaps: {missing} slice{'s' if missing > 1 else ''} missing; "
            "fetch the whole series."
        )
    raise VolumeError(
        f"expected evenly spaced slices, found distances from {steps.min():.3g} to {steps.max():.3g} mm."
    )


def _may_lack_slices(slices: Sequence[Slice]) -> bool:
    """Whether numbering hints at slices lost at an end, or every second one, which positions cannot show."""
    if max(piece.announced for piece in slices) > len(slices):
        return True
    numbers = Counter(piece.number for piece in slices)
    if 0 in numbers or max(numbers.values()) > 1:
        return False
    return max(numbers) - min(numbers) >= len(slices) or min(numbers) > 1
