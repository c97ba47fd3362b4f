"""What a run ran on: hardware, package versions, and the git checkout it was started in. Layer 0; no torch import."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

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


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that can change a run's numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def hardware(device: str) -> dict[str, Any]:
    """Say what the run ran on: device, processor, cores, threads, host system."""
    torch = sys.modules["torch"]
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "device": device,
        "name": name,
        "cores": os.cpu_count(),
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
