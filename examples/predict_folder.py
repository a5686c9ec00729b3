"""Classify every volume in a folder, from Python; prints a row each. Research use only."""

import sys

import ssclf


def main(scans: str, bundle: str) -> None:
    for row in ssclf.predict([scans], models=[bundle]):
        if row.status == "ok":
            print(f"{row.path}: {row.prediction} ({row.confidence:.3f}) {' '.join(row.flags)}")
        else:
            print(f"{row.path}: failed: {row.error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
