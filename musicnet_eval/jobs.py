"""Which jobs a sweep has, and which run each of them is: `sweep.jsonl` beside the run folders. Layer 2; imports no torch.

The first line is the plan (`started`, `jobs`: the overrides of each); every job adds a line as soon as it knows its folder
(`overrides`, `run`). So any process, on any host with the same disk, can tell what has not begun. The latest sweep's plan stays.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicnet_eval import records

LEDGER = "sweep.jsonl"
LEFT_OUT = {name for name in records.NOT_IN_SIGNATURE if "." not in name}  # others may come in by the data's fingerprint
Key = tuple[str, ...]
_GROUP = re.compile(r"[.=@/]")  # ends it in an override


@dataclass(frozen=True)
class Ledger:
    """A sweep's plan, and the runs known of it.

    Args:
        folder: Where the runs lie.
        started: When the sweep began, ISO 8601.
        jobs: The overrides of each planned job, in order.
        runs: Name of a job's run folder by the job's overrides.
    """

    folder: Path
    started: str
    jobs: tuple[Key, ...]
    runs: Mapping[Key, str]

    def unbegun(self, known: Mapping[Key, Path]) -> list[Key]:
        """List the jobs that have no run yet.

        Args:
            known: Runs by their own overrides, which may be older than the sweep and are taken as its jobs'.
        """
        return [job for job in self.jobs if key(job) not in self.runs and key(job) not in known]


def key(overrides: Iterable[Any]) -> Key:
    """Give what two askings for one run share: the overrides in one order, but those of groups that cannot change its numbers."""
    return tuple(sorted(each for each in map(str, overrides) if _GROUP.split(each.lstrip("+~"), 1)[0] not in LEFT_OUT))


def plan(folder: Path, jobs: Iterable[Sequence[str]]) -> None:
    """Begin a ledger with the overrides of each job, in place of an earlier one."""
    line = {"started": records.now(), "jobs": [list(job) for job in jobs]}
    records.write_text(folder / LEDGER, json.dumps(line) + "\n")


def enrol(folder: Path, overrides: Sequence[str], run: str) -> None:
    """Say which run a job is, where its sweep has a ledger."""
    if (folder / LEDGER).is_file():
        line = json.dumps({"overrides": list(overrides), "run": run}) + "\n"
        # One short write, which other processes' do not tear. On a full disk the run itself says so, if there is still one to do.
        with contextlib.suppress(OSError), (folder / LEDGER).open("a", encoding="utf8") as file:
            file.write(line)


def read(folder: Path) -> Ledger | None:
    """Read a folder's ledger; None where there is none. A line that a kill cut short is left out."""
    try:
        lines = (folder / LEDGER).read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    values = [value for value in map(_parsed, lines) if isinstance(value, dict)]
    if not values or not isinstance(values[0].get("jobs"), list):
        return None
    entries = [value for value in values[1:] if isinstance(value.get("overrides"), list) and isinstance(value.get("run"), str)]
    return Ledger(
        folder=folder,
        started=str(values[0].get("started", "")),
        jobs=tuple(tuple(map(str, job)) for job in values[0]["jobs"] if isinstance(job, list)),
        runs={key(value["overrides"]): value["run"] for value in entries},
    )


def whole(folder: Path) -> list[Path]:
    """List the run folders of a folder that hold a record."""
    return sorted(run for run in folder.iterdir() if (run / records.RESULT).is_file()) if folder.is_dir() else []


def unfinished(folder: Path, planned: Iterable[Sequence[str]]) -> int:
    """Count the jobs of a plan that have no whole run, by files; the ledger's plan may be another sweep's by now."""
    ledger, known = read(folder), by_overrides(whole(folder))
    named = {job: folder / run for job, run in ledger.runs.items()} if ledger else {}
    return sum(records.state(named[job]) != "done" if job in named else job not in known for job in map(key, planned))


def common(jobs: Sequence[Sequence[str]]) -> frozenset[str]:
    """Give the overrides that all jobs share: the others name a job in its sweep."""
    return frozenset.intersection(*map(frozenset, jobs)) if jobs else frozenset()


def by_overrides(runs: Iterable[Path]) -> dict[Key, Path]:
    """Index run folders by the overrides that they were asked for with, where a record tells."""
    known: dict[Key, Path] = {}
    for run in runs:
        for name in (records.RESULT, records.FAILED, records.STATUS):
            told = _parsed_file(run / name).get("overrides")
            if isinstance(told, list):
                known[key(told)] = run
                break
    return known


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _parsed_file(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
