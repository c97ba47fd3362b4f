"""Index functions that list a data set's tracks, and the split protocols. Layer 1; imports no torch and reads no audio.

An index function returns `list[Track]`: `folder` (one folder a class) and `csv` (a manifest) serve any data set of the user's
own. A protocol then says which track trains, validates and tests. Splits are made on whole tracks before anything is cut into
segments, depend only on (protocol, folds, split seed, tracks) and are the same on every machine. A group (artist, album, work)
that would stand in two splits is an error that names it.
"""

from __future__ import annotations

import csv as csv_module
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from musicnet_eval.contracts import SPLITS, Track
from musicnet_eval.errors import DataError, nearest

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64"})

# --- index functions ----------------------------------------------------------------------------------------------------------


def folder(root: Path | str) -> list[Track]:
    """List a data set that has one folder a class: `root/blues/a.wav`, `root/jazz/album/b.flac`.

    The class is the first folder below the root; every file with an audio suffix below it is a track, its own group.

    Raises:
        DataError: No such folder, no class folders, or no audio below them.
    """
    base = _existing_folder(root)
    classes = sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(
            f"data.root='{base}' holds no class folders. data=folder wants one folder a class, as in "
            f"'{base}/jazz/song.wav'. Point data.root at the folder above the classes, or use data=csv data.manifest=FILE."
        )
    tracks = []
    for name in classes:
        for path in _audio_files(base / name):
            identity = path.relative_to(base).as_posix()
            tracks.append(Track(identity, path, (name,), identity))
    if not tracks:
        raise DataError(
            f"data.root='{base}' has {len(classes)} class folders ({', '.join(classes[:5])}) but no audio files in them "
            f"(looked for {', '.join(sorted(AUDIO_SUFFIXES))}). Put audio there, or point data.root elsewhere."
        )
    return tracks


def csv(manifest: Path | str, root: Path | str | None = None) -> list[Track]:
    """List a data set from a manifest with the columns `path,label[,group][,split][,title]`; other columns are ignored.

    Args:
        manifest: CSV file, UTF-8, with a header row. Several labels are joined by `|`.
        root: Folder that relative paths start from; the manifest's own folder when None.

    Raises:
        DataError: No such file, missing columns, an empty cell, an unknown split, or a path listed twice.
    """
    file = Path(manifest).expanduser()
    base = _existing_folder(root) if root is not None else file.parent
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv_module.DictReader(stream)
            columns = reader.fieldnames or []
            missing = [name for name in ("path", "label") if name not in columns]
            if missing:
                raise DataError(
                    f"data.manifest='{file}' has the columns {columns}; it lacks {missing}. "
                    "Give it a header row path,label[,group][,split][,title]."
                )
            tracks = [_manifest_track(row, number, file, base) for number, row in enumerate(reader, start=2)]
    except FileNotFoundError:
        raise DataError(f"data.manifest='{file}' does not exist. Point data.manifest at a CSV file with path,label.") from None
    except (OSError, UnicodeDecodeError, csv_module.Error) as error:
        raise DataError(f"data.manifest='{file}' cannot be read ({error}). Save it as a CSV file in UTF-8.") from None
    if not tracks:
        raise DataError(f"data.manifest='{file}' has a header but no rows. List at least two tracks of two classes.")
    return tracks


def _manifest_track(row: dict[str, str | None], number: int, file: Path, base: Path) -> Track:
    path = (row.get("path") or "").strip()
    labels = tuple(part.strip() for part in (row.get("label") or "").split("|") if part.strip())
    split = (row.get("split") or "").strip() or None
    if not path or not labels:
        lacking = "label" if path else "path"
        raise DataError(f"data.manifest='{file}' line {number} has no {lacking}. Fill it, or remove the line.")
    if split is not None and split not in SPLITS:
        raise DataError(f"data.manifest='{file}' line {number} has split={split!r}; it must be train, val or test, or empty.")
    return Track(path, base / Path(path).expanduser(), labels, (row.get("group") or "").strip() or path, split)


def _existing_folder(root: Path | str) -> Path:
    base = Path(root).expanduser()
    if not base.is_dir():
        what = "is a file, not a folder" if base.exists() else "does not exist"
        raise DataError(f"data.root='{base}' {what}. Point data.root at the folder that holds the audio.")
    return base


def _audio_files(base: Path) -> list[Path]:
    found = []
    for here, subfolders, files in os.walk(base):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(here, name) for name in files if Path(name).suffix.lower() in AUDIO_SUFFIXES and name[0] != "."]
    return sorted(found)


