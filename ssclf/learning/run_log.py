"""Where a run's numbers go beside its own files: TensorBoard, MLflow, Weights & Biases.

Names, settings and numbers only: no volume, no subject, no path of data, and nothing of the machine.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ssclf.config import TrackerName
from ssclf.errors import MissingDependencyError, OutputError
from ssclf.io.locks import lock

log = logging.getLogger(__name__)
_PROJECT = "ssclf"
_PACKAGES: dict[TrackerName, str] = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """Attributes:
    name: of the run, for people.
    folder: of the run, for TensorBoard's log.
    store: folder for what the others keep on this machine; runs may share one.
    config: its settings, plain values.
    epoch: the first that is to come; what an interrupted run wrote from there on was lost.
    """

    name: str
    folder: Path
    store: Path
    config: Mapping[str, Any]
    epoch: int


class _Tracker(Protocol):
    #: By which a resumed run finds what it has written; "" where nothing needs one.
    run_id: str

    def note(self, values: Mapping[str, float], epoch: int | None) -> None:
        """Numbers of an epoch, or with None those at the end."""

    def close(self, *, finished: bool) -> None: ...


def check_trackers(names: Iterable[TrackerName]) -> None:
    """Raises:
    MissingDependencyError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            extra = "train" if name == "tensorboard" else name
            raise MissingDependencyError(
                f'--log {name}: {_PACKAGES[name]} is not installed; pip install "ssclf[{extra}]", or leave it out.'
            )


class RunLog:
    """All trackers of a run as one. What fails in one of them while the run goes on costs its numbers, not the run."""

    def __init__(self, run: LoggedRun, ids: Mapping[TrackerName, str]) -> None:
        """Open the trackers.

        Args:
            ids: what `ids` was of the same run before, or "" for each tracker that is to be used.

        Raises:
            MissingDependencyError: one is not installed.
            OutputError: one cannot be opened.
        """
        check_trackers(ids)
        self._finished = False
        self._trackers: dict[TrackerName, _Tracker] = {}
        for name, run_id in ids.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # their own dependencies warn on import
                    self._trackers[name] = _KINDS[name](run, run_id)
            except Exception as exc:  # whatever they and their servers raise
                self.close()
                if name == "tensorboard":
                    raise
                raise OutputError(
                    f"--log {name}: cannot be opened ({exc}); leave it out to train without."
                ) from exc
        self.ids = {name: tracker.run_id for name, tracker in self._trackers.items()}

    def note_epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self._note(values, epoch)

    def note_end(self, scores: Mapping[str, float]) -> None:
        self._note(scores, None)
        self._finished = True

    def close(self) -> None:
        for name in list(self._trackers):
            tracker = self._trackers.pop(name)
            try:
                tracker.close(finished=self._finished)
            except Exception as exc:
                log.warning("--log %s: could not be closed (%s)", name, exc)

    def _note(self, values: Mapping[str, float], epoch: int | None) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.note(values, epoch)
            except Exception as exc:
                if name == "tensorboard":  # of the run folder, as its other files
                    raise
                log.warning("--log %s: stops here, the run goes on without it (%s)", name, exc)
                del self._trackers[name]


class _TensorBoard:
    run_id = ""

    def __init__(self, run: LoggedRun, run_id: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder), purge_step=run.epoch)

    def note(self, values: Mapping[str, float], epoch: int | None) -> None:
        for name, value in values.items() if epoch is not None else ():
            self._writer.add_scalar(name, value, epoch)

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class _MLflow:
    """In files below the store, unless MLFLOW_TRACKING_URI names another place. No SQLite, which needs locks that
    network file systems lack; MLflow takes files when it is told that they are meant."""

    def __init__(self, run: LoggedRun, run_id: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        local = run.store / "mlflow"
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        with lock(
            run.store / ".lock-mlflow", wait=True, remove=True
        ):  # two runs would both make the experiment
            self._client = MlflowClient(tracking_uri=uri or local.absolute().as_uri())
            if run_id:
                self.run_id = run_id
                self._client.update_run(run_id, status="RUNNING")
                return
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            known = self._client.get_experiment_by_name(title)
            experiment = known.experiment_id if known else self._client.create_experiment(title)
        self.run_id = self._client.create_run(experiment, run_name=run.name).info.run_id
        self._client.log_batch(
            self.run_id, params=[Param(name, str(value)) for name, value in run.config.items()]
        )

    def note(self, values: Mapping[str, float], epoch: int | None) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, epoch or 0) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")


class _WandB:
    """Offline, below the store, unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

    def __init__(self, run: LoggedRun, run_id: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            # the command, with the paths of data; the machine; its packages
            host="-",
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._teardown = wandb.teardown
        self.run_id = run_id or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            id=self.run_id,
            resume="allow",
            dir=str(run.store),
            mode=mode,
            settings=settings,
        )
        self._run.config.update(dict(run.config), allow_val_change=True)
        self._run.define_metric("*", step_metric="epoch")

    def note(self, values: Mapping[str, float], epoch: int | None) -> None:
        if epoch is None:
            self._run.summary.update(dict(values))
        else:
            self._run.log({"epoch": epoch, **values})

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
        self._teardown()  # else the last numbers are written at the exit of this process, which a cell's does not have


_KINDS: dict[TrackerName, Any] = {"tensorboard": _TensorBoard, "mlflow": _MLflow, "wandb": _WandB}
