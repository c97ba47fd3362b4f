"""What a sweep of several processes tells while it runs: a line for each job that begins and ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType

from musicnet_eval.launchers.workers import Job, Worker


class Progress:
    """Tell how a sweep goes.

    Args:
        total: How many jobs there are.
        first: Number of the first one.
    """

    def __init__(self, total: int, first: int) -> None:
        self.total = first + total
        self.ended = first

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def begun(self, job: Job) -> None:
        """Tell that a job's process was started."""
        print(f"run: {job.title} → {job.log.parent}", flush=True)

    def passed_over(self, job: Job) -> None:
        """Tell that a job is done already."""
        self._end(f"done already: {job.log.parent}")

    def done(self, worker: Worker) -> None:
        """Tell that a job has ended well."""
        job = worker.job
        assert job.planned is not None
        minutes = (time.monotonic() - worker.started) / 60
        self._end(f"done: {job.title}, {job.planned.config['monitor']} {job.metric()}, {minutes:.1f} min")

    def failed(self, job: Job, reason: str, said: Sequence[str]) -> None:
        """Tell why a job is not done, and what its process said last."""
        lines = "".join(f"\n    | {line}" for line in said)
        self._end(f"{'interrupted' if reason == 'interrupted' else 'failed'}: {job.title}: {reason}; see {job.log}{lines}")

    def refresh(self, running: Sequence[Worker]) -> None:
        """Show how the running jobs stand, where there is a terminal."""

    def _end(self, text: str) -> None:
        self.ended += 1
        print(f"[{self.ended}/{self.total}] {text}", file=sys.stderr if text.startswith("failed") else sys.stdout, flush=True)
