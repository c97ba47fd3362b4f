"""Measure the data side: segments beside the usual way and beside peers, memory, indexing, a second start, decoding on two cores.

`bench.py` prints the rows. What must begin afresh runs in a process of its own: `python data_path.py rss|start|decode …`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio

from musicnet_eval.contracts import Track
from musicnet_eval.datamodule import MusicDataModule
from musicnet_eval.datasets import assign_splits, check_splits, csv
from musicnet_eval.spectrograms import LogMel

RATE, SEGMENT = 22050, 66150
Row = dict[str, Any]


def module(tracks: list[Track], cache: Path, rate: int = RATE, **options: Any) -> MusicDataModule:
    """Make a data module over tracks, ready to be read."""
    data = MusicDataModule(tracks, LogMel(rate, 1024, 512, 32), sample_rate=rate, cache_dir=cache, **options)
    data.setup()
    return data


def listed(paths: list[Path], count: int) -> list[Track]:
    """List `count` training tracks over some files, in turn, and one track each to validate and test on."""
    splits = ["train"] * count + ["val", "test"]
    return [Track(str(i), paths[i % len(paths)], (f"c{i % 2}",), str(i), split) for i, split in enumerate(splits)]


def row(what: str, value: str, target: str, met: bool, rounds: dict[str, list[float]], note: str) -> Row:
    return {"what": what, "value": value, "target": target, "met": met, "rounds": rounds, "note": note}


def taken(batches: Callable[[], Any]) -> tuple[float, int]:
    """Time one pass over batches: seconds, and how many segments there were."""
    began, count = time.perf_counter(), 0
    for batch in batches():
        count += len(batch["label"])
    return time.perf_counter() - began, count


# --- beside the usual way ---


def minutes_of_music(folder: Path, count: int = 8) -> list[Path]:
    """Write 60 s of stereo as MP3 and OGG in turn."""
    draw, time_axis = np.random.default_rng(0), np.arange(60 * 44100) / 44100
    paths = []
    for i in range(count):
        tone = 0.2 * np.sin(2 * np.pi * 110 * (i + 1) * time_axis)
        paths.append(folder / f"{i}.{('mp3', 'ogg')[i % 2]}")
        sound = tone[:, None] + 0.02 * draw.standard_normal((len(time_axis), 2))
        with soundfile.SoundFile(paths[-1], "w", 44100, 2) as file:
            for second in np.split(sound, 60):  # libsndfile's Vorbis encoder dies of a minute in one call
                file.write(second)
    return paths


def usual(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Read one segment a file as most scripts do: the whole file, mixed, resampled, cropped."""
    draw = np.random.default_rng(1)
    for path in paths:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = torchaudio.functional.resample(torch.from_numpy(audio.mean(axis=1)), rate, RATE)
        start = int(draw.integers(0, len(mono) - SEGMENT))
        yield {"audio": mono[start : start + SEGMENT], "label": [0]}


def peers(paths: list[Path]) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Give the data paths of peers that are installed, segment by segment."""
    found: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {}
    if importlib.util.find_spec("opensoundscape"):
        from opensoundscape import Audio

        def by_opensoundscape() -> Iterator[dict[str, Any]]:
            for path in paths:
                yield {"audio": Audio.from_file(path, sample_rate=RATE, offset=20.0, duration=3.0).samples, "label": [0]}

        found["OpenSoundscape, one segment read and resampled"] = by_opensoundscape
    if importlib.util.find_spec("autrainer"):
        from autrainer.datasets.utils import AudioFileHandler

        handler = AudioFileHandler(target_sample_rate=RATE)

        def by_autrainer() -> Iterator[dict[str, Any]]:
            for path in paths:
                yield {"audio": handler.load(str(path))[:, :SEGMENT], "label": [0]}

        found["autrainer's file handler, whole file"] = by_autrainer
    return found


def measure_usual(work: Path, rounds: int) -> list[Row]:
    """Let the cached loader and the usual way take turns."""
    paths = minutes_of_music(work)
    loader = module(listed(paths, 1024), work / "cache").train_dataloader()
    others = {"the usual way": lambda: usual(paths), **peers(paths)}
    speed: dict[str, list[float]] = {name: [] for name in ("ours", *others)}
    for number in range(rounds + 1):
        for name, batches in {"ours": lambda: loader, **others}.items():
            seconds, count = taken(batches)
            if number:  # the first round warmed the page cache
                speed[name].append(count / seconds)
    ours = statistics.median(speed["ours"])
    rows = []
    for name in others:
        theirs = statistics.median(speed[name])
        target, met = (">= 200 ×", ours / theirs >= 200) if name == "the usual way" else ("faster", ours > theirs)
        note = f"{ours:,.0f} segments of 3 s a second beside {theirs:,.1f}, from 60 s MP3 and OGG; rounds are segments/s"
        rounds_of = {"ours": speed["ours"], "other": speed[name]}
        rows.append(row(f"cached segments / {name}", f"{ours / theirs:,.0f} ×", target, met, rounds_of, note))
    return rows


# --- in processes of their own ---


def alone(*arguments: object) -> list[float]:
    """Run this file in a process of its own and give the numbers that it prints."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} left with {done.returncode}:\n{done.stderr}")
    return [float(value) for value in done.stdout.split()]


