"""`musicnet-report`: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from musicnet_eval import leaderboard, records
from musicnet_eval.errors import MusicnetError, RecordError
from musicnet_eval.leaderboard.command import aside, nothing
from musicnet_eval.report.page import render

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
