"""Keep what was decoded: raw int16 PCM, one file a track, shared by every run that decodes alike. Layer 2.

A PCM file is named by its source's identity (place, size, time of change) and the decode parameters. It is written under a
temporary name, brought to the disk and renamed, so nothing half-written is ever read and several processes may build at once.

Each process that uses the cache holds a *lease*: a folder `use/<id>/` with a lock that the system frees when the process ends,
however it ends, and the list of the PCM files that it reads. A file in a living process's list is never evicted; whatever a dead
one has left, temporary files included, the next one sweeps away. A file's time of change says when a run last asked for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from musicnet_eval.audio import blocks, frames, progress
from musicnet_eval.contracts import Track
from musicnet_eval.errors import AudioError, ConfigError, DataError

GB = 10**9
DECODER = "soxr-HQ-2"  # part of each name: another way of decoding gives other files
CLIPPED = 0.01  # share of samples at full scale from which on a track is reported as clipped


class Built(NamedTuple):
    """What building gives: each track's PCM file, None where there is none, and why not, by track id."""

    files: list[Path | None]
    bad: dict[str, str]


class DecodedCache:
    """Decoded tracks on disk.

    Args:
        folder: Where the PCM files lie; made when missing.
        sample_rate: Hz.
        max_seconds: Keep no more than this from each track's start; everything when None.
        channels: 1 (the mean of all) or 2.
        max_gb: Size that the folder is kept to, in 10⁹ bytes, by evicting what was not asked for longest; unbounded when None.
    """

    def __init__(
        self,
        folder: Path | str,
        sample_rate: int,
        max_seconds: float | None = None,
        channels: int = 1,
        max_gb: float | None = None,
    ) -> None:
        if channels not in (1, 2):
            raise ConfigError(f"data.channels={channels!r} must be 1 (mixed to mono) or 2 (stereo).")
        self.folder = Path(folder).expanduser()
        self.sample_rate = sample_rate
        self.max_seconds = max_seconds
        self.channels = channels
        self.max_bytes = None if max_gb is None else round(max_gb * GB)

    def path(self, source: Path) -> Path:
        """Name the PCM file of a source.

        Raises:
            AudioError: The source cannot be looked at.
        """
        try:
            found = source.stat()
            place = os.path.join(_real(str(source.parent)), source.name)  # noqa: PTH118 - a third of the time, for 100,000 files
        except FileNotFoundError:
            raise AudioError(source, "does not exist") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise AudioError(source, f"cannot be opened ({getattr(error, 'strerror', None) or error})") from None
        identity = (place, found.st_size, found.st_mtime_ns, self.sample_rate, self.max_seconds, self.channels, DECODER)
        name = hashlib.sha256(repr(identity).encode("utf8", "surrogatepass")).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.pcm"

    def build(self, tracks: Sequence[Track]) -> Built:
        """Decode what is missing on all cores, with a progress bar on a terminal.

        The files given stay for as long as this object lives, whatever other runs evict.

        Raises:
            DataError: The disk or `data.cache_max_gb` is too small, or the folder cannot be written.
        """
        files: list[Path | None] = []
        bad: dict[str, str] = {}
        for track in tracks:
            try:
                files.append(self.path(track.path))
            except AudioError as error:
                files.append(None)
                bad[track.id] = error.reason
        with self._writing():
            lease = self._lease({file.name for file in files if file is not None})
            sizes = {file: size for file in files if file is not None and (size := _size(file))}
            for file in sizes:
                _touch(file)
            missing = [(track, file) for track, file in zip(tracks, files, strict=True) if file and file not in sizes]
            if missing:
                self._check_room(sum(sizes.values()), missing)
                reasons = self._decode(missing, lease)
                files = [None if track.id in reasons else file for track, file in zip(tracks, files, strict=True)]
                bad |= reasons
                self._bound(sum(_size(file) for file in {*files} if file), room=0)
        return Built(files, {track.id: bad[track.id] for track in tracks if track.id in bad})

    # --- decoding ---

    def _decode(self, missing: Sequence[tuple[Track, Path]], lease: Path) -> dict[str, str]:
        """Decode tracks and give why some could not be, by id."""
        bad: dict[str, str] = {}
        clipped: list[str] = []

        def decode(item: tuple[Track, Path]) -> None:
            track, target = item
            try:
                if self._write(track.path, target, lease) > CLIPPED:
                    clipped.append(track.id)
            except AudioError as error:
                bad[track.id] = error.reason

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads: libsndfile and soxr let go of the interpreter
            for _ in progress(pool.map(decode, missing), total=len(missing), what="Decoding audio", quiet=len(missing) < 50):
                pass
        if clipped:
            shown = ", ".join(f"'{name}'" for name in sorted(clipped)[:5]) + (", …" if len(clipped) > 5 else "")
            print(
                f"{len(clipped)} of {len(missing)} decoded tracks are clipped (over {CLIPPED:.0%} of samples at full scale) "
                f"and are used as they are: {shown}",
                file=sys.stderr,
            )
        return bad

    def _write(self, source: Path, target: Path, lease: Path) -> float:
        """Decode one source to its place and give the share of samples at full scale."""
        temporary = lease / f"{target.name}.{threading.get_ident()}.tmp"  # a file may be listed twice
        full = total = 0
        try:
            with temporary.open("wb") as file:
                for block in blocks(source, self.sample_rate, self.max_seconds, self.channels):
                    file.write(block.tobytes())
                    full += int(np.count_nonzero((block == 32767) | (block == -32768)))
                    total += block.size
                file.flush()
                os.fsync(file.fileno())  # before the rename: after a power cut the name must not stand for less
            target.parent.mkdir(exist_ok=True)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return full / max(total, 1)

    def _check_room(self, own: int, missing: Sequence[tuple[Track, Path]]) -> None:
        """Refuse before decoding what will not fit, as far as the files' headers tell."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            counts = pool.map(lambda item: frames(item[0].path, self.sample_rate, self.max_seconds), missing)
            need = 2 * self.channels * sum(counts)
        self._bound(own + need, room=need)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise DataError(
                f"The {len(missing)} tracks to decode take {_gb(need)}, and {_gb(free)} are free in "
                f"data.cache_dir='{self.folder}'. Free some space, point data.cache_dir at another disk, or decode less with "
                "data.max_seconds or data.sample_rate."
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            (self.folder / "use").mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise DataError(
                f"The decoded cache data.cache_dir='{self.folder}' cannot be written ({error.strerror or error}). "
                "Free some space, or point data.cache_dir at another disk."
            ) from None

    # --- leases and the bound ---

    def _lease(self, names: set[str]) -> Path:
        """Say which files this process uses, until this object or the process ends, and sweep away what dead ones have left."""
        folder = self.folder / "use" / uuid.uuid4().hex
        with self._sole():
            for _ in self._living():
                pass
            folder.mkdir()
            (folder / "files").write_text("\n".join(sorted(names)), encoding="ascii")
            lock = FileLock(folder / "lock", thread_local=False)
            lock.acquire(timeout=0)
        weakref.finalize(self, _end_lease, lock, folder, os.getpid())
        return folder

    def _sole(self) -> FileLock:
        """Let one process at a time begin a lease or evict."""
        return FileLock(self.folder / "use" / "lock")

    def _living(self) -> Iterator[Path]:
        """Give the leases of living processes, and remove those of dead ones."""
        for folder in (self.folder / "use").iterdir():
            if not folder.is_dir():
                continue
            lock = FileLock(folder / "lock")
            try:
                with lock.acquire(timeout=0):
                    pass
                shutil.rmtree(folder, ignore_errors=True)
            except (Timeout, PermissionError):  # held; or another user's, of which we cannot tell
                yield folder

    def _bound(self, own: int, room: int) -> None:
        """Evict the least recently used files until the cache, with `room` more bytes, keeps to its bound.

        Raises:
            DataError: What this run alone needs (`own` bytes) is more than the bound.
        """
        if self.max_bytes is None:
            return
        if own > self.max_bytes:
            raise DataError(
                f"data.cache_max_gb={self.max_bytes / GB:g} is less than the {_gb(own)} that this run's tracks take decoded. "
                "Raise it (null lifts it), or decode less with data.max_seconds or data.sample_rate."
            )
        with self._sole():
            used = {name for folder in self._living() for name in (folder / "files").read_text(encoding="ascii").split()}
            stored = [(found.st_mtime_ns, found.st_size, file) for file in self.folder.glob("??/*.pcm") if (found := file.stat())]
            excess = sum(size for _, size, _ in stored) + room - self.max_bytes
            for _, size, file in sorted(stored):
                if excess > 0 and file.name not in used:
                    file.unlink(missing_ok=True)
                    excess -= size
        if excess > 0:
            print(
                f"The decoded cache is {_gb(excess)} above data.cache_max_gb={self.max_bytes / GB:g}: other runs use the rest.",
                file=sys.stderr,
            )


def _end_lease(lock: FileLock, folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked loader process must not end its parent's lease
        lock.release(force=True)
        shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=65_536)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def _size(file: Path) -> int:
    """Give a file's size in bytes, 0 when there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _touch(file: Path) -> None:
    with contextlib.suppress(PermissionError):  # another user's file: its owner's runs keep its time
        os.utime(file)


def _gb(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 10**6:.1f} MB"
