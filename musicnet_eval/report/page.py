"""The page: what goes into each of its sections."""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from musicnet_eval import __version__, leaderboard, records
from musicnet_eval.leaderboard.tables import HEADINGS, cells
from musicnet_eval.leaderboard.text import number, plain
from musicnet_eval.report.confusion import confusion
from musicnet_eval.report.curves import curves
from musicnet_eval.report.pictures import spectrograms

if TYPE_CHECKING:
    from musicnet_eval.leaderboard import Board, Row, Run, Table

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
        spectrograms=spectrograms(board),
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
        "curves": [curves(row) for row in rows],
        "confusions": [confusion(row) for row in rows],
        "cut": f"Shown for the first {limit} of {len(table.rows)} configurations." if len(table.rows) > limit else "",
        "methods": _methods(table),
    }


def _raw(row: Row) -> tuple[Any, ...]:
    """Give what the cells of a row are sorted by."""
    return (row.rank, row.label, len(row.runs), row.songs, row.mean, row.sd, row.gap, row.parameters, row.seconds, row.throughput)


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
