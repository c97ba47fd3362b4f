"""Intervals and paired tests for the rows of a table, and what must be said of them.

A row can be judged where `predictions.csv` gives the score of every song: every seed of it must have been put to the same songs.
Rows are compared with each other only on the same songs, labels, groups and classes; for any other the reason is said. Every
p value is corrected for all pairs of the table, so that it holds for the best row too, which was picked by looking.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from musicnet_eval import significance
from musicnet_eval.errors import ConfigError
from musicnet_eval.leaderboard import values
from musicnet_eval.leaderboard.text import listing, plain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from musicnet_eval.leaderboard.board import Row, Table

SAME = 1e-4  # metrics come from float32, probabilities in `predictions.csv` have six digits


class Comparison(NamedTuple):
    """A row against another one: the difference, its simultaneous interval, and p before and after Holm's correction."""

    against: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class Test:
    """What a row was put to, and how each seed did.

    Args:
        key: Classes, and the group, label and weight of each song: rows of the same key were put to the same test.
        scores: Seed by group, scaled so that the mean over groups is a seed's score.
        sizes: Relative size of each group, mean 1.
        songs: Number of songs.
        hits: Song by song, 1 where right, if there is one run, songs make no groups, and accuracy is judged.
    """

    key: object
    scores: NDArray[np.float64]
    sizes: NDArray[np.float64]
    songs: int
    hits: NDArray[np.float64] | None


def judge(table: Table, baseline: Mapping[str, str] | None = None) -> None:
    """Give the rows of a table, best first, their intervals and tests, and the table the notes on them.

    Args:
        table: Its rows are filled in.
        baseline: Settings of the row that all others are compared with; none: the best row.
    """
    against = _baseline(table, baseline) if baseline else None
    if table.metric not in values.JUDGED:
        names = ", ".join(values.VALUES)
        table.inference.append(
            f"No intervals and tests: they need a value for each song, and exist for {values.PREFIX}… ({names})."
        )
        return
    bounded = table.metric.removeprefix(values.PREFIX) not in values.UNBOUNDED
    tests: list[tuple[Row, Test]] = []
    refused: defaultdict[str, list[str]] = defaultdict(list)
    for row in table.rows:
        test = _test(row, table.metric)
        if isinstance(test, str):
            refused[test].append(row.label)
            continue
        tests.append((row, test))
        low, high = significance.interval(test.scores, test.sizes, test.songs, bounded=bounded)
        row.interval = float(low), float(high)
    table.inference += _interval_notes(tests)
    best = table.rows[0]
    first = next((test for row, test in tests if row is best), None)
    same = [(row, test) for row, test in tests if first and test.key == first.key]
    for row, test in tests:
        if first and test.key != first.key:
            refused["not tested: other songs, labels, groups, folds or classes than those of the best row"].append(row.label)
    if len(same) > 1:
        table.inference += _compare(same, against, 1.0 if bounded else math.inf)
    elif first is None and len(tests) > 1:
        refused["not tested, since the best row cannot be"] = [row.label for row, _ in tests]
    table.inference += [f"{listing(names)}: {reason}." for reason, names in refused.items()]


# --- one row --------------------------------------------------------------------------------------------------------------------


def _test(row: Row, metric: str) -> Test | str:
    """Lay out a row's songs by seed, or say why that cannot be."""
    import numpy as np

    if not all(run.tested for run in row.runs):
        return "no interval, a run lacks its predictions of test songs"
    seeds = defaultdict(list)
    found: dict[str, Any] = {}
    for run in row.runs:
        if len({one.song for one in run.tested}) < len(run.tested):
            return "no interval, a run names a test song twice"
        named = run.record["facts"].get("classes")
        names = tuple(map(str, named)) if isinstance(named, list) else ()
        try:
            found[run.name] = values.of(metric, run.tested, names, several=run.multilabel)
        except KeyError as error:
            return f"no interval, predictions.csv names a class {plain(error.args[0])} that result.json does not"
        if not math.isclose(found[run.name].mean(), run.number(metric) or 0, rel_tol=SAME, abs_tol=SAME):
            return f"no interval, predictions.csv gives another {metric.removeprefix(values.PREFIX)} than result.json"
        seeds[plain(run.record["choices"].get("seed"))].append(run)
    first, *others = ({_song(one.song, one.group, one.label) for run in runs for one in run.tested} for runs in seeds.values())
    if any(other != first for other in others):
        return "no interval, its seeds were not put to the same songs"
    order = {song: i for i, song in enumerate(sorted(first))}
    scores, weights = np.zeros((2, len(seeds), len(order)))
    for i, runs in enumerate(seeds.values()):
        for run in runs:
            at = [order[_song(one.song, one.group, one.label)] for one in run.tested]
            weight = 1 / (len(runs) * len(run.tested))
            weights[i, at] += weight
            scores[i, at] += weight * found[run.name]
    if np.abs(weights - weights[0]).max() > 1e-12:
        return "no interval, its seeds have not the same folds"
    groups = {group: i for i, group in enumerate(sorted({song[0] for song in order}))}
    if len(groups) < 2:
        return "no interval, its test songs are one group"
    member = np.zeros((len(order), len(groups)))
    member[np.arange(len(order)), [groups[song[0]] for song in order]] = len(groups)
    classes = tuple({run.classes for run in row.runs})
    single = len(row.runs) == len({plain(run.record["choices"].get("fold")) for run in row.runs}) and len(groups) == len(order)
    counted = single and len(seeds) == 1 and metric == f"{values.PREFIX}accuracy"
    hits = (scores[0] > 0).astype(float) if counted else None
    key = (classes, tuple(order), tuple(weights[0].round(12)))
    return Test(key, scores @ member, weights[0] @ member, len(order), hits)


