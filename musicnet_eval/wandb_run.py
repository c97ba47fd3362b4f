"""One run in Weights & Biases: what its keys are called, and how it begins and ends without ever harming the run. Layer 2.

No torch and no wandb at import: the leaderboard of a sweep and the dashboard read the names below from here. A job is one W&B
run: id = `identity`, the run's signature and what tells its data set and its sweep apart (a resumed run goes on in it), group
= the name of the folder that holds its run folder (the sweep), job_type = `train`, name = the run's title, tags = its
choices. Its config is the run's config without secrets, nested: W&B itself shows it flattened (`optimizer.lr`), and advises
against dots in the names (docs.wandb.ai/guides/track/config). Beside it stand `signature`, `configuration` (equal for the
seeds and folds of one row of the leaderboard: group curves by it), `folder`, `git` and `choices.data`, `choices.backbone`,
`choices.loss`, `choices.spectrogram`, `choices.augment`, `choices.protocol`, `choices.fold`, `choices.seed`.

By epoch (history; x-axis `epoch`, `trainer/global_step` beside it in every row)
    `train/segment/{loss,accuracy,log_loss}`, `val/segment/*` and `val/song/*` (every metric, as in metrics.csv), `gap/segment/*`
    (training against validation), `lr`, `train/song/trust_*` (label trust), `throughput/*` (segments a second and where the
    time went), with `callbacks=[default,histograms]` also `gradients/<layer>` and `weights/<layer>`.
Summary
    the last epoch's value of every key above; `best/epoch`, `best/<key>` of the epoch that is tested (`best/val/song/f1_macro`,
    `best/gap/segment/accuracy`: training against test), `test/<level>/<metric>`, `objective` (what a sweeper is told:
    the best value of `monitor`), `parameters`, `seconds/{setup,fit,test,total}`, `state` (done, failed, interrupted), `error`.
After the test (`TABLES`; a chart's table has `_table` behind its name)
    `test/confusion_matrix`, `test/classes`, `test/predictions`, `test/hardest`, `test/reliability`, `suspect_labels`, `examples`.

An attempt that goes on from a checkpoint resumes its W&B run. One that begins anew starts it anew: of attempts whose files lie
here `wandb sync` then takes the new one alone, since the earlier ones are marked as synced; of what a server has, W&B documents
that a new run is started (`resume` unset), which only the real server can show.

What goes wrong in W&B is said on stderr, recorded (`status.json` and the record's facts: `wandb`) and never raised, but for
what the user wrote wrongly. What it can cost a run is bounded: beginning by `init_seconds` (a server that did not answer is
asked again by a later run of the same process after five minutes), logging by nothing, since wandb's own process does the
sending (one that takes nothing in for `finish_seconds` is ended, and the run goes on without); what waits for the server
(tables after the test, checkpoints, the end) by `finish_seconds`, and once that was in vain by a few seconds each. What was not
sent lies on disk for `wandb sync`: numbers and the end, offline all else too. Two things do not: what wandb had asked the server
for in vain (tables, sounds and pictures, which the run's folder has), and what was logged in the last two seconds before
SIGKILL (metrics.csv has it).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musicnet_eval import wandb_files, wandb_settings
from musicnet_eval.environment import without_secrets
from musicnet_eval.errors import ConfigError

# --- names --------------------------------------------------------------------------------------------------------------------

PROJECT = "musicnet_eval"
TRAIN, LEADERBOARD = "train", "leaderboard"  # job types
STEP, EPOCH = "trainer/global_step", "epoch"
BY_EPOCH = ("train/*", "val/*", "gap/*", "throughput/*", "gradients/*", "weights/*", "lr")
OBJECTIVE, BEST_EPOCH, BEST, STATE, ERROR = "objective", "best/epoch", "best/", "state", "error"
CONFUSION, CLASSES, PREDICTIONS = "test/confusion_matrix", "test/classes", "test/predictions"
HARDEST, RELIABILITY, SUSPECTS, EXAMPLES = "test/hardest", "test/reliability", "suspect_labels", "examples"
TABLES = (f"{CONFUSION}_table", CLASSES, PREDICTIONS, HARDEST, f"{RELIABILITY}_table", SUSPECTS)
STATES = {0: "done", 1: "failed"}  # by exit code; any other is that of a signal

ASK_AGAIN_SECONDS = 300.0  # after a server did not answer
GRACE_SECONDS = 5.0  # that wandb itself may take beyond its own time limit
FULL_BYTES = 1_000_000  # left of a disk


# --- one W&B run of this process ----------------------------------------------------------------------------------------------


@dataclass
class Session:
    """What is known of the present W&B run, and what went wrong with it so far."""

    run: Any
    told: dict[str, Any]
    patience: float = 30.0  # seconds that its end may take, and so may whatever else asks the server
    troubles: list[str] = field(default_factory=list)
    unsent: bool = False  # whether wandb did not take or send something in time


_present: Session | None = None
_unreachable: tuple[float, str] | None = None  # when a server last did not answer, and its own words


def identity(signature: str, *more: str) -> str:
    """Give the id of a run's W&B run.

    Args:
        signature: The run's.
        more: What the signature leaves out: the data set, as those of one layout (say with noise and without) share it, and the
            folder of the sweep, as one run may be asked for in two experiments.
    """
    return f"{signature}-{hashlib.sha256(repr(more).encode()).hexdigest()[:6]}"


def start(
    save_dir: Path,
    *,
    anew: bool = False,
    offline: Any = None,
    init_seconds: float = 15.0,
    finish_seconds: float = 30.0,
    settings: Mapping[str, Any] | None = None,
    **asked: Any,
) -> Any:
    """Begin a W&B run, or go on in it, and give wandb's `Run`; where that fails, one that does nothing.

    A run that is open is finished first. It never asks for a key: without one, or where the server does not answer in time, it
    goes on offline and says so.

    Args:
        save_dir: Where wandb makes its folder `wandb`.
        anew: Whether what an earlier attempt logged is to be replaced, not continued.
        offline: Whether to write files only; None: as WANDB_MODE says, offline without it.
        init_seconds: How long the server may take to answer, seconds.
        finish_seconds: How long the end may wait for uploads, seconds.
        settings: Further `wandb.Settings`.
        asked: What `wandb.init` takes: `id`, `project`, `entity`, `name`, `group`, `job_type`, `tags`, `config`.

    Raises:
        ConfigError: wandb refuses what the user wrote.
    """
    global _present
    if _present is not None:
        finish(1, "another run began before this one was finished")
    wanted = wandb_settings.mode(offline)
    given = wandb_settings.settings(settings or {}, init_seconds, finish_seconds)
    asked = {key: wandb_settings.named(key, value) for key, value in asked.items()}
    logging.raiseExceptions = False  # on a full disk each line of wandb's own log would be a traceback of ours
    # Copies of tables wait for `wandb sync` here: beside the runs, so that they move with them, not in the home folder.
    os.environ.setdefault("WANDB_DATA_DIR", str((save_dir / "wandb" / "data").resolve()))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its makers' own statistics would hold up the end where they hang
    told: dict[str, Any] = {"id": asked["id"], "project": asked["project"], "group": asked.get("group"), "asked": wanted}
    _present = Session(None, told, finish_seconds)
    if reason := wandb_settings.unwritable(save_dir):
        _note(f"could not begin, and the run goes on without ({reason})")
        wanted = "disabled"
    if wanted == "online" and not anew:
        with guarded("upload first what earlier attempts have left"):
            wandb_files.send_earlier(save_dir / "wandb", str(asked["id"]), init_seconds)
    try:
        with wandb_settings.masked_arguments():
            resume = None if anew else "allow"
            run = _begin(wanted, {"dir": str(save_dir), "resume": resume, "settings": given, **asked})
    except ConfigError:
        _present = None
        raise
    except ValueError as error:  # pydantic's, of what the environment says: all else is checked by now
        _present, reason = None, " ".join(str(error).split())[:300]
        raise ConfigError(f"wandb refuses a setting ({reason}). Mend the variable WANDB_* of that name.") from None
    _present.run = run
    if told["mode"] != "disabled":
        _opened(run, told, anew)
    _define(run)
    return run


def _opened(run: Any, told: dict[str, Any], anew: bool) -> None:
    """Note which run it became and where, and see to what earlier attempts left."""
    folder = Path(run.dir).parent
    told["id"], told["project"], told["folder"] = run.id, run.project, str(folder)  # with WANDB_SWEEP_ID wandb chooses the id
    if anew:
        with guarded("mark earlier attempts as replaced"):
            wandb_files.replace(folder, run.id)
    else:
        _forget_end(run)
    if told["mode"] == "online":
        told["url"] = run.url
        print(f"W&B: {run.url}", flush=True)


def _begin(wanted: str, asked: dict[str, Any]) -> Any:
    """Call `wandb.init` as wanted, else offline, else as a run that does nothing; note which it came to."""
    global _unreachable
    import wandb

    assert _present is not None
    told = _present.told
    if wanted == "online":
        reason = _why_not_online()
        if not reason:
            try:
                told["mode"] = "online"
                return wandb.init(mode="online", **asked)
            except Exception as error:  # whatever the server or the way to it does: the run does not depend on it
                reason = f"{type(error).__name__}: {_first_line(error)}"
                _unreachable = (time.monotonic(), reason)
                leave_service()  # it holds on to the run's id
        _note(f"could not begin online, and goes on offline ({reason})")
        wanted = "offline"
    if wanted == "offline":
        try:
            told["mode"] = "offline"
            return wandb.init(mode="offline", **asked)
        except wandb.errors.UsageError as error:
            raise ConfigError(f"wandb refuses what logger.wandb.* says: {_first_line(error)}. Mend it.") from None
        except ValueError:
            raise
        except Exception as error:  # its service does not start: nothing that the run needs
            _note(f"could not begin, and the run goes on without ({type(error).__name__}: {_first_line(error)})")
    told["mode"] = "disabled"
    return wandb.init(mode="disabled")


def _why_not_online() -> str:
    """Say why there is no use in asking the server; nothing if there is."""
    import wandb

    if _unreachable is not None and time.monotonic() - _unreachable[0] < ASK_AGAIN_SECONDS:
        return f"not asked again so soon: {_unreachable[1]}"
    if os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False, verify=False):
        return ""
    return "no API key: run `wandb login` once, or set WANDB_API_KEY"


def _forget_end(run: Any) -> None:
    """Take from the summary how an earlier attempt ended, which a server has handed back: this one may end otherwise."""
    with guarded("clear the end of an earlier attempt"):
        for name in {STATE, ERROR} & set(run.summary.keys()):
            del run.summary[name]


def _define(run: Any) -> None:
    """Say over what curves are drawn. No two patterns match one key: which one wins is not laid down."""
    with guarded("define its axes"):
        run.define_metric(STEP)
        run.define_metric(EPOCH)
        for name in BY_EPOCH:
            run.define_metric(name, step_metric=EPOCH, step_sync=True)


def finish(exit_code: int = 0, error: str | None = None) -> dict[str, Any] | None:
    """End the present W&B run with its true state, and say how to upload what was not; give what is to be recorded of it.

    Args:
        exit_code: 0 done, 1 failed, 128 + N stopped by signal N.
        error: The error in one line.
    """
    global _present
    if _present is None:
        return None
    session, run = _present, _present.run
    if run is not None and session.told.get("mode") != "disabled":
        last = {STATE: STATES.get(exit_code, "interrupted"), **({ERROR: without_secrets(_first_line(error))} if error else {})}
        send("write its summary", lambda: run.summary.update(last))
        bounded("upload everything", lambda: run.finish(exit_code=exit_code), GRACE_SECONDS)
        if session.told["mode"] == "online" and not session.unsent:
            with guarded("mark its files as uploaded"):
                wandb_files.mark_synced(Path(session.told["folder"]))
        with contextlib.suppress(OSError):
            if shutil.disk_usage(session.told["folder"]).free < FULL_BYTES:
                _note("may not have all of the run on disk: there is no room left")
        if session.unsent:
            leave_service()
        _say_how_to_sync(session)
    _present = None
    return told_of(session)


def leave_service() -> None:
    """End wandb's service process: while it tries to send, it would keep a new run, or the end of this process, waiting.

    `wandb.teardown` takes itself out of what is done at exit, and then waits; a thread may do that. A service that goes on trying
    is killed: it would outlive this process and keep its output open. What it has been told is on disk by then.
    """
    import wandb

    service = getattr(getattr(wandb.setup(), "_connection", None), "_proc", None)
    process = getattr(service, "_process", None)  # wandb hands it out no other way

    def teardown() -> None:
        with contextlib.suppress(Exception, SystemExit):  # it leaves with the service's exit code, or finds the service dead
            wandb.teardown()

    thread = threading.Thread(target=teardown, daemon=True)
    thread.start()
    thread.join(wandb_settings.FLUSH_SECONDS + 1.0)
    if process is not None:
        if thread.is_alive():
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


def _say_how_to_sync(session: Session) -> None:
    """Print one line on how to upload what lies on disk."""
    if session.told["mode"] == "offline" or session.unsent:
        command = wandb_files.upload_command(Path(session.told["folder"]).parent, session.told["id"])
        print(f"W&B: {session.told['mode']}; upload with: {command}", flush=True)


def told() -> dict[str, Any] | None:
    """Give what a record says of the present W&B run: id, project, group, mode, folder, url, troubles; None without one."""
    return None if _present is None else told_of(_present)


def told_of(session: Session) -> dict[str, Any]:
    """Give what is recorded of one W&B run."""
    return {**session.told, "troubles": list(session.troubles)}


# --- nothing of W&B harms a run -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Say on stderr, and note, what W&B could not do."""
    try:
        yield
    except Exception as error:
        _note(f"could not {what} ({type(error).__name__}: {_first_line(error)})")


