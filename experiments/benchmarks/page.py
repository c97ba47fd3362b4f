"""The page of the benchmarks: figures kept by section in results.json, and README.md written from all of them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from musicnet_eval import environment, records

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
HOW = """\
Ratios are of medians. The sides that are compared took turns (bare, ours, bare, ours, …) within one call, so that whatever else
the machine did slowed all of them. Absolute times are of a shared, noisy machine and mean little by themselves. One CPU thread
on all sides, `tradition` as the data, if nothing else is said.

- **path**: the training loader, random positions in one file a song, beside random rows of one memory-mapped file; the page
  cache is warm for both.
- **front_ends**: Hann windows of 2048, hop 512, 128 bands on all sides; ours as in training, segment by segment.
- **augment**: what makes a batch beside the step on it (AdamW, channels last, float32). Most of `music_strong` is pitch and
  tempo, a tenth of the rows each.
- **recipes**: whole steps (cross-entropy, AdamW) on images of 1×128×130, CPU time; what takes over 3 times as long on two
  images is given from these. A processor that multiplies in bf16 has another table.
- **sweeps**: a run's overhead is the time between the beginnings of two jobs of one process, less fit and test. Two jobs at once
  and one by one are the same four jobs by the same launcher, done once each: let nothing else run.
- **run**: `musicnet-train` on a warm decoded cache beside `bare.py`, which imports torch, torchaudio and timm, and reads
  decoded songs from NumPy files.
- **epoch**: `turns.py`, a callback, lets a bare loop do each epoch before our trainer does the same one: the same int16
  segments and batches, held in memory; the same spectrogram, song by song; the same network, channels last; cross-entropy;
  AdamW; and validation. Ours counts all between two epochs: reading, hooks, metrics, checkpoints, tables. That both networks
  end with equal weights is checked. The bare loop runs without torch's deterministic mode.
"""


@dataclass(frozen=True)
class Figure:
    """One measured figure beside its target, with every round it rests on."""

    what: str
    value: str
    target: str
    met: bool
    rounds: dict[str, list[float]]
    note: str


def show(section: str, figures: Sequence[Figure]) -> None:
    """Print the figures of a section as a table in the terminal."""
    table = Table("figure", "measured", "target", "met", "note", title=section)
    for figure in figures:
        table.add_row(figure.what.strip("`"), figure.value, figure.target, "yes" if figure.met else "NO", figure.note)
    Console().print(table)


def keep(section: str, figures: Sequence[Figure], seconds: float) -> None:
    """Put the figures of a section in place of its earlier ones, with when and on what they were measured."""
    git = environment.git()
    results = _results()
    results[section] = {
        "figures": [asdict(figure) for figure in figures],
        "date": time.strftime("%Y-%m-%d"),
        "commit": f"{git['commit'][:12]}{' with local changes' if git['dirty'] else ''}" if git else "unknown",
        "minutes": round(seconds / 60, 1),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "machine": f"{environment.cores()} cores, {environment.processor()}, {platform.system()} {platform.machine()}",
        "versions": environment.versions(),
    }
    records.write_json(RESULTS, results)


def _results() -> dict[str, Any]:
    return records.read_json(RESULTS) if RESULTS.exists() else {}


def write(order: Sequence[str]) -> None:
    """Write README.md from all that is kept, section by section."""
    results = _results()
    kept = [name for name in order if name in results]
    figures = [(name, Figure(**row)) for name in kept for row in results[name]["figures"]]
    rows = [f"| {n} | {f.what} | {f.value} | {f.target} | {'yes' if f.met else '**no**'} | {f.note} |" for n, f in figures]
    when = [
        f"| {name} | {one['date']} | {one['commit']} | {one['minutes']} | {one['load']} |"
        for name, one in ((name, results[name]) for name in kept)
    ]
    rounds = [
        f"| {name} | {figure.what} | {side} | {' '.join(f'{value:.3g}' for value in values)} |"
        for name, figure in figures
        for side, values in figure.rounds.items()
    ]
    latest = max((results[name] for name in kept), key=lambda one: one["date"])
    text = f"""# Speed

Written by `bench.py`; do not edit. `make bench` measures all of it again, and
`.venv/bin/python experiments/benchmarks/bench.py --only epoch` one section; `--quick` shows rough figures and writes nothing.

| section | figure | measured | target | met | note |
|---|---|---|---|---|---|
{chr(10).join(rows)}

{HOW}
## When and on what

Machine: {latest["machine"]}. Versions: {", ".join(f"{name} {number}" for name, number in latest["versions"].items())}.

| section | date | commit | minutes | load at the end |
|---|---|---|---|---|
{chr(10).join(when)}

## Every round, seconds

| section | figure | side | rounds |
|---|---|---|---|
{chr(10).join(rounds)}
"""
    (HERE / "README.md").write_text(text, encoding="utf8")
