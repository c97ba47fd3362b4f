"""The embedded data set: which musical tradition is this? Real scores, rendered on the user's machine, as a list of `Track`s.

Layer 4. Scores come from the music21 wheel (`scores.py`), sound from midirenderer and the SoundFont in the pretty_midi wheel. The
package ships neither: only which 40 pieces make a class, and the fingerprints of their notes (`checksums/tradition.json`).

A class is 40 pieces of 3 clips of 6 s. What could give a class away without listening to the music is drawn alike for all: one
General MIDI programme for all voices of a piece, from a pool of 12 with the same counts in each class; mean pitch, onset rate and
level from the same ranges; clips begin inside the piece, one in each third (`repertoire.pieces`). Each draw is a hash of (class,
piece), so that a clip depends neither on order, nor on how many processes build, nor on which other classes are built. Texture
(number of voices) is left as it is: it belongs to the music, and makes a part of the task easy.

`python -m musicnet_eval.tradition` is the worker that the build starts, one a core: a line in, a piece rendered, a line out.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from musicnet_eval.contracts import Track
from musicnet_eval.errors import DataError, nearest
from musicnet_eval.repertoire import ALL_CLASSES, CLASSES, Piece, draw, pieces, shipped
from musicnet_eval.scores import TICKS, Note, corpus, fingerprint, package_file, parse_musicxml, read_musicxml
from musicnet_eval.tunes import read_abc, read_book

CLIPS, SECONDS, SAMPLE_RATE = 3, 6, 22050
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


def excerpts(notes: Sequence[Note], length: int, piece: str) -> list[tuple[int, list[Note]]]:
    """Choose three excerpts, (start, notes): each begins at an onset in its own third of the piece, after the first onset.

    Of the onsets in a third the hash says which; passed over are those that leave over a tenth of the clip silent, whose onset
    rate is off the piece's by more than half, or that repeat another clip of the piece.
    """
    onsets = sorted({n.onset for n in notes})
    first, last = onsets[1], max(n.onset + n.duration for n in notes) - length
    mean = len(onsets) * length / (last + length - onsets[0])
    chosen: list[tuple[int, list[Note]]] = []
    for k in range(CLIPS):
        low, high = first + (last - first) * k // CLIPS, first + (last - first) * (k + 1) // CLIPS
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


def synthesise(song: bytes, level_db: float) -> NDArray[np.float64]:
    """Render MIDI to exactly 6 s of mono sound at 22.05 kHz and at the RMS level asked for, or lower where it would clip."""
    import midirenderer
    import soundfile
    import soxr

    font = package_file("pretty_midi", "TimGM6mb.sf2").read_bytes()
    stereo, rate = soundfile.read(io.BytesIO(midirenderer.render_wave_from(font, song)))
    wave: NDArray[np.float64] = soxr.resample(stereo.mean(axis=1), rate, SAMPLE_RATE)[: SECONDS * SAMPLE_RATE]
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
    length = round(SECONDS * 1e6 / tempo_us * TICKS)
    clips = excerpts(notes, length, f"{piece.label}/{piece.name}")
    shift = transposition([clip for _, clip in clips], piece.pitch)
    rows = []
    for k, (start, _) in enumerate(clips, start=1):
        song = midi(cut(notes, start, length + TICKS // 8), piece.programme, shift, tempo_us, length)
        target = root / piece.label / f"{piece.name}-{k}.flac"
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}.part")
        soundfile.write(part, synthesise(song, piece.level_db), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
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


# --- the build: once, under a lock, by one worker process a core ---------------------------------------------------------------
def work() -> None:
    """Render the pieces that standard input names, one JSON list `[root, label, name]` a line; answer each in one line."""
    for line in sys.stdin:
        root, label, name = json.loads(line)
        try:
            answer: dict[str, Any] = {"rows": render(next(p for p in pieces(label) if p.name == name), Path(root))}
        except DataError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


def build(chosen: Sequence[Piece], root: Path, workers: int, done: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
    """Render pieces by several worker processes; give their manifest rows in the order of the pieces.

    Processes, since the synthesiser holds Python's lock; started as commands, since a forked copy of a program that runs torch is
    unsafe and a spawned one would run the caller's script again.

    Args:
        chosen: Pieces to render.
        root: Folder of the data set.
        workers: Number of processes.
        done: Is called after each piece.
    """
    here = threading.local()
    running: list[subprocess.Popen[str]] = []

    def start() -> None:
        command = [sys.executable, "-m", "musicnet_eval.tradition"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        here.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        running.append(here.worker)

    def ask(piece: Piece) -> list[dict[str, Any]]:
        with contextlib.suppress(BrokenPipeError):
            here.worker.stdin.write(json.dumps([str(root), piece.label, piece.name]) + "\n")
            here.worker.stdin.flush()
        line = here.worker.stdout.readline()
        if not line:
            raise DataError(f"The process that rendered {piece.label}/{piece.name} died; its last words are above. Call again.")
        answer = json.loads(line)
        if "error" in answer:
            raise DataError(answer["error"])
        done()
        rows: list[dict[str, Any]] = answer["rows"]
        return rows

    with ThreadPoolExecutor(workers, initializer=start) as pool:
        try:
            return [row for rows in pool.map(ask, chosen) for row in rows]
        finally:
            pool.shutdown(cancel_futures=True)
            for worker in running:
                worker.communicate()


@contextlib.contextmanager
def reporting(total: int, what: str) -> Iterator[Callable[[], object]]:
    """Show progress on standard error: a bar on a terminal, else one line at the start and one at the end."""
    from rich.console import Console
    from rich.progress import Progress

    console, began = Console(stderr=True), time.monotonic()
    if console.is_terminal:
        with Progress(console=console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
    else:
        print(f"{what}: {total} pieces, about a minute, once", file=sys.stderr)
        yield lambda: None
    print(f"{what}: done in {time.monotonic() - began:.0f} s", file=sys.stderr)


def read_manifest(root: Path) -> list[dict[str, str]]:
    """Read the rows of `root/manifest.csv`; none if there is no such file."""
    path = root / "manifest.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def write_manifest(root: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `root/manifest.csv` whole or not at all."""
    part = root / f"manifest.{os.getpid()}.part"
    with part.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(root / "manifest.csv")


