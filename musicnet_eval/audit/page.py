"""Show an audit: one self-contained HTML page, with sounds to compare, and a summary for the terminal.

Names come from anyone's files: the template escapes them, and the page's content security policy lets no script run. Lists are
cut on the page and in the terminal, never in `audit.json`.
"""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musicnet_eval.contracts import SPLITS
from musicnet_eval.errors import AudioError
from musicnet_eval.leaderboard.text import duration, plain

MOST_LISTED = 100  # findings of a kind, and classes, on the page
MOST_FILES = 8  # of one finding
MOST_LINES = 10  # findings of a kind, and classes, in the terminal
SNIPPET_SECONDS, SNIPPET_RATE = 3.0, 16_000
LISTS = {
    "bad_files": (
        "Unusable files",
        "No network can hear these; training stops at them, or leaves them out with data.on_bad_file=skip.",
    ),
    "known_bad": ("Known to be bad", "Published faults of this data set, whether or not this copy has them."),
    "silent": ("Mostly silent", "Half of the track or more lies below -60 dBFS."),
    "clipped": ("Clipped", "One sample in a thousand or more stands in a run of three at full scale."),
}
Sounds = Mapping[tuple[int, int], str]  # (finding, file) → MP3 in base64


def verdict(record: Mapping[str, Any]) -> tuple[bool, str]:
    """Say in a sentence whether the splits can be trusted, and whether they can."""
    if record["split_error"]:
        return False, f"There are no splits to trust. {record['split_error']}"
    if not record["decoded"]:
        return False, "No track can be decoded."
    several = {"duplicates": "recordings stand", "groups": "groups stand"}
    single = {"duplicates": "recording stands", "groups": "group stands"}
    leaks = [f"{n} {(single if n == 1 else several)[name]} in several splits" for name, n in record["leaks"].items() if n]
    if leaks:
        return False, f"Leak: {', and '.join(leaks)}. What is trained on this split has heard a part of its test."
    sentence = "No leak found: no recording and no group stands in two splits."
    changed = {name: len(ids) for name, ids in (record["checksums"] or {}).items() if ids and name != "new"}
    if changed:
        sentence += f" But files are not what they were: {', '.join(f'{name} {n}' for name, n in changed.items())}."
    if record["conflicting"]:
        sentence += f" Duplicates under differing labels: {record['conflicting']}."
    return not changed, sentence


def snippets(record: Mapping[str, Any], paths: Mapping[str, Path], count: int) -> Sounds:
    """Cut a few seconds out of the first two files of the first duplicates, at the same place of the recording.

    Args:
        record: The audit.
        paths: Where the tracks lie, by id.
        count: Duplicates that get sounds.
    """
    sounds = {}
    for number, found in enumerate(record["findings"]["duplicates"][:count]):
        for which, file in enumerate(found["files"][:2]):
            begin = file["start"] + max(0.0, (found["seconds"] - SNIPPET_SECONDS) / 2)
            sounds[number, which] = _mp3(paths[file["id"]], begin)
    return sounds


def _mp3(path: Path, begin: float) -> str:
    import soundfile

    from musicnet_eval.audio import decode

    try:
        pcm = decode(path, SNIPPET_RATE, begin + SNIPPET_SECONDS)[round(begin * SNIPPET_RATE) :]
    except AudioError:  # changed while the audit ran
        return ""
    file = io.BytesIO()
    soundfile.write(file, pcm, SNIPPET_RATE, format="MP3")
    return base64.b64encode(file.getvalue()).decode()


# --- the page -----------------------------------------------------------------------------------------------------------------


def render(record: Mapping[str, Any], sounds: Sounds) -> str:
    """Lay an audit out as one HTML page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("musicnet_eval.audit", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = duration
    clean, sentence = verdict(record)
    page: str = environment.get_template("audit.html.jinja").render(
        audit=_printable({**record, "findings": _cut(record["findings"])}),
        total={name: len(rows) for name, rows in record["findings"].items()},
        clean=clean,
        verdict=printable(sentence),
        table=_printable(_by_class(record["counts"])),
        splits=_splits(record["counts"]),
        axes={name: _axis(record["levels"], name) for name in ("seconds", "loudness")},
        lists=LISTS,
        sounds=sounds,
        most=MOST_LISTED,
        most_files=MOST_FILES,
    )
    return page


def printable(text: str) -> str:
    """Write a name so that any page or terminal can show it: bytes that are not UTF-8 as escapes, no control characters."""
    return plain(text.encode("utf8", "backslashreplace").decode("utf8"))


def _printable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {printable(str(key)): _printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_printable(one) for one in value]
    return printable(value) if isinstance(value, str) else value


def _cut(found: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Keep the first findings of each kind, and the first files of each finding with how many there are."""
    kept: dict[str, list[Any]] = {name: list(rows[:MOST_LISTED]) for name, rows in found.items()}
    for name in ("duplicates", "groups"):
        kept[name] = [{**row, "files": row["files"][:MOST_FILES], "of": len(row["files"])} for row in kept[name]]
    return kept


