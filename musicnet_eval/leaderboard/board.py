"""Run folders → `Board`: which runs there are, which rows they make, and how far each row is from guessing and from the others.

Data sets and protocols are never mixed in one table, a run found twice counts once, and whatever is not in a mean is listed by
name.

Reference: the mark "at chance" is a one-sided exact binomial test at 5 % against the largest class of the test songs.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from musicnet_eval import records
from musicnet_eval.contracts import RunRecord
from musicnet_eval.errors import ConfigError, RecordError, nearest
from musicnet_eval.leaderboard.compare import Comparison, judge
from musicnet_eval.leaderboard.labels import Settings, labels, marginal, settings
from musicnet_eval.leaderboard.standing import Standing, over_data_sets
from musicnet_eval.leaderboard.text import number, plain
from musicnet_eval.leaderboard.values import PREFIX, UNBOUNDED

METRIC = "test/song/accuracy"


class Listed(NamedTuple):
    """A run that is named below the tables instead of counted in one."""

    name: str
    state: str
    message: str


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its folder, the name to show, its record, and what it said of each test song."""

    folder: Path
    name: str
    record: RunRecord
    tested: tuple[records.Prediction, ...]

    @property
    def multilabel(self) -> bool:
        """Tell whether songs carry several labels, so that there is no single right class."""
        return bool(self.record["facts"].get("multilabel")) or any("|" in row.label + row.predicted for row in self.tested)

    @property
    def classes(self) -> tuple[str, ...]:
        """Give the class names in index order; none where the record does not list them."""
        named = self.record["facts"].get("classes")
        return tuple(map(plain, named)) if isinstance(named, list) else ()

    def number(self, metric: str) -> float | None:
        """Give a metric, or None where the run has no such finite number."""
        value = self.record["metrics"].get(metric)
        return float(value) if value is not None and math.isfinite(value) else None


class Chance(NamedTuple):
    """What naming the largest test class always gives, and whether a row is within what such guessing reaches.

    `songs` and `groups` are distinct ones; `rate` is the largest class's share of the songs.
    """

    songs: int
    groups: int
    rate: float
    not_beaten: bool


@dataclass(slots=True)
class Row:
    """One configuration (or, with `--by`, several): its runs and what is said of them."""

    label: str
    runs: tuple[Run, ...]
    values: tuple[float, ...]
    chance: Chance | None
    settings: Settings = field(default_factory=dict)
    rank: int = 0
    interval: tuple[float, float] | None = None  # 95 %, None where the songs allow none
    comparison: Comparison | None = None  # None for the row that others are compared with, and where there is no test
    best_group: bool | None = None  # whether it can not be told from the best row; None where that was not tested

    @property
    def mean(self) -> float:
        """Give the mean over runs."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Give the sample standard deviation over runs (n - 1), None with one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def songs(self) -> int | None:
        """Count the distinct songs tested, None where no run has its predictions."""
        return len({row.song for run in self.runs for row in run.tested}) or None

    @property
    def configuration(self) -> str:
        """Name the configuration; several are joined by `+`."""
        return "+".join(sorted({plain(run.record["configuration"]) for run in self.runs}))

    @property
    def choices(self) -> dict[str, Any]:
        """Give the choices that all its runs share, without seed and fold."""
        first, *others = (run.record["choices"] for run in self.runs)
        shared = {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}
        return {name: value for name, value in shared.items() if name not in ("seed", "fold")}

    @property
    def gap(self) -> float | None:
        """Give the mean train-test gap of segment accuracy, None where no run has it."""
        return _mean(run.number("gap/segment/accuracy") for run in self.runs)

    @property
    def seconds(self) -> float | None:
        """Give the mean time of training, None where no run has it."""
        return _mean(run.record["seconds"].get("fit") for run in self.runs)

    @property
    def throughput(self) -> float | None:
        """Give the mean number of segments trained on in a second, None where no run has it."""
        return _mean(run.record["throughput"].get("train_segments_per_second") for run in self.runs)

    @property
    def parameters(self) -> int:
        """Count the network's parameters."""
        return self.runs[0].record["parameters"]

    def repeats(self, choice: str) -> list[Any]:
        """List the seeds or folds of its runs, each once, numbers in order."""
        found = {plain(value): value for run in self.runs if (value := run.record["choices"].get(choice)) is not None}
        return [found[text] for text in sorted(found, key=lambda text: (len(text), text))]


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(finite) if finite else None


@dataclass(slots=True)
class Table:
    """The rows of one data set under one protocol, best first, and what must be said below them."""

    data: str
    protocol: str
    rows: list[Row]
    metric: str
    notes: list[str] = field(default_factory=list)
    inference: list[str] = field(default_factory=list)  # what the intervals and tests are, and where there are none

    @property
    def title(self) -> str:
        """Head the table by data set, protocol and metric."""
        return f"{self.data} · {self.protocol}: {self.metric}"


