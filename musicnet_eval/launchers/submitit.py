"""`hydra/launcher=submitit_slurm` and `submitit_local`: each job by itself in Slurm's queue, or in a process that acts as one.

Hydra's plugin submits one array and gives up at the first job that was killed. Here jobs are submitted one by one, `n_jobs` of
them in the queue at a time: every outcome is waited for, and a sweep may be longer than the arrays that Slurm takes (1,001 by
default).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, cast

import submitit
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from omegaconf import OmegaConf

from musicnet_eval import environment
from musicnet_eval.errors import ConfigError
from musicnet_eval.launchers.collecting import Collecting, Jobs, check_jobs, lost, say_lost, stored

POLL_SECONDS = 0.5


class _Queue(Collecting, submitit_launcher.BaseSubmititLauncher):
    """Submit jobs one by one.

    Args:
        n_jobs: Jobs in the queue at once, at least 1.
        params: What submitit and Slurm take.
    """

    def __init__(self, n_jobs: int, **params: Any) -> None:
        submitit_launcher.BaseSubmititLauncher.__init__(self, **params)
        self.n_jobs = n_jobs

    def collect(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        """Run all jobs and give the outcome of each, in order."""
        check_jobs(self.n_jobs)
        assert self.hydra_context is not None
        assert self.config is not None
        executor = self._executor()
        waiting = deque(enumerate(job_overrides))
        running: dict[int, submitit.Job[JobReturn]] = {}
        outcomes: dict[int, JobReturn] = {}
        previous = signal.signal(signal.SIGTERM, _stop)
        try:
            while waiting or running:
                while waiting and len(running) < self.n_jobs:
                    index, overrides = waiting.popleft()
                    number = first + index
                    if (done := stored(self.hydra_context, self.config, number, overrides)) is not None:
                        outcomes[index] = done
                        continue
                    call = (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
                    running[index] = executor.submit(self, *call)
                for index in [index for index, job in running.items() if job.done()]:
                    outcomes[index] = _outcome(running.pop(index), job_overrides[index])
                time.sleep(POLL_SECONDS if running else 0)
        except BaseException:
            self.leave(running.values())
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
        return [outcomes[index] for index in range(len(job_overrides))]

    @abstractmethod
    def leave(self, running: Iterable[submitit.Job[JobReturn]]) -> None:
        """See to the jobs in the queue when the sweep is stopped."""

    def _executor(self) -> submitit.AutoExecutor:
        given = {name: value for name, value in self.params.items() if name not in ("submitit_folder", "max_num_timeout")}
        retries = {f"{self._EXECUTOR}_max_num_timeout": self.params["max_num_timeout"]}
        executor = submitit.AutoExecutor(cluster=self._EXECUTOR, folder=self.params["submitit_folder"], **retries)
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        executor.update_parameters(
            **{name if name in shared else f"{self._EXECUTOR}_{name}": value for name, value in given.items()}
        )
        return executor


def _outcome(job: submitit.Job[JobReturn], overrides: Sequence[str]) -> JobReturn:
    try:
        outcome: JobReturn = job.result()
    except Exception as error:  # killed, out of time or memory, or a node that went: submitit says it by several types
        say_lost(overrides, error)
        print(f"see {job.paths.stderr}", file=sys.stderr, flush=True)
        return lost(overrides)
    return outcome


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)


class LocalLauncher(_Queue):
    """Run each job in a process of submitit's own on this machine, as it would be run in Slurm."""

    _EXECUTOR = "local"

    def __call__(self, *args: Any) -> JobReturn:
        """Do one job, with its share of the CPU threads."""
        os.environ.update(environment.thread_limits(self.n_jobs))
        return cast(JobReturn, super().__call__(*args))

    def leave(self, running: Iterable[submitit.Job[JobReturn]]) -> None:
        """Interrupt the jobs, which then end by a checkpoint."""
        for job in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)


class SlurmLauncher(_Queue):
    """Run each job as one of Slurm's."""

    _EXECUTOR = "slurm"

    def __call__(self, *args: Any) -> JobReturn:
        """Do one job, on its node."""
        # Lightning then leaves Slurm alone: it starts the ranks of several GPUs by itself; submitit puts jobs back in the queue.
        os.environ["SLURM_JOB_NAME"] = "interactive"
        return cast(JobReturn, super().__call__(*args))

    def collect(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        """Run all jobs and give the outcome of each, in order."""
        missing = [command for command in ("sbatch", "srun", "sacct") if shutil.which(command) is None]
        if missing:
            raise ConfigError(
                f"hydra/launcher=submitit_slurm needs Slurm's {', '.join(missing)}, not found on PATH. Call it on a login node "
                "of the cluster, or use hydra/launcher=process here."
            )
        return super().collect(job_overrides, first)

    def leave(self, running: Iterable[submitit.Job[JobReturn]]) -> None:
        """Say that the jobs go on: they are Slurm's."""
        names = [job.job_id for job in running]
        if names:
            print(
                f"The jobs {' '.join(names)} stay in Slurm's queue (scancel {' '.join(names)} ends them). Ask again for the "
                "rest and the tables.",
                file=sys.stderr,
                flush=True,
            )
