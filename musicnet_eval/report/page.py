"""The page: what goes into each of its sections."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from musicnet_eval import __version__, leaderboard, records
from musicnet_eval.leaderboard.tables import LINE, line
from musicnet_eval.leaderboard.text import number, plain
from musicnet_eval.report import comparison, methods, songs
from musicnet_eval.report.confusion import confusion
from musicnet_eval.report.curves import curves
from musicnet_eval.report.figures import PAGE, svg
from musicnet_eval.report.pictures import spectrograms
from musicnet_eval.report.suspects import suspects

if TYPE_CHECKING:
    from musicnet_eval.leaderboard import Board, Row, Run, Table

PARTS = (  # of a table's section: letter of its anchor, title, and what it shows
    ("f", "forest plot", "dots"),
    ("h", "backbone by loss", "grid"),
    ("p", "cost", "cost"),
    ("c", "learning curves", "curves"),
    ("m", "confusion", "confusions"),
    ("k", "classes", "classes"),
    ("r", "calibration", "reliability"),
    ("x", "hardest songs", "hardest"),
    ("a", "data", "data"),
    ("w", "methods", "methods"),
)
MOST_FIGURES = 40  # configurations that get learning curves and a confusion matrix, over all tables


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
    folders = list(folders)
    records.write_text(output, render(leaderboard.collect(folders, metric), folders))
    return output


def render(board: Board, folders: Iterable[Path] = ()) -> str:
    """Lay a board out as one HTML page, with the audits that lie at or below the folders."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("musicnet_eval", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["csp_hash"] = lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
    limit = max(1, MOST_FIGURES // max(1, len(board.tables)))
    audits, damaged = methods.audits(folders)
    return environment.get_template("report.html.jinja").render(
        board=board,
        headings=LINE,
        parts=PARTS,
        sections=[_section(table, limit, audits.get((table.data, table.protocol), [])) for table in board.tables],
        listed=[*board.listed(), *([("Audits not readable, left out", damaged)] if damaged else [])],
        standing=_standing(board),
        spectrograms=spectrograms(board),
        suspects=suspects(board),
        downloads={"csv": quote(leaderboard.to_csv(board)), "json": quote(leaderboard.to_json(board))},
        runs=sum(len(row.runs) for table in board.tables for row in table.rows),
        rows=sum(len(table.rows) for table in board.tables),
        written=records.now(),
        version=__version__,
    )


def _section(table: Table, limit: int, audits: list[str]) -> dict[str, Any]:
    rows = table.rows[:limit]
    cost = comparison.tradeoff(table, PAGE)
    return {
        "table": table,
        "rows": [(row, line(row), _raw(row)) for row in table.rows],
        "dots": _dots(table),
        "grid": comparison.grid(table),
        "cost": cost and svg(cost, f"{table.metric} against parameters and against training time", f"{table.title} cost"),
        "reliability": [songs.reliability(row) for row in rows],
        "classes": [(row.label, songs.by_class(row)) for row in rows],
        "hardest": songs.hardest(table),
        "data": [*methods.facts(table), *audits],
        "curves": [curves(row) for row in rows],
        "confusions": [confusion(row) for row in rows],
        "cut": f"Shown for the first {limit} of {len(table.rows)} configurations." if len(table.rows) > limit else "",
        "methods": methods.paragraph(table),
        "logged": _logged(table),
    }


def _raw(row: Row) -> tuple[Any, ...]:
    """Give what the cells of a row are sorted by."""
    counts = (row.rank, row.label, len(row.runs), row.songs)
    scores = (row.mean, row.interval and row.interval[0], row.sd, row.comparison and row.comparison.p_holm, row.gap)
    return (*counts, *scores, row.parameters, row.seconds, row.throughput)


def _logged(table: Table) -> list[tuple[str, str]]:
    """Give the address of each run that was logged to W&B online; a record may come from anyone, so nothing but a web address."""
    found = []
    for row in table.rows:
        for run in row.runs:
            told = run.record["facts"].get("wandb")
            url = told.get("url") if isinstance(told, dict) else None
            if isinstance(url, str) and url.startswith(("https://", "http://")):
                found.append((f"{row.label} ({_repeat(run)})", url))
    return found[:MOST_FIGURES]


def _standing(board: Board) -> Any:
    if board.standing is None:
        return None
    figure = comparison.critical_difference(board.standing, PAGE)
    return svg(figure, "Critical-difference diagram: " + " ".join(board.standing.notes()), "standing")


# --- every run's score --------------------------------------------------------------------------------------------------------


def _dots(table: Table) -> dict[str, Any]:
    """Place every run's score on one axis, in percent of its width."""
    from matplotlib.ticker import MaxNLocator

    shows_chance = table.metric.endswith("/song/accuracy")
    chances = [row.chance.rate for row in table.rows if row.chance and shows_chance]
    values = [*chances, *(value for row in table.rows for value in (*row.values, *(row.interval or ())))]
    ticks = [float(tick) for tick in MaxNLocator(nbins=6).tick_values(min(values), max(values))]
    low, width = ticks[0], (ticks[-1] - ticks[0]) or 1.0

    def place(value: float) -> str:
        return f"{100 * (value - low) / width:.2f}%"

    rows = []
    for row in table.rows:
        dots = [(place(value), f"{number(value)} ({_repeat(run)})") for run, value in zip(row.runs, row.values, strict=True)]
        chance = place(row.chance.rate) if row.chance and shows_chance else None
        interval = tuple(map(place, row.interval)) if row.interval else None
        rows.append({"label": row.label, "dots": dots, "mean": place(row.mean), "interval": interval, "chance": chance})
    return {"rows": rows, "ticks": [(place(tick), f"{tick:.6g}") for tick in ticks], "chance": bool(chances)}


def _repeat(run: Run) -> str:
    choices = run.record["choices"]
    return ", ".join(f"{name} {plain(choices[name])}" for name in ("seed", "fold") if choices.get(name) is not None) or run.name
