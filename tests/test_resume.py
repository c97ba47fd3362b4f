"""A run that was cut short goes on where its last checkpoint was, and ends with the numbers of one that was not."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from musicnet_eval import records, runs
from musicnet_eval.errors import ConfigError
from tests import fake_runs
from tests.conftest import REPOSITORY, TINY, Command, only_run

STOP = """
import pathlib
from lightning.pytorch.callbacks import Callback


class Stop(Callback):
    '''Leave once, at the given moment; count the epochs that are begun.'''

    def __init__(self, hook, epoch):
        self.hook, self.epoch = hook, epoch

    def _at(self, hook, trainer):
        flag = pathlib.Path("stopped")
        if hook == self.hook and trainer.current_epoch >= self.epoch and not flag.exists():
            flag.touch()
            raise SystemExit(130)

    def on_train_epoch_start(self, trainer, module):
        with open("epochs", "a") as file:
            file.write(f"{trainer.current_epoch} ")
        self._at("epoch_start", trainer)

    def on_train_batch_end(self, trainer, *rest):
        self._at("batch_end", trainer)

    def on_validation_end(self, trainer, module):
        self._at("validation_end", trainer)

    def on_test_start(self, trainer, module):
        self._at("test_start", trainer)
"""


SLIP = ("+logger.odd._target_=nowhere.Logger",)  # found out when the loggers are made, which changes no signature


def contents(run: Path) -> dict[str, bytes]:
    """Give what a run folder holds."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def overrides(tones: Path) -> list[str]:
    return [
        "data=folder",
        f"data.root={tones}",
        "backbone=test_resnet",
        "+backbone_options.drop_rate=0.3",  # draws random numbers in every step
        "loss=balanced_trusted_robust",  # its trust warms up over the whole training
        *TINY,
        "trainer.max_epochs=4",
    ]


