"""What a sweep does beyond its runs: tables and a page when its last job ends, and an honest exit code. Layer 6."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from musicnet_eval.errors import MusicnetError


class SweepTables(Callback):
    """Write `leaderboard.md`, `leaderboard.csv` and `report.html` into a sweep's folder, and leave with 1 if a run failed.

    `train.task` gives None for a run that failed instead of raising, since Hydra 1.3 leaves this callback out after an exception.
    """

    def __init__(self) -> None:
        self.folders: set[Path] = set()
        self.jobs = 0
        self.failed = 0

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        del kwargs
        if config.hydra.mode is not RunMode.MULTIRUN:
            return
        given, base = Path(config.hydra.sweep.dir), Path(config.paths.runs)
        with contextlib.suppress(OmegaConfBaseException):  # a data set without a name: the run itself will say so
            group = config.hydra.runtime.choices.get("experiment") or config.data.name
            self.folders.add(given if given != base else base / str(group).replace("/", "_"))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        del config, kwargs
        self.jobs += 1
        self.failed += job_return.status is not JobStatus.COMPLETED or job_return.return_value is None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        del config, kwargs
        for folder in sorted(self.folders):
            if folder.is_dir():
                _conclude(folder)
        if self.failed:
            print(f"{self.failed} of {self.jobs} runs failed; each is named above and under its folder.", file=sys.stderr)
            raise SystemExit(1)


def _conclude(folder: Path) -> None:
    from musicnet_eval import leaderboard, report

    try:
        board = leaderboard.collect([folder])
        leaderboard.show(board)
        leaderboard.write(board, folder)
        print(f"report: {report.write([folder], folder / 'report.html')}")
    except MusicnetError as error:  # no run of the sweep is whole: there is nothing to rank
        print(f"no leaderboard: {error}", file=sys.stderr)
