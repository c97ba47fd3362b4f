"""A loss that is no number, memory that runs out, and a run that is tried once too often: named, recorded, and survived."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musicnet_eval import records
from musicnet_eval.failures import is_out_of_memory
from tests.conftest import TINY, Command, only_run
from tests.test_resume import STOP

SEEDS = """
import torch
from lightning.pytorch.callbacks import Callback


class Seeds(Callback):
    '''Write what a step would draw, and how many optimizer steps were taken before it.'''

    def on_train_batch_end(self, trainer, *rest):
        with open("drawn", "a") as file:
            file.write(f"{torch.rand(1).item()!r}\\n")
"""
NAN = """
import torch


class Nan(torch.nn.CrossEntropyLoss):
    '''Give no number in training batch `since`, counted from 0.'''

    def __init__(self, since):
        super().__init__()
        self.since, self.seen = since, 0

    def forward(self, scores, label):
        loss = super().forward(scores, label)
        if not torch.is_grad_enabled():
            return loss
        self.seen += 1
        return loss * float("nan") if self.seen > self.since else loss
"""
HUNGRY = """
import timm, torch
from timm.models import register_model


class Hungry(torch.nn.Module):
    '''A network that has room for so many images in training, as a device would; it says so as CUDA does.'''

    def __init__(self, num_classes, in_chans, room):
        super().__init__()
        self.body = timm.create_model("test_resnet", num_classes=num_classes, in_chans=in_chans)
        self.room = room

    def forward(self, image):
        if self.training and len(image) > self.room:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(image)} images")
        return self.body(image)


@register_model
def hungry(pretrained=False, num_classes=1000, in_chans=3, room=2, **unused):
    return Hungry(num_classes, in_chans, room)
"""


@pytest.fixture
def small(tones: Path) -> list[str]:
    return ["data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY]


def failure(run: Path) -> dict[str, object]:
    assert records.state(run) == "failed"
    return records.read_json(run / records.FAILED)


# --- a loss that is no number -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_named_with_its_step(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sick.py").write_text(NAN)
    sick = ("plugins=[sick]", "++loss={_target_: sick.Nan, since: 5}")
    assert train(*small, *sick, "trainer.max_epochs=4") == 1
    said = capsys.readouterr().err
    run = only_run(tmp_path / "runs")
    told = failure(run)
    # 6 training tracks a class of 3, a third for validation and one for test: 2 of 6 each, so 6 tracks, 2 batches of 4 and 2.
    per_epoch = 2
    details = told["details"]
    assert isinstance(details, dict)
    assert (details["epoch"], details["step"]) == (5 // per_epoch, 5)
    (*_, last) = records.read_curves(run)
    assert last["epoch"] == 5 // per_epoch - 1
    assert details["last_metrics"]["train/segment/loss"] == last["train/segment/loss"]
    for needed in ("step 5", "epoch 2", f"{last['train/segment/loss']:.4g}", "optimizer.lr", "trainer.gradient_clip_val=1"):
        assert needed in said
    assert "TrainingError" in str(told["error"])


def test_weights_that_run_away_are_noticed(train: Command, small: list[str], tmp_path: Path) -> None:
    """A rate of 1e38 leaves nothing finite after one step: in validation, if no step comes after it."""
    assert train(*small, "optimizer=sgd", "optimizer.lr=1e38", "data.batch_size=32") == 1
    assert "finite" in str(failure(only_run(tmp_path / "runs"))["error"])


def test_in_a_sweep_the_others_go_on(train: Command, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "sick.py").write_text(NAN)
    sick = ("plugins=[sick]", "++loss={_target_: sick.Nan, since: 1}")
    assert train("-m", *small, *sick, "++loss.since=0,1000") == 1
    assert sorted(records.state(run) for run in records.find_runs([tmp_path / "runs"])) == ["done", "failed"]


# --- memory -------------------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_named_with_what_does(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    assert train(*small, "plugins=[hungry]", "backbone=hungry", "data.batch_size=4") == 1
    said = capsys.readouterr().err
    for needed in ("data.batch_size=2", "trainer.accumulate_grad_batches=2", "run.on_oom=halve_batch", "4 images"):
        assert needed in said
    told = failure(only_run(tmp_path / "runs"))
    assert told["details"] == {"data.batch_size": 4}
    assert "OutOfMemoryError" in str(told["traceback"])


@pytest.mark.slow
def test_halved_equals_asked_for(train: Command, small: list[str], tmp_path: Path) -> None:
    """A run that was halved twice has the numbers of one that was asked for with a quarter, and keeps its own signature."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    hungry = (*small, "plugins=[hungry]", "backbone=hungry", "run.on_oom=halve_batch")
    quarter = ("data.batch_size=2", "trainer.accumulate_grad_batches=4")
    assert train(*hungry, "data.batch_size=8", f"hydra.run.dir={tmp_path / 'halved'}") == 0
    assert train(*hungry, *quarter, f"hydra.run.dir={tmp_path / 'asked'}") == 0
    halved, asked = (records.read_result(tmp_path / name) for name in ("halved", "asked"))
    assert halved["metrics"] == asked["metrics"]
    assert (tmp_path / "halved/metrics.csv").read_bytes() == (tmp_path / "asked/metrics.csv").read_bytes()
    assert halved["facts"]["halved"] == {"data.batch_size": 2, "trainer.accumulate_grad_batches": 4}
    assert asked["facts"]["halved"] == {}
    assert halved["config"]["data"]["batch_size"] == 8
    assert train(*hungry, "data.batch_size=8", "run.on_oom=fail", f"hydra.run.dir={tmp_path / 'halved'}") == 0  # the same run


