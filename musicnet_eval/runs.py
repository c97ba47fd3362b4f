"""One run's life on disk: its name, `status.json`, and how it ends. Layer 2; imports no torch.

`begin` → (`update_status` …) → `finish`, `fail` or `interrupt`. `result.json` is written last of all, by rename: it exists only
when everything else of the run does.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from musicnet_eval import environment, records
from musicnet_eval.contracts import RunRecord
from musicnet_eval.errors import AttemptsError, ConfigError, RecordError

LOCK = ".lock"
EARLIER = ".earlier"  # hidden from readers: what an attempt that begins anew has found, until it ends
RECORD = (records.RESULT, records.PREDICTIONS, records.PLANTED, records.SUSPECTS)  # the first says that the others are whole
PROGRESS = (records.METRICS, "checkpoints", "pictures", records.LOGS)  # what an attempt that is cut short leaves to go on from


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


def outcome(folder: Path, monitor: str) -> float:
    """Give a metric of a whole run; NaN where it has no number."""
    value = records.read_result(folder)["metrics"].get(monitor)
    return math.nan if value is None else value


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a run folder for as long as the run lives, so that two sweeps never write one; a kill frees it.

    Raises:
        ConfigError: It cannot be written.
    """
    held = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except Timeout:
            print(f"waits: another process is at {folder}", flush=True)
            held.acquire()
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        yield
    finally:
        held.release()


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Say that nothing can be written to a folder of runs."""
    return ConfigError(f"'{folder}' cannot be written ({error.strerror}). Make room, or give another paths.runs.")


def keep_checkpoints(folder: Path, which: str) -> None:
    """Remove the checkpoints of a whole run that are not to be kept: `none`, `best` or `all` are."""
    if which != "all":
        last_checkpoint(folder).unlink(missing_ok=True)
    if which == "none":
        best_checkpoint(folder).unlink(missing_ok=True)


def last_checkpoint(folder: Path) -> Path:
    """Name the checkpoint from which a run that was cut short goes on."""
    return folder / "checkpoints" / "last.ckpt"


def best_checkpoint(folder: Path) -> Path:
    """Name the checkpoint of a run's best epoch by the monitored metric."""
    return folder / "checkpoints" / "best.ckpt"