def _song(song: str, group: str, label: str) -> tuple[str, str, str]:
    return group, song, label


# --- rows against each other ----------------------------------------------------------------------------------------------------


def _compare(tests: Sequence[tuple[Row, Test]], baseline: Row | None, most: float) -> list[str]:
    """Compare all pairs of rows, best first, and mark those that cannot be told from the best; `most` bounds a difference."""
    import numpy as np

    rows = [row for row, _ in tests]
    if baseline is not None and all(row is not baseline for row in rows):
        return [f"Not tested against {baseline.label}: it was not put to the same test as the best row."]
    against = next((i for i, row in enumerate(rows) if row is baseline), 0)
    single = all(test.hits is not None for _, test in tests if len(test.scores) == 1)
    hits = np.stack([test.scores[0] if test.hits is None else test.hits for _, test in tests]) if single else None
    found = significance.pairs([significance.parts(test.scores, test.sizes) for _, test in tests], hits)
    corrected = significance.holm_all_pairs(found.p)
    count = len(rows) * (len(rows) - 1) // 2
    half = found.half_width(significance.ALPHA / count)
    for i, row in enumerate(rows):
        row.best_group = bool(i == 0 or corrected[0, i] >= significance.ALPHA)
        if i != against:
            less, wide = float(found.difference[i, against]), float(half[i, against])
            label = rows[against].label
            low, high = max(less - wide, -most), min(less + wide, most)
            row.comparison = Comparison(label, less, low, high, float(found.p[i, against]), float(corrected[i, against]))
    return _test_notes(tests, rows[against].label if baseline is not None else "", count)


def _baseline(table: Table, wanted: Mapping[str, str]) -> Row:
    """Find the one row that has the wanted settings."""
    text = ",".join(f"{key}={value}" for key, value in wanted.items())
    found = [
        row
        for row in table.rows
        if all(value in (row.settings.get(key), plain(row.choices.get(key))) for key, value in wanted.items())
    ]
    if len(found) != 1:
        names = listing([row.label for row in found or table.rows], 12)
        raise ConfigError(
            f"--baseline {plain(text)} fits {len(found)} rows of {table.title}: it must name one. "
            f"Give more or other choices (backbone=, loss=, an overridden key) of one of: {names}."
        )
    return found[0]


# --- what must be said ----------------------------------------------------------------------------------------------------------


def _interval_notes(tests: Sequence[tuple[Row, Test]]) -> list[str]:
    if not tests:
        return []
    several = [test for _, test in tests if len(test.scores) > 1]
    one = [row.label for row, test in tests if len(test.scores) == 1]
    grouped = any(test.songs > test.scores.shape[1] for _, test in tests)
    unit = "groups of songs" if grouped else "songs"
    notes = []
    if several:
        few = min(len(test.scores) for test in several) == 2
        width = " Two seeds say little of other seeds, hence the width; five narrow it much." if few else ""
        notes.append(f"95 % interval: for new seeds and new {unit} (crossed variance components, small-sample t).{width}")
    if one:
        which = f" of {listing(one)}" if several else ""
        notes.append(
            f"One seed: the 95 % interval{which} is for new {unit}, of that trained model only, not of the configuration."
        )
    return notes


def _test_notes(tests: Sequence[tuple[Row, Test]], baseline: str, count: int) -> list[str]:
    kinds = {len(test.scores) > 1 for _, test in tests}
    ways = []
    if True in kinds:
        ways.append("for new seeds and songs")
    if False in kinds:
        exact = all(test.hits is not None for _, test in tests if len(test.scores) == 1)
        ways.append(
            "where a row has one seed, for these trained models" + (" (McNemar, exact, for two of them)" if exact else "")
        )
    against = baseline or "the best row"
    group = sum(bool(row.best_group) for row, _ in tests)
    said = "no row can be told from the best one" if group == len(tests) else "these rows cannot be told from the best one"
    marked = "every other row is told from this one" if group == 1 else f"best group, {said}"
    return [
        f"p: paired test against {against} on the same songs, {', '.join(ways)}; corrected for all {count} pairs (Holm).",
        f"Marked *: {marked} at 5 %, all pairs taken together.",
    ]
