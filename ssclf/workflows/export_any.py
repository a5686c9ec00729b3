"""`ssclf export`: bundles of whatever kind of run is named."""

from __future__ import annotations

from pathlib import Path

from ssclf.io.records.cv_run import is_cv_run
from ssclf.io.records.preprocessed import Folders
from ssclf.io.records.training_run import newest_run
from ssclf.workflows.export import ExportConfig, export_run
from ssclf.workflows.export_cv import CvExport, export_cv
from ssclf.workflows.train import Machine, Watch

#: Where bundles go whose place nobody has named.
EXPORTED = Path("exported")


def export_any(
    run: Path | None,
    out: Path | None,
    config: ExportConfig,
    *,
    network: str | None = None,
    per_fold: bool = False,
    data: Folders | None = None,
    machine: Machine | None = None,
    watch: Watch | None = None,
) -> CvExport:
    """Export a run of `ssclf train` or of `ssclf cv`.

    Args:
        run: its folder; None for the newest run of `ssclf train`.
        out: the bundle; None for one under `exported/`, named after the run.
        data: the preprocessed folder or folders, where they are not any more where the run found them.
        network, per_fold, machine, watch: of a cross-validation, see `export_cv`.

    Raises:
        SsclfError: see `export_run` and `export_cv`.
    """
    folder = run or newest_run()
    target = out or EXPORTED / folder.name
    if not is_cv_run(folder):
        return CvExport((export_run(folder, target, config, data=data),))
    return export_cv(
        folder, target, config, network=network, per_fold=per_fold, data=data, machine=machine, watch=watch
    )