def small_files(folder: Path, count: int) -> Path:
    """Write tracks of 0.1 s at 8 kHz and their manifest, in folders of 1000."""
    draw = np.random.default_rng(0)
    lines = ["path,label,group,split"]
    for i in range(count):
        name = f"{i // 1000:03d}/{i}.wav"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, 0.1 * draw.standard_normal(800), 8000)
        lines.append(f"{name},class {i % 8},group {i // 3},{('train', 'train', 'val', 'test')[i // 3 % 4]}")
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf8")
    return folder / "manifest.csv"


def indexed(manifest: Path) -> list[Track]:
    """Index, split and check a manifest."""
    split = assign_splits(csv(manifest), "official")
    check_splits(split)
    return split


def opened(manifest: Path, cache: Path) -> MusicDataModule:
    return module(indexed(manifest), cache, rate=8000, segment_seconds=0.1)


def resident() -> float:
    """Give this process's resident memory, MB, as the system counts it now."""
    for line in Path("/proc/self/status").read_text(encoding="utf8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    raise SystemExit("error: /proc/self/status names no VmRSS.")


def rss(manifest: Path, cache: Path) -> None:
    """Read two epochs and print the resident memory."""
    data = opened(manifest, cache)
    loader = data.train_dataloader()
    for _ in range(2):
        taken(lambda: loader)
    print(resident())


def start(manifest: Path, cache: Path) -> None:
    """Print how long it takes from the manifest to the first batch, imports left out, seconds."""
    began = time.perf_counter()
    next(iter(opened(manifest, cache).train_dataloader()))
    print(time.perf_counter() - began)


def decode(folder: Path, *cores: str) -> None:
    """Build a cache of the folder's files on the given cores and print the seconds."""
    os.sched_setaffinity(0, map(int, cores))
    tracks = listed(sorted(folder.glob("*.mp3")), 0)
    names = [Track(path.name, path, ("x",), path.name) for path in sorted(folder.glob("*.mp3"))]
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        data = MusicDataModule(tracks, LogMel(RATE, 1024, 512, 32), cache_dir=cache)
        began = time.perf_counter()
        data.cache.build(names)
        print(time.perf_counter() - began)


def measure_memory(work: Path, rounds: int, count: int) -> Row:
    """Compare the loader's resident memory over some tracks and over 100 times as many."""
    few, many = (small_files(work / str(n), n) for n in (count, 100 * count))
    sides: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds + 1):
        sides["bare"] += alone("rss", few, work / "cache_few")
        sides["ours"] += alone("rss", many, work / "cache_many")
    sides = {name: values[1:] for name, values in sides.items()}  # the first round decoded
    grown = statistics.median(sides["ours"]) / statistics.median(sides["bare"]) - 1
    note = f"{100 * count:,} tracks of 0.1 s beside {count:,}, two epochs each; rounds are MB"
    return row("resident memory, 100 × more tracks", f"{grown:+.1%}", "< +10 %", grown < 0.1, sides, note)


def measure_start(work: Path, rounds: int, count: int) -> list[Row]:
    """Time indexing 100,000 tracks, and a second start over as many tracks as were written for the memory's sake."""
    big = work / "big.csv"
    lines = (
        f"{i // 100:04d}/{i}.mp3,genre {i % 16},artist {i // 7},{('train', 'val', 'test')[i // 7 % 3]}" for i in range(100_000)
    )
    big.write_text("\n".join(["path,label,group,split", *lines]), encoding="utf8")
    indexing, starting = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        indexed(big)
        indexing.append(time.perf_counter() - began)
        starting += alone("start", work / str(count) / "manifest.csv", work / "cache_many")
    return [
        row(
            "index, split and check 100,000 tracks",
            f"{statistics.median(indexing):.1f} s",
            "< 10 s",
            statistics.median(indexing) < 10,
            {"ours": indexing},
            "a manifest with groups and splits",
        ),
        row(
            "second start to the first batch",
            f"{statistics.median(starting):.1f} s",
            "< 3 s",
            statistics.median(starting) < 3,
            {"ours": starting},
            f"{count:,} tracks, warm cache: index, split, check, cache, loader; without Python's imports",
        ),
    ]


def measure_decode(work: Path, rounds: int) -> Row:
    """Time decoding on one core and on two; the cores' own speed apart and together says what two can give."""
    (work / "decode").mkdir()
    source = minutes_of_music(work, 1)[0]
    for i in range(16):
        shutil.copy(source, work / "decode" / f"{i}.mp3")
    cores = sorted(os.sched_getaffinity(0))[:2]
    sides: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        sides["bare"] += alone("decode", work / "decode", cores[0])
        sides["ours"] += alone("decode", work / "decode", *cores)
    gain = statistics.median(sides["bare"]) / statistics.median(sides["ours"])
    note = "16 MP3s of 60 s to 22.05 kHz; bare: one core"
    return row("decoding on 2 cores / on 1", f"{gain:.2f} ×", ">= 1.8 ×", gain >= 1.8, sides, note)


def measure(work: Path, rounds: int, count: int = 100) -> list[Row]:
    """Measure all of it.

    Args:
        work: An empty folder.
        rounds: How often each is timed.
        count: Tracks of the small data set that the large one has 100 times.
    """
    work.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    rows = [*measure_usual(work, rounds), measure_memory(work, rounds, count)]
    return [*rows, *measure_start(work, rounds, 100 * count), measure_decode(work, rounds)]


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    first, *rest = given
    if what == "decode":
        decode(Path(first), *rest)
    else:
        {"rss": rss, "start": start}[what](Path(first), Path(rest[0]))