@dataclass(slots=True)
class Board:
    """All that was found: tables, and the runs that are in none of them."""

    metric: str
    tables: list[Table] = field(default_factory=list)
    standing: Standing | None = None  # of the rows that three data sets or more have in common
    notes: list[str] = field(default_factory=list)  # what all tables together say
    failures: list[Listed] = field(default_factory=list)  # failed, running, interrupted
    damaged: list[Listed] = field(default_factory=list)  # unreadable or foreign
    duplicates: list[Listed] = field(default_factory=list)  # the same run found again
    missing: list[Listed] = field(default_factory=list)  # finished, but without this number, or without predictions

    def listed(self) -> Iterator[tuple[str, list[Listed]]]:
        """Give the lists that go below the tables, each with its heading; empty ones are left out."""
        headings = ("Not finished", "Not readable, left out", "Found again, counted once", "Incomplete")
        lists = (self.failures, self.damaged, self.duplicates, self.missing)
        return ((heading, runs) for heading, runs in zip(headings, lists, strict=True) if runs)


# --- collecting -----------------------------------------------------------------------------------------------------------------


def collect(
    folders: Iterable[Path], metric: str = METRIC, by: Sequence[str] = (), baseline: Mapping[str, str] | None = None
) -> Board:
    """Read every run at or below the folders and lay the finished ones out in tables.

    Args:
        folders: Run folders, or folders that hold them at any depth.
        metric: Key of the record's metrics that ranks the rows.
        by: Settings (choices or overridden keys) that make a row; the rest is averaged over, if every row has the same of it.
        baseline: Settings of the row that the others are tested against; none: the best row of each table.

    Raises:
        RecordError: A folder does not exist.
        ConfigError: No finished run has the metric, `by` would compare unlike things, or `baseline` does not name one row.
    """
    folders = list(folders)
    board = Board(metric)
    runs: dict[tuple[str, str], Run] = {}
    for folder in records.find_runs(folders):
        run = _read(folder, _name(folder, folders), board)
        if run is None:
            continue
        # Data sets of the same names and labels, clean and noisy say, share signatures: these tell of an index, not of sound.
        same = run.record["signature"], plain(run.record["choices"].get("data"))
        if (first := runs.setdefault(same, run)) is not run:
            board.duplicates.append(Listed(run.name, "done", _duplicate(first, run, metric)))
    known = {name for run in runs.values() for name in run.record["metrics"] if run.number(name) is not None}
    if runs and metric not in known:
        raise ConfigError(f"metric '{plain(metric)}' is in none of the {len(runs)} finished runs: {nearest(metric, known)}")
    tables = defaultdict(list)
    for run in runs.values():
        if run.number(metric) is None:
            board.missing.append(Listed(run.name, "done", f"has no number for {metric}; not in any mean"))
        else:
            choices = run.record["choices"]
            tables[plain(choices.get("data")), plain(choices.get("protocol"))].append(run)
    board.tables = [_table(*key, tables[key], metric, by) for key in sorted(tables)]
    for table in board.tables:
        judge(table, baseline)
    board.standing = over_data_sets(board.tables, lower_is_better(metric))
    board.notes = board.standing.notes() if board.standing else []
    return board


def _name(folder: Path, given: Iterable[Path]) -> str:
    """Name a run by its path below the folder that was given."""
    for parent in given:
        if folder.is_relative_to(parent.resolve()) and folder != parent.resolve():
            return plain(folder.relative_to(parent.resolve()).as_posix())
    return plain(folder.name)


def _read(folder: Path, name: str, board: Board) -> Run | None:
    """Read a finished run, or list on the board why there is none."""
    state = records.state(folder)
    try:
        if state in ("done", "unknown"):
            if not (folder / records.RESULT).exists():
                records.read_json(folder / records.STATUS)  # it may be what is damaged; else the record that it speaks of is gone
            record = records.read_result(folder)
        elif state == "failed":
            message = str(records.read_json(folder / records.FAILED).get("error") or "no message")
            board.failures.append(Listed(name, state, plain(message.strip().split("\n")[0])))
            return None
        else:
            status = records.read_json(folder / records.STATUS)
            seen = f"epoch {status.get('epoch', '?')}, last sign of life {status.get('heartbeat', 'unknown')}"
            board.failures.append(Listed(name, plain(state), plain(seen)))
            return None
    except RecordError as error:
        board.damaged.append(Listed(name, state, plain(error).replace(str(folder), name)))  # no home folders in a report
        return None
    try:
        rows = (row for row in records.read_predictions(folder) if row.split == "test")
        whole = board.metric.removeprefix(PREFIX) in UNBOUNDED
        tested = tuple(row._replace(group=row.group or row.song, probabilities=_kept(row, whole=whole)) for row in rows)
    except RecordError as error:
        board.missing.append(
            Listed(name, state, f"is ranked, but its songs are not counted: {plain(error).replace(str(folder), name)}")
        )
        tested = ()
    return Run(folder, name, record, tested)


def _kept(row: records.Prediction, *, whole: bool) -> dict[str, float]:
    """Keep of a song's probabilities what is needed: a thousand runs have many."""
    return row.probabilities if whole else {row.predicted: row.probabilities.get(row.predicted, math.nan)}


