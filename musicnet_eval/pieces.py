"""The pieces of an embedded data set: which of several candidates are chosen, which belong together, and what each is dealt.

Layer 3, after the scores and before the sound (`rendering.py`). Candidates come in the order of a hash; one is passed over while
another will do whose *group* is still free. Two pieces share a group if they share a work, a title, or a melody: a run of ten
successive intervals in the top line, which no transposition hides. The choice is shipped as `checksums/NAME.json`.

What could give a class away without listening to the music is dealt alike to all classes: programme, mean pitch, rate, level.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from musicnet_eval.contracts import Track
from musicnet_eval.datasets import assign_splits
from musicnet_eval.scores import Note, corpus, fingerprint
from musicnet_eval.tunes import Tune, read_abc, read_book

# General MIDI programmes, counted from 0: piano, harpsichord, vibraphone, organ, accordion, guitar, violin, harp, strings, oboe,
# clarinet, flute
PROGRAMMES = (0, 6, 11, 19, 21, 24, 40, 46, 48, 68, 71, 73)
PITCH = (60.0, 66.0)  # mean MIDI pitch, weighted by duration
LEVEL_DB = (-30.0, -26.0)  # RMS, dB of full scale
RUN = 10  # intervals that make a melody

Shipped = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Embedded:
    """What one embedded data set is.

    Args:
        name: Of the file in `checksums/` that lists its pieces.
        classes: All that can be chosen.
        pieces: Of a class, at most.
        clips: Of a piece.
        seconds: Of a clip.
        rate: Lowest and highest rate that a piece is dealt, log-uniform: distinct onsets a second, or what its row counts onsets
            by (`density`), such as beats a second.
    """

    name: str
    classes: tuple[str, ...]
    pieces: int
    clips: int
    seconds: int
    rate: tuple[float, float] = (2.4, 4.4)


class Piece(NamedTuple):
    """A piece of the shipped list, and what was dealt to it."""

    label: str
    name: str
    source: str
    group: str
    title: str
    notes: str
    programme: int
    pitch: float
    onset_rate: float
    level_db: float
    clips: int
    seconds: int


# --- the plan: what a piece is dealt -------------------------------------------------------------------------------------------
def draw(*key: object) -> int:
    """Give a 64-bit number that depends on the key alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "big")


