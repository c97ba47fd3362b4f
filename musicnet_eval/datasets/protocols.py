"""Split protocols: which track trains, validates and tests, and the checks of what came out.

Splits are made on whole tracks before anything is cut into segments, depend only on (protocol, fold, folds, split seed, tracks)
and are the same on every machine. A group (artist, album, work) that would stand in two splits is an error that names it, unless
`data.allow_group_overlap` lets it pass, which marks the run's record as leaky.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from musicnet_eval.contracts import SPLITS, Track
from musicnet_eval.datasets.faults import FAULT_FILTERED, fault_filtered_splits
from musicnet_eval.errors import DataError, nearest

# --- the protocols ------------------------------------------------------------------------------------------------------------


def official(tracks: Sequence[Track], *, fold: int, folds: int, split_seed: int) -> list[Track]:
    """Keep the splits that the data set itself gives; a missing val is taken from train by group, one part in `folds`."""
    del fold
    named = Counter(track.split for track in tracks)
    if not named["train"] or not named["test"] or named[None]:
        raise DataError(
            f"data.protocol=official needs a split for every track, with train and test; found {dict(named)}. "
            "Fill the manifest's split column, or use data.protocol=group_kfold."
        )
    if named["val"]:
        return list(tracks)
    train = [track for track in tracks if track.split == "train"]
    part = _deal(train, folds, split_seed)
    return [replace(t, split="val") if t.split == "train" and part[t.group] == 0 else t for t in tracks]


def group_kfold(tracks: Sequence[Track], *, fold: int, folds: int, split_seed: int) -> list[Track]:
    """Deal whole groups into `folds` parts, classes spread evenly: part `fold` tests, the next one validates, the rest train."""
    _check_enough(tracks, "group_kfold", _group)
    return _parts(tracks, _group, fold, folds, split_seed)


def kfold(tracks: Sequence[Track], *, fold: int, folds: int, split_seed: int) -> list[Track]:
    """Deal single tracks into `folds` parts, classes spread evenly, whatever group they are of; roles as in `group_kfold`."""
    _check_enough(tracks, "kfold", _identity)
    return _parts(tracks, _identity, fold, folds, split_seed)


def group(tracks: Sequence[Track], *, fold: int, folds: int, split_seed: int) -> list[Track]:
    """Hold out whole groups once: one part in `folds` tests, one validates, classes spread as evenly as groups allow."""
    _only_fold_zero("group", fold)
    _check_enough(tracks, "group", _group)
    return _parts(tracks, _group, 0, folds, split_seed)


def stratified(tracks: Sequence[Track], *, fold: int, folds: int, split_seed: int) -> list[Track]:
    """Hold out single tracks once, classes spread evenly, groups ignored: one part in `folds` tests, one validates."""
    _only_fold_zero("stratified", fold)
    _check_enough(tracks, "stratified", _identity)
    return _parts(tracks, _identity, 0, folds, split_seed)


def fault_filtered(tracks: Sequence[Track], *, fold: int, folds: int, split_seed: int) -> list[Track]:
    """Take GTZAN's fault-filtered lists, 443/197/290 tracks; the other 70 stand in no split and are left out.

    Reference:
        Kereliuk, Sturm, Larsen: Deep Learning and Music Adversaries, IEEE Transactions on Multimedia 17(11), 2015; the lists
        `train_filtered.txt`, `valid_filtered.txt`, `test_filtered.txt` of github.com/coreyker/dnn-mgr.
    """
    del folds, split_seed
    _only_fold_zero("fault_filtered", fold)
    split_of = fault_filtered_splits()
    kept = [replace(track, split=split_of[track.id]) for track in tracks if track.id in split_of]
    missing = sorted(split_of.keys() - {track.id for track in kept})
    if missing:
        counts = "/".join(str(count) for count in FAULT_FILTERED.values())
        raise DataError(
            f"data.protocol=fault_filtered lists {counts} tracks of GTZAN; {len(missing)} are not in this data set, first "
            f"{missing[:3]}. Use it with data=gtzan, or use data.protocol=group_kfold."
        )
    return kept


PROTOCOLS: dict[str, Callable[..., list[Track]]] = {
    "official": official,
    "stratified": stratified,
    "group": group,
    "kfold": kfold,
    "group_kfold": group_kfold,
    "fault_filtered": fault_filtered,
}


def default_protocol(tracks: Iterable[Track]) -> str:
    """Name the protocol of a data set for which none is chosen: `official` where it gives splits itself, else `group_kfold`."""
    return "official" if any(track.split for track in tracks) else "group_kfold"


def split_settings(choice: Mapping[str, Any], tracks: Iterable[Track]) -> dict[str, Any]:
    """Give what `assign_splits` takes out of the config's `data` node, the protocol decided where it is left open."""
    settings = {key: choice[key] for key in ("protocol", "fold", "folds", "split_seed", "allow_group_overlap")}
    return {**settings, "protocol": settings["protocol"] or default_protocol(tracks)}


