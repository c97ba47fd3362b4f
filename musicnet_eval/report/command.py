"""`musicnet-report`: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from musicnet_eval import leaderboard, records
from musicnet_eval.errors import MusicnetError, RecordError
from musicnet_eval.leaderboard.command import aside, nothing
from musicnet_eval.pipes import ends_with_reader
from musicnet_eval.report import latex
from musicnet_eval.report.page import render

DESCRIPTION = """\
Write one self-contained HTML page about all runs at or below each DIR: leaderboard, forest plot, backbone by
loss, score against cost, learning curves with the gap between training and validation, confusion matrices,
classes, calibration, the hardest songs, suspect labels, audits, a methods paragraph, and the runs that did
not finish. The page needs no network and no other file. With --format latex: tables as report.tex, figures as PDF.

Reads result.json, predictions.csv, metrics.csv and pictures/ of every run, and audit.json of musicnet-audit;
prints the path of what it wrote."""
EPILOG = """\
examples:
  musicnet-report                                   # runs/report.html about all below runs/
  musicnet-report runs/tradition --output tradition.html
  musicnet-report runs --metric test/song/f1_macro
  musicnet-report runs --format latex --output paper   # paper/report.tex and paper/figures/*.pdf

exit codes:
  0  the page is written, also if it lists failed or unreadable runs
  2  no finished run, a DIR that does not exist, or a metric that no run has"""


@ends_with_reader
def main(arguments: Sequence[str] | None = None) -> int:
    """Run `musicnet-report` and give its exit code."""
    lines = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("musicnet-report", description=DESCRIPTION, epilog=EPILOG, formatter_class=lines)
    runs = [Path("runs")]
    parser.add_argument(
        "folders", metavar="DIR", nargs="*", type=Path, default=runs, help="runs, or folders above them; default: runs"
    )
    parser.add_argument("--metric", default=leaderboard.METRIC, help=f"what ranks the rows; default: {leaderboard.METRIC}")
    parser.add_argument("--format", choices=("html", "latex"), default="html", help="default: html")
    where = "the page, or with latex the folder; default: report.html, or report-latex, in the first DIR"
    parser.add_argument("--output", type=Path, metavar="PATH", help=where)
    options = parser.parse_args(arguments)
    try:
        board = leaderboard.collect(options.folders, options.metric)
        if not board.tables:
            sys.stderr.write(aside(board))
            raise RecordError(nothing(options.folders))
        if options.format == "latex":
            output = latex.write(board, options.output or options.folders[0] / "report-latex")
        else:
            output = options.output or options.folders[0] / "report.html"
            records.write_text(output, render(board, options.folders))
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
