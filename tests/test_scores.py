"""Scores and tunes: note lists against music21's own parser, known pieces, hand-written notation, the rules of counterpoint."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import pytest

from musicnet_eval.errors import DataError
from musicnet_eval.rendering import read
from musicnet_eval.scores import TICKS, Note, corpus, fingerprint, package_file, parse_musicxml, read_musicxml
from musicnet_eval.tunes import key_signature, read_abc, read_book


def quarters(notes: Iterable[Note]) -> list[tuple[float, float, int]]:
    return [(n.onset / TICKS, n.duration / TICKS, n.pitch) for n in notes]


def music21_notes(source: str) -> set[tuple[int, int, int, int]]:
    """Read a score with music21: (onset, duration, pitch, part) in ticks, ties joined, grace notes left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from music21 import abcFormat, converter

        name, _, number = source.partition("#")
        if number:
            book = abcFormat.ABCFile()
            book.open(str(corpus() / name))
            score = abcFormat.translate.abcToStreamScore(book.read(number=int(number)))
            book.close()
        else:
            score = converter.parseFile(corpus() / name, forceSource=True, storePickle=False).toSoundingPitch()
        return {
            (round(Fraction(n.offset) * TICKS), round(Fraction(n.duration.quarterLength) * TICKS), pitch.midi, k)
            for k, part in enumerate(score.parts)
            for n in part.stripTies().flatten().notes
            if n.duration.quarterLength and not n.duration.isGrace  # none: a chord symbol above the staff
            for pitch in n.pitches
        }


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "bach/bwv140.7.mxl",
        "bach/bwv294.mxl",
        "bach/bwv40.8.mxl",
        "trecento/PMFC_12_24-Benedicamus.xml",
        "trecento/PMFC_13_12-Gloria.xml",
        "trecento/PMFC_06-Jacopo-02-Con-Gran-Furor.xml",
        "monteverdi/madrigal.3.1.mxl",
        "monteverdi/madrigal.3.3.mxl",
        "haydn/opus1no1/movement1.mxl",
        "mozart/k80/movement1.mxl",
        "mozart/k156/movement1.mxl",
        "oneills1850/0732-0758_mh.abc#744",
        "oneills1850/1376-1475.abc#1424",
        "essenFolksong/han1.abc#122",
        "essenFolksong/han2.abc#612",
        "essenFolksong/erk30.abc#312",
        "airdsAirs/book1.abc#131",
        "airdsAirs/book6.abc#1032",
    ],
)
def test_notes_are_those_of_music21(source: str) -> None:
    ours, theirs = read(source), music21_notes(source)
    assert len(ours) == len(theirs)
    close = {(p, k): [] for _, _, p, k in theirs}
    for onset, duration, pitch, part in theirs:
        close[pitch, part].append((onset, duration))
    for note in ours:  # tuplets in files of coarse divisions round to a tick or two
        assert any(abs(note.onset - t) <= 2 and abs(note.duration - d) <= 2 for t, d in close[note.pitch, note.part]), note


def consonant(notes: Iterable[tuple[int, int, int, int]]) -> float:
    """Give the share of time, over pairs of sounding parts, in unisons, thirds, fourths, fifths, sixths and octaves."""
    notes = sorted(notes)
    good = total = 0
    for i, (onset, duration, pitch, part) in enumerate(notes):
        for t, d, p, k in notes[i + 1 :]:
            if t >= onset + duration:
                break
            if k != part:
                overlap = min(onset + duration, t + d) - t
                total += overlap
                good += overlap * (abs(p - pitch) % 12 in (0, 3, 4, 5, 7, 8, 9))
    return good / total


@pytest.mark.slow
@pytest.mark.parametrize("number", ["4.3", "3.2"])
def test_voices_stay_in_step_where_rests_are_wrong(number: str) -> None:
    source = f"monteverdi/madrigal.{number}.mxl"
    assert consonant(read(source)) > 0.92 > 0.85 > consonant(music21_notes(source))


def test_known_chorale() -> None:
    notes, torn = read_musicxml(parse_musicxml(corpus() / "bach/bwv66.6.mxl"))
    soprano = quarters(n for n in notes if n.part == 0)
    # "Christ ist erstanden", F sharp minor: eighths C♯5 B4 as upbeat, then A4 B4 C♯5 E5 in quarters
    assert soprano[:6] == [(0, 0.5, 73), (0.5, 0.5, 71), (1, 1, 69), (2, 1, 71), (3, 1, 73), (4, 1, 76)]
    assert {n.part for n in notes} == {0, 1, 2, 3}
    assert torn == 0


def score(*parts: str) -> ElementTree.Element:
    return ElementTree.fromstring("<score-partwise>" + "".join(f"<part>{part}</part>" for part in parts) + "</score-partwise>")


def note(step: str, octave: int, duration: int, before: str = "", after: str = "") -> str:
    pitch = f"<pitch><step>{step}</step><octave>{octave}</octave></pitch>"
    return f"<note>{before}{pitch}<duration>{duration}</duration>{after}</note>"


START = "<attributes><divisions>2</divisions><time><beats>4</beats><beat-type>4</beat-type></time></attributes>"


