"""Decode audio files to int16 PCM, and read the PCM files that the decoded cache keeps. Layer 1.

`blocks` reads anything libsndfile reads (WAV, FLAC, OGG, MP3, AIFF, AU, …), and M4A, WMA and others through PyAV where the extra
`decode` is installed. It mixes to mono or keeps two channels, resamples (soxr, high quality) and gives the result block by block,
so that an hour takes no more memory than a minute. A file that is not what it claims to be is named with the reason, never
repaired in silence: a cut one, one with samples that are not finite, one that holds nothing but digital silence.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicnet_eval import mp3
from musicnet_eval.errors import AudioError

Pcm = NDArray[np.int16]
Floats = NDArray[np.float32]
PCM_SCALE = 32768.0  # int16 PCM over this is float audio in [-1, 1)
BLOCK = 1 << 17  # source frames that are in memory at a time
MAPPED_BYTES = 128 * 2**20  # of PCM files that a reader maps
SHORTEST_SECONDS = 0.05  # the least that data.segment_seconds may be: what is shorter cannot fill any segment
LOST_SECONDS = 0.1  # a decoder may keep this much of its own padding to itself; more is missing audio
# Demuxers that may look at a stranger's file: audio containers, and none that opens further files, as playlists do.
FFMPEG_FORMATS = "aac,ac3,aiff,amr,ape,asf,caf,dsf,eac3,flac,matroska,mov,mp3,mpc,mpc8,ogg,tta,wav,wv"
_CUT = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_ENDLESS = 1 << 60  # libsndfile's count of frames where it knows none
_UNKNOWN = 0x7FFF0000  # writers that could not go back to their header leave this or more as the length


class Source(NamedTuple):
    """An opened audio file: its rate in Hz, the frames that its header speaks of, whether it vouches for them, its samples."""

    rate: int
    frames: int
    vouched: bool
    blocks: Iterator[Floats]  # `[n, channels]`


def decode(path: Path, sample_rate: int, max_seconds: float | None = None, channels: int = 1) -> Pcm:
    """Read one audio file as int16 PCM.

    Args:
        path: The file.
        sample_rate: Target rate in Hz.
        max_seconds: Read no more than this from the start; everything when None.
        channels: 1 mixes all channels to their mean; 2 keeps the first two, front left and right, and doubles a single one.

    Shape:
        output: `[T]` int16, or `[T, 2]`.

    Raises:
        AudioError: The file cannot be used; the message says why.
    """
    return np.concatenate(list(blocks(path, sample_rate, max_seconds, channels)))


def blocks(path: Path, sample_rate: int, max_seconds: float | None = None, channels: int = 1) -> Iterator[Pcm]:
    """Give what `decode` gives, block by block. That a file is cut, silent or too short is found, and raised, at its end."""
    with _opened(path) as source:
        limit = None if max_seconds is None else round(max_seconds * source.rate)
        convert = _converter(source.rate, sample_rate, channels)
        heard = made = 0
        silent = True
        for block in _bounded(path, source, limit):
            if not np.isfinite(block).all():
                raise AudioError(path, "holds samples that are not finite (NaN or infinity)")
            heard += len(block)
            pcm = convert(_mixed(block, channels), last=False)
            made, silent = made + len(pcm), silent and not pcm.any()
            yield pcm
        pcm = convert(_mixed(np.zeros((0, 1), np.float32), channels), last=True)
        made, silent = made + len(pcm), silent and not pcm.any()
        _check(path, source, heard, limit, made / sample_rate, silent=silent)
        yield pcm


def frames(path: Path, sample_rate: int, max_seconds: float | None = None) -> int:
    """Estimate from its header how many frames a file decodes to; 0 where it cannot be opened."""
    try:
        with _opened(path) as source:
            seconds = source.frames / source.rate
    except AudioError:
        return 0
    return round((seconds if max_seconds is None else min(seconds, max_seconds)) * sample_rate)


def _bounded(path: Path, source: Source, limit: int | None) -> Iterator[Floats]:
    """Give a source's blocks up to a limit, and say where decoding broke off."""
    heard = 0
    try:
        for block in source.blocks:
            yield block if limit is None else block[: limit - heard]
            heard += len(block)
            if limit is not None and heard >= limit:
                return
    except (RuntimeError, ValueError, OSError) as error:  # libsndfile's, PyAV's and the disk's own
        reason = str(error).rsplit(": ", 1)[-1].strip(" .") or "lost synchronisation"
        raise AudioError(path, f"is cut or damaged: it cannot be decoded beyond {heard / source.rate:.1f} s ({reason})") from None


