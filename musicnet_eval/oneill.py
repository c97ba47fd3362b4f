"""The embedded sets of O'Neill's *Music of Ireland* (1903): `tunetype`, its kinds of tunes, and `expression`, its printed marks.

Layer 6, built as `tradition` is. All tunes have one voice; a piece is one clip of 12 s.

`tunetype` asks for the rhythm: air, double jig, slip jig, reel, hornpipe, by the book's own sections. Onset rates are dealt alike
to all, so that tempo tells nothing. *Ryan's Mammoth Collection* (1883) can be held out to test on; its tunes that also stand in
O'Neill, by title or by a run of ten intervals, are left out.

`expression` asks for the mark that the editor printed above an air: an instruction to the player, no listener's rating, and no
emotion. Rates are as printed: beats are dealt alike to all, so that a mark keeps its short or long notes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from musicnet_eval import embedded
from musicnet_eval.contracts import Track
from musicnet_eval.pieces import Candidate, Embedded, Shipped, folk_tunes, listed, plain, shuffled
from musicnet_eval.scores import TICKS, Note
from musicnet_eval.tunes import Tune

SECTIONS = {"air": (1, 625), "double_jig": (701, 1115), "slip_jig": (1116, 1175), "reel": (1176, 1555), "hornpipe": (1556, 1780)}
RHYTHMS = {"jig": "double_jig", "slip jig": "slip_jig", "slipjig": "slip_jig", "reel": "reel", "hornpipe": "hornpipe"}  # Ryan's
METRES = {"double_jig": ("6/8",), "slip_jig": ("9/8",)}  # the few of another metre under these names are left out
MARKS = {
    "lively": r"lively|(with )?spirit|(with )?animat|gaily|cheerful|gheerful|playful|brisk|airily",
    "moderate": r"moderat|moderage",
    "slow": r"(very |rather )?slow",
    "tender": r"tender|plaintive|mournful|with (feeling|expression)",
}
TUNETYPE = Embedded("tunetype", tuple(SECTIONS), pieces=50, clips=1, seconds=12)
RYAN = Embedded("tunetype_ryan", ("double_jig", "slip_jig", "reel", "hornpipe"), pieces=50, clips=1, seconds=12)
EXPRESSION = Embedded("expression", tuple(MARKS), pieces=80, clips=1, seconds=12, rate=(1.2, 1.8))  # beats a second
ONSETS = 56  # 12 s × 4.4 onsets a second, and a little
BEATS = 24  # 12 s × 1.8 beats a second, and a little
ONEILL = ("oneill", ("oneills1850/*.abc",))
RYANS = ("ryan", ("ryansMammoth/*.abc",))
AIRS = 700  # the last of the airs and of Carolan's pieces, the numbers that carry marks


def tunetype(root: Path | str, classes: Sequence[str] = TUNETYPE.classes, held_out: bool = False) -> list[Track]:
    """List the clips of O'Neill's tunes, rendered under `root` on first use and verified on each later one.

    Args:
        root: Folder of the data set.
        classes: Names out of `TUNETYPE.classes`.
        held_out: Give the tracks splits: O'Neill's tunes train, those of Ryan's collection test, which has no airs.

    Raises:
        DataError: an unknown class, a missing package, another corpus, or a damaged clip.
    """
    tracks = embedded.tracks(TUNETYPE, root, classes)
    if not held_out:
        return tracks
    others = embedded.tracks(RYAN, Path(root) / "ryan", [label for label in classes if label in RYAN.classes])
    return [replace(t, split="train") for t in tracks] + [replace(t, id=f"ryan/{t.id}", split="test") for t in others]


def expression(root: Path | str, classes: Sequence[str] = EXPRESSION.classes) -> list[Track]:
    """List the clips of airs by the expression mark that is printed above them: an editor's instruction, never an emotion.

    Args:
        root: Folder of the data set; rendered on first use and verified on each later one.
        classes: Names out of `EXPRESSION.classes`.

    Raises:
        DataError: an unknown class, a missing package, another corpus, or a damaged clip.
    """
    return embedded.tracks(EXPRESSION, root, classes)


# --- the choice ----------------------------------------------------------------------------------------------------------------
def mark(tune: Tune) -> str | None:
    """Give the class of a tune's printed mark, which its first word decides, or None where it has none of the four."""
    notes = re.sub(r"[\"“”]", "\n", "\n".join(value for key, value in tune.fields if key == "N"))
    for line in (line.strip().lower() for line in notes.splitlines()):
        for label, pattern in MARKS.items():
            if re.match(pattern, line):
                return label
    return None


