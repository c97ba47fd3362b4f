from __future__ import annotations

import gc
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicnet_eval.audio import PcmReader, decode
from musicnet_eval.cache import GB, Built, DecodedCache
from musicnet_eval.contracts import Track
from musicnet_eval.errors import ConfigError, DataError
from tests.test_audio import tone

SECOND = 16_000 / GB  # of 8 kHz mono, in the unit of data.cache_max_gb


def songs(folder: Path, count: int, seconds: float = 1.0, prefix: str = "") -> list[Track]:
    folder.mkdir(exist_ok=True)
    made = []
    for i in range(count):
        path = folder / f"{prefix}{i}.wav"
        soundfile.write(path, tone(8000, seconds, 200.0 + 10 * i), 8000)
        made.append(Track(path.name, path, ("x",), path.name))
    return made


def stored(cache: DecodedCache) -> list[Path]:
    return sorted(cache.folder.glob("??/*.pcm"))


def leases(cache: DecodedCache) -> list[Path]:
    return [folder for folder in (cache.folder / "use").iterdir() if folder.is_dir()]


def whole(built: Built) -> list[Path]:
    assert not built.bad
    files = [file for file in built.files if file is not None]
    assert len(files) == len(built.files)
    return files


def test_decodes_once_and_notices_a_changed_source(tmp_path: Path) -> None:
    tracks = songs(tmp_path, 1)
    (first,) = whole(DecodedCache(tmp_path / "cache", 8000).build(tracks))
    inode = first.stat().st_ino
    assert whole(DecodedCache(tmp_path / "cache", 8000).build(tracks)) == [first]
    assert first.stat().st_ino == inode
    soundfile.write(tracks[0].path, tone(8000, 0.5), 8000)
    assert whole(DecodedCache(tmp_path / "cache", 8000).build(tracks)) != [first]


def test_names_tell_apart_what_is_decoded_otherwise(tmp_path: Path) -> None:
    (track,) = songs(tmp_path, 1)
    options = [(8000, None, 1), (4000, None, 1), (8000, 0.5, 1), (8000, None, 2)]
    caches = [DecodedCache(tmp_path / "cache", rate, seconds, channels) for rate, seconds, channels in options]
    files = [whole(cache.build([track]))[0] for cache in caches]
    assert len(set(files)) == 4
    assert [file.stat().st_size for file in files] == [16_000, 8000, 8000, 32_000]


def test_a_source_is_the_same_by_every_path_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (track,) = songs(tmp_path / "music", 1)
    (tmp_path / "link").symlink_to(tmp_path / "music")
    cache = DecodedCache(tmp_path / "cache", 8000)
    monkeypatch.chdir(tmp_path / "music")
    paths = [
        track.path,
        tmp_path / "link" / track.path.name,
        Path(track.path.name),
        tmp_path / "cache/../music" / track.path.name,
    ]
    (tmp_path / "cache").mkdir()
    assert len({cache.path(path) for path in paths}) == 1


def test_a_track_listed_twice(tmp_path: Path) -> None:
    (track,) = songs(tmp_path, 1)
    twice = [track, *(Track(f"again {i}", track.path, ("x",), "again") for i in range(20))]
    assert len(set(whole(DecodedCache(tmp_path / "cache", 8000).build(twice)))) == 1


def test_three_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.channels=3 must be 1 .* or 2"):
        DecodedCache(tmp_path, 8000, channels=3)


# --- several processes, and killed ones ---

BUILD = """
import sys
from pathlib import Path
from musicnet_eval.cache import DecodedCache
from musicnet_eval.contracts import Track
folder, *sources = map(Path, sys.argv[1:])
print("ready", flush=True)
cache = DecodedCache(folder, 22050)
cache.build([Track(path.name, path, ("x",), path.name) for path in sources])
print("built", flush=True)
sys.stdin.readline()
"""


