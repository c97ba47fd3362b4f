"""Typed errors that carry their own remedy. Layer 0.

Every message says: wrong value → rule → remedy, naming the config key to turn. Commands print the message alone, without a
traceback (`HYDRA_FULL_ERROR=1` shows it), and leave with the error's `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class MusicnetError(Exception):
    """What a user can mend: bad usage or bad input."""

    exit_code = 2


class ConfigError(MusicnetError, ValueError):
    """A config value that breaks a rule."""


class DataError(MusicnetError):
    """A data set, a manifest or a split that cannot be used."""


class AudioError(MusicnetError):
    """An audio file that cannot be used.

    Args:
        path: The file.
        reason: What is wrong with it, to be read after its name: `holds no samples`.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(path, reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"'{self.args[0]}' {self.reason}."


class RecordError(MusicnetError):
    """A run folder, record or checkpoint that cannot be read or trusted."""


class TrainingError(MusicnetError, RuntimeError):
    """A training that went wrong by itself: its run is recorded as failed, and the command leaves with 1.

    Args:
        message: What happened, and what may help.
        details: The same for programs, kept in `failed.json`.
    """

    exit_code = 1

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})


class AttemptsError(TrainingError):
    """A run that has failed too often to be tried again."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names come nearest to a misspelt one: `"did you mean 'a', 'b'?"`.

    >>> nearest("resnt18", ["resnet18", "resnet34", "vgg11"], count=1)
    "did you mean 'resnet18'?"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(repr(c) for c in close)}?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"known are: {shown}"