def _kind(tune: Tune, named: str | None) -> str | None:
    """Confirm the kind that a tune is said to be by its metre."""
    return named if tune.field("M").strip() in METRES.get(named or "", (tune.field("M").strip(),)) else None


def _in_oneill(tune: Tune) -> str | None:
    return _kind(tune, next((label for label, (first, last) in SECTIONS.items() if first <= tune.number <= last), None))


def _in_ryan(tune: Tune) -> str | None:
    return _kind(tune, RHYTHMS.get(tune.field("R").strip().lower()))


def _tied(candidate: Candidate) -> Candidate:
    """Tie tunes whose titles differ only in the kind of tune: "Acacia -- Reel" and "The Acacia"."""
    title = " ".join(word for word in plain(candidate.title).split() if word not in ("slip", "double", "jig", "reel", "hornpipe"))
    return candidate._replace(ties=candidate.ties | {("title", title)} if title else candidate.ties)


def _density(tune: Tune, notes: list[Note]) -> float:
    """Count the distinct onsets a beat: a dotted quarter in compound time, else a quarter."""
    quarters = (max(n.onset + n.duration for n in notes) - min(n.onset for n in notes)) / TICKS
    beat = 1.5 if tune.field("M").strip() in ("3/8", "6/8", "9/8", "12/8") else 1.0
    return round(len({n.onset for n in notes}) * beat / quarters, 4)


def _once(found: list[Candidate]) -> list[Candidate]:
    """Keep the first transcription of each number of a book (some come twice), and of tunes with the same notes."""
    first: dict[object, str] = {}
    for candidate in found:
        for key in (candidate.work, tuple(candidate.notes)):
            first.setdefault(key, candidate.name)
    return [c for c in found if first[c.work] == first[tuple(c.notes)] == c.name]


def tunes(label: str) -> list[Candidate]:
    """List the candidates of a class of `tunetype` in O'Neill, in the order of their hash."""
    found = folk_tunes(label, *ONEILL, lambda tune: _in_oneill(tune) == label)
    return _once(shuffled(label, (_tied(candidate) for _, candidate in found), ONSETS))


def others(label: str) -> list[Candidate]:
    """List the candidates of a class in Ryan's collection, in the order of their hash."""
    found = folk_tunes(label, *RYANS, lambda tune: _in_ryan(tune) == label)
    return _once(shuffled(label, (_tied(candidate) for _, candidate in found), ONSETS))


def airs(label: str) -> list[Candidate]:
    """List the candidates of a class of `expression`, in the order of their hash."""
    found = folk_tunes(label, *ONEILL, lambda tune: tune.number <= AIRS and mark(tune) == label)
    counted = (candidate._replace(density=_density(tune, candidate.notes)) for tune, candidate in found)
    return _once(shuffled(label, (c for c in counted if len(c.notes) >= BEATS * (c.density or 1)), 0))


def choices() -> dict[str, Shipped]:
    """Choose the pieces of all sets: what their files in `checksums/` hold."""
    taken: set[object] = set()
    trained = listed(TUNETYPE, tunes, (TUNETYPE.classes,), taken)
    known = frozenset(taken)
    return {
        "tunetype": trained,
        "tunetype_ryan": listed(RYAN, lambda label: [c for c in others(label) if not c.ties & known], (), set()),
        "expression": listed(EXPRESSION, airs, (EXPRESSION.classes,), set()),
    }
