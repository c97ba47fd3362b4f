"""A job of a sweep as a process of its own: started, asked to stop, and judged by what it left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from musicnet_eval import records, runs
from musicnet_eval.errors import RecordError, TrainingError
from musicnet_eval.launchers.gpus import VISIBLE, Lease
from musicnet_eval.plans import Plan

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)  # exit codes of who was asked to stop
PATIENCE = 10.0  # seconds for the children of a killed process to let go of its run's lock


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        number: Its place in the sweep, from 0.
        overrides: What it was asked for with.
        config: Its composed config, Hydra's node included.
        planned: Its name and place, without tracks; None where the config is too broken to have one.
        indexed: Whether its data could be listed: if not, its process will say why, and `planned` is the place for that.
    """

    number: int
    overrides: Sequence[str]
    config: DictConfig
    planned: Plan | None
    indexed: bool

    @property
    def title(self) -> str:
        return self.planned.title if self.planned else " ".join(self.overrides)

    @property
    def log(self) -> Path:
        """Name the file that its process writes to."""
        if self.planned:
            return self.planned.folder / records.CONSOLE
        return Path(str(self.config.hydra.sweep.dir)) / f"job-{self.number}-{records.CONSOLE}"

    def done(self) -> bool:
        """Say whether its run is whole, whoever did it."""
        if self.planned is None or not self.indexed:
            return False
        try:
            return runs.is_done(self.planned.folder, self.planned.signature)
        except OSError:  # a folder that may not be looked into: who cannot do the job either says so
            return False

    def metric(self) -> float | None:
        """Give the monitored metric of its whole run, NaN for none; None where somebody has taken the run away just now."""
        assert self.planned is not None
        try:
            return runs.outcome(self.planned.folder, self.planned.config["monitor"])
        except RecordError:
            return None


class Worker:
    """The process of one job.

    Args:
        job: The job.
        command: What to start.
        environment: Its environment, but for the GPUs.
        lease: The GPUs it may use; None leaves them as they are.
    """

    def __init__(self, job: Job, command: Sequence[str], environment: Mapping[str, str], lease: Lease | None) -> None:
        self.job = job
        self.started = time.monotonic()
        self.before = _moment(job)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        own = {**environment, VISIBLE: ",".join(lease.devices)} if lease else dict(environment)
        with job.log.open("ab") as log:
            log.write(f"--- {records.now()} job {job.number}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                command,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=lease.files if lease else (),
                process_group=0 if os.name == "posix" else None,  # Ctrl-C reaches the launcher, which tells each job once
            )

    def ended(self) -> bool:
        """Say whether the process has ended; what is left of a killed one's children is ended too."""
        code = self.process.poll()
        if code is not None and code < 0:
            self._signal_group(signal.SIGKILL)
        return code is not None

    def stop(self) -> None:
        """Ask the process to stop, as SIGTERM does: it keeps a checkpoint and marks its run as interrupted."""
        self.process.terminate()

    def kill(self) -> None:
        """End the process and its children at once."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def verdict(self, *, stopping: bool) -> str:
        """Say why the job is not done, "" when it is; a run that was killed, or left without a word, is marked by this.

        Args:
            stopping: Whether the process was asked to stop.
        """
        code, planned = self.process.returncode, self.job.planned
        if self.job.done() and (code == 0 or _moment(self.job) != self.before):  # whole, though its process may end badly
            return ""
        if code in STOPPED and (stopping or code > 0):
            if planned is not None:
                mark(planned, None)
            return "interrupted"
        state = records.state(planned.folder) if planned else "unknown"
        if code > 0 and state == "failed" and planned:
            return told(planned.folder)
        reason = _reason(code)
        if code > 0 and state == "interrupted":
            return f"interrupted: {reason}"
        if planned is not None:
            mark(planned, TrainingError(reason))
        return reason

    def last_lines(self, count: int = 5) -> list[str]:
        """Give the last lines that the process wrote; none where its run folder was moved or removed meanwhile."""
        try:
            with self.job.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
                return file.read().decode("utf8", "replace").splitlines()[-count:]
        except OSError:
            return []


def _moment(job: Job) -> int | None:
    """Give the time of a run's record, which tells an earlier one from one that was just written."""
    try:
        return (job.log.parent / records.RESULT).stat().st_mtime_ns
    except OSError:
        return None


def command(config: DictConfig, number: int, overrides: Sequence[str]) -> list[str]:
    """Give the command of one job of a sweep.

    Args:
        config: The sweep's own config.
        number: The job's place in the sweep, from 0.
        overrides: The job's.
    """
    flags = [f"--config-name={config.hydra.job.config_name}"]
    for source in config.hydra.runtime.config_sources:
        if source.provider in ("main", "command-line"):
            flag = "--config-path" if source.provider == "main" else "--config-dir"
            flags.append(f"{flag}={source.path}" if source.schema == "file" else f"{flag}={source.schema}://{source.path}")
    asked = cast(list[str], OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False))  # a secret stays a ${…}
    shared = [each for each in asked if not each.startswith("hydra.mode=")]
    own = ["hydra.mode=RUN", f"hydra.job.num={number}", f"hydra.job.id={number}"]
    return [sys.executable, "-m", "musicnet_eval.train", *flags, *shared, *overrides, *own]


def _reason(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        why = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{why}"
    if code == 0:
        return (
            "its process ended well, but its record is not where its overrides place it; have data or configs changed meanwhile?"
        )
    return f"its process left with exit code {code} and said nothing of it"


def told(folder: Path) -> str:
    """Give the error that a run that failed has written down."""
    try:
        return str(records.read_json(folder / records.FAILED).get("error"))
    except RecordError as error:
        return str(error)


def mark(planned: Plan, error: TrainingError | None, *, running: bool = False) -> None:
    """Write down that a run failed, or that it was interrupted before it could say so; not while another process is at it.

    Where that cannot be written, as on a full disk, the sweep goes on: it says what it knows of the job itself.

    Args:
        planned: The run.
        error: How it failed; None when it was interrupted.
        running: Whether to leave alone what is not marked as running: another process may have begun it, or none at all.
    """
    if running and records.state(planned.folder) != "running":
        return
    with contextlib.suppress(OSError):  # the lock's Timeout is one too
        planned.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(planned.folder / runs.LOCK, timeout=PATIENCE):
            if (planned.folder / records.RESULT).exists():  # of an earlier attempt, which stays whole
                return
            if running and records.state(planned.folder) != "running":
                return
            if error is not None:
                runs.fail(planned.folder, error, f"{type(error).__name__}: {error}\n", planned.about)
            elif records.state(planned.folder) == "running":
                runs.interrupt(planned.folder)
