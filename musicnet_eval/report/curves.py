"""Learning curves of a configuration by epoch, as inline SVG in the page's own colours."""

from __future__ import annotations

import io
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from musicnet_eval import records
from musicnet_eval.errors import RecordError
from musicnet_eval.leaderboard.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from musicnet_eval.leaderboard import Row

TOO_LARGE = 1e30  # values from here on are drawn by no axis
# matplotlib cannot write `currentColor` or a CSS variable: these stand-ins are replaced in its SVG.
INK, TRAIN, VAL, RULE = "#010203", "#010204", "#010205", "#010206"
COLOURS = {INK: "currentColor", TRAIN: "var(--train)", VAL: "var(--val)", RULE: "var(--rule)"}

Curve = dict[int, float]  # epoch → value


def curves(row: Row) -> dict[str, Any]:
    """Draw training and validation of a configuration by epoch, or say why there is nothing to draw."""
    runs = []
    for run in row.runs:
        try:
            runs.append(_by_epoch(records.read_curves(run.folder)))
        except RecordError as error:
            return {"label": row.label, "svg": None, "caption": plain(error)}
    if not any(key in run for run in runs for key in _keys("accuracy") + _keys("loss")):
        return {"label": row.label, "svg": None, "caption": "no learning curves in metrics.csv"}
    caption = _gap_caption(runs, row)
    return {"label": row.label, "svg": _svg(_plot(runs), f"Learning curves: {caption}", row.configuration), "caption": caption}


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


def _plot(runs: Sequence[Mapping[str, Curve]]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 2.5), facecolor="none")
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.19, top=0.9, wspace=0.16)
    for axes, name in zip(figure.subplots(1, 2), ("accuracy", "loss"), strict=True):
        _panel(axes, runs, name)
        axes.set_title(f"segment {name}", fontsize=9, loc="left", color=INK)
        axes.set_xlabel("epoch", fontsize=8, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.tick_params(labelsize=8, color=RULE, labelcolor=INK)
        axes.grid(color=RULE, linewidth=0.6)
        axes.set_facecolor("none")
        axes.spines[:].set_visible(False)
        if name == "accuracy":
            axes.set_ylim(0, 1.02)
    return figure


def _panel(axes: Axes, runs: Sequence[Mapping[str, Curve]], name: str) -> None:
    means = [_mean(runs, key) for key in _keys(name)]
    for key, mean, colour, dashes in zip(_keys(name), means, (TRAIN, VAL), ("-", (0, (4, 1.5))), strict=True):
        for run in runs:
            _line(axes, run.get(key, {}), color=colour, linewidth=0.7, alpha=0.45)
        _line(axes, mean, color=colour, linewidth=1.8, linestyle=dashes)
    both = sorted(means[0].keys() & means[1].keys())
    if name == "accuracy" and both:
        train, val = ([mean[epoch] for epoch in both] for mean in means)
        axes.fill_between(both, train, val, color=INK, alpha=0.08, linewidth=0)


def _line(axes: Axes, curve: Curve, **style: Any) -> None:
    axes.plot(list(curve), list(curve.values()), marker="o" if len(curve) == 1 else "", **style)


def _svg(figure: Figure, alt: str, salt: str) -> Any:
    """Write a figure as inline SVG that takes the page's colours and font, with ids that no other figure of the page has."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "path.simplify": True}):
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    for standin, colour in COLOURS.items():
        text = text.replace(standin, colour)
    box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    opening = Markup('<svg role="img" aria-label="{}" {} xmlns:xlink="http://www.w3.org/1999/xlink">')
    return opening.format(alt, Markup(box.group() if box else "")) + Markup(body)
