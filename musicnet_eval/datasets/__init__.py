"""Index functions that list a data set's tracks, and the split protocols. Layer 1; imports no torch and reads no audio.

An index function returns `list[Track]`: `folder`, `csv`, `jsonl` and `parquet` (`manifests.py`) serve any data set of the user's
own; the field's data sets are in `genre.py`, `emotion.py` and `rhythm.py`, any of mirdata's by `bridge.py`. They list what the
data set is, not what happens to lie on this disk: a file that its metadata name and that is missing is a track, which decoding
then names. A protocol (`protocols.py`) says which track trains, validates and tests. `faults.py` holds published facts;
`planted.py` puts faults into training data on purpose.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from musicnet_eval.contracts import Track
from musicnet_eval.datasets.bridge import mirdata
from musicnet_eval.datasets.emotion import emotion_4q, mtg_jamendo_moodtheme, pmemo
from musicnet_eval.datasets.faults import known_bad
from musicnet_eval.datasets.files import AUDIO_SUFFIXES
from musicnet_eval.datasets.genre import fma, gtzan, ismir2004
from musicnet_eval.datasets.manifests import csv, folder, jsonl, parquet
from musicnet_eval.datasets.protocols import (
    PROTOCOLS,
    assign_splits,
    check_splits,
    check_tracks,
    default_protocol,
    group_kfold,
    official,
    overlapping_groups,
    split_settings,
)
from musicnet_eval.datasets.rhythm import ballroom, extended_ballroom

__all__ = [
    "AUDIO_SUFFIXES",
    "PROTOCOLS",
    "assign_splits",
    "ballroom",
    "check_splits",
    "check_tracks",
    "class_counts",
    "classes_of",
    "csv",
    "default_protocol",
    "emotion_4q",
    "extended_ballroom",
    "fingerprint",
    "fma",
    "folder",
    "group_kfold",
    "gtzan",
    "ismir2004",
    "jsonl",
    "known_bad",
    "mirdata",
    "mtg_jamendo_moodtheme",
    "official",
    "overlapping_groups",
    "parquet",
    "pmemo",
    "split_settings",
]


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
