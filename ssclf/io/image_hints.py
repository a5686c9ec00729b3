"""What to add to a message inside ssclf's image, where a path that is missing was most often not mounted."""

from __future__ import annotations

import os
from typing import Literal

#: Set by the Dockerfile to the image's variant: cpu, gpu or gpu-cuda13.
ENVIRONMENT = "SSCLF_IMAGE"

_HINTS = {
    "scans": "In a container only mounted folders can be seen: add -v /path/to/scans:/scans:ro and name /scans.",
    "out": "In a container only a mounted folder outlives the run: add -v /path/to/results:/out and give "
    "--out /out/results.csv.",
    "model": "Mount one with -v /path/to/exported/NAME:/model:ro, or put it into the image with "
    "scripts/build-image --model exported/NAME.",
    "user": "The container runs as user {uid}: start it as one who has the right, with "
    "--user $(id -u):$(id -g) (podman without root: --userns keep-id too).",
    "cuda": "The container needs --gpus all (podman: --device nvidia.com/gpu=all) and a host with NVIDIA's driver "
    "and container toolkit{variant}.",
}


def image_hint(about: Literal["scans", "out", "model", "user", "cuda"]) -> str:
    """A sentence with a space before it; empty outside the image."""
    image = os.environ.get(ENVIRONMENT)
    if not image:
        return ""
    variant = "; this is the cpu image, take the gpu one" if image == "cpu" else ""
    return " " + _HINTS[about].format(uid=os.getuid(), variant=variant)
