"""What long work shows in a terminal: a live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ssclf.domain.flags import FLAGS, REFERENCE_MODEL
from ssclf.domain.metrics import ENOUGH_TO_CALIBRATE
from ssclf.domain.visible import visible_lines
from ssclf.io.discovery.cohorts import Cohort
from ssclf.io.discovery.scans import Case
from ssclf.io.discovery.sources import Discovery
from ssclf.io.discovery.subjects import list_subjects
from ssclf.io.records.cv_run import Cell
from ssclf.io.records.results import ResultRow

if TYPE_CHECKING:
    from ssclf.cluster.driver import ClusterSummary
    from ssclf.cluster.tasks import Part
    from ssclf.io.records.training_run import EpochRecord
    from ssclf.workflows.demo import DemoResult
    from ssclf.workflows.doctor import Check
    from ssclf.workflows.evaluate import Evaluation
    from ssclf.workflows.plan import Estimate
    from ssclf.workflows.predict import Foreseen, PredictSummary
    from ssclf.workflows.preprocess import PreprocessSummary
    from ssclf.workflows.train import TrainResult

#: Without a terminal, a line at most this often (seconds).
PLAIN_INTERVAL_S = 10.0
#: So many rows of what may be long are shown.
SUBJECTS_SHOWN = 8
NOTICE = "Research use only, not a medical device. The model knows only its own classes."
log = logging.getLogger(__name__)


class _VisibleConsole(Console):
    def render_str(self, text: str, *args: Any, **kwargs: Any) -> Text:
        return super().render_str(visible_lines(text), *args, **kwargs)


def plain_console(*, stderr: bool = True) -> Console:
    """A console that shows text as it is: "[b]" or ":key:" in a name is no markup, and control characters are seen."""
    return _VisibleConsole(stderr=stderr, soft_wrap=not stderr, markup=False, emoji=False)


class Counting:
    """Counts finished items: a bar on a terminal, log lines elsewhere. Use as a context manager."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.console = plain_console()
        self._quiet = quiet
        self._title = title
        self._done = self._failed = self._total = 0
        self._began = self._told = time.monotonic()
        self._progress: Progress | None = None
        if self.console.is_terminal and not quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("[red]{task.fields[failed]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )

    def __enter__(self) -> Counting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def begin(self, total: int) -> None:
        self._total = total
        self._began = self._told = time.monotonic()
        if self._progress and total:
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=total, failed="")

    def advance(self, *, failed: bool = False) -> None:
        self._done += 1
        self._failed += failed
        if self._progress:
            words = f"{self._failed} failed" if self._failed else ""
            self._progress.update(self._task, advance=1, failed=words)
            return
        now = time.monotonic()
        if not self._quiet and (now - self._told >= PLAIN_INTERVAL_S or self._done == self._total):
            self._told = now
            rate = self._done / max(now - self._began, 1e-9)
            left = (self._total - self._done) / rate
            log.info(
                "%s: %d of %d, %d failed, %.2f a second, about %.0f s left",
                self._title, self._done, self._total, self._failed, rate, left,
            )  # fmt: skip


