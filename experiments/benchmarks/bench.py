"""Measure how fast the product is and write README.md beside this file: `make bench`, or `python bench.py [--quick] [--only …]`.

Figures, each with its target: `--help` of every command; an epoch beside a bare PyTorch loop; a whole small run beside a bare
script; the cached data path beside a memory-map gather; `log_mel` beside other libraries; a loss step beside cross-entropy; the
choices of `recipe=auto` beside the best ones. What is compared takes turns within one call, and medians are compared, because
other work on the machine slows both sides alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import augment_share
import bare
import data_path
import front_ends
import loss_steps
import numpy as np
import page
import reading
import recipes
import soundfile
import sweeps
import torch
from page import Figure

from musicnet_eval import configs
from musicnet_eval.datamodule import MusicDataModule
from musicnet_eval.datasets import assign_splits

HERE = Path(__file__).resolve().parent
COMMANDS = ("train", "evaluate", "predict", "leaderboard", "report", "audit", "status", "dashboard")
# Says on stderr which heavy packages a command has imported by the time that it has printed its help.
PROBE = """
import contextlib, runpy, sys
sys.argv = [sys.argv[1], "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module(sys.argv[0], run_name="__main__")
print(*(name for name in ("torch", "scipy") if name in sys.modules), file=sys.stderr)
"""


@dataclass(frozen=True)
class Effort:
    """How often each thing is measured, and how long the epochs are."""

    help_rounds: int
    epochs: int
    epoch_overrides: tuple[str, ...]
    runs: int
    gathers: int
    networks: int
    batch_size: int


FULL = Effort(help_rounds=5, epochs=7, epoch_overrides=(), runs=3, gathers=25, networks=8, batch_size=16)
QUICK = Effort(
    help_rounds=3,
    epochs=2,
    epoch_overrides=("spectrogram.n_mels=64", "trainer.limit_train_batches=5", "trainer.limit_val_batches=1"),
    runs=1,
    gathers=9,
    networks=3,
    batch_size=8,
)


# --- data ---------------------------------------------------------------------------------------------------------------------


def choose_data(work: Path) -> tuple[str, list[str]]:
    """Give the embedded data set if it is built here, else clips of noise: a description and the overrides that name it."""
    root = Path(os.environ.get("MUSICNET_DATA", "data")).resolve()
    if (root / "tradition" / "manifest.csv").exists():
        return "`tradition`, the embedded data set (720 FLAC clips of 6 s, 22.05 kHz)", [f"paths.data={root}", "data=tradition"]
    say("the embedded data set is not built here: making clips of noise instead")
    draw = np.random.default_rng(0)
    for label in range(6):
        (work / "noise" / f"class_{label}").mkdir(parents=True)
        for number in range(120):
            noise = 0.1 * draw.standard_normal(6 * bare.SAMPLE_RATE)
            soundfile.write(work / "noise" / f"class_{label}" / f"{number}.flac", noise, bare.SAMPLE_RATE)
    return "clips of noise (720 FLAC clips of 6 s, 22.05 kHz)", [
        f"paths.data={work}",
        "data=folder",
        f"data.root={work / 'noise'}",
    ]


def data_module(overrides: list[str]) -> MusicDataModule:
    """Build the data module as a run would, which also warms the decoded cache."""
    config = configs.resolved(configs.compose([*overrides, "trainer=cpu"]))
    data = config["data"]
    tracks = configs.build(data["index"], "data.index")
    split = assign_splits(tracks, data["protocol"], data["fold"], data["folds"], data["split_seed"])
    module: MusicDataModule = configs.build(config["datamodule"], "datamodule", tracks=split)
    module.setup()
    return module


def songs(data: MusicDataModule, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Give the decoded songs of a split `[S, T]`, cut to the shortest, and their labels."""
    tracks = [track for track in data.tracks if track.split == split]
    audio = [np.fromfile(data.cache.path(track.path), dtype=np.int16) for track in tracks]
    shortest = min(map(len, audio))
    return np.stack([song[:shortest] for song in audio]), np.array([data.classes.index(track.labels[0]) for track in tracks])


# --- the figures --------------------------------------------------------------------------------------------------------------


def measure_help(rounds: int) -> list[Figure]:
    """Time `--help` of every command, and look at what it imports."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds):
        say(f"--help, round {number + 1} of {rounds}")
        for name in COMMANDS:
            seconds[name].append(spent([sys.executable, "-m", f"musicnet_eval.{name}", "--help"]))
    figures = []
    for name in COMMANDS:
        probe = [sys.executable, "-c", PROBE, f"musicnet_eval.{name}"]
        heavy = subprocess.run(probe, check=True, capture_output=True, text=True).stderr.split()
        median = statistics.median(seconds[name])
        imports = f"imports {' and '.join(heavy)}" if heavy else "imports neither torch nor SciPy"
        met = median < 1 and not heavy
        figures.append(
            Figure(f"`musicnet-{name} --help`", f"{median:.2f} s", "< 1 s, light", met, {name: seconds[name]}, imports)
        )
    return figures


def measure_epoch(overrides: list[str], epochs: int, work: Path) -> Figure:
    """Let the trainer and a bare loop take turns at the epochs of one training (`turns.py`)."""
    results = work / "turns.json"
    watch = ["plugins=[turns]", "+callbacks.turns._target_=turns.Turns", f"+callbacks.turns.results={results}"]
    same = ["backbone=resnet18", "scheduler=constant", f"trainer.max_epochs={epochs}", "trainer.limit_test_batches=1"]
    same.append("model.weight_decay_exclude_1d=false")  # the bare loop decays all weights alike
    spent(train_command([*overrides, *watch, *same, f"hydra.run.dir={work / 'epochs'}"]))
    measured = json.loads(results.read_text(encoding="utf8"))
    if not measured["equal"]:
        raise SystemExit("error: the two loops did not end with equal weights, so they did not do the same work.")
    wall = {name: [pair[0] for pair in measured[name]] for name in ("ours", "bare")}
    processor = {name: [pair[1] for pair in measured[name]] for name in ("ours", "bare")}
    note = (
        f"ResNet-18, training and validation, {sum(map(sum, wall.values())):.0f} s in all; both end with equal weights; "
        f"by CPU time {ratio(processor):.3f} ×"
    )
    value = ratio(wall)
    return Figure("an epoch / a bare PyTorch loop's", f"{value:.3f} ×", "<= 1.05 ×", value <= 1.05, wall, note)


def measure_run(overrides: list[str], rounds: int, data: MusicDataModule, work: Path) -> Figure:
    """Time a whole small run, start-up included, beside a bare script that does the same work in a process of its own."""
    for split in ("train", "val", "test"):
        audio, labels = songs(data, split)
        np.save(work / f"{split}_pcm.npy", audio)
        np.save(work / f"{split}_label.npy", labels)
    small = [f"backbone={bare.BACKBONE}", f"spectrogram.n_mels={bare.N_MELS}", "trainer.max_epochs=3", "run.force=true"]
    ours = train_command([*overrides, *small, f"hydra.run.dir={work / 'small'}"])
    script = [sys.executable, str(HERE / "bare.py"), str(work), "3"]
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for number in range(rounds):
        say(f"small run, round {number + 1} of {rounds}")
        seconds["bare"].append(spent(script))
        seconds["ours"].append(spent(ours))
    value = ratio(seconds)
    note = f"{bare.BACKBONE} at {bare.N_MELS} mels, 3 epochs and the test, from starting Python to its end"
    return Figure("a small run / a bare script's", f"{value:.2f} ×", "<= 2 ×", value <= 2, seconds, note)


def measure_data(data: MusicDataModule, rounds: int, work: Path) -> Figure:
    """Time the training loader over the decoded cache beside a gather of as many rows of one memory-mapped file."""
    audio, labels = songs(data, "train")
    np.save(work / "rows.npy", audio[:, : data.segment])
    rows = np.load(work / "rows.npy", mmap_mode="r")
    draw = np.random.default_rng(0)
    loader = data.train_dataloader()

    def gathered() -> Iterator[Any]:
        order = draw.permutation(len(rows))
        for first in range(0, len(order), data.batch_size):
            chosen = order[first : first + data.batch_size]
            yield {"audio": torch.from_numpy(rows[chosen]), "label": torch.from_numpy(labels[chosen])}

    say(f"data path, {rounds} rounds")
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds + 1):
        seconds["bare"].append(drained(gathered))
        seconds["ours"].append(drained(lambda: loader))
    seconds = {name: values[1:] for name, values in seconds.items()}  # the first round warmed both page caches
    value = ratio(seconds)
    speed = {name: len(rows) / statistics.median(values) for name, values in seconds.items()}
    note = f"{speed['ours']:,.0f} segments/s beside {speed['bare']:,.0f}; batches of {data.batch_size}, random rows"
    return Figure("cached data path / memory-map gather", f"{value:.2f} ×", "<= 2 ×", value <= 2, seconds, note)


def measure_recipes(effort: Effort) -> list[Figure]:
    """Compare what `recipe=auto` chooses with the best of the table, for some networks."""
    rows = recipes.measure(recipes.NETWORKS[: effort.networks], effort.batch_size, effort.help_rounds)
    return [Figure(**row) for row in rows]


def drained(batches: Callable[[], Any]) -> float:
    """Time one pass over batches, seconds."""
    began = time.perf_counter()
    for batch in batches():
        del batch
    return time.perf_counter() - began


def train_command(overrides: list[str]) -> list[str]:
    """Give the command of one training on one CPU thread."""
    return [sys.executable, "-m", "musicnet_eval.train", *overrides, "trainer=cpu", "num_threads=1"]


def spent(command: list[str]) -> float:
    """Run a command and give its wall time, seconds; what it printed is shown only if it fails."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} left with {done.returncode}:\n{done.stdout}{done.stderr}")
    return seconds


