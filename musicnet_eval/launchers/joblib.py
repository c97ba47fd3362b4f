"""`hydra/launcher=joblib`: several jobs at once in worker processes that are kept from one job to the next.

A worker that is killed breaks joblib's whole pool, and with it the jobs that run beside it; the sweep's tables are written all
the same. A worker whose sweep is gone interrupts its run, which leaves a checkpoint, and ends: by itself it would train on, take
another job, and then wait for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Any

from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_joblib_launcher import joblib_launcher
from omegaconf import DictConfig

from musicnet_eval.launchers.collecting import Collecting, Jobs, lost


class JoblibLauncher(Collecting, joblib_launcher.JoblibLauncher):
    """Run jobs in joblib's worker processes.

    Args:
        kwargs: Arguments of `joblib.Parallel`.
    """

    def __init__(self, **kwargs: Any) -> None:
        joblib_launcher.JoblibLauncher.__init__(self, **kwargs)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and put a watch around the task."""
        task = Watched(task_function, os.getpid())
        joblib_launcher.JoblibLauncher.setup(self, hydra_context=hydra_context, task_function=task, config=config)

    def collect(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        """Run all jobs; where a worker was killed, none of them can tell its outcome."""
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


@dataclass
class Watched:
    """The task, in a worker that does not outlive the sweep.

    Args:
        task: What Hydra calls.
        parent: Process of the sweep.
    """

    task: TaskFunction
    parent: int

    def __call__(self, config: DictConfig) -> Any:
        """Do one job."""
        if os.getpid() != self.parent and not any(thread.name == "sweep-watch" for thread in threading.enumerate()):
            threading.Thread(target=self._watch, name="sweep-watch", daemon=True).start()
        return self.task(config)

    def _watch(self) -> None:
        while os.getppid() == self.parent:
            time.sleep(1)
        while True:  # the first one interrupts a run, which ends well; the next one finds the worker idle
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
