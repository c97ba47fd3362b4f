"""`hydra/launcher=process`: each job of a sweep in an interpreter of its own, several at once.

plan a job here (no torch) → pass over it if it is done, put it aside while another process is at it → lease GPUs → start
`python -m musicnet_eval.train` with its overrides → read what became of it from its run folder. What a job does can end its own
process only. A job is told its number, by which it knows that it belongs to a sweep (`plans.sweeping`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from musicnet_eval import environment, jobs, plans, status
from musicnet_eval.launchers import gpus, workers
from musicnet_eval.launchers.collecting import Collecting, Jobs, check, whole
from musicnet_eval.launchers.gpus import Lease
from musicnet_eval.launchers.progress import Progress
from musicnet_eval.launchers.workers import Job, Worker

MOST_ON_CPU = 4  # jobs at once by default: each takes about a gigabyte
TICK = 0.1  # seconds between two looks at what runs
RETRY = 2.0  # seconds between two looks at what another process is at


class ProcessLauncher(Collecting):
    """Run each job of a sweep in an interpreter of its own.

    Args:
        n_jobs: Jobs at once; when None, as many as the visible GPUs hold, and without GPUs one a CPU core, four at most.
        gpus_per_job: GPUs of each job: whole ones, or 1/k for k jobs on one; 0 leases none and leaves `CUDA_VISIBLE_DEVICES`
            alone; when None, `trainer.devices` of them, and none with `trainer.accelerator=cpu`.
    """

    config: DictConfig

    def __init__(self, n_jobs: int | None = None, gpus_per_job: float | None = None) -> None:
        self.n_jobs = n_jobs
        self.gpus_per_job = gpus_per_job

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what a sweep has for all its jobs; each job's process finds the task by itself."""
        del task_function
        self.hydra_context = hydra_context
        self.config = config

    def collect(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        """Do all jobs, and give their monitored metrics in order, None for one that is not done."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        self.devices = [] if self.gpus_per_job == 0 else gpus.visible()
        self.at_once = self._at_once()
        threads = environment.thread_limits(min(self.at_once, len(job_overrides)))
        self.environment = {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}
        self.asked = enumerate(job_overrides, first)
        self.running: list[Worker] = []
        self.aside: list[Job] = []  # what another process is at, and what waits for a GPU
        self.look_again = 0.0  # at what was put aside
        self.short = False  # of GPUs
        self.leave: int | None = None  # exit code with which to leave before all jobs are done
        self.returns: dict[int, JobReturn] = {}
        self.folders: set[Path] = set()
        with self._signals(), Progress(job_overrides, first, self.at_once, self._total()) as self.progress:
            leave = self._run()
        returns = [self.returns[number] for number in sorted(self.returns)]
        if leave is not None:
            self.hand_over(returns)
            raise SystemExit(leave)
        return returns

    def _total(self) -> int:
        """Say how many jobs the sweep has in all its batches, as far as a callback knows."""
        assert self.hydra_context is not None
        return max((getattr(callback, "total", 0) for callback in self.hydra_context.callbacks.callbacks), default=0)

    def _at_once(self) -> int:
        check("launcher", {"n_jobs": self.n_jobs}, {"n_jobs": whole(1, None)})
        if self.gpus_per_job is not None:
            gpus.check(self.gpus_per_job, len(self.devices))
        return self.n_jobs or self.places(len(self.devices))

    def places(self, devices: int | None = None) -> int:
        """Say how many jobs run at once where `n_jobs` does not.

        Args:
            devices: How many GPUs are visible; looked for when None.
        """
        found = len(gpus.visible()) if devices is None else devices
        if found and self.gpus_per_job != 0:
            return max(1, gpus.capacity(found, self.gpus_per_job or 1))
        return min(MOST_ON_CPU, environment.cores())

    # --- the jobs -------------------------------------------------------------------------------------------------------------

    def _run(self) -> int | None:
        """Keep as many jobs running as may be, until all are done or it is time to leave: then give the exit code."""
        asked_to_stop = False
        while True:
            for worker in [worker for worker in self.running if worker.ended()]:
                self.running.remove(worker)
                self._judge(worker, stopping=asked_to_stop)
                self.look_again = 0.0
            if self.leave is not None and not asked_to_stop:
                asked_to_stop = True
                self.progress.stopping(self.running)
                for worker in self.running:
                    worker.stop()
            while self.leave is None and len(self.running) < self.at_once and (found := self._next()):
                self._start(*found)
            if not self.running and (self.leave is not None or not self.aside):
                return self.leave
            self.progress.refresh(self.running)
            time.sleep(TICK)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first Ctrl-C or SIGTERM stop the jobs in peace, and the second at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            if self.leave is not None:
                for worker in self.running:
                    worker.kill()
            self.leave = 128 + number

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for worker in self.running:  # whatever went wrong here: none is left behind
                worker.stop()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _next(self) -> tuple[Job, Lease | None] | None:
        """Find a job that can be started now, and its GPUs; those that are done are passed over on the way."""
        if self.aside and time.monotonic() >= self.look_again:
            self.look_again, self.short = time.monotonic() + RETRY, False
            for job in list(self.aside):
                if self._busy(job):
                    continue
                self.aside.remove(job)
                if self._passed_over(job):
                    continue
                if found := self._equipped(job):
                    return found
                if self.short:
                    break
        # One that waits for a GPU waits with all the others; what other processes are at is no reason to wait.
        while not self.short and self.leave is None and (asked := next(self.asked, None)):
            job = self.planned(*asked)
            if self._busy(job):
                self.aside.append(job)
                self.progress.waits(job, ours=self._ours(job))
            elif not self._passed_over(job) and (found := self._equipped(job)):
                return found
        return None

    def _busy(self, job: Job) -> bool:
        """Say whether a process, ours or not, is at a job's run now."""
        return self._ours(job) or status.is_locked(job.log.parent) is True

    def _ours(self, job: Job) -> bool:
        return any(worker.job.log == job.log for worker in self.running)

    def _passed_over(self, job: Job) -> bool:
        """Say whether a job needs no process, since its run is whole, and note its outcome."""
        if job.config.run.force or not job.done():
            return False
        assert job.planned is not None
        jobs.enrol(job.planned.folder.parent, job.planned.overrides, job.planned.folder.name)
        self.progress.passed_over(job)
        self._note(job, job.metric())
        return True

    def _equipped(self, job: Job) -> tuple[Job, Lease | None] | None:
        """Lease a job's GPUs, or put it aside until there are some."""
        wanted = self._gpus(job)
        if not wanted:
            return job, None
        lease = gpus.lease(self.devices, wanted)
        if lease is None:
            self.aside.append(job)
            self.short = True
            return None
        return job, lease

    def _gpus(self, job: Job) -> float:
        """Say how many GPUs a job needs: as told, else as its trainer is going to use."""
        if self.gpus_per_job is not None or not self.devices or job.planned is None:
            return self.gpus_per_job or 0
        trainer = job.planned.config["trainer"]
        if trainer.get("accelerator") == "cpu":
            return 0
        devices, there = trainer.get("devices"), len(self.devices)
        if isinstance(devices, list):
            devices = 1 + max(devices, default=0)  # they are numbers among those that the job sees
        if devices == -1:
            return there
        return min(there, devices) if isinstance(devices, int) and devices > 0 else 1

    def _start(self, job: Job, lease: Lease | None) -> None:
        command = workers.command(self.config, job.number, job.overrides)
        try:
            self.running.append(Worker(job, command, self.environment, lease))
            self.progress.begun(job)
        except OSError as error:
            self._fail(job, f"its process cannot be started ({error.strerror or error})", [])
        finally:
            if lease is not None:
                lease.close()  # the process holds them now

    def _judge(self, worker: Worker, *, stopping: bool) -> None:
        """Note what became of a job whose process has ended."""
        if worker.process.returncode == 0 and not worker.job.done():  # its data has turned up, or changed, meanwhile
            plans.forget_listings()
            worker.job = self.planned(worker.job.number, worker.job.overrides)
        reason = worker.verdict(stopping=stopping)
        if reason:
            self._fail(worker.job, reason, [] if stopping else worker.last_lines())
        else:
            self.progress.done(worker, self.running)
            self._note(worker.job, worker.job.metric())

    def _fail(self, job: Job, reason: str, said: Sequence[str]) -> None:
        self.progress.failed(job, reason, said)
        self._note(job, None)
        if job.config.run.on_error == "stop" and self.leave is None:
            self.leave = 1

    def _note(self, job: Job, value: float | None) -> None:
        """Give Hydra the outcome of a job: the config of one job for each folder, since ten thousand would not fit in memory."""
        told = JobReturn(overrides=list(job.overrides), status=JobStatus.COMPLETED, _return_value=value)
        place = job.log.parent.parent
        if job.planned is not None and place not in self.folders:
            self.folders.add(place)
            told.cfg, told.hydra_cfg = job.config, job.config
        self.returns[job.number] = told
