"""What a sweep does beyond its runs: a plan before, tables and a page at its end, and an honest exit code. Layer 6."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicnet_eval import configs, jobs, launchers, records
from musicnet_eval.errors import MusicnetError

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
# Keys that move runs to another folder: a sweep over one of them has no one folder, and no plan.
PLACES = {"experiment", "data", "data.name", "data.root", "data.manifest", "paths.runs"}


class SweepTables(Callback):
    """Say what a sweep is going to do, write its tables and page at the end, and leave with 1 if a run failed.

    `train.task` gives None for a run that failed instead of raising, since Hydra 1.3 leaves this callback out after an exception.
    Jobs of other processes, whose ends are not seen here, are known by what our launchers hand over (`take`), else by files.
    """

    def __init__(self) -> None:
        self.folders: set[Path] = set()
        self.planned = False
        self.jobs = 0
        self.failed = 0
        self.taken: list[JobReturn] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        del kwargs
        try:
            launchers.prepare(config)
        except MusicnetError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        folder, planned = _folder(config), planned_jobs(config)
        if folder is None or planned is None:
            return
        self.folders.add(folder)
        self.planned = True
        print(forecast(folder, planned), flush=True)
        jobs.plan(folder, planned)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        del kwargs
        if config.hydra.mode is RunMode.MULTIRUN and (folder := _folder(config)) is not None:
            self.folders.add(folder)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        del config, kwargs
        self.jobs += 1
        self.failed += job_return.status is not JobStatus.COMPLETED or job_return.return_value is None

    def take(self, returns: Sequence[JobReturn]) -> None:
        """Note the outcomes of jobs that a launcher has run in other processes."""
        self.taken += returns

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        del kwargs
        for told in self.taken:
            if told.cfg is not None and told.hydra_cfg is not None and (folder := _folder(told.cfg, told.hydra_cfg)) is not None:
                self.folders.add(folder)
        if self.taken and not self.folders and (folder := _folder(config)) is not None:
            self.folders.add(folder)
        for folder in sorted(self.folders):
            if _children(folder):
                _conclude(folder, config)
        failed, total = self._count()
        if failed:
            print(f"{failed} of {total} runs failed; each is named above and under its folder.", file=sys.stderr)
            raise SystemExit(1)

    def _count(self) -> tuple[int, int]:
        """Count the jobs that failed, and all: as seen here, else by files where there is a plan, else as a launcher told."""
        if self.jobs:
            return self.failed, self.jobs
        if self.planned:
            (folder,) = self.folders
            return unfinished(folder)
        return sum(told.status is not JobStatus.COMPLETED or told.return_value is None for told in self.taken), len(self.taken)


def planned_jobs(config: DictConfig) -> list[list[str]] | None:
    """List the overrides of each job of a sweep, secrets masked; None where only the sweeper can know them.

    Args:
        config: The sweep's own config, as Hydra hands it over before the first job.
    """
    if OmegaConf.select(config, "hydra.sweeper._target_") != BASIC:
        return None
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = OmegaConf.to_container(config.hydra.sweeper.params, resolve=True) if config.hydra.sweeper.get("params") else {}
    asked = [f"{key}={value}" for key, value in cast(dict[str, Any], params).items()]
    asked += cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
    try:
        parsed = OverridesParser.create().parse_overrides(asked)
        if any(override.is_sweep_override() and override.get_key_element().lstrip("+~") in PLACES for override in parsed):
            return None
        (batch,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException:  # a sweep over the files of a group, say, which needs more than the words of the command line
        return None
    return [configs.overrides_without_secrets(job) for job in batch]


def forecast(folder: Path, planned: Sequence[Sequence[str]]) -> str:
    """Say how many jobs there are, how many of them are done by their overrides, and what the rest may take.

    Time and disk are the means of the whole runs in the folder; where there is none, nothing is said of them.
    """
    runs = [run for run in _children(folder) if (run / records.RESULT).is_file()]
    known = jobs.by_overrides(runs)
    done = sum(tuple(sorted(job)) in known for job in planned)
    text = f"sweep: {len(planned)} jobs, {done} of them done already by their overrides"
    seconds, size = [], 0
    for run in runs:
        with contextlib.suppress(MusicnetError, OSError):
            told = records.read_result(run)["seconds"].get("total")
            seconds.append(float(told or 0))
            size += sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    left = len(planned) - done
    if not seconds or not left:
        return text
    minutes, megabytes = left * sum(seconds) / len(seconds) / 60, left * size / len(seconds) / 1e6
    return f"{text}; the rest takes about {minutes:.1f} min and {megabytes:.0f} MB if it is like the {len(seconds)} runs here"


def unfinished(folder: Path) -> tuple[int, int]:
    """Count a planned sweep's jobs that have no whole run, and all of its jobs, by the files of their runs."""
    ledger = jobs.read(folder)
    if ledger is None:
        return 0, 0
    known = jobs.by_overrides(run for run in _children(folder) if (run / records.RESULT).is_file())
    named = {key: folder / run for key, run in ledger.runs.items()}
    keys = [tuple(sorted(job)) for job in ledger.jobs]
    whole = sum(records.state(named[key]) == "done" if key in named else key in known for key in keys)
    return len(keys) - whole, len(keys)


def _folder(config: DictConfig, hydra: DictConfig | None = None) -> Path | None:
    """Place a sweep's runs as `plans.run_folder` does; None for a data set without a name: the run itself will say so."""
    with contextlib.suppress(OmegaConfBaseException):
        settings = (hydra or config).hydra
        given, base = Path(settings.sweep.dir), Path(config.paths.runs)
        group = settings.runtime.choices.get("experiment") or config.data.name
        return given if given != base else base / str(group).replace("/", "_")
    return None


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _conclude(folder: Path, config: DictConfig) -> None:
    from musicnet_eval import leaderboard, report, wandb_sweep

    try:
        board = leaderboard.collect([folder])
        leaderboard.show(board)
        leaderboard.write(board, folder)
        page = report.write([folder], folder / "report.html")
    except MusicnetError as error:  # no run of the sweep is whole: there is nothing to rank
        print(f"no leaderboard: {error}", file=sys.stderr)
        return
    print(f"report: {page}")
    if (options := _wandb(config)) is not None:
        wandb_sweep.publish(folder, board, page, options)


def _wandb(config: DictConfig) -> dict[str, Any] | None:
    """Give what a sweep's own config says of W&B; None where it does not name it."""
    with contextlib.suppress(OmegaConfBaseException):
        node = OmegaConf.select(config, "logger.wandb")
        return None if node is None else cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return None