def builder(folder: Path, sources: list[Path]) -> subprocess.Popen[str]:
    """Start a process that says `ready`, builds, says `built`, and stays until its input ends."""
    command = [sys.executable, "-c", BUILD, str(folder), *map(str, sources)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def until_built(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "built\n"


@pytest.fixture
def noise(tmp_path: Path) -> list[Path]:
    """Write ten files whose decoding takes a while: 6 s of noise, to be resampled."""
    draw = np.random.default_rng(0)
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.flac", 0.1 * draw.standard_normal((6 * 44100, 2)), 44100)
    return [tmp_path / f"{i}.flac" for i in range(10)]


@pytest.fixture
def truth(tmp_path: Path, noise: list[Path]) -> dict[str, bytes]:
    """Build undisturbed, and give each PCM file's content by name."""
    cache = DecodedCache(tmp_path / "undisturbed", 22050)
    whole(cache.build([Track(path.name, path, ("x",), path.name) for path in noise]))
    return {file.name: file.read_bytes() for file in stored(cache)}


def test_two_processes_build_one_cache(tmp_path: Path, noise: list[Path], truth: dict[str, bytes]) -> None:
    both = [builder(tmp_path / "cache", noise) for _ in range(2)]
    for process in both:
        until_built(process)
    for process in both:
        assert process.communicate("done\n", timeout=60) == ("", "")
    cache = DecodedCache(tmp_path / "cache", 22050)
    assert {file.name: file.read_bytes() for file in stored(cache)} == truth
    assert not list(cache.folder.rglob("*.tmp"))
    assert not leases(cache)
    for path in noise:
        np.testing.assert_array_equal(np.fromfile(cache.path(path), np.int16), decode(path, 22050))


@pytest.mark.slow
def test_kill_nine_at_twenty_moments(tmp_path: Path, noise: list[Path], truth: dict[str, bytes]) -> None:
    """Whenever a builder is killed, what is there is whole, and the next one ends with what an undisturbed one has made."""
    first = builder(tmp_path / "timed", noise)
    began = time.monotonic()
    until_built(first)
    lasts = time.monotonic() - began
    first.communicate("done\n", timeout=60)
    draw = random.Random(5)
    partly = 0
    tracks = [Track(path.name, path, ("x",), path.name) for path in noise]
    for _ in range(20):
        process = builder(tmp_path / "cache", noise)
        time.sleep(draw.uniform(0, lasts))
        process.kill()
        process.communicate(timeout=60)
        cache = DecodedCache(tmp_path / "cache", 22050)
        found = stored(cache)
        partly += 0 < len(found) < len(noise)
        for file in found:
            assert file.read_bytes() == truth[file.name]
        cache.build(tracks)
        assert {file.name: file.read_bytes() for file in stored(cache)} == truth
        assert not list(cache.folder.rglob("*.tmp"))  # what the killed one has left is swept away
        assert len(leases(cache)) == 1
        shutil.rmtree(cache.folder)
    assert partly >= 5  # most moments were in the middle of the build


# --- the bound ---


def grow_old(cache: DecodedCache, built: Built, age: float) -> None:
    for file in whole(built):
        os.utime(file, (time.time() - age, time.time() - age))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path / "cache", 8000)
    old, middle, new = (songs(tmp_path / name, 3, prefix=name) for name in ("old", "middle", "new"))
    for tracks, age in ((old, 3000), (middle, 2000)):
        grow_old(cache, cache.build(tracks), age)
    again = whole(DecodedCache(cache.folder, 8000).build(old[:1]))  # used again: no longer old
    del cache
    gc.collect()
    bounded = DecodedCache(tmp_path / "cache", 8000, max_gb=6 * SECOND)
    fresh = whole(bounded.build(new))
    kept = {*again, *fresh, *map(bounded.path, [track.path for track in middle])}
    assert len(stored(bounded)) <= 6
    assert set(stored(bounded)) <= kept
    assert {*again, *fresh} <= set(stored(bounded))


def test_without_a_bound_nothing_goes(tmp_path: Path) -> None:
    for i in range(4):
        DecodedCache(tmp_path / "cache", 8000).build(songs(tmp_path / str(i), 3, prefix=str(i)))
    assert len(stored(DecodedCache(tmp_path / "cache", 8000))) == 12


def test_what_a_living_process_uses_stays(tmp_path: Path, noise: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A file in use is kept, whatever the bound; once its user is gone, even by kill -9, it may go."""
    user = builder(tmp_path / "cache", noise[:4])
    until_built(user)
    cache = DecodedCache(tmp_path / "cache", 22050)
    used = stored(cache)
    for file in used:
        os.utime(file, (1, 1))
    mine = songs(tmp_path / "mine", 3)
    bound = 3 * 22050 * 2 / GB
    own = whole(DecodedCache(tmp_path / "cache", 22050, max_gb=bound).build(mine))
    assert set(stored(cache)) == {*used, *own}
    assert "above data.cache_max_gb" in capsys.readouterr().err
    user.kill()
    user.communicate(timeout=60)
    (extra,) = songs(tmp_path / "extra", 1, prefix="extra")
    DecodedCache(tmp_path / "cache", 22050, max_gb=4 * bound / 3).build([*mine, extra])
    assert set(stored(cache)) == {*own, cache.path(extra.path)}
    assert "above" not in capsys.readouterr().err


def test_files_in_use_can_be_opened_again_after_others_have_evicted(tmp_path: Path) -> None:
    mine = DecodedCache(tmp_path / "cache", 8000)
    files = whole(mine.build(songs(tmp_path / "mine", 3)))
    for file in files:
        os.utime(file, (1, 1))
    DecodedCache(tmp_path / "cache", 8000, max_gb=2 * SECOND).build(songs(tmp_path / "theirs", 2, prefix="their"))
    out = np.zeros(9000, np.int16)
    for room in (0, 10**6):
        assert [PcmReader(room).read(str(file), 0, out) for file in files] == [8000] * 3


def test_a_lease_ends_with_its_cache_but_not_in_a_forked_child(tmp_path: Path) -> None:
    """In a process of its own, whose children are forked, as loader workers are."""
    (track,) = songs(tmp_path, 1)
    code = f"""
import gc, os
from pathlib import Path
from musicnet_eval.cache import DecodedCache
from musicnet_eval.contracts import Track
cache = DecodedCache("cache", 8000)
cache.build([Track("a", Path({str(track.path)!r}), ("x",), "a")])
def leases():
    return sum(entry.is_dir() for entry in os.scandir("cache/use"))
if (child := os.fork()) == 0:
    del cache
    gc.collect()
    os._exit(0)
os.waitpid(child, 0)
other = DecodedCache("cache", 8000, max_gb=1e-9)
try:
    other._bound(0, room=0)
except OSError as error:
    raise SystemExit(str(error))
assert len(list(Path("cache").glob("??/*.pcm"))) == 1, "evicted while in use"
assert leases() == 1
del cache
gc.collect()
assert leases() == 0
other._bound(0, room=0)
assert not list(Path("cache").glob("??/*.pcm"))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


def test_a_bound_below_the_own_data_is_an_error_before_anything_is_decoded(tmp_path: Path) -> None:
    tracks = songs(tmp_path / "music", 5, seconds=60)
    cache = DecodedCache(tmp_path / "cache", 8000, max_gb=0.003)
    with pytest.raises(DataError, match=r"data\.cache_max_gb=0\.003 is less than the 4\.8 MB .*data\.max_seconds"):
        cache.build(tracks)
    assert not stored(cache)
    DecodedCache(tmp_path / "cache", 8000, max_seconds=30, max_gb=0.003).build(tracks)
    assert sum(file.stat().st_size for file in stored(cache)) == 5 * 30 * 16_000


# --- disks that are full, or not ours ---


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_decoded(tmp_path: Path) -> None:
    """Ask for more than any disk has: hard links to one sparse file that claims four gigabytes of 8-bit audio at 1 kHz."""
    first = tmp_path / "0.wav"
    soundfile.write(first, np.zeros(2000), 1000, subtype="PCM_U8")
    content = bytearray(first.read_bytes())
    for mark in (b"RIFF", b"data"):
        at = content.index(mark) + 4
        content[at : at + 4] = (0x7F000000).to_bytes(4, "little")
    first.write_bytes(content)
    os.truncate(first, 0x7F000000)
    links = 2 + shutil.disk_usage(tmp_path).free // (2 * 48 * 0x7F000000)
    for i in range(1, links):
        os.link(first, tmp_path / f"{i}.wav")
    tracks = [Track(str(i), tmp_path / f"{i}.wav", ("x",), str(i)) for i in range(links)]
    cache = DecodedCache(tmp_path / "cache", 48_000)
    with pytest.raises(DataError, match=r"tracks to decode take \d+\.\d GB, and \d+\.\d GB are free in data\.cache_dir="):
        cache.build(tracks)
    assert not stored(cache)


def test_a_write_that_fails_midway_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The system refuses files beyond 100 kB, as a full disk or a quota would: one clear error, and no traceback."""
    short, long = songs(tmp_path, 1, seconds=1), songs(tmp_path, 1, seconds=30, prefix="long")
    code = f"""
import resource, sys
from pathlib import Path
from musicnet_eval.cache import DecodedCache
from musicnet_eval.contracts import Track
from musicnet_eval.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
tracks = [Track(p, Path(p), ("x",), p) for p in ({str(short[0].path)!r}, {str(long[0].path)!r})]
try:
    DecodedCache("cache", 8000).build(tracks)
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "data.cache_dir='cache' cannot be written" in done.stdout
    assert "point data.cache_dir at another disk" in done.stdout
    cache = DecodedCache(tmp_path / "cache", 8000)
    assert [file.stat().st_size for file in stored(cache)] in ([], [16_000])
    assert not list(cache.folder.rglob("*.tmp"))
    assert len(whole(cache.build([*short, *long]))) == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    tracks = songs(tmp_path, 1)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataError, match=r"data\.cache_dir='.*' cannot be written"):
        DecodedCache(tmp_path / "cache", 8000).build(tracks)


def _build_at_start(folder: Path, tracks: list[Track]) -> None:
    whole(DecodedCache(folder, 8000).build(tracks))


@pytest.mark.slow
def test_building_is_spawn_safe(tmp_path: Path) -> None:
    tracks = songs(tmp_path, 3)
    process = multiprocessing.get_context("spawn").Process(target=_build_at_start, args=(tmp_path / "cache", tracks))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert len(stored(DecodedCache(tmp_path / "cache", 8000))) == 3
