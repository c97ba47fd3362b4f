"""The fingerprint on 720 clips that are hard to tell apart: planted copies are found, and nothing between different pieces is."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from musicnet_eval.audit import main
from musicnet_eval.audit.fingerprints import RATE, Words, matches, words
from musicnet_eval.scores import TICKS
from musicnet_eval.tradition import tradition

CLIP_RATE, SECONDS = 22050, 6
pytestmark = pytest.mark.slow


def fingerprint(audio: np.ndarray, rate: int = CLIP_RATE) -> Words:
    return words(soxr.resample(audio.astype(np.float32), rate, RATE))


@pytest.fixture(scope="module")
def clips(tradition_root: Path) -> tuple[list[dict[str, str]], list[np.ndarray], list[Words]]:
    """Give the manifest rows, samples and fingerprints of all clips."""
    ids = {track.id for track in tradition(tradition_root)}
    with (tradition_root / "manifest.csv").open(encoding="utf8") as file:
        rows = [row for row in csv.DictReader(file) if row["path"] in ids]
    audio = [soundfile.read(tradition_root / row["path"], dtype="float32")[0] for row in rows]
    return rows, audio, [fingerprint(one) for one in audio]


def coded(form: str, level: float = 0.5) -> Callable[[np.ndarray], np.ndarray]:
    def code(audio: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        soundfile.write(file, audio, CLIP_RATE, format=form, compression_level=level)
        file.seek(0)
        return soundfile.read(file)[0]

    return code


def cut(start: float, end: float = SECONDS) -> Callable[[np.ndarray], np.ndarray]:
    return lambda audio: audio[round(start * CLIP_RATE) : round(end * CLIP_RATE)]


def softer(audio: np.ndarray) -> np.ndarray:
    return np.rint(audio / 10 * 32768) / 32768


ALTERED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mp3": coded("MP3"),
    "mp3, lowest quality": coded("MP3", 0.99),
    "ogg": coded("OGG"),
    "ogg, lowest quality": coded("OGG", 0.99),
    "8 bits": lambda audio: np.rint(audio * 128) / 128,
    "softer": softer,
    "11 kHz": lambda audio: soxr.resample(soxr.resample(audio, CLIP_RATE, 11025), 11025, CLIP_RATE),
    "44 kHz": lambda audio: soxr.resample(soxr.resample(audio, CLIP_RATE, 44100), 44100, CLIP_RATE),
    "later": lambda audio: np.concatenate([np.zeros(round(1.9 * CLIP_RATE)), audio])[: len(audio)],
    "earlier": cut(1.3337),
    "excerpt": cut(1.777, 4.977),
    "all": lambda audio: coded("MP3")(softer(cut(1.3337)(audio))),
}


@pytest.mark.parametrize("how", ALTERED)
def test_planted_copies_are_found(how: str, clips: tuple[list[dict[str, str]], list[np.ndarray], list[Words]]) -> None:
    rows, audio, known = clips
    chosen = np.random.default_rng(1).choice(len(rows), 100, replace=False)
    copies = [fingerprint(ALTERED[how](audio[number])) for number in chosen]
    found = [match for match in matches([*known, *copies]) if match.right >= len(known)]
    hits = {(match.left, match.right - len(known)) for match in found}
    assert sum((int(number), copy) in hits for copy, number in enumerate(chosen)) >= 95
    # A copy is like its original, and like what its original is like: another clip of the piece that overlaps with it.
    planted = [*(row["source"] for row in rows), *(rows[number]["source"] for number in chosen)]
    assert all(planted[match.left] == planted[match.right] for match in found)


def test_no_false_alarm(tradition_root: Path, tmp_path: Path) -> None:
    """Clips of one piece may overlap, and repeat what the score repeats; they share a group, and so a split."""
    root = f"data.root={tradition_root}"
    assert main(["data=tradition", root, "--out", str(tmp_path), "--snippets", "0"]) == 0
    record = json.loads((tmp_path / "audit.json").read_text(encoding="utf8"))
    assert record["decoded"] == record["tracks"]
    assert record["leaks"] == {"duplicates": 0, "groups": 0}
    assert record["conflicting"] == 0
    with (tradition_root / "manifest.csv").open(encoding="utf8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    for found in record["findings"]["duplicates"]:
        assert len({rows[file["id"]]["source"] for file in found["files"]}) == 1


def test_clips_that_overlap_by_the_manifest_are_found(clips: tuple[list[dict[str, str]], list[np.ndarray], list[Words]]) -> None:
    rows, _, known = clips
    found = {(match.left, match.right): match.lag for match in matches(known)}
    overlapping = {}
    for left, one in enumerate(rows):
        for right in range(left + 1, min(left + 3, len(rows))):
            if one["source"] == rows[right]["source"]:
                seconds = (int(rows[right]["start_tick"]) - int(one["start_tick"])) * int(one["tempo_us"]) / 1e6 / TICKS
                if abs(seconds) < SECONDS - 3:
                    overlapping[left, right] = seconds
    assert len(overlapping) >= 5
    hits = [pair for pair, seconds in overlapping.items() if abs(found.get(pair, 99) - seconds) < 0.03]
    assert len(hits) >= 0.9 * len(overlapping)
