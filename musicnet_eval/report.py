"""`musicnet-report`: all that finished runs say, as one HTML file that needs nothing else. Only reads; imports no torch.

Place in the flow: run records → leaderboard → report. Records may come from anyone: the template escapes every text of theirs,
pictures hold none of it, and the page's own rule (its content security policy) lets no script run but the page's own.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from musicnet_eval import __version__, leaderboard, records
from musicnet_eval.errors import MusicnetError, RecordError
from musicnet_eval.leaderboard.command import aside, nothing
from musicnet_eval.leaderboard.tables import HEADINGS, cells
from musicnet_eval.leaderboard.text import number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from musicnet_eval.leaderboard import Board, Row, Run, Table

MOST_FIGURES = 40  # configurations that get learning curves and a confusion matrix, over all tables
MOST_CLASSES = 30  # a wider matrix cannot be read; the commonest confusions are listed instead
MOST_CONFUSIONS = 20
MOST_BYTES = 1_000_000  # of one picture
MOST_PICTURES = 3_000_000  # bytes of all pictures on a page
TOO_LARGE = 1e30  # values from here on are drawn by no axis
PNG = b"\x89PNG\r\n\x1a\n"
# matplotlib cannot write `currentColor` or a CSS variable: these stand-ins are replaced in its SVG.
INK, TRAIN, VAL, RULE = "#010203", "#010204", "#010205", "#010206"
COLOURS = {INK: "currentColor", TRAIN: "var(--train)", VAL: "var(--val)", RULE: "var(--rule)"}

Curve = dict[int, float]  # epoch → value


def write(folders: Iterable[Path], output: Path, metric: str = leaderboard.METRIC) -> Path:
    """Write the report of all runs at or below the folders, atomically.

    Args:
        folders: Run folders, or folders that hold them at any depth.
        output: The HTML file.
        metric: Key of the record's metrics that ranks the rows.

    Raises:
        RecordError: A folder does not exist.
        ConfigError: No finished run has the metric.
    """
    records.write_text(output, render(leaderboard.collect(folders, metric)))
    return output


def render(board: Board) -> str:
    """Lay a board out as one HTML page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("musicnet_eval", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["csp_hash"] = lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
    limit = max(1, MOST_FIGURES // max(1, len(board.tables)))
    return environment.get_template("report.html.jinja").render(
        board=board,
        headings=HEADINGS,
        sections=[_section(table, limit) for table in board.tables],
        spectrograms=_spectrograms(board),
        downloads={"csv": quote(leaderboard.to_csv(board)), "json": quote(leaderboard.to_json(board))},
        runs=sum(len(row.runs) for table in board.tables for row in table.rows),
        rows=sum(len(table.rows) for table in board.tables),
        written=records.now(),
        version=__version__,
    )


def _section(table: Table, limit: int) -> dict[str, Any]:
    rows = table.rows[:limit]
    return {
        "table": table,
        "rows": [(row, cells(row), _raw(row)) for row in table.rows],
        "dots": _dots(table),
        "curves": [_curves(row) for row in rows],
        "confusions": [_confusion(row) for row in rows],
        "cut": f"Shown for the first {limit} of {len(table.rows)} configurations." if len(table.rows) > limit else "",
        "methods": _methods(table),
    }


def _raw(row: Row) -> tuple[Any, ...]:
    """Give what the cells of a row are sorted by."""
    return (row.rank, row.label, len(row.runs), row.songs, row.mean, row.sd, row.gap, row.parameters, row.seconds)


# --- every run's score --------------------------------------------------------------------------------------------------------


def _dots(table: Table) -> dict[str, Any]:
    """Place every run's score on one axis, in percent of its width."""
    from matplotlib.ticker import MaxNLocator

    shows_chance = table.metric.endswith("/song/accuracy")
    chances = [row.chance.rate for row in table.rows if row.chance and shows_chance]
    values = [*chances, *(value for row in table.rows for value in row.values)]
    ticks = [float(tick) for tick in MaxNLocator(nbins=6).tick_values(min(values), max(values))]
    low, width = ticks[0], (ticks[-1] - ticks[0]) or 1.0

    def place(value: float) -> str:
        return f"{100 * (value - low) / width:.2f}%"

    rows = []
    for row in table.rows:
        dots = [(place(value), f"{number(value)} ({_repeat(run)})") for run, value in zip(row.runs, row.values, strict=True)]
        chance = place(row.chance.rate) if row.chance and shows_chance else None
        rows.append({"label": row.label, "dots": dots, "mean": place(row.mean), "chance": chance})
    return {"rows": rows, "ticks": [(place(tick), f"{tick:.6g}") for tick in ticks], "chance": bool(chances)}


def _repeat(run: Run) -> str:
    choices = run.record["choices"]
    return ", ".join(f"{name} {plain(choices[name])}" for name in ("seed", "fold") if choices.get(name) is not None) or run.name


# --- learning curves ----------------------------------------------------------------------------------------------------------


def _curves(row: Row) -> dict[str, Any]:
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
    curves: defaultdict[str, Curve] = defaultdict(dict)
    for line in lines:
        epoch = line.get("epoch", TOO_LARGE)
        for key, value in line.items():
            if abs(epoch) < TOO_LARGE and abs(value) < TOO_LARGE:
                curves[key][int(epoch) + 1] = value
    return {key: dict(sorted(curve.items())) for key, curve in curves.items()}


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


# --- confusion ----------------------------------------------------------------------------------------------------------------


def _confusion(row: Row) -> dict[str, Any]:
    """Count true against predicted class over the test songs of all runs."""
    told: dict[str, Any] = {"label": row.label, "matrix": [], "classes": [], "pairs": [], "why": ""}
    tested = [one for run in row.runs for one in run.tested]
    if any(run.multilabel for run in row.runs):
        return {**told, "why": "Songs carry several labels: a confusion matrix has no meaning here."}
    if not tested:
        return {**told, "why": "No predictions.csv to count."}
    counts = Counter((plain(one.label), plain(one.predicted)) for one in tested)
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


def _classes(row: Row, counts: Mapping[tuple[str, str], int]) -> list[str]:
    """List the classes in the data set's own order; those that only predictions know come last."""
    known = row.runs[0].record["facts"].get("classes")
    own = [plain(name) for name in known] if isinstance(known, list) else []
    return list(dict.fromkeys([*own, *sorted({name for pair in counts for name in pair})]))


# --- spectrograms -------------------------------------------------------------------------------------------------------------


def _spectrograms(board: Board) -> list[dict[str, Any]]:
    """Take one picture a class, for each data set from the first of its runs that has any."""
    found: dict[str, dict[str, Any]] = {}
    room = MOST_PICTURES
    for table in board.tables:
        for run in sorted((run for row in table.rows for run in row.runs), key=lambda run: run.name):
            if table.data not in found and (pictures := _pictures(run)):
                fitting = [picture for picture in pictures if (room := room - len(picture["image"])) > 0]
                found[table.data] = {
                    "data": table.data,
                    "run": run.name,
                    "pictures": fitting,
                    "left_out": len(pictures) - len(fitting),
                }
    return list(found.values())


def _pictures(run: Run) -> list[dict[str, str]]:
    folder = run.folder / "pictures"
    try:
        listed = json.loads((folder / "spectrograms.json").read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError):
        return []
    pictures: dict[str, dict[str, str]] = {}
    for entry in listed if isinstance(listed, list) else []:
        if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("class", "file"))):
            continue
        name = plain(entry["class"])
        image = _png(folder, entry["file"]) if name not in pictures else None
        if image:
            caption = plain(entry.get("caption") or entry.get("song") or "")
            pictures[name] = {"class": name, "caption": caption, "image": base64.b64encode(image).decode()}
    return list(pictures.values())[:MOST_CLASSES]


