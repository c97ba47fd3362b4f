"""Scores of the music21 corpus as plain note lists: where they lie, MusicXML and ABC in, `Note`s out.

Layer 2, before the audio: `tradition.py` renders what is read here. The music21 wheel serves as data and is never imported.

Why own readers and not music21's parser: they read a piece in milliseconds, where music21 needs 0.07 s (a folk tune) to 3 s (a
quartet movement) and imports matplotlib; and about 20 of the 49 Monteverdi files carry whole-bar rests of a wrong length, which
music21 adds up as written, so that its voices drift apart. Here each bar lasts as long as its sounding voices say (`read_musicxml`).
The tests compare both readers note for note.

What is read: pitch, onset and duration of every note, with ties, dots, tuplets, chords, accidentals, key signatures and octave
transpositions. What is left out, since no excerpt needs it: grace notes, ornaments, dynamics, tempo, and repeats (each passage
comes once, as printed).

References: MusicXML 4.0, https://www.w3.org/2021/06/musicxml40/; the ABC standard 2.1, https://abcnotation.com/wiki/abc:standard:v2.1
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from musicnet_eval.errors import DataError

TICKS = 10080  # a quarter note; 2⁵·3²·5·7, so that dotted and tuplet values stay whole
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # semitones above C
SHARPS = "FCGDAEB"  # the order in which a key signature adds them; flats come in reverse
MODES = {"maj": 0, "ion": 0, "": 0, "mix": -1, "dor": -2, "m": -3, "min": -3, "aeo": -3, "phr": -4, "loc": -5, "lyd": 1}  # fifths


class Note(NamedTuple):
    """A sounding note: onset and duration in ticks of 1/10080 quarter, MIDI pitch (60 = middle C), and its part from the top."""

    onset: int
    duration: int
    pitch: int
    part: int


class Tune(NamedTuple):
    """One tune of an ABC book: its number `X:`, its header fields in order, and its music."""

    number: int
    fields: tuple[tuple[str, str], ...]
    body: tuple[str, ...]

    def field(self, key: str) -> str:
        """Give the first value of a header field, or an empty string."""
        return next((value for name, value in self.fields if name == key), "")


def package_file(package: str, name: str) -> Path:
    """Locate a file or folder of an installed package without importing it.

    Raises:
        DataError: the package is not installed, or its wheel lacks the file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DataError(
            f"Package {package!r} is not installed; the embedded data set needs it. Run: pip install 'musicnet-eval[demo]'"
        )
    path = Path(spec.origin).with_name(name)
    if not path.exists():
        raise DataError(f"{path} is missing from package {package!r}. Run: pip install --force-reinstall 'musicnet-eval[demo]'")
    return path


def corpus() -> Path:
    """Locate the folder of scores inside the music21 wheel."""
    return package_file("music21", "corpus")