def begin(folder: Path, signature: str, config_yaml: str, *, fresh: bool = False, max_attempts: int | None = None) -> int:
    """Mark a run as running and give the number of this attempt, from 1.

    What an attempt that was cut short has left (checkpoints, `metrics.csv`) stays, to go on from; what a whole run or a run of
    another signature has left is put aside, and all of it when the run is to start `fresh`. `take_back` brings it back; if the
    attempt ends in any other way, it goes.

    Args:
        folder: The run's folder, whose lock is held.
        signature: The run's.
        config_yaml: What `config.yaml` is to hold.
        fresh: Whether to forget what was there.
        max_attempts: How many attempts may fail or be killed; any number when None. One that a signal interrupted is not counted.

    Raises:
        AttemptsError: That many have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for half in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):  # what a kill left of a file that was being written
        half.unlink(missing_ok=True)
    before = _earlier(folder)
    attempt = int(before.get("attempt", 0)) + 1
    anew = fresh or before.get("signature") != signature or (folder / records.RESULT).exists()
    failures = 0 if anew else _failures(before)
    if max_attempts is not None and failures >= max_attempts:
        times = "once" if failures == 1 else f"{failures} times"
        raise AttemptsError(
            f"The run has failed {times}, and run.max_attempts={max_attempts} allows no more ({_reason(folder)}). "
            "Mend the cause and say run.force=true, which starts it afresh, or raise run.max_attempts."
        )
    found = [name for name in (*RECORD, *(PROGRESS if anew else ())) if (folder / name).exists()]
    _remove(folder / EARLIER)
    if anew and found:
        (folder / EARLIER).mkdir()
        for name in (records.CONFIG, records.STATUS):
            if (folder / name).exists():
                shutil.copy2(folder / name, folder / EARLIER)
    records.write_json(
        folder / records.STATUS,
        {
            "state": "running",
            "signature": signature,
            "attempt": attempt,
            "failures": failures,
            "epoch": 0,
            "started": records.now(),
            "heartbeat": records.now(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        },
    )
    records.write_text(folder / records.CONFIG, config_yaml)
    for name in found:  # last: where the disk is full, an earlier record stays
        if anew:
            (folder / name).replace(folder / EARLIER / name)
        else:
            _remove(folder / name)
    return attempt


def take_back(folder: Path) -> None:
    """Make a run what it was before an attempt that began it anew and was refused."""
    earlier = folder / EARLIER
    if not earlier.is_dir():
        return
    for name in (*PROGRESS, *reversed(RECORD), records.CONFIG, records.STATUS):
        _remove(folder / name)
        if (earlier / name).exists():
            (earlier / name).replace(folder / name)
    _remove(earlier)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def start_over(folder: Path) -> None:
    """Remove what an attempt has left to go on from."""
    for name in PROGRESS:
        _remove(folder / name)


def _earlier(folder: Path) -> dict[str, Any]:
    """Give what `status.json` says of earlier attempts; nothing where it is not there, or damaged."""
    try:
        before = records.read_json(folder / records.STATUS)
        counts = {name: int(before.get(name) or 0) for name in ("attempt", "failures")}
    except (RecordError, TypeError, ValueError):
        return {}
    return before | counts


def _failures(before: Mapping[str, Any]) -> int:
    """Count the attempts that failed or were killed: who holds the lock and reads "running" sees a run that was killed."""
    return int(before["failures"]) + (before.get("state") in ("failed", "running")) if before else 0


def _reason(folder: Path) -> str:
    try:
        return f"the last time by {records.read_json(folder / records.FAILED).get('error')}"
    except RecordError:
        return "it was killed, and left no word why"


def update_status(folder: Path, **fields: Any) -> None:
    """Change some fields of `status.json` and renew its heartbeat."""
    try:
        status = records.read_json(folder / records.STATUS)
    except RecordError:
        status = {}
    records.write_json(folder / records.STATUS, {**status, **fields, "heartbeat": records.now()})


def is_ours(folder: Path) -> bool:
    """Say whether the folder's present attempt is this process's: another one may have begun since its lock was free."""
    told = _earlier(folder)
    return (told.get("pid"), told.get("host")) == (os.getpid(), socket.gethostname())


def finish(folder: Path, record: RunRecord) -> None:
    """Write the record of a whole run, and take back an earlier failure; with the record it is done, whatever comes after."""
    records.write_json(folder / records.RESULT, record)
    with contextlib.suppress(OSError):
        (folder / records.FAILED).unlink(missing_ok=True)
        _remove(folder / EARLIER)
        update_status(folder, state="done")


def fail(folder: Path, error: BaseException, traceback: str, about: Mapping[str, Any]) -> None:
    """Write `failed.json`: the error in one line, its traceback, and what was asked for; a refusal leaves that of its cause."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove(folder / EARLIER)
    if isinstance(error, AttemptsError) and (folder / records.FAILED).exists():
        update_status(folder, state="failed")
        return
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    value = {
        "status": "failed",
        "error": environment.without_secrets(f"{type(error).__name__}: {first}"),
        "traceback": environment.without_secrets(traceback),
        "details": getattr(error, "details", {}),
        **about,
        "finished": records.now(),
    }
    records.write_json(folder / records.FAILED, value)
    update_status(folder, state="failed")


def interrupt(folder: Path) -> None:
    """Mark a run that a signal stopped, unless its record was written just before."""
    _remove(folder / EARLIER)
    if not (folder / records.RESULT).exists():
        update_status(folder, state="interrupted")


def forget_failure(folder: Path) -> None:
    """Remove a run folder that never got anywhere: it holds no metrics, checkpoints or pictures."""
    kept = {records.FAILED, records.STATUS, records.CONFIG, records.CONSOLE, LOCK}
    if folder.is_dir() and kept.issuperset(path.name for path in folder.iterdir()):
        shutil.rmtree(folder)