def _check(path: Path, source: Source, heard: int, limit: int | None, seconds: float, *, silent: bool) -> None:
    if not heard:
        raise AudioError(path, "holds no samples")
    claimed = source.frames if limit is None else min(source.frames, limit)
    if source.vouched and heard < claimed - LOST_SECONDS * source.rate:
        held, whole = (count / source.rate for count in (heard, source.frames))
        raise AudioError(path, f"is cut: it holds {held:.1f} s of the {whole:.1f} s that its header claims")
    if seconds < SHORTEST_SECONDS:
        raise AudioError(path, f"lasts {seconds * 1000:.2g} ms, too short for any segment")
    if silent:
        raise AudioError(path, "holds nothing but digital silence")


def _mixed(block: Floats, channels: int) -> Floats:
    """Mix `[n, C]` to the mean `[n]`, or keep two channels `[n, 2]`."""
    count = block.shape[1]
    if channels == 1:
        return block[:, 0] if count == 1 else np.asarray(sum(block.T) / np.float32(count))
    return np.repeat(block, 2, axis=1) if count == 1 else np.ascontiguousarray(block[:, :2])


def _converter(source_rate: int, sample_rate: int, channels: int) -> Any:
    """Give a function of (float block, last) that resamples to int16 PCM and remembers where it was."""
    if source_rate == sample_rate:
        resample = None
    else:
        import soxr

        resample = soxr.ResampleStream(source_rate, sample_rate, channels, dtype="float32", quality="HQ").resample_chunk

    def convert(block: Floats, *, last: bool) -> Pcm:
        made = block if resample is None else resample(np.ascontiguousarray(block), last=last)
        pcm: Pcm = np.clip(np.rint(made * PCM_SCALE), -32768, 32767).astype(np.int16)
        return pcm

    return convert


# --- opening ------------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Source]:
    """Open an audio file with libsndfile; with PyAV what libsndfile does not know."""
    import soundfile

    _check_file(path)
    try:
        file = soundfile.SoundFile(str(path) if os.name == "nt" else os.fsencode(path))  # names need not be UTF-8
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: `.raw` has no header to tell rate and channels
        reason = str(error).rsplit(": ", 1)[-1].strip(" .") or "it is in none of the formats that libsndfile knows"
        with _through_ffmpeg(path, reason) as source:
            yield source
        return
    with file:
        if unread := _unread(file, path):
            with _through_ffmpeg(path, unread) as source:
                yield source
            return
        frames, vouched = _claim(file, path)
        yield Source(file.samplerate, frames, vouched, _sound_blocks(file))


def _sound_blocks(file: Any) -> Iterator[Floats]:
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        yield block


def _check_file(path: Path) -> None:
    """Say what the file system has against a file, in plain words."""
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):  # others are not even opened: a pipe would wait for ever
            path.open("rb").close()
    except FileNotFoundError:
        raise AudioError(path, "does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in a manifest's path
        raise AudioError(path, f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(found.st_mode):
        raise AudioError(path, "is a folder" if stat.S_ISDIR(found.st_mode) else "is no regular file")
    if not found.st_size:
        raise AudioError(path, "is empty (0 bytes)")


def _unread(file: Any, path: Path) -> str:
    """Say what libsndfile cannot read of a file that it opens, for want of a length in the header; nothing, as a rule."""
    if file.format == "MP3" and not mp3.states_length(path):
        counted = mp3.seconds(path)
        if file.frames < (counted - LOST_SECONDS) * file.samplerate:
            return f"libsndfile reads {file.frames / file.samplerate:.1f} s of its {counted:.1f} s, which no header states"
    return "libsndfile cannot read a stream whose header states no length" if file.frames > _ENDLESS else ""


def _claim(file: Any, path: Path) -> tuple[int, bool]:
    """Give the frames of a file by its header, and whether the header is one to be held to.

    libsndfile corrects the header of a cut WAV, AIFF, AU or W64 by the file's length, and says so in its log. For an MP3 whose
    length no header states it guesses from the bit rate. An Ogg stream states no length, but each of its pages does.
    """
    if file.format == "MP3":
        return file.frames, mp3.states_length(path)
    if file.format == "OGG" and _ends_in_mid_page(path):
        raise AudioError(path, "is cut: its last Ogg page is not whole")
    cut = _CUT.search(file.extra_info)
    if cut and int(cut[1]) < _UNKNOWN and int(cut[2]):
        return round(file.frames * int(cut[1]) / int(cut[2])), True
    return file.frames, True


def _ends_in_mid_page(ogg: Path) -> bool:
    with ogg.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 131_072))  # a page has 65,307 bytes at most
        tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[26] if len(page) > 26 else 256
    return len(page) < 27 + segments + sum(page[27 : 27 + segments])


