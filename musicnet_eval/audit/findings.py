"""What an audit says of a data set: counts, levels, and findings, as plain values that go into `audit.json` as they are.

A *leak* is a recording, or a group, that stands in two splits. A track without a split, of a protocol that leaves tracks out,
leaks into none.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from musicnet_eval.audit.fingerprints import SHORTEST, Match, matches
from musicnet_eval.audit.listen import Heard
from musicnet_eval.contracts import SPLITS, Track
from musicnet_eval.datasets import classes_of, known_bad, overlapping_groups

SILENT_SHARE = 0.5  # of a track, from which on it is listed
CLIPPED_SHARE = 1e-3
SAME_PLACE = 0.15  # seconds: a lossy coder's delay, by which a copy may lie elsewhere or be longer

Row = dict[str, Any]


def counts(tracks: Sequence[Track], heard: Sequence[Heard]) -> list[Row]:
    """Count tracks, groups and hours of every class in every split; a track of several classes counts in each."""
    cells: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for number, track in enumerate(tracks):
        for label in track.labels:
            cells[label, track.split or "none"].append(number)
    order = (*SPLITS, "none")
    return [
        {
            "class": label,
            "split": split,
            "tracks": len(cells[label, split]),
            "groups": len({tracks[i].group for i in cells[label, split]}),
            "hours": round(sum(heard[i].seconds for i in cells[label, split]) / 3600, 4),
            "bad": sum(heard[i].reason is not None for i in cells[label, split]),
        }
        for label in classes_of(tracks)
        for split in order
        if (label, split) in cells
    ]


def levels(tracks: Sequence[Track], heard: Sequence[Heard]) -> list[Row]:
    """Sum up length and loudness of every class as [least, 5 %, median, 95 %, most]; null where nothing was heard."""
    by_class: defaultdict[str, list[Heard]] = defaultdict(list)
    for track, one in zip(tracks, heard, strict=True):
        for label in track.labels if one.reason is None else ():
            by_class[label].append(one)
    return [
        {
            "class": label,
            "seconds": _spread([one.seconds for one in by_class[label]]),
            "loudness": _spread([one.loudness for one in by_class[label] if one.loudness is not None]),
        }
        for label in classes_of(tracks)
    ]


def _spread(values: Sequence[float]) -> list[float] | None:
    if not values:
        return None
    cuts = statistics.quantiles(values, n=20, method="inclusive") if len(values) > 1 else [values[0]] * 19
    return [round(value, 3) for value in (min(values), cuts[0], cuts[9], cuts[18], max(values))]


def sources(heard: Iterable[Heard]) -> dict[str, dict[str, int]]:
    """Count sample rates, channels and formats of what could be decoded, commonest first."""
    good = [one for one in heard if one.reason is None]
    named = {"sample_rates": "sample_rate", "channels": "channels", "formats": "format"}
    commonest = {name: Counter(getattr(one, key) for one in good).most_common() for name, key in named.items()}
    return {name: {str(value or "unknown"): number for value, number in found} for name, found in commonest.items()}


def files(tracks: Sequence[Track], heard: Sequence[Heard]) -> dict[str, list[Row]]:
    """List the files that are unusable, known to be bad, mostly silent or clipped."""
    pairs = list(zip(tracks, heard, strict=True))
    known = known_bad(track.id for track in tracks)
    silent = [_named(track, share=one.silent) for track, one in pairs if one.silent >= SILENT_SHARE]
    clipped = [_named(track, share=one.clipped) for track, one in pairs if one.clipped >= CLIPPED_SHARE]
    return {
        "bad_files": [_named(track, reason=one.reason) for track, one in pairs if one.reason is not None],
        "known_bad": [_named(track, reason=known[track.id]) for track in tracks if track.id in known],
        "silent": sorted(silent, key=lambda row: -row["share"]),
        "clipped": sorted(clipped, key=lambda row: -row["share"]),
    }


def _named(track: Track, **more: Any) -> Row:
    return {"id": track.id, "labels": list(track.labels), "split": track.split, "group": track.group, **more}


# --- leaks --------------------------------------------------------------------------------------------------------------------


def groups(tracks: Sequence[Track]) -> list[Row]:
    """List the groups that stand in several splits, with their tracks."""
    members: defaultdict[str, list[Track]] = defaultdict(list)
    for track in tracks:
        if track.split:
            members[track.group].append(track)
    crossing = overlapping_groups(track for track in tracks if track.split)
    return [
        {
            "group": name,
            "splits": {split: sum(track.split == split for track in members[name]) for split in SPLITS},
            "files": [_named(track) for track in members[name]],
        }
        for name in crossing
    ]


def duplicates(tracks: Sequence[Track], heard: Sequence[Heard]) -> list[Row]:
    """List the recordings that are there more than once: those that cross splits first, then those of differing labels.

    `kind` is `same file` (equal bytes), `same audio` (equal samples), `copy` (all of both: re-encoded, resampled, of
    another level), `excerpt` (all of the shorter) or `overlapping` (a part of both, as of a shifted copy).
    """
    copies: defaultdict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(heard):
        if one.reason is None:
            copies[one.audio].append(number)
    sets = list(copies.values())
    found = [_exact(tracks, heard, copy) for copy in sets if len(copy) > 1]
    # Of equal recordings one is compared with the others, and speaks for all.
    found += [_near(tracks, heard, sets, match) for match in matches([heard[copy[0]].words for copy in sets])]
    return sorted(found, key=lambda row: (not row["crosses"], not row["conflicting"], -row["agreement"], -row["seconds"]))


def _exact(tracks: Sequence[Track], heard: Sequence[Heard], copy: Sequence[int]) -> Row:
    kind = "same file" if len({heard[i].sha256 for i in copy}) == 1 else "same audio"
    return _duplicate(kind, heard[copy[0]].seconds, 1.0, [_named(tracks[i], start=0.0) for i in copy])


def _near(tracks: Sequence[Track], heard: Sequence[Heard], sets: Sequence[Sequence[int]], match: Match) -> Row:
    left, right = sets[match.left], sets[match.right]
    long, short = sorted((heard[left[0]].seconds, heard[right[0]].seconds), reverse=True)
    starts = max(0.0, match.lag), max(0.0, -match.lag)
    seconds = min(heard[left[0]].seconds - starts[0], heard[right[0]].seconds - starts[1])
    if seconds < short - SAME_PLACE:
        kind = "overlapping"
    else:
        kind = "copy" if abs(match.lag) <= SAME_PLACE and long - short <= SAME_PLACE else "excerpt"
    ends = ((left, starts[0]), (right, starts[1]))
    named = [_named(tracks[copy[0]], start=round(start, 2)) for copy, start in ends]
    named += [_named(tracks[i], start=round(start, 2)) for copy, start in ends for i in copy[1:]]
    return _duplicate(kind, seconds, match.agreement, named)


def _duplicate(kind: str, seconds: float, agreement: float, named: list[Row]) -> Row:
    splits = {row["split"] for row in named} - {None}
    return {
        "kind": kind,
        "crosses": len(splits) > 1,
        "conflicting": len({frozenset(row["labels"]) for row in named}) > 1,
        "seconds": round(seconds, 2),
        "agreement": agreement,
        "files": named,
    }


# --- checksums ----------------------------------------------------------------------------------------------------------------


def checksums(tracks: Sequence[Track], heard: Sequence[Heard]) -> dict[str, str]:
    """Give the SHA-256 of every file that can be read, by track id."""
    return {track.id: one.sha256 for track, one in zip(tracks, heard, strict=True) if one.sha256 is not None}


def changes(written: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    """Compare checksums with those that were written once: track ids that are missing, changed or new."""
    return {
        "missing": sorted(written.keys() - now.keys()),
        "changed": sorted(name for name in written.keys() & now.keys() if written[name] != now[name]),
        "new": sorted(now.keys() - written.keys()),
    }


# --- all of it ----------------------------------------------------------------------------------------------------------------


def summary(tracks: Sequence[Track], heard: Sequence[Heard]) -> Row:
    """Put together all that `audit.json` says of the tracks themselves."""
    found = {"duplicates": duplicates(tracks, heard), "groups": groups(tracks), **files(tracks, heard)}
    good = [one for one in heard if one.reason is None]
    return {
        "tracks": len(tracks),
        "decoded": len(good),
        "compared": sum(len(one.words) >= SHORTEST for one in good),
        "hours": round(sum(one.seconds for one in good) / 3600, 4),
        "leaks": {"duplicates": sum(row["crosses"] for row in found["duplicates"]), "groups": len(found["groups"])},
        "conflicting": sum(row["conflicting"] for row in found["duplicates"]),
        "counts": counts(tracks, heard),
        "levels": levels(tracks, heard),
        "sources": sources(heard),
        "findings": found,
    }
