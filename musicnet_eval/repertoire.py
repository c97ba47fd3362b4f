"""Which pieces of the music21 corpus stand for a tradition, which of them belong together, and what each is dealt.

Layer 3, before `tradition.py`. The choice is shipped as `checksums/tradition.json`; `python -m musicnet_eval.repertoire` makes
that file anew from the installed corpus (half a minute), and a test asserts that it is the same.

A piece is a candidate if it has 84 distinct onsets or more (three clips of 6 s at the fastest onset rate), and if its sounding
parts agree on the length of nearly all bars. Candidates come in the order of a hash; one is passed over while another will do
whose *group* is still free. Two pieces share a group if they share a work (cantata, quartet, madrigal cycle), a title, or a
melody: a run of ten successive intervals in the top line, which no transposition hides (one tune serves several chorales; folk
tunes wander between Ireland and Scotland). Folk-tune groups run across classes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from musicnet_eval.contracts import Track
from musicnet_eval.datasets import assign_splits
from musicnet_eval.scores import Note, corpus, fingerprint, parse_musicxml, read_musicxml
from musicnet_eval.tunes import read_abc, read_book

CLASSES = ("bach_chorale", "monteverdi_madrigal", "trecento", "string_quartet", "irish_dance", "chinese_song")
ALL_CLASSES = (*CLASSES, "scottish_air", "german_song")
NON_COMMERCIAL = ("chinese_song", "german_song")  # Essen: "non-commercial distribution and use"
PIECES = 40  # of a class
# General MIDI programmes, counted from 0: piano, harpsichord, vibraphone, organ, accordion, guitar, violin, harp, strings, oboe,
# clarinet, flute
PROGRAMMES = (0, 6, 11, 19, 21, 24, 40, 46, 48, 68, 71, 73)
BLOCK = 8  # pieces of a class in one of 5 folds
PITCH = (60.0, 66.0)  # mean MIDI pitch, weighted by duration
ONSET_RATE = (2.4, 4.4)  # distinct onsets a second, log-uniform
LEVEL_DB = (-30.0, -26.0)  # RMS, dB of full scale
ONSETS = 84  # 3 clips × 6 s × 4.4 onsets a second, and a little
RUN = 10  # intervals that make a melody
# Class → where its melodies may recur, and how many different intervals a run needs to count as one. Chorale tunes and folk tunes
# are short: any shared run counts. Madrigals and Trecento voices share bare scales by chance: 5. Quartet movements are long
# figuration, in which runs recur between Haydn and Beethoven by chance: their work alone ties.
MELODY = {
    "bach_chorale": ("chorale", 1),
    "monteverdi_madrigal": ("madrigal", 5),
    "trecento": ("trecento", 5),
    **dict.fromkeys(("irish_dance", "chinese_song", "scottish_air", "german_song"), ("folk tune", 1)),
}
TORN = 0.05  # largest share of bars on whose length the parts may disagree
# Madrigals in several parts, by book and number (titles of the 1592, 1603 and 1605 prints): one work each.
CYCLES = {"3": ((8, 9, 10), (15, 16, 17), (19, 20)), "4": ((6, 7),), "5": ((4, 5, 6, 7, 8),)}
# Aird's book says "Scotch, English, Irish and Foreign Airs": titles that name another country are left out.
FOREIGN = re.compile(
    r"\b(irish|english|french|german|italian|spanish|turkish|welsh|american|prussian|hessian|dutch|danish|swiss|polish|russian|savoyard"
    r"|allemande?|minuet|gavot\w*|cotillion|waltz|corelli|handel|haydn|o'\w+|dublin|london|paris|kerry|limerick)\b",
    re.IGNORECASE,
)


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


# --- the plan: what a piece is dealt -------------------------------------------------------------------------------------------
def draw(*key: object) -> int:
    """Give a 64-bit number that depends on the key alone."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "big")


