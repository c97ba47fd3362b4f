"""How the runs at or below a folder stand: `musicnet-status`. Layer 6; imports no torch.

It reads files alone (`status.json`, `result.json`, `failed.json`, `metrics.csv`, `sweep.jsonl`) and looks at locks, so it works
from another terminal and, on a shared disk, from another host; nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from musicnet_eval import jobs, records, runs
from musicnet_eval.errors import MusicnetError, RecordError
from musicnet_eval.pipes import ends_with_reader

DEAD_MINUTES = 0.0
LOSS = "train/segment/loss"
NOTE = 16  # columns that a watched note keeps beside a long name
STATES = ("done", "running", "dead", "interrupted", "failed", "missing", "unknown")
WATCHED = ("running", "dead", "failed", "interrupted", "unknown", "missing", "done")  # whoever watches looks at these first
COLOURS = {"done": "green", "running": "cyan", "dead": "red", "failed": "red", "interrupted": "yellow", "missing": "dim"}
HEADINGS = ("run", "state", "epoch", "left", "train loss", "val", "heartbeat", "note")
DESCRIPTION = """\
Show how the runs of a sweep stand, also while it runs and from another terminal.

Reads the files of every run at or below each DIR, and the list of jobs that a sweep leaves there
(sweep.jsonl); writes nothing."""
EPILOG = """\
states:
  done         result.json is there, and can be read
  running      with its epoch, the time left by the epochs so far, and the age of its last heartbeat
  dead         says running, but nobody holds its lock, or its process is gone; of a run on another host
               nobody here knows: it stays running, with the age of its heartbeat
  interrupted  stopped by Ctrl-C or SIGTERM; asked for again it goes on
  failed       with the first line of its error; failed.json holds the rest
  missing      planned by the latest sweep in its folder, not begun; named by what sets it apart in its sweep
  unknown      status.json is damaged, or says done of a run whose result.json is gone or damaged

columns:
  epoch        epochs begun / epochs to do; empty before the first
  left         time of the epochs that are left; validation included, test not
  train loss   of the last whole epoch
  val          the monitored metric, of the last whole epoch

examples:
  musicnet-status                              # all below runs/
  musicnet-status runs/tradition --watch       # renewed every 5 seconds until nothing is running or missing
  musicnet-status runs/tradition --format json

