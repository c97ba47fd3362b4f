"""Scores of the music21 corpus as plain note lists: where they lie, and MusicXML in, `Note`s out.

Layer 1, before the audio: `rendering.py` renders what is read here and in `tunes.py` (ABC). The music21 wheel serves as data and
is never imported.

Why own readers and not music21's parser: they take milliseconds a piece, where it takes 0.1 s (a folk tune) to 9 s (a quartet
movement) and imports matplotlib; and many Monteverdi and quartet files hold bars that are too long or too short in one part only
(whole-bar rests of a wrong length, say), which music21 adds up as written, so that voices drift apart. Here all parts enter a bar
together, and it lasts as long as most of its sounding parts say. Elsewhere both readers agree note for note (tested).

Read are pitch, onset and duration, with ties, tuplets, chords, accidentals, key signatures and octave transpositions. Left out,
since no excerpt needs them, are grace notes, ornaments, dynamics, tempo, and repeats (each passage comes once, as printed).

Reference: MusicXML 4.0, https://www.w3.org/2021/06/musicxml40/
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import zipfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from musicnet_eval.errors import DataError

TICKS = 10080  # a quarter note; 2⁵·3²·5·7, so that dotted and tuplet values stay whole
STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}  # semitones above C


class Note(NamedTuple):
    """A sounding note: onset and duration in ticks of 1/10080 quarter, MIDI pitch (60 = middle C), and its part from the top."""

    onset: int
    duration: int
    pitch: int
    part: int


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
    """Locate the folder of scores inside the music21 wheel, without importing it.

    Raises:
        DataError: music21 is not installed, or came without its corpus.
    """
    return package_file("music21", "corpus")


def fingerprint(notes: Iterable[Note]) -> str:
    """Give the first 16 hex digits of the SHA-256 of a note list, the same on every machine.

    >>> fingerprint([Note(0, 10080, 60, 0)])
    '3b64b034d9470ffb'
    """
    text = ";".join(",".join(map(str, note)) for note in notes)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- MusicXML ------------------------------------------------------------------------------------------------------------------
class _Voice:
    """What a part of a MusicXML score carries from bar to bar."""

    def __init__(self, part: int) -> None:
        self.part, self.divisions, self.transpose, self.nominal = part, 1, 0, Fraction(4)
        self.notes: list[tuple[Fraction, Fraction, int]] = []
        self.tied: dict[int, int] = {}  # pitch → index of the note that a tie prolongs

    def attributes(self, element: Element) -> None:
        """Take divisions, metre and transposition from an `attributes` element."""
        self.divisions = int(element.findtext("divisions", str(self.divisions)))
        if (shift := element.find("transpose")) is not None:
            self.transpose = int(shift.findtext("chromatic", "0")) + 12 * int(shift.findtext("octave-change", "0"))
        if (beats := element.findtext("time/beats")) and (unit := element.findtext("time/beat-type")):
            self.nominal = Fraction(4 * sum(int(b) for b in beats.split("+")), int(unit))

    def add(self, element: Element, onset: Fraction, duration: Fraction) -> None:
        """Append a pitched note, or prolong the one that is tied to it (some files mark only where a tie starts)."""
        step, octave = element.findtext("pitch/step", ""), int(element.findtext("pitch/octave", ""))
        pitch = 12 * (octave + 1) + STEPS[step] + round(float(element.findtext("pitch/alter", "0"))) + self.transpose
        index = self.tied.pop(pitch, None)
        if index is not None and sum(self.notes[index][:2]) == onset:
            onset = self.notes[index][0]
            self.notes[index] = (onset, self.notes[index][1] + duration, pitch)
        else:
            index = len(self.notes)
            self.notes.append((onset, duration, pitch))
        if any(tie.get("type") == "start" for tie in element.findall("tie")):
            self.tied[pitch] = index

    def bar(self, measure: Element, start: Fraction) -> Fraction | None:
        """Read one bar from `start` (quarters); give its length, or None where nothing sounds."""
        now = end = previous = Fraction(0)
        sounds = False
        for element in measure:
            if element.tag == "attributes":
                self.attributes(element)
            duration = Fraction(int(float(element.findtext("duration", "0"))), self.divisions)
            if element.tag == "backup":
                now -= duration
            elif element.tag == "forward" or (element.tag == "note" and duration):  # grace notes have no duration
                onset = previous if element.find("chord") is not None else now
                if element.find("pitch") is not None and element.find("cue") is None:
                    self.add(element, start + onset, duration)
                    sounds = True
                previous, now = onset, onset + duration
            end = max(end, now)
        return end if sounds else None


def parse_musicxml(path: Path) -> Element:
    """Parse a MusicXML file, compressed (.mxl) or not, down to its `score-partwise` element."""
    if path.suffix != ".mxl":
        return ElementTree.parse(path).getroot()
    with zipfile.ZipFile(path) as archive:
        container = ElementTree.fromstring(archive.read("META-INF/container.xml"))
        first = next(element for element in container.iter() if element.tag.endswith("rootfile"))
        return ElementTree.fromstring(archive.read(first.attrib["full-path"]))


def read_musicxml(root: Element) -> tuple[list[Note], float]:
    """Read all parts of a score bar by bar; give the notes, and the share of bars on whose length its sounding parts disagree.

    A bar lasts as most of its sounding parts say (of equally many the longer length), and as the metre says if all rest.
    """
    parts = root.findall("part")
    voices = [_Voice(k) for k in range(len(parts))]
    start, bars, torn = Fraction(0), 0, 0
    for measures in itertools.zip_longest(*(part.findall("measure") for part in parts)):
        lengths = [voice.bar(m, start) for voice, m in zip(voices, measures, strict=True) if m is not None]
        sounding = {length for length in lengths if length is not None}
        bars, torn = bars + 1, torn + (len(sounding) > 1)
        start += max(sounding, key=lambda length: (lengths.count(length), length), default=voices[0].nominal)
    notes = {ticks(onset, duration, pitch, v.part) for v in voices for onset, duration, pitch in v.notes}
    return sorted(notes), torn / max(bars, 1)


def ticks(onset: Fraction, duration: Fraction, pitch: int, part: int = 0) -> Note:
    """Make a note of times in quarters."""
    begin, end = round(onset * TICKS), round((onset + duration) * TICKS)
    return Note(begin, max(end - begin, 1), pitch, part)
