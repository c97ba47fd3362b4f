"""The report for a paper: a booktabs table and every figure as PDF."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from musicnet_eval import leaderboard, records
from musicnet_eval.errors import RecordError
from musicnet_eval.leaderboard.tables import latex_text
from musicnet_eval.report import comparison, confusion, curves, methods, songs
from musicnet_eval.report.figures import PRINT, pdf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from musicnet_eval.leaderboard import Board, Row, Table

MOST_ROWS = 8  # of a table that get figures of their own


def write(board: Board, folder: Path) -> Path:
    """Write `report.tex` (tables, figures, methods) and `figures/*.pdf` into a folder, and give the TeX file."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage{graphicx}", leaderboard.to_latex(board)]
    lacking: set[str] = set()
    for name, caption, figure in _figures(board):
        lacking.update(pdf(figure, folder / "figures" / f"{name}.pdf"))
        parts.append(
            "\\begin{figure}\n\\centering\n"
            f"\\includegraphics[width=\\linewidth]{{figures/{name}.pdf}}\n\\caption{{{latex_text(caption)}}}\n\\end{{figure}}\n"
        )
    parts += [f"\\paragraph{{Methods.}} {latex_text(methods.paragraph(table))}\n" for table in board.tables]
    records.write_text(folder / "report.tex", "\n".join(parts))
    if lacking:
        shown, code = "".join(sorted(lacking))[:20], f"\\u{ord(min(lacking)):04x}"
        print(
            f"No font of this system has {len(lacking)} letters of the figures ({shown}); they are written as {code} and so on. "
            "Install a font that has them, Noto Sans CJK, say, and write the report again.",
            file=sys.stderr,
        )
    return folder / "report.tex"


def _figures(board: Board) -> Iterator[tuple[str, str, Figure]]:
    """Give the name, caption and figure of all that can be drawn."""
    for number, table in enumerate(board.tables, start=1):
        yield from ((f"{name}-{number}", f"{table.title}. {caption}", figure) for name, caption, figure in _of_table(table))
    if board.standing:
        figure = comparison.critical_difference(board.standing, PRINT)
        yield "ranks", f"Mean ranks over {board.standing.data_sets} data sets; bars join what cannot be told apart.", figure


def _of_table(table: Table) -> Iterator[tuple[str, str, Figure]]:
    yield "forest", "Runs, means and 95 % intervals; dashed: chance.", comparison.forest(table, PRINT)
    if (shown := comparison.grid(table)) is not None:
        yield "backbone-loss", "Mean by backbone and loss.", comparison.heat(shown, PRINT, table.metric)
    if (figure := comparison.tradeoff(table, PRINT)) is not None:
        yield "cost", "Score against cost; the line joins what nothing cheaper beats.", figure
    for place, row in enumerate(table.rows[:MOST_ROWS], start=1):
        for name, caption, figure in _of_row(row):
            yield f"{name}-{place}-{_file(row.label)}", f"{row.label}: {caption}", figure


def _of_row(row: Row) -> Iterator[tuple[str, str, Figure]]:
    try:
        found = curves.by_epoch(row)
    except RecordError:  # the page says so
        found = []
    if curves.drawable(found):
        yield "curves", "learning curves.", curves.plot(found, PRINT)
    if any(run.tested for run in row.runs):
        yield "classes", "F1, precision and recall by class.", songs.classes_figure(row, PRINT)
    if (counted := confusion.confusion(row))["matrix"]:
        yield "confusion", "confusion of test songs; rows: truth.", confusion.figure(counted, PRINT)
    if claims := songs.claims(row):
        yield "reliability", "how often it is right when it is how sure.", songs.reliability_figure(claims, PRINT)


def _file(label: str) -> str:
    """Make a file name of a label."""
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-")[:40] or "row"
