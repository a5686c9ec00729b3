"""What makes a bundle's folder a MONAI bundle too: `configs/`, beside the network in `models/model.ts`.

The configuration calls ssclf's own preprocessing, with the settings of the bundle it lies in: MONAI's transforms would
compute other numbers, and remove no skull.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from ssclf import __version__
from ssclf.domain.model_spec import ModelSpec
from ssclf.io.files import write_json

MONAI_MODEL = "models/model.ts"
#: The version that the tests run it with.
MONAI = "1.6.1"

_INFERENCE: dict[str, Any] = {
    "imports": ["$import json", "$import pathlib", "$import torch", "$import ssclf"],
    "bundle_root": ".",
    "scans": [],
    "output": "probabilities.json",
    "skull_strip": "auto",
    "device": "cpu",
    "bundle": "$ssclf.open_bundle(pathlib.Path(@bundle_root))",
    "spec": "$@bundle.spec",
    "network": f"$torch.jit.load(@bundle_root + '/{MONAI_MODEL}', map_location=@device).eval()",
    "preprocessing": {
        "_target_": "Lambdad",
        "keys": "image",
        "func": "$lambda scan, spec=@spec, strip=@skull_strip, models=@bundle.extraction: "
        "ssclf.preprocess(scan, spec.preprocess, skull_strip=strip, extraction=models).data",
    },
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': scan} for scan in @scans]",
        "transform": "@preprocessing",
    },
    # volumes differ in shape
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
    "inferer": {"_target_": "SimpleInferer"},
    # the network gives logits, map and features
    "postprocessing": "$lambda outputs, temperature=@spec.temperature: "
    "torch.softmax(outputs[0].double() / temperature, dim=1)",
    "predict": "$lambda batch, infer=@inferer, network=@network, device=@device, post=@postprocessing: "
    "post(infer(batch['image'].to(device), network))[0].tolist()",
    "probabilities": "$[dict(zip(@spec.class_names, row)) for row in map(@predict, @dataloader)]",
    "run": [
        "$pathlib.Path(@output).write_text(json.dumps([{'scan': str(scan), 'probabilities': row} "
        "for scan, row in zip(@scans, @probabilities)], indent=1))"
    ],
}


def write_monai_configs(folder: Path, spec: ModelSpec) -> None:
    """Write `configs/metadata.json` and `configs/inference.json`, and make the folder `models`.

    Source: MONAI bundle specification, https://docs.monai.io/en/stable/bundle.html.
    """
    for name in ("configs", "models"):
        (folder / name).mkdir()
    write_json(folder / "configs" / "metadata.json", _metadata(spec))
    write_json(folder / "configs" / "inference.json", _INFERENCE)


def _metadata(spec: ModelSpec) -> dict[str, Any]:
    array = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "dtype": "float32",
        "is_patch_data": False,
    }
    contrasts = dict(enumerate(spec.preprocess.contrasts))
    return {
        "version": "1.0.0",
        "changelog": {"1.0.0": "as exported"},
        "monai_version": MONAI,
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"ssclf": __version__},
        "name": spec.name,
        "task": "Classification of brain MR volumes",
        "description": f"{spec.architecture} exported by ssclf. Research use only, not a medical device; MODEL_CARD.md "
        "says what it was trained on.",
        "authors": "see MODEL_CARD.md",
        "copyright": "see MODEL_CARD.md",
        "intended_use": "Research use only.",
        "network_data_format": {
            "inputs": {
                "image": {
                    **array,
                    "num_channels": len(contrasts),
                    "spatial_shape": ["*", "*", "*"],
                    "value_range": [0, 1],
                    "channel_def": contrasts,
                }
            },
            "outputs": {
                "pred": {
                    "type": "probabilities",
                    "format": "classes",
                    "num_channels": len(spec.class_names),
                    "spatial_shape": [],
                    "dtype": "float64",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": dict(enumerate(spec.class_names)),
                }
            },
        },
    }
