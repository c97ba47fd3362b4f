"""Hear one track: what it is made of, how loud it is, which bytes and samples it holds, and its fingerprint.

What is judged is what a network would hear: the mono mix as `audio.blocks` gives it, at the file's own rate, so that resampling
does not smooth clipping over. Tracks are heard in several processes, since much of the work holds Python's lock.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicnet_eval.audio import PCM_SCALE, Pcm, blocks, progress
from musicnet_eval.audit.fingerprints import RATE, Words, words
from musicnet_eval.contracts import Track
from musicnet_eval.errors import AudioError, DataError

CHUNK_SECONDS = 30  # of float audio in memory at once, up to two of them
SILENT_DB = -60.0  # dBFS: a tenth of a second below this is silent
CLIPPED_RUN = 3  # samples at full scale in a row make a clipped one of each; music reaches it singly
LOUDNESS_RATE = 8000  # Hz; below, the standard's weighting filter has no room


@dataclass(frozen=True, slots=True)
class Heard:
    """What was measured of one track.

    Args:
        sha256: Of the file's bytes; None where they could not be read.
        reason: Why it cannot be decoded; None where it can, and then all that follows is known but what its own line says.
        audio: SHA-256 of rate and samples as decoded.
        seconds: Length as decoded.
        sample_rate: Hz; None where libsndfile does not know the format.
        channels: Number; None likewise.
        format: libsndfile's name of container and coding; None likewise.
        loudness: Integrated loudness of the mono mix, LUFS; None for what is silent, not longer than 0.4 s, or below 8 kHz.
        peak: Largest sample, dBFS.
        silent: Share of tenths of a second below -60 dBFS.
        clipped: Share of samples in runs of 3 or more at full scale.
        words: The fingerprint.
    """

    sha256: str | None
    reason: str | None = None
    audio: str = ""
    seconds: float = 0.0
    sample_rate: int | None = None
    channels: int | None = None
    format: str | None = None
    loudness: float | None = None
    peak: float = 0.0
    silent: float = 0.0
    clipped: float = 0.0
    words: Words = field(default_factory=lambda: np.zeros(0, dtype=np.uint32), repr=False)


def listen_all(tracks: Sequence[Track], sample_rate: int, max_seconds: float | None, workers: int | None = None) -> list[Heard]:
    """Hear all tracks, in order, with a progress bar on a terminal.

    Args:
        tracks: What to hear.
        sample_rate: Hz, of formats whose own rate libsndfile cannot tell.
        max_seconds: Hear no more than this of each track's start; everything when None.
        workers: Processes; one a core, fewer for few tracks, when None.

    Raises:
        DataError: A decoding process was killed, by a lack of memory or a fault in a decoder.
    """
    jobs = [(track.path, sample_rate, max_seconds) for track in tracks]
    count = min(workers or os.cpu_count() or 1, 1 + len(jobs) // 50)
    if count == 1:
        return list(progress(map(_hear, jobs), len(jobs), "Listening", quiet=len(jobs) < 50))
    with ProcessPoolExecutor(count, get_context("spawn"), initializer=_serve, initargs=(os.getpid(),)) as pool:
        try:
            return list(progress(pool.map(_hear, jobs, chunksize=4), len(jobs), "Listening"))
        except BrokenProcessPool:
            raise DataError(
                f"A decoding process was killed while {count} heard {len(jobs)} tracks: a lack of memory, or a file that breaks "
                "its decoder. Hear less of each track with data.max_seconds=600, or fewer at once with --workers 1."
            ) from None


def _serve(parent: int) -> None:
    """Prepare a listening process: Ctrl-C is the parent's to answer, and without a parent, killed perhaps, there is no work."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def _hear(job: tuple[Path, int, float | None]) -> Heard:
    return listen(*job)


def listen(path: Path, sample_rate: int, max_seconds: float | None = None) -> Heard:
    """Hear one file; what is wrong with it goes into the answer.

    Args:
        path: The file.
        sample_rate: Hz, used where libsndfile cannot tell the file's own rate.
        max_seconds: Hear no more than this from the start.
    """
    digest = None
    try:
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        about = _about(path) if digest else {}
        rate = about.get("sample_rate") or sample_rate
        return Heard(digest, **about, **_measured(_chunks(path, rate, max_seconds), rate))
    except AudioError as error:
        return Heard(digest, reason=error.reason)
    except OSError as error:
        return Heard(digest, reason=f"cannot be read ({error.strerror})")