def assign_splits(
    tracks: Sequence[Track],
    protocol: str,
    fold: int = 0,
    folds: int = 5,
    split_seed: int = 0,
    *,
    allow_group_overlap: bool = False,
) -> list[Track]:
    """Apply a named protocol and check what came out.

    Args:
        tracks: What an index function listed.
        protocol: A key of `PROTOCOLS`.
        fold: Which part tests, 0 ≤ fold < folds; the part after it validates. 0 where the protocol holds out once.
        folds: Number of parts, at least 3.
        split_seed: Deals the groups another way; apart from `seed`, so that seeds repeat a run on the same splits.
        allow_group_overlap: Let groups stand in two splits; `overlapping_groups` says which do.

    Raises:
        DataError: An unknown protocol, a fold out of range, a group in two splits, or classes too small to be split.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"data.protocol={protocol!r} is not a protocol; {nearest(protocol, PROTOCOLS)}")
    if folds < 3:
        raise DataError(f"data.folds={folds} is too few: one part tests, one validates, the rest train. Use data.folds>=3.")
    if not 0 <= fold < folds:
        raise DataError(f"data.fold={fold} is outside 0..{folds - 1}. Use data.fold=0..{folds - 1}, or raise data.folds.")
    check_tracks(tracks)
    done = PROTOCOLS[protocol](tracks, fold=fold, folds=folds, split_seed=split_seed)
    check_splits(done, allow_group_overlap=allow_group_overlap)
    return done


# --- dealing ------------------------------------------------------------------------------------------------------------------

_Unit = Callable[[Track], str]  # what is dealt as one: a track's group, or the track itself


def _group(track: Track) -> str:
    return track.group


def _identity(track: Track) -> str:
    return track.id


def _parts(tracks: Sequence[Track], unit: _Unit, fold: int, folds: int, split_seed: int) -> list[Track]:
    part = _deal(tracks, folds, split_seed, unit)
    role = {fold: "test", (fold + 1) % folds: "val"}
    return [replace(track, split=role.get(part[unit(track)], "train")) for track in tracks]


def _deal(tracks: Sequence[Track], folds: int, split_seed: int, unit: _Unit = _group) -> dict[str, int]:
    """Give each unit a part: largest first (ties by hash), each to the part that has least of the unit's classes so far."""
    units: dict[str, Counter[str]] = defaultdict(Counter)
    for track in tracks:
        units[unit(track)].update(track.labels)
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    sizes = [0] * folds

    def order(name: str) -> tuple[int, str]:
        return -sum(units[name].values()), hashlib.sha256(f"{split_seed}/{name}".encode("utf8", "surrogatepass")).hexdigest()

    part = {}
    for name in sorted(units, key=order):
        counts = units[name]
        best = min(range(folds), key=lambda i: (sum(n * held[i][label] for label, n in counts.items()), sizes[i], i))
        held[best].update(counts)
        sizes[best] += sum(counts.values())
        part[name] = best
    return part


# --- checks -------------------------------------------------------------------------------------------------------------------


def _only_fold_zero(protocol: str, fold: int) -> None:
    if fold:
        raise DataError(
            f"data.fold={fold} means nothing under data.protocol={protocol}, which has one split. Leave data.fold out, or "
            "use data.protocol=group_kfold (groups kept together) or data.protocol=kfold."
        )


def check_tracks(tracks: Sequence[Track]) -> None:
    """Refuse a list that no experiment can use: ids that repeat, fewer than two classes, or a class of one track."""
    repeated = [name for name, count in Counter(track.id for track in tracks).items() if count > 1]
    if repeated:
        raise DataError(f"{len(repeated)} tracks are listed twice, first {repeated[:3]}. List each audio file once.")
    count = Counter(label for track in tracks for label in track.labels)
    if len(count) < 2:
        raise DataError(f"The data set has {len(count)} class {list(count)}; a comparison needs at least 2. Check data.root.")
    single = sorted(label for label, number in count.items() if number < 2)
    if single:
        raise DataError(f"The classes {single} have one track each, which cannot train and test. Add tracks, or remove them.")


def _check_enough(tracks: Sequence[Track], protocol: str, unit: _Unit) -> None:
    units: dict[str, set[str]] = defaultdict(set)
    for track in tracks:
        for label in track.labels:
            units[label].add(unit(track))
    few = {label: len(names) for label, names in sorted(units.items()) if len(names) < 3}
    if few:
        what, others = ("groups", "tracks of other groups") if unit is _group else ("tracks", "tracks")
        raise DataError(
            f"data.protocol={protocol} needs 3 {what} a class, to stand in train, val and test; too few: {few}. "
            f"Add {others}, remove these classes, or use data.protocol=official with a split column."
        )


def _places(tracks: Iterable[Track]) -> dict[str, set[str]]:
    places: dict[str, set[str]] = defaultdict(set)
    for track in tracks:
        places[track.group].add(track.split or "none")
    return {name: splits for name, splits in places.items() if len(splits) > 1}


def overlapping_groups(tracks: Iterable[Track]) -> list[str]:
    """List the groups that stand in more than one split, sorted; any makes a run's numbers leaky."""
    return sorted(_places(tracks))


def check_splits(tracks: Sequence[Track], *, allow_group_overlap: bool = False) -> None:
    """Refuse splits that leak or that lack something: a group in two splits, an empty split, a class absent from train."""
    crossing = {} if allow_group_overlap else _places(tracks)
    if crossing:
        shown = "; ".join(f"{name!r} in {' and '.join(sorted(crossing[name]))}" for name in sorted(crossing)[:5])
        raise DataError(
            f"{len(crossing)} groups stand in more than one split ({shown}). A group (artist, album, work) must not cross "
            "splits: mend the manifest's split or group column, or use data.protocol=group_kfold or group. If it must be so, "
            "data.allow_group_overlap=true lets it pass and marks the run as leaky."
        )
    count = Counter(track.split for track in tracks)
    empty = [split for split in SPLITS if not count[split]]
    if empty:
        raise DataError(f"The splits {empty} are empty ({len(tracks)} tracks in all). Add groups, or lower data.folds.")
    known = {label for track in tracks for label in track.labels}
    absent = sorted(known.difference(label for track in tracks if track.split == "train" for label in track.labels))
    if absent:
        raise DataError(f"The classes {absent} have no training track. Add groups of them, or mend the split column.")