def _png(folder: Path, file: str) -> bytes | None:
    """Read a picture that lies in the folder itself, is a PNG by its first bytes, and is not too large for the page."""
    try:
        path = (folder / file).resolve()
        if path.parent != folder or not path.is_file() or path.stat().st_size >= MOST_BYTES:
            return None
        image = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return image if image.startswith(PNG) else None


# --- methods ------------------------------------------------------------------------------------------------------------------


def _methods(table: Table) -> str:
    """Say in one paragraph what was run: counts, seeds, folds, versions, hardware; differing values side by side."""
    runs = [run for row in table.rows for run in row.runs]
    parts = [f"Data {table.data}, protocol {table.protocol}; {len(runs)} runs of {len(table.rows)} configurations"]
    for name in ("seed", "fold"):
        values = {plain(value) for row in table.rows for value in row.repeats(name)}
        parts.append(f"{name}s {', '.join(sorted(values, key=lambda text: (len(text), text)))}" if values else "")
    for field in ("versions", "hardware", "git"):
        seen: defaultdict[str, set[str]] = defaultdict(set)
        for run in runs:
            told = run.record.get(field)
            for key, value in told.items() if isinstance(told, dict) else ():
                if isinstance(value, (str, int, float)):
                    seen[plain(key)].add(plain(value))
        listed = ", ".join(f"{key} {' / '.join(sorted(values))}" for key, values in sorted(seen.items()))
        parts.append(f"{field}: {listed}" if listed else "")
    return "; ".join(part for part in parts if part) + "."


# --- the command --------------------------------------------------------------------------------------------------------------

DESCRIPTION = """\
Write one self-contained HTML page about all runs at or below each DIR: leaderboard, every run's score,
learning curves with the gap between training and validation, confusion matrices, one spectrogram a class,
and the runs that did not finish. The page needs no network and no other file.

Reads result.json, predictions.csv, metrics.csv and pictures/ of every run; prints the path of the page."""
EPILOG = """\
examples:
  musicnet-report                                   # runs/report.html about all below runs/
  musicnet-report runs/tradition --output tradition.html
  musicnet-report runs --metric test/song/f1_macro

exit codes:
  0  the page is written, also if it lists failed or unreadable runs
  2  no finished run, a DIR that does not exist, or a metric that no run has"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `musicnet-report` and give its exit code."""
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("musicnet-report", description=DESCRIPTION, epilog=EPILOG, formatter_class=lines)
    runs = [Path("runs")]
    parser.add_argument(
        "folders", metavar="DIR", nargs="*", type=Path, default=runs, help="runs, or folders above them; default: runs"
    )
    parser.add_argument("--metric", default=leaderboard.METRIC, help=f"what ranks the rows; default: {leaderboard.METRIC}")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the first DIR")
    options = parser.parse_args(arguments)
    try:
        board = leaderboard.collect(options.folders, options.metric)
        if not board.tables:
            sys.stderr.write(aside(board))
            raise RecordError(nothing(options.folders))
        output = options.output or options.folders[0] / "report.html"
        records.write_text(output, render(board))
    except MusicnetError as error:
        print(f"musicnet-report: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(
            f"musicnet-report: '{error.filename}' cannot be written ({error.strerror}). Give another --output.", file=sys.stderr
        )
        return MusicnetError.exit_code
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