class PredictDisplay(Counting):
    """Progress and summary of `ssclf predict`."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__("classifying", quiet=quiet)

    def __enter__(self) -> PredictDisplay:
        return self

    def start(self, discovery: Discovery, todo: int) -> None:
        found = len(discovery.scans)
        log.info("%d volumes found, %d to classify, %d done before", found, todo, found - todo)
        for reason, count in sorted(discovery.other_files.items()):
            log.info("left out: %d %s", count, reason)
        self.begin(todo)

    def row(self, row: ResultRow) -> None:
        failed = row.status == "failed"
        if failed:
            name = row.path.rsplit("/", 1)[-1]
            log.warning("%s: %s", row.path, row.error.removeprefix(f"{name}: "))
        self.advance(failed=failed)

    def summary(self, summary: PredictSummary, out: Path) -> None:
        if self._quiet:
            return
        if summary.interrupted:
            self.console.print(
                f"stopped by signal {summary.interrupted}; {len(summary.rows)} finished rows are kept, "
                "run the same command again to continue"
            )
            return
        table = Table(title=str(out), title_justify="left")
        table.add_column("outcome")
        table.add_column("volumes", justify="right")
        predictions = Counter(row.prediction for row in summary.rows if row.status == "ok")
        for name in summary.class_names:
            table.add_row(name, str(predictions[name]))
        table.add_row("failed", str(summary.failed), style="red" if summary.failed else None)
        flags = Counter(flag for row in summary.rows for flag in row.flags)
        for flag, count in sorted(flags.items()):
            table.add_row(f"  flag {flag}", str(count), style="dim")
        self.console.print(table)
        notes = [f"{summary.seconds:.1f} s"]
        if summary.reused:
            notes.append(f"{summary.reused} rows kept from before")
        if summary.dropped:
            notes.append(f"{summary.dropped} rows dropped, their volumes are gone")
        self.console.print("; ".join(notes))
        for note in summary.notes:
            self.console.print(note)
        if flags[REFERENCE_MODEL]:
            self.console.print(f"{REFERENCE_MODEL}: {FLAGS[REFERENCE_MODEL]}", style="bold")
        self.console.print(NOTICE, style="bold")


def foreseen_lines(foreseen: Foreseen) -> Iterator[str]:
    """What `predict --dry-run` says; no header text is in it."""
    scans = foreseen.found.scans
    yield f"{len(scans)} volumes found, of which {sum(bool(scan.problem) for scan in scans)} cannot be read"
    for reason, count in sorted(foreseen.found.other_files.items()):
        yield f"left out: {count} {reason}"
    plan = foreseen.plan
    if not plan.choices:
        return
    yield f"DICOM studies: {len(plan.choices)}; rules, in their order: {'; '.join(r.name for r in foreseen.rules)}"
    for number, (key, choice) in enumerate(sorted(plan.choices.items()), start=1):
        said = (
            f"answered is {' '.join(key)}, by rule {choice.rule}" if choice.rule else "no series is answered"
        )
        yield f"study {number}: {said}"
        for other in choice.others:
            yield f"  {' '.join(other.key)}: {other.reason}"
    for key, reason in sorted(plan.unread.items()):
        yield f"no study: {' '.join(key)}: {reason}"


class PreprocessDisplay(Counting):
    """Progress and summary of `ssclf preprocess`."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__("preprocessing", quiet=quiet)

    def __enter__(self) -> PreprocessDisplay:
        return self

    def start(self, cohort: Cohort) -> None:
        if not self._quiet:
            table = Table(title="found", title_justify="left")
            for heading in ("class", "source", "volumes", "taken"):
                table.add_column(heading, justify="right" if heading in ("volumes", "taken") else "left")
            for found in cohort.found:
                table.add_row(found.label or "not stated", found.source, str(found.volumes), str(found.taken))
            self.console.print(table)
            self.console.print(_subjects_table(cohort))
            for reason, count in sorted(cohort.left_out.items()):
                log.info("left out: %d %s", count, reason)
            for note in cohort.notes:
                log.warning("%s", note)
            pairs = Counter((case.label, case.extra.get("stand_in", "")) for case in cohort.cases)
            for (label, stand_in), count in sorted(pairs.items()):
                if stand_in:  # contrast=other
                    log.warning(
                        "%d volumes of %s have another contrast in its place (%s), as in the paper: a network may "
                        "learn the contrast instead of the disease", count, label, stand_in,
                    )  # fmt: skip
        self.begin(len(cohort.cases))

    def case(self, case: Case, error: str) -> None:
        if error:
            log.warning("%s: %s", case.scan.path, error)
        self.advance(failed=bool(error))

    def summary(self, summary: PreprocessSummary, out: Path) -> None:
        if self._quiet:
            return
        print_ = self.console.print
        if summary.interrupted:
            print_(f"stopped by signal {summary.interrupted}; the same command goes on")
            return
        print_(
            f"{out}: {len(summary.rows)} volumes ({summary.reused} of them from before), "
            f"{len(summary.failures)} failed; look at {out / 'qc.html'}"
        )
        if len({row["label"] for row in summary.rows}) < 2:
            print_(
                "one class or none: ssclf train and ssclf cv need two; they join several folders of equal settings, "
                "--data once for each"
            )
        for note in summary.notes[:SUBJECTS_SHOWN]:
            print_(note)
        if len(summary.notes) > SUBJECTS_SHOWN:
            print_(f"… and {len(summary.notes) - SUBJECTS_SHOWN} more such pairs")
        if summary.left_over:
            print_(
                f"{summary.left_over} volumes of earlier runs are no part of this cohort; their files stay"
            )


