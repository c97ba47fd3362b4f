"""What W&B keeps on disk of a run's attempts: what of it is to be uploaded, in which order, and what is not. Layer 1; no wandb.

An attempt is a folder `wandb/run-<time>-<id>` or `wandb/offline-run-<time>-<id>`, of two in one second the later one with `-1`
behind it; `….synced` in it says that it is uploaded.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

SYNC = "wandb sync --no-skip-online"  # which by itself leaves out what began online, also where the server went away


def replace(folder: Path, name: str) -> None:
    """Have `wandb sync` leave out earlier attempts of a run that begins anew.

    Args:
        folder: The present attempt's.
        name: The run's id.
    """
    for earlier in folder.parent.glob(f"*run-*-{name}*"):
        if earlier.name != folder.name:
            mark_synced(earlier)


def mark_synced(folder: Path) -> None:
    """Mark an attempt's files as `wandb sync` does what it has uploaded, so that it leaves them out."""
    for file in folder.glob("run-*.wandb"):
        file.with_name(f"{file.name}.synced").touch()


def attempts(folder: Path, name: str) -> list[Path]:
    """List the attempts of a run that were not uploaded, oldest first."""
    found = [one for one in folder.glob(f"*run-*-{name}*") if not list(one.glob("run-*.wandb.synced"))]
    return sorted(found, key=lambda one: one.name.removeprefix("offline-"))


def send_earlier(folder: Path, name: str, seconds: float) -> None:
    """Upload what earlier attempts of a run have left, one that was killed say, before the run goes on.

    Uploaded later, they would be what the server takes for the run's end.

    Args:
        folder: Where attempts lie.
        name: The run's id.
        seconds: How long each upload may take.
    """
    for earlier in attempts(folder, name):
        command = [sys.executable, "-m", *SYNC.split(), str(earlier)]
        subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=seconds, check=True)
        mark_synced(earlier)  # wandb itself does not where a kill has cut the last line short


def upload_command(folder: Path, name: str) -> str:
    """Give the shell's command that uploads a run: several attempts one by one, as wandb stops at a killed one."""
    files = f"{shlex.quote(str(folder))}/*run-*-{name}*"
    if len(attempts(folder, name)) > 1:
        return f'for run in {files}; do {SYNC} "$run"; done'
    return f"{SYNC} {files}"