def shipped(name: str) -> Shipped:
    """Read a shipped list: class → piece → source, group, part, title, notes (fingerprint); density where rates count beats."""
    text = (files("musicnet_eval") / "checksums" / f"{name}.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def pieces(embedded: Embedded, label: str) -> list[Piece]:
    """List the pieces of a class with the programme, pitch, onset rate and level that each is dealt.

    All classes get the same, and so do the parts that `group_kfold` makes of them with 5 folds. Balance over the class alone
    would not do: the pair (programme, class) of a held-out piece would then always be a rare one in training, and models that
    hear the programme would score below what they know.
    """
    rows = shipped(embedded.name)[label]
    order = sorted(rows, key=lambda name: (rows[name]["part"], draw("order", label, name)))
    blocks = [list(block) for _, block in itertools.groupby(order, key=lambda name: rows[name]["part"])]

    def deal(what: str, low: float, high: float) -> dict[str, float]:
        """Give the pieces of each block one value from each of as many equal ranges."""
        shares = {
            name: (k + draw("jitter", what, label, name) / 2**64) / len(block)
            for block in blocks
            for k, name in enumerate(sorted(block, key=lambda name: draw(what, label, name)))
        }
        return {name: round(low + (high - low) * share, 3) for name, share in shares.items()}

    pitch, level, rate = deal("pitch", *PITCH), deal("level", *LEVEL_DB), deal("rate", *map(math.log2, embedded.rate))
    return [
        Piece(
            label=label,
            name=name,
            source=row["source"],
            group=row["group"],
            title=row["title"],
            notes=row["notes"],
            programme=PROGRAMMES[order.index(name) % len(PROGRAMMES)],
            pitch=pitch[name],
            onset_rate=round(2 ** rate[name] * row.get("density", 1), 3),
            level_db=level[name],
            clips=embedded.clips,
            seconds=embedded.seconds,
        )
        for name, row in rows.items()
    ]


# --- the choice: which pieces, and which belong together -----------------------------------------------------------------------
class Candidate(NamedTuple):
    """A piece that may be chosen, with what ties it to others: its works, titles and melodies."""

    name: str
    source: str
    title: str
    work: str
    notes: list[Note]
    ties: frozenset[object]
    density: float | None = None  # onsets a beat, where rates count beats


def melodies(notes: list[Note], pool: str, least: int = 1) -> set[tuple[object, ...]]:
    """Give every run of ten successive intervals in the top part (of a chord its highest note), marked with a pool.

    Args:
        notes: Of one piece.
        pool: Only melodies of the same pool can be the same.
        least: How many different intervals a run needs to count as one.
    """
    top = {n.onset: n.pitch for n in sorted(notes, key=lambda n: n.pitch) if n.part == 0}
    line = [top[t] for t in sorted(top)]
    steps = [b - a for a, b in itertools.pairwise(line)]
    runs = {tuple(steps[i : i + RUN]) for i in range(len(steps) - RUN + 1)}
    return {(pool, *run) for run in runs if len(set(run)) >= least}


def plain(title: str) -> str:
    """Strip a title of what varies between books: articles, settings, marks, case."""
    title = re.sub(r"\b\d+(st|nd|rd|th)\.? setting|\bthe\b|\ba\b|\b[IVX]+\.|#?\d+", "", title, flags=re.IGNORECASE)
    return re.sub(r"[^a-z]+", " ", title.lower()).strip()


def folk_tunes(
    label: str, prefix: str, patterns: Iterable[str], belongs: Callable[[Tune], bool]
) -> Iterator[tuple[Tune, Candidate]]:
    """Yield the tunes of one voice that belong to a class, out of books of the corpus, with the candidate that each makes.

    Args:
        label: The class.
        prefix: Of the tunes' names; `oneill` says that numbers run through all files of the book (some tunes come twice).
        patterns: Of the books' paths inside the corpus.
        belongs: Says whether a tune is of the class.
    """
    for path in sorted(path for pattern in patterns for path in corpus().glob(pattern)):
        for number, tune in read_book(path).items():
            if not belongs(tune) or any(key == "V" for key, _ in tune.fields):
                continue
            notes = read_abc(tune)
            if len({n.onset for n in notes}) == len(notes):
                titles = {("title", plain(v)) for k, v in tune.fields if k == "T" and plain(v)}
                name = f"{prefix}-{path.stem}-{number}"
                work = f"{prefix}-{number}" if prefix == "oneill" else name
                ties = frozenset(titles | melodies(notes, "folk tune") | {(label, work)})
                source = f"{path.relative_to(corpus()).as_posix()}#{number}"
                yield tune, Candidate(name, source, tune.field("T").strip(" ."), work, notes, ties)


def shuffled(label: str, found: Iterable[Candidate], onsets: int) -> list[Candidate]:
    """List the candidates of a class that have enough distinct onsets, in the order of their hash."""
    long_enough = (candidate for candidate in found if len({n.onset for n in candidate.notes}) >= onsets)
    return sorted(long_enough, key=lambda candidate: draw("choose", label, candidate.name))


def choose(found: list[Candidate], count: int, taken: set[object]) -> list[Candidate]:
    """Choose candidates: first those that share nothing with what is taken, then, if these are too few, the others."""
    free: list[Candidate] = []
    others: list[Candidate] = []
    for candidate in found:
        if len(free) < count and not candidate.ties & taken:
            taken |= candidate.ties
            free.append(candidate)
        else:
            others.append(candidate)
    chosen = free + others[: count - len(free)]
    taken.update(*(c.ties for c in chosen))
    return chosen


def groups(chosen: list[tuple[str, Candidate]]) -> list[str]:
    """Name the group of each piece: the first label and work, in order of names, of those that ties join (union-find)."""
    parent = list(range(len(chosen)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    owner: dict[object, int] = {}
    for i, (_, candidate) in enumerate(chosen):
        for tie in candidate.ties:
            j = find(owner.setdefault(tie, i))
            parent[max(find(i), j)] = min(find(i), j)
    return [f"{chosen[find(i)][0]}/{chosen[find(i)][1].work}" for i in range(len(chosen))]


def parts(rows: Mapping[str, tuple[str, str]], classes: Sequence[str]) -> dict[str, int]:
    """Give the part of each piece, name → (label, group), that protocol `group_kfold` deals with its default 5 folds."""
    tracks = [Track(name, Path(name), (label,), group) for name, (label, group) in rows.items() if label in classes]
    splits = [assign_splits(tracks, "group_kfold", fold=fold) for fold in range(5)]
    return {track.id: fold for fold, split in enumerate(splits) for track in split if track.split == "test"}


def listed(
    embedded: Embedded, candidates: Callable[[str], list[Candidate]], choices: Sequence[Sequence[str]], taken: set[object]
) -> Shipped:
    """Choose the pieces of all classes; give what `shipped` reads.

    Args:
        embedded: The data set.
        candidates: Lists those of a class, best first.
        choices: Sets of classes that programmes are balanced for within their folds; a later one prevails. None: one part.
        taken: Ties of what must not be chosen while others will do.
    """
    chosen = [
        (label, c)
        for label in embedded.classes
        for c in sorted(choose(candidates(label), embedded.pieces, taken), key=lambda c: c.name)
    ]
    named = groups(chosen)
    rows = {c.name: (label, group) for (label, c), group in zip(chosen, named, strict=True)}
    part: dict[str, int] = {}
    for classes in choices:
        part |= parts(rows, classes)
    table: Shipped = {label: {} for label in embedded.classes}
    for (label, c), group in zip(chosen, named, strict=True):
        row = {"source": c.source, "group": group, "part": part.get(c.name, 0), "title": c.title, "notes": fingerprint(c.notes)}
        table[label][c.name] = row if c.density is None else {**row, "density": c.density}
    return table
