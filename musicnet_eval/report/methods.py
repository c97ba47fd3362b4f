"""What a paper would say of the runs (data, training, scores, statistics, versions), and what an audit found in the data."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musicnet_eval import records
from musicnet_eval.errors import RecordError
from musicnet_eval.leaderboard.board import Listed
from musicnet_eval.leaderboard.text import listing, plain

if TYPE_CHECKING:
    from musicnet_eval.leaderboard import Row, Run, Table

AUDIT = "audit.json"


def paragraph(table: Table) -> str:
    """Say how the rows of a table came about, in sentences fit for a paper; values that differ stand side by side."""
    runs = [run for row in table.rows for run in row.runs]
    sentences = [_data(table, runs), _training(table.rows, runs), _scores(table), _software(runs)]
    return " ".join(sentence for sentence in sentences if sentence)


def _data(table: Table, runs: Sequence[Run]) -> str:
    songs = {one.song for run in runs for one in run.tested}
    groups = {one.group for run in runs for one in run.tested}
    classes = {len(told) for run in runs if isinstance(told := run.record["facts"].get("classes"), list)}
    size = f": {len(songs)} test songs in {len(groups)} groups" if songs else ""
    folds = _values(run.record["choices"].get("fold") for run in runs)
    leaky = " Groups stand in several splits, so the numbers are too good." if _any(runs, "leaky") else ""
    planted = " Faults were planted in the training split on purpose." if _any(runs, "planted") else ""
    return (
        f"{len(table.rows)} configurations were compared on {plain(table.data)} under the protocol {plain(table.protocol)} "
        f"(fold {folds}){size}, {_values(classes)} classes. Songs were assigned to splits before they were cut into "
        f"segments.{leaky}{planted}"
    )


def _training(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    def setting(*keys: str) -> str:
        return _values(_look(run.record["config"], keys) for run in runs)

    seeds = sorted({len(row.repeats("seed")) for row in rows})
    front = _values(run.record["choices"].get("spectrogram") for run in runs)
    augment = _values(run.record["choices"].get("augment") for run in runs)
    return (
        f"Each was trained with {' to '.join(dict.fromkeys(map(str, (seeds[0], seeds[-1]))))} seed(s) "
        f"(in all: {_values(run.record['choices'].get('seed') for run in runs)}), for {setting('trainer', 'max_epochs')} epochs "
        f"in batches of {setting('data', 'batch_size')}, on segments of {setting('data', 'segment_seconds')} s at "
        f"{setting('data', 'sample_rate')} Hz seen as {front} spectrograms, augmentation {augment}. The epoch of the best "
        f"{setting('monitor')} was kept and tested once."
    )


def _scores(table: Table) -> str:
    judged = any(row.interval for row in table.rows)
    told = (
        " Intervals are 95 % (crossed variance components of seeds and songs, or groups of songs, with small-sample t "
        "quantiles); rows were compared by paired tests on the same songs, corrected for all pairs (Holm)."
    )
    several = any(run.multilabel for row in table.rows for run in row.runs)
    said = "Every class of probability 0.5 or more is said." if several else "The most probable class is said."
    return f"Reported is {plain(table.metric)}; a song's segments vote. {said}{told if judged else ''}"


def _software(runs: Sequence[Run]) -> str:
    parts = []
    for field in ("versions", "hardware", "git"):
        seen: defaultdict[str, set[str]] = defaultdict(set)
        for run in runs:
            told = run.record.get(field)
            for key, value in told.items() if isinstance(told, dict) else ():
                if isinstance(value, (str, int, float)):
                    seen[plain(key)].add(plain(value))
        listed = ", ".join(f"{key} {' / '.join(sorted(values))}" for key, values in sorted(seen.items()))
        parts.append(f"{field.capitalize()}: {listed}." if listed else "")
    return " ".join(part for part in parts if part)


def _look(config: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _values(found: Iterable[Any]) -> str:
    """Write the different values, in order, or that they are not known."""
    texts = {plain(value) for value in found if value is not None}
    return listing(sorted(texts, key=lambda text: (len(text), text)), 12) or "unknown"


def _any(runs: Sequence[Run], fact: str) -> bool:
    return any(run.record["facts"].get(fact) for run in runs)


# --- what was found in the data -----------------------------------------------------------------------------------------------


def audits(folders: Iterable[Path]) -> tuple[dict[tuple[str, str], list[str]], list[Listed]]:
    """Read every `audit.json` at or below the folders: what it found, by (data, protocol), and those that cannot be read."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    damaged = []
    for folder in folders:
        for here, subfolders, files in os.walk(folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            if records.RESULT in files:
                subfolders.clear()
            elif AUDIT in files:
                try:
                    key, told = _audit(Path(here) / AUDIT)
                    found[key].append(told)
                except (RecordError, KeyError, TypeError, ValueError, OverflowError) as error:
                    name = plain((Path(here) / AUDIT).relative_to(folder))
                    why = "not readable JSON" if isinstance(error, RecordError) else f"half-written or foreign ({plain(error)})"
                    damaged.append(Listed(name, "audit", f"{why}; run musicnet-audit again"))
    return found, damaged


def _audit(path: Path) -> tuple[tuple[str, str], str]:
    """Say in a sentence what one audit found, under its data set and protocol; raises whatever a foreign file makes of it."""
    told = records.read_json(path)
    leaks, findings = told["leaks"], told["findings"]
    counts = {name: len(findings[name]) for name in ("duplicates", "groups", "bad_files", "silent", "clipped")}
    text = (
        f"Audit of fold {plain(told['fold'])}: {int(told['decoded'])} of {int(told['tracks'])} tracks heard, "
        f"{float(told['hours']):.1f} h; recordings found twice: {counts['duplicates']}, of which across splits: "
        f"{int(leaks['duplicates'])}, under differing labels: {int(told['conflicting'])}; groups in several splits: "
        f"{int(leaks['groups'])}; unusable files: {counts['bad_files']}; partly silent: {counts['silent']}; clipped: "
        f"{counts['clipped']}. Written {plain(told['written'])}."
    )
    return (plain(told["data"]), plain(told["protocol"])), text


def facts(table: Table) -> list[str]:
    """Say what the runs of a table tell of their data: tracks by split, files left out, faults planted, leaks."""
    runs = [run for row in table.rows for run in row.runs]
    told = []
    tracks = {
        ", ".join(f"{plain(split)} {plain(count)}" for split, count in found.items())
        for run in runs
        if isinstance(found := run.record["facts"].get("tracks"), dict)
    }
    if tracks:
        told.append(f"Tracks by split: {listing(sorted(tracks))}.")
    bad = {
        plain(name) for run in runs if isinstance(names := run.record["facts"].get("bad_tracks"), list | dict) for name in names
    }
    if bad:
        told.append(f"Left out as unusable: {len(bad)} ({listing(sorted(bad))}).")
    if _any(runs, "leaky"):
        told.append("Some runs were allowed groups in several splits: their numbers are too good.")
    return told
