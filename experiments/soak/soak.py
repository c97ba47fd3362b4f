"""Kill sweeps without warning, at random moments, and ask for them again until they are whole.

    make soak                                                    every engine; Ray in an environment of its own
    python experiments/soak/soak.py --engines basic --kills 20   one engine
    python experiments/soak/soak.py --write FILE                 the table into a file as well

A sweep of three networks, two losses and two seeds on the embedded data is done once undisturbed, then by each engine with kills:
of the sweep's own process, or of the process of a run. After each kill every file of every run must be whole, and what is done
must stay untouched to the end; at the end all numbers must equal the undisturbed ones, bit for bit. Where one of these does not
hold, it says so, keeps the folder and leaves with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from musicnet_eval import records

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINES = {  # launcher → overrides, and how many kills
    "basic": ((), 20),
    "process": (("hydra/launcher=process", "hydra.launcher.n_jobs=2"), 3),
    "joblib": (("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), 3),
    "submitit_local": (("hydra/launcher=submitit_local", "hydra.launcher.n_jobs=2"), 3),
    "ray": (("hydra/launcher=ray",), 3),
}
SWEEP = (
    f"paths.data={REPOSITORY / 'data'}",
    "backbone=stats_linear,test_resnet,test_efficientnet",
    "loss=cross_entropy,balanced_trusted_robust",
    "seed=0,1",
    "spectrogram.n_mels=32",
    "spectrogram.hop_length=2048",
    "spectrogram.size=[32,32]",
    "augment=[noise,mixup]",
    "data.max_seconds=6",
    "trainer=cpu",
    "trainer.max_epochs=4",
    "++trainer.limit_train_batches=4",
    "++trainer.limit_val_batches=2",
    "++trainer.limit_test_batches=2",
    "num_threads=1",
)
COUNT = '''
import os
from pathlib import Path
from lightning.pytorch.callbacks import Callback


class Count(Callback):
    """Write down each epoch that is begun: the run and the epoch, in one write that a kill does not tear."""

    def on_train_epoch_start(self, trainer, module):
        line = f"{Path(trainer.default_root_dir).name} {trainer.current_epoch}\\n"
        file = os.open(os.environ["SOAK_EPOCHS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line.encode())
        os.close(file)
'''
MOST_ASKS = 60
PATIENCE = 900  # seconds for anything to happen at all


class SoakError(Exception):
    """What must hold does not."""


@dataclass
class Sweep:
    """One sweep, asked for as often as it takes.

    Args:
        folder: Where its runs go; the folder above is the working folder.
        overrides: What it asks for.
        python: Interpreter.
    """

    folder: Path
    overrides: Sequence[str]
    python: str = sys.executable
    asks: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    whole: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # of a run once it was done: its record, and epochs begun

    @property
    def epochs(self) -> Path:
        return self.folder.with_suffix(".epochs")

    def begun(self) -> Counter[str]:
        """Count the epochs that each run has begun."""
        if not self.epochs.exists():
            return Counter()
        return Counter(line.split()[0] for line in self.epochs.read_text(encoding="utf8").splitlines())

    def start(self) -> subprocess.Popen[bytes]:
        """Ask for the sweep."""
        self.asks += 1
        command = [
            self.python,
            "-m",
            "musicnet_eval.train",
            "-m",
            "plugins=[soak_count]",
            "+callbacks.count._target_=soak_count.Count",
        ]
        command += [*self.overrides, f"hydra.sweep.dir={self.folder}", "logger=none"]
        environment = {**os.environ, "SOAK_EPOCHS": str(self.epochs), "RAY_AUTH_MODE": "disabled", "PYTHONWARNINGS": "ignore"}
        with self.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, cwd=self.folder.parent, env=environment, stdout=log, stderr=log)

    def look(self) -> None:
        """Check every file of every run, and that runs which were done are as they were.

        Raises:
            SoakError: One is half-written, or was touched.
        """
        for run in records.find_runs([self.folder]) if self.folder.is_dir() else []:
            for file in run.rglob("*"):
                with contextlib.suppress(FileNotFoundError):  # a run that goes on replaces its files
                    _check_whole(file)
            if (run / records.RESULT).exists():
                now = ((run / records.RESULT).read_bytes(), self.begun()[run.name])
                before = self.whole.setdefault(run.name, now)
                if now != before:
                    raise SoakError(f"{run} was done, and was done again ({before[1]} epochs begun, then {now[1]}).")


def _check_whole(file: Path) -> None:
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf8"))
        elif file.suffix == ".ckpt":
            import torch

            torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise
    except Exception as error:
        raise SoakError(f"{file} is half-written: {error}") from error


def _wait(
    sweep: Sweep, process: subprocess.Popen[bytes], seconds: float, happened: Callable[[], bool] = lambda: False
) -> int | None:
    """Wait until a sweep ends, or something has happened, and give its exit code, if it has one; a hang must not pass as a kill.

    Raises:
        SoakError: It hangs; it is killed.
    """
    deadline = time.monotonic() + seconds
    while process.poll() is None and not happened():
        if time.monotonic() >= deadline:
            process.kill()
            process.wait()
            raise SoakError(f"{sweep.folder} has hung for {seconds} s; see {sweep.folder.with_suffix('.log')}.")
        time.sleep(0.01)
    return process.returncode


def kill_at_random(sweep: Sweep, draw: random.Random, startup: float, of_workers: bool) -> bool:
    """Start a sweep and kill it, or the process of one of its runs, at a random moment; False if it ended before.

    Args:
        sweep: The sweep.
        draw: Says when, and whom.
        startup: Seconds that a sweep takes to its first epoch, about.
        of_workers: Whether a run may be killed instead of the sweep.
    """
    before, process = sum(sweep.begun().values()), sweep.start()
    more = draw.choice((0, 1, 1, 2, 3))  # epochs to wait for; 0: while it starts
    if more:
        _wait(sweep, process, PATIENCE, lambda: sum(sweep.begun().values()) - before >= more)
        time.sleep(draw.uniform(0, 0.4))
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(0, startup))
    victim, pid = "sweep", process.pid
    if of_workers and draw.random() < 0.5 and (running := _running(sweep.folder)):
        victim, pid = "run", draw.choice(running)
    if process.poll() is not None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        sweep.kills[victim] += 1
    if victim == "run":
        with contextlib.suppress(subprocess.TimeoutExpired):  # what is left of the sweep goes on for a while, then is killed too
            process.wait(timeout=draw.uniform(0, 5))
        process.kill()
    process.wait()
    return True


def _running(folder: Path) -> list[int]:
    """List the processes of runs that are running now."""
    found = []
    for run in sorted(folder.glob("*/status.json")):
        with contextlib.suppress(Exception):
            status = records.read_json(run)
            if status["state"] == "running" and Path(f"/proc/{status['pid']}").exists():
                found.append(int(status["pid"]))
    return found


def finish(sweep: Sweep) -> None:
    """Ask for a sweep until it is whole.

    Raises:
        SoakError: It never is, or hangs.
    """
    for _ in range(MOST_ASKS):
        if _wait(sweep, sweep.start(), 2 * PATIENCE) == 0:
            return
    raise SoakError(f"{sweep.folder} is not whole after {sweep.asks} askings; see {sweep.folder.with_suffix('.log')}.")


def compare(sweep: Sweep, reference: Sweep) -> int:
    """Count the runs of a sweep, each of which must equal the undisturbed one bit for bit.

    Raises:
        SoakError: One does not.
    """
    names = [{run.name for run in records.find_runs([each.folder])} for each in (sweep, reference)]
    if names[0] != names[1]:
        raise SoakError(f"{sweep.folder} holds other runs than the undisturbed sweep: {sorted(names[0] ^ names[1])}.")
    for name in sorted(names[0]):
        cut, whole = sweep.folder / name, reference.folder / name
        if records.read_result(cut)["metrics"] != records.read_result(whole)["metrics"]:
            raise SoakError(f"{cut} has other metrics than the undisturbed run.")
        for file in (records.PREDICTIONS, records.METRICS):
            if (cut / file).read_bytes() != (whole / file).read_bytes():
                raise SoakError(f"{cut / file} differs from the undisturbed one.")
    return len(names[0])


def soak(engine: str, kills: int, reference: Sweep, startup: float, seed: int, python: str = sys.executable) -> dict[str, object]:
    """Kill the sweeps of one engine, and give a row of the table.

    Args:
        engine: A key of `ENGINES`.
        kills: How many.
        reference: The undisturbed sweep.
        startup: Seconds that it took to its first epoch.
        seed: Of the moments.
        python: Interpreter.
    """
    draw, began, done, rows = random.Random(f"{engine}-{seed}"), time.monotonic(), 0, []
    while done < kills:  # a sweep that is whole before all kills are spent is followed by another
        folder = reference.folder.parent / f"{engine}-{len(rows)}"
        sweep = Sweep(folder, [*reference.overrides, *ENGINES[engine][0]], python)
        rows.append(sweep)
        while done < kills and kill_at_random(sweep, draw, startup, of_workers=engine != "basic"):
            done += 1
            sweep.look()
        finish(sweep)
        sweep.look()
        runs = compare(sweep, reference)
    needed = sum(reference.begun().values()) * len(rows)
    begun = sum(sum(sweep.begun().values()) for sweep in rows)
    victims: Counter[str] = sum((sweep.kills for sweep in rows), Counter())
    return {
        "engine": engine,
        "sweeps": len(rows),
        "runs": runs * len(rows),
        "kills of the sweep": victims["sweep"],
        "kills of a run": victims["run"],
        "asked for": sum(sweep.asks for sweep in rows),
        "epochs": needed,
        "begun again": begun - needed,
        "seconds": round(time.monotonic() - began),
    }


def undisturbed(work: Path, overrides: Sequence[str]) -> tuple[Sweep, float]:
    """Do the sweep without a kill, and say how many seconds it took to its first epoch.

    Raises:
        SoakError: It fails, or hangs.
    """
    (work / "soak_count.py").write_text(COUNT, encoding="utf8")
    sweep = Sweep(work / "undisturbed", [*overrides, f"paths.cache={work / 'cache'}"])
    began, process = time.monotonic(), sweep.start()
    _wait(sweep, process, PATIENCE, sweep.epochs.exists)
    startup = time.monotonic() - began
    if _wait(sweep, process, 2 * PATIENCE):
        raise SoakError(f"The undisturbed sweep fails; see {sweep.folder.with_suffix('.log')}.")
    return sweep, startup


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES), help="which, comma-separated (default: all)")
    parser.add_argument("--kills", type=int, help="of each engine (default: 20 of basic, 3 of the others)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--ray", default=sys.executable, metavar="PYTHON", help="interpreter that has Ray")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there too")
    given = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    reference, startup = undisturbed(work, SWEEP)
    rows = []
    for engine in given.engines.split(","):
        kills = given.kills if given.kills is not None else ENGINES[engine][1]
        rows.append(
            soak(
                engine,
                kills,
                reference,
                startup,
                given.seed,
                str(Path(given.ray).absolute()) if engine == "ray" else sys.executable,
            )
        )
        print(" · ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    shutil.rmtree(work, ignore_errors=True)
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    print("\n".join(lines))
    if given.write:
        given.write.write_text("\n".join(lines) + "\n", encoding="utf8")


if __name__ == "__main__":
    try:
        main()
    except SoakError as error:
        sys.exit(f"soak: {error}")