def _duplicate(first: Run, again: Run, metric: str) -> str:
    if first.number(metric) == again.number(metric):
        return f"the same run as {first.name}"
    return f"signed as {first.name} is ({number(first.number(metric))}), but says {number(again.number(metric))}"


def _table(data: str, protocol: str, runs: Iterable[Run], metric: str, by: Sequence[str]) -> Table:
    groups = defaultdict(list)
    for run in runs:
        groups[plain(run.record["configuration"])].append(run)
    told = {name: settings([run.record for run in group]) for name, group in groups.items()}
    note = ""
    if by:
        joined, told, note = marginal(told, by)
        groups = defaultdict(list, {row: [run for name in names for run in groups[name]] for row, names in joined.items()})
    found = labels(told, {name: group[0].record["config"] for name, group in groups.items()}, by)
    rows = []
    for name, group in groups.items():
        values = tuple(value for run in group if (value := run.number(metric)) is not None)
        rows.append(Row(found[name], tuple(group), values, _chance(group), told[name]))
    sign = 1 if lower_is_better(metric) else -1
    rows.sort(key=lambda row: (sign * row.mean, row.label))
    for row in rows:
        row.rank = 1 + sum(sign * other.mean < sign * row.mean for other in rows)
    return Table(data, protocol, rows, metric, [*_notes(rows, metric), *([note] if note else [])])


def lower_is_better(metric: str) -> bool:
    """Tell whether small is good: losses, calibration errors, and the train-test gap."""
    name = metric.rpartition("/")[2].removesuffix("_uncalibrated")
    return name in ("loss", "log_loss", "ece", "ece_adaptive", "brier") or metric.startswith("gap/")


# --- chance ---------------------------------------------------------------------------------------------------------------------


def upper_quantile(n: int, p: float, level: float = 0.95) -> int:
    """Give the smallest k with P(X ≤ k) ≥ `level` for X ~ Binomial(n, p), by exact summation.

    >>> upper_quantile(100, 0.5)
    58
    """
    if p >= 1:
        return n
    total = 0.0
    for k in range(n + 1):
        choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        total += math.exp(choose + (k * math.log(p) if k else 0.0) + (n - k) * math.log1p(-p))
        if total >= level - 1e-10:  # rounding must not push an exact tie over the edge
            return k
    return n


def _chance(runs: Sequence[Run]) -> Chance | None:
    """Judge a row against guessing the largest test class. Groups count where they are fewer than songs, since clips of one work
    are not independent; runs of other seeds hear the same songs and add none."""
    if not any(run.tested for run in runs) or any(run.multilabel for run in runs):
        return None
    songs = {row.song: row for run in runs for row in run.tested}
    groups = {row.group for row in songs.values()}
    rate = max(Counter(row.label for row in songs.values()).values()) / len(songs)
    rows = [row for run in runs for row in run.tested]
    share = sum(row.label == row.predicted for row in rows) / len(rows)
    n = min(len(songs), len(groups))
    return Chance(len(songs), len(groups), rate, not_beaten=share * n <= upper_quantile(n, rate))


AT_CHANCE = (
    "† at chance: its share of songs said right, over all runs, is within what guessing reaches in 95 % of cases (one-sided "
    "exact binomial; n is the number of groups where they are fewer than songs, as songs of one group are not independent)."
)


def _notes(rows: Sequence[Row], metric: str) -> list[str]:
    better = "lower" if lower_is_better(metric) else "higher"
    notes = [
        f"{metric}, {better} is better: mean and sample sd (n − 1) over runs, which are seeds and folds. "
        "gap: segment accuracy, as last measured in training, less that of the test. fit: mean time of training."
    ]
    chances = [row.chance for row in rows if row.chance]
    if chances:
        rates = sorted(chance.rate for chance in chances)
        ends = dict.fromkeys((number(rates[0]), number(rates[-1])))
        counts = {(chance.songs, chance.groups) for chance in chances}
        of = "; {} songs in {} groups".format(*counts.pop()) if len(counts) == 1 else ""
        notes.append(f"Chance (song accuracy of always naming the largest test class): {' to '.join(ends)}{of}.")
    if any(chance.not_beaten for chance in chances):
        notes.append(AT_CHANCE)
    return notes + _unlike(rows)


def _unlike(rows: Sequence[Row]) -> list[str]:
    """Say where rows of one table were not put to the same test."""
    repeats = set()
    for row in rows:
        choices = [run.record["choices"] for run in row.runs]
        repeats.add(frozenset((plain(one.get("seed")), plain(one.get("fold"))) for one in choices))
    songs = {frozenset(one.song for run in row.runs for one in run.tested) for row in rows if row.songs}
    classes = {run.classes for row in rows for run in row.runs}
    differ = (("seeds and folds", repeats), ("test songs", songs), ("classes", classes))
    unlike = [name for name, found in differ if len(found) > 1]
    return [f"Not like for like: the rows differ in their {' and in their '.join(unlike)}."] if unlike else []
