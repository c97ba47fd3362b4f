"""Figures that compare rows: intervals, what accuracy costs, backbone by loss, and ranks over data sets."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from musicnet_eval.leaderboard.board import lower_is_better
from musicnet_eval.leaderboard.text import number, plain
from musicnet_eval.report.figures import Palette, blank, quiet, short
from musicnet_eval.significance import cliques

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from musicnet_eval.leaderboard import Row, Table
    from musicnet_eval.leaderboard.standing import Standing


def forest(table: Table, colours: Palette) -> Figure:
    """Draw the score of every run, and mean and interval of every configuration, best on top."""
    rows = table.rows[::-1]
    figure = blank(6.4, 0.8 + 0.26 * len(rows))
    axes = quiet(figure.subplots(), colours, x=table.metric)
    for place, row in enumerate(rows):
        axes.plot(row.values, [place] * len(row.values), "o", color=colours.train, alpha=0.35, markersize=4, linewidth=0)
        if row.interval:
            axes.plot(row.interval, [place, place], color=colours.train, linewidth=1.6)
        axes.plot([row.mean], [place], "D", color=colours.train, markersize=5)
    chances = [row.chance.rate for row in rows if row.chance and table.metric.endswith("/song/accuracy")]
    if chances:
        axes.axvline(statistics.fmean(chances), color=colours.val, linewidth=1, linestyle=(0, (3, 3)))
    axes.set_yticks(range(len(rows)), [short(row.label) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(visible=False, axis="y")
    return figure


# --- what accuracy costs ------------------------------------------------------------------------------------------------------


def front(points: Sequence[tuple[float, float]], *, lower: bool = False) -> list[int]:
    """List the points (cost, score) that no other one beats at the same cost or less, cheapest first.

    >>> front([(1.0, 0.5), (2.0, 0.4), (3.0, 0.9)])
    [0, 2]
    """
    sign = -1 if lower else 1
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if not found or sign * points[i][1] > sign * points[found[-1]][1]:
            found.append(i)
    return found


def tradeoff(table: Table, colours: Palette) -> Figure | None:
    """Draw score against parameters and against training time, the rows that nothing cheaper beats joined and named by rank."""
    kinds: list[tuple[str, list[tuple[float, Row]]]] = [
        ("parameters", [(float(row.parameters), row) for row in table.rows if row.parameters > 0]),
        ("seconds of training", [(spent, row) for row in table.rows if (spent := row.seconds) and spent > 0]),
    ]
    if len({cost for _, points in kinds for cost, _ in points}) < 2:
        return None
    figure = blank(6.4, 2.6)
    for axes, (name, points) in zip(figure.subplots(1, 2, sharey=True), kinds, strict=True):
        quiet(axes, colours, x=name)
        if points:
            _costs(axes, points, colours, lower=lower_is_better(table.metric))
    figure.axes[0].set_ylabel(short(table.metric), fontsize=8, color=colours.ink)
    return figure


def _costs(axes: Axes, points: Sequence[tuple[float, Row]], colours: Palette, *, lower: bool) -> None:
    places = [(cost, row.mean) for cost, row in points]
    best = front(places, lower=lower)
    axes.set_xscale("log")
    axes.plot(*zip(*places, strict=True), "o", color=colours.train, alpha=0.6, markersize=5, linewidth=0)
    axes.plot(*zip(*(places[i] for i in best), strict=True), color=colours.val, linewidth=1, drawstyle="steps-post")
    for i in best:
        axes.annotate(
            f"#{points[i][1].rank}", places[i], xytext=(4, 4), textcoords="offset points", fontsize=8, color=colours.ink
        )
    axes.margins(x=0.15, y=0.15)


# --- backbone by loss ---------------------------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """Mean scores by backbone (rows) and loss (columns); a cell is (score, share of the range, number of rows) or None."""

    backbones: list[str]
    losses: list[str]
    cells: list[list[tuple[str, float, int] | None]]


def grid(table: Table) -> Grid | None:
    """Average a table by backbone and loss, best backbone and loss first; None unless there are two of each."""
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for row in table.rows:
        choices = row.choices
        if "backbone" in choices and "loss" in choices:
            found[plain(choices["backbone"]), plain(choices["loss"])].append(row.mean)
    backbones, losses = ([*dict.fromkeys(key[i] for key in found)] for i in range(2))
    if len(backbones) < 2 or len(losses) < 2:
        return None
    means = {key: statistics.fmean(values) for key, values in found.items()}
    low, high = min(means.values()), max(means.values())
    width = (high - low) or 1.0
    lower = lower_is_better(table.metric)

    def cell(key: tuple[str, str]) -> tuple[str, float, int] | None:
        if key not in means:
            return None
        share = (means[key] - low) / width
        return number(means[key]), 1 - share if lower else share, len(found[key])

    return Grid(backbones, losses, [[cell((backbone, loss)) for loss in losses] for backbone in backbones])


def heat(shown: Grid, colours: Palette, title: str) -> Figure:
    """Draw the grid as shaded cells with their numbers."""
    figure = blank(1.8 + 0.95 * len(shown.losses), 1.0 + 0.3 * len(shown.backbones))
    axes = quiet(figure.subplots(), colours, title)
    for y, line in enumerate(shown.cells):
        for x, cell in enumerate(line):
            if cell:
                axes.fill_between((x - 0.48, x + 0.48), y - 0.46, y + 0.46, color=colours.train, alpha=0.08 + 0.5 * cell[1])
                axes.text(x, y, cell[0], ha="center", va="center", fontsize=8, color=colours.ink)
    axes.set_xticks(range(len(shown.losses)), [short(name) for name in shown.losses], rotation=30, ha="right")
    axes.set_yticks(range(len(shown.backbones)), [short(name) for name in shown.backbones])
    axes.invert_yaxis()
    axes.grid(visible=False)
    return figure


# --- ranks over data sets -----------------------------------------------------------------------------------------------------


def critical_difference(standing: Standing, colours: Palette) -> Figure:
    """Draw mean ranks on a line, and a bar over every run of rows that signed ranks cannot tell apart.

    The bracket on top is as long as Nemenyi's critical difference.

    Reference:
        Demšar, Journal of Machine Learning Research 7, 2006, figure 1; bars by Wilcoxon-Holm as Benavoli et al. (2016) advise.
    """
    ranks = standing.ranks.ranks.tolist()
    bars = cliques(standing.ranks.ranks, standing.same())
    count = len(ranks)
    half = (count + 1) // 2
    lowest = -0.4 * (len(bars) + 1) - 0.8 * half
    figure = blank(7.4, 0.26 * (2.6 - lowest), left=0.34, right=0.66, bottom=0.01, top=0.99)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_ylim(lowest, 2.6)
    axes.set_xlim(1, count)
    axes.plot((1, count), (0, 0), color=colours.ink, linewidth=1, clip_on=False)
    for rank in range(1, count + 1, 1 + count // 20):
        axes.plot((rank, rank), (0, 0.2), color=colours.ink, linewidth=1, clip_on=False)
        axes.text(rank, 0.3, str(rank), ha="center", va="bottom", fontsize=8, color=colours.ink)
    reach = min(1 + standing.ranks.critical_difference, count)
    axes.plot((1, reach), (1.5, 1.5), color=colours.val, linewidth=2, clip_on=False)
    cut = ", longer than the axis" if reach < 1 + standing.ranks.critical_difference else ""
    told = f"critical difference {standing.ranks.critical_difference:.2f} (Nemenyi){cut}"
    axes.text(1, 1.7, told, fontsize=8, color=colours.ink)
    for level, bar in enumerate(bars, start=1):
        ends = (ranks[bar[0]], ranks[bar[-1]])
        axes.plot(ends, (-0.4 * level,) * 2, color=colours.train, linewidth=3, solid_capstyle="round", clip_on=False)
    for i, (label, rank) in enumerate(zip(standing.labels, ranks, strict=True)):
        left = i < half
        y = -0.4 * (len(bars) + 1) - 0.8 * ((i if left else count - 1 - i) + 0.4)
        edge = 1 - 0.02 * count if left else count + 0.02 * count
        axes.plot((rank, rank, edge), (0, y, y), color=colours.rule, linewidth=1, clip_on=False, zorder=1)
        side: Any = "right" if left else "left"
        axes.text(edge, y, f" {short(label)} ({rank:.2f}) ", ha=side, va="center", fontsize=8, color=colours.ink)
    return figure