exit codes:
  0    shown, and no run has failed or is dead
  1    a run has failed or is dead
  2    a DIR that does not exist, or holds neither run nor sweep
  130  Ctrl-C while watching"""


@dataclass(frozen=True)
class Standing:
    """How one run, or one job that has no run yet, stands.

    Args:
        run: Path of its folder; of a job that has none, the overrides that set it apart in its sweep.
        state: One of `STATES`.
        epoch: The epoch it is in, from 0.
        epochs: Epochs to do.
        eta_seconds: Time of the epochs that are left, seconds.
        loss: Training loss of the last whole epoch.
        monitor: Name of the monitored metric.
        value: Its value in the last whole epoch.
        heartbeat_seconds: Age of the last sign of life, seconds.
        attempt: How many times it was begun.
        message: First line of the error, or where a run is running.
    """

    run: str
    state: str
    epoch: int | None = None
    epochs: int | None = None
    eta_seconds: float | None = None
    loss: float | None = None
    monitor: str | None = None
    value: float | None = None
    heartbeat_seconds: float | None = None
    attempt: int | None = None
    message: str = ""


# --- reading ------------------------------------------------------------------------------------------------------------------


def collect(folders: Iterable[Path], dead_minutes: float = DEAD_MINUTES, now: datetime | None = None) -> list[Standing]:
    """Read how every run at or below the folders stands, and which jobs of their sweeps have no run yet.

    Args:
        folders: Run folders, or folders above them.
        dead_minutes: Age of a heartbeat up to which a run is believed to live, though its process is not found, minutes.
        now: The present time.

    Raises:
        RecordError: A folder does not exist.
    """
    given, moment = list(folders), now or datetime.now(UTC)
    found = records.find_runs(given)
    shown = [_standing(run, moment, dead_minutes) for run in found]
    ledgers = sorted({path.parent.resolve() for folder in given for path in folder.rglob(jobs.LEDGER)})
    for ledger in filter(None, map(jobs.read, ledgers)):
        here = {run.name: run for run in found if run.parent == ledger.folder}
        # A job is enrolled before it begins: one that could not, on a full disk say, has no file to be found by.
        begun = replace(ledger, runs={job: run for job, run in ledger.runs.items() if run in here})
        missing = begun.unbegun(jobs.by_overrides(here.values()))
        shared, sweep = jobs.common(ledger.jobs), f"{ledger.folder.name}: " if len(ledgers) > 1 else ""
        own = [[override for override in job if override not in shared] or job for job in missing]  # secrets masked in the plan
        shown += [Standing(run=sweep + " ".join(overrides), state="missing") for overrides in own]
    return shown


def _standing(run: Path, now: datetime, dead_minutes: float) -> Standing:
    state = records.state(run)
    status = _read(run / records.STATUS)
    try:
        rows = records.read_curves(run)
    except RecordError:
        rows = []
    heartbeat = _age(status.get("heartbeat"), now)
    message = ""
    if state == "failed":
        message = str(_read(run / records.FAILED).get("error", ""))
    elif state == "running":
        message = f"{status.get('host', '?')}, process {status.get('pid', '?')}"
        if (heartbeat is None or heartbeat >= 60 * dead_minutes) and _gone(run, status):
            state = "dead"
    monitor = _monitor(run) if rows else None
    return Standing(
        run=str(run),
        state=state,
        epoch=_whole(status.get("epoch")),
        epochs=_whole(status.get("epochs")),
        eta_seconds=_eta(status, now) if state == "running" else None,
        loss=_last(rows, LOSS),
        monitor=monitor,
        value=_last(rows, monitor) if monitor else None,
        heartbeat_seconds=heartbeat,
        attempt=_whole(status.get("attempt")),
        message=message,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return records.read_json(path)
    except RecordError:
        return {}


def _age(told: Any, now: datetime) -> float | None:
    try:
        return max(0.0, (now - datetime.fromisoformat(str(told))).total_seconds())
    except (TypeError, ValueError):
        return None


def is_locked(run: Path) -> bool | None:
    """Say whether a process of this host is at a run now, without writing a thing; None where that cannot be known."""
    try:
        import fcntl

        with (run / runs.LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # no such lock, not ours to read, or a system or disk without flock
        return None
    return False


def _gone(run: Path, status: Mapping[str, Any]) -> bool:
    """Say whether a run has no process on this host any more; of another host's nothing is known.

    Its lock tells; a process of its number may be another one, above all after a container has begun anew.
    """
    number = _whole(status.get("pid"))
    if status.get("host") != socket.gethostname():
        return False
    if (locked := is_locked(run)) is not None:
        return not locked
    if number is None or number <= 0:
        return False
    try:
        os.kill(number, 0)
    except PermissionError:
        return False  # someone else's process
    except (OSError, OverflowError):
        return True
    return False


def _eta(status: Mapping[str, Any], now: datetime) -> float | None:
    """Give the time of the epochs that are left, by the mean of this attempt's whole epochs."""
    epoch, epochs, each = _whole(status.get("epoch")), _whole(status.get("epochs")), status.get("seconds_per_epoch")
    if epoch is None or epochs is None or epochs < 0 or not isinstance(each, (int, float)):
        return None
    spent = min(_age(status.get("epoch_started"), now) or 0.0, float(each))
    return max(0.0, (epochs - epoch) * float(each) - spent)


def _monitor(run: Path) -> str | None:
    """Give the monitored metric by the line of `config.yaml` that names it: to read YAML whole takes a hundred times as long."""
    try:
        with (run / records.CONFIG).open(encoding="utf8") as file:
            found = next((line for line in file if line.startswith("monitor:")), None)
    except (OSError, UnicodeDecodeError):
        return None
    return found.partition(":")[2].strip().strip("'\"") if found else None


def _last(rows: Sequence[Mapping[str, float]], name: str) -> float | None:
    return next((row[name] for row in reversed(rows) if name in row), None)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# --- writing ------------------------------------------------------------------------------------------------------------------


def cells(standing: Standing) -> tuple[str, ...]:
    """Write a run's standing for reading, one text under each of `HEADINGS`."""
    s = standing
    epoch = "" if s.epoch is None or s.epochs is None else f"{s.epoch + 1}/{'?' if s.epochs < 0 else s.epochs}"
    value = "" if s.value is None else f"{s.value:.3f}"
    beat = f"{duration(s.heartbeat_seconds)} ago" if s.state in ("running", "dead") and s.heartbeat_seconds is not None else ""
    return (s.run, s.state, epoch, duration(s.eta_seconds), "" if s.loss is None else f"{s.loss:.4g}", value, beat, s.message)


