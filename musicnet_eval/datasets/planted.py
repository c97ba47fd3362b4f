"""Faults put into training data on purpose, to measure how robust a loss or a network is: wrong labels and unequal classes.

Only the training split is touched, after the protocol has decided it. What is changed hangs on (seed, ids) alone, not on the
order of the tracks, and is handed back track by track, so that whoever looks for wrong labels can be checked against the truth.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from musicnet_eval.contracts import Track
from musicnet_eval.errors import ConfigError, DataError

UNITS = ("track", "group")


class Fault(NamedTuple):
    """What was done to one training track: `fault` is `wrong_label` or `left_out`; `label` is its new one, empty if left out."""

    song: str
    group: str
    fault: str
    true_label: str
    label: str


def plant(
    tracks: Sequence[Track],
    *,
    wrong_labels: float | None = None,
    imbalance: float | None = None,
    by: str = "track",
    seed: int = 0,
) -> tuple[list[Track], list[Fault]]:
    """Leave training tracks out until the classes are unequal, then give some of those that are left another class.

    Args:
        tracks: All tracks, their splits decided.
        wrong_labels: Share of each class that gets another label, in (0, 1), drawn evenly from the other classes; None: none.
        imbalance: The rarest class keeps one in this many, above 1; the shares of the others lie geometrically between that and
            all, in an order of classes drawn from the seed. None: all are kept.
        by: `track` or `group`: what is mislabelled, or left out, as one.
        seed: Of all draws.

    Returns:
        The tracks that are left, in their order, and what was done, sorted by song.

    Raises:
        ConfigError: A share or a ratio outside its range, or an unknown unit.
        DataError: A track with several labels, or too few tracks for any to be changed.
    """
    _check(wrong_labels, imbalance, by)
    if wrong_labels is None and imbalance is None:
        return list(tracks), []
    many = next((track for track in tracks if len(track.labels) > 1), None)
    if many is not None:
        raise DataError(f"data.plant needs one label a track; '{many.id}' carries {len(many.labels)}. Use data.plant null.")
    classes = sorted({track.labels[0] for track in tracks})
    units = _units(tracks, by)
    left_out = _left_out(units, classes, imbalance or 1.0, seed)
    kept = {label: [name for name in names if name not in left_out] for label, names in units.items()}
    given = _wrong(kept, classes, wrong_labels or 0.0, seed)
    if not left_out and not given:
        raise DataError(
            f"data.plant.wrong_labels={wrong_labels}, data.plant.imbalance={imbalance} change nothing: a class has "
            f"{max(map(len, units.values()))} training {by}s at most. Raise them, or use more tracks."
        )
    return _apply(tracks, by, left_out, given)


def _check(wrong_labels: object, imbalance: object, by: str) -> None:
    _check_number("wrong_labels", wrong_labels, 0.0, 1.0, "a share of each class above 0 and below 1")
    _check_number("imbalance", imbalance, 1.0, 1e6, "a ratio above 1, as in 10 for 1:10")
    if by not in UNITS:
        raise ConfigError(f"data.plant.by={by!r} must be one of {', '.join(UNITS)}.")


def _check_number(key: str, value: object, above: float, below: float, rule: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < below:
        raise ConfigError(f"data.plant.{key}={value!r} must be {rule}, or null for none.")


def _units(tracks: Sequence[Track], by: str) -> dict[str, list[str]]:
    """List what is changed as one in the training split, by class; a group of several classes counts with its first."""
    label_of: dict[str, str] = {}
    for track in sorted(tracks, key=lambda track: track.id):
        if track.split == "train":
            label_of.setdefault(_unit(track, by), track.labels[0])
    units: defaultdict[str, list[str]] = defaultdict(list)
    for name, label in sorted(label_of.items()):
        units[label].append(name)
    return dict(units)


def _unit(track: Track, by: str) -> str:
    return track.group if by == "group" else track.id


def _draw(seed: int, use: str, name: str) -> int:
    """Draw a number from (seed, use, name): the same on every machine, whatever else is in the list."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{use}/{name}".encode("utf8", "surrogatepass")).digest()[:8], "big")


def _first(names: Sequence[str], count: int, seed: int, use: str) -> list[str]:
    return sorted(names, key=lambda name: (_draw(seed, use, name), name))[:count]


def _left_out(units: dict[str, list[str]], classes: Sequence[str], imbalance: float, seed: int) -> set[str]:
    order = _first(classes, len(classes), seed, "order of classes")
    gone: set[str] = set()
    for place, label in enumerate(order):
        names = units.get(label, [])
        kept = max(1, round(len(names) * imbalance ** (-place / (len(classes) - 1))))
        gone.update(_first(names, len(names) - kept, seed, "left out"))
    return gone


def _wrong(units: dict[str, list[str]], classes: Sequence[str], share: float, seed: int) -> dict[str, str]:
    given = {}
    for label, names in units.items():
        others = [other for other in classes if other != label]
        for name in _first(names, min(round(share * len(names)), len(names) - 1), seed, "wrong label"):
            given[name] = others[_draw(seed, "other label", name) % len(others)]
    return given


def _apply(tracks: Sequence[Track], by: str, left_out: set[str], given: dict[str, str]) -> tuple[list[Track], list[Fault]]:
    done, faults = [], []
    for track in tracks:
        unit, true = _unit(track, by), track.labels[0]
        if track.split != "train" or (unit not in left_out and given.get(unit, true) == true):
            done.append(track)
        elif unit in left_out:
            faults.append(Fault(track.id, track.group, "left_out", true, ""))
        else:
            done.append(replace(track, labels=(given[unit],)))
            faults.append(Fault(track.id, track.group, "wrong_label", true, given[unit]))
    return done, sorted(faults)


def to_csv(faults: Sequence[Fault]) -> str:
    """Write faults as a CSV with a header row."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(Fault._fields)
    writer.writerows(faults)
    return file.getvalue()
