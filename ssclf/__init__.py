"""ssclf: a spatiospatial classifier of brain MR volumes. Research use only, not a medical device.

From Python:

    import ssclf

    for row in ssclf.predict(["scans"], models=["exported/my-model"]):
        print(row.path, row.status, row.prediction, row.probabilities, row.error)
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`ssclf.predict`, imported when it is first used: `ssclf --help` needs none of it."""
    if name == "predict":
        from ssclf.workflows.predict import iterate

        return iterate
    raise AttributeError(f"module 'ssclf' has no attribute {name!r}")
