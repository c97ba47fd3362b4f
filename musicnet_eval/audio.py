"""Decode audio files, and keep what was decoded. Layer 2.

`decode` reads anything libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, AU, …), mixes it to mono and resamples it (soxr, high
quality). `DecodedCache` keeps the result as raw int16 PCM, one file a track, named by the source's identity and the decode
parameters: it is written by temporary file and rename, so that nothing half-written is ever read and several processes may
build it at once. The files are mapped into memory: reading a segment is one copy into the batch.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicnet_eval.contracts import Track
from musicnet_eval.errors import AudioError, ConfigError, DataError
from musicnet_eval.records import replacing

Pcm = NDArray[np.int16]
PCM_SCALE = 32768.0  # int16 PCM over this is float audio in [-1, 1)
BAD_FILE_CHOICES = ("error", "skip")


def decode(path: Path, sample_rate: int, max_seconds: float | None = None) -> Pcm:
    """Read one audio file as mono int16 PCM.

    Args:
        path: The file.
        sample_rate: Target rate in Hz.
        max_seconds: Read no more than this from the start; everything when None.

    Shape:
        output: `[T]` int16.

    Raises:
        AudioError: The file is missing, no audio, empty, or holds samples that are not finite.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            source_rate = file.samplerate
            frames = -1 if max_seconds is None else round(max_seconds * source_rate)
            audio = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        reason = "does not exist" if not path.exists() else f"cannot be decoded ({str(error).rsplit(': ', 1)[-1].strip()})"
        raise AudioError(f"'{path}' {reason}.") from None
    mono = audio.mean(axis=1, dtype=np.float32)
    if not mono.size:
        raise AudioError(f"'{path}' holds no samples.")
    if not np.isfinite(mono).all():
        raise AudioError(f"'{path}' holds samples that are not finite (NaN or infinity).")
    if source_rate != sample_rate:
        import soxr

        mono = soxr.resample(mono, source_rate, sample_rate, quality="HQ")
    pcm: Pcm = np.clip(np.rint(mono * PCM_SCALE), -32768, 32767).astype(np.int16)
    return pcm


class DecodedCache:
    """Decoded tracks on disk, shared by every run that decodes alike.

    Args:
        folder: Where the PCM files lie; made when missing.
        sample_rate: Hz.
        max_seconds: Keep no more than this from each track's start; everything when None.
    """

    def __init__(self, folder: Path | str, sample_rate: int, max_seconds: float | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.sample_rate = sample_rate
        self.max_seconds = max_seconds

    def path(self, source: Path) -> Path:
        """Name the PCM file of a source: a hash of where it lies, its size, its modification time and how it is decoded."""
        try:
            stat = source.stat()
        except OSError as error:
            raise AudioError(f"'{source}' cannot be opened ({error.strerror}).") from None
        identity = (str(source.resolve()), stat.st_size, stat.st_mtime_ns, self.sample_rate, self.max_seconds, "mono-soxr-HQ-1")
        name = hashlib.sha256(repr(identity).encode("utf8", "surrogatepass")).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.pcm"

    def add(self, source: Path) -> Path:
        """Decode one source unless it is there already, and give its PCM file.

        Raises:
            AudioError: The source cannot be decoded.
            DataError: The cache cannot be written (full disk, no permission).
        """
        target = self.path(source)
        if not target.exists():
            pcm = decode(source, self.sample_rate, self.max_seconds)
            try:
                with replacing(target) as temporary:
                    temporary.write_bytes(pcm.data.cast("B"))
            except OSError as error:
                raise DataError(
                    f"The decoded cache '{self.folder}' cannot be written ({error.strerror}). "
                    "Free some space, or point data.cache_dir at another disk."
                ) from None
        return target

    def build(self, tracks: Sequence[Track], on_bad_file: str = "error") -> list[Path | None]:
        """Decode all tracks on all cores, with a progress bar on a terminal, and give their PCM files in order.

        Args:
            tracks: What to decode.
            on_bad_file: `error` names every bad file and stops; `skip` gives None for them and says so.

        Raises:
            DataError: Bad files, when `on_bad_file` is `error`.
        """
        if on_bad_file not in BAD_FILE_CHOICES:
            raise ConfigError(f"data.on_bad_file={on_bad_file!r} must be one of {', '.join(BAD_FILE_CHOICES)}.")
        bad: dict[str, str] = {}

        def add(track: Track) -> Path | None:
            try:
                return self.add(track.path)
            except AudioError as error:
                bad[track.id] = str(error)
                return None

        missing = sum(1 for track in tracks if not _cached(self, track.path))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            files = list(progress(pool.map(add, tracks), total=len(tracks), what="Decoding audio", quiet=missing < 50))
        if bad:
            self._report(bad, len(tracks), on_bad_file)
        return files

    def _report(self, bad: dict[str, str], total: int, on_bad_file: str) -> None:
        shown = "\n  ".join(bad[name] for name in sorted(bad)[:10])
        more = f"\n  … and {len(bad) - 10} more" if len(bad) > 10 else ""
        message = f"{len(bad)} of {total} audio files are unusable:\n  {shown}{more}"
        if on_bad_file == "error":
            raise DataError(f"{message}\nMend or remove them, or leave them out with data.on_bad_file=skip.")
        print(f"{message}\nThey are left out (data.on_bad_file=skip).", file=sys.stderr)


def _cached(cache: DecodedCache, source: Path) -> bool:
    try:
        return cache.path(source).exists()
    except AudioError:
        return False


def progress(items: Any, total: int, what: str, *, quiet: bool = False) -> Any:
    """Show a rich progress bar over `items` on a terminal; elsewhere, one plain line."""
    if quiet:
        return items
    if not sys.stderr.isatty():
        print(f"{what}: {total} …", file=sys.stderr)
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, total=total, console=Console(stderr=True), transient=True)


@lru_cache(maxsize=8192)
def map_pcm(path: str) -> Pcm:
    """Map a PCM file into memory, read-only; the most recently used ones stay mapped, and a copy out of them is one of memory.

    It is torch's mapping because that keeps no file descriptor, of which a process may hold few; Python's own keeps one a file.
    """
    import torch

    samples = pcm_length(Path(path))
    mapped: Pcm = torch.from_file(path, shared=False, size=samples, dtype=torch.int16).numpy()
    mapped.flags.writeable = False
    return mapped


def pcm_length(path: Path) -> int:
    """Count the samples of a PCM file."""
    return path.stat().st_size // 2


def read_pcm(path: str, start: int, out: Pcm) -> int:
    """Read samples from `start` on into `out` and give how many there were."""
    part = map_pcm(path)[start : start + len(out)]
    out[: len(part)] = part
    return len(part)