@pytest.mark.parametrize(
    ("hook", "epoch", "begun"),
    [
        ("batch_end", 0, "0 0 1 2 3 "),
        ("batch_end", 2, "0 1 2 2 3 "),
        ("epoch_start", 3, "0 1 2 3 3 "),
        ("validation_end", 1, "0 1 1 2 3 "),
        ("test_start", 3, "0 1 2 3 "),
    ],
)
@pytest.mark.slow
def test_resumed_equals_undisturbed(
    tones: Path, train: Command, tmp_path: Path, hook: str, epoch: int, begun: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_and_resume(train, tmp_path, overrides(tones), hook, epoch, begun)


# Nothing can learn here, so nothing improves on the first epoch: two more are waited for, before and after the cut.
PATIENCE = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=2", "optimizer.lr=0", "finetune=head")
PLATEAU = ("optimizer=adam", "scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "optimizer.lr=0.1")
# The erasing is a library's and draws from torch's global generator.
ERASING = "{_target_: torchvision.transforms.v2.RandomErasing, p: 1}"
ERASE = f"+augment.erase={{_target_: musicnet_eval.augment.OnImage, module: {ERASING}}}"
AUGMENT = ("augment=[music_strong,mix_audio,cutmix]", ERASE, "trainer.accumulate_grad_batches=2")
RECIPES: dict[str, tuple[tuple[str, ...], str, int, str]] = {  # overrides, where it is cut, the epochs that are begun
    "one_cycle": (("optimizer=sgd", "scheduler=one_cycle", "finetune.layer_decay=0.5"), "batch_end", 2, "0 1 2 2 3 "),
    "lion": (("optimizer=lion", "scheduler=linear", "finetune.head_lr_scale=10"), "batch_end", 2, "0 1 2 2 3 "),
    "muon": (("optimizer=muon", "trainer.accumulate_grad_batches=2"), "batch_end", 2, "0 1 2 2 3 "),
    "plateau": (PLATEAU, "batch_end", 2, "0 1 2 2 3 "),
    "gradual": (("finetune=gradual", "finetune.epochs_per_stage=1"), "batch_end", 2, "0 1 2 2 3 "),
    "gradual_sgd": (("finetune=gradual", "finetune.epochs_per_stage=1", "optimizer=sgd"), "validation_end", 1, "0 1 1 2 3 "),
    "ema": (("callbacks=[default,ema]", "callbacks.ema.decay=0.8"), "batch_end", 2, "0 1 2 2 3 "),
    "ema_tested": (("callbacks=[default,ema]", "callbacks.ema.decay=0.8"), "test_start", 3, "0 1 2 3 "),
    "augmented": (AUGMENT, "batch_end", 2, "0 1 2 2 3 "),
    "bf16": (("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=0.5"), "batch_end", 2, "0 1 2 2 3 "),
    "patience": (PATIENCE, "batch_end", 2, "0 1 2 2 "),
    "patience_tested": (PATIENCE, "test_start", 2, "0 1 2 "),
    "tuned": (("tune.lr=true", "tune.batch_size=true", "tune.max_batch_size=6"), "batch_end", 2, "0 1 2 2 3 "),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_resumes_as_undisturbed(tones: Path, train: Command, tmp_path: Path, recipe: str) -> None:
    given, hook, epoch, begun = RECIPES[recipe]
    cut_and_resume(train, tmp_path, [*overrides(tones), *given], hook, epoch, begun)
    whole, cut = (records.read_result(tmp_path / name) for name in ("whole", "cut"))
    assert cut["facts"]["tuned"] == whole["facts"]["tuned"]
    assert cut["facts"]["trainable_parameters"] == whole["facts"]["trainable_parameters"]


def cut_and_resume(train: Command, tmp_path: Path, given: list[str], hook: str, epoch: int, begun: str) -> None:
    """Do one run whole, and one that is cut and asked for again; they must agree to the last bit."""
    (tmp_path / "stop.py").write_text(STOP)
    stopping = (
        "plugins=[stop]",
        "+callbacks.stop._target_=stop.Stop",
        f"+callbacks.stop.hook={hook}",
        f"+callbacks.stop.epoch={epoch}",
    )
    for name, before in (("whole", True), ("cut", False)):
        if before:
            (tmp_path / "stopped").touch()
        else:
            (tmp_path / "stopped").unlink()
            (tmp_path / "epochs").unlink()
        code = train(*given, *stopping, f"hydra.run.dir={tmp_path / name}")
        assert code == (0 if before else 130)
    if not (tmp_path / "cut/result.json").exists():
        assert json.loads((tmp_path / "cut/status.json").read_text())["state"] in ("interrupted", "failed")
        assert train(*given, *stopping, f"hydra.run.dir={tmp_path / 'cut'}") == 0
    assert (tmp_path / "epochs").read_text() == begun
    whole, cut = (records.read_result(tmp_path / name) for name in ("whole", "cut"))
    assert cut["metrics"] == whole["metrics"]
    for file in ("predictions.csv", "metrics.csv", "suspect_labels.csv"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert json.loads((tmp_path / "cut/status.json").read_text())["attempt"] == 2


def test_force_starts_afresh(tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stop.py").write_text(STOP)
    stopping = (
        "plugins=[stop]",
        "+callbacks.stop._target_=stop.Stop",
        "+callbacks.stop.hook=batch_end",
        "+callbacks.stop.epoch=2",
    )
    assert train(*overrides(tones), *stopping) == 130
    run = only_run(tmp_path / "runs")
    kept = (run / "checkpoints/last.ckpt").read_bytes()
    for force in ((), ("run.force=true",)):  # a slip costs no checkpoint, and leaves no run that says it is running
        assert train(*overrides(tones), *stopping, *SLIP, *force) == 2
        assert (records.state(run), (run / "checkpoints/last.ckpt").read_bytes()) == ("failed", kept)
    assert train(*overrides(tones), *stopping, "run.force=true") == 0
    assert (tmp_path / "epochs").read_text() == "0 1 2 0 1 2 3 "
    assert "goes on" not in capsys.readouterr().out

    done = contents(run)
    assert not (run / runs.EARLIER).exists()
    for mode, code in (((), 2), (("-m",), 1)):
        assert train(*mode, *overrides(tones), *stopping, *SLIP, "run.force=true") == code
        assert "nowhere.Logger" in capsys.readouterr().err
        assert contents(run) == done


@pytest.mark.parametrize("end", ["finish", "fail", "interrupt", "begin"])
def test_what_a_forced_run_found_goes_when_it_ends(tmp_path: Path, end: str) -> None:
    run = fake_runs.write_run(tmp_path)
    record = records.read_result(run)
    runs.begin(run, record["signature"], "again: true\n", fresh=True)
    assert (records.state(run), (run / runs.EARLIER / records.RESULT).exists()) == ("running", True)
    ends = {"finish": (record,), "fail": (RuntimeError("no"), "", {}), "interrupt": (), "begin": (record["signature"], "")}
    getattr(runs, end)(run, *ends[end])
    assert not (run / runs.EARLIER).exists()
    assert records.find_runs([tmp_path]) == [run]


def test_who_waits_for_another_process_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with runs.lock(run):
        assert capsys.readouterr().out == ""
    other = (run / runs.LOCK).open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    threading.Timer(0.2, other.close).start()
    with runs.lock(run):
        assert capsys.readouterr().out == f"waits: another process is at {run}\n"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written.*paths\.runs"), runs.lock(tmp_path / "file" / "run"):
        pass


def test_a_record_makes_a_run_done_whatever_cannot_be_written_after_it(tmp_path: Path) -> None:
    record = records.read_result(fake_runs.write_run(tmp_path / "other"))
    runs.begin(tmp_path / "run", record["signature"], "")
    (tmp_path / "run" / records.STATUS).unlink()
    (tmp_path / "run" / records.STATUS).mkdir()  # no file can take its place
    runs.finish(tmp_path / "run", record)
    assert records.state(tmp_path / "run") == "done"


def flipped(data: bytes) -> bytes:
    """Change one bit in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "cut_off": ("last.ckpt", lambda data: data[:5000]),
    "empty": ("last.ckpt", lambda data: b""),
    "head": ("last.ckpt", lambda data: bytes(4096) + data[4096:]),
    "one_bit": ("last.ckpt", flipped),
    "best": ("best.ckpt", lambda data: data[:5000]),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*DAMAGES, "gone", "foreign"])
def test_a_damaged_checkpoint_is_named_and_not_used(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    (tmp_path / "stop.py").write_text(STOP)
    stopping = (
        "plugins=[stop]",
        "+callbacks.stop._target_=stop.Stop",
        "+callbacks.stop.hook=batch_end",
        "+callbacks.stop.epoch=2",
    )
    assert train(*overrides(tones), *stopping, "logger=csv") == 130
    (last,) = tmp_path.rglob("last.ckpt")
    if damage == "foreign":
        torch.save({"weight": torch.zeros(3)}, last)
    elif damage == "gone":
        runs.best_checkpoint(last.parent.parent).unlink()
    else:
        name, change = DAMAGES[damage]
        (last.parent / name).write_bytes(change((last.parent / name).read_bytes()))
    assert train(*overrides(tones), *stopping, "logger=csv") == 0
    assert (tmp_path / "epochs").read_text() == "0 1 2 0 1 2 3 "
    assert [log.parent.name for log in tmp_path.rglob("logs/*/*/metrics.csv")] == ["version_0"]  # loggers begin anew too
    assert "are damaged, as after a power cut: the run begins anew" in capsys.readouterr().err


def test_a_run_that_was_moved_knows_its_best_epoch(tones: Path, train: Command, tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text(STOP)
    given = (
        *overrides(tones),
        "optimizer.lr=0",  # nothing can learn, so nothing improves on the first epoch
        "finetune=head",
        "plugins=[stop]",
        "+callbacks.stop._target_=stop.Stop",
        "+callbacks.stop.hook=batch_end",
        "+callbacks.stop.epoch=2",
    )
    assert train(*given, "paths.runs=laptop") == 130
    (tmp_path / "laptop").rename(tmp_path / "cluster")
    assert train(*given, "paths.runs=cluster") == 0
    assert train(*given, "paths.runs=whole") == 0
    moved, whole = (records.read_result(only_run(tmp_path / name)) for name in ("cluster", "whole"))
    assert whole["facts"]["best_epoch"] == 0
    assert (moved["facts"]["best_epoch"], moved["metrics"]) == (whole["facts"]["best_epoch"], whole["metrics"])


ENDS = """
import os, sys
from musicnet_eval import records, train

moment, number = sys.argv.pop(1), int(sys.argv.pop(1))
write = records.write_json


def send(now, path):
    global moment
    if (moment, path.name) == now:
        moment = "past"
        os.kill(os.getpid(), number)


def writing(path, value):
    send(("end", records.RESULT), path)
    write(path, value)
    send(("beginning", records.STATUS), path)


records.write_json = writing
train.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), [("beginning", 15), ("end", 15), ("end", 9)])
def test_a_signal_at_a_runs_beginning_or_end_loses_nothing(tones: Path, tmp_path: Path, moment: str, number: int) -> None:
    given = [*overrides(tones), "run.keep_checkpoints=none", f"run.max_attempts={1 if number == 15 else 2}", "hydra.run.dir=run"]
    (tmp_path / "ends.py").write_text(ENDS)
    cut = [sys.executable, "ends.py", moment, str(number), *given]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(cut, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == (143 if number == 15 else -9), done.stderr
    assert records.state(tmp_path / "run") == ("interrupted" if number == 15 else "running")
    (tmp_path / "run/checkpoints").mkdir(exist_ok=True)
    for name in (".result.json.x.tmp", "checkpoints/.last.ckpt.x.tmp"):  # as a kill in the middle of writing leaves them
        (tmp_path / "run" / name).touch()
    command = [sys.executable, "-m", "musicnet_eval.train", *given]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ("goes on from" in again.stdout) == (moment == "end")
    assert records.state(tmp_path / "run") == "done"
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".ckpt", ".tmp")]


@pytest.mark.slow
def test_kill_nine_and_two_at_once(tones: Path, tmp_path: Path) -> None:
    """Kill a run without warning, then ask for it twice at the same time: one goes on, the other waits and takes its result."""
    given = [*overrides(tones), "trainer.max_epochs=60", "run.checkpoint_every_n_steps=1"]  # of two batches an epoch
    command = [sys.executable, "-m", "musicnet_eval.train", *given, "hydra.run.dir=cut"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(records.read_curves(tmp_path / "cut")) < 5:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    assert not (tmp_path / "cut/result.json").exists()
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("goes on from" in text for text in said) == 1
    assert sum("done already" in text for text in said) == 1
    subprocess.run([*command[:-1], "hydra.run.dir=whole"], cwd=tmp_path, check=True, capture_output=True)
    whole, cut = (records.read_result(tmp_path / name) for name in ("whole", "cut"))
    assert cut["metrics"] == whole["metrics"]
    assert (tmp_path / "cut/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()
