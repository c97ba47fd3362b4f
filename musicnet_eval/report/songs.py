"""What a configuration does class by class, how far its probabilities can be trusted, and which songs are hardest."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from musicnet_eval.leaderboard.text import plain
from musicnet_eval.report.figures import PAGE, Palette, blank, quiet, short, svg
from musicnet_eval.report.pictures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from musicnet_eval.leaderboard import Row, Run, Table
    from musicnet_eval.records import Prediction

BINS = 10
MOST_SONGS = 12  # hardest ones on the page
MOST_CLASSES = 60


# --- class by class -----------------------------------------------------------------------------------------------------------


class ByClass(NamedTuple):
    """One class over the test songs of all runs: shares between 0 and 1, and songs times runs."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def by_class(row: Row) -> list[ByClass]:
    """Count precision, recall and F1 of each class, songs of all runs together; several labels count each for itself."""
    hits: Counter[str] = Counter()
    true: Counter[str] = Counter()
    said: Counter[str] = Counter()
    several = any(run.multilabel for run in row.runs)
    for one in (one for run in row.runs for one in run.tested):
        labels, predicted = ({*text.split("|")} - {""} if several else {text} for text in (one.label, one.predicted))
        true.update(labels)
        said.update(predicted)
        hits.update(labels & predicted)
    names = sorted(true.keys() | said.keys())
    return [
        ByClass(
            plain(name) or "nothing",
            hits[name] / said[name] if said[name] else 0.0,
            hits[name] / true[name] if true[name] else 0.0,
            2 * hits[name] / (said[name] + true[name]),
            true[name],
        )
        for name in names
    ][:MOST_CLASSES]


def classes_figure(row: Row, colours: Palette) -> Figure:
    """Draw a bar of F1 for each class, with marks for precision and recall."""
    found = by_class(row)[::-1]
    figure = blank(6.4, 0.9 + 0.26 * len(found))
    axes = quiet(figure.subplots(), colours, row.label, "F1 (bar), precision (|), recall (×)")
    places = range(len(found))
    axes.barh(places, [one.f1 for one in found], color=colours.train, alpha=0.45, height=0.6)
    axes.plot([one.precision for one in found], places, "|", color=colours.ink, markersize=9, linewidth=0)
    axes.plot([one.recall for one in found], places, "x", color=colours.val, markersize=5, linewidth=0)
    axes.set_yticks(places, [f"{short(one.name)} ({one.support})" for one in found])
    axes.set_xlim(0, 1)
    return figure


# --- calibration --------------------------------------------------------------------------------------------------------------


def reliability(row: Row) -> dict[str, Any]:
    """Draw how often a configuration is right when it is how sure, or say why not."""
    found = claims(row)
    told = {"label": row.label, "svg": None, "caption": "No probabilities of single classes to judge."}
    if not found:
        return told
    caption = _calibration_caption(found)
    drawn = svg(reliability_figure(found, PAGE), f"Reliability: {caption}", f"{row.configuration} reliability")
    return {**told, "svg": drawn, "caption": caption}


def claims(row: Row) -> list[tuple[float, bool]]:
    """List, for each test song of each run, the probability of the class said and whether that was right."""
    if any(run.multilabel for run in row.runs):
        return []
    tested = (one for run in row.runs for one in run.tested)
    found = ((one.probabilities.get(one.predicted, -1.0), one.label == one.predicted) for one in tested)
    return [(chance, right) for chance, right in found if 0 <= chance <= 1]


def _calibration_caption(found: Sequence[tuple[float, bool]]) -> str:
    sure = sum(chance for chance, _ in found) / len(found)
    right = sum(hit for _, hit in found) / len(found)
    which = "too sure" if sure > right else "not sure enough"
    return f"Says {sure:.3f}, is right in {right:.3f}: {abs(sure - right):.3f} {which}, over {len(found)} songs × runs."


def reliability_figure(found: Sequence[tuple[float, bool]], colours: Palette) -> Figure:
    """Draw the share of right songs in ten bins of probability, and how many songs each holds."""
    bins: defaultdict[int, list[tuple[float, bool]]] = defaultdict(list)
    for chance, right in found:
        bins[min(int(chance * BINS), BINS - 1)].append((chance, right))
    figure = blank(3.4, 3.0, left=0.17, right=0.97, bottom=0.15, top=0.97, hspace=0.12)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    quiet(top, colours, y="right")
    quiet(bottom, colours, x="probability of what is said", y="songs")
    top.plot((0, 1), (0, 1), color=colours.rule, linewidth=1.2, linestyle=(0, (3, 3)))
    spots = [
        (sum(chance for chance, _ in held) / len(held), sum(right for _, right in held) / len(held), len(held))
        for _, held in sorted(bins.items())
    ]
    top.vlines([x for x, _, _ in spots], [x for x, _, _ in spots], [y for _, y, _ in spots], color=colours.val, linewidth=1.5)
    top.plot([x for x, _, _ in spots], [y for _, y, _ in spots], "o-", color=colours.train, markersize=4, linewidth=1)
    bottom.bar(
        [(b + 0.5) / BINS for b in bins], [len(held) for held in bins.values()], width=0.09, color=colours.train, alpha=0.5
    )
    top.set_xlim(0, 1)
    top.set_ylim(0, 1.02)
    return figure


# --- the hardest songs --------------------------------------------------------------------------------------------------------


def hardest(table: Table) -> list[dict[str, Any]]:
    """List the test songs that most runs get wrong, with what they say instead and, where a run has drawn it, the spectrogram."""
    heard: defaultdict[str, list[tuple[Run, Prediction]]] = defaultdict(list)
    for run in (run for row in table.rows for run in row.runs):
        for one in run.tested:
            heard[one.song].append((run, one))
    wrong = {song: sum(one.label != one.predicted for _, one in said) for song, said in heard.items()}
    order = sorted(
        (song for song in heard if wrong[song]), key=lambda song: (-wrong[song] / len(heard[song]), -wrong[song], song)
    )
    drawn = _drawn(run for row in table.rows for run in row.runs)
    found = []
    for place, song in enumerate(order[:MOST_SONGS], start=1):
        instead = Counter(plain(one.predicted) for _, one in heard[song] if one.label != one.predicted)
        image = next((data for folder, file in drawn.get(song, ()) if (data := png(folder, file))), None)
        found.append(
            {
                "place": place,
                "song": plain(song),
                "group": plain(heard[song][0][1].group),
                "label": plain(heard[song][0][1].label),
                "wrong": wrong[song],
                "runs": len(heard[song]),
                "instead": ", ".join(f"{name or 'nothing'} ({count})" for name, count in instead.most_common(3)),
                "image": base64.b64encode(image).decode() if image else None,
            }
        )
    return found


def _drawn(runs: Any) -> dict[str, list[tuple[Path, str]]]:
    """Look up which runs have drawn which test song."""
    found: defaultdict[str, list[tuple[Path, str]]] = defaultdict(list)
    for run in runs:
        folder = run.folder / "pictures"
        try:
            listed = json.loads((folder / "hardest.json").read_text(encoding="utf8"))
        except (OSError, ValueError, RecursionError):
            continue
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("song"), str) and isinstance(entry.get("file"), str):
                found[entry["song"]].append((folder, entry["file"]))
    return found
