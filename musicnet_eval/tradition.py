"""The embedded set `tradition`: which musical tradition is this? Real scores, rendered on the user's machine, as `Track`s.

Layer 6, on `pieces.py` (choice), `rendering.py` (sound) and `embedded.py` (the build). Scores come from the music21 wheel; a
class is 40 pieces of 3 clips of 6 s. Programme, mean pitch, onset rate, level and the clip's place in the piece are drawn alike
for all classes. Texture (number of voices) is left as it is: it belongs to the music, and makes a part of the task easy.

A piece is a candidate if it has 84 distinct onsets or more (three clips of 6 s at the fastest onset rate), and if its sounding
parts agree on the length of nearly all bars. A work is a cantata, quartet or madrigal cycle; one tune serves several chorales,
and folk tunes wander between Ireland and Scotland, so that their groups run across classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from musicnet_eval import embedded
from musicnet_eval.contracts import Track
from musicnet_eval.pieces import Candidate, Embedded, Shipped, folk_tunes, listed, melodies, shuffled
from musicnet_eval.scores import corpus, parse_musicxml, read_musicxml
from musicnet_eval.tunes import Tune

CLASSES = ("bach_chorale", "monteverdi_madrigal", "trecento", "string_quartet", "irish_dance", "chinese_song")
ALL_CLASSES = (*CLASSES, "scottish_air", "german_song")
NON_COMMERCIAL = ("chinese_song", "german_song")  # Essen: "non-commercial distribution and use"
TRADITION = Embedded("tradition", ALL_CLASSES, pieces=40, clips=3, seconds=6)
ONSETS = 84  # 3 clips × 6 s × 4.4 onsets a second, and a little
# Class → where its melodies may recur, and how many different intervals a run needs to count as one. Chorale tunes and folk tunes
# are short: any shared run counts. Madrigals and Trecento voices share bare scales by chance: 5. Quartet movements are long
# figuration, in which runs recur between Haydn and Beethoven by chance: their work alone ties.
MELODY = {"bach_chorale": ("chorale", 1), "monteverdi_madrigal": ("madrigal", 5), "trecento": ("trecento", 5)}
TORN = 0.05  # largest share of bars on whose length the parts may disagree
# Madrigals in several parts, by book and number (titles of the 1592, 1603 and 1605 prints): one work each.
CYCLES = {"3": ((8, 9, 10), (15, 16, 17), (19, 20)), "4": ((6, 7),), "5": ((4, 5, 6, 7, 8),)}
# Aird's book says "Scotch, English, Irish and Foreign Airs": titles that name another country are left out.
FOREIGN = re.compile(
    r"\b(irish|english|french|german|italian|spanish|turkish|welsh|american|prussian|hessian|dutch|danish|swiss|polish|russian|savoyard"
    r"|allemande?|minuet|gavot\w*|cotillion|waltz|corelli|handel|haydn|o'\w+|dublin|london|paris|kerry|limerick)\b",
    re.IGNORECASE,
)


def tradition(root: Path | str, classes: Sequence[str] = CLASSES) -> list[Track]:
    """List the clips of the set, rendered under `root` on first use and verified on each later one.

    Args:
        root: Folder of the data set; each class has its own subfolder, and `manifest.csv` lists all that is there.
        classes: Names out of `ALL_CLASSES`; `chinese_song` and `german_song` rest on scores for non-commercial use.

    Raises:
        DataError: an unknown class, a missing package, another corpus, or a damaged clip.
    """
    return embedded.tracks(TRADITION, root, classes)


# --- the choice ----------------------------------------------------------------------------------------------------------------
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


def _from_scores(label: str) -> Iterator[Candidate]:
    for name, path, title, work in _scores(label):
        root = parse_musicxml(path)
        voices = [(element.text or "").strip() for element in root.iter("part-name")]
        if label != "bach_chorale" or voices == ["Soprano", "Alto", "Tenor", "Bass"]:
            notes, torn = read_musicxml(root)
            if torn <= TORN or label == "string_quartet":
                runs = melodies(notes, *MELODY[label]) if label in MELODY else set()
                ties = frozenset(runs | {(label, work)})
                yield Candidate(name, path.relative_to(corpus()).as_posix(), title, work, notes, ties)


def _scottish(tune: Tune) -> bool:
    return not FOREIGN.search(" ".join(value for key, value in tune.fields if key == "T"))


BOOKS: dict[str, tuple[str, tuple[str, ...], Callable[[Tune], bool]]] = {
    # O'Neill 1903: the dances, from double jigs to hornpipes
    "irish_dance": ("oneill", ("oneills1850/*.abc",), lambda tune: 701 <= tune.number <= 1780),
    "chinese_song": ("essen", ("essenFolksong/han?.abc",), lambda tune: "China" in tune.field("O")),
    "scottish_air": ("aird", ("airdsAirs/*.abc",), _scottish),
    "german_song": (
        "essen",
        ("essenFolksong/erk*.abc", "essenFolksong/boehme*.abc"),
        lambda tune: "Deutschland" in tune.field("O"),
    ),
}


def candidates(label: str) -> list[Candidate]:
    """List the candidates of a class in the order of their hash."""
    found = (c for _, c in folk_tunes(label, *BOOKS[label])) if label in BOOKS else _from_scores(label)
    return shuffled(label, found, ONSETS)


def choice() -> Shipped:
    """Choose the pieces of all classes: what `checksums/tradition.json` holds."""
    return listed(TRADITION, candidates, (ALL_CLASSES, (*CLASSES[:-1], "scottish_air"), CLASSES), set())
