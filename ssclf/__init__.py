"""ssclf: a spatiospatial classifier of brain MR volumes. Research use only, not a medical device.

From Python:

    import ssclf

    for row in ssclf.predict(["scans"], models=["exported/my-model"]):
        print(row.path, row.status, row.prediction, row.probabilities, row.error)

What stands in `__all__` is the public API; everything else may change without notice. Settings (`PredictConfig`,
`PreprocessConfig`) live in `ssclf.config`, exceptions in `ssclf.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssclf.domain.preprocessing import PreparedVolume
    from ssclf.io.models.bundle import Bundle, open_bundle
    from ssclf.io.models.runtime import open_classifier
    from ssclf.io.preparation import preprocess_files as preprocess
    from ssclf.io.records.results import ResultRow
    from ssclf.workflows.predict import iterate as predict

__version__ = "0.1.0"
__all__ = [
    "Bundle",
    "PreparedVolume",
    "ResultRow",
    "__version__",
    "open_bundle",
    "open_classifier",
    "predict",
    "preprocess",
]

#: Imported when they are first used: `ssclf --help` needs none of them.
_HOMES = {
    "Bundle": ("ssclf.io.models.bundle", "Bundle"),
    "PreparedVolume": ("ssclf.domain.preprocessing", "PreparedVolume"),
    "ResultRow": ("ssclf.io.records.results", "ResultRow"),
    "open_bundle": ("ssclf.io.models.bundle", "open_bundle"),
    "open_classifier": ("ssclf.io.models.runtime", "open_classifier"),
    "predict": ("ssclf.workflows.predict", "iterate"),
    "preprocess": ("ssclf.io.preparation", "preprocess_files"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssclf' has no attribute {name!r}")
    module, own_name = _HOMES[name]
    return getattr(import_module(module), own_name)


def __dir__() -> list[str]:
    return __all__
