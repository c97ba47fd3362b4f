"""`musicnet-report`: all that finished runs say, as one HTML file that needs nothing else. Only reads; imports no torch.

Place in the flow: run records → leaderboard → report. Records may come from anyone: the template escapes every text of theirs,
pictures hold none of it, and the page's own rule (its content security policy) lets no script run but the page's own. `page` lays
out, `curves`, `confusion` and `pictures` fill, `command` is the command line.
"""

from musicnet_eval.report.command import main
from musicnet_eval.report.page import render, write

__all__ = ["main", "render", "write"]
