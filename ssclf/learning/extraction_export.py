"""deepbet's two networks as ONNX files, so that a skull is removed without torch.

deepbet (Fisch et al., https://github.com/wwu-mmll/deepbet, MIT licence) ships TorchScript files inside its
PyPI package. They are read from there, not by importing deepbet, which would load pandas and LGPL packages.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssclf.errors import MissingDependencyError, ModelError, OutputError, ParityError
from ssclf.io.extraction.deepbet import BOX_MODEL, BOX_SIZE, LICENSE_FILE, MASK_MODEL, MASK_SIZE
from ssclf.io.files import whole_folder
from ssclf.io.models.onnx_session import open_session

#: Our file name, deepbet's, and the side of the cube that it takes.
NETWORKS = ((BOX_MODEL, "bbox_model.pt", BOX_SIZE), (MASK_MODEL, "model.pt", MASK_SIZE))

#: Raised when the conversion changes, so that a cache of the old one is not taken.
CONVERSION = 2

#: Largest difference in P(brain), and share of voxels that may change sides of 0.5: 0.0002 and 1e-6 were seen here.
PARITY_TOLERANCE = 0.005
PARITY_VOXELS = 1e-4

LICENSE = """\
brain-extraction-box.onnx and brain-extraction-mask.onnx are the networks of deepbet {version}
(https://github.com/wwu-mmll/deepbet), converted to ONNX by ssclf. Their licence is deepbet's:

MIT License

Copyright (c) 2023 Medical Machine Learning Lab - University of Münster

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def export_brain_extraction(out_dir: Path) -> list[Path]:
    """Convert the installed deepbet.

    Args:
        out_dir: existing folder that receives `brain-extraction-box.onnx`, `brain-extraction-mask.onnx`
            (9 MB each) and deepbet's licence.

    Returns:
        the three paths.

    Raises:
        MissingDependencyError: deepbet is not installed.
        ModelError: its networks are not the ones we know how to convert.
        ParityError: ONNX Runtime does not compute what torch computes.
    """
    version, weights = _installed_networks()
    paths = []
    for (name, _, side), source in zip(NETWORKS, weights, strict=True):
        paths.append(out_dir / name)
        _convert(source, paths[-1], version, side)
    paths.append(out_dir / LICENSE_FILE)
    paths[-1].write_text(LICENSE.format(version=version), encoding="utf-8")
    return paths


def cached_brain_extraction(cache_dir: Path | None = None) -> list[Path]:
    """The same files, converted once per deepbet version; torch is imported only for that.

    Args:
        cache_dir: where to keep them; default `$XDG_CACHE_HOME/ssclf` or `~/.cache/ssclf`.

    Raises:
        OutputError: the cache cannot be written.
        MissingDependencyError, ModelError, ParityError: as `export_brain_extraction`.
    """
    version, weights = _installed_networks()
    content = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssclf"
    folder = cache_dir / f"deepbet-{version}-{content[:12]}-{CONVERSION}"
    if not folder.is_dir():
        with contextlib.ExitStack() as stack:
            try:
                cache_dir.mkdir(parents=True, exist_ok=True)
                partial = stack.enter_context(whole_folder(folder))
            except OSError as exc:
                raise OutputError(
                    f"{cache_dir}: the networks for brain extraction cannot be kept here ({exc.strerror}); "
                    "let XDG_CACHE_HOME name a folder that can be written."
                ) from exc
            export_brain_extraction(partial)  # where another process is faster, its files are as good
    return [folder / BOX_MODEL, folder / MASK_MODEL, folder / LICENSE_FILE]


def _installed_networks() -> tuple[str, list[Path]]:
    """Version of the installed deepbet and its TorchScript files."""
    try:
        package = distribution("deepbet")
    except PackageNotFoundError as exc:
        raise MissingDependencyError(
            "brain extraction with deepbet: the package is not installed; pip install 'ssclf[train]', "
            "or choose another engine with --skull-strip."
        ) from exc
    paths = [Path(str(package.locate_file(f"data/models/{source}"))) for _, source, _ in NETWORKS]
    for path in paths:
        if not path.is_file():
            raise ModelError(
                f"{path.name}: expected this network inside deepbet {package.version}, found none; "
                "install deepbet 1.0."
            )
    return package.version, paths


def _convert(source: Path, target: Path, version: str, side: int) -> None:
    import onnx
    import torch

    from ssclf.learning.planar_extraction import PlanarExtraction

    with warnings.catch_warnings():
        # Newer torch calls TorchScript old; there is no other way to read what deepbet ships.
        warnings.simplefilter("ignore")
        try:
            # A script of tensor operations: unlike a pickle it cannot call into Python.
            network = torch.jit.load(str(source), map_location="cpu").eval()
        except RuntimeError as exc:
            raise ModelError(f"{source.name}: deepbet's network cannot be read ({exc}).") from exc
        torch.onnx.export(
            PlanarExtraction(network.state_dict()).eval(),
            (torch.zeros(1, 1, side, side, side),),
            str(target),
            dynamo=False,
            opset_version=17,
            input_names=["head"],
            output_names=["brain"],
        )
    model = onnx.load(target)
    _share_constants(model.graph)
    model.doc_string = LICENSE.format(version=version)
    properties = {"engine": "deepbet", "version": version, "license": "MIT", "conversion": str(CONVERSION)}
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    onnx.save(model, target)
    head = _head_phantom(side)
    with torch.inference_mode():
        expected = network(torch.from_numpy(head))[:, 1].numpy()
    _check_parity(target, head, expected)


def _share_constants(graph: Any) -> None:
    """Store each constant once, as a weight: the exporter writes one for each operator that takes it, and the time to
    load a network grows with the number of its operators."""
    kept: dict[bytes, str] = {}
    names = {}
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = node.attribute[0].t
        tensor.name = ""
        name = kept.setdefault(tensor.SerializeToString(), node.output[0])
        names[node.output[0]] = name
        if name == node.output[0]:
            tensor.name = name
            graph.initializer.append(tensor)
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _head_phantom(side: int) -> NDArray[np.float32]:
    """(1, 1, side, side, side): nested shells, scaled as a head is before the network sees it. Synthetic."""
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    x, y, z = axis[:, None, None], axis[:, None], axis
    radius = np.sqrt((x / 0.75) ** 2 + (y / 0.95) ** 2 + (z / 0.85) ** 2)
    tissue = np.select([radius < 0.7, radius < 0.8, radius < 0.9, radius < 1], [0.8, 0.5, 0.1, 1.0], 0.0)
    head = tissue * (1 + 0.1 * np.sin(25 * x) * np.sin(20 * y) * np.sin(22 * z))
    head = 0.226 * (head - head.mean()) / head.std() + 0.449
    return head[None, None].astype(np.float32)


def _check_parity(path: Path, head: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    found = open_session(path, ["CPUExecutionProvider"], 0).run(None, {"head": head})[0][:, 0]
    difference = float(np.abs(found - expected).max())
    disagreeing = float(np.mean((found > 0.5) != (expected > 0.5)))
    if not (difference <= PARITY_TOLERANCE and disagreeing <= PARITY_VOXELS):
        raise ParityError(
            f"{path.name}: expected probabilities within {PARITY_TOLERANCE} of torch's, found one "
            f"{difference:.3g} away and {disagreeing:.2%} of the voxels on the other side of 0.5; "
            "please report the versions of torch, onnx and onnxruntime."
        )