def _subjects_table(cohort: Cohort) -> Table:
    """Who was taken for whom, those with the most volumes first: a wrong guess shows there."""
    subjects = list_subjects(cohort.cases)
    by = Counter(how for each in subjects for how in each.named_by)
    how = ", ".join(f"{name} ({count})" for name, count in by.most_common())
    table = Table(title=f"{len(subjects)} subjects, named by {how or 'nothing'}", title_justify="left")
    for heading in ("subject", "class", "sessions", "volumes"):
        table.add_column(heading, justify="right" if heading == "volumes" else "left")
    shown = sorted(subjects, key=lambda each: -each.volumes)[:SUBJECTS_SHOWN]
    for each in shown:
        table.add_row(each.subject, each.label or "not stated", ", ".join(each.sessions), str(each.volumes))
    if len(subjects) > len(shown):
        table.add_row(f"… and {len(subjects) - len(shown)} more: all will be in subjects.csv", "", "", "")
    return table


class StepLines:
    """A line now and then between two epochs, where no bar shows that training goes on."""

    def __init__(self, tell: Callable[[str], None], epochs: int | None = None, name: str = "") -> None:
        """Begin to count.

        Args:
            tell: takes a line.
            epochs: of the whole training, where they are known; else the time left is that of the epoch.
            name: of what is trained, to stand before the line.
        """
        self._tell, self._epochs, self._name = tell, epochs, f"{name} " if name else ""
        self._told = time.monotonic()
        self._first: tuple[float, int] | None = None

    def heard(self) -> None:
        """Something else was said."""
        self._told = time.monotonic()

    def __call__(self, epoch: int, done: int, steps: int, loss: float) -> None:
        now, taken = time.monotonic(), (epoch - 1) * steps + done
        if self._first is None:  # nothing tells yet how long a step takes
            self._first = now, taken
            return
        if now - self._told < PLAIN_INTERVAL_S:
            return
        self._told = now
        each = (now - self._first[0]) / (taken - self._first[1])
        left = ((self._epochs or epoch) * steps - taken) * each
        of = f" of {self._epochs}" if self._epochs else ""
        until = "" if self._epochs else " of this epoch"
        self._tell(
            f"{self._name}epoch {epoch}{of}, step {done} of {steps}: loss {loss:.4f}, {each:.2f} s a step, "
            f"about {left:.0f} s{until} left"
        )


