"""The command line of `musicnet-leaderboard`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from musicnet_eval import records
from musicnet_eval.errors import MusicnetError
from musicnet_eval.leaderboard.board import METRIC, Board, collect
from musicnet_eval.leaderboard.tables import show, to_csv, to_json, to_latex, to_markdown, to_terminal
from musicnet_eval.pipes import ends_with_reader

FORMATS = {"terminal": to_terminal, "md": to_markdown, "csv": to_csv, "latex": to_latex, "json": to_json}
DESCRIPTION = """\
Rank finished runs: one row a configuration, its seeds and folds taken together.

Reads result.json and predictions.csv of every run at or below each DIR. Runs of different data sets or
protocols never share a table. Runs that failed, are still running, cannot be read, were found twice, or
lack the metric are in no mean; they are named below the tables (with csv and json: on standard error)."""
EPILOG = """\
columns:
  configuration  the backbone, and every choice and override that tells the row from the others
  runs, songs    finished runs; distinct songs that they tested
  mean, sd       over runs; sd is the sample one (n - 1)
  95 % interval  of the mean, for new seeds and new songs; with one seed, of that trained model only
  p (Holm)       paired test against the best row or the baseline, corrected for all pairs of rows
  *              best group: cannot be told from the best row at 5 %
  gap            segment accuracy, as last measured in training, less that of the test
  parameters     of the network
  fit            mean time of training
  seg/s          segments trained on in a second
  †              at chance: not above what naming the largest test class reaches in 95 % of cases

examples:
  musicnet-leaderboard                                       # all below runs/
  musicnet-leaderboard runs/tradition --metric test/song/f1_macro
  musicnet-leaderboard runs --by backbone                    # average over losses, if each backbone has them all
  musicnet-leaderboard runs --baseline backbone=resnet50,loss=cross_entropy
  musicnet-leaderboard runs --format csv --output board.csv

exit codes:
  0  there is a table, also if some runs are only listed below it
  2  no finished run, a DIR that does not exist, or a metric, --by or --baseline that fits none"""


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """Run `musicnet-leaderboard` and give its exit code."""
    parser = argparse.ArgumentParser(
        "musicnet-leaderboard", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders",
        metavar="DIR",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        help="run folders, or folders above them; default: runs",
    )
    parser.add_argument(
        "--metric", default=METRIC, help=f"what ranks the rows; losses, ece, brier and gaps: lower is better; default: {METRIC}"
    )
    parser.add_argument(
        "--baseline",
        type=_settings,
        metavar="NAME=VALUE,…",
        help="choices or overrides of the row that all others are tested against; default: the best row",
    )
    parser.add_argument(
        "--by",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="NAME,…",
        help="choices or overridden keys that make a row; averages over the rest if every row has the same of it, else refuses",
    )
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="default: terminal")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write there instead, whole or not at all, and print the path"
    )
    options = parser.parse_args(arguments)
    try:
        board = collect(options.folders, options.metric, options.by, options.baseline)
    except MusicnetError as error:
        print(f"musicnet-leaderboard: {error}", file=sys.stderr)
        return error.exit_code
    if not board.tables or options.format in ("csv", "json"):
        sys.stderr.write(aside(board))
    if not board.tables:
        print(f"musicnet-leaderboard: {nothing(options.folders)}", file=sys.stderr)
        return MusicnetError.exit_code
    if options.output:
        try:
            records.write_text(options.output, FORMATS[options.format](board))
        except OSError as error:
            print(
                f"musicnet-leaderboard: '{options.output}' cannot be written ({error.strerror}). Give another --output.",
                file=sys.stderr,
            )
            return MusicnetError.exit_code
        print(options.output)
    elif options.format == "terminal":
        show(board)
    else:
        sys.stdout.write(FORMATS[options.format](board))
    return 0


def _settings(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not pairs or not all(key and equals for key, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE,…; give backbone=resnet50,loss=cross_entropy, say")
    return {key: value for key, _, value in pairs}


def aside(board: Board) -> str:
    """Name the runs that are in no table, a line each, for standard error."""
    return "".join(f"{heading}: {run.name} ({run.state}): {run.message}\n" for heading, runs in board.listed() for run in runs)


def nothing(folders: Sequence[Path]) -> str:
    """Say that there is no finished run, and what to give instead."""
    where = ", ".join(f"'{folder}'" for folder in folders)
    return f"no finished run at or below {where}. Give folders that hold runs with a result.json."
