"""What our launchers share: every job has an outcome, whatever became of its process."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from musicnet_eval import configs, environment, jobs, plans, records, runs
from musicnet_eval.errors import ConfigError, MusicnetError, TrainingError
from musicnet_eval.launchers import workers
from musicnet_eval.launchers.workers import Job

Jobs = Sequence[Sequence[str]]  # the overrides of each
UNWRITABLE = {  # what an error says of a folder that cannot be written; any other means something else
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
}


class Collecting(Launcher):
    """Give Hydra an outcome for each job, and tell the callbacks that ask for it (`take`): they see no job of another process."""

    hydra_context: HydraContext | None
    config: DictConfig | None
    common: frozenset[str]  # overrides of all jobs

    def launch(self, job_overrides: Jobs, initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, and leave with a clear line where the user must mend something.

        Args:
            job_overrides: The overrides of each job.
            initial_job_idx: Number of the first one.
        """
        assert self.config is not None
        self.common = jobs.common(job_overrides)
        try:
            returns = self.collect(job_overrides, initial_job_idx)
        except MusicnetError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except (OSError, HydraException, OmegaConfBaseException):  # `concluded` and Hydra have a word for them
            raise
        except Exception as error:  # of the package that runs the jobs
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            choice = self.config.hydra.runtime.choices["hydra/launcher"]
            print(f"error: hydra/launcher={choice}: {first_line(error)}", file=sys.stderr)
            raise SystemExit(1) from None
        self.hand_over(returns)
        if self.config.run.on_error == "stop" and not all(map(well, returns)):
            raise SystemExit(1)  # before another batch
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

    def planned(self, number: int, overrides: Sequence[str]) -> Job:
        """Compose a job's config, and give the job its name and place.

        Args:
            number: The job's place in the sweep, from 0.
            overrides: The job's.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        config = plans.job_config(self.hydra_context.config_loader, self.config, number, overrides)
        with plans.as_job(config) as asked:
            try:
                return Job(number, overrides, config, _light(plans.plan(asked)), indexed=True)
            except (Exception, SystemExit):  # its own process meets the same, says what it is, and records it in the place below
                with contextlib.suppress(Exception):
                    return Job(number, overrides, config, _light(plans.unindexed(asked)), indexed=False)
                return Job(number, overrides, config, None, indexed=False)

    def stored(self, number: int, overrides: Sequence[str], since: float | None = None) -> JobReturn | None:
        """Give the outcome of a job whose run is whole, so that it need not go to another host; None for any other.

        Args:
            number: The job's place in the sweep, from 0.
            overrides: The job's.
            since: When the job was handed out, by the clock, if it was: `run.force=true` wants a record that is not older.
        """
        with contextlib.suppress(Exception, SystemExit):  # whatever keeps a job from being planned, the job itself will say
            job = self.planned(number, overrides)
            planned = job.planned
            if planned is None or not job.done():
                return None
            if job.config.run.force and (since is None or (planned.folder / records.RESULT).stat().st_mtime < since):
                return None
            jobs.enrol(planned.folder.parent, planned.overrides, planned.folder.name)
            print(f"done{' already' if since is None else ''}: {planned.folder}", flush=True)
            told = JobReturn(overrides=list(overrides), working_dir=str(planned.folder.parent), status=JobStatus.COMPLETED)
            told.return_value = runs.outcome(planned.folder, planned.config["monitor"])
            return told
        return None

    def lost(self, number: int, overrides: Sequence[str], reason: str) -> JobReturn:
        """Give the outcome of a job whose process cannot tell it: say so, and mark a run that the process has left.

        Args:
            number: The job's place in the sweep, from 0.
            overrides: The job's.
            reason: What is known of it.
        """
        outcome, more = lost(overrides), ""
        with contextlib.suppress(Exception, SystemExit):  # what cannot be planned has no run
            planned = self.planned(number, overrides).planned
            if planned is not None and planned.folder.is_dir():
                outcome.working_dir = str(planned.folder.parent)
                if records.state(planned.folder) == "failed":  # as `run.on_error=stop` leaves it
                    more = f"; its record says: {workers.told(planned.folder)}"
                workers.mark(planned, TrainingError(f"its process was lost: {reason}"), running=True)
        print(f"lost: {apart(overrides, self.common) or 'a job'} ({reason}){more}", file=sys.stderr, flush=True)
        return outcome


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


class Rule(NamedTuple):
    """What a setting must be: in words, and as a test of its value."""

    says: str
    holds: Callable[[Any], bool]


def whole(low: int, *others: object, says: str = "") -> Rule:
    """Make the rule of a whole number.

    Args:
        low: The least.
        others: What else may stand there.
        says: The same in words, after the least.
    """
    return Rule(
        f"a whole number from {low}{says or (', or null' if None in others else '')}",
        lambda value: value in others or (type(value) is int and value >= low),
    )


def is_above(value: object, low: float = 0) -> bool:
    """Say whether a value is a number above another."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > low


def check(part: str, given: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Refuse settings of a launcher or sweeper that their packages would not take, or take for something else.

    Args:
        part: `launcher` or `sweeper`.
        given: The settings by name; those without a rule are left to the package.
        rules: By name of a setting.

    Raises:
        ConfigError: One of them breaks its rule.
    """
    for name, rule in rules.items():
        if name in given and not rule.holds(given[name]):
            raise ConfigError(f"hydra.{part}.{name}={given[name]!r} must be {rule.says}.")


def lost(overrides: Sequence[str]) -> JobReturn:
    """Give the outcome of a job that cannot tell it: none, as of one that failed."""
    return JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED, _return_value=None)


def apart(overrides: Sequence[str], common: frozenset[str]) -> str:
    """Name a job by what sets it apart in its sweep, secrets masked; all of it where nothing does.

    >>> apart(["seed=1", "loss=focal"], frozenset({"loss=focal"}))
    'seed=1'
    """
    own = [override for override in overrides if override not in common]
    return " ".join(configs.overrides_without_secrets(own or overrides))


def well(told: JobReturn) -> bool:
    """Say whether a job gave a number: one that failed gives none."""
    return told.status is JobStatus.COMPLETED and told._return_value is not None


def first_line(error: BaseException) -> str:
    """Say an error in one line, without what submitit adds of a job's log."""
    reason = " ".join(str(error).partition("\nError stream produced")[0].split())[:300]
    return environment.without_secrets(f"{type(error).__name__}: {reason}")


def _light(planned: plans.Plan) -> plans.Plan:
    """Leave out of a plan what would take memory while it waits."""
    return replace(planned, tracks=[], faults=())
