"""Torchvision's video models, also where torchvision's compiled operators are missing.

A torchvision built for CUDA cannot load its compiled operators beside a CPU-only torch. It then registers
shape rules for two operators that were never declared, and importing it fails, although the video models use
no operator of torchvision at all. Declaring the two is enough. Import the models from here, never from
torchvision.
"""

from __future__ import annotations

import importlib
import sys

import torch

_VIDEO_MODELS = "torchvision.models.video"

try:
    # First as it is: declaring before a working torchvision has loaded would clash with its own declarations.
    video_models = importlib.import_module(_VIDEO_MODELS)
except RuntimeError as exc:
    if "torchvision::nms" not in str(exc):
        raise
    for _name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[_name]  # half imported
    # Bound to a name of this module because a declaration ends with its Library object.
    _operators = torch.library.Library("torchvision", "FRAGMENT")
    for _operator in ("nms", "qnms"):
        _operators.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    video_models = importlib.import_module(_VIDEO_MODELS)
