"""Measure what sweeps cost beyond training: a run's overhead, a finished sweep asked for again, and jobs at once.

Jobs at once: the same four jobs by `hydra/launcher=process`, one after the other and two at a time, each on one CPU thread; then
one after the other with the threads that the launcher gives them by itself, which are all cores.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from data_path import Row, row

from musicnet_eval import records

RUNS, QUICK_RUNS = 100, 12
SMALLEST = (  # a run that is little more than its overhead
    "backbone=stats_linear",
    "spectrogram.n_mels=32",
    "spectrogram.hop_length=2048",
    "trainer.max_epochs=1",
    "++trainer.limit_train_batches=2",
    "++trainer.limit_val_batches=1",
    "++trainer.limit_test_batches=1",
    "trainer=cpu",
)
LONG = ("backbone=mobilenetv3_small_050", "spectrogram.n_mels=64", "trainer=cpu", "seed=range(0,4)")  # a minute or more each
EPOCHS, QUICK_EPOCHS = 30, 1


def lines(overrides: list[str], folder: Path) -> list[tuple[float, str]]:
    """Run a sweep to its end and give each line that it prints, with seconds from the start of Python."""
    command = [sys.executable, "-m", "musicnet_eval.train", "-m", *overrides, f"hydra.sweep.dir={folder}"]
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ) as process:
        assert process.stdout is not None
        told = [(time.perf_counter() - began, line) for line in process.stdout]
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} left with {process.returncode}:\n{''.join(line for _, line in told)}")
    return [*told, (time.perf_counter() - began, "")]


def small_runs(data: list[str], folder: Path, count: int) -> list[Row]:
    """Do many small runs in one process, and ask for them again."""
    asked = [*data, *SMALLEST, "num_threads=1", f"seed=range(0,{count})"]
    told = lines(asked, folder)
    begun = [seconds for seconds, line in told if re.match(r"\[\d+/\d+\] ", line)]
    places = [Path(line.rpartition("→ ")[2].strip()) for _, line in told if line.startswith("run: ")]
    overhead = []
    for first, after, run in zip(begun[1:], begun[2:], places[1:], strict=False):  # the first job imports torch
        seconds = records.read_result(run)["seconds"]
        overhead.append(after - first - seconds["fit"] - seconds["test"])
    again = []
    for _ in range(3):
        told = lines(asked, folder)
        if sum(line.startswith("done already: ") for _, line in told) != count:
            raise SystemExit("error: the finished sweep was not taken as finished.")
        again.append(told[-1][0])
    typical, check = statistics.median(overhead), statistics.median(again)
    note = f"{len(overhead)} runs of a sweep: composing, index, signature, set-up, files and record; without fit and test"
    whole = f"{count} runs of `tradition`, from starting Python to the end: signatures, tables and report"
    return [
        row(
            "a run beyond its training, in a running process",
            f"{typical:.2f} s",
            "<= 1.5 s",
            typical <= 1.5,
            {"overhead": overhead},
            note,
        ),
        row(
            f"a finished sweep of {count} runs asked for again",
            f"{check:.1f} s",
            "<= 10 s",
            check <= 10,
            {"again": again},
            whole,
        ),
    ]


def jobs_at_once(data: list[str], work: Path, epochs: int) -> list[Row]:
    """Do the same four jobs one after the other and two at a time."""
    ways = {
        "two at once": ("hydra.launcher.n_jobs=2", "num_threads=1"),
        "one by one": ("hydra.launcher.n_jobs=1", "num_threads=1"),
        "one by one, all cores": ("hydra.launcher.n_jobs=1",),
    }
    seconds: dict[str, list[float]] = {}
    for name, own in ways.items():
        print(f"4 jobs, {name}", file=sys.stderr, flush=True)
        folder = work / name.replace(" ", "_").replace(",", "")
        asked = [*data, *LONG, f"trainer.max_epochs={epochs}", "hydra/launcher=process", *own]
        seconds[name] = [lines(asked, folder)[-1][0]]
    both = seconds["two at once"][0]
    share, free = both / seconds["one by one"][0], both / seconds["one by one, all cores"][0]
    note = f"4 jobs of {seconds['one by one'][0] / 4:.0f} s each, one CPU thread a job, a process a job on both sides"
    return [
        row(
            "two jobs at once / one by one",
            f"{share:.2f} ×",
            "<= 0.65 ×",
            share <= 0.65,
            {name: seconds[name] for name in ("two at once", "one by one")},
            note,
        ),
        row(
            "two jobs at once / one by one on all cores",
            f"{free:.2f} ×",
            "<= 1 ×",
            free <= 1,
            {name: seconds[name] for name in ("two at once", "one by one, all cores")},
            "the same jobs; alone a job has all CPU threads, beside another its share of them",
        ),
    ]


def measure(data: list[str], work: Path, *, quick: bool) -> list[Row]:
    """Give the rows of the page.

    Args:
        data: Overrides that name the data.
        work: An empty folder.
        quick: Fewer runs, shorter jobs.
    """
    rows = small_runs(data, work / "small", QUICK_RUNS if quick else RUNS)
    return rows + jobs_at_once(data, work, QUICK_EPOCHS if quick else EPOCHS)