def built(root: Path, label: str) -> list[dict[str, str]]:
    """Give the manifest rows of a class if it is built: in the manifest, and with its folder there."""
    return [row for row in read_manifest(root) if row["label"] == label] if (root / label).is_dir() else []


def ensure(root: Path, classes: Sequence[str]) -> None:
    """Build the classes that are not there yet; of several processes that ask at once, one builds and the others wait."""
    if all(built(root, label) for label in classes):
        return
    for package in ("music21", "pretty_midi", "midirenderer"):
        package_file(package, "__init__.py")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        missing = [label for label in classes if not built(root, label)]
        chosen = [piece for label in missing for piece in pieces(label)]
        if not chosen:
            return
        with reporting(len(chosen), f"rendering {', '.join(missing)} into {root}") as done:
            rows = build(chosen, root, os.cpu_count() or 1, done)
        write_manifest(root, [*(row for row in read_manifest(root) if row["label"] not in missing), *rows])


def verify(root: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Check size and SHA-256 of every clip against the manifest.

    Raises:
        DataError: clips are missing or damaged, or another release made them; names the first and the remedy.
    """
    current = {piece["notes"] for label in shipped().values() for piece in label.values()}
    for row in rows:
        path = root / row["path"]
        remedy = f"Remove the folder {root / row['label']} and call again: it will be rendered anew (about 10 s)."
        if row["recipe"] != str(RECIPE) or row["notes"] not in current:
            raise DataError(f"Clip {path} was rendered by another release of musicnet_eval. {remedy}")
        if not path.is_file():
            raise DataError(f"Clip {path} is missing. {remedy}")
        audio = path.read_bytes()
        if len(audio) != int(row["bytes"]) or hashlib.sha256(audio).hexdigest() != row["sha256"]:
            raise DataError(f"Clip {path} is damaged: its checksum differs from the one in {root / 'manifest.csv'}. {remedy}")


def tradition(root: Path | str, classes: Sequence[str] = CLASSES) -> list[Track]:
    """List the clips of the embedded data set, rendered under `root` on first use and verified on each later one.

    Args:
        root: Folder of the data set; each class has its own subfolder, and `manifest.csv` lists all that is there.
        classes: Names out of `ALL_CLASSES`; `chinese_song` and `german_song` rest on scores for non-commercial use.

    Raises:
        DataError: an unknown class, a missing package, another corpus, or a damaged clip.
    """
    for label in classes:
        if label not in ALL_CLASSES:
            raise DataError(f"Unknown class {label!r} in data.classes; {nearest(label, ALL_CLASSES)}")
    if len(set(classes)) < len(classes) or not classes:
        raise DataError(f"data.classes={list(classes)}: name at least one class, each once.")
    root = Path(root)
    ensure(root, classes)
    rows = [row for label in classes for row in built(root, label)]
    verify(root, rows)
    return [Track(row["path"], root / row["path"], (row["label"],), row["group"]) for row in rows]


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        work()