def ratio(seconds: dict[str, list[float]]) -> float:
    """Divide our median by the bare one's."""
    return statistics.median(seconds["ours"]) / statistics.median(seconds["bare"])


# --- the sections ---------------------------------------------------------------------------------------------------------------


class Bench:
    """What the sections measure with: how much, where, and the embedded data set, read when the first one asks for it.

    Args:
        effort: How often and how long.
        work: An empty folder.
    """

    def __init__(self, effort: Effort, work: Path) -> None:
        self.effort = effort
        self.work = work

    @cached_property
    def chosen(self) -> tuple[str, list[str]]:
        described, overrides = choose_data(self.work)
        say(f"data: {described.replace('`', '')}")
        return described, [*overrides, "data.protocol=group_kfold"]

    @cached_property
    def data(self) -> MusicDataModule:
        return data_module(self.chosen[1])

    @cached_property
    def audio(self) -> torch.Tensor:
        """Give 64 segments `[64, T]` of as many songs."""
        return torch.from_numpy(songs(self.data, "train")[0][:64, : bare.SEGMENT]).float() / 32768


def figures_of(rows: list[dict[str, Any]]) -> list[Figure]:
    """Make figures of rows from modules that know nothing of this one."""
    return [Figure(**row) for row in rows]


# What `--only` names, in the order of the page.
SECTIONS: dict[str, Callable[[Bench], list[Figure]]] = {
    "help": lambda b: measure_help(b.effort.help_rounds),
    "path": lambda b: [measure_data(b.data, b.effort.gathers, b.work)],
    "data": lambda b: figures_of(data_path.measure(b.work / "data_side", b.effort.help_rounds)),
    "losses": lambda b: [Figure(*loss_steps.measure(rounds=8 * b.effort.gathers))],
    "reading": lambda b: figures_of(reading.measure(b.work / "reading")),
    "front_ends": lambda b: figures_of(front_ends.measure(b.audio, b.effort.help_rounds)),
    "augment": lambda b: figures_of(augment_share.measure(b.audio[:32], b.effort.help_rounds)),
    "recipes": lambda b: measure_recipes(b.effort),
    "sweeps": lambda b: figures_of(sweeps.measure(b.chosen[1], b.work, quick=b.effort is QUICK)),
    "run": lambda b: [measure_run(b.chosen[1], b.effort.runs, b.data, b.work)],
    "epoch": lambda b: [measure_epoch([*b.chosen[1], *b.effort.epoch_overrides], b.effort.epochs, b.work)],
}


def say(line: str) -> None:
    """Report progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure what is asked for and show it; in full, keep it and write README.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter epochs and fewer rounds; shown, not written down")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="measure these alone; the page keeps the others")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only or SECTIONS:
        began = time.perf_counter()
        say(f"{name} …")
        with tempfile.TemporaryDirectory() as folder:
            figures = SECTIONS[name](Bench(QUICK if given.quick else FULL, Path(folder)))
        page.show(name, figures)
        if not given.quick:
            page.keep(name, figures, time.perf_counter() - began)
            page.write(list(SECTIONS))


if __name__ == "__main__":
    main()
