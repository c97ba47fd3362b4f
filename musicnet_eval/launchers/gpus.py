"""GPUs leased to jobs that run at once on one host, those of several sweeps too.

A lease is a lock on files of the user's that stand for a GPU, and belongs to the open files: the job inherits them, so the system
frees the GPU when the job's process ends, however it ends, and not before, should the launcher be killed and the job run on.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from musicnet_eval.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
NONE = ("", "-1", "NoDevFiles")  # what says that no further device is visible


class Lease(NamedTuple):
    """GPUs that a job may use, and the locked files that its process is to inherit."""

    devices: tuple[str, ...]
    files: tuple[int, ...]

    def close(self) -> None:
        """Let go of the files: of the GPUs too, unless a process has inherited them."""
        for file in self.files:
            os.close(file)


def visible() -> list[str]:
    """List the GPUs that this process may use: those of `CUDA_VISIBLE_DEVICES`, else all that `nvidia-smi` knows."""
    told = os.environ.get(VISIBLE)
    if told is not None:
        return list(takewhile(lambda name: name not in NONE, (name.strip() for name in told.split(","))))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def capacity(devices: int, gpus_per_job: float) -> int:
    """Say how many jobs a number of GPUs holds.

    >>> capacity(4, 2), capacity(4, 0.5), capacity(1, 2)
    (2, 8, 0)
    """
    return devices * round(1 / gpus_per_job) if gpus_per_job < 1 else devices // int(gpus_per_job)


def check(gpus_per_job: float, devices: int) -> None:
    """Refuse a number of GPUs a job that cannot be leased.

    Raises:
        ConfigError: It is neither whole nor 1/k, or more than there are.
    """
    number = isinstance(gpus_per_job, (int, float)) and not isinstance(gpus_per_job, bool) and gpus_per_job >= 0
    share = number and 0 < gpus_per_job < 1 and abs(1 / gpus_per_job - round(1 / gpus_per_job)) < 0.05
    if not number or not (share or gpus_per_job == int(gpus_per_job)):
        raise ConfigError(
            f"hydra.launcher.gpus_per_job={gpus_per_job!r} must be a whole number, or 1/k for k jobs on each GPU: 0.5, 0.33."
        )
    if gpus_per_job > devices:
        raise ConfigError(
            f"hydra.launcher.gpus_per_job={gpus_per_job} is more than the {devices} GPUs that this process sees ({VISIBLE}="
            f"{os.environ.get(VISIBLE)!r}). Ask for fewer, or 0 to lease none."
        )


def lease(devices: Sequence[str], gpus_per_job: float) -> Lease | None:
    """Lease whole GPUs, or a share of one; None while there are not as many free.

    Whole GPUs are locked alone, shares of one together and each on a file of its own: k shares of 1/k fit, and no whole job.
    """
    if os.name != "posix":
        raise ConfigError("GPUs cannot be leased on this system, for lack of flock. Say hydra.launcher.gpus_per_job=0.")
    folder = _folder()
    if gpus_per_job < 1:
        for share in range(round(1 / gpus_per_job)):
            for device in devices:
                if held := _locked(folder, (device, False), (f"{device}.{share}", True)):
                    return Lease((device,), held)
        return None
    taken: list[str] = []
    files: tuple[int, ...] = ()
    for device in devices:
        if len(taken) < gpus_per_job and (held := _locked(folder, (device, True))):
            taken.append(device)
            files += held
    found = Lease(tuple(taken), files)
    if len(taken) == gpus_per_job:
        return found
    found.close()
    return None


def _locked(folder: Path, *asked: tuple[str, bool]) -> tuple[int, ...]:
    """Lock files by name, each alone or together with others; none at all where one of them cannot be had now."""
    import fcntl

    held: list[int] = []
    for name, alone in asked:
        file = os.open(folder / re.sub(r"[^\w.-]", "_", name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        held.append(file)
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            os.utime(file)  # what cleans temporary folders goes by age
        except OSError:
            for one in held:
                os.close(one)
            return ()
    return tuple(held)


def _folder() -> Path:
    """Make the user's folder of locks, one for each allocation of Slurm, whose GPUs are numbered from 0 again."""
    folder = Path(tempfile.gettempdir()) / f"musicnet_eval-{os.getuid()}" / f"gpus{os.environ.get('SLURM_JOB_ID', '')}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.parent.stat().st_uid != os.getuid():
        raise ConfigError(f"'{folder.parent}' belongs to someone else, so it can hold no locks. Point TMPDIR elsewhere.")
    return folder
