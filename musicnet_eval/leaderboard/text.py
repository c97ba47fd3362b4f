"""Values as text: one line each, whatever a record holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def plain(value: Any) -> str:
    """Write a value from a record as one line of text that can move no cursor and turn no line around."""
    return "".join(char if char.isprintable() else " " for char in str(value))


def number(value: float | None) -> str:
    """Write a score with four digits after the point, or a dash.

    >>> number(0.87654), number(None)
    ('0.8765', '–')
    """
    return "–" if value is None else f"{value:.4f}"


def probability(value: float) -> str:
    """Write a p value with three digits after the point, and a small one as a bound.

    >>> probability(0.0421), probability(0.0002)
    ('0.042', '< 0.001')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def size(count: int) -> str:
    """Write a count of parameters.

    >>> size(11_170_000), size(512)
    ('11.2 M', '512')
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return str(count)


def duration(seconds: float | None) -> str:
    """Write a time in the unit that leaves a number of readable length.

    >>> duration(75), duration(1200), duration(None)
    ('75.0 s', '20.0 min', '–')
    """
    if seconds is None:
        return "–"
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def listing(names: Sequence[str], most: int = 4) -> str:
    """Join names by semicolons; of many, the first few and how many more."""
    return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")
