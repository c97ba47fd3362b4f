"""Train one network on one data set and record what came out: `musicnet-train`, one run or a sweep (`-m`).

The recipe: plan (index, splits, signature, folder; no torch yet) → skip what is done → train and test (`training.fit`) → write
the record. Heavy imports happen inside, so that `--help` and finished runs cost nothing. Layer 7.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from musicnet_eval import configs, environment, jobs, ranks, records, runs, wandb_run
from musicnet_eval.contracts import RunRecord
from musicnet_eval.datasets import planted
from musicnet_eval.errors import MusicnetError, TrainingError
from musicnet_eval.plans import Plan, plan, sweeping, unindexed

REQUEUED = -1  # exit code by which submitit leaves a job that it has put back into the queue
OBJECTIVE = "test/song/accuracy"  # printed at the end of a run


def task(config: DictConfig) -> float | None:
    """Do one run as Hydra calls it: give its monitored metric, NaN where it has none.

    In a sweep a failure is recorded and None is given, so that the others go on.
    """
    if not ranks.leads(config.trainer):
        _take_part(config)
        return None
    in_sweep, shared = sweeping(), HydraConfig.get().mode is RunMode.MULTIRUN  # shared: other jobs run in this process too
    planned: Plan | None = None
    ended: BaseException | None = None
    try:
        planned = plan(config)
        if in_sweep:
            jobs.enrol(planned.folder.parent, planned.overrides, planned.folder.name)
        if (stored := _stored(planned)) is not None:
            return stored
        if (unlisted := unindexed(config).folder) != planned.folder:
            runs.forget_failure(unlisted)  # an earlier try that could not list its data had another name
        with runs.lock(planned.folder):  # another process may be at it: wait, and take what it has found
            try:
                stored = _stored(planned)
                return _live(planned) if stored is None else stored
            except BaseException as error:  # noted before another process may begin the run
                ended = _noted(config, planned, error, in_sweep=in_sweep)
    except BaseException as error:
        ended = _noted(config, planned, error, in_sweep=in_sweep)
    finally:
        _finish_wandb(planned, ended)
    if _is_interruption(ended):
        raise SystemExit(130 if isinstance(ended, KeyboardInterrupt) else getattr(ended, "code", 1))
    if shared and config.run.on_error != "stop":
        return None
    raise SystemExit(ended.exit_code if isinstance(ended, MusicnetError) and not in_sweep else 1)


def _is_interruption(error: BaseException | None) -> bool:
    """Say whether a signal has ended a run, and not an error or its own code by `sys.exit`."""
    if isinstance(error, SystemExit):
        return error.code in (128 + signal.SIGINT, 128 + signal.SIGTERM, REQUEUED)
    return isinstance(error, KeyboardInterrupt)


def _noted(config: DictConfig, planned: Plan | None, error: BaseException, *, in_sweep: bool) -> BaseException:
    """Say how a run has ended, and write it down; give what is to be said of it."""
    if _is_interruption(error):
        if planned is not None and runs.is_ours(planned.folder):
            with contextlib.suppress(OSError):
                runs.interrupt(planned.folder)
            print(f"interrupted: {planned.folder}", file=sys.stderr)
        return error
    if isinstance(error, SystemExit):
        error = TrainingError(f"The run was left by sys.exit({error.code!r}) in its own code: a plugin's, or a package's.")
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()
    try:
        _record_failure(config, planned, error, in_sweep=in_sweep)
    except OSError as unwritten:  # the disk is full, most likely, and that was the failure too
        print(f"its failure could not be recorded ({unwritten})", file=sys.stderr, flush=True)
    return error


def _stored(planned: Plan) -> float | None:
    """Give the monitored metric of a run that is done already; None when it is to be done, or repeated."""
    if planned.config["run"]["force"] or not runs.is_done(planned.folder, planned.signature):
        return None
    print(f"done already: {planned.folder}", flush=True)
    return runs.outcome(planned.folder, planned.config["monitor"])


def _live(planned: Plan) -> float | None:
    print(f"run: {planned.title} → {planned.folder}", flush=True)
    text, asked = OmegaConf.to_yaml(OmegaConf.create(planned.written)), planned.config["run"]
    with _leaving():
        runs.begin(planned.folder, planned.signature, text, fresh=asked["force"], max_attempts=asked["max_attempts"])
        runs.update_status(planned.folder, overrides=planned.overrides)
        if planned.faults:
            records.write_text(planned.folder / records.PLANTED, planted.to_csv(planned.faults))
        record = _fitted(planned)
        runs.finish(planned.folder, record)
        runs.keep_checkpoints(planned.folder, asked["keep_checkpoints"])  # not before the record that stands for them is there
    _say_where_time_went(record["throughput"])
    songs = sum(row.split == "test" for row in records.read_predictions(planned.folder))
    print(
        f"done: {OBJECTIVE} {record['metrics'][OBJECTIVE]:.3f} on {songs} songs, {record['seconds']['total']:.0f} s", flush=True
    )
    return runs.outcome(planned.folder, planned.config["monitor"])


def _fitted(planned: Plan) -> RunRecord:
    """Train and test; a slip costs no earlier record."""
    from musicnet_eval.failures import fit_in_memory
    from musicnet_eval.training import fit, forget_damaged

    forget_damaged(planned.folder)
    try:
        return fit_in_memory(lambda config: fit(replace(planned, config=config)), planned.config, planned.folder)
    except MusicnetError as error:
        if _is_usage(error):
            runs.take_back(planned.folder)
        raise


def _take_part(config: DictConfig) -> None:
    """Be one of several processes of a run, which another one leads: that one has the run's folder, and says what comes out."""
    try:
        planned = plan(config)
        wanted = not planned.config["run"]["force"]
        if not ranks.follow(planned.folder, lambda: wanted and runs.is_done(planned.folder, planned.signature)):
            return
        from musicnet_eval.training import take_part

        take_part(planned)
    except Exception as error:
        usage = isinstance(error, MusicnetError)
        if not usage:
            traceback.print_exc()
        print(f"error: {error}" if usage else f"failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code if isinstance(error, MusicnetError) else 1) from None


def _say_where_time_went(throughput: dict[str, float]) -> None:
    from musicnet_eval.summary import time_row

    if throughput:
        print(time_row(throughput), flush=True)


@contextlib.contextmanager
def _leaving() -> Iterator[None]:
    """Leave at SIGINT and SIGTERM with the signal's own exit code, 130 or 143; Lightning alone would leave with 1 and 0."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _record_failure(config: DictConfig, planned: Plan | None, error: BaseException, *, in_sweep: bool) -> None:
    """Say what went wrong, and write `failed.json`, unless the run is whole as before, or a single one that never began."""
    said = f"error: {error}" if isinstance(error, MusicnetError) else f"failed: {type(error).__name__}: {error}"
    print(environment.without_secrets(said), file=sys.stderr, flush=True)
    where = planned
    if where is None and in_sweep:
        try:
            where = unindexed(config)
        except Exception:  # a config so broken that it has no name; the message above is all there is
            return
    if where is None:
        return
    if in_sweep:
        jobs.enrol(where.folder.parent, where.overrides, where.folder.name)
    elif _is_usage(error):
        runs.forget_failure(where.folder)  # a slip of the keyboard leaves no folder behind
    if (where.folder / records.RESULT).exists():
        print(f"what was done before stays: {where.folder}", file=sys.stderr, flush=True)
    elif in_sweep or not _is_usage(error) or runs.is_ours(where.folder):
        runs.fail(where.folder, error, traceback.format_exc(), where.about)
        print(f"see {where.folder / records.FAILED}", file=sys.stderr, flush=True)


def _is_usage(error: BaseException) -> bool:
    return isinstance(error, MusicnetError) and error.exit_code == MusicnetError.exit_code


def _finish_wandb(planned: Plan | None, ended: BaseException | None) -> None:
    """End this run's W&B run as the run has ended: without it, the next job of a sweep would log into the same one."""
    code = 0 if ended is None else 1
    if _is_interruption(ended):
        code = getattr(ended, "code", None) or 130
    told = wandb_run.finish(code, f"{type(ended).__name__}: {ended}" if code == 1 else None)
    if told is not None and planned is not None and runs.is_ours(planned.folder):
        with contextlib.suppress(OSError):
            runs.update_status(planned.folder, wandb=told)


def main() -> None:
    """Run the command `musicnet-train`."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(configs.help_text())
        return
    configs.prefer_ours()
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # between keys argparse refuses it
    try:
        hydra.main(version_base="1.3", config_path=str(configs.CONF), config_name="train")(task)()
    except KeyboardInterrupt:  # before a run has begun, or between two
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