def _about(path: Path) -> dict[str, Any]:
    """Read a file's head; nothing where libsndfile does not know the format, which decoding then judges."""
    import soundfile

    try:
        info = soundfile.info(str(path) if os.name == "nt" else os.fsencode(path))  # names need not be UTF-8
    except (soundfile.LibsndfileError, TypeError):  # TypeError: `.raw` has no header
        return {}
    return {"sample_rate": info.samplerate, "channels": info.channels, "format": f"{info.format} {info.subtype}"}


def _chunks(path: Path, rate: int, max_seconds: float | None) -> Iterator[Pcm]:
    """Decode to mono, half a minute or more at a time, so that only the last chunk of a short file is short."""
    held: list[Pcm] = []
    size = 0
    for block in blocks(path, rate, max_seconds):
        if size >= 2 * CHUNK_SECONDS * rate:
            yield np.concatenate(held[:-1])
            held, size = held[-1:], len(held[-1])
        held.append(block)
        size += len(block)
    yield np.concatenate(held)


def _measured(chunks: Iterable[Pcm], rate: int) -> dict[str, Any]:
    """Measure chunk by chunk: an hour takes no more memory than a minute."""
    import soxr

    digest = hashlib.sha256(f"{rate} ".encode())
    resampler = soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
    length = peak = clipped = 0
    moments: list[float] = []
    quiet: list[bool] = []
    low: list[NDArray[np.float32]] = []
    for pcm in chunks:
        digest.update(pcm.tobytes())
        audio = pcm.astype(np.float32) / np.float32(PCM_SCALE)
        low.append(resampler.resample_chunk(audio))
        moments += _moments(audio, rate)
        quiet += _quiet_tenths(audio, rate)
        clipped += _clipped(pcm)
        peak = max(peak, int(pcm.max(initial=0)), -int(pcm.min(initial=0)))
        length += len(pcm)
    low.append(resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    return {
        "audio": digest.hexdigest(),
        "seconds": length / rate,
        "loudness": gated(moments),
        "peak": round(20 * math.log10(peak / PCM_SCALE), 2),
        "silent": round(sum(quiet) / len(quiet), 4),
        "clipped": round(clipped / length, 6),
        "words": words(np.concatenate(low)),
    }


def _quiet_tenths(audio: NDArray[np.float32], rate: int) -> list[bool]:
    tenth = max(1, rate // 10)
    whole = audio[: len(audio) // tenth * tenth] if len(audio) >= tenth else audio
    power = np.mean(np.square(whole.reshape(-1, min(tenth, len(whole)))), axis=1)
    return [bool(value < 10 ** (SILENT_DB / 10)) for value in power]


def _clipped(pcm: Pcm) -> int:
    if pcm.max(initial=0) < 32767 and pcm.min(initial=0) > -32767:
        return 0
    edges = np.flatnonzero(np.diff(((pcm >= 32767) | (pcm <= -32767)).astype(np.int8), prepend=0, append=0))
    runs = edges[1::2] - edges[::2]
    return int(runs[runs >= CLIPPED_RUN].sum())


# --- loudness -----------------------------------------------------------------------------------------------------------------


def _moments(audio: NDArray[np.float32], rate: int) -> list[float]:
    """Give the loudness of each window of 0.4 s, in LUFS, before gating."""
    import pyloudnorm

    if rate < LOUDNESS_RATE or len(audio) <= 0.4 * rate:
        return []
    meter = pyloudnorm.Meter(rate)
    meter.integrated_loudness(audio)
    return [float(value) for value in meter.blockwise_loudness]


def gated(moments: Sequence[float]) -> float | None:
    """Give integrated loudness in LUFS out of that of windows; None where all of them are silent.

    Reference:
        ITU-R BS.1770-4: gates at -70 LUFS, then 10 LU below the mean of what is left.
    """
    power = 10 ** (np.array(moments) / 10)
    power = power[power >= 1e-7]
    if not len(power):
        return None
    power = power[power > power.mean() / 10]
    return round(10 * math.log10(power.mean()), 2)
