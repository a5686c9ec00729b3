"""Random transforms of training volumes, on the device that trains; what they are is drawn in `domain/augmentation`.

TorchIO is what they are like, and does what they do not: artefacts of k-space.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssclf.domain.augmentation import Transform, bend_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TorchIO's own dependencies warn on import
    import torchio as tio

_ARTEFACTS = {"motion": tio.RandomMotion, "spike": tio.RandomSpike, "ghosting": tio.RandomGhosting}
#: Voxels that one thread of a processor samples at once: their coordinates stay in its cache.
_AT_ONCE = 1 << 18
#: A line for each array axis, along which a coordinate grows; the three are added up.
_Lines = list[Tensor]


@torch.no_grad()
def move_batch(volumes: Tensor, transforms: Sequence[Transform | None]) -> Tensor:
    """Transform the volumes of a batch, each on its own grid: what becomes of one does not depend on the others.

    Args:
        volumes: (N, C, D, H, W) in [0, 1], on any device, each in the middle of background as large as the largest.
        transforms: of each; None leaves it as it is.
    """
    if all(transform is None for transform in transforms):
        return volumes
    result = volumes.clone()
    for number, transform in enumerate(transforms):
        if transform is not None:
            place = in_the_middle((len(volumes[number]), *transform.shape), volumes[number].shape)
            result[number][place] = move(volumes[number][place], transform)
    return result


def in_the_middle(small: Sequence[int], large: Sequence[int]) -> tuple[slice, ...]:
    """Where a volume lies in one that is larger."""
    starts = [(b - a) // 2 for a, b in zip(small, large, strict=True)]
    return tuple(slice(start, start + a) for start, a in zip(starts, small, strict=True))


@torch.no_grad()
def move(volume: Tensor, transform: Transform) -> Tensor:
    """All of a transform but its artefacts.

    Args:
        volume: (C, D, H, W) float32 in [0, 1] with background 0; the result is the same kind.
    """
    moved = volume
    mask = (volume > 0).any(0, keepdim=True).float() if transform.masked else volume[:0]
    if transform.matrix is not None:
        moved, mask = _sample(moved, mask, transform.matrix)
    elif transform.mirrored is not None:
        moved, mask = moved.flip(1 + transform.mirrored), mask.flip(1 + transform.mirrored)
    if transform.bend is not None:
        moved, mask = _sample(moved, mask, np.eye(3, 4), transform.bend)
    return moved * mask if transform.masked else moved


def add_artefacts(
    data: NDArray[np.float32], affine: NDArray[np.float64], transform: Transform
) -> NDArray[np.float32]:
    """Do the artefacts of a transform to a volume that was moved; background stays background, though they fill it.

    Args:
        data: (C, D, H, W) in [0, 1] with background 0; the result is the same kind.
        affine: from (d, h, w) to RAS+ mm.
    """
    # TorchIO's order is (C, W, H, D)
    reversed_axes = torch.from_numpy(np.ascontiguousarray(data.transpose(0, 3, 2, 1)))
    subject: Any = tio.Subject(volume=tio.ScalarImage(tensor=reversed_axes, affine=affine[:, [2, 1, 0, 3]]))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(transform.seed)
        for name in transform.artefacts:
            subject = _ARTEFACTS[name]()(subject)
    result = np.clip(subject["volume"].numpy().transpose(0, 3, 2, 1), 0, 1)
    return np.ascontiguousarray(result * np.any(data > 0, axis=0), np.float32)


def _lines(row: NDArray[np.float64], shape: Sequence[int], length: int) -> _Lines:
    """What a coordinate is made of, from -1 to 1 over all voxels of its axis.

    Args:
        row: its row of a matrix from voxel to voxel.
        length: of its axis.
    """
    parts = [factor * np.arange(size) for factor, size in zip(row[:3], shape, strict=True)]
    parts[0] += row[3] + 0.5
    return [
        torch.from_numpy(part.astype(np.float32))
        for part in (parts[0] * 2 / length - 1, parts[1] * 2 / length, parts[2] * 2 / length)
    ]


def _sample(
    volume: Tensor, mask: Tensor, matrix: NDArray[np.float64], bend: NDArray[np.float64] | None = None
) -> tuple[Tensor, Tensor]:
    """Values of a volume at other places, linearly between voxels, and of its mask at the nearest.

    As ITK has it: the outermost voxels reach half a voxel further. What lies beyond is 0, and where a volume is bent
    the least of each channel.

    Args:
        matrix, bend: see `Transform`.
    """
    device, shape = volume.device, volume.shape[1:]
    places = [
        [line.to(device) for line in _lines(row, shape, length)]
        for row, length in zip(matrix, shape, strict=True)
    ]
    waves = None if bend is None else _waves(bend, shape, device)
    unknown, mask_unknown = (
        values.new_zeros(len(values)) if bend is None else values.amin((1, 2, 3)) for values in (volume, mask)
    )
    result, moved_mask = torch.empty_like(volume), torch.empty_like(mask)
    step = _slices_at_once(shape, device)
    for start in range(0, shape[0], step):
        part = slice(start, start + step)
        coordinates = _coordinates(places, waves, part)
        beyond = (coordinates.abs() > 1).any(-1)
        for source, target, value, mode in (
            (volume, result, unknown, "bilinear"),
            (mask, moved_mask, mask_unknown, "nearest"),
        ):
            if len(source):
                found = _grid_sample(source, coordinates, mode)
                target[:, part] = torch.where(beyond, value.view(-1, 1, 1, 1), found)
    return result.clamp_(0, 1), moved_mask


def _slices_at_once(shape: Sequence[int], device: torch.device) -> int:
    if device.type != "cpu":
        return shape[0]
    return max(_AT_ONCE // (shape[1] * shape[2]), 1) * torch.get_num_threads()


def _coordinates(places: list[_Lines], waves: list[tuple[Tensor, Tensor]] | None, part: slice) -> Tensor:
    """(d, H, W, 3), in grid_sample's order, which is that of the array reversed.

    Sums of single products alone, so that neither threads nor the size of a part round otherwise.
    """
    (first, second, third) = places[0]
    result = torch.empty(len(first[part]), len(second), len(third), 3, device=first.device)
    for axis, (along_d, along_h, along_w) in enumerate(places):
        found = result[..., 2 - axis]
        torch.add(along_d[part][:, None, None] + along_h[:, None], along_w, out=found)
        if waves is not None:
            weights, planes = waves[axis]
            for weight, plane in zip(weights, planes, strict=True):
                found += weight[part][:, None, None] * plane
    return result


def _waves(
    bend: NDArray[np.float64], shape: Sequence[int], device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """For each coordinate, as it runs from -1 to 1, planes (3, H, W) and how much each counts along D (3, D)."""
    along_d, along_h, along_w = (bend_weights(length) for length in shape)
    planes = np.einsum("kabc,hb,wc->kahw", bend, along_h, along_w)
    factors = 2 / np.array(shape)
    return [
        (
            torch.from_numpy(along_d.T.astype(np.float32)).to(device),
            torch.from_numpy((plane * factor).astype(np.float32)).to(device),
        )
        for plane, factor in zip(planes, factors, strict=True)
    ]


def _grid_sample(source: Tensor, coordinates: Tensor, mode: str) -> Tensor:
    """(C, d, H, W); torch shares out a batch among its threads, so that slices become one."""
    threads = torch.get_num_threads() if source.device.type == "cpu" else 1
    slices = -(-len(coordinates) // threads)
    whole = len(coordinates) // slices
    shared, rest = coordinates[: whole * slices], coordinates[whole * slices :]
    found = [_one_call(source, shared.view(whole, slices, *shared.shape[1:]), mode)]
    if len(rest):
        found.append(_one_call(source, rest[None], mode))
    return torch.cat(found, 1) if len(rest) else found[0]


def _one_call(source: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(C, n d, H, W) of a grid (n, d, H, W, 3) over one volume."""
    volumes = source.expand(len(grid), *source.shape)
    found = F.grid_sample(volumes, grid, mode=mode, padding_mode="border", align_corners=False)
    return found.transpose(0, 1).flatten(1, 2)
