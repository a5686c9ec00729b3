"""One scan step by step: preprocessing, network, calibrated probabilities. Research use only.

`ssclf.predict` does the same for whole folders; this is for those who want the arrays in between.
"""

import sys
from pathlib import Path

import numpy as np

import ssclf


def main(scan: str, bundle_path: str) -> None:
    bundle = ssclf.open_bundle(Path(bundle_path))  # checks every file against its checksum
    spec = bundle.spec
    prepared = ssclf.preprocess(scan, spec.preprocess, extraction=bundle.extraction)
    print(f"network input: {prepared.data.shape} (C, D, H, W), brain {prepared.brain_ml:.0f} ml")
    classifier = ssclf.open_classifier(bundle, device="cpu")
    logits = classifier.classify(prepared.data[None]).logits[0].astype(np.float64)
    scaled = np.exp((logits - logits.max()) / spec.temperature)
    for name, probability in zip(spec.class_names, scaled / scaled.sum(), strict=True):
        print(f"{name}: {probability:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