def test_musicxml_chords_voices_ties_and_transposition() -> None:
    octave = "<attributes><transpose><chromatic>0</chromatic><octave-change>-1</octave-change></transpose></attributes>"
    chord = note("C", 5, 4) + note("E", 5, 4, "<chord/>") + note("G", 5, 4, after="<tie type='start'/>")
    second_voice = "<backup><duration>8</duration></backup><forward><duration>2</duration></forward>" + note("C", 4, 6)
    grace = "<note><grace/><pitch><step>A</step><octave>5</octave></pitch></note>"
    tied = note("G", 5, 2, after="<tie type='stop'/>") + grace + "<note><rest/><duration>2</duration></note>" + note("B", 4, 4)
    notes, torn = read_musicxml(score(f"<measure>{START}{octave}{chord}{second_voice}</measure><measure>{tied}</measure>"))
    assert quarters(notes) == [(0, 2, 60), (0, 2, 64), (1, 3, 48), (2, 3, 67), (6, 2, 59)]
    assert torn == 0


def test_bar_lasts_as_most_sounding_parts_say() -> None:
    rest = "<note><rest measure='yes'/><duration>16</duration></note>"  # twice the bar, as in the faulty Monteverdi files
    faulty = f"<measure>{START}{rest}</measure><measure>{note('C', 4, 8)}</measure>"
    right = f"<measure>{START}{note('E', 4, 8)}</measure><measure>{note('G', 4, 8)}</measure>"
    short = f"<measure>{START}{note('B', 4, 6)}</measure><measure>{note('D', 5, 8)}</measure>"
    notes, torn = read_musicxml(score(right, right, short, faulty))
    assert {n.onset / TICKS for n in notes} == {0, 4}
    assert torn == 0.5


def tune(folder: Path, body: str, key: str = "C", metre: str = "4/4") -> list[tuple[float, float, int]]:
    book = folder / "book.abc"
    book.write_text(f"% a book\nX:7\nT:Test\nM:{metre}\nL:1/4\nK:{key}\n{body}\n")
    return quarters(read_abc(read_book(book)[7]))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("C, C c c'", [(0, 1, 48), (1, 1, 60), (2, 1, 72), (3, 1, 84)]),
        ("C2 D/2 E/ F// G3/2", [(0, 2, 60), (2, 0.5, 62), (2.5, 0.5, 64), (3, 0.25, 65), (3.25, 1.5, 67)]),
        ("A>B c<d e>>f", [(0, 1.5, 69), (1.5, 0.5, 71), (2, 0.5, 72), (2.5, 1.5, 74), (4, 1.75, 76), (5.75, 0.25, 77)]),
        ("(3CDE F", [(0, 2 / 3, 60), (2 / 3, 2 / 3, 62), (4 / 3, 2 / 3, 64), (2, 1, 65)]),
        ("(3:2:2 CD E", [(0, 2 / 3, 60), (2 / 3, 2 / 3, 62), (4 / 3, 1, 64)]),
        ("C-C|-C D-E", [(0, 3, 60), (3, 1, 62), (4, 1, 64)]),  # a tie joins the same pitch; between others it is a slur
        ("^F-|F F", [(0, 2, 66), (2, 1, 65)]),  # over the bar line the tie keeps the sharp, the next note does not
        ("^F f =F F | F", [(0, 1, 66), (1, 1, 78), (2, 1, 65), (3, 1, 65), (4, 1, 65)]),
        ("[Cz]2 D", [(0, 2, 60), (2, 1, 62)]),  # a rest inside a chord is silent
        ('[CE]2 z {gag}D !trill!~E "Am"F', [(0, 2, 60), (0, 2, 64), (3, 1, 62), (4, 1, 64), (5, 1, 65)]),
        ("F [K:G] F [L:1/8] F |\nK:C\nF", [(0, 1, 65), (1, 1, 66), (2, 0.5, 66), (2.5, 0.5, 65)]),
        ("|:C`D|1E:|2F|]", [(0, 1, 60), (1, 1, 62), (2, 1, 64), (3, 1, 65)]),
        ("C % D E", [(0, 1, 60)]),
    ],
)
def test_abc_notation(tmp_path: Path, body: str, expected: list[tuple[float, float, int]]) -> None:
    assert tune(tmp_path, body) == expected


def test_unit_note_follows_the_metre_when_not_given(tmp_path: Path) -> None:
    book = tmp_path / "book.abc"
    book.write_text("X:1\nM:2/4\nK:C\nCD\n\nX:2\nM:6/8\nK:C\nCD\n")
    tunes = read_book(book)
    assert [quarters(read_abc(tunes[k]))[1][0] for k in (1, 2)] == [0.25, 0.5]


@pytest.mark.slow
def test_key_signatures_are_those_of_music21() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from music21 import key
    modes = {
        "": "major",
        "m": "minor",
        " Minor": "minor",
        "mix": "mixolydian",
        "Dor": "dorian",
        " Lydian": "lydian",
        "phr": "phrygian",
    }
    for tonic in ("C", "G", "D", "A", "E", "F", "Bb", "Eb", "F#", "B"):
        for name, mode in modes.items():
            altered = {p.step: int(p.alter) for p in key.Key(tonic.replace("b", "-"), mode).alteredPitches}
            if len(altered) <= 6:  # no double accidentals in a signature
                assert key_signature(tonic + name) == altered, tonic + name


def test_fingerprint_is_a_plain_hash() -> None:
    notes = [Note(0, TICKS, 60, 0), Note(TICKS, 5040, 62, 1)]
    assert fingerprint(notes) == hashlib.sha256(b"0,10080,60,0;10080,5040,62,1").hexdigest()[:16]
    assert fingerprint(notes) != fingerprint(notes[:1])


def test_missing_package_names_the_extra() -> None:
    with pytest.raises(DataError, match=r"'no_such_package' is not installed.*pip install 'musicnet-eval\[demo\]'"):
        package_file("no_such_package", "data")
    with pytest.raises(DataError, match="is missing from package 'pytest'"):
        package_file("pytest", "no such file")
