"""Books of tunes in ABC notation: `Tune`s and their `Note`s.

Layer 2, beside `scores.py`, whose note lists it gives and whose limits it shares (no grace notes, no repeats). Written for the
folk collections in the music21 corpus, where a reader must bear old habits: `-` between different pitches (then it is a slur), a
single `!`, a backtick for a gap.

Reference: the ABC standard 2.1, https://abcnotation.com/wiki/abc:standard:v2.1
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from musicnet_eval.scores import STEPS, Note, ticks

SHARPS = "FCGDAEB"  # the order in which a key signature adds them; flats come in reverse
MODES = {"maj": 0, "ion": 0, "": 0, "mix": -1, "dor": -2, "m": -3, "min": -3, "aeo": -3, "phr": -4, "loc": -5, "lyd": 1}  # fifths
FIELD = re.compile(r"([A-Za-z]):(?![|:])\s*(.*)")
TOKEN = re.compile(
    r"""(?: "[^"]*" | ![A-Za-z0-9.()<>+]*! | \+[A-Za-z0-9]+\+ | \{[^}]*\} )  # text, decorations, grace notes: no time
    | \[(?P<field>[A-Za-z]):(?P<value>[^\]]*)\]
    | \[(?P<chord>[\^_=A-Ga-g][^\]|]*)\](?P<times>\d*/*\d*)
    | (?P<bar>[|:]+)
    | \((?P<tuplet>\d)(?::(?P<into>\d?))?(?::(?P<count>\d?))?
    | (?P<accidental>\^\^|\^|__|_|=)?(?P<note>[A-Ga-gzx])(?P<octave>[,']*)(?P<length>\d*/*\d*)
    | (?P<broken>>+|<+)
    | (?P<tie>-)
    | .""",
    re.VERBOSE,
)


class Tune(NamedTuple):
    """One tune of an ABC book: its number `X:`, its header fields in order, and its music."""

    number: int
    fields: tuple[tuple[str, str], ...]
    body: tuple[str, ...]

    def field(self, key: str) -> str:
        """Give the first value of a header field, or an empty string."""
        return next((value for name, value in self.fields if name == key), "")


def read_book(path: Path) -> dict[int, Tune]:
    """Split an ABC file into its tunes, by number; of a number used twice the first is kept."""
    tunes: dict[int, Tune] = {}
    for text in re.split(r"(?m)^(?=X:)", path.read_text(encoding="utf-8", errors="replace"))[1:]:
        lines = [line.split("%")[0].strip() for line in text.splitlines()]
        key = next((k for k, line in enumerate(lines) if line.startswith("K:")), len(lines) - 1)
        fields = tuple((m[1], m[2]) for line in lines[: key + 1] if (m := FIELD.match(line)))
        number = int(re.sub(r"\D", "", fields[0][1]) or 0)
        tunes.setdefault(number, Tune(number, fields, tuple(line for line in lines[key + 1 :] if line)))
    return tunes


def key_signature(key: str) -> dict[str, int]:
    """Give the accidental of each altered step of an ABC key.

    >>> key_signature("A Dorian"), key_signature("F")
    ({'F': 1}, {'B': -1})
    """
    match = re.match(r"([A-G])([#b]?)\s*([A-Za-z]*)", key)
    tonic, sign, mode = match.groups() if match else ("D" if key.startswith("H") else "C", "", "")  # Hp, highland pipes: 2 sharps
    fifths = SHARPS.index(tonic) - 1 + {"#": 7, "b": -7, "": 0}[sign] + MODES.get(mode[:3].lower(), 0)
    return dict.fromkeys(SHARPS[:fifths], 1) if fifths >= 0 else dict.fromkeys(SHARPS[fifths:], -1)


def _length(text: str) -> Fraction:
    top, slashes, bottom = re.sub(r"/.*", "", text), text.count("/"), text.rpartition("/")[2]
    return Fraction(int(top or 1), int(bottom) if slashes and bottom else 2**slashes)


@dataclass
class _Reader:
    """The state of an ABC tune while its tokens go by; times in quarters."""

    compound: bool
    unit: Fraction
    key: dict[str, int] = field(default_factory=dict)
    altered: dict[str, int] = field(default_factory=dict)  # accidentals since the last bar line
    notes: list[tuple[Fraction, Fraction, int]] = field(default_factory=list)
    last: list[int] = field(default_factory=list)  # indices of the notes that sounded last, which a tie or `>` prolongs
    written: tuple[str, int] = ("", 0)  # the last written note and its pitch
    now: Fraction = Fraction(0)
    span: Fraction = Fraction(0)  # of the last note or rest
    factor: Fraction = Fraction(1)  # that broken rhythm puts on the next one
    tuplet: Fraction = Fraction(1)
    left: int = 0  # notes left in the tuplet
    tie: bool = False

    def header(self, name: str, value: str) -> None:
        """Obey a field that changes how notes are read."""
        if name == "K":
            self.key, self.altered = key_signature(value), {}
        elif name == "L" and (match := re.match(r"(\d+)/(\d+)", value)):
            self.unit = Fraction(4 * int(match[1]), int(match[2]))

    def pitch(self, token: re.Match[str]) -> int:
        """Give the MIDI pitch of a note token; its accidental holds to the bar line, in every octave."""
        letter, step = token["note"] + token["octave"], token["note"].upper()
        if token["accidental"]:
            self.altered[step] = token["accidental"].count("^") - token["accidental"].count("_")
        elif self.tie and letter == self.written[0]:  # a tie carries its accidental over the bar line
            return self.written[1]
        octave = 5 + token["note"].islower() + token["octave"].count("'") - token["octave"].count(",")
        self.written = (letter, 12 * octave + STEPS[step] + self.altered.get(step, self.key.get(step, 0)))
        return self.written[1]

    def place(self, pitches: list[int], length: Fraction) -> None:
        """Let pitches sound (none: a rest) and move on."""
        self.span = length * self.unit * self.factor * (self.tuplet if self.left else 1)
        held = {self.notes[i][2]: i for i in self.last} if self.tie else {}
        self.last, self.left, self.factor, self.tie = [], max(self.left - 1, 0), Fraction(1), False
        for pitch in pitches:
            if pitch not in held:
                self.notes.append((self.now, Fraction(0), pitch))
            self.last.append(held.get(pitch, len(self.notes) - 1))
        self.prolong(self.span)

    def prolong(self, time: Fraction) -> None:
        """Let the last notes last longer."""
        for i in self.last:
            self.notes[i] = (self.notes[i][0], self.notes[i][1] + time, self.notes[i][2])
        self.now += time

    def take(self, token: re.Match[str]) -> None:
        """Obey one token of the music."""
        if token["note"]:
            self.place([self.pitch(token)] if token["note"] not in "xz" else [], _length(token["length"]))
        elif token["chord"]:
            inner = [m for m in TOKEN.finditer(token["chord"]) if m["note"]]
            self.place(
                [self.pitch(m) for m in inner if m["note"] not in "xz"], _length(inner[0]["length"]) * _length(token["times"])
            )
        elif token["bar"]:
            self.altered = {}
        elif token["broken"]:  # `>` lengthens the last note and shortens the next one; `<` the reverse
            less = Fraction(1, 2 ** len(token["broken"]))
            mine, self.factor = (2 - less, less) if token["broken"][0] == ">" else (less, 2 - less)
            self.prolong(self.span * (mine - 1))
        elif token["field"]:
            self.header(token["field"], token["value"])
        elif token["tuplet"]:
            p = int(token["tuplet"])
            into = int(token["into"] or {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}.get(p, 3 if self.compound else 2))
            self.tuplet, self.left = Fraction(into, p), int(token["count"] or p)
        self.tie = self.tie or bool(token["tie"])


def read_abc(tune: Tune) -> list[Note]:
    """Read the notes of a tune as printed, each passage once."""
    metre = re.match(r"(\d+)/(\d+)", tune.field("M"))
    short = metre is not None and 4 * int(metre[1]) < 3 * int(metre[2])  # below 3/4 the unit is a sixteenth, unless L: says
    reader = _Reader(compound=metre is not None and metre[1] in ("6", "9", "12"), unit=Fraction(1, 4 if short else 2))
    lines = [(match[1], match[2]) if (match := FIELD.match(line)) else ("", line) for line in tune.body]
    for name, value in [*tune.fields, *lines]:
        if name:
            reader.header(name, value)
        else:
            for token in TOKEN.finditer(value):
                reader.take(token)
    return sorted({ticks(*note) for note in reader.notes})
