"""`ssclf serve`: one process that takes studies, classifies them and hands the results on, until it is told to end.

The main thread closes studies, classifies and writes; receiving, sending and counting have threads of their own.
They share folders of the spool, so that what one of them has done outlives all of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssclf.config import PredictConfig
from ssclf.errors import OutputError, ResourceError
from ssclf.io.dicom_out.write import check_extra
from ssclf.io.models.ensemble import Ensemble
from ssclf.io.records.results import ResultRow
from ssclf.service.classifying import Classifier, ObjectsAsked, Study
from ssclf.service.health import Health
from ssclf.service.listener import Listener
from ssclf.service.metrics import Metrics
from ssclf.service.outbox import Courier, Outbox, Send, copy_whole
from ssclf.service.request import ServeRequest
from ssclf.service.spool import Spool
from ssclf.service.watching import Arrival, Watch
from ssclf.workflows.classification import open_models
from ssclf.workflows.dicom_out import OBJECTS, rules_of
from ssclf.workflows.interruption import note_signals
from ssclf.workflows.outputs import Outputs

log = logging.getLogger(__name__)
_STEP_S = 0.2
#: After the process has ended so often while a study was in work, the study gets a row that says so.
_MOST_TRIES = 6
_GIVEN_UP = "the service ended {} times while this study was in work, and gave it up."
#: The spool is counted again after so many steps: what others have removed is seen at some time.
_MEASURE_STEPS = 300
#: Libraries that may quote what they read, or what a peer says.
_TALKERS = ("pynetdicom", "pydicom", "dicomweb_client", "urllib3", "requests", "highdicom")


def serve(
    request: ServeRequest,
    models: Sequence[Path],
    config: PredictConfig,
    *,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Run the service until SIGTERM or Ctrl-C; what is in flight is finished first.

    Args:
        models: bundles; the probabilities of several are averaged.
        on_ready: called once, when models are loaded and everything listens.

    Raises:
        SsclfError: it cannot start, or cannot go on: a part of it has ended, the disk is gone.
    """
    _keep_silent()
    metrics, stop = Metrics(), threading.Event()
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(note_signals("finishing what is in flight, then ending"))
        spool = stack.enter_context(
            Spool(request.spool, limit=request.spool_bytes, quiet_s=request.quiet_s, keep=request.keep)
        )
        ensemble: Ensemble = open_models(models, config)
        objects = _objects_asked(request, ensemble)
        classifier = stack.enter_context(
            Classifier(ensemble, config, request.out, request.resolve, metrics, spool.name, objects)
        )
        outboxes, couriers = _start_couriers(request, spool, stop, metrics)
        stack.callback(_end, couriers, stop)
        service = _Service(request, spool, classifier, outboxes, couriers, metrics)
        metrics.ask(service.gauges)
        if request.health:
            stack.enter_context(Health(request.health, metrics, service.trouble))
        if request.listen:
            service.listener = stack.enter_context(
                Listener(request.listen, request.ae_title, request.senders, spool, metrics)
            )
        on_ready()
        service.run(lambda: bool(stopped))