@contextmanager
def _through_ffmpeg(path: Path, reason: str) -> Iterator[Source]:
    """Open a file with PyAV, which carries FFmpeg's decoders.

    Args:
        path: The file.
        reason: Why libsndfile could not.
    """
    try:
        import av
    except ImportError:
        raise AudioError(
            path,
            f"cannot be decoded ({reason}). M4A, AAC, WMA and others need a second decoder: pip install 'musicnet-eval[decode]'",
        ) from None
    with ExitStack() as held:
        try:
            file = held.enter_context(path.open("rb"))
            container: Any = held.enter_context(av.open(file, options={"format_whitelist": FFMPEG_FORMATS}))
            audio = container.streams.audio[0]
            decoded = container.decode(audio)
            first = next(decoded)  # its rate is the true one: AAC headers may state half of it
        except (av.FFmpegError, IndexError, StopIteration):  # IndexError: a container without an audio stream
            raise AudioError(path, f"cannot be decoded ({reason}), nor does FFmpeg find audio in it") from None
        seconds = audio.duration * audio.time_base if audio.duration else (container.duration or 0) / 1e6
        exact = bool(audio.duration) and container.format.name.startswith("mov")  # others estimate it from the bit rate
        rate = first.sample_rate
        yield Source(rate, round(seconds * rate), exact, _ffmpeg_blocks(chain([first], decoded)))


def _ffmpeg_blocks(decoded: Iterable[Any]) -> Iterator[Floats]:
    import av

    packed: Any = av.AudioResampler(format="flt")  # interleaved float, of the first frame's rate and channels
    try:
        for frame in decoded:
            for part in packed.resample(frame):
                yield part.to_ndarray().reshape(-1, len(part.layout.channels))
    except av.FFmpegError as error:
        raise ValueError(str(error)) from None


# --- the cache's files --------------------------------------------------------------------------------------------------------


class PcmReader:
    """Read parts of PCM files: by memory map from those that come first, by plain reads from what is beyond a bound.

    A map is faster, but what was read through it counts as the process's memory. Maps are torch's, since they keep no file
    descriptor, of which a process may hold few; Python's own keep one a file.

    Args:
        mapped_bytes: Size of the files that are mapped, in all.
    """

    def __init__(self, mapped_bytes: int = MAPPED_BYTES) -> None:
        self.mapped_bytes = self.room = mapped_bytes
        self.maps: dict[str, Pcm] = {}

    def __reduce__(self) -> tuple[type[PcmReader], tuple[int]]:
        return PcmReader, (self.mapped_bytes,)  # a loader process makes maps of its own

    def read(self, path: str, start: int, out: Pcm) -> int:
        """Read from value `start` on into `out`, `[n]`, and give how many values there were."""
        mapped = self.maps.get(path)
        if mapped is None and (mapped := self._map(path)) is None:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - once a segment
                file.seek(2 * start)
                return (file.readinto(out.data) or 0) // 2
        part = mapped[start : start + len(out)]
        out[: len(part)] = part
        return len(part)

    def _map(self, path: str) -> Pcm | None:
        if not self.room:
            return None
        size = os.stat(path).st_size  # noqa: PTH116
        if size > self.room:
            self.room = 0
            return None
        import torch

        self.room -= size
        mapped: Pcm = torch.from_file(path, shared=False, size=size // 2, dtype=torch.int16).numpy()
        self.maps[path] = mapped
        return mapped


def pcm_length(path: Path, channels: int = 1) -> int:
    """Count the samples, of each channel, of a PCM file."""
    return path.stat().st_size // (2 * channels)


def read_pcm(path: str, start: int, out: Pcm) -> int:
    """Read from sample `start` on into `out`, `[T]` or `[T, channels]`, and give how many samples there were."""
    channels = int(out[0].size)
    return PcmReader(0).read(path, start * channels, out.reshape(-1)) // channels


# --- the terminal -------------------------------------------------------------------------------------------------------------


def progress(items: Iterable[Any], total: int, what: str, *, quiet: bool = False) -> Iterable[Any]:
    """Show a rich progress bar with the time that remains on a terminal; elsewhere, one plain line."""
    if quiet:
        return items
    if not sys.stderr.isatty():
        print(f"{what}: {total} …", file=sys.stderr)
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=what, total=total, console=Console(stderr=True), transient=True)