def _splits(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {row["split"] for row in counts}
    return [split for split in (*SPLITS, "none") if split in found]


def _by_class(counts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turn the counts into one row a class with a cell a split, and a last row of sums; a track of two classes counts in both."""
    rows: dict[str, dict[str, Any]] = {}
    sums: defaultdict[str, dict[str, float]] = defaultdict(lambda: {"tracks": 0, "groups": 0, "hours": 0.0, "bad": 0})
    for cell in counts:
        rows.setdefault(cell["class"], {"class": cell["class"], "cells": {}})["cells"][cell["split"]] = dict(cell)
        for key in sums[cell["split"]]:
            sums[cell["split"]][key] += cell[key]
    return [*list(rows.values())[:MOST_LISTED], {"class": "", "cells": dict(sums), "of": len(rows)}]


def _axis(levels: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Give what places a value on an axis that holds all classes, in percent."""
    values = [value for row in levels for value in row[name] or ()]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return {"low": low, "high": high, "scale": 100 / ((high - low) or 1.0)}


# --- the terminal -------------------------------------------------------------------------------------------------------------


def show(record: Mapping[str, Any]) -> None:
    """Print the summary of an audit."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console(markup=False, highlight=False)
    splits = _splits(record["counts"])
    table = Table(Column("tracks (groups)", overflow="fold"), *(Column(split, justify="right") for split in splits))
    rows = _by_class(record["counts"])
    for row in [*rows[:-1][:MOST_LINES], rows[-1]]:
        cells = [row["cells"].get(split) for split in splits]
        name = printable(row["class"]) or f"all {rows[-1]['of']}"
        table.add_row(Text(name), *(f"{cell['tracks']} ({cell['groups']})" if cell else "–" for cell in cells))
    console.print(table)
    kinds = ", ".join(f"{rate} Hz: {number}" for rate, number in record["sources"]["sample_rates"].items())
    console.print(f"{record['decoded']} of {record['tracks']} tracks decoded, {duration(3600 * record['hours'])}; {kinds}")
    for line, bad in _lines(record):
        console.print(Text(printable(line), style="red" if bad else ""))
    clean, sentence = verdict(record)
    console.print(Text(printable(sentence), style="green" if clean else "bold red"))


def _lines(record: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """List the findings, some of each kind, and whether they are bad."""
    found = record["findings"]
    red = [row for row in found["duplicates"] if row["crosses"] or row["conflicting"]]
    lines = [(_sentence(row), True) for row in red[:MOST_LINES]] + _more("such duplicates", red)
    if len(found["duplicates"]) > len(red):
        lines.append((f"duplicates inside one split: {len(found['duplicates']) - len(red)}, listed on the page", False))
    for row in found["groups"][:MOST_LINES]:
        places = ", ".join(f"{number} in {split}" for split, number in row["splits"].items() if number)
        lines.append((f"group in several splits: {row['group']}: {places}", True))
    lines += _more("groups in several splits", found["groups"])
    for name, (title, _) in LISTS.items():
        lines += [(f"{title.lower()}: {row['id']}: {_why(row)}", name == "bad_files") for row in found[name][:MOST_LINES]]
        lines += _more(title.lower(), found[name])
    for name, ids in (record["checksums"] or {}).items():
        lines += [(f"checksum {name}: {one}", name != "new") for one in ids[:MOST_LINES]]
        lines += _more(f"checksums {name}", ids)
    if record["checksums"] and not any(record["checksums"].values()):
        lines.append(("checksums: every file is as it was", False))
    return lines


def _more(what: str, rows: Sequence[Any]) -> list[tuple[str, bool]]:
    return [(f"… {what}: {len(rows)} in all, listed in audit.json", False)] if len(rows) > MOST_LINES else []


def _why(row: Mapping[str, Any]) -> str:
    return str(row["reason"]) if "reason" in row else f"{100 * row['share']:.3g} %"


def _sentence(row: Mapping[str, Any]) -> str:
    marks = [text for text, on in (("crosses splits", row["crosses"]), ("labels differ", row["conflicting"])) if on]
    files = [f"{file['id']} ({file['split'] or 'no split'}) from {file['start']:.2f} s" for file in row["files"][:2]]
    more = f" and {len(row['files']) - 2} more" if len(row["files"]) > 2 else ""
    return f"{row['kind']}{''.join(f', {mark}' for mark in marks)}: {' = '.join(files)}{more}, for {row['seconds']:.1f} s"
