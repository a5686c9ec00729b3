"""The engines side by side on one volume of BraTS size at 2 mm, weights random, in one run.

    python scripts/bench_engines.py [--models mc3,r2plus1d,r3d] [--shape 77,120,120] [--rounds 7] [--threads 2]

ONNX Runtime with 2-D convolutions alone (as exported), with the network's own 3-D ones, and eager PyTorch. Every
round runs each once, in turn; ratios are taken round by round. A run that others disturbed is repeated.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_predict import undisturbed

from ssclf.io.models.onnx_session import open_session
from ssclf.learning.exporting import export_onnx
from ssclf.learning.networks import build_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mc3,r2plus1d,r3d")
    parser.add_argument("--shape", default="77,120,120", help="D,H,W")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shape = [int(word) for word in arguments.shape.split(",")]
    volume = np.random.default_rng(0).random((1, 1, *shape), np.float32)
    for model in arguments.models.split(","):
        torch.manual_seed(0)
        network = build_network(model, channels=1, classes=3).eval()
        engines: dict[str, Callable[[], np.ndarray]] = {"PyTorch": partial(in_pytorch, network, volume)}
        for name, planar in (("ONNX 2-D", True), ("ONNX 3-D", False)):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                export_onnx(network, 1, path, {}, planar=planar)
                session = open_session(path, ["CPUExecutionProvider"], arguments.threads)
            engines[name] = partial(in_onnx, session, volume)
        expected = engines["PyTorch"]()
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(arguments.rounds):
            for name, run in engines.items():

                def timed(run: Callable[[], np.ndarray] = run) -> tuple[float, np.ndarray]:
                    begin = time.perf_counter()
                    found = run()
                    return time.perf_counter() - begin, found

                own_time, found = undisturbed(timed)
                seconds[name].append(own_time)
                assert np.abs(found - expected).max() < 1e-3
        print(f"{model}, {'x'.join(map(str, shape))}, {arguments.threads} threads")
        for name, own in seconds.items():
            ratios = [theirs / ours for theirs, ours in zip(own, seconds["ONNX 2-D"], strict=True)]
            print(
                f"  {name:9} {statistics.median(own):6.2f} s ({min(own):.2f} to {max(own):.2f}), "
                f"{statistics.median(ratios):5.2f} x the time of ONNX 2-D"
            )


def in_onnx(session: Any, volume: np.ndarray) -> np.ndarray:
    logits: np.ndarray = session.run(["logits"], {"volume": volume})[0]
    return logits


def in_pytorch(network: torch.nn.Module, volume: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(volume)).numpy()


if __name__ == "__main__":
    main()