class TrainDisplay:
    """Progress of `ssclf train`: a bar over all epochs, or where there is no terminal a line an epoch, and between them
    one now and then.
    """

    def __init__(self, epochs: int, *, quiet: bool = False) -> None:
        self._epochs = epochs
        self._quiet = quiet
        self._console = plain_console()
        self._lines = StepLines(lambda words: log.info("%s", words), epochs)
        self._progress: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("epoch {task.fields[epoch]}, loss {task.fields[loss]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("training", total=epochs, epoch="1", loss="")

    def __enter__(self) -> TrainDisplay:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._progress:
            self._progress.stop()

    def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
        if self._progress:
            self._progress.update(
                self._task,
                completed=epoch - 1 + done / steps,
                epoch=f"{epoch} of {self._epochs}",
                loss=f"{loss:.4f}",
            )
        elif not self._quiet:
            self._lines(epoch, done, steps, loss)

    def epoch(self, record: EpochRecord) -> None:
        if self._quiet:
            return
        words = f"epoch {record.epoch} of {self._epochs}: loss {record.train_loss:.4f}"
        if record.val_loss is not None:
            words += f", validation loss {record.val_loss:.4f}, accuracy {record.val_accuracy:.3f}"
        words += f", {record.seconds:.1f} s, {record.wait_share:.0%} of it waiting for volumes"
        if self._progress:
            self._progress.console.print(words, highlight=False)
        else:
            log.info("%s", words)
            self._lines.heard()

    def summary(self, result: TrainResult) -> None:
        if self._quiet:
            return
        print_ = self._console.print
        if result.interrupted:
            print_(
                f"stopped by signal {result.interrupted}; `ssclf train --resume --out {result.run}` goes on"
            )
            return
        print_(f"run: {result.run} (weights of epoch {result.chosen_epoch})")
        if result.test is not None:
            print_(
                f"held-out part: accuracy {result.test.accuracy:.4f}, macro F1 {result.test.macro_f1:.4f} "
                f"on {sum(map(sum, result.test.confusion))} volumes"
            )
        if 0 < result.calibrated_on < ENOUGH_TO_CALIBRATE:
            print_(
                f"calibrated on {result.calibrated_on} volumes (temperature {result.temperature:.2f}): too few to trust"
            )


class CvDisplay:
    """Progress of `ssclf cv`: a line a cell and an epoch, and between them one now and then; there may be days between
    two cells.
    """

    def __init__(self, epochs: int, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._epochs = epochs
        self._console = plain_console()
        self._begin("")

    def __enter__(self) -> CvDisplay:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def cell(self, cell: Cell, number: int, total: int, state: str | None) -> None:
        self._begin(cell.name)
        if not self._quiet:
            self._console.print(f"{number} of {total}: {cell.name} {state or 'begins'}", highlight=False)

    def _begin(self, name: str) -> None:
        self._cell = name
        self._lines = StepLines(self._print, self._epochs, f"  {name}")

    def _print(self, words: str) -> None:
        self._console.print(words, highlight=False)

    def step(self, epoch: int, done: int, steps: int, loss: float) -> None:
        if not self._quiet:
            self._lines(epoch, done, steps, loss)

    def epoch(self, record: EpochRecord) -> None:
        if not self._quiet:
            self._lines.heard()
            self._console.print(
                f"  {self._cell} epoch {record.epoch}: loss {record.train_loss:.4f}, {record.seconds:.1f} s",
                highlight=False,
            )


class DemoDisplay:
    """What `ssclf demo` shows: every line says that the volumes are synthetic."""

    def __init__(self) -> None:
        self._console = plain_console(stderr=False)

    def begin(self, out: Path) -> None:
        """Before torch is imported, which takes seconds."""
        self.stage(f"from scans to a table of results, all of it in {out}; a few minutes")

    def stage(self, title: str) -> None:
        self._console.print("SYNTHETIC DEMO", style="bold", end="")
        self._console.print(f": {title}")

    def epoch(self, record: EpochRecord) -> None:
        self._console.print(
            f"  epoch {record.epoch}: loss {record.train_loss:.3f} (synthetic), {record.seconds:.0f} s"
        )

    def summary(self, result: DemoResult, first: Sequence[Sequence[str]]) -> None:
        """Args:
        first: header and first rows of the results.
        """
        header, *rows = first
        shown = [
            i for i, name in enumerate(header) if name in ("path", "prediction") or name.startswith("p_")
        ]
        table = Table(title=f"first rows of {result.results} (synthetic volumes)", title_justify="left")
        for i in shown:
            table.add_column(header[i])
        for row in rows:
            table.add_row(*(f"{float(row[i]):.3f}" if header[i].startswith("p_") else row[i] for i in shown))
        print_ = self._console.print
        print_(table)
        volumes = len(result.summary.rows)
        print_(f"held-out accuracy on {volumes} synthetic volumes: {result.accuracy:.1%} (chance: 33.3%)")
        self._times(result.stages)
        print_(
            f"table: {result.results}\npages to open in a browser: {result.report}, {result.qc}\n"
            f"model: {result.bundle} (synthetic: for trying things out)\n"
            f"next: ssclf predict FOLDER --out results.csv --model {shlex.quote(str(result.bundle))}, or with volumes "
            "of your own ssclf preprocess, train, export; with heads of your own ssclf demo --heads FOLDER"
        )
        print_(NOTICE, style="bold")

    def _times(self, stages: Sequence[tuple[str, float]]) -> None:
        table = Table("stage", title="time", title_justify="left", show_footer=True)
        table.columns[0].footer = "together"
        table.add_column("seconds", f"{sum(seconds for _, seconds in stages):.0f}", justify="right")
        for title, seconds in stages:
            table.add_row(title, f"{seconds:.1f}")
        self._console.print(table)


def print_checks(checks: Iterable[Check]) -> bool:
    """Print what `ssclf doctor` finds, each as it comes; returns whether something that was asked for is missing."""
    console = plain_console(stderr=False)
    failed = False
    for check in checks:
        word, style = {True: ("ok", "green"), False: ("failed", "red"), None: ("absent", "yellow")}[check.ok]
        console.print(f"{word:8}", style=style, end="")
        console.print(f"{check.name}: ", end="")
        console.print(check.detail, highlight=False)
        failed = failed or check.failed
    return failed


def estimate_lines(need: Estimate) -> list[str]:
    """What `ssclf plan` says of an estimate."""
    length = f"{need.hours:.1f} hours" if need.hours >= 2 else f"{need.hours * 3600:.0f} seconds"
    return [
        f"  {length}, bound by {need.bound}",
        f"  {need.core_hours:.2f} core hours, {need.gpu_hours:.2f} GPU hours",
        f"  {need.network_bytes / 1e9:.3f} GB of scans to read",
        f"  {need.result_bytes / 1e9:.3f} GB of results, Parquet and CSV",
        f"  {need.node_bytes / 1e9:.1f} GB of memory a node",
    ]


def tell_partitions(volumes: int, parts: int) -> None:
    log.info("%d volumes in %d partitions", volumes, parts)


def tell_part(part: Part) -> None:
    log.info("partition %d: %d volumes", part.number, part.volumes)


def cluster_lines(summary: ClusterSummary, out: str) -> list[str]:
    """What `ssclf predict --ray` says at its end."""
    return [
        f"{out}: {summary.volumes} volumes in {summary.parts} partitions ({summary.reused} were complete), "
        f"{summary.failed} failed",
        *(f"  {count} {reason}" for reason, count in sorted(summary.other_files.items())),
    ]


def evaluation_lines(found: Evaluation) -> list[str]:
    """What `ssclf evaluate` says at its end: nothing where it was interrupted."""
    if found.calibrated is None:
        return []
    kind = "synthetic volumes" if found.synthetic else "volumes"
    where = f"report: {found.out / 'report.html'}" if found.reported else f"without a report, in {found.out}"
    warning = [f"{REFERENCE_MODEL}: {FLAGS[REFERENCE_MODEL]}"] if found.reference_model else []
    return [
        *warning,
        f"{found.volumes} {kind}: accuracy {found.calibrated.accuracy:.4f}, "
        f"macro F1 {found.calibrated.macro_f1:.4f}; {where}",
    ]


class _VisibleFormatter(logging.Formatter):
    """A terminal acts on control characters, and names of files may hold any."""

    def format(self, record: logging.LogRecord) -> str:
        return visible_lines(super().format(record))


def log_to_stderr(level: int) -> None:
    """Send ssclf's log to stderr: coloured on a terminal, plain lines with a time stamp elsewhere."""
    console = plain_console()
    handler: logging.Handler
    lines = "%(message)s" if console.is_terminal else "%(asctime)s %(levelname)s %(message)s"
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    else:
        handler = logging.StreamHandler()
    handler.setFormatter(_VisibleFormatter(lines))
    logger = logging.getLogger("ssclf")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)
