"""deepbet on ONNX Runtime, with numpy alone around it: the same code for training and prediction.

Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks", Computers in
Biology and Medicine, 2024. Pre- and post-processing follow deepbet 1.0.2, whose defaults (threshold 0.5, no dilation)
are kept: on ten IXI heads they give a Dice of 0.981, at least 0.975.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf.domain.intensity import check_finite
from ssclf.domain.masks import fill_holes, largest_component
from ssclf.domain.volume import Array, Mask
from ssclf.errors import ModelError, VolumeError
from ssclf.io.extraction.owner import OwnedNetworks, OwnerAddress
from ssclf.io.models.onnx_session import open_session

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


class BrainExtractor:
    """deepbet on ONNX Runtime.

    Cheap to make and to send to a worker process: the networks are loaded at the first volume. A volume takes
    about 0.5 GB of memory while it runs, whatever its size.
    """

    def __init__(
        self, models: Sequence[Path], *, threads: int = 1, owner: OwnerAddress | None = None
    ) -> None:
        """Args:
            models: paths that include `brain-extraction-box.onnx` and `brain-extraction-mask.onnx`, as in a
                bundle's folder.
            threads: cores that one volume may use.
            owner: the process that runs the networks; where it cannot, and without one, this process does.

        Raises:
            ModelError: one of the two is not among them.
        """
        self.models = tuple(models)
        self.threads = threads
        self.owner = owner
        self._owned = OwnedNetworks(owner) if owner else None
        self._sessions: dict[str, Any] = {}
        self._paths = {path.name: path for path in self.models}
        for name in (BOX_MODEL, MASK_MODEL):
            if name not in self._paths or not self._paths[name].is_file():
                raise ModelError(
                    f"{name}: expected it beside the model, found none, so deepbet cannot run; "
                    "export the model again, or choose another engine with --skull-strip."
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(BrainExtractor, threads=self.threads, owner=self.owner), (self.models,)

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            # A worker shall not sit on the best part of a gigabyte between two heads.
            self._sessions[name] = open_session(
                self._paths[name], ["CPUExecutionProvider"], self.threads, keep_memory=False
            )
        return self._sessions[name]

    def _infer(self, name: str, head: NDArray[np.float32]) -> NDArray[np.float32]:
        """P(brain) on a cube (S, S, S), good until the next call; what another process may answer, as nothing else
        here."""
        found = self._owned.ask(name, head) if self._owned else None
        if found is None:
            (probability,) = self._session(name).run(None, {"head": head[None, None]})
            found = np.asarray(probability[0, 0], np.float32)
        return found

    @property
    def version(self) -> str:
        """Of the deepbet that the networks come from."""
        return str(self._session(BOX_MODEL).get_modelmeta().custom_metadata_map.get("version", "unknown"))

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
        small = _sample(head, BOX_SIZE)
        whole = _take(small, (BOX_SIZE,) * 3)
        low, high = (float(value) for value in np.quantile(whole, PERCENTILES))
        if not 0 < high - low < float(np.finfo(np.float32).max):
            raise VolumeError(
                f"expected a head, found intensities of {low:g} to {high:g} in 99 % of the volume: "
                "it is empty or constant; check the file in a viewer."
            )
        coarse = _run(partial(self._infer, BOX_MODEL), small, BOX_SIZE, low, high) > THRESHOLD
        box = _brain_box(largest_component(coarse), head.shape)
        if box is None:
            return mask
        sample = _sample(head[box], MASK_SIZE)
        brain = _run(partial(self._infer, MASK_MODEL), sample, MASK_SIZE, low, high)
        mask[box] = _take(brain, mask[box].shape) > THRESHOLD
        return fill_holes(largest_component(mask))


def _nearest(old: Sequence[int], new: Sequence[int]) -> list[NDArray[np.intp]]:
    """For each axis the old index nearest to the middle of each new voxel (torch: mode="nearest-exact")."""
    indices = []
    for have, want in zip(old, new, strict=True):
        middle = (np.arange(want, dtype=np.float32) + np.float32(0.5)) * np.float32(have / want)
        indices.append(np.minimum(middle.astype(np.intp), have - 1))
    return indices


def _take(data: Array, shape: Sequence[int]) -> Array:
    """The nearest voxels on a grid of another shape; first along the axes on which there are fewer of them."""
    indices = _nearest(data.shape, shape)
    for axis in sorted(range(3), key=lambda axis: shape[axis] / data.shape[axis]):
        if shape[axis] != data.shape[axis]:
            data = data.take(indices[axis], axis)
    return data


def _sample(data: Array, side: int) -> NDArray[np.float32]:
    """What a cube of that side shows of a volume: no axis is longer, and shorter ones are not filled up yet."""
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        sample = np.array(_take(data, [min(length, side) for length in data.shape]), np.float32, order="C")
    check_finite(sample)
    return sample


def _run(
    infer: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    head: NDArray[np.float32],
    side: int,
    low: float,
    high: float,
) -> NDArray[np.float32]:
    """Normalise (in place) as deepbet does, and return where the network sees brain: P(brain) on a cube.

    Args:
        infer: the network, from a normalised cube (side, side, side).
        head: as from `_sample`; what is computed of it counts each voxel as often as the cube shows it, which is
            much less work than on the cube.
    """
    shape = (side,) * 3
    np.clip(head, low, high, out=head)
    head -= np.float32(low)
    head /= np.float32(high - low)
    counts = [
        np.bincount(index, minlength=n)
        for index, n in zip(_nearest(head.shape, shape), head.shape, strict=True)
    ]
    mean = np.float32(_total(head, counts) / side**3)
    head -= mean
    deviation = np.sqrt(_total(head * head, counts) / (side**3 - 1))
    if deviation > 0:
        head *= np.float32(DEVIATION / deviation)
        head += np.float32(MEAN)
    else:
        head += mean
    return infer(np.ascontiguousarray(_take(head, shape)))


def _total(head: NDArray[np.float32], counts: Sequence[NDArray[np.intp]]) -> float:
    """The sum over the cube: each voxel as often as its row, column and slice are repeated there."""
    rows = np.einsum(
        "abc,c->ab", head, counts[2].astype(np.float32)
    )  # no matrix product: those start threads
    return float(np.einsum("a,b,ab->", counts[0], counts[1], rows.astype(np.float64)))


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
