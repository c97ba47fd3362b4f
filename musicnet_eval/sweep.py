"""What a sweep does beyond its runs: a plan before, tables and a page at its end, and an honest exit code. Layer 6."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicnet_eval import configs, environment, jobs, launchers, plans, records, runs, status
from musicnet_eval.errors import MusicnetError
from musicnet_eval.launchers.collecting import end_with, well

# Keys that move runs to another folder: a sweep over one of them has several.
PLACES = {"experiment", "data", "data.name", "data.root", "data.manifest", "paths.runs"}
Places = dict[Path, dict[int, list[str]]]  # of each folder, the overrides of its jobs by their number in the sweep
FEW = 8  # jobs that are looked at faster one after the other

_sweep: DictConfig  # whose jobs are looked at
_loader: ConfigLoader  # which composes them


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Say what went wrong in one line, and leave: Hydra would warn of it, and go on."""
    try:
        yield
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        usage = isinstance(error, MusicnetError)
        print(f"error: {error}" if usage else f"error: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code if isinstance(error, MusicnetError) else 1) from None


class SweepTables(Callback):
    """Say what a sweep is going to do, write its tables and page at the end, and leave with 1 if a run failed.

    `train.task` gives None for a run that failed instead of raising, since Hydra 1.3 leaves this callback out after an exception.
    Jobs of other processes, whose ends are not seen here, are known by what our launchers hand over (`take`), else by files.
    """

    def __init__(self) -> None:
        self.folders: set[Path] = set()
        self.places: Places = {}
        self.done: dict[tuple[str, ...], Path] = {}  # of the planned jobs, those that need not be asked for
        self.planned = 0  # jobs; 0 where only the sweeper knows them
        self.total = 0  # of them, those that are not done
        self.common: frozenset[str] = frozenset()  # overrides of all
        self.seen: list[bool] = []  # of each job that began in this process, whether it went well
        self.taken: list[bool] = []  # the same, of those that a launcher has handed over
        self.masked = False
        self.began = 0.0  # when the first job began in this process

    @_plainly()
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        del kwargs
        launchers.prepare(config)
        planned = planned_jobs(config)
        if planned is None:
            if trials := OmegaConf.select(config, "hydra.sweeper.n_trials"):
                print(f"search: {trials} trials; runs that are done already answer at once", flush=True)
            return
        self.places = by_folder(config, planned)
        self.folders.update(self.places)
        likely = {} if config.run.force else done_by_overrides(self.places)
        print(forecast(self.places, len(planned), len(likely)), flush=True)
        refusal = None
        for folder, own in self.places.items():
            try:
                jobs.plan(folder, own.values())
            except OSError as error:  # what is done can be said all the same
                refusal = runs.unwritable(folder, error)
        plans.forget_listings()
        self.done, self.common = look_through(config, likely), jobs.common(planned)
        self.planned, self.total = len(planned), len(self.left(planned))
        for run in self.done.values():
            print(f"done already: {run}", flush=True)
        if not self.total:
            self.on_multirun_end(config)
            raise SystemExit(0)
        if refusal is not None:
            raise refusal

    def left(self, batch: Sequence[Sequence[str]]) -> list[Sequence[str]]:
        """Give those jobs of a sweep that are not done; a sweeper asks before it composes them."""
        return [job for job in batch if tuple(configs.overrides_without_secrets(job)) not in self.done]

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        del kwargs
        if config.hydra.mode is not RunMode.MULTIRUN:
            return
        if (folder := plans.sweep_folder(config)) is not None:
            self.folders.add(folder)
        self._mask(config)
        self.seen.append(False)  # until it ends well
        if self.total > 1:
            asked = cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
            own = [each for each in configs.overrides_without_secrets(asked) if each not in self.common]
            print(f"[{config.hydra.job.num + 1}/{self.total}] {' '.join(own)}{self._left(config.hydra.job.num)}", flush=True)

    def _left(self, ended: int) -> str:
        """Say how long the rest may take by the mean of the jobs that ended in this process."""
        self.began = self.began or time.monotonic()
        if ended == 0 or len(self.seen) <= ended:  # nothing to go by, or other processes are at jobs too
            return ""
        return f"; about {status.duration((time.monotonic() - self.began) / ended * (self.total - ended))} left at this pace"

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        del kwargs
        self.seen[-1:] = [well(job_return)]
        # It goes back to the sweep, from other processes too: two configs for each of ten thousand jobs would not fit in memory.
        job_return.cfg = job_return.hydra_cfg = None
        job_return.working_dir = str(folder) if (folder := plans.sweep_folder(config)) is not None else None

    def take(self, returns: Sequence[JobReturn]) -> None:
        """Note the outcomes of jobs that a launcher has run in other processes."""
        self.taken += map(well, returns)
        for told in returns:
            placed = None if told.cfg is None or told.hydra_cfg is None else plans.sweep_folder(told.cfg, told.hydra_cfg)
            if placed is not None:
                self.folders.add(placed)
            elif told.working_dir is not None:
                self.folders.add(Path(told.working_dir))

    @_plainly()
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        del kwargs
        self._mask(config)
        if self.taken and not self.folders and (folder := plans.sweep_folder(config)) is not None:
            self.folders.add(folder)
        written = [_conclude(folder, config) for folder in sorted(self.folders) if _children(folder)]
        missing, total = self._count()
        if missing:
            how = "failed; each is named above and under its folder"
            if config.run.on_error == "stop":  # others were interrupted, or never begun
                how = "are not done; the first failure, named above, has ended the sweep"
            print(f"{missing} of {total} runs {how}.", file=sys.stderr)
        if missing or not all(written):
            raise SystemExit(1)

    def _mask(self, config: DictConfig) -> None:
        """Mask the secrets in what Hydra keeps of a sweep as it was typed, once."""
        file = Path(config.hydra.sweep.dir) / "multirun.yaml"
        if not self.masked and file.is_file():
            configs.mask(file)
            self.masked = True

    def _count(self) -> tuple[int, int]:
        """Count the jobs that are not done, and all: as a launcher told, else as seen here, else by the files of their runs."""
        told = self.taken or self.seen
        if told or (self.planned and not self.total):
            total = self.planned or len(told)
            return total - (self.planned - self.total) - told.count(True), total
        return sum(jobs.unfinished(folder, own.values()) for folder, own in self.places.items()), self.planned


def planned_jobs(config: DictConfig) -> list[list[str]] | None:
    """List the overrides of each job of a sweep, secrets masked; None where only the sweeper can know them.

    Args:
        config: The sweep's own config, as Hydra hands it over before the first job.
    """
    if OmegaConf.select(config, "hydra.sweeper._target_") != launchers.BASIC:
        return None
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    params = OmegaConf.to_container(config.hydra.sweeper.params, resolve=True) if config.hydra.sweeper.get("params") else {}
    asked = [f"{key}={value}" for key, value in cast(dict[str, Any], params).items()]
    asked += cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
    try:
        parsed = OverridesParser.create().parse_overrides(asked)
        (batch,) = BasicSweeper.split_arguments(parsed, None)
    except HydraException:  # a sweep over the files of a group, say, which needs more than the words of the command line
        return None
    return [configs.overrides_without_secrets(job) for job in batch]


def by_folder(config: DictConfig, planned: Sequence[list[str]]) -> Places:
    """Say where the runs of each planned job go; a job whose config is too broken to have a place is left out.

    Args:
        config: The sweep's own config.
        planned: The overrides of each job.
    """
    found: dict[tuple[str, ...], Path | None] = {(): plans.sweep_folder(config)}
    swept = [tuple(each for each in job if each.lstrip("+~").partition("=")[0] in PLACES) for job in planned]
    places: Places = {}
    for number, (where, job) in enumerate(zip(swept, planned, strict=True)):
        if len(set(swept)) == 1:  # none of them is swept over
            where = ()
        if where not in found:
            found[where] = None
            with contextlib.suppress(Exception, SystemExit):  # what is wrong is told when the job's turn comes
                found[where] = plans.sweep_folder(plans.job_config(_quick_loader(), config, number, job))
        if (folder := found[where]) is not None:
            places.setdefault(folder, {})[number] = job
    return places


def done_by_overrides(places: Places) -> dict[int, Sequence[str]]:
    """Give the jobs with the overrides of a whole run: quick, and true unless a default or the data has changed."""
    likely: dict[int, Sequence[str]] = {}
    for folder, own in places.items():
        known = jobs.by_overrides(jobs.whole(folder))
        likely |= {number: job for number, job in own.items() if jobs.key(job) in known}
    return likely


def look_through(config: DictConfig, likely: Mapping[int, Sequence[str]]) -> dict[tuple[str, ...], Path]:
    """Give the runs of the jobs that are done, by the jobs' overrides: each job's signature decides.

    Hydra composes each job twice before it comes to the point; here it is once, and on all cores.

    Args:
        config: The sweep's own config.
        likely: The overrides of the jobs that are worth a look, by number.
    """
    if not likely:
        return {}
    _share(config)
    (first, *others), (first_asked, *others_asked) = likely.keys(), likely.values()
    found = [_done(first, first_asked)]  # which lists the tracks for all
    if len(likely) <= FEW or "torch" in sys.modules or sys.platform != "linux":
        found += map(_done, others, others_asked)  # a process with threads of its own is not to be forked
    else:
        # A plugin may end its process; the job itself will say so.
        with contextlib.suppress(BrokenExecutor), _lookers() as pool:
            found += pool.map(_done, others, others_asked)
    return {tuple(job): run for job, run in zip(likely.values(), found, strict=False) if run is not None}


def _lookers() -> ProcessPoolExecutor:
    """Give a forked process a core: what is shared is there without being sent."""
    return ProcessPoolExecutor(environment.cores(), multiprocessing.get_context("fork"), _look, (os.getpid(),))


def _look(parent: int) -> None:
    """Make a forked process ready to look at jobs: it ends with the sweep, and leaves alone what it was born with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the sweep too, which ends it; the pool must not break before
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    gc.freeze()


def _share(config: DictConfig) -> None:
    global _sweep, _loader
    _sweep, _loader = config, _quick_loader()


def _quick_loader() -> ConfigLoader:
    return plans.read_once(GlobalHydra.instance().config_loader())


def _done(number: int, overrides: Sequence[str]) -> Path | None:
    """Give the run folder of a job that is done, and enrol it."""
    with contextlib.suppress(Exception, SystemExit):  # whatever keeps a job from being planned is told when its turn comes
        config = plans.job_config(_loader, _sweep, number, overrides)
        with plans.as_job(config) as asked:
            planned = plans.plan(asked)
        if not config.run.force and runs.is_done(planned.folder, planned.signature):
            jobs.enrol(planned.folder.parent, planned.overrides, planned.folder.name)
            return planned.folder
    return None


def forecast(folders: Iterable[Path], planned: int, done: int) -> str:
    """Say how many jobs there are, how many of them are done by their overrides, and what the rest may take.

    Time and disk are the means of the whole runs in the sweep's folders.

    Args:
        folders: Where the runs lie.
        planned: Number of jobs.
        done: Number of those that are done.
    """
    text = f"sweep: {planned} jobs, {done} of them done already by their overrides"
    if not (left := planned - done):
        return text
    seconds, size = [], 0
    for run in (run for folder in folders for run in jobs.whole(folder)):
        with contextlib.suppress(MusicnetError, OSError):
            told = records.read_result(run)["seconds"].get("total")
            seconds.append(float(told or 0))
            size += sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    if not seconds:
        return f"{text}; time and disk can be told once a run is whole here"
    minutes, megabytes = left * sum(seconds) / len(seconds) / 60, left * size / len(seconds) / 1e6
    return f"{text}; the rest takes about {minutes:.1f} min and {megabytes:.0f} MB if it is like the {len(seconds)} runs here"


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _conclude(folder: Path, config: DictConfig) -> bool:
    """Write the tables and the page of a folder; say whether they could be written."""
    from musicnet_eval import leaderboard, report, wandb_sweep

    try:
        board = leaderboard.collect([folder])
        leaderboard.show(board)
        leaderboard.write(board, folder)
        page, made_of = folder / "report.html", _inputs(folder)
        if not _ends_with(page, made_of):  # a sweep that has nothing left to do has no other page to show
            report.write([folder], page)
            with page.open("a", encoding="utf8") as file:
                file.write(made_of)
    except MusicnetError as error:  # no run of the sweep is whole: there is nothing to rank
        print(f"no leaderboard: {error}", file=sys.stderr)
        return True
    except OSError as error:
        print(f"error: The tables of '{folder}' cannot be written ({error.strerror or error}).", file=sys.stderr)
        return False
    print(f"report: {page}")
    if (options := _wandb(config)) is not None:
        wandb_sweep.publish(folder, board, page, options)
    return True


def _inputs(folder: Path) -> str:
    """Name, as a comment for the page's end, what a page is made of: the records below a folder, and the code that reads them."""
    read = {records.RESULT, records.FAILED, records.STATUS, "audit.json"}
    below = [Path(here) / name for here, _, names in os.walk(folder) for name in read.intersection(names)]
    code = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".jinja")]
    stats = []
    for path in sorted([*below, *code]):
        with contextlib.suppress(FileNotFoundError):  # somebody removes a run just now
            told = path.stat()
            stats.append((str(path), told.st_mtime_ns, told.st_size))
    return f"<!-- {hashlib.sha256(repr(stats).encode()).hexdigest()} -->\n"


def _ends_with(page: Path, text: str) -> bool:
    return page.is_file() and page.read_bytes().endswith(text.encode())


def _wandb(config: DictConfig) -> dict[str, Any] | None:
    """Give what a sweep's own config says of W&B; None where it does not name it."""
    with contextlib.suppress(OmegaConfBaseException):
        node = OmegaConf.select(config, "logger.wandb")
        return None if node is None else cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return None
