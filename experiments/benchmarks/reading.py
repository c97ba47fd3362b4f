"""Measure leaderboard and report over 1,000 runs of 300 songs: part of `bench.py`, or `python reading.py`.

Each command runs in a process of its own, which says what CPU time and memory it took. CPU time is what counts: both use one
thread, and other work on the machine does not slow it as it slows the clock.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.fake_runs import write_run

CONFIGURATIONS, SEEDS, SONGS = 334, 3, 300
LIMITS = {"leaderboard": 10.0, "report": 60.0}  # seconds
MEMORY = 1000.0  # MB
# `ru_maxrss` would do elsewhere too, but Linux hands down what the process that started this one took.
PROBE = """
import contextlib, io, re, resource, sys
from importlib import import_module
from pathlib import Path
with contextlib.redirect_stdout(io.StringIO()):
    code = import_module(f"musicnet_eval.{sys.argv[1]}").main(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_SELF)
if sys.platform == "linux":
    peak = int(re.search("VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
else:
    peak = used.ru_maxrss
print(used.ru_utime + used.ru_stime, peak / 1e6)
sys.exit(code)
"""


def measure(work: Path, rounds: int = 1) -> list[dict[str, Any]]:
    """Write the runs, let both commands read them, and give what a row of the table says of each."""
    for number in range(CONFIGURATIONS):
        for seed in range(SEEDS):
            write_run(work, 150 + number % 100, SONGS, backbone=f"net{number}", seed=seed, epochs=20)
    rows = []
    for name, limit in LIMITS.items():
        command = [sys.executable, "-c", PROBE, name, str(work)]
        told = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(rounds)]
        seconds, memory = (sorted(float(one[i]) for one in told) for i in range(2))
        middle = seconds[len(seconds) // 2]
        rows.append(
            {
                "what": f"`musicnet-{name}`, {CONFIGURATIONS * SEEDS:,} runs of {SONGS} songs",
                "value": f"{middle:.1f} s, {memory[-1]:.0f} MB",
                "target": f"< {limit:g} s, < 1 GB",
                "met": middle < limit and memory[-1] < MEMORY,
                "rounds": {name: seconds},
                "note": f"CPU time; {CONFIGURATIONS} configurations of {SEEDS} seeds",
            }
        )
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(Path(folder)):
            print(row["what"], row["value"], row["target"], "met" if row["met"] else "NOT met", row["note"], sep=" | ")