# --- split protocols ----------------------------------------------------------------------------------------------------------


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
    _check_groups(tracks)
    part = _deal(tracks, folds, split_seed)
    role = {fold: "test", (fold + 1) % folds: "val"}
    return [replace(track, split=role.get(part[track.group], "train")) for track in tracks]


PROTOCOLS: dict[str, Callable[..., list[Track]]] = {"official": official, "group_kfold": group_kfold}


def _deal(tracks: Sequence[Track], folds: int, split_seed: int) -> dict[str, int]:
    """Give each group a part: largest first (ties by hash), each to the part that has least of the group's classes so far."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for track in tracks:
        groups[track.group].update(track.labels)
    held: list[Counter[str]] = [Counter() for _ in range(folds)]
    sizes = [0] * folds

    def order(group: str) -> tuple[int, str]:
        return -sum(groups[group].values()), hashlib.sha256(f"{split_seed}/{group}".encode()).hexdigest()

    part = {}
    for group in sorted(groups, key=order):
        counts = groups[group]
        best = min(range(folds), key=lambda i: (sum(n * held[i][label] for label, n in counts.items()), sizes[i], i))
        held[best].update(counts)
        sizes[best] += sum(counts.values())
        part[group] = best
    return part


def default_protocol(tracks: Iterable[Track]) -> str:
    """Name the protocol of a data set for which none is chosen: `official` where it gives splits itself, else `group_kfold`."""
    return "official" if any(track.split for track in tracks) else "group_kfold"


def assign_splits(tracks: Sequence[Track], protocol: str, fold: int = 0, folds: int = 5, split_seed: int = 0) -> list[Track]:
    """Apply a named protocol and check what came out.

    Args:
        tracks: What an index function listed.
        protocol: `group_kfold` or `official`.
        fold: Which part tests, 0 ≤ fold < folds; the part after it validates.
        folds: Number of parts, at least 3.
        split_seed: Deals the groups another way; apart from `seed`, so that seeds repeat a run on the same splits.

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
    check_splits(done)
    return done


# --- checks -------------------------------------------------------------------------------------------------------------------


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


def _check_groups(tracks: Sequence[Track]) -> None:
    groups: dict[str, set[str]] = defaultdict(set)
    for track in tracks:
        for label in track.labels:
            groups[label].add(track.group)
    few = {label: len(names) for label, names in sorted(groups.items()) if len(names) < 3}
    if few:
        raise DataError(
            f"data.protocol=group_kfold needs 3 groups a class, to stand in train, val and test; too few: {few}. "
            "Add tracks of other groups, remove these classes, or use data.protocol=official with a split column."
        )


def check_splits(tracks: Sequence[Track]) -> None:
    """Refuse splits that leak or that lack something: a group in two splits, an empty split, a class absent from train."""
    splits: dict[str, set[str]] = defaultdict(set)
    for track in tracks:
        splits[track.group].add(track.split or "none")
    crossing = sorted(group for group, names in splits.items() if len(names) > 1)
    if crossing:
        shown = "; ".join(f"{group!r} in {' and '.join(sorted(splits[group]))}" for group in crossing[:5])
        raise DataError(
            f"{len(crossing)} groups stand in more than one split ({shown}). A group (artist, album, work) must not cross "
            "splits: mend the manifest's split or group column, or use data.protocol=group_kfold."
        )
    count = Counter(track.split for track in tracks)
    empty = [split for split in SPLITS if not count[split]]
    if empty:
        raise DataError(f"The splits {empty} are empty ({len(tracks)} tracks in all). Add groups, or lower data.folds.")
    known = set(classes_of(tracks))
    absent = sorted(known.difference(label for track in tracks if track.split == "train" for label in track.labels))
    if absent:
        raise DataError(f"The classes {absent} have no training track. Add groups of them, or mend the split column.")


# --- facts --------------------------------------------------------------------------------------------------------------------


def classes_of(tracks: Iterable[Track]) -> tuple[str, ...]:
    """List the class names in index order (sorted)."""
    return tuple(sorted({label for track in tracks for label in track.labels}))


def class_counts(tracks: Iterable[Track], classes: Sequence[str]) -> tuple[int, ...]:
    """Count the training tracks of each class."""
    count = Counter(label for track in tracks if track.split == "train" for label in track.labels)
    return tuple(count[name] for name in classes)


def fingerprint(tracks: Iterable[Track]) -> str:
    """Hash what a run's numbers depend on in an index: ids, labels, groups and splits; not where the files lie."""
    digest = hashlib.sha256()
    for track in sorted(tracks, key=lambda t: t.id):
        digest.update(repr((track.id, track.labels, track.group, track.split)).encode("utf8", "surrogatepass"))
    return digest.hexdigest()[:16]
