"""What a run ran on: hardware, package versions, and the git checkout it was started in. Layer 0; no torch import."""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What a key or variable is called that holds one; the shell's PWD and SSH_AUTH_SOCK do not.
SECRET = re.compile(r"(?i)(api_?key|_key$|token|secret|passw|credential|webhook|dsn$|_pwd$|(^|[_.])(auth|pat)$)")
_LOGIN = re.compile(r"://[^\s/:@]*:[^\s/@]+@")  # name and password in an address
_HELD = re.compile(  # such a key inside a value, `{api_key:…}`, and what it holds
    r"""(?i)([\w.]*(?:api_?key|_key(?=["'\s:=])|token|secret|passw|credential)\w*["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,}\]]+)"""
)
PACKAGES = (
    "musicnet-eval",
    "torch",
    "torchaudio",
    "torchvision",
    "timm",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "soundfile",
    "soxr",
)

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that can change a run's numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def cores() -> int:
    """Count the CPU cores that this process may use: by its affinity, and by the time that its control groups allow."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *cgroup_limits()]))


def thread_limits(jobs: int) -> dict[str, str]:
    """Share the cores among as many jobs as run at once: variables that limit each one's threads, unless some are set already.

    They must be set before torch is imported.
    """
    told = any(name in os.environ for name in THREADS)
    return {} if told else dict.fromkeys(THREADS, str(max(1, cores() // max(1, jobs))))


def cgroup_limits(told: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Read how many cores each control group above this process allows, rounded up; nothing where none limits it.

    Reference: Linux, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (`cpu.cfs_quota_us`).
    """
    limits = []
    for line in _text(told).splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = mounted / controllers / inside.strip("/")
        for group in (folder, *folder.parents):
            words = _text(group / "cpu.max").split() or [
                *_text(group / "cpu.cfs_quota_us").split(),
                *_text(group / "cpu.cfs_period_us").split(),
            ]
            if len(words) == 2 and words[0].isdigit():  # not "max", nor -1
                limits.append(math.ceil(int(words[0]) / int(words[1])))
            if group == mounted:
                break
    return limits


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def processor() -> str:
    """Name the processor, as the system knows it."""
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware(device: str) -> dict[str, Any]:
    """Say what the run ran on: device, processor, cores, threads, host system."""
    torch = sys.modules["torch"]
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return {
        "device": device,
        "name": name,
        "cores": os.cpu_count(),
        "usable_cores": cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def git() -> dict[str, Any]:
    """Give commit and cleanliness of the checkout in the working folder; empty where there is none."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def without_held_secrets(text: str) -> str:
    """Put `***` in place of what keys hold that are called like secrets, in a dictionary that was typed, say `{api_key:…}`."""
    return _HELD.sub(r"\1***", text)


def without_logins(text: str) -> str:
    """Put `***` in place of name and password in addresses: `postgres://***@host/base`."""
    return _LOGIN.sub("://***@", text)


def without_secrets(text: str) -> str:
    """Put `***` in place of logins in addresses, and of the values of environment variables that their names call secret.

    Values below 8 characters stay: they could be anything.
    """
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return without_logins(text)
