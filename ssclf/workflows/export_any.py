"""`ssclf export`: bundles of whatever kind of run is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ssclf.config import Device, ExportFormat, ExportPrecision
from ssclf.io.records.cv_run import is_cv_run
from ssclf.io.records.training_run import EpochRecord, newest_run
from ssclf.workflows.export import export_run
from ssclf.workflows.export_cv import CvExport, export_cv

#: Where bundles go whose place nobody has named.
EXPORTED = Path("exported")


def export_any(
    run: Path | None,
    out: Path | None,
    *,
    network: str | None = None,
    per_fold: bool = False,
    formats: Sequence[ExportFormat] = ("onnx", "torchscript"),
    precision: ExportPrecision = "fp32",
    brain_extraction: bool = True,
    replace: bool = False,
    data: Path | None = None,
    weights: Path | None = None,
    device: Device = "auto",
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> CvExport:
    """Export a run of `ssclf train` or of `ssclf cv`.

    Args:
        run: its folder; None for the newest run of `ssclf train`.
        out: the bundle; None for one under `exported/`, named after the run.
        network, per_fold, data, weights, device, on_epoch: of a cross-validation, see `export_cv`.
        formats, precision, brain_extraction, replace: see `export_run`.

    Raises:
        SsclfError: see `export_run` and `export_cv`.
    """
    folder = run or newest_run()
    target = out or EXPORTED / folder.name
    if is_cv_run(folder):
        return export_cv(
            folder,
            target,
            network=network,
            per_fold=per_fold,
            formats=formats,
            precision=precision,
            brain_extraction=brain_extraction,
            replace=replace,
            data=data,
            weights=weights,
            device=device,
            on_epoch=on_epoch,
        )
    bundle = export_run(
        folder,
        target,
        formats=formats,
        precision=precision,
        brain_extraction=brain_extraction,
        replace=replace,
    )
    return CvExport((bundle,))
