"""Launchers and sweepers of other packages, with the packages themselves; of Slurm there is a small stand-in (`fake_slurm`)."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from musicnet_eval import records
from musicnet_eval.launchers.collecting import concluded
from tests import fake_slurm
from tests.conftest import TINY, Command
from tests.test_process_launcher import Sweep
from tests.test_process_launcher import asked as odd

KILL = """
import os, pathlib, signal
from lightning.pytorch.callbacks import Callback


class Kill(Callback):
    '''Kill the process of seed 1 in its second epoch, once; count the epochs that are begun.'''

    def __init__(self, seed):
        self.seed = seed

    def on_train_epoch_start(self, trainer, module):
        pathlib.Path(f"gpu{self.seed}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
        with open(f"epochs{self.seed}", "a") as file:
            file.write(f"{trainer.current_epoch} ")
        if self.seed == 1 and trainer.current_epoch == 1 and not pathlib.Path("killed").exists():
            pathlib.Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""
SLOW = """
import pathlib, time
from lightning.pytorch.callbacks import Callback


class Slow(Callback):
    '''Take a while to end, as a large checkpoint does.'''

    def on_train_epoch_end(self, trainer, module):
        pathlib.Path("begun").touch()
        while not pathlib.Path("mended").exists():
            time.sleep(0.05)

    def on_exception(self, trainer, module, error):
        time.sleep(3)
        pathlib.Path("kept").touch()
"""
BROKEN = """
import pathlib, torch


class Loss(torch.nn.CrossEntropyLoss):
    def forward(self, scores, label):
        if not pathlib.Path("mended").exists():
            raise RuntimeError("not mended yet")
        return super().forward(scores, label)
"""


def tiny(tones: Path) -> list[str]:
    return ["-m", "data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_killed_job_stops_no_tables_and_is_made_good(
    engine: str,
    tones: Path,
    train: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "kill.py").write_text(KILL)
    killing = ("plugins=[kill]", "+callbacks.kill._target_=kill.Kill", "+callbacks.kill.seed=${seed}")
    # The third job of joblib's two workers is begun when one of them is free: that one's job is done when the pool breaks.
    seeds = (0, 2, 1) if engine == "joblib" else (0, 1)
    sweep = [*tiny(tones), *killing, "trainer.max_epochs=3", f"seed={','.join(map(str, seeds))}"]
    (tmp_path / "killed").touch()
    assert train(*sweep, "hydra.sweep.dir=whole") == 0
    (tmp_path / "killed").unlink()
    for seed in seeds:
        (tmp_path / f"epochs{seed}").unlink()
    fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,9")  # the jobs run on the CPU; only the names of GPUs are given out
    own = {"joblib": ["hydra.launcher.gpus_per_job=1", "run.force=true"], "submitit_slurm": ["hydra.launcher.cpus_per_task=3"]}
    asked = (*sweep, "hydra.sweep.dir=cut", f"hydra/launcher={engine}", *own.get(engine, []))
    assert train(*asked) == 1
    told = capfd.readouterr()
    assert "was killed, and its neighbours with it" in told.err or engine != "joblib"
    assert "Traceback" not in told.err
    assert "lost: seed=1 (" in told.err
    states = {run: records.state(run) for run in records.find_runs([tmp_path / "cut"])}
    (killed,) = [run for run in states if "-s1-" in run.name]
    assert Counter(states.values()) == {"done": list(states.values()).count("done"), "failed": told.err.count("lost: ")}
    assert f"{told.err.count('lost: ')} of {len(seeds)} runs failed" in told.err
    said = "a worker of joblib was killed" if engine == "joblib" else "has not produced any output"
    assert said in json.loads((killed / records.FAILED).read_text())["error"]
    assert train(*[word for word in asked if word != "run.force=true"]) == 0
    again, error = capfd.readouterr()
    assert "Traceback" not in error
    assert (tmp_path / "cut/report.html").is_file()

    if engine == "joblib":
        assert {(tmp_path / f"gpu{seed}").read_text() for seed in seeds} <= {"7", "9"}
    epochs = {seed: (tmp_path / f"epochs{seed}").read_text() for seed in seeds}
    assert epochs[1] == "0 1 1 2 "
    if engine != "joblib":
        assert epochs[0] == "0 1 2 "
        assert again.count("done already: ") == 1
    for whole in records.find_runs([tmp_path / "whole"]):
        cut = tmp_path / "cut" / whole.name
        assert records.read_result(cut)["metrics"] == records.read_result(whole)["metrics"]
        assert (cut / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    if engine == "submitit_slurm":
        (script, *_) = sorted((tmp_path / "slurm").glob("*.sh"))
        asked_for = script.read_text()
        for option in ("--cpus-per-task=3", "--gpus-per-node=1", "--mem=16GB", "--time=720", "--signal=USR2@120"):
            assert f"#SBATCH {option}\n" in asked_for


@pytest.mark.slow
def test_the_first_failure_ends_a_sweep_of_submitit(
    tones: Path, train: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sometimes.py").write_text(BROKEN)
    broken = ("plugins=[sometimes]", "loss._target_=sometimes.Loss", "run.on_error=stop")
    one_by_one = ("hydra/launcher=submitit_local", "hydra.launcher.n_jobs=1", "hydra.sweeper.max_batch_size=2")
    assert train(*tiny(tones), *broken, *one_by_one, "seed=0,1,2") == 1
    told = capfd.readouterr().err
    assert "3 of 3 runs are not done; the first failure, named above, has ended the sweep" in told
    assert told.count("lost: ") == 1
    assert "its record says: RuntimeError: not mended yet" in told
    assert [records.state(run) for run in records.find_runs([tmp_path / "runs"])] == ["failed"]
    assert list(tmp_path.rglob("report.html"))


@pytest.mark.slow
def test_a_job_of_submitit_has_time_for_its_checkpoint(tones: Path, tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches submitit's processes too, which kill theirs a second later."""
    (tmp_path / "slow.py").write_text(SLOW)
    slow = ("plugins=[slow]", "+callbacks.slow._target_=slow.Slow", "hydra/launcher=submitit_local", "seed=0,1")
    with Sweep([sys.executable, "-m", "musicnet_eval.train", *tiny(tones), *slow, "hydra.launcher.n_jobs=1"], tmp_path) as sweep:
        sweep.until((tmp_path / "begun").exists)
        os.killpg(sweep.process.pid, signal.SIGINT)
        assert sweep.process.wait(120) == 130
    assert (tmp_path / "kept").exists()
    assert [json.loads(path.read_text())["state"] for path in tmp_path.rglob(records.STATUS)] == ["interrupted"]


@pytest.mark.slow
def test_signals_to_joblib(tones: Path, tmp_path: Path) -> None:
    """SIGTERM to a worker interrupts its job alone; Ctrl-C interrupts all jobs, each once, and begins no other."""
    command = [sys.executable, "-m", "musicnet_eval.train", "-m", "hydra/launcher=joblib"]

    def statuses() -> dict[str, dict[str, Any]]:
        found = [json.loads(path.read_text()) for path in tmp_path.rglob(records.STATUS)]
        return {str(told["overrides"][-1]).rpartition("=")[2]: told for told in found if "overrides" in told}

    def begun(times: int, checkpoints: int) -> bool:
        noted, kept = tmp_path / "noted", list(tmp_path.rglob("last.ckpt"))
        return noted.is_file() and noted.read_text().count("begin") == times and len(kept) == checkpoints

    with Sweep([*command, *odd(tones, tmp_path, "wait1,wait2")], tmp_path) as sweep:
        sweep.until(lambda: begun(2, checkpoints=2))
        os.kill(statuses()["wait1"]["pid"], signal.SIGTERM)
        sweep.until(lambda: statuses()["wait1"]["state"] == "interrupted")
        assert statuses()["wait2"]["state"] == "running"
        (tmp_path / "mended").touch()
        assert sweep.process.wait(120) == 1
    assert statuses()["wait2"]["state"] == "done"
    assert "1 of 2 runs failed" in sweep.said()
    assert len(list(tmp_path.rglob("report.html"))) == 1

    (tmp_path / "mended").unlink()
    with Sweep([*command, *odd(tones, tmp_path, "wait1,wait3,wait4")], tmp_path) as sweep:
        sweep.until(lambda: begun(4, checkpoints=3))  # that of wait2 stays
        os.killpg(sweep.process.pid, signal.SIGINT)  # as a terminal does
        assert sweep.process.wait(120) == 130
    states = {what: told["state"] for what, told in statuses().items()}
    assert states == {"wait1": "interrupted", "wait2": "done", "wait3": "interrupted"}


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), 2, "error: 'runs' cannot be written (No space left). Make room"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), 2, "cannot be written (Not a directory)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1, "error: FileNotFoundError: [Errno 2] No such file: 'x'"),
        (OSError("odd"), 1, "error: OSError: odd"),
    ],
)
def test_only_what_cannot_be_written_is_called_so(
    error: OSError, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": "runs"}}})
    with pytest.raises(SystemExit) as left, concluded(None, config):
        raise error
    assert left.value.code == code
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def optuna(tones: Path, *more: str) -> list[str]:
    rate = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
    return [*tiny(tones), "hydra/sweeper=optuna", rate, "+hydra.sweeper.sampler.n_startup_trials=2", *more]


@pytest.mark.slow
def test_a_search_goes_on_and_counts_failed_trials(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sometimes.py").write_text(BROKEN)
    (tmp_path / "more/loss").mkdir(parents=True)
    (tmp_path / "more/loss/sometimes.yaml").write_text("_target_: sometimes.Loss\n")
    given = ("--config-dir=more", *optuna(tones, "plugins=[sometimes]", "hydra.sweeper.n_trials=5"))
    either = "loss=cross_entropy,sometimes"

    assert train(*given, "loss=sometimes", "hydra.sweeper.n_trials=1") == 1
    told = capsys.readouterr()
    assert "optuna: No trials are completed yet" in told.err
    assert "1 of 1 runs failed" in told.err
    assert "Traceback" not in told.err

    assert train(*given, either) == 1
    told = capsys.readouterr()
    assert "best trial: " in told.out
    assert "loss=cross_entropy" in told.out.partition("best trial: ")[2].splitlines()[0]
    (results,) = tmp_path.rglob("optimization_results.yaml")
    assert results.parent == tmp_path / "runs" / tones.name  # another search has its own
    states = Counter(records.state(run) for run in records.find_runs([tmp_path / "runs"]))
    assert states["done"] + states["failed"] == 6  # the one before, and 5 trials
    assert states["done"] >= 1
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}

    # The failed runs are mended: what was done is not repeated, and the search has other numbers to go by from there on.
    (tmp_path / "mended").touch()
    assert train(*given, either) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    # Asked for once more, the sampler asks for the same five points: nothing is left to do.
    capsys.readouterr()
    assert train(*given, either) == 0
    assert capsys.readouterr().out.count("done already: ") == 5


@pytest.mark.slow
def test_a_search_by_processes(tones: Path, train: Command, tmp_path: Path) -> None:
    asked = optuna(tones, "hydra.sweeper.n_trials=2", "hydra/launcher=process", "hydra.launcher.n_jobs=2")
    assert train(*asked) == 0
    rates = {records.read_result(run)["config"]["optimizer"]["lr"] for run in records.find_runs([tmp_path / "runs"])}
    assert len(rates) == 2
    assert train(*asked) == 0
    assert {json.loads(path.read_text())["attempt"] for path in tmp_path.rglob("status.json")} == {1}


@pytest.mark.parametrize(
    ("asked", "package", "extra"),
    [
        ("hydra/launcher=joblib", "hydra_plugins.hydra_joblib_launcher", "joblib"),
        ("hydra/launcher=submitit_slurm", "submitit", "slurm"),
        ("hydra/launcher=ray", "ray", "ray"),
        ("hydra/sweeper=optuna", "optuna", "optuna"),
    ],
)
def test_a_package_that_is_missing_is_named(
    asked: str, package: str, extra: str, train: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("musicnet_eval.launchers.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert train("-m", "seed=0,1", asked) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert told.err.startswith(f"error: {asked} needs a package that is not there")
    assert f"pip install 'musicnet-eval[{extra}]'" in told.err


@pytest.mark.parametrize(
    ("engine", "asked", "told"),
    [
        ("joblib", "hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0 must be a whole number from 1, or -1"),
        ("submitit_local", "hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0 must be a whole number from 1."),
        ("joblib", "hydra.launcher.gpus_per_job=1", "Use hydra.launcher.n_jobs=1"),
        ("submitit_slurm", "hydra.launcher.mem_gb=4", "needs Slurm's sbatch, srun, sacct"),
        ("joblib", "hydra.launcher.batch_size=0", "batch_size=0 must be a whole number from 1, or auto."),
        ("joblib", "hydra.launcher.pre_dispatch=0", "pre_dispatch=0 must be a whole number from 1, all, or a product"),
        ("joblib", "hydra.launcher.verbose=abc", "verbose='abc' must be a whole number from 0."),
        ("joblib", "hydra.launcher.idle_worker_timeout=-1", "idle_worker_timeout=-1 must be a number of seconds above 0"),
        (
            "joblib",
            "+hydra.launcher.verbos=1",
            "hydra.launcher.verbos is no setting of hydra/launcher=joblib; did you mean 'verbose'",
        ),
        ("submitit_local", "hydra.launcher.timeout_min=abc", "timeout_min='abc' must be a whole number from 1."),
        ("submitit_local", "hydra.launcher.gpus_per_node=-1", "gpus_per_node=-1 must be a whole number from 0, or null."),
        ("submitit_local", "hydra.launcher.stderr_to_stdout=abc", "stderr_to_stdout='abc' must be true or false."),
        ("submitit_local", "hydra.launcher.nodes=2", "nodes=2 must be 1: a run is one task"),
        ("submitit_local", "hydra.launcher.tasks_per_node=2", "tasks_per_node=2 must be 1: a run is one task"),
        ("submitit_local", "hydra.launcher.max_num_timeout=-1", "max_num_timeout=-1 must be a whole number from 0."),
        ("basic", "hydra.sweeper.n_trials=0", "error: hydra.sweeper.n_trials=0 must be a whole number from 1."),
        ("basic", "hydra.sweeper.n_jobs=abc", "error: hydra.sweeper.n_jobs='abc' must be a whole number from 1;"),
        ("basic", "hydra.sweeper.storage=sqlite:////nowhere/x.db", "storage='sqlite:////nowhere/x.db' cannot be opened"),
        ("basic", "hydra.sweeper.direction=fooimize", "='fooimize' must be maximize or minimize, one word, as by monitor_mode="),
        ("basic", "hydra.sweeper.direction=[maximize,minimize]", "one word, as by monitor_mode=max|min: a run has one"),
    ],
)
def test_what_cannot_be_is_refused(
    engine: str,
    asked: str,
    told: str,
    train: Command,
    tones: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("PATH", "/nowhere")
    search = ["hydra/sweeper=optuna"] if asked.startswith("hydra.sweeper.") else []
    assert train(*tiny(tones), "trainer=default", "seed=0,1", f"hydra/launcher={engine}", *search, asked) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_what_a_package_refuses_is_said_in_one_line(train: Command, tones: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*tiny(tones), "seed=0,1", "hydra/launcher=submitit_local", "+hydra.launcher.foo=1") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: hydra/launcher=submitit_local: NameError: Unknown argument 'foo'")
    assert error.count("\n") == 1
