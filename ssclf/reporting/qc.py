"""`qc.html`: every preprocessed volume at a glance, so that what went wrong is seen before a network learns it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from ssclf.domain.flags import FLAGS, HARMLESS
from ssclf.domain.geometry import orientation, reorient
from ssclf.domain.preprocessing import PreparedVolume
from ssclf.domain.volume import Mask, Volume
from ssclf.io.discovery.scans import Case
from ssclf.io.preparation import PLAUSIBLE_BRAIN_ML
from ssclf.reporting.html import write_page
from ssclf.reporting.thumbnails import may_show_face, thumbnail

#: Brightest and darkest are cut to these percentiles of the brain.
WINDOW = (1.0, 99.0)
#: Columns of the page, in order: row key, title, whether it is a number.
COLUMNS = (
    ("subject", "subject", False),
    ("label", "class", False),
    ("source", "source", False),
    ("contrasts", "contrasts", False),
    ("brain_ml", "brain, ml", True),
    ("extraction", "skull removed by", False),
    ("original_spacing", "as stored", False),
    ("shape", "network input", False),
    ("flags", "flags", False),
    ("original", "file", False),
)


@dataclass(frozen=True)
class Failure:
    case: Case
    error: str


def draw_before_and_after(
    original: Volume, brain: Mask, prepared: PreparedVolume, *, show_heads: bool = False
) -> tuple[str, str]:
    """Slices through the middle of the brain with its edge: as it came in, and as the network sees it.

    Args:
        original: (C, D, H, W) as read; the first contrast is drawn.
        brain: (D, H, W) on the original's grid.
        prepared: what the network sees of it.
        show_heads: draw what lies outside the brain, too: faces are personal data.

    Returns:
        two JPEGs as data URIs, both empty where a face might be seen and `show_heads` is False.
    """
    if may_show_face(prepared) and not show_heads:
        return "", ""
    low, high = np.percentile(original.data[0][brain], WINDOW)
    scaled = (original.data[:1].astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-9))
    shown = np.clip(scaled, 1 / 255, 1)  # 0 is what thumbnails leave out
    if not show_heads:
        shown *= brain
    before = PreparedVolume(shown, original.affine, PLAUSIBLE_BRAIN_ML[0])
    after = replace(prepared, brain_ml=PLAUSIBLE_BRAIN_ML[0], flags=())
    edge = _mask_on_grid(Volume(brain[None], original.affine), Volume(prepared.data, prepared.affine))
    return thumbnail(before, outline=brain), thumbnail(after, outline=edge)


def write_qc(
    path: Path,
    rows: Sequence[Mapping[str, str]],
    pictures: Callable[[int], tuple[str, str]],
    failures: Sequence[Failure],
    *,
    settings: str,
    show_heads: bool,
    synthetic: bool,
) -> None:
    """Write the page.

    Args:
        rows: cells of the manifest, one mapping a volume; `drawn` is "" where it has no pictures.
        pictures: index of a row → what `draw_before_and_after` gave, asked for while the page is written.
        settings: one sentence for the head of the page.
        show_heads: whether pictures hold more than the brain.
        synthetic: whether the volumes were made by a program.

    Raises:
        OutputError: it cannot be written.
    """
    filters = [
        (key, title, sorted({value for row in rows for value in row[key].split(";") if value}))
        for key, title in (("label", "class"), ("source", "source"), ("flags", "flag"))
    ]
    write_page(
        "qc.html",
        path,
        count=len(rows),
        rows=({**row, "index": index} for index, row in enumerate(rows)),
        pictures=(uri for index in range(len(rows)) for uri in pictures(index)),
        failed=failures,
        groups=list(_groups(rows)),
        filters=filters,
        columns=COLUMNS,
        harmless=HARMLESS,
        meanings=FLAGS,
        settings=settings,
        show_heads=show_heads,
        synthetic=synthetic,
    )


def _groups(rows: Sequence[Mapping[str, str]]) -> Iterator[dict[str, object]]:
    for label, source in sorted({(row["label"], row["source"]) for row in rows}):
        group = [row for row in rows if (row["label"], row["source"]) == (label, source)]
        yield {
            "label": label,
            "source": source,
            "volumes": len(group),
            "subjects": len({row["subject"] for row in group}),
            "brain_ml": median(float(row["brain_ml"]) for row in group),
        }


def _mask_on_grid(mask: Volume, target: Volume) -> Mask:
    """A mask (1, D, H, W) at the voxel centres of a grid with parallel axes; False beyond its own grid."""
    turned = reorient(mask, orientation(target))
    start = np.linalg.solve(turned.affine, target.affine[:, 3])[:3]
    result = turned.data[0]
    for axis, (old, new) in enumerate(zip(turned.spacing, target.spacing, strict=True)):
        places = np.floor(start[axis] + np.arange(target.shape[axis]) * new / old + 0.5).astype(int)
        within = (places >= 0) & (places < result.shape[axis])
        result = np.take(result, places.clip(0, result.shape[axis] - 1), axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        result = result & within.reshape(shape)
    return result
