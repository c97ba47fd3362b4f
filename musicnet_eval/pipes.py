"""How a command ends when whoever reads its output has had enough: `| head`. Layer 0."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

CLOSED = 141  # 128 + SIGPIPE, as the shell says of commands that leave that signal to the system

P = ParamSpec("P")


def ends_with_reader(main: Callable[P, int]) -> Callable[P, int]:
    """Have a command leave without a word, and with 141, once nobody reads what it prints.

    Args:
        main: The command; gives its exit code.
    """

    @functools.wraps(main)
    def command(*arguments: P.args, **named: P.kwargs) -> int:
        try:
            try:
                return main(*arguments, **named)
            finally:
                sys.stdout.flush()  # else Python does when it ends, and complains
        except SystemExit as stop:
            if isinstance(stop.__context__, BrokenPipeError):  # rich leaves in this way, with 1
                return CLOSED
            raise
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return CLOSED

    return command
