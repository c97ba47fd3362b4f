"""What a sweep of several processes tells: a line for each job that begins and ends and, on a terminal, a table of what runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from musicnet_eval import jobs, status
from musicnet_eval.errors import RecordError
from musicnet_eval.launchers.collecting import apart
from musicnet_eval.launchers.workers import Job, Worker

SHOWN_SECONDS = 1.0  # between two pictures of the table


class Progress:
    """Tell how a sweep goes.

    Args:
        asked: The overrides of each job.
        first: Number of the first one.
        at_once: How many run at once.
        total: How many there are in all batches, where that is known.
    """

    def __init__(self, asked: Sequence[Sequence[str]], first: int, at_once: int, total: int = 0) -> None:
        self.common = jobs.common(asked)
        self.total = max(total, first + len(asked))
        self.ended = first
        self.failures = 0
        self.at_once = at_once
        self.seconds: list[float] = []  # of each job that was done here
        self.started = self.shown = time.monotonic()
        self.live: Any = None

    def __enter__(self) -> Progress:
        if sys.stdout.isatty():
            from rich.live import Live

            self.live = Live(auto_refresh=False, transient=True).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.__exit__(kind, error, trace)

    # --- what happens ---------------------------------------------------------------------------------------------------------

    def begun(self, job: Job) -> None:
        """Tell that a job's process was started."""
        self._say(f"run: {self._name(job)} → {job.log.parent}")

    def waits(self, job: Job, *, ours: bool) -> None:
        """Tell that another process, or another job of this sweep, is at a job's run."""
        self._say(f"waits: {self._name(job)}: another {'job' if ours else 'process'} is at {job.log.parent}")

    def passed_over(self, job: Job) -> None:
        """Tell that a job is done already."""
        self._end(f"done already: {job.log.parent}")

    def done(self, worker: Worker, running: Sequence[Worker]) -> None:
        """Tell that a job has ended well, while others are running."""
        job, seconds = worker.job, time.monotonic() - worker.started
        assert job.planned is not None
        self.seconds.append(seconds)
        value = job.metric()
        said = "" if value is None else f", {job.planned.config['monitor']} {value:.3f}"
        self._end(f"done: {self._name(job)}{said}, {status.duration(seconds)}{self._left(self.total - self.ended - 1, running)}")

    def failed(self, job: Job, reason: str, said: Sequence[str]) -> None:
        """Tell why a job is not done, and what its process said last."""
        self.failures += 1
        lines = "".join(f"\n    | {line}" for line in said)
        word = "" if reason.startswith("interrupted") else "failed: "
        self._end(f"{word}{self._name(job)}: {reason}; see {job.log}{lines}")

    def stopping(self, running: Sequence[Worker]) -> None:
        """Tell that the running jobs were asked to stop."""
        if running:
            self._say(f"stopping: {len(running)} jobs keep a checkpoint and end; Ctrl-C again ends them at once")

    def refresh(self, running: Sequence[Worker]) -> None:
        """Show how the running jobs stand, where there is a terminal."""
        if self.live is not None and time.monotonic() - self.shown >= SHOWN_SECONDS:
            self.shown = time.monotonic()
            self.live.update(self._table(running), refresh=True)

    # --- how it is told -------------------------------------------------------------------------------------------------------

    def _name(self, job: Job) -> str:
        """Name a job by what sets it apart in its sweep."""
        return job.title if self.common.issuperset(job.overrides) else apart(job.overrides, self.common)

    def _left(self, rest: int, running: Sequence[Worker]) -> str:
        """Say how long the rest, running jobs included, may take by the mean of those that were done here."""
        if not rest or not self.seconds:
            return ""
        mean, now = sum(self.seconds) / len(self.seconds), time.monotonic()
        work = rest * mean - sum(min(mean, now - worker.started) for worker in running)
        return f"; about {status.duration(work / min(self.at_once, rest))} left"

    def _end(self, text: str) -> None:
        self.ended += 1
        self._say(f"[{self.ended}/{self.total}] {text}")

    def _say(self, text: str) -> None:
        text = "\n".join(map(status.printable, text.split("\n")))
        if self.live is None:
            print(text, flush=True)
        else:
            self.live.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _table(self, running: Sequence[Worker]) -> Any:
        from rich.table import Table

        counts = f"{self.ended - self.failures} done, {len(running)} running, {self.failures} failed, "
        counts += f"{self.total - self.ended - len(running)} to begin; {status.duration(time.monotonic() - self.started)}"
        counts += self._left(self.total - self.ended, running)
        table = Table(box=None, pad_edge=False, caption=counts, caption_justify="left", header_style="bold")
        for heading in ("running", "epoch", "left", "train loss", "val"):
            table.add_column(heading, overflow="fold", justify="left" if heading == "running" else "right")
        for worker in running:
            table.add_row(status.printable(self._name(worker.job)), *_standing(worker))
        return table


def _standing(worker: Worker) -> tuple[str, ...]:
    """Read how far a job is: epoch, time left, training loss, monitored metric; empty before its run has begun."""
    with contextlib.suppress(RecordError, OSError):  # the folder may go while it is read
        for standing in status.collect([worker.job.log.parent]) if worker.job.planned else []:
            return status.cells(standing)[2:6]
    return ()
