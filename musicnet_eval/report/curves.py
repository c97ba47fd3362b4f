"""Learning curves of a configuration by epoch."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from musicnet_eval import records
from musicnet_eval.errors import RecordError
from musicnet_eval.leaderboard.text import plain
from musicnet_eval.report.figures import PAGE, Palette, blank, quiet, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from musicnet_eval.leaderboard import Row

TOO_LARGE = 1e30  # values from here on are drawn by no axis

Curve = dict[int, float]  # epoch → value


def curves(row: Row) -> dict[str, Any]:
    """Draw training and validation of a configuration by epoch, or say why there is nothing to draw."""
    try:
        runs = by_epoch(row)
    except RecordError as error:
        return {"label": row.label, "svg": None, "caption": plain(error)}
    if not drawable(runs):
        return {"label": row.label, "svg": None, "caption": "no learning curves in metrics.csv"}
    caption = _gap_caption(runs, row)
    drawn = svg(plot(runs, PAGE), f"Learning curves: {caption}", row.configuration)
    return {"label": row.label, "svg": drawn, "caption": caption}


def by_epoch(row: Row) -> list[dict[str, Curve]]:
    """Read the curves of each run of a configuration.

    Raises:
        RecordError: A damaged `metrics.csv`.
    """
    return [_by_epoch(records.read_curves(run.folder)) for run in row.runs]


def drawable(runs: Sequence[Mapping[str, Curve]]) -> bool:
    """Tell whether any run has a curve that is drawn."""
    return any(key in run for run in runs for key in _keys("accuracy") + _keys("loss"))


def _keys(name: str) -> tuple[str, str]:
    return f"train/segment/{name}", f"val/segment/{name}"


def _by_epoch(lines: Iterable[Mapping[str, float]]) -> dict[str, Curve]:
    """Turn the lines of `metrics.csv` into curves; an epoch repeated after a resume counts as it ended."""
    found: defaultdict[str, Curve] = defaultdict(dict)
    for line in lines:
        epoch = line.get("epoch", TOO_LARGE)
        for key, value in line.items():
            if abs(epoch) < TOO_LARGE and abs(value) < TOO_LARGE:
                found[key][int(epoch) + 1] = value
    return {key: dict(sorted(curve.items())) for key, curve in found.items()}


def _mean(runs: Sequence[Mapping[str, Curve]], key: str) -> Curve:
    """Average a curve over runs, at the epochs that all of them have: a run that stopped early must not bend the mean."""
    curves = [run.get(key, {}) for run in runs]
    epochs = set.intersection(*(set(curve) for curve in curves))
    return {epoch: statistics.fmean(curve[epoch] for curve in curves) for epoch in sorted(epochs)}


def _gap_caption(runs: Sequence[Mapping[str, Curve]], row: Row) -> str:
    train, val = (_mean(runs, key) for key in _keys("accuracy"))
    both = sorted(train.keys() & val.keys())
    told = "No epoch has accuracy of both training and validation."
    if both:
        last = both[-1]
        a, b = train[last], val[last]
        told = f"Last gap {a - b:.3f}: training {a:.3f} less validation {b:.3f}, epoch {last}, runs: {len(runs)}."
    return told if row.gap is None else f"{told} Gap to test: {row.gap:.3f}."


def plot(runs: Sequence[Mapping[str, Curve]], colours: Palette) -> Figure:
    """Draw accuracy and loss of segments side by side."""
    from matplotlib.ticker import MaxNLocator

    figure = blank(6.4, 2.5, left=0.06, right=0.99, bottom=0.19, top=0.9, wspace=0.16)
    for axes, name in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        _panel(quiet(axes, colours, f"segment {name}", "epoch"), runs, name, colours)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        if name == "accuracy":
            axes.set_ylim(0, 1.02)
    return figure


def _panel(axes: Axes, runs: Sequence[Mapping[str, Curve]], name: str, colours: Palette) -> None:
    means = [_mean(runs, key) for key in _keys(name)]
    for key, mean, colour, dashes in zip(_keys(name), means, (colours.train, colours.val), ("-", (0, (4, 1.5))), strict=True):
        for run in runs:
            _line(axes, run.get(key, {}), color=colour, linewidth=0.7, alpha=0.45)
        _line(axes, mean, color=colour, linewidth=1.8, linestyle=dashes)
    both = sorted(means[0].keys() & means[1].keys())
    if name == "accuracy" and both:
        train, val = ([mean[epoch] for epoch in both] for mean in means)
        axes.fill_between(both, train, val, color=colours.ink, alpha=0.08, linewidth=0)


def _line(axes: Axes, curve: Curve, **style: Any) -> None:
    axes.plot(list(curve), list(curve.values()), marker="o" if len(curve) == 1 else "", **style)
