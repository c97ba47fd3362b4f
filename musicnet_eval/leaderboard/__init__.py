"""`musicnet-leaderboard`: one row a configuration, its seeds and folds taken together. Imports no torch.

Place in the flow: run records → leaderboard → report. `board` reads run folders into tables, `labels` says what tells their rows
apart, `compare` gives intervals and tests, `tables` writes them for people and for programs, `command` is the command line.
"""

from musicnet_eval.leaderboard.board import METRIC, Board, Chance, Listed, Row, Run, Table, collect, lower_is_better
from musicnet_eval.leaderboard.command import main
from musicnet_eval.leaderboard.compare import Comparison
from musicnet_eval.leaderboard.tables import as_rows, show, to_csv, to_json, to_latex, to_markdown, write

__all__ = [
    "METRIC",
    "Board",
    "Chance",
    "Comparison",
    "Listed",
    "Row",
    "Run",
    "Table",
    "as_rows",
    "collect",
    "lower_is_better",
    "main",
    "show",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "write",
]
