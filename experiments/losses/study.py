"""The loss study: what the balanced trusted loss does for a small network on the embedded data, clean and with planted faults.

    python experiments/losses/study.py            all runs that are missing, then the tables (about 3 hours on 2 cores)
    python experiments/losses/study.py --quick    fewer losses and seeds (about 15 minutes)
    python experiments/losses/study.py --tables   the tables alone, from the runs that are whole

Runs are those of `musicnet-train -m`: what is done is not repeated, what was cut short goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXED = (  # what all runs share
    *("data=tradition", "data.sample_rate=11025", "data.batch_size=16"),
    *("spectrogram=log_mel", "spectrogram.n_fft=1024", "spectrogram.hop_length=1024", "spectrogram.n_mels=64"),
    *("plugins=[small_cnn]", "backbone=small_cnn", "optimizer.lr=0.01"),
    *("trainer=cpu", "trainer.max_epochs=12", "++trainer.check_val_every_n_epoch=3", "num_threads=1"),
    *("callbacks=label_trust", "run.keep_checkpoints=none"),
)
LOSSES = (
    *("cross_entropy", "label_smoothing", "focal", "class_balanced", "generalized_cross_entropy"),
    *("balanced_trusted", "balanced_trusted_robust", "balanced_trusted_balanced", "balanced_trusted_noisy"),
)
QUICK = ("cross_entropy", "label_smoothing", "generalized_cross_entropy", "balanced_trusted", "balanced_trusted_robust")
# balance_factor 3 is balanced_trusted itself; 1 equals label smoothing of 0.1 and is not run twice.
FACTORS = "loss.balance_factor=2,4,5"
WRONG, UNEQUAL = "data.plant.wrong_labels=null,0.2,0.4", "data.plant.imbalance=10"


def sweeps(seeds: int, *, quick: bool) -> list[list[str]]:
    """List the sweeps, longest first; the seed varies slowest, so that a study cut short has whole seeds."""
    seed = "seed=" + ",".join(map(str, range(seeds)))
    losses = "loss=" + ",".join(QUICK if quick else LOSSES)
    found = [[seed, faults, losses] for faults in (WRONG, UNEQUAL)]
    if not quick:
        found += [[seed, faults, "loss=balanced_trusted", FACTORS] for faults in (WRONG, UNEQUAL)]
    return found


def train(sweep: Sequence[str], runs: Path) -> int:
    """Run one sweep in a process of its own, on one core, and give its exit code."""
    paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "musicnet_eval.train", "-m", *FIXED, *sweep, f"hydra.sweep.dir={runs}"]
    return subprocess.run(command, env=environment, check=False).returncode


def main() -> int:
    """Train what is missing, write the tables, and give the worst exit code of the sweeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 losses, 3 seeds")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    parser.add_argument("--seeds", type=int, help="default: 5, with --quick 3")
    parser.add_argument("--processes", type=int, default=2, help="sweeps side by side, each on one core (default: 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/losses"), help="where the runs go (default: runs/losses)")
    parser.add_argument("--out", type=Path, default=HERE, help="where the tables go (default: beside this file)")
    given = parser.parse_args()
    worst = 0
    if not given.tables:
        wanted = sweeps(given.seeds or (3 if given.quick else 5), quick=given.quick)
        with ThreadPoolExecutor(given.processes) as pool:
            worst = max(pool.map(lambda sweep: train(sweep, given.runs), wanted))
    from tables import write

    write(given.runs, given.out)
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