@pytest.mark.slow
def test_a_halved_run_that_is_cut_short_goes_on_halved(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not try again what did not fit, and begins no epoch twice but the one that was cut short."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    (tmp_path / "stop.py").write_text(STOP)
    stopping = ("+callbacks.stop._target_=stop.Stop", "+callbacks.stop.hook=batch_end", "+callbacks.stop.epoch=2")
    given = (*small, *stopping, "plugins=[hungry,stop]", "backbone=hungry", "run.on_oom=halve_batch", "trainer.max_epochs=3")
    assert train(*given) == 130
    assert "tries again" in capsys.readouterr().err
    assert train(*given) == 0
    assert "tries again" not in capsys.readouterr().err
    assert (tmp_path / "epochs").read_text() == "0 0 1 2 2 "  # the first ran out of memory in its first batch
    facts = records.read_result(only_run(tmp_path / "runs"))["facts"]
    assert facts["halved"] == {"data.batch_size": 2, "trainer.accumulate_grad_batches": 2}


LEAVES = """
import sys
from lightning.pytorch.callbacks import Callback


class Panic(BaseException):
    '''What a library written in another language may raise.'''


class Leave(Callback):
    def __init__(self, by):
        self.by = by

    def on_train_start(self, trainer, module):
        if self.by == "panic":
            raise Panic("overflow")
        if self.by != "nothing":
            sys.exit(int(self.by))
"""


def test_code_that_leaves_fails_its_run_alone(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leaves.py").write_text(LEAVES)
    plugin = ["plugins=[leaves]", "+callbacks.leave._target_=leaves.Leave"]
    assert train("-m", *small, *plugin, "+callbacks.leave.by='0','7',panic,nothing") == 1
    runs = records.find_runs([tmp_path / "runs"])
    assert sorted(map(records.state, runs)) == ["done", "failed", "failed", "failed"]
    errors = {str(failure(run)["error"]) for run in runs if records.state(run) == "failed"}
    told = "TrainingError: The run was left by sys.exit({}) in its own code: a plugin's, or a package's."
    assert errors == {told.format(0), told.format(7), "Panic: overflow"}
    assert "3 of 4 runs failed" in capsys.readouterr().err
    assert train(*small, *plugin, "+callbacks.leave.by='7'", "run.max_attempts=1") == 1  # it counts as a failure
    assert "run.max_attempts=1 allows no more" in capsys.readouterr().err


@pytest.mark.parametrize("size", [3, 6, 2])
@pytest.mark.slow
def test_what_cannot_be_halved_fails(train: Command, small: list[str], tmp_path: Path, size: int) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    given = ("plugins=[hungry]", "backbone=hungry", "+backbone_options.room=1", "run.on_oom=halve_batch")
    assert train(*small, *given, f"data.batch_size={size}") == 1
    assert "cannot be halved" in str(failure(only_run(tmp_path / "runs"))["error"])


def test_two_searches_for_a_batch_are_refused(train: Command, small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*small, "run.on_oom=halve_batch", "tune.batch_size=true") == 2
    assert "tune.batch_size=true" in capsys.readouterr().err


@pytest.mark.slow
def test_real_shortage_is_recognised() -> None:
    """What torch itself raises where the address space is used up, and what it raises for other mistakes."""
    code = (
        "import resource, torch\n"
        "from musicnet_eval.failures import is_out_of_memory\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "for make in (lambda: torch.empty(2**30), lambda: bytearray(2**30)):\n"
        "    try:\n"
        "        make()\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, is_out_of_memory(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["RuntimeError", "True", "MemoryError", "True"]
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not is_out_of_memory(other.value)
    assert not is_out_of_memory(KeyError("memory"))


# --- attempts -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_tried_so_many_times(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sick.py").write_text(NAN)
    sick = (*small, "plugins=[sick]", "++loss={_target_: sick.Nan, since: 0}", "run.max_attempts=2")
    assert train(*sick) == 1
    assert train(*sick) == 1
    run = only_run(tmp_path / "runs")
    written = (run / records.FAILED).read_bytes()
    capsys.readouterr()
    for mode in ((), ("-m",)):
        assert train(*mode, *sick) == 1
        said = capsys.readouterr().err
        for needed in ("failed 2 times", "run.max_attempts=2", "run.force=true", "finite"):
            assert needed in said
    assert (run / records.FAILED).read_bytes() == written  # the reason, not the refusal
    assert records.read_json(run / records.STATUS)["attempt"] == 2
    assert train(*sick, "run.force=true") == 1
    assert records.read_json(run / records.STATUS)["attempt"] == 3
    assert "times" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_counts_and_an_interrupted_one_does_not(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killer = "import os, pathlib, signal\nfrom lightning.pytorch.callbacks import Callback\n"
    killer += "class End(Callback):\n    def on_train_start(self, *rest):\n"
    killer += "        os.kill(os.getpid(), int(pathlib.Path('signal').read_text()))\n"
    (tmp_path / "killer.py").write_text(killer)
    given = (*small, "plugins=[killer]", "+callbacks.end._target_=killer.End", "run.max_attempts=1")
    command = [sys.executable, "-m", "musicnet_eval.train", *given]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL), (signal.SIGKILL, 1)):
        (tmp_path / "signal").write_text(str(int(number)))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
    assert "failed once" in done.stderr
    assert "it was killed" in done.stderr
    assert "AttemptsError" in str(failure(only_run(tmp_path / "runs"))["error"])


@pytest.mark.parametrize("wrong", ["run.max_attempts=0", "run.max_attempts=often", "run.on_oom=hope"])
def test_wrong_values_are_refused(train: Command, small: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*small, wrong) == 2
    assert wrong.partition("=")[0] in capsys.readouterr().err


# --- draws --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_batch_draws_its_own_also_while_gradients_are_accumulated(train: Command, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "seeds.py").write_text(SEEDS)
    watch = (*small, "plugins=[seeds]", "+callbacks.seeds._target_=seeds.Seeds", "seed=3")
    drawn = []
    for more in ((), ("trainer.accumulate_grad_batches=2",)):
        assert train(*watch, *more) == 0
        drawn.append((tmp_path / "drawn").read_text().split())
        (tmp_path / "drawn").unlink()
    expected = [torch.rand(1, generator=torch.Generator().manual_seed((3 * 1009 << 32) + step)).item() for step in range(4)]
    assert drawn[0] == drawn[1] == [repr(value) for value in expected]


# --- a disk that takes nothing ------------------------------------------------------------------------------------------------


def test_a_failure_that_cannot_be_written_is_said_and_ends_no_sweep(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in the place of a file cannot be written by anyone, as nothing can on a full disk."""
    sweep = ("-m", *small, "data.batch_size=1", "seed=0,1")  # refused before it trains
    assert train(*sweep) == 1
    first, _ = records.find_runs([tmp_path / "runs"])
    (first / records.FAILED).unlink()
    (first / records.FAILED).mkdir()
    assert train(*sweep) == 1
    told = capsys.readouterr()
    assert told.err.count("its failure could not be recorded") == 1
    assert told.err.count("2 of 2 runs failed") == 2

    for name in (records.CONFIG, records.FAILED):
        (tmp_path / "alone" / name).mkdir(parents=True)
    assert train(*small, "hydra.run.dir=alone") == 1
    failed, unwritten = capsys.readouterr().err.splitlines()
    assert failed.startswith("failed: IsADirectoryError")
    assert unwritten.startswith("its failure could not be recorded")
    (tmp_path / "file").touch()
    assert train(*small, "paths.runs=file") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "paths.runs" in said