def shipped() -> dict[str, dict[str, dict[str, Any]]]:
    """Read the shipped list: class → piece → source, group, part, title, notes (fingerprint)."""
    text = (files("musicnet_eval") / "checksums" / "tradition.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def pieces(label: str) -> list[Piece]:
    """List the 40 pieces of a class with the programme, pitch, onset rate and level that each is dealt.

    All classes get the same, and so do the parts that `group_kfold` makes of them with 5 folds. Balance over the class alone
    would not do: the pair (programme, class) of a held-out piece would then always be a rare one in training, and models that
    hear the programme would score below what they know.
    """
    rows = shipped()[label]
    order = sorted(rows, key=lambda name: (rows[name]["part"], draw("order", label, name)))
    blocks = [order[i : i + BLOCK] for i in range(0, PIECES, BLOCK)]

    def deal(what: str, low: float, high: float) -> dict[str, float]:
        """Give the pieces of each block one value from each of eight equal ranges."""
        shares = {
            name: (k + draw("jitter", what, label, name) / 2**64) / BLOCK
            for block in blocks
            for k, name in enumerate(sorted(block, key=lambda name: draw(what, label, name)))
        }
        return {name: round(low + (high - low) * share, 3) for name, share in shares.items()}

    pitch, level, rate = deal("pitch", *PITCH), deal("level", *LEVEL_DB), deal("rate", *map(math.log2, ONSET_RATE))
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
            onset_rate=round(2 ** rate[name], 3),
            level_db=level[name],
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


def melodies(notes: list[Note], label: str) -> set[tuple[object, ...]]:
    """Give every run of ten successive intervals in the top part (of a chord its highest note), marked with its pool."""
    if label not in MELODY:
        return set()
    pool, least = MELODY[label]
    top = {n.onset: n.pitch for n in sorted(notes, key=lambda n: n.pitch) if n.part == 0}
    line = [top[t] for t in sorted(top)]
    steps = [b - a for a, b in itertools.pairwise(line)]
    runs = {tuple(steps[i : i + RUN]) for i in range(len(steps) - RUN + 1)}
    return {(pool, *run) for run in runs if len(set(run)) >= least}


def plain(title: str) -> str:
    """Strip a title of what varies between books: articles, settings, marks, case."""
    title = re.sub(r"\b\d+(st|nd|rd|th)\.? setting|\bthe\b|\ba\b|\b[IVX]+\.|#?\d+", "", title, flags=re.IGNORECASE)
    return re.sub(r"[^a-z]+", " ", title.lower()).strip()


def _scores(label: str) -> Iterator[tuple[str, Path, str, str]]:
    """Yield (name, path, title, work) of the MusicXML files of a class."""
    root = corpus()
    if label == "bach_chorale":
        for path in sorted((root / "bach").glob("bwv*.mxl")):
            yield path.stem, path, path.stem.upper().replace("BWV", "BWV "), re.split(r"[.-]", path.stem)[0]
    elif label == "monteverdi_madrigal":
        for path in sorted((root / "monteverdi").glob("madrigal.?.*.mxl")):
            _, book, number = path.stem.split(".")
            if number.isdigit():
                cycle = next((c[0] for c in CYCLES[book] if int(number) in c), number)
                yield path.stem, path, f"Madrigals, book {book}, no. {number}", f"{book}.{cycle}"
    elif label == "trecento":
        for path in sorted((root / "trecento").glob("*.xml")):
            if not path.stem.endswith("_bak"):
                stem = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-").lower()
                yield stem, path, path.stem.replace("_", " "), re.sub(r"(?<=\d)[ab](?=-)", "", stem)
    else:
        for composer in ("haydn", "mozart", "beethoven"):
            for path in sorted((root / composer).glob("*/movement?.mxl")):
                work = f"{composer}-{path.parent.name}"
                yield f"{work}-{path.stem[-1]}", path, f"{composer.title()} {path.parent.name}, movement {path.stem[-1]}", work


BOOKS = {
    "irish_dance": ("oneill", ("oneills1850/*.abc",)),
    "chinese_song": ("essen", ("essenFolksong/han?.abc",)),
    "scottish_air": ("aird", ("airdsAirs/*.abc",)),
    "german_song": ("essen", ("essenFolksong/erk*.abc", "essenFolksong/boehme*.abc")),
}


def _tunes(label: str) -> Iterator[Candidate]:
    """Yield the tunes of the books of a class that belong to it and have one voice."""
    prefix, patterns = BOOKS[label]
    for path in sorted(p for pattern in patterns for p in corpus().glob(pattern)):
        for number, tune in read_book(path).items():
            title = tune.field("T").strip(" .")
            belongs = {
                "irish_dance": 701 <= number <= 1780,  # O'Neill 1903: the dances, from double jigs to hornpipes
                "chinese_song": "China" in tune.field("O"),
                "scottish_air": not FOREIGN.search(" ".join(v for k, v in tune.fields if k == "T")),
                "german_song": "Deutschland" in tune.field("O"),
            }[label]
            notes = read_abc(tune)
            if belongs and len({n.onset for n in notes}) == len(notes) and not any(k == "V" for k, _ in tune.fields):
                titles = {("title", plain(v)) for k, v in tune.fields if k == "T" and plain(v)}
                name = f"{prefix}-{path.stem}-{number}"
                source = f"{path.relative_to(corpus()).as_posix()}#{number}"
                work = (
                    f"{prefix}-{number}" if prefix == "oneill" else name
                )  # O'Neill's numbers run through all files; some tunes come twice
                yield Candidate(name, source, title, work, notes, frozenset(titles | melodies(notes, label) | {(label, work)}))


def candidates(label: str) -> list[Candidate]:
    """List the candidates of a class in the order of their hash."""
    found = list(_tunes(label)) if label in BOOKS else []
    for name, path, title, work in () if label in BOOKS else _scores(label):
        root = parse_musicxml(path)
        voices = [(element.text or "").strip() for element in root.iter("part-name")]
        if label != "bach_chorale" or voices == ["Soprano", "Alto", "Tenor", "Bass"]:
            notes, torn = read_musicxml(root)
            if torn <= TORN or label == "string_quartet":
                ties = frozenset(melodies(notes, label) | {(label, work)})
                found.append(Candidate(name, path.relative_to(corpus()).as_posix(), title, work, notes, ties))
    long_enough = [c for c in found if len({n.onset for n in c.notes}) >= ONSETS]
    return sorted(long_enough, key=lambda c: draw("choose", label, c.name))


def choose(found: list[Candidate], taken: set[object]) -> list[Candidate]:
    """Choose 40 candidates: first those that share nothing with what is taken, then, if these are too few, the others."""
    free: list[Candidate] = []
    others: list[Candidate] = []
    for candidate in found:
        if len(free) < PIECES and not candidate.ties & taken:
            taken |= candidate.ties
            free.append(candidate)
        else:
            others.append(candidate)
    chosen = free + others[: PIECES - len(free)]
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


def repertoire() -> dict[str, dict[str, dict[str, Any]]]:
    """Choose all classes; give class → piece → source, group, part, title, notes (fingerprint)."""
    taken: set[object] = set()
    chosen = [(label, c) for label in ALL_CLASSES for c in sorted(choose(candidates(label), taken), key=lambda c: c.name)]
    named = groups(chosen)
    rows = {c.name: (label, group) for (label, c), group in zip(chosen, named, strict=True)}
    part = parts(rows, ALL_CLASSES) | parts(rows, (*CLASSES[:-1], "scottish_air")) | parts(rows, CLASSES)
    table: dict[str, dict[str, dict[str, Any]]] = {label: {} for label in ALL_CLASSES}
    for (label, c), group in zip(chosen, named, strict=True):
        row = {"source": c.source, "group": group, "part": part[c.name], "title": c.title, "notes": fingerprint(c.notes)}
        table[label][c.name] = row
    return table


if __name__ == "__main__":
    target = Path(__file__).with_name("checksums") / "tradition.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(repertoire(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