def counted(shown: Sequence[Standing]) -> str:
    """Say how many runs stand how: `3 done, 1 running`."""
    counts = Counter(standing.state for standing in shown)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def duration(seconds: float | None) -> str:
    """Write a time for reading, in the unit that suits it."""
    if seconds is None:
        return ""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def printable(text: str) -> str:
    """Make control characters visible: an error or a folder's name may come from anywhere."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def _nearer(shown: Sequence[Standing], folders: Sequence[Path]) -> list[Standing]:
    """Name runs from the one folder that was given."""
    root = str(folders[0].resolve()) + os.sep if len(folders) == 1 else ""
    return [Standing(**{**asdict(standing), "run": standing.run.removeprefix(root)}) for standing in shown]


def _table(shown: Sequence[Standing], size: tuple[int, int] | None = None) -> Any:
    """Draw all runs, long texts folded; given a terminal's columns and rows, what fits: a line a run, the lively ones first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn, cut = list(shown), size is not None
    below = [Text(counted(shown), style="dim italic", no_wrap=cut, overflow="ellipsis")]
    if size is not None:
        drawn.sort(key=lambda standing: (*WATCHED, standing.state).index(standing.state))
        room = max(size[1] - 3, 0)  # but the headings, what is left out, and the counts
        if len(drawn) > room + 1:
            below.insert(0, Text(f"… and {len(drawn) - room} more ({counted(drawn[room:])})", no_wrap=True, overflow="ellipsis"))
            del drawn[room:]
    rows = [tuple(map(printable, cells(standing))) for standing in drawn]
    if size is not None:  # too long a note is cut first, then the name, never a number
        *others, note = (max(map(len, column)) for column in list(zip(HEADINGS, *rows, strict=True))[1:])
        name = max(size[0] - sum(others) - min(note, NOTE) - len(HEADINGS) + 1, NOTE)
        rows = [(_shortened(row[0], name), *row[1:]) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0 if cut else 1))
    for heading in HEADINGS:
        justify: Any = "right" if heading in HEADINGS[2:7] else "left"
        table.add_column(heading, overflow="ellipsis" if cut else "fold", justify=justify, no_wrap=cut and heading != "note")
    for standing, row in zip(drawn, rows, strict=True):
        texts = [Text(cell, no_wrap=cut) for cell in row]
        texts[1].stylize(COLOURS.get(standing.state, ""))
        table.add_row(*texts)
    return Group(table, *below)


def _shortened(name: str, width: int) -> str:
    """Cut the middle out of a name: it begins with the network and ends with seed and signature."""
    return name if len(name) <= width else f"{name[: width // 2 - 1]}…{name[-(width - width // 2) :]}"


def lines(shown: Sequence[Standing]) -> list[str]:
    """Write one plain line a run, and one that counts them."""
    heads, told = [*(f"{heading} " for heading in HEADINGS[1:-1]), ""], []
    for standing in shown:
        name, *rest = map(printable, cells(standing))
        told.append(f"{name}: " + ", ".join(head + cell for head, cell in zip(heads, rest, strict=True) if cell.strip()))
    return [*told, counted(shown)]


# --- the command --------------------------------------------------------------------------------------------------------------


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """Run `musicnet-status` and give its exit code."""
    options = _parser().parse_args(arguments)
    try:
        shown = collect(options.folders, options.dead_after)
        if not shown:
            where = ", ".join(f"'{folder}'" for folder in options.folders)
            raise RecordError(f"no run and no sweep at or below {where}. Give a folder that musicnet-train has written.")
        if options.watch is None:
            _show(shown, options)
        else:
            shown = _watch(shown, options)
    except MusicnetError as error:
        print(f"musicnet-status: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return int(any(standing.state in ("failed", "dead") for standing in shown))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "musicnet-status", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folders = "run folders, or folders above them; default: runs"
    parser.add_argument("folders", metavar="DIR", nargs="*", type=Path, default=[Path("runs")], help=folders)
    watch = "renew every so many seconds until nothing is running or missing; default: 5; plain lines where there is no terminal"
    parser.add_argument("--watch", metavar="SECONDS", nargs="?", type=_positive, const=5.0, help=watch)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    dead = "age of a heartbeat up to which a run lives though its process is not found, as from another container; default: 0"
    parser.add_argument("--dead-after", metavar="MINUTES", type=_positive, default=DEAD_MINUTES, help=dead)
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 10**6:
        raise argparse.ArgumentTypeError(f"'{text}' must be a number above 0")
    return value


def _show(shown: Sequence[Standing], options: argparse.Namespace) -> None:
    if options.format == "json":
        print(json.dumps(records.finite([asdict(standing) for standing in shown]), indent=1, allow_nan=False), flush=True)
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(_table(_nearer(shown, options.folders)))
    else:
        print("\n".join(lines(_nearer(shown, options.folders))), flush=True)


def _watch(shown: list[Standing], options: argparse.Namespace) -> list[Standing]:
    """Show again and again until nothing is left to wait for; on a terminal in place."""
    if options.format == "json" or not sys.stdout.isatty():
        _show(shown, options)
        while _waiting(shown):
            time.sleep(options.watch)
            shown = collect(options.folders, options.dead_after)
            _show(shown, options)
        return shown
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        while _waiting(shown):
            live.update(_table(_nearer(shown, options.folders), live.console.size), refresh=True)
            time.sleep(options.watch)
            shown = collect(options.folders, options.dead_after)
        live.update(_table(_nearer(shown, options.folders)))  # all of it stays when Live ends
    return shown


def _waiting(shown: Sequence[Standing]) -> bool:
    return any(standing.state in ("running", "missing") for standing in shown)


if __name__ == "__main__":
    sys.exit(main())
