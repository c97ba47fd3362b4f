"""A `Board` written for people (terminal, Markdown, LaTeX) and for programs (CSV, JSON)."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from musicnet_eval import records
from musicnet_eval.leaderboard.board import Board, Row
from musicnet_eval.leaderboard.labels import SHOWN
from musicnet_eval.leaderboard.text import duration, number, plain, probability, size

LINE = ("#", "configuration", "runs", "songs", "mean", "95 % interval", "sd", "p (Holm)", "gap", "parameters", "fit", "seg/s")
HEADINGS = ("#", "configuration", "runs", "songs", "mean", "sd", "gap", "parameters", "fit", "seg/s")
TESTS = ("ci_low", "ci_high", "p_value", "p_holm")
DIFFERENCE = ("compared_with", "difference", "difference_low", "difference_high")
COLUMNS = (
    *("data", "protocol", "rank", "label", *SHOWN, "configuration", "runs", "songs", "mean", "sd", *TESTS, "best_group"),
    *DIFFERENCE,
    *("metric", "seeds", "folds", "groups", "chance", "at_chance", "gap", "parameters", "seconds", "segments_per_second"),
)
NOTHING = "No finished run."


def cells(row: Row) -> tuple[str, ...]:
    """Write a row for reading, one text under each of `HEADINGS`."""
    mark = " †" if row.chance and row.chance.not_beaten else ""
    scores = (number(row.mean) + mark, number(row.sd), number(row.gap))
    counts = (str(len(row.runs)), str(row.songs or "–"))
    speed = "–" if row.throughput is None else f"{row.throughput:.0f}"
    return (str(row.rank), row.label, *counts, *scores, size(row.parameters), duration(row.seconds), speed)


def line(row: Row) -> tuple[str, ...]:
    """Write a row with its interval and test, one text under each of `LINE`."""
    rank, label, runs, songs, mean, sd, *rest = cells(row)
    interval = "–" if row.interval is None else f"{number(row.interval[0])} – {number(row.interval[1])}"
    p = "–" if row.comparison is None else probability(row.comparison.p_holm)
    return (f"{rank}*" if row.best_group else rank, label, runs, songs, mean, interval, sd, p, *rest)


def as_rows(board: Board) -> list[dict[str, Any]]:
    """Give all tables as one list of plain dictionaries; null where there is no such number, or not yet."""
    return [_as_dict(row, board.metric) for table in board.tables for row in table.rows]


def _as_dict(row: Row, metric: str) -> dict[str, Any]:
    chance, told = row.chance, row.comparison
    low, high = row.interval or (None, None)
    return {
        "configuration": row.configuration,
        "choices": row.choices,
        "runs": len(row.runs),
        "songs": row.songs,
        "mean": row.mean,
        "sd": row.sd,
        "ci_low": low,
        "ci_high": high,
        "p_value": told and told.p,
        "p_holm": told and told.p_holm,
        "rank": row.rank,
        "best_group": row.best_group,
        "label": row.label,
        **dict(zip(DIFFERENCE, told[:4] if told else (None,) * 4, strict=True)),
        "metric": metric,
        "seeds": row.repeats("seed"),
        "folds": row.repeats("fold"),
        "groups": chance.groups if chance else None,
        "chance": chance.rate if chance else None,
        "at_chance": chance.not_beaten if chance else None,
        "gap": row.gap,
        "parameters": row.parameters,
        "seconds": row.seconds,
        "segments_per_second": row.throughput,
    }


def to_json(board: Board) -> str:
    """Write the rows of all tables as one JSON list; each row's `choices` say whose table it is in."""
    return json.dumps(as_rows(board), indent=1, default=str) + "\n"


