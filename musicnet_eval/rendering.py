"""The sound of an embedded data set's pieces: notes → excerpts → MIDI → a SoundFont synthesiser → clips of FLAC.

Layer 4, between `pieces.py`, which says what is played how, and `embedded.py`, which builds a set once. Sound comes from
midirenderer and the SoundFont in the pretty_midi wheel. Each draw is a hash of (class, piece), so that a clip depends neither on
order, nor on how many processes build, nor on which other classes are built.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicnet_eval.errors import DataError
from musicnet_eval.pieces import Piece, draw
from musicnet_eval.scores import TICKS, Note, corpus, fingerprint, package_file, parse_musicxml, read_musicxml
from musicnet_eval.tunes import read_abc, read_book

SAMPLE_RATE = 22050
RECIPE = 1  # counts up when the same scores give other audio
COLUMNS = (
    "path",
    "label",
    "group",
    "title",
    "source",
    "programme",
    "transpose",
    "tempo_us",
    "start_tick",
    "level_db",
    "notes",
    "recipe",
    "bytes",
    "sha256",
)


# --- from notes to clips -------------------------------------------------------------------------------------------------------
def read(source: str) -> list[Note]:
    """Read the score at `PATH.mxl`, `PATH.xml` or `BOOK.abc#NUMBER`, a path inside the corpus."""
    name, _, number = source.partition("#")
    path = corpus() / name
    return read_abc(read_book(path)[int(number)]) if number else read_musicxml(parse_musicxml(path))[0]


def tempo(notes: Sequence[Note], onset_rate: float) -> int:
    """Give the microseconds of a quarter note at which a piece has `onset_rate` distinct onsets a second."""
    quarters = (max(n.onset + n.duration for n in notes) - min(n.onset for n in notes)) / TICKS
    return round(1e6 * len({n.onset for n in notes}) / onset_rate / quarters)


def cut(notes: Sequence[Note], start: int, length: int) -> list[Note]:
    """Cut an excerpt: what sounds between `start` and `start + length` ticks, moved to 0."""
    cuts = [(max(n.onset, start), min(n.onset + n.duration, start + length), n) for n in notes]
    return [Note(begin - start, end - begin, n.pitch, n.part) for begin, end, n in cuts if end > begin]


def silence(notes: Sequence[Note], length: int) -> int:
    """Give the ticks in which nothing sounds."""
    end = quiet = 0
    for note in sorted(notes):
        quiet += max(note.onset - end, 0)
        end = max(end, note.onset + note.duration)
    return quiet + max(length - end, 0)


def excerpts(notes: Sequence[Note], length: int, piece: str, count: int) -> list[tuple[int, list[Note]]]:
    """Choose excerpts, (start, notes): each begins at an onset in its own equal share of the piece, after the first onset.

    Of the onsets in a share the hash says which; passed over are those that leave over a tenth of the clip silent, whose onset
    rate is off the piece's by more than half, or that repeat another clip of the piece.
    """
    onsets = sorted({n.onset for n in notes})
    first, last = onsets[1], max(n.onset + n.duration for n in notes) - length
    mean = len(onsets) * length / (last + length - onsets[0])
    chosen: list[tuple[int, list[Note]]] = []
    for k in range(count):
        low, high = first + (last - first) * k // count, first + (last - first) * (k + 1) // count
        inside = [t for t in onsets if low <= t < high] or [min(onsets, key=lambda t: abs(t - low))]
        ranked = []
        for t in sorted(inside, key=lambda t: draw("start", piece, t)):
            clip = cut(notes, t, length)
            rate = len({n.onset for n in clip}) / mean
            bad = (clip in [c for _, c in chosen], silence(clip, length) > length / 10, not 2 / 3 <= rate <= 3 / 2)
            if not any(bad):
                ranked = [(bad, t, clip)]
                break
            ranked.append((bad, t, clip))
        _, start, clip = min(ranked, key=lambda r: r[0])
        chosen.append((start, clip))
    return chosen


def transposition(clips: Sequence[Sequence[Note]], pitch: float) -> int:
    """Give the semitones that bring the mean pitch of the clips, weighted by duration, nearest to `pitch`."""
    weight = sum(n.duration for clip in clips for n in clip)
    return round(pitch - sum(n.duration * n.pitch for clip in clips for n in clip) / weight)


def midi(notes: Sequence[Note], programme: int, transpose: int, tempo_us: int, length: int) -> bytes:
    """Write a format-0 MIDI file that lasts at least `length` ticks; one channel a part, all of one programme."""
    channels = {part: part + (part > 8) for part in sorted({n.part for n in notes})}  # channel 9 holds the drums
    events = [(0, 0, b"\xff\x51\x03" + tempo_us.to_bytes(3, "big"))]
    events += [(0, 1, bytes([0xC0 | c, programme])) for c in channels.values()]
    for n in notes:
        channel, key = channels[n.part], min(max(n.pitch + transpose, 0), 127)
        events += [(n.onset, 3, bytes([0x90 | channel, key, 80])), (n.onset + n.duration, 2, bytes([0x80 | channel, key, 0]))]
    now, track = 0, bytearray()
    end = max(length + TICKS // 4, *(tick for tick, _, _ in events))
    for tick, _, message in [*sorted(events), (end, 4, b"\xff\x2f\x00")]:
        track += _variable(tick - now) + message
        now = tick
    header = b"MThd" + (6).to_bytes(4, "big") + (0).to_bytes(2, "big") + (1).to_bytes(2, "big") + TICKS.to_bytes(2, "big")
    return header + b"MTrk" + len(track).to_bytes(4, "big") + bytes(track)


def _variable(number: int) -> bytes:
    digits = [number & 127]
    while number := number >> 7:
        digits.append(number & 127 | 128)
    return bytes(reversed(digits))


def synthesise(song: bytes, level_db: float, seconds: int) -> NDArray[np.float64]:
    """Render MIDI to a given time of mono sound at 22.05 kHz and at the RMS level asked for, or lower where it would clip."""
    import midirenderer
    import soundfile
    import soxr

    font = package_file("pretty_midi", "TimGM6mb.sf2").read_bytes()
    stereo, rate = soundfile.read(io.BytesIO(midirenderer.render_wave_from(font, song)))
    wave: NDArray[np.float64] = soxr.resample(stereo.mean(axis=1), rate, SAMPLE_RATE)[: seconds * SAMPLE_RATE]
    gain = 10 ** (level_db / 20) / float(np.sqrt(np.mean(wave**2)))
    return wave * min(gain, 0.98 / float(np.abs(wave).max()))


def render(piece: Piece, root: Path) -> list[dict[str, Any]]:
    """Render the clips of a piece to `root/LABEL/NAME-K.flac` and give their manifest rows.

    Raises:
        DataError: the installed corpus holds other notes than the checksums say.
    """
    import soundfile

    notes = read(piece.source)
    if (found := fingerprint(notes)) != piece.notes:
        raise DataError(
            f"Score {piece.source!r} has note fingerprint {found}, not {piece.notes}: the corpus of the installed music21 is not "
            "the one that this data set is made of. Run: pip install 'musicnet-eval[demo]' (music21>=10.5,<11)"
        )
    tempo_us = tempo(notes, piece.onset_rate)
    length = round(piece.seconds * 1e6 / tempo_us * TICKS)
    clips = excerpts(notes, length, f"{piece.label}/{piece.name}", piece.clips)
    shift = transposition([clip for _, clip in clips], piece.pitch)
    rows = []
    for k, (start, _) in enumerate(clips, start=1):
        song = midi(cut(notes, start, length + TICKS // 8), piece.programme, shift, tempo_us, length)
        target = root / piece.label / f"{piece.name}-{k}.flac"
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}.part")
        soundfile.write(part, synthesise(song, piece.level_db, piece.seconds), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        part.replace(target)
        audio = target.read_bytes()
        values = (
            target.relative_to(root).as_posix(),
            piece.label,
            piece.group,
            piece.title,
            piece.source,
            piece.programme,
            shift,
            tempo_us,
            start,
            piece.level_db,
            piece.notes,
            RECIPE,
            len(audio),
            hashlib.sha256(audio).hexdigest(),
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows
