"""`hydra/launcher=process`: what one job does ends that job only; GPUs, CPU threads and signals of several at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from musicnet_eval import environment, records, status
from musicnet_eval.errors import ConfigError
from musicnet_eval.launchers import gpus, workers
from musicnet_eval.launchers.process import ProcessLauncher
from musicnet_eval.launchers.workers import Job, Worker
from musicnet_eval.plans import Plan
from tests import fake_runs
from tests.conftest import TINY, Command

ODD = """
import os, pathlib, signal, time
from lightning.pytorch.callbacks import Callback
from musicnet_eval import jobs


class Odd(Callback):
    '''Do something odd after the first epoch, unless it is mended; note GPU, moment and word of each begin and end.'''

    def __init__(self, what):
        self.what = what

    def note(self, word):
        with open("noted", "a") as file:
            file.write(f"{word} {self.what} {os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ.get('OMP_NUM_THREADS')}\\n")

    def on_fit_start(self, trainer, module):
        self.note("begin")
        if self.what == "other":  # another sweep begins in the same folder
            (ledger,) = pathlib.Path("runs").glob("*/sweep.jsonl")
            jobs.plan(ledger.parent, [["seed=5"]])

    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch != 1 or pathlib.Path("mended").exists():
            return
        if str(self.what).startswith("wait"):
            while not pathlib.Path("mended").exists():
                time.sleep(0.05)
        elif self.what in ("kill", "leave", "raise"):
            self.note("end")
        if self.what == "move":
            pathlib.Path(trainer.checkpoint_callback.dirpath).parent.rename("moved")
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "leave":
            os._exit(3)
        if self.what == "raise":
            raise RuntimeError("odd on purpose")

    def on_fit_end(self, trainer, module):
        self.note("end")
"""


def asked(tones: Path, tmp_path: Path, whats: str) -> list[str]:
    (tmp_path / "odd.py").write_text(ODD)
    odd = ("plugins=[odd]", "+callbacks.odd._target_=odd.Odd", f"+callbacks.odd.what={whats}")
    return ["data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, "trainer.max_epochs=3", *odd]


def told(run: Path) -> str:
    """Give the overrides of a run, whatever became of it."""
    return str(json.loads((run / records.STATUS).read_text())["overrides"])


PROCESS = ("-m", "hydra/launcher=process")


@pytest.fixture
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the leases of a test to itself."""
    (tmp_path / "leases").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "leases"))


@pytest.mark.slow
def test_what_a_job_does_ends_that_job_only(
    tones: Path, train: Command, tmp_path: Path, leases: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "first,second")  # no such GPUs are needed: the jobs train on the CPU
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep = [*PROCESS, *asked(tones, tmp_path, "no,kill,leave,raise,other"), "hydra.launcher.gpus_per_job=1"]
    sweep.append("hydra.sweeper.max_batch_size=3")
    assert train(*sweep) == 1
    folder = tmp_path / "runs" / tones.name
    found = {run: records.state(run) for run in records.find_runs([folder])}
    assert Counter(found.values()) == {"done": 2, "failed": 3}
    shown = capsys.readouterr()
    assert "3 of 5 runs failed" in shown.err
    for said in ("killed by SIGKILL, perhaps because memory ran out", "left with exit code 3", "RuntimeError: odd on purpose"):
        assert said in shown.out
        assert said in (folder / "leaderboard.md").read_text()
    assert "+callbacks.odd.what=kill: its process was killed" in shown.out
    assert all(f"[{number}/5]" in shown.out for number in range(1, 6))
    assert (folder / "report.html").is_file()
    assert all("image: 1×32×32" in (run / records.CONSOLE).read_text() for run in found)

    noted = [line.split() for line in (tmp_path / "noted").read_text().splitlines()]
    assert {gpu for _, _, gpu, _ in noted} == {"first", "second"}
    assert {threads for *_, threads in noted} == {str(max(1, environment.cores() // 2))}
    for device in ("first", "second"):  # never two on one
        words = [word for word, _, gpu, _ in noted if gpu == device]
        assert words == ["begin", "end"] * (len(words) // 2)

    (tmp_path / "mended").touch()
    again = [word.replace("no,kill,leave,raise,other", "no,kill") for word in sweep]
    assert train(*again) == 0
    killed, untouched = (next(run for run in found if f"what={what}'" in told(run)) for what in ("kill", "no"))
    assert "goes on from" in (killed / records.CONSOLE).read_text()
    assert json.loads((killed / records.STATUS).read_text())["failures"] == 1
    assert (untouched / records.CONSOLE).read_text().count("--- ") == 1  # no process was started for it
    capsys.readouterr()

    # The basic launcher finds the same runs in the same places, and gives the same numbers.
    assert train(*(word for word in again if "launcher" not in word)) == 0
    assert capsys.readouterr().out.count("done already: ") == 2
    assert train("-m", *asked(tones, tmp_path, "kill"), f"hydra.sweep.dir={tmp_path / 'basic'}") == 0
    alone, with_others = (records.read_result(run) for run in (tmp_path / "basic" / killed.name, killed))
    assert alone["metrics"] == with_others["metrics"]
    assert alone["overrides"] == with_others["overrides"]


@pytest.mark.slow
def test_a_run_folder_that_is_moved_stops_no_other_job(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*PROCESS, *asked(tones, tmp_path, "move,no"), "hydra.launcher.n_jobs=1") == 1
    shown = capsys.readouterr()
    assert "cannot be written" not in shown.err
    assert "1 of 2 runs failed" in shown.err
    assert "failed: +callbacks.odd.what=move: " in shown.out
    assert "done: +callbacks.odd.what=no" in shown.out
    assert (tmp_path / "runs" / tones.name / "report.html").is_file()


@pytest.mark.slow
def test_signals_to_the_sweep(tones: Path, tmp_path: Path) -> None:
    """SIGTERM interrupts the jobs, SIGKILL leaves them at work; asked for again, the sweep waits for them and repeats nothing."""
    command = [sys.executable, "-m", "musicnet_eval.train", *PROCESS, *asked(tones, tmp_path, "wait1,wait2")]
    command += ["hydra.launcher.n_jobs=2"]

    def statuses() -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in tmp_path.rglob(records.STATUS)]

    def begun(times: int) -> bool:
        noted = tmp_path / "noted"
        return noted.is_file() and noted.read_text().count("begin") == times and len(list(tmp_path.rglob("last.ckpt"))) == 2

    with Sweep(command, tmp_path) as sweep:
        sweep.until(lambda: begun(2))
        sweep.process.send_signal(signal.SIGTERM)
        assert sweep.process.wait(120) == 143
    assert [status["state"] for status in statuses()] == ["interrupted"] * 2
    with pytest.raises(ProcessLookupError):
        os.kill(statuses()[0]["pid"], 0)

    command = [word.replace("wait1,wait2", "wait1") for word in command]
    with Sweep(command, tmp_path) as sweep:
        sweep.until(lambda: begun(3))
        sweep.process.kill()
    with Sweep(command, tmp_path) as sweep:
        sweep.until(lambda: "waits: " in sweep.said())
        states = {(status["state"], status["attempt"]) for status in statuses()}
        assert states == {("running", 2), ("interrupted", 1)}
        (tmp_path / "mended").touch()
        assert sweep.process.wait(120) == 0
    assert sweep.said().count("done already: ") == 1
    assert {(status["state"], status["attempt"]) for status in statuses()} == {("done", 2), ("interrupted", 1)}
    assert begun(3)


class Sweep:
    """A sweep as a process, with what it says in a file."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.file = folder / "said"
        with self.file.open("w") as said:
            self.process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return self.file.read_text()

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)


def job(run: Path, signature: str, **trainer: Any) -> Job:
    """Give a job whose run folder is `run`."""
    config = {"monitor": "val/song/accuracy", "trainer": trainer}
    planned = Plan(
        config, {}, [], signature, "c" * 12, run, {"data": "toy", "fold": 0, "backbone": "b", "loss": "l", "seed": 0}, []
    )
    return Job(0, ["seed=0"], OmegaConf.create({"run": {"force": False}}), planned, indexed=True)


def ended(asked: Job, script: str) -> Worker:
    """Start a shell in place of a job's process, and wait for its end."""
    worker = Worker(asked, ["sh", "-c", script], dict(os.environ), None)
    while not worker.ended():
        time.sleep(0.01)
    return worker


def test_verdicts(tmp_path: Path) -> None:
    whole = fake_runs.write_run(tmp_path / "whole")
    done = job(tmp_path / "run", json.loads((whole / records.RESULT).read_text())["signature"])
    run = done.log.parent
    assert "exit code 3 and said nothing" in ended(done, "echo hello; exit 3").verdict(stopping=False)
    assert ended(done, "echo hello; exit 3").last_lines(1) == ["hello"]
    assert records.state(run) == "failed"
    assert "process left with exit code 3" in json.loads((run / records.FAILED).read_text())["error"]

    fake_runs.write_status(run, "running")
    assert ended(done, "kill -TERM $$").verdict(stopping=True) == "interrupted"  # it had no time to say so itself
    assert records.state(run) == "interrupted"
    assert "killed by SIGTERM" in ended(done, "kill -TERM $$").verdict(stopping=False)
    assert "killed by SIGSEGV" in ended(done, "kill -SEGV $$").verdict(stopping=False)
    assert "record is not where its overrides place it" in ended(done, "true").verdict(stopping=False)

    (run / records.FAILED).unlink()
    (run / records.FAILED).mkdir()  # what is to be written down has no place, and is told all the same
    assert "killed by SIGSEGV" in ended(done, "kill -SEGV $$").verdict(stopping=False)
    (run / records.FAILED).rmdir()

    with FileLock(run / ".lock"):  # another process is at the run by now, and its word counts
        fake_runs.write_status(run, "running")
        assert status.is_locked(run) is True
    assert status.is_locked(run) is False

    copied = ended(done, f"cp {whole / records.RESULT} {run}; kill -SEGV $$")  # dies once all is written
    assert copied.verdict(stopping=False) == ""
    assert done.metric() == pytest.approx(0.75)
    assert "killed by SIGKILL" in ended(done, "kill -KILL $$").verdict(stopping=False)  # was to do it again, and never began


def test_a_run_that_is_taken_away_has_no_lines_and_no_number(tmp_path: Path) -> None:
    gone = ended(job(tmp_path / "run", "s" * 12), "echo hello; exit 3")
    gone.job.log.unlink()
    assert gone.last_lines() == []
    assert gone.job.metric() is None
    gone.job.log.parent.rmdir()
    assert "exit code 3" in gone.verdict(stopping=False)
    assert records.state(gone.job.log.parent) == "failed"


def test_an_error_of_the_sweep_leaves_no_job_behind(tmp_path: Path) -> None:
    launcher = ProcessLauncher()
    launcher.running = [Worker(job(tmp_path / "run", "s" * 12), ["sleep", "600"], dict(os.environ), None)]
    with pytest.raises(OSError, match="full"), launcher._signals():
        raise OSError("full")
    assert launcher.running[0].process.wait(60) == -signal.SIGTERM


def test_what_is_left_of_a_killed_job_is_ended(tmp_path: Path) -> None:
    worker = ended(job(tmp_path / "run", "s" * 12), "sleep 600 & echo $!; kill -KILL $$")
    (child,) = map(int, worker.last_lines(1))
    for _ in range(100):
        if not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes():  # gone, or a zombie
            return
        time.sleep(0.05)
    pytest.fail("the child of a killed job lives on")


@pytest.mark.parametrize(
    ("trainer", "wanted"),
    [
        ({}, 1),
        ({"accelerator": "cpu", "devices": 2}, 0),
        ({"accelerator": "gpu", "devices": "auto"}, 1),
        ({"devices": 2}, 2),
        ({"devices": -1}, 3),
        ({"devices": 8}, 3),
        ({"devices": [0, 1]}, 2),
    ],
)
def test_a_job_leases_the_gpus_of_its_trainer(tmp_path: Path, trainer: dict[str, Any], wanted: int) -> None:
    launcher = ProcessLauncher()
    launcher.devices = ["0", "1", "2"]
    assert launcher._gpus(job(tmp_path, "s" * 12, **trainer)) == wanted


def test_a_gpu_is_leased_to_one_sweep_at_a_time(leases: None, tmp_path: Path) -> None:
    other = (
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from musicnet_eval.launchers import gpus\n"
        "print(*gpus.lease(['a', 'b'], 1).devices, gpus.lease(['a', 'b'], 1), flush=True); sys.stdin.read()"
    )
    mine = gpus.lease(["a", "b"], 1)
    assert mine is not None
    assert mine.devices == ("a",)
    command = [sys.executable, "-c", other, tempfile.gettempdir()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout is not None
        assert sweep.stdout.readline() == "b None\n"
        assert gpus.lease(["a", "b"], 1) is None
        sweep.kill()
        sweep.wait()
        theirs = gpus.lease(["a", "b"], 1)  # the system has freed it
        assert theirs is not None
        assert theirs.devices == ("b",)
        theirs.close()
    # A job keeps what it has inherited, whatever becomes of the sweep that leased it.
    job = subprocess.Popen(["sleep", "600"], pass_fds=mine.files)
    mine.close()
    try:
        assert gpus.lease(["a"], 1) is None
    finally:
        job.kill()
        job.wait()
    assert gpus.lease(["a"], 1) is not None


def test_shares_of_a_gpu_and_several_gpus(leases: None) -> None:
    halves = [gpus.lease(["a", "b"], 0.5) for _ in range(5)]
    assert [half and half.devices for half in halves] == [("a",), ("b",), ("a",), ("b",), None]
    assert gpus.lease(["a", "b"], 1) is None
    for half in halves[1:4:2]:  # those of b
        assert half is not None
        half.close()
    assert gpus.lease(["a", "b"], 2) is None  # what it could have had is not kept meanwhile
    whole = gpus.lease(["a", "b"], 1)
    assert whole is not None
    assert whole.devices == ("b",)


@pytest.mark.parametrize(("asked", "said"), [(3, "more than the 2 GPUs"), (0.4, "1/k"), (1.5, "1/k"), (-1, "1/k"), (True, "1/k")])
def test_numbers_of_gpus_that_cannot_be_leased(asked: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        gpus.check(asked, 2)


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for told, devices in (("2, 5", ["2", "5"]), ("", []), ("-1", []), ("0,-1,1", ["0"]), ("GPU-8a,MIG-9b", ["GPU-8a", "MIG-9b"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert gpus.visible() == devices
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)'\necho '  MIG 1g'\necho 'GPU 1: B (UUID: GPU-2)'\n"
    )
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus.visible() == ["0", "1"]


@pytest.mark.parametrize("wrong", ["n_jobs=0", "n_jobs=two", "gpus_per_job=99", "gpus_per_job=two"])
def test_settings_that_make_no_sense(train: Command, tones: Path, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*PROCESS, "data=folder", f"data.root={tones}", *TINY, f"hydra.launcher.{wrong}") == 2
    assert f"error: hydra.launcher.{wrong.partition('=')[0]}=" in capsys.readouterr().err


def test_the_command_of_a_job_holds_no_value_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    own = ["hydra.job.env_set.TOKEN=${oc.env:MY_TOKEN}", "hydra.sweep.subdir=${hydra.job.num}", "hydra.mode=MULTIRUN"]
    hydra = {"job": {"config_name": "train", "num": "???"}, "runtime": {"config_sources": []}, "overrides": {"hydra": own}}
    asked = workers.command(OmegaConf.create({"hydra": hydra}), 3, ["seed=1"])
    assert asked[3:] == ["--config-name=train", *own[:2], "seed=1", "hydra.mode=RUN", "hydra.job.num=3", "hydra.job.id=3"]


def test_limits_of_control_groups(tmp_path: Path) -> None:
    told, mounted = tmp_path / "cgroup", tmp_path / "mounted"
    told.write_text("0::/slice/box\n")
    (mounted / "slice/box").mkdir(parents=True)
    (mounted / "slice/box/cpu.max").write_text("max 100000\n")
    assert environment.cgroup_limits(told, mounted) == []
    (mounted / "slice/cpu.max").write_text("250000 100000\n")
    assert environment.cgroup_limits(told, mounted) == [3]
    told.write_text("4:memory:/\n1:cpu,cpuacct:/box\n")
    (mounted / "cpu,cpuacct/box").mkdir(parents=True)
    (mounted / "cpu,cpuacct/box/cpu.cfs_quota_us").write_text("-1\n")
    (mounted / "cpu,cpuacct/box/cpu.cfs_period_us").write_text("100000\n")
    assert environment.cgroup_limits(told, mounted) == []
    (mounted / "cpu,cpuacct/cpu.cfs_quota_us").write_text("200000\n")
    (mounted / "cpu,cpuacct/cpu.cfs_period_us").write_text("100000\n")
    assert environment.cgroup_limits(told, mounted) == [2]
    assert environment.cgroup_limits(tmp_path / "none", mounted) == []
    assert 1 <= environment.cores() <= (os.cpu_count() or 1)
