"""One run's life on disk: its name, `status.json`, and how it ends. Layer 1; imports no torch.

`begin` → (`update_status` …) → `finish`, `fail` or `interrupt`. `result.json` is written last of all, by rename: it exists only
when everything else of the run does.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicnet_eval import records
from musicnet_eval.contracts import RunRecord
from musicnet_eval.errors import RecordError


def leaf(backbone: str, loss: str, seed: int, signature: str) -> str:
    """Name a run's folder: `<backbone>-<loss>-s<seed>-<signature>`, `/` in names becoming `_`."""
    return f"{backbone}-{loss}-s{seed}-{signature}".replace("/", "_")


def is_done(folder: Path, signature: str) -> bool:
    """Say whether a folder holds the finished run of this signature."""
    if not (folder / records.RESULT).exists():
        return False
    try:
        return records.read_result(folder)["signature"] == signature
    except RecordError:
        return False


def begin(folder: Path, signature: str, config_yaml: str) -> int:
    """Mark a run as running and give the number of this attempt, from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        attempt = int(records.read_json(folder / records.STATUS).get("attempt", 0)) + 1
    except (RecordError, TypeError, ValueError):
        attempt = 1
    for name in (records.RESULT, records.PREDICTIONS, records.METRICS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    with records.replacing(folder / records.CONFIG) as temporary:
        temporary.write_text(config_yaml, encoding="utf8")
    records.write_json(
        folder / records.STATUS,
        {
            "state": "running",
            "signature": signature,
            "attempt": attempt,
            "epoch": 0,
            "started": records.now(),
            "heartbeat": records.now(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        },
    )
    return attempt


def update_status(folder: Path, **fields: Any) -> None:
    """Change some fields of `status.json` and renew its heartbeat."""
    try:
        status = records.read_json(folder / records.STATUS)
    except RecordError:
        status = {}
    records.write_json(folder / records.STATUS, {**status, **fields, "heartbeat": records.now()})


def finish(folder: Path, record: RunRecord) -> None:
    """Write the record of a whole run, and take back an earlier failure."""
    records.write_json(folder / records.RESULT, record)
    (folder / records.FAILED).unlink(missing_ok=True)
    update_status(folder, state="done")


def fail(folder: Path, error: BaseException, traceback: str, about: Mapping[str, Any]) -> None:
    """Write `failed.json`: the error in one line, its traceback, and what was asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    value = {
        "status": "failed",
        "error": f"{type(error).__name__}: {first}",
        "traceback": traceback,
        **about,
        "finished": records.now(),
    }
    records.write_json(folder / records.FAILED, value)
    update_status(folder, state="failed")


def interrupt(folder: Path) -> None:
    """Mark a run that a signal stopped."""
    update_status(folder, state="interrupted")


def forget_failure(folder: Path) -> None:
    """Remove a run folder that never got anywhere: it holds no metrics, checkpoints or pictures."""
    kept = {records.FAILED, records.STATUS, records.CONFIG}
    if folder.is_dir() and kept.issuperset(path.name for path in folder.iterdir()):
        shutil.rmtree(folder)
