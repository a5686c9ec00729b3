"""What a script may rely on: `ssclf`'s public names are these, light to import, and typed."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ssclf
from ssclf.domain.preprocessing import PreparedVolume
from ssclf.io.models.bundle import Bundle
from ssclf.io.models.runtime import Classifier
from ssclf.io.records.results import ResultRow

PUBLIC = [
    "Bundle", "PreparedVolume", "ResultRow", "__version__", "open_bundle", "open_classifier", "predict", "preprocess",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert ssclf.__all__ == PUBLIC == dir(ssclf)
    for name in PUBLIC:
        assert getattr(ssclf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'iterate'"):
        _ = ssclf.iterate


def test_public_functions_say_what_they_take_and_give() -> None:
    for function in (ssclf.open_bundle, ssclf.open_classifier, ssclf.predict, ssclf.preprocess):
        signature = inspect.signature(function)
        assert signature.return_annotation not in (inspect.Signature.empty, "Any")
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
        assert function.__doc__ and "Raises:" in function.__doc__


def test_importing_ssclf_imports_nothing_else() -> None:
    code = "import sys, ssclf; assert not {'numpy', 'nibabel', 'onnxruntime', 'torch', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


if TYPE_CHECKING:  # what mypy sees: `__getattr__` alone would make every name Any
    from typing_extensions import assert_type

    bundle = assert_type(ssclf.open_bundle(Path()), Bundle)
    assert_type(ssclf.predict([Path()], [""]), Iterator[ResultRow])
    assert_type(ssclf.preprocess("scan.nii.gz", bundle.spec.preprocess), PreparedVolume)
    assert_type(ssclf.open_classifier(bundle), Classifier)
