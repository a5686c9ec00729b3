"""Small pictures of brains for HTML pages: three slices, with a map or an outline over them.

Pictures show what is left after brain extraction, so no face; where that is not sure, there is no picture.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ssclf.domain import geometry
from ssclf.domain.preprocessing import PreparedVolume
from ssclf.domain.volume import Mask, Volume
from ssclf.io.preparation import PLAUSIBLE_BRAIN_ML

#: Okabe and Ito's orange and sky blue, which the colour-blind tell apart: for the class, against it.
FOR_COLOUR, AGAINST_COLOUR = (230, 159, 0), (86, 180, 233)
_OUTLINE_COLOUR = (0, 224, 160)
#: The strongest evidence of a volume has this opacity, unless it is weaker than `_FULL_LOGITS`.
_OPACITY = 0.65
_FULL_LOGITS = 1.0
_PIXEL_MM = 1.8
_MARGIN_MM = 4.0
#: Of a JPEG file; a third more as base64.
_MAX_BYTES = 8500


@dataclass(frozen=True)
class _Slice:
    """One plane, as radiologists hang it: front or top up, the right side of the body on the left."""

    image: Image.Image
    heat: Image.Image | None
    outline: Image.Image | None
    left: str
    right: str


def may_show_face(prepared: PreparedVolume) -> bool:
    """Whether what was taken for the brain may hold more of the head."""
    return "assumed_stripped" in prepared.flags or prepared.brain_ml > PLAUSIBLE_BRAIN_ML[1]


def thumbnail(
    prepared: PreparedVolume,
    heat: NDArray[np.float32] | None = None,
    *,
    outline: Mask | None = None,
    channel: int = 0,
) -> str:
    """An axial, a coronal and a sagittal slice side by side.

    Args:
        prepared: network input; what is not 0 in any channel is shown.
        heat: (D, H, W) in logits on the same grid, laid over in colour (`explanation.map_to_scan`); the slices
            then go through its highest value inside the brain, else through the middle of the brain.
        outline: (D, H, W) whose edge is drawn.
        channel: which contrast.

    Returns:
        a JPEG of at most about 12 kB as a data URI; empty where a face might be seen, or nothing.
    """
    brain = prepared.data.any(axis=0)
    if may_show_face(prepared) or not brain.any():
        return ""
    layers = [prepared.data[channel], brain, *(x for x in (heat, outline) if x is not None)]
    volume = geometry.reorient(Volume(np.stack(layers).astype(np.float32), prepared.affine), "SAR")
    margin = [int(_MARGIN_MM / mm) + 1 for mm in volume.spacing]
    box = geometry.mask_box(volume.data[1] > 0, (margin[0], margin[1], margin[2]))
    volume = geometry.crop(volume, box)
    inside = volume.data[1] > 0
    shown = volume.data[2] if heat is not None else None
    edge = volume.data[-1] if outline is not None else None
    if shown is None:
        at = tuple(int(n) // 2 for n in inside.shape)
    else:
        at = tuple(int(n) for n in np.unravel_index(np.where(inside, shown, -np.inf).argmax(), inside.shape))
    scale = max(float(np.abs(shown[inside]).max()), _FULL_LOGITS) if shown is not None else 1.0
    return _encode(_side_by_side([_cut(volume, shown, edge, axis, at[axis], scale) for axis in range(3)]))


def _cut(
    volume: Volume,
    heat: NDArray[np.float32] | None,
    outline: NDArray[np.float32] | None,
    axis: int,
    index: int,
    scale: float,
) -> _Slice:
    """The slice across one axis of a "SAR" volume, heat scaled to [-1, 1]."""
    spacing = [mm for a, mm in enumerate(volume.spacing) if a != axis]
    size = [
        max(round(n * mm / _PIXEL_MM), 1)
        for n, mm in zip(np.delete(volume.shape, axis), spacing, strict=True)
    ]

    def plane(data: NDArray[np.float32], kernel: Image.Resampling) -> Image.Image:
        # Rows grow to the head or the front, columns to the right or the front: both are turned round.
        flipped = np.moveaxis(data, axis, 0)[index, ::-1, ::-1]
        return Image.fromarray(np.ascontiguousarray(flipped, np.float32)).resize((size[1], size[0]), kernel)

    left, right = ("A", "P") if axis == 2 else ("R", "L")
    linear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    return _Slice(
        image=plane(volume.data[0], linear),
        heat=None if heat is None else plane(heat / scale, linear),
        outline=None if outline is None else plane(outline, nearest),
        left=left,
        right=right,
    )


def _side_by_side(slices: list[_Slice]) -> Image.Image:
    gap = 12
    canvas = Image.new(
        "RGB", (sum(s.image.width + gap for s in slices) - gap, max(s.image.height for s in slices))
    )
    draw = ImageDraw.Draw(canvas)
    x = 0
    for piece in slices:
        y = (canvas.height - piece.image.height) // 2
        canvas.paste(_coloured(piece), (x, y))
        draw.text((x + 1, 0), piece.left, fill="white")
        draw.text((x + piece.image.width - 7, 0), piece.right, fill="white")
        x += piece.image.width + gap
    return canvas


def _coloured(piece: _Slice) -> Image.Image:
    grey: NDArray[np.float32] = np.asarray(piece.image, np.float32)
    rgb = 255 * np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=2)
    if piece.heat is not None:
        values: NDArray[np.float32] = np.asarray(piece.heat, np.float32)
        heat = np.clip(values, -1, 1)[..., None]
        rgb += np.abs(heat) * _OPACITY * (np.where(heat > 0, FOR_COLOUR, AGAINST_COLOUR) - rgb)
    if piece.outline is not None:
        solid = np.pad(np.asarray(piece.outline) > 0, 1)
        core = solid[:-2, 1:-1] & solid[2:, 1:-1] & solid[1:-1, :-2] & solid[1:-1, 2:]
        rgb[solid[1:-1, 1:-1] & ~core] = _OUTLINE_COLOUR
    return Image.fromarray(rgb.round().astype(np.uint8))


def _encode(picture: Image.Image) -> str:
    for quality in (82, 70, 55, 40, 25):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= _MAX_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