@dataclass
class _Service:
    """The main thread's part."""

    request: ServeRequest
    spool: Spool
    classifier: Classifier
    outboxes: Mapping[str, Outbox]
    couriers: Sequence[Courier]
    metrics: Metrics
    listener: Listener | None = None

    def run(self, stop: Callable[[], bool]) -> None:
        """Raises:
        SsclfError: it cannot go on.
        """
        watch = Watch(self.request.watch, self.spool, self.request.quiet_s)
        wait, steps = threading.Event(), 0
        while not stop():
            self.spool.close()
            studies, arrivals = self._due(watch)
            try:
                for study, rows in self.classifier.classify(studies, stop):
                    self._finish(study, rows, arrivals.get(study.name))
                    self.classifier.write_table_if_due(idle=False)
            finally:
                for study in studies:
                    self.spool.leave(study.name, done=False)
            self.classifier.write_table_if_due(idle=not self.spool.closed())
            self.spool.expire()
            if trouble := self.trouble():
                raise ResourceError(f"serve: {trouble}; start it again, nothing that was accepted is lost.")
            steps += 1
            if steps % _MEASURE_STEPS == 0:
                self.spool.measure()
            if not studies:
                wait.wait(_STEP_S)

    def _due(self, watch: Watch) -> tuple[list[Study], dict[str, Arrival]]:
        """Studies to classify now. One that was begun before and not finished comes alone, after all others: it may be
        what ended the process, and is given up at last."""
        studies = [
            Study(folder.name, folder, self.spool.missing(folder.name)) for folder in self.spool.closed()
        ]
        arrivals = {arrival.name: arrival for arrival in watch.arrived()}
        studies += [Study(a.name, a.path, source=os.fspath(a.path)) for a in arrivals.values()]
        begun = {study.name: self.spool.begun(study.name) for study in studies}
        due = [study for study in studies if not begun[study.name]]
        if not due and studies:
            one = min(studies, key=lambda study: begun[study.name])
            tries = begun[one.name]
            due = [one if tries < _MOST_TRIES else replace(one, problem=_GIVEN_UP.format(tries))]
        for study in due:
            self.spool.begin(study.name)
        return due, arrivals

    def _finish(self, study: Study, rows: Sequence[ResultRow], arrival: Arrival | None) -> None:
        """A study has its rows: put what leaves as DICOM on its way, then let it go."""
        for row in rows:
            made = row.extra.get(OBJECTS, {})
            if "problem" in made:
                self.metrics.add("ssclf_objects_failed_total")
            for name in made.get("files", ()):
                self._hand_on(self.classifier.objects / name)
        if arrival is not None:
            self.spool.note_seen(arrival.name, arrival.digest)
        else:
            self.spool.finish(study.name)
        self.spool.leave(study.name, done=True)
        self.metrics.add("ssclf_studies_total", f'source="{"watch" if arrival else "listen"}"')
        log.info("study %s: done", study.name)

    def _hand_on(self, made: Path) -> None:
        for outbox in self.outboxes.values():
            outbox.put(made)
        if self.request.dicom_out is not None:
            copy_whole(made, self.request.dicom_out / made.name, private=False)
        made.unlink()
        self.metrics.add("ssclf_objects_made_total")

    def trouble(self) -> str:
        """Which part has ended, "" while all run."""
        names = [courier.name for courier in self.couriers if not courier.is_alive()]
        return f"{', '.join(names)} has ended" if names else ""

    def gauges(self) -> dict[tuple[str, str], float]:
        """See `Metrics.ask`."""
        found: dict[tuple[str, str], float] = {
            ("ssclf_spool_bytes", ""): self.spool.bytes,
            ("ssclf_spool_limit_bytes", ""): self.request.spool_bytes,
            ("ssclf_table_rows", ""): self.classifier.table_rows,
            ("ssclf_associations_open", ""): self.listener.open if self.listener else 0,
        }
        for stage in ("incoming", "closed", "kept"):
            found["ssclf_studies", f'stage="{stage}"'] = self.spool.count(stage)
        for way, outbox in self.outboxes.items():
            found["ssclf_outbox_objects", f'to="{way}"'] = len(outbox.waiting())
            found["ssclf_outbox_oldest_seconds", f'to="{way}"'] = outbox.oldest_s()
        return found


def _objects_asked(request: ServeRequest, ensemble: Ensemble) -> ObjectsAsked | None:
    """Raises:
    SsclfError: objects cannot be made here, or not be written where they should go.
    """
    if not request.makes_objects:
        return None
    check_extra()
    if request.dicom_out is not None:
        Outputs(request.out, dicom=request.dicom_out).check()
    return ObjectsAsked(rules_of(request.series_rules, ensemble), request.dicom_picture)


def _start_couriers(
    request: ServeRequest, spool: Spool, stop: threading.Event, metrics: Metrics
) -> tuple[dict[str, Outbox], list[Courier]]:
    """A way for each place that results go to."""
    ways: dict[str, Send] = {}
    if request.send or request.stow:
        from ssclf.service.peers import store_to, stow_to

        if request.send:
            ways["store"] = store_to(request.send, request.ae_title)
        if request.stow:
            ways["stow"] = stow_to(request.stow)
    try:
        outboxes = {way: Outbox(spool.outbox / way) for way in ("store", "stow")}
    except OSError as exc:
        raise OutputError(f"{spool.outbox}: cannot be written ({exc.strerror or exc}).") from exc
    for way, outbox in outboxes.items():
        if way not in ways and (left := len(outbox.waiting())):
            log.warning(
                "%d results of earlier runs wait for --%s", left, "send" if way == "store" else "stow"
            )
    couriers = [Courier(outboxes[way], way, send, stop, metrics) for way, send in ways.items()]
    for courier in couriers:
        courier.start()
    return {way: outboxes[way] for way in ways}, couriers


def _end(couriers: Sequence[Courier], stop: threading.Event) -> None:
    """Let each finish the object that it is sending."""
    stop.set()
    for courier in couriers:
        courier.join(10.0)


def _keep_silent() -> None:
    """Nothing of what is read reaches a log: libraries quote it in warnings, and Python in a thread's traceback."""
    warnings.simplefilter("ignore")
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    threading.excepthook = _report_thread


def _report_thread(arguments: threading.ExceptHookArgs) -> None:
    """Where a thread failed, without the words of its error."""
    place = traceback.extract_tb(arguments.exc_traceback)[-1:] if arguments.exc_traceback else []
    where = ", ".join(f"{Path(frame.filename).name} line {frame.lineno}" for frame in place)
    name = arguments.exc_type.__name__
    log.error("a thread ended: %s (%s)", name, where)
