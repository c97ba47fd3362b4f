"""Confusion matrices over the test songs of a configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from musicnet_eval.leaderboard.text import plain
from musicnet_eval.report.figures import Palette, blank, quiet, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from musicnet_eval.leaderboard import Row

MOST_CLASSES = 30  # a wider matrix cannot be read; the commonest confusions are listed instead
MOST_CONFUSIONS = 20


def confusion(row: Row) -> dict[str, Any]:
    """Count true against predicted class over the test songs of all runs."""
    told: dict[str, Any] = {"label": row.label, "matrix": [], "classes": [], "pairs": [], "why": ""}
    tested = [one for run in row.runs for one in run.tested]
    if any(run.multilabel for run in row.runs):
        return {**told, "why": "Songs carry several labels: a confusion matrix has no meaning here."}
    if not tested:
        return {**told, "why": "No predictions.csv to count."}
    counts = Counter((plain(one.label), plain(one.predicted) or "nothing") for one in tested)
    classes = _classes(row, counts)
    totals: Counter[str] = Counter()
    for (true, _), count in counts.items():
        totals[true] += count
    if len(classes) > MOST_CLASSES:
        errors = Counter({pair: count for pair, count in counts.items() if pair[0] != pair[1]})
        pairs = [(*pair, count, count / totals[pair[0]]) for pair, count in errors.most_common(MOST_CONFUSIONS)]
        return {**told, "pairs": pairs, "why": f"{len(classes)} classes: the commonest confusions in place of a matrix."}
    matrix: list[dict[str, Any]] = []
    for true in classes:
        total = totals[true]
        line = [(counts[true, said], counts[true, said] / max(1, total)) for said in classes]
        matrix.append({"class": true, "cells": line, "songs": total, "recall": counts[true, true] / total if total else None})
    return {**told, "matrix": matrix, "classes": classes}


def figure(counted: Mapping[str, Any], colours: Palette) -> Figure:
    """Draw a counted matrix, shaded by the share of each true class."""
    names, lines = counted["classes"], counted["matrix"]
    drawn = blank(1.8 + 0.36 * len(names), 1.5 + 0.3 * len(names))
    axes = quiet(drawn.subplots(), colours, counted["label"], "predicted", "true")
    for y, line in enumerate(lines):
        for x, (songs, share) in enumerate(line["cells"]):
            if songs:
                colour = colours.train if x == y else colours.val
                axes.fill_between((x - 0.48, x + 0.48), y - 0.48, y + 0.48, color=colour, alpha=0.7 * share**0.5, linewidth=0)
                axes.text(x, y, str(songs), ha="center", va="center", fontsize=7, color=colours.ink)
    axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=90)
    axes.set_yticks(range(len(lines)), [short(line["class"]) for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.grid(visible=False)
    return drawn


def _classes(row: Row, counts: Mapping[tuple[str, str], int]) -> list[str]:
    """List the classes in the data set's own order; those that only predictions know come last."""
    known = row.runs[0].record["facts"].get("classes")
    own = [plain(name) for name in known] if isinstance(known, list) else []
    return list(dict.fromkeys([*own, *sorted({name for pair in counts for name in pair})]))