def fingerprint(notes: Iterable[Note]) -> str:
    """Give the first 16 hex digits of the SHA-256 of a note list, the same on every machine.

    >>> fingerprint([Note(0, 10080, 60, 0)])
    'ce8cb2f1b1ac0b86'
    """
    text = ";".join(",".join(map(str, note)) for note in notes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(source: str) -> list[Note]:
    """Read the score at `PATH.mxl`, `PATH.xml` or `BOOK.abc#NUMBER`, a path inside the corpus."""
    name, _, number = source.partition("#")
    path = corpus() / name
    return read_abc(read_book(path)[int(number)]) if number else read_musicxml(path)


# --- MusicXML -----------------------------------------------------------------------------------------------------------------
class _Voice:
    """What a part of a MusicXML score carries from bar to bar."""

    def __init__(self, part: int) -> None:
        self.part, self.divisions, self.transpose, self.nominal = part, 1, 0, Fraction(4)
        self.notes: list[tuple[Fraction, Fraction, int]] = []
        self.tied: dict[int, int] = {}  # pitch → index of the note that a tie may prolong

    def attributes(self, element: ElementTree.Element) -> None:
        """Take divisions, metre and transposition from an `attributes` element."""
        self.divisions = int(element.findtext("divisions", str(self.divisions)))
        if (shift := element.find("transpose")) is not None:
            self.transpose = int(shift.findtext("chromatic", "0")) + 12 * int(shift.findtext("octave-change", "0"))
        if (beats := element.findtext("time/beats")) and (unit := element.findtext("time/beat-type")):
            self.nominal = Fraction(4 * sum(int(b) for b in beats.split("+")), int(unit))

    def add(self, element: ElementTree.Element, onset: Fraction, duration: Fraction) -> None:
        """Append a pitched note, or prolong the one that is tied to it."""
        step, octave = element.findtext("pitch/step", "C"), int(element.findtext("pitch/octave", "4"))
        pitch = 12 * (octave + 1) + STEPS[step] + round(float(element.findtext("pitch/alter", "0"))) + self.transpose
        ties = {tie.get("type") for tie in element.findall("tie")}
        index = self.tied.pop(pitch, None)
        if "stop" in ties and index is not None and sum(self.notes[index][:2]) == onset:
            self.notes[index] = (self.notes[index][0], self.notes[index][1] + duration, pitch)
        else:
            index = len(self.notes)
            self.notes.append((onset, duration, pitch))
        if "start" in ties:
            self.tied[pitch] = index

    def bar(self, measure: ElementTree.Element, start: Fraction) -> Fraction | None:
        """Read one bar from `start` (quarters); give its length, or None where nothing sounds."""
        now = end = previous = Fraction(0)
        sounds = False
        for element in measure:
            if element.tag == "attributes":
                self.attributes(element)
            duration = Fraction(int(float(element.findtext("duration", "0"))), self.divisions)
            if element.tag == "backup":
                now -= duration
            elif element.tag == "forward" or (element.tag == "note" and duration):
                onset = previous if element.find("chord") is not None else now
                if element.find("pitch") is not None and element.find("cue") is None:
                    self.add(element, start + onset, duration)
                    sounds = True
                previous, now = onset, onset + duration
            end = max(end, now)
        return end if sounds else None


def parse_musicxml(path: Path) -> ElementTree.Element:
    """Parse a MusicXML file, compressed (.mxl) or not, down to its `score-partwise` element."""
    if path.suffix != ".mxl":
        return ElementTree.parse(path).getroot()
    with zipfile.ZipFile(path) as archive:
        container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        first = next(element for element in container.iter() if element.tag.endswith("rootfile"))
        return ElementTree.fromstring(archive.read(first.attrib["full-path"]))


def read_bars(root: ElementTree.Element) -> tuple[list[Note], float]:
    """Read all parts bar by bar; give the notes, and the share of bars on whose length the sounding parts disagree."""
    parts = root.findall("part")
    voices = [_Voice(k) for k in range(len(parts))]
    start, bars, torn = Fraction(0), 0, 0
    for measures in itertools.zip_longest(*(part.findall("measure") for part in parts)):
        lengths = [voice.bar(m, start) for voice, m in zip(voices, measures, strict=True) if m is not None]
        sounding = {length for length in lengths if length is not None}
        bars, torn = bars + 1, torn + (len(sounding) > 1)
        start += max(sounding, default=voices[0].nominal)
    notes = {_ticks(onset, duration, pitch, v.part) for v in voices for onset, duration, pitch in v.notes}
    return sorted(notes), torn / max(bars, 1)


def read_musicxml(path: Path) -> list[Note]:
    """Read a MusicXML score; all parts enter a bar together, and a bar lasts as long as its longest sounding part.

    A bar in which every part rests takes its length from the metre.
    """
    return read_bars(parse_musicxml(path))[0]


def _ticks(onset: Fraction, duration: Fraction, pitch: int, part: int = 0) -> Note:
    begin, end = round(onset * TICKS), round((onset + duration) * TICKS)
    return Note(begin, max(end - begin, 1), pitch, part)


# --- ABC ----------------------------------------------------------------------------------------------------------------------
FIELD = re.compile(r"([A-Za-z]):(?![|:])\s*(.*)")
TOKEN = re.compile(
    r"""(?:"[^"]*" | ![A-Za-z0-9.()<>+]*! | \+[A-Za-z0-9]+\+ | \{[^}]*\})                 # text, decorations, grace notes: no time
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

    >>> key_signature("A Dorian")
    {'F': 1}
    """
    match = re.match(r"([A-G])([#b]?)\s*([A-Za-z]*)", key)
    if match is None or key.startswith("Hp"):  # highland pipes: two sharps
        return {"F": 1, "C": 1} if key.startswith("H") else {}
    tonic, sign, mode = match.groups()
    fifths = SHARPS.index(tonic) - 1 + 7 * ({"#": 1, "b": -1}.get(sign, 0)) + MODES.get(mode[:3].lower(), 0)
    return dict.fromkeys(SHARPS[:fifths], 1) if fifths > 0 else dict.fromkeys(SHARPS[::-1][:-fifths], -1) if fifths else {}


def _length(text: str) -> Fraction:
    top, slashes, bottom = re.fullmatch(r"(\d*)(/*)(\d*)", text).groups()  # type: ignore[union-attr]
    return Fraction(int(top or 1), int(bottom) if bottom else 2 ** len(slashes))


@dataclass
class _Reader:
    """The state of an ABC tune while its tokens go by; times in quarters."""

    compound: bool
    unit: Fraction
    key: dict[str, int] = field(default_factory=dict)
    altered: dict[str, int] = field(default_factory=dict)  # accidentals since the last bar line
    notes: list[tuple[Fraction, Fraction, int]] = field(default_factory=list)
    last: list[int] = field(default_factory=list)  # indices of the notes that sounded last: what a tie or a dot prolongs
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
        pitch = 12 * octave + STEPS[step] + self.altered.get(step, self.key.get(step, 0))
        self.written = (letter, pitch)
        return pitch

    def place(self, pitches: list[int], length: Fraction) -> None:
        """Let pitches sound (none: a rest) and move on."""
        self.span = length * self.unit * self.factor * (self.tuplet if self.left else 1)
        held = {self.notes[i][2]: i for i in self.last} if self.tie else {}
        self.last, self.left, self.factor, self.tie = [], max(self.left - 1, 0), Fraction(1), False
        for pitch in pitches:
            if pitch in held:
                onset, duration, _ = self.notes[held[pitch]]
                self.notes[held[pitch]] = (onset, duration + self.span, pitch)
            else:
                self.notes.append((self.now, self.span, pitch))
            self.last.append(held.get(pitch, len(self.notes) - 1))
        self.now += self.span

    def broken(self, signs: str) -> None:
        """Lengthen the last note and shorten the next (`>`), or the reverse (`<`)."""
        less = Fraction(1, 2 ** len(signs))
        mine, self.factor = (2 - less, less) if signs[0] == ">" else (less, 2 - less)
        change = self.span * (mine - 1)
        for i in self.last:
            onset, duration, pitch = self.notes[i]
            self.notes[i] = (onset, duration + change, pitch)
        self.now, self.span = self.now + change, self.span + change

    def take(self, token: re.Match[str]) -> None:
        """Obey one token of the music."""
        if token["note"]:
            self.place([self.pitch(token)] if token["note"] in "ABCDEFGabcdefg" else [], _length(token["length"]))
        elif token["chord"]:
            inner = [m for m in TOKEN.finditer(token["chord"]) if m["note"] and m["note"] not in "zx"]
            self.place([self.pitch(m) for m in inner], _length(inner[0]["length"]) * _length(token["times"]))
        elif token["bar"]:
            self.altered = {}
        elif token["broken"]:
            self.broken(token["broken"])
        elif token["tie"]:
            self.tie = True
        elif token["field"]:
            self.header(token["field"], token["value"])
        elif token["tuplet"]:
            p = int(token["tuplet"])
            into = int(token["into"] or {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}.get(p, 3 if self.compound else 2))
            self.tuplet, self.left = Fraction(into, p), int(token["count"] or p)


def read_abc(tune: Tune) -> list[Note]:
    """Read the notes of a tune as printed, each passage once."""
    metre = re.match(r"(\d+)/(\d+)", tune.field("M"))
    beats = Fraction(int(metre[1]), int(metre[2])) if metre else Fraction(1)
    reader = _Reader(
        compound=metre is not None and metre[1] in ("6", "9", "12"), unit=Fraction(1, 4 if beats < Fraction(3, 4) else 2)
    )
    for name, value in tune.fields:
        reader.header(name, value)
    for line in tune.body:
        if match := FIELD.match(line):
            reader.header(match[1], match[2])
        else:
            for token in TOKEN.finditer(line):
                reader.take(token)
    return sorted({_ticks(*note) for note in reader.notes})