def bounded(what: str, do: Callable[[], Any], grace: float = 0.0) -> bool:
    """Do, guarded, what may ask the server: in a thread of its own, left behind when the session's patience is at its end.

    After a wait in vain the session's patience is short.

    Args:
        what: It, for the message.
        do: Does it.
        grace: Seconds beyond the session's patience.

    Returns:
        Whether it came to an end, good or bad.
    """
    global _unreachable
    left = threading.Event()

    def work() -> None:
        try:
            do()
        except Exception as error:
            if not left.is_set():
                _unsent()
                _note(f"could not {what} ({type(error).__name__}: {_first_line(error)})")

    seconds = (_present.patience if _present is not None else 0.0) + grace
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(seconds)
    except KeyboardInterrupt:  # a second Ctrl-C: whoever presses it does not want to wait
        seconds = 0.0
    if thread.is_alive():
        left.set()
        _unsent()
        _note(f"could not {what} within {seconds:g} s, and does not wait for it")
        if _present is not None:
            _present.patience = min(_present.patience, GRACE_SECONDS)
            _unreachable = (time.monotonic(), f"it could not {what} in time")
    return not left.is_set()


def send(what: str, do: Callable[[], Any]) -> None:
    """Do, guarded, what wandb's own process takes in at once; one that does not is frozen, and ended: the run goes on without.

    Args:
        what: It, for the message.
        do: Does it.
    """
    if not bounded(what, do):
        leave_service()


def _unsent() -> None:
    if _present is not None:
        _present.unsent = True


def _note(trouble: str) -> None:
    """Print and keep a trouble, each once."""
    text = without_secrets(trouble)
    if _present is None or text not in _present.troubles:
        print(f"W&B: {text}", file=sys.stderr, flush=True)
    if _present is not None and text not in _present.troubles and len(_present.troubles) < 10:
        _present.troubles.append(text)


def _first_line(error: BaseException | str) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