def to_csv(board: Board) -> str:
    """Write the rows of all tables as one CSV; an empty cell where there is no such number."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in as_rows(board):
        writer.writerow({key: _cell(value) for key, value in {**row["choices"], **row}.items()})
    return file.getvalue()


def _cell(value: Any) -> Any:
    """Write a value for a spreadsheet, which must not take a text from a record for a formula."""
    if isinstance(value, list):
        return " ".join(plain(item) for item in value)
    if not isinstance(value, str):
        return value
    return f"'{plain(value)}" if value.startswith(("=", "+", "-", "@")) else plain(value)


def to_markdown(board: Board) -> str:
    """Write a section a table, and a list of the runs that are in none."""
    parts = [] if board.tables else [NOTHING]
    for table in board.tables:
        parts += [f"## {_escaped(table.title)}", _pipes([LINE, *map(line, table.rows)])]
        parts += map(_escaped, table.notes + table.inference)
    parts += map(_escaped, board.notes)
    for heading, runs in board.listed():
        items = (f"- `{run.name.replace('`', ' ')}` ({_escaped(run.state)}): {_escaped(run.message)}" for run in runs)
        parts += [f"## {heading} ({len(runs)})", "\n".join(items)]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<").replace("`", "\\`")


def _pipes(rows: Sequence[Sequence[str]]) -> str:
    """Lay out a Markdown table: pipes one below the other, the label to the left and numbers to the right."""
    escaped = [[_escaped(cell) for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*escaped, strict=True)]
    left = LINE.index("configuration")
    lines = [
        " | ".join(
            cell.ljust(width) if i == left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in escaped
    ]
    rule = " | ".join("-" * width if i == left else "-" * (width - 1) + ":" for i, width in enumerate(widths))
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


LATEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
}
LATEX |= {char: f"\\{char}" for char in "&%$#_{}"}
LATEX |= {
    "†": "\\textdagger{}",
    "–": "--",
    "·": "\\textperiodcentered{}",
    "±": "\\textpm{}",
    "×": "\\texttimes{}",
    "…": "\\dots{}",
    "−": "-",
    "|": "\\textbar{}",
}


def to_latex(board: Board) -> str:
    """Write a booktabs table a data set, its notes below it, and the runs that are in none as comments."""
    parts = ["% needs \\usepackage{booktabs}"] + ([] if board.tables else [f"% {NOTHING}"])
    for table in board.tables:
        body = [" & ".join(map(latex_text, row)) + r" \\" for row in (LINE, *map(line, table.rows))]
        columns = "".join("l" if heading == "configuration" else "r" for heading in LINE)
        parts += [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{latex_text(table.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
        ]
        parts += [r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}", "", r"\footnotesize"]
        parts += [*map(latex_text, table.notes + table.inference), r"\end{table}"]
    parts += map(latex_text, board.notes)
    for heading, runs in board.listed():
        parts += [f"% {heading}: {run.name} ({run.state}): {run.message}" for run in runs]
    return "\n".join(parts) + "\n"


def latex_text(text: str) -> str:
    """Write a text so that TeX prints it as it is."""
    return "".join(LATEX.get(char, char) for char in text)


def show(board: Board, file: TextIO | None = None) -> None:
    """Print the tables to the terminal, or to a file without colours."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    file = file or sys.stdout
    # A pipe or a file has no width of its own: nothing is cut there.
    console = Console(file=file, width=None if file.isatty() else 180, highlight=False)
    if not board.tables:
        console.print(NOTHING)
    for table in board.tables:
        grid = Grid(title=Text(table.title, style="bold"), title_justify="left", box=None, pad_edge=False, header_style="dim")
        for heading in LINE:
            label = heading == "configuration"
            grid.add_column(heading, justify="left" if label else "right", no_wrap=not label, overflow="fold")
        for row in table.rows:
            grid.add_row(*map(Text, line(row)), style="dim" if row.chance and row.chance.not_beaten else "")
        console.print(grid)
        for note in table.notes + table.inference:
            console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2), expand=False))
        console.print()
    for note in board.notes:
        console.print(Text(note), "")
    for heading, runs in board.listed():
        console.print(Text(f"{heading} ({len(runs)})", style="bold"))
        for run in runs:
            console.print(Padding(Text(f"{run.name} ({run.state}): {run.message}"), (0, 0, 0, 2), expand=False))


def to_terminal(board: Board) -> str:
    """Write what `show` prints, without colours."""
    file = io.StringIO()
    show(board, file)
    return file.getvalue()


def write(board: Board, folder: Path) -> None:
    """Write `leaderboard.md` and `leaderboard.csv` into a folder, each atomically."""
    records.write_text(folder / "leaderboard.md", to_markdown(board))
    records.write_text(folder / "leaderboard.csv", to_csv(board))
