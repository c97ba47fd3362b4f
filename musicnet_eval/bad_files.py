"""What is done about tracks whose audio cannot be used: named together, left out, or listed in a table. Layer 2.

Unusable is what no segment can be cut from, or what is not what it claims to be: missing, unreadable, empty, no audio, cut,
samples that are not finite, nothing but digital silence, less than 50 ms. Clipped audio is music all the same: decoding reports
it, and it is used.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from musicnet_eval.contracts import Track
from musicnet_eval.datasets import known_bad
from musicnet_eval.errors import ConfigError, DataError
from musicnet_eval.records import replacing

CHOICES = ("error", "skip", "report")
TABLE = "bad_files.csv"
SHOWN = 10


def check_choice(on_bad_file: str) -> None:
    """Refuse what is none of the choices."""
    if on_bad_file not in CHOICES:
        raise ConfigError(f"data.on_bad_file={on_bad_file!r} must be one of {', '.join(CHOICES)}.")


def with_known_faults(bad: Mapping[str, str]) -> dict[str, str]:
    """Add to the reasons, by track id, what is published about those tracks."""
    known = known_bad(bad)
    return {name: f"{reason}; known fault: {known[name]}" if name in known else reason for name, reason in bad.items()}


def settle(tracks: Sequence[Track], bad: Mapping[str, str], on_bad_file: str, folder: Path) -> None:
    """Report unusable tracks together, and stop unless they are to be left out.

    Args:
        tracks: All tracks.
        bad: Why a track is unusable, by id.
        on_bad_file: `error` stops and names the first ones; `report` stops and lists all, on stderr and in a table; `skip` names
            the first ones and goes on.
        folder: Where the table `bad_files.csv` (id, label, split, path, reason) goes.

    Raises:
        DataError: There are unusable tracks, and they are not to be left out.
    """
    unusable = [track for track in tracks if track.id in bad]
    if not unusable:
        return
    count = SHOWN if on_bad_file != "report" else len(unusable)
    lines = [f"'{track.path}' {bad[track.id]}" for track in unusable[:count]]
    if len(unusable) > count:
        lines.append(f"… and {len(unusable) - count} more")
    message = "\n  ".join([f"{len(unusable)} of {len(tracks)} audio files are unusable:", *lines])
    message += f"\nBy class: {_by_class(tracks, unusable)}."
    if on_bad_file == "skip":
        print(f"{message}\nThey are left out (data.on_bad_file=skip).", file=sys.stderr)
    elif on_bad_file == "report":
        write_table(folder / TABLE, unusable, bad)
        raise DataError(f"{message}\nThe list is in '{folder / TABLE}'. Mend them, or leave them out with data.on_bad_file=skip.")
    else:
        raise DataError(
            f"{message}\nMend or remove them, leave them out with data.on_bad_file=skip, or list them all with "
            "data.on_bad_file=report."
        )


def write_table(path: Path, unusable: Sequence[Track], bad: Mapping[str, str]) -> None:
    """Write which tracks are unusable, and why, as a CSV table."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "split", "path", "reason"])
        writer.writerows([t.id, "|".join(t.labels), t.split or "", str(t.path), bad[t.id]] for t in unusable)


def _by_class(tracks: Sequence[Track], unusable: Sequence[Track]) -> str:
    total = Counter(label for track in tracks for label in track.labels)
    count = Counter(label for track in unusable for label in track.labels)
    return ", ".join(f"{label} {count[label]} of {total[label]}" for label in sorted(count))
