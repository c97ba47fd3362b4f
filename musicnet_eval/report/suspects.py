"""The training labels that networks trust least, with pictures: what to listen to first."""

from __future__ import annotations

import base64
import csv
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from musicnet_eval import records
from musicnet_eval.leaderboard.text import plain
from musicnet_eval.report.pictures import MOST_PICTURES, png

if TYPE_CHECKING:
    from musicnet_eval.leaderboard import Board, Run, Table

MOST_SUSPECTS = 12  # of one table


class Doubt(NamedTuple):
    """What one run says of one song's label; `place` is its rank as a share of the run's songs."""

    place: float
    trust: float
    instead: str
    group: str
    run: Run
    picture: str


def suspects(board: Board) -> list[dict[str, Any]]:
    """List the least trusted labels of each table, over all runs that have trained on a song; tables without any are left out.

    Runs differ in how far they trust at all, so that a song's place in each run's list is averaged, not its trust.
    """
    found = []
    room = MOST_PICTURES
    for table in board.tables:
        doubts, runs = _gather(table)
        planted = sum(_planted(run) for row in table.rows for run in row.runs)
        order = sorted(doubts, key=lambda song: (statistics.fmean(doubt.place for doubt in doubts[song]), song))
        shown = []
        for song, label in order[:MOST_SUSPECTS]:
            told = _told(song, label, doubts[song, label])
            image = _picture(doubts[song, label]) if room > 0 else ""
            room -= len(image)
            shown.append({**told, "image": image if room > 0 else ""})
        if shown:
            about = {"data": table.data, "protocol": table.protocol, "songs": len(doubts), "runs": runs, "planted": planted}
            found.append({**about, "rows": shown})
    return found


def _planted(run: Run) -> bool:
    """Tell whether a run's labels were made wrong on purpose: they say nothing of the data set."""
    told = run.record["facts"].get("planted")
    return isinstance(told, dict) and bool(told.get("wrong_label"))


def _gather(table: Table) -> tuple[dict[tuple[str, str], list[Doubt]], int]:
    doubts: defaultdict[tuple[str, str], list[Doubt]] = defaultdict(list)
    runs = 0
    for run in (run for row in table.rows for run in row.runs if not _planted(run)):
        rows = _read(run)
        runs += bool(rows)
        for place, row in enumerate(rows, start=1):
            about = (place / len(rows), float(row["trust"]), plain(row["instead"]), plain(row["group"]))
            doubts[plain(row["song"]), plain(row["label"])].append(Doubt(*about, run, row["picture"]))
    return doubts, runs


def _read(run: Run) -> list[dict[str, str]]:
    """Read a run's list, in its order; nothing where it has none, or one that is damaged."""
    try:
        with (run.folder / records.SUSPECTS).open(newline="", encoding="utf8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            if None in row or None in row.values():
                return []
            float(row["trust"]), row["song"], row["group"], row["label"], row["instead"], row["picture"]
    except (OSError, ValueError, KeyError, csv.Error):
        return []
    return rows


def _told(song: str, label: str, doubts: Sequence[Doubt]) -> dict[str, Any]:
    instead, times = Counter(doubt.instead for doubt in doubts).most_common(1)[0]
    trust = statistics.fmean(doubt.trust for doubt in doubts)
    about = {"song": song, "label": label, "group": doubts[0].group, "trust": trust, "instead": instead}
    return {**about, "runs": len(doubts), "agree": times}


def _picture(doubts: Sequence[Doubt]) -> str:
    """Take the first picture that a run has of the song, in base64."""
    for doubt in doubts:
        image = png(doubt.run.folder / "pictures", doubt.picture) if doubt.picture else None
        if image:
            return base64.b64encode(image).decode()
    return ""
