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
from musicnet_eval.launchers.collecting import Collecting, Jobs, Rule, check, first_line, is_above, lost, well, whole

POLL_SECONDS = 0.5
ONE = Rule("1: a run is one task, and its GPUs are on one node", lambda value: value == 1 and not isinstance(value, bool))
RULES = {
    "n_jobs": whole(1),
    "timeout_min": whole(1),
    "gpus_per_node": whole(0, None),
    "nodes": ONE,
    "tasks_per_node": ONE,
    "stderr_to_stdout": Rule("true or false", lambda value: isinstance(value, bool)),
    "max_num_timeout": whole(0),
    "signal_delay_s": whole(0),
    "mem_gb": Rule("a number above 0, or null", lambda value: value is None or is_above(value)),
    **dict.fromkeys(("cpus_per_task", "cpus_per_gpu", "gpus_per_task"), whole(1, None)),
}


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
        check("launcher", {"n_jobs": self.n_jobs, **self.params}, RULES)
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
                    if (done := self.stored(number, overrides)) is not None:
                        outcomes[index] = done
                        continue
                    call = (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
                    running[index] = self.submit(executor, call)
                for index in [index for index, job in running.items() if job.done()]:
                    outcomes[index] = self._outcome(running.pop(index), first + index, job_overrides[index])
                    if self.config.run.on_error == "stop" and not well(outcomes[index]):
                        waiting.clear()  # what is in the queue is waited for
                time.sleep(POLL_SECONDS if running else 0)
        except BaseException:
            self.leave(running.values())
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
        return [outcomes.get(index) or lost(overrides) for index, overrides in enumerate(job_overrides)]

    def submit(self, executor: submitit.AutoExecutor, call: Sequence[Any]) -> submitit.Job[JobReturn]:
        """Put a job into the queue.

        Args:
            executor: Submitit's.
            call: What this launcher is to be called with there.
        """
        return executor.submit(self, *call)

    def _outcome(self, job: submitit.Job[JobReturn], number: int, overrides: Sequence[str]) -> JobReturn:
        try:
            outcome: JobReturn = job.result()
        except Exception as error:  # killed, out of time or memory, or a node that went: submitit says it by several types
            outcome = self.lost(number, overrides, first_line(error))
            print(f"see {job.paths.stderr}", file=sys.stderr, flush=True)
        return outcome

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


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)


class LocalLauncher(_Queue):
    """Run each job in a process of submitit's own on this machine, as it would be run in Slurm.

    Ctrl-C in the terminal is for the sweep, which then interrupts each job once: submitit's own processes would kill theirs.
    """

    _EXECUTOR = "local"

    def __call__(self, *args: Any) -> JobReturn:
        """Do one job, with its share of the CPU threads."""
        signal.signal(signal.SIGTERM, _stop)  # submitit would have it pass, as long as a run has not begun
        os.environ.update(environment.thread_limits(self.n_jobs))
        return cast(JobReturn, super().__call__(*args))

    def submit(self, executor: submitit.AutoExecutor, call: Sequence[Any]) -> submitit.Job[JobReturn]:
        """Start a job, with SIGINT blocked: that is handed down to submitit's process, and to the job's."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(executor, call)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def leave(self, running: Iterable[submitit.Job[JobReturn]]) -> None:
        """Interrupt the jobs, and wait until they have ended by a checkpoint; another Ctrl-C does not wait."""
        jobs = list(running)
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        if jobs:
            print("stopping: the jobs keep a checkpoint and end", file=sys.stderr, flush=True)
        while not all(job.done() for job in jobs):
            time.sleep(POLL_SECONDS)


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
