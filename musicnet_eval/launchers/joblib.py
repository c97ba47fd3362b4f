"""`hydra/launcher=joblib`: several jobs at once in worker processes that are kept from one job to the next.

A worker that is killed breaks joblib's whole pool, and with it the jobs that run beside it; the sweep's tables are written all
the same. So SIGTERM ends a worker's job and never the worker, and Ctrl-C reaches the sweep only, which tells each worker once. A
worker whose sweep is gone interrupts its run, which leaves a checkpoint, and ends: by itself it would train on, take another job,
and then wait for ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import joblib
from hydra.core.utils import JobReturn
from hydra.types import TaskFunction
from hydra_plugins.hydra_joblib_launcher import joblib_launcher
from omegaconf import DictConfig

from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.launchers import gpus
from musicnet_eval.launchers.collecting import Collecting, Jobs, Rule, check, end_with, is_above, lost, whole

SECONDS = Rule("a number of seconds above 0, or null", lambda value: value is None or is_above(value))
FREE = ("temp_folder", "max_nbytes", "mmap_mode")  # left to joblib
RULES = {
    "n_jobs": whole(1, -1, says=", or -1 for one a core"),
    "batch_size": whole(1, "auto", says=", or auto"),
    "pre_dispatch": Rule(
        "a whole number from 1, all, or a product: 2*n_jobs",
        lambda value: whole(1, "all").holds(value) or re.fullmatch(r"([1-9]\d*(\.\d+)?\*)?n_jobs", str(value)) is not None,
    ),
    "verbose": whole(0),
    "idle_worker_timeout": SECONDS,
    "timeout": SECONDS,
}


class JoblibLauncher(Collecting, joblib_launcher.JoblibLauncher):
    """Run jobs in joblib's worker processes.

    Args:
        n_jobs: Workers; -1 for one a core.
        gpus_per_job: GPUs of each worker: whole ones, or 1/k for k workers on one; 0 leases none; when None, 1 where there are
            GPUs, and none with `trainer.accelerator=cpu`.
        kwargs: More arguments of `joblib.Parallel`.
    """

    task_function: TaskFunction | None

    def __init__(self, n_jobs: int, gpus_per_job: float | None = None, **kwargs: Any) -> None:
        joblib_launcher.JoblibLauncher.__init__(self, n_jobs=n_jobs, **kwargs)
        self.gpus_per_job = gpus_per_job
        self.asked = {"n_jobs": n_jobs, **kwargs}
        self.leave: int | None = None  # exit code with which to leave before all jobs are done

    def collect(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        """Run all jobs; where a worker was killed, none of them can tell its outcome, and their runs do."""
        if unknown := next((name for name in self.asked if name not in (*RULES, *FREE)), None):
            raise ConfigError(
                f"hydra.launcher.{unknown} is no setting of hydra/launcher=joblib; {nearest(unknown, (*RULES, *FREE))}"
            )
        check("launcher", self.asked, RULES)
        assert self.task_function is not None
        if not isinstance(self.task_function, Watched):  # it is, from the second batch of a search on
            self.task_function = Watched(self.task_function, os.getpid(), self._gpus())
        self.joblib.update(initializer=settle, initargs=(os.getpid(),))
        with self._signals():
            outcomes = self._outcomes(job_overrides, first)
        if self.leave is not None:
            raise SystemExit(self.leave)
        return outcomes

    def _outcomes(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        asked, begun = _Asked(job_overrides, self), time.time()
        try:
            outcomes: Sequence[JobReturn] = joblib_launcher.JoblibLauncher.launch(self, asked, first)
        except BrokenExecutor as error:
            if self.leave is not None:  # a second Ctrl-C
                return []
            reason = " ".join(str(error).split()).removesuffix(".")
            print(
                f"failed: a worker of hydra/launcher=joblib was killed, and its neighbours with it ({reason}). Ask again: what "
                "is done is not repeated, what was cut short goes on. hydra/launcher=process loses the killed job alone.",
                file=sys.stderr,
                flush=True,
            )
            killed = f"a worker of joblib was killed, this one or its neighbour ({reason})"
            handed = list(enumerate(job_overrides[: asked.handed], first))
            outcomes = [
                self.stored(number, overrides, begun) or self.lost(number, overrides, killed) for number, overrides in handed
            ]
            rest = [lost(overrides) for overrides in job_overrides[asked.handed :]]
            if rest:
                print(f"not begun: {len(rest)} jobs", file=sys.stderr, flush=True)
            return [*outcomes, *rest]
        return outcomes

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM interrupt the jobs, which are then waited for, and the second end them at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            workers, again = [worker.pid for worker in multiprocessing.active_children()], self.leave is not None
            self.leave = 128 + number
            if not workers:  # none is there yet, or the jobs are done in this process
                raise SystemExit(self.leave)
            for worker in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(cast(int, worker), signal.SIGKILL if again else signal.SIGTERM)
            if not again:  # print could meet itself here
                os.write(2, b"stopping: the jobs keep a checkpoint and end; Ctrl-C again ends them at once\n")

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _gpus(self) -> float:
        """Say how many GPUs a worker leases.

        Raises:
            ConfigError: There are too few for all workers at once.
        """
        assert self.config is not None
        if self.gpus_per_job == 0 or (self.gpus_per_job is None and self.config.trainer.get("accelerator") == "cpu"):
            return 0
        devices = len(gpus.visible())
        if self.gpus_per_job is None and not devices:
            return 0
        wanted, workers = self.gpus_per_job or 1, joblib.effective_n_jobs(self.joblib["n_jobs"])
        gpus.check(wanted, devices)
        if gpus.capacity(devices, wanted) < workers:
            raise ConfigError(
                f"hydra.launcher.n_jobs={workers} and hydra.launcher.gpus_per_job={wanted} need more than {devices} GPUs. "
                f"Use hydra.launcher.n_jobs={gpus.capacity(devices, wanted)}, or gpus_per_job=1/k for k jobs on each."
            )
        return wanted


class _Asked(list[Sequence[str]]):
    """The jobs of a sweep, which end early once it is to be left: joblib takes one when a worker is free."""

    def __init__(self, job_overrides: Jobs, launcher: JoblibLauncher) -> None:
        super().__init__(job_overrides)
        self.launcher = launcher
        self.handed = 0  # how many were taken

    def __iter__(self) -> Iterator[Sequence[str]]:
        for overrides in super().__iter__():
            if self.launcher.leave is not None:
                return
            self.handed += 1
            yield overrides


# --- in a worker --------------------------------------------------------------------------------------------------------------

_held: list[gpus.Lease] = []  # a worker's, for as long as it lives: CUDA keeps the GPUs that it has once seen
_early: list[int] = []  # signals that came between two jobs; they are for the next one


def settle(parent: int) -> None:
    """Make a new worker ready: its jobs alone end by SIGTERM, Ctrl-C in the terminal is not for it, and it ends with the sweep.

    Args:
        parent: Process of the sweep.
    """

    def keep(number: int, frame: FrameType | None) -> None:
        del frame
        if os.getppid() != parent:
            os._exit(128 + number)
        _early.append(number)

    if os.name == "posix":
        os.setpgid(0, 0)  # no process group of the terminal
    signal.signal(signal.SIGTERM, keep)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


@contextlib.contextmanager
def _heeding() -> Iterator[None]:
    """Let SIGTERM end a worker's job."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        if _early:
            stop(_early.pop(), None)
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@dataclass
class Watched:
    """The task, in a worker that has GPUs of its own and outlives its jobs.

    Args:
        task: What Hydra calls.
        parent: Process of the sweep.
        gpus_per_job: How many GPUs the worker leases.
    """

    task: TaskFunction
    parent: int
    gpus_per_job: float

    def __call__(self, config: DictConfig) -> Any:
        """Do one job; one that was interrupted has no outcome, as one that failed has none."""
        if os.getpid() == self.parent:  # a single worker is the sweep itself
            return self._done(config)
        try:
            with _heeding():
                return self._done(config)
        except (SystemExit, KeyboardInterrupt) as stop:
            if config.run.on_error == "stop" and getattr(stop, "code", None) == 1:
                raise  # which ends the sweep
            return None

    def _done(self, config: DictConfig) -> Any:
        if self.gpus_per_job and not _held:
            devices = gpus.visible()
            while (lease := gpus.lease(devices, self.gpus_per_job)) is None:
                time.sleep(2)  # another sweep is at them
            _held.append(lease)
            os.environ[gpus.VISIBLE] = ",".join(lease.devices)
        return self.task(config)
