"""What our launchers share: every job has an outcome, whatever became of its process."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from musicnet_eval import jobs, plans, records, runs
from musicnet_eval.errors import ConfigError, MusicnetError

Jobs = Sequence[Sequence[str]]  # the overrides of each
UNWRITABLE = {  # what an error says of a folder that cannot be written; any other means something else
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


class Collecting(Launcher):
    """Give Hydra an outcome for each job, and tell the callbacks that ask for it (`take`): they see no job of another process."""

    hydra_context: HydraContext | None

    def launch(self, job_overrides: Jobs, initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, and leave with a clear line where the user must mend something.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: Number of the first one.
        """
        try:
            returns = self.collect(job_overrides, initial_job_idx)
        except MusicnetError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        self.hand_over(returns)
        return returns

    def hand_over(self, returns: Sequence[JobReturn]) -> None:
        """Tell the callbacks what became of the jobs."""
        assert self.hydra_context is not None
        for callback in self.hydra_context.callbacks.callbacks:
            if hasattr(callback, "take"):
                callback.take(returns)

    @abstractmethod
    def collect(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        """Run all jobs and give the outcome of each, in order."""


@contextlib.contextmanager
def concluded(context: HydraContext | None, config: DictConfig) -> Iterator[None]:
    """Have a sweep's tables written also where `run.on_error=stop` ends it: Hydra leaves that out after an exception.

    Args:
        context: Hydra's.
        config: The sweep's own config.
    """
    try:
        yield
    except SystemExit as stop:
        if stop.code == 1 and config.run.on_error == "stop" and context is not None:
            context.callbacks.on_multirun_end(config=config)
        raise
    except OSError as error:  # of what Hydra writes for a sweep: jobs keep theirs to themselves
        if error.errno not in UNWRITABLE:
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        refusal = runs.unwritable(Path(config.hydra.sweep.dir), error)
        print(f"error: {refusal}", file=sys.stderr)
        raise SystemExit(refusal.exit_code) from None


def end_with(parent: int) -> None:
    """End this process, by SIGTERM, once the one that started it is gone.

    Args:
        parent: Process number of that one.
    """
    while os.getppid() == parent:
        time.sleep(1)
    while True:  # the first one interrupts a run, which ends well; the next one finds the process idle
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)


def check_jobs(n_jobs: object, *, or_all: bool = False) -> None:
    """Refuse a number of jobs at once that is none.

    Args:
        n_jobs: As asked for.
        or_all: Whether -1 may stand for one a core.

    Raises:
        ConfigError: It is not a whole number from 1.
    """
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or (n_jobs < 1 and not (or_all and n_jobs == -1)):
        raise ConfigError(
            f"hydra.launcher.n_jobs={n_jobs!r} must be a whole number from 1{', or -1 for one a core' if or_all else ''}."
        )


def stored(context: HydraContext, sweep: DictConfig, number: int, overrides: Sequence[str]) -> JobReturn | None:
    """Give the outcome of a job whose run is whole, so that it need not go to another host; None for any other.

    Args:
        context: Hydra's.
        sweep: The sweep's own config.
        number: The job's place in the sweep, from 0.
        overrides: The job's.
    """
    with contextlib.suppress(Exception, SystemExit):  # whatever keeps a job from being planned, the job itself will say
        config = plans.job_config(context.config_loader, sweep, number, overrides)
        with plans.as_job(config) as asked:
            planned = plans.plan(asked)
        if not config.run.force and runs.is_done(planned.folder, planned.signature):
            jobs.enrol(planned.folder.parent, planned.overrides, planned.folder.name)
            print(f"done already: {planned.folder}", flush=True)
            value = records.read_result(planned.folder)["metrics"].get(planned.config["monitor"])
            told = JobReturn(overrides=list(overrides), working_dir=str(planned.folder.parent), status=JobStatus.COMPLETED)
            told.return_value = value
            return told
    return None


def lost(overrides: Sequence[str]) -> JobReturn:
    """Give the outcome of a job that cannot tell it: none, as of one that failed."""
    return JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=None)


def say_lost(overrides: Sequence[str], error: BaseException) -> None:
    """Print one line on a job that was lost."""
    reason = " ".join(str(error).split())[:300]
    print(f"lost: {' '.join(overrides) or 'a job'} ({type(error).__name__}: {reason})", file=sys.stderr, flush=True)
