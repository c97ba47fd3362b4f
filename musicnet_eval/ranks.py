"""One run on several devices: which of its processes leads, how the others are started, watched and ended. Layer 3; no torch.

The leader has the run folder: lock, status, tables, loggers and record are its own. On one host it starts the others itself, as
the command it was started with, once audio is decoded, so that they find all of it in the cache; what they say goes to
`rank-<n>.log`. Under `torchrun` or `srun` all processes are there from the start: the others wait until the leader says that it
is ready. A process that ends badly ends the run: the leader says which, and what it said last.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from musicnet_eval import environment, records, runs
from musicnet_eval.errors import MusicnetError, RecordError, TrainingError

RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")  # as torchrun, Slurm and Lightning tell a process its place
LAUNCH = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_PORT")  # name one start
PARENT = "MUSICNET_LEADER"  # process number of the leader, for those that it has started
TICK = 0.5  # seconds between two looks at the others
GRACE = 20.0  # seconds in which the leader should notice by itself that another has ended: connections break
PATIENCE = 3600.0  # seconds to wait for a leader that decodes audio
STARTED, TOGETHER = time.time(), 30.0  # when this process began; seconds within which all of a start do


def several(trainer: Mapping[str, Any]) -> bool:
    """Say whether a config's `trainer` may ask for more than one process."""
    alone = trainer.get("devices") in (1, "1") and (trainer.get("num_nodes") or 1) == 1
    return not alone or "ddp" in str(trainer.get("strategy")) or "fsdp" in str(trainer.get("strategy")).lower()


def leads(trainer: Mapping[str, Any]) -> bool:
    """Say whether this process is the one that has the run's folder."""
    return not several(trainer) or all(os.environ.get(name, "0") == "0" for name in RANKS)


def follow(folder: Path, is_done: Callable[[], bool]) -> bool:
    """Wait until the leader is ready, and end when it ends; False where there is nothing to do, since the run is done.

    Args:
        folder: The run's folder.
        is_done: Whether the run is whole.

    Raises:
        TrainingError: The leader never gets ready.
    """
    parent = os.environ.get(PARENT)
    if parent is not None:
        threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
        return True
    deadline = time.monotonic() + PATIENCE
    while not _is_ready(folder):
        if is_done():
            return False
        if time.monotonic() > deadline:
            raise TrainingError(
                f"The leading process did not get ready within {PATIENCE / 60:.0f} min in '{folder}'. See what it says; if it "
                "still decodes audio, let one short run with trainer.devices=1 fill paths.cache first."
            )
        time.sleep(TICK)
    return True


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(TICK)
    os._exit(1)


def _launch() -> str:
    return " ".join(f"{name}={os.environ[name]}" for name in LAUNCH if name in os.environ)


def _is_ready(folder: Path) -> bool:
    """Say whether the leader of this start is ready; an earlier one, that was killed, may have left its word."""
    try:
        told = records.read_json(folder / records.STATUS).get("launch") or {}
    except RecordError:
        return False
    return told.get("name") == _launch() and float(told["at"]) > STARTED - TOGETHER


class Team:
    """The other processes of a run on this host, for as long as the leader is inside.

    Args:
        devices: Processes of this host, the leader among them.
        external: Whether something else (`torchrun`, `srun`) has started the others.
        folder: The run's folder.
        threads: CPU threads of each; None shares the cores.
        stuck: Told why, before this process is ended, when the leader waits for one that is gone and does not notice.

    Raises:
        TrainingError: Another process has ended badly.
    """

    def __init__(
        self, devices: int, folder: Path, *, external: bool, threads: int | None, stuck: Callable[[TrainingError], None]
    ) -> None:
        self.devices, self.folder, self.external, self.threads, self.stuck = devices, folder, external, threads, stuck
        self._before = dict(os.environ)
        self.others: dict[int, subprocess.Popen[bytes]] = {}
        self._left = threading.Event()

    def __enter__(self) -> Self:
        if self.external:
            runs.update_status(self.folder, launch={"name": _launch(), "at": time.time()})
        elif self.devices > 1:
            self._start()
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _start(self) -> None:
        limits = environment.thread_limits(self.devices) if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
        os.environ.setdefault("NODE_RANK", "0")
        os.environ |= {"LOCAL_RANK": "0", **limits}
        command = [sys.executable, "-m", "musicnet_eval.train", *sys.argv[1:]]
        for rank in range(1, self.devices):
            own = {**os.environ, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())}
            with self._log(rank).open("wb") as log:
                # A session of its own: Ctrl-C in a terminal reaches the leader alone, which ends the others.
                self.others[rank] = subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)

    def _log(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.log"

    def _watch(self) -> None:
        while not self._left.wait(TICK):
            if (failure := self._failure()) is not None:
                if not self._left.wait(GRACE):
                    print(f"error: {failure}", file=sys.stderr, flush=True)
                    self.stuck(failure)
                    self._end()
                    os._exit(failure.exit_code)
                return

    def _failure(self) -> TrainingError | None:
        """Say which other process has ended badly, if one has."""
        for rank, process in self.others.items():
            if process.poll():
                code = process.returncode
                how = f"with exit code {code}" if code > 0 else f"killed by signal {-code}"
                lines = self._log(rank).read_text(encoding="utf8", errors="replace").strip().splitlines()
                last = next((line for line in reversed(lines) if line.startswith(("error: ", "failed: "))), "".join(lines[-1:]))
                return TrainingError(
                    f"Process {rank} of trainer.devices={self.devices} has ended {how}: {last[:500] or 'it said nothing'} "
                    f"(all it said is in {self._log(rank)}).",
                    {"rank": rank, "exit_code": code},
                )
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()
        if self.external:
            runs.update_status(self.folder, launch=None)
        for name in set(os.environ) - set(self._before):
            del os.environ[name]
        if error is None:
            for process in self.others.values():  # all is computed: they only have to leave
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    continue
            self._end()
            for rank in self.others:
                self._log(rank).unlink(missing_ok=True)
            return
        broken = isinstance(error, Exception) and not isinstance(error, MusicnetError)
        if broken and self.others:  # a lost connection, most likely: who was it that went?
            deadline = time.monotonic() + 5
            while (failure := self._failure()) is None and time.monotonic() < deadline:
                time.sleep(0.1)
            self._end()
            if failure is not None:
                raise failure from error
        self._end()

    def _end(self) -> None:
        for process in self.others.values():
            if process.poll() is None:
                process.kill()  # they hold nothing that must be kept, and may hang where a signal is not heard
                process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
