"""`hydra/launcher=joblib`: several jobs at once in worker processes that are kept from one job to the next.

A worker that is killed breaks joblib's whole pool, and with it the jobs that run beside it; the sweep's tables are written all
the same. A worker whose sweep is gone interrupts its run, which leaves a checkpoint, and ends: by itself it would train on, take
another job, and then wait for ever.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any

import joblib
from hydra.core.utils import JobReturn
from hydra.types import TaskFunction
from hydra_plugins.hydra_joblib_launcher import joblib_launcher
from omegaconf import DictConfig

from musicnet_eval.errors import ConfigError
from musicnet_eval.launchers import gpus
from musicnet_eval.launchers.collecting import Collecting, Jobs, check_jobs, end_with, lost


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

    def collect(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        """Run all jobs; where a worker was killed, none of them can tell its outcome."""
        check_jobs(self.joblib["n_jobs"], or_all=True)
        assert self.task_function is not None
        if not isinstance(self.task_function, Watched):  # it is, from the second batch of a search on
            self.task_function = Watched(self.task_function, os.getpid(), self._gpus())
        try:
            outcomes: Sequence[JobReturn] = joblib_launcher.JoblibLauncher.launch(self, job_overrides, first)
        except BrokenExecutor as error:
            reason = " ".join(str(error).split()).removesuffix(".")
            print(
                f"failed: a worker of hydra/launcher=joblib was killed, and its neighbours with it ({reason}). Ask again: what "
                "is done is not repeated, what was cut short goes on. hydra/launcher=process loses the killed job alone.",
                file=sys.stderr,
                flush=True,
            )
            return [lost(overrides) for overrides in job_overrides]
        return outcomes

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


_held: list[gpus.Lease] = []  # a worker's, for as long as it lives: CUDA keeps the GPUs that it has once seen


@dataclass
class Watched:
    """The task, in a worker that has GPUs of its own and does not outlive the sweep.

    Args:
        task: What Hydra calls.
        parent: Process of the sweep.
        gpus_per_job: How many GPUs the worker leases.
    """

    task: TaskFunction
    parent: int
    gpus_per_job: float

    def __call__(self, config: DictConfig) -> Any:
        """Do one job."""
        if self.gpus_per_job and not _held:
            devices = gpus.visible()
            while (lease := gpus.lease(devices, self.gpus_per_job)) is None:
                time.sleep(2)  # another sweep is at them
            _held.append(lease)
            os.environ[gpus.VISIBLE] = ",".join(lease.devices)
        if os.getpid() != self.parent and not any(thread.name == "sweep-watch" for thread in threading.enumerate()):
            threading.Thread(target=end_with, args=(self.parent,), name="sweep-watch", daemon=True).start()
        return self.task(config)
