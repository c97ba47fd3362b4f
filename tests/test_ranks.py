"""One run on several devices: who leads, that all take the same steps, and that one that fails ends the run with a word."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from musicnet_eval import ranks, records, runs
from musicnet_eval.errors import TrainingError
from tests.conftest import TINY, Command, only_run

ONE = {"devices": 1, "num_nodes": 1, "strategy": None}
FAIL = """
import pathlib
from lightning.pytorch.callbacks import Callback


class Fail(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        flag = pathlib.Path("fail")
        if trainer.global_rank == 1 and trainer.current_epoch == 1 and index == 1 and flag.exists():
            flag.unlink()
            raise ValueError("the disk of rank 1 is gone")
"""


@pytest.mark.parametrize(
    ("node", "several"),
    [
        ({}, False),
        ({"devices": "1"}, False),
        ({"devices": 2}, True),
        ({"devices": "auto"}, True),
        ({"num_nodes": 2}, True),
        ({"strategy": "ddp"}, True),
        ({"strategy": {"_target_": "musicnet_eval.strategies.FSDP"}}, True),
    ],
)
def test_several(node: dict[str, object], several: bool) -> None:
    assert ranks.several(ONE | node) is several


@pytest.mark.parametrize(
    ("told", "leads"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "RANK": "8"}, False),  # torchrun, first of the second host
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_one_process_leads(monkeypatch: pytest.MonkeyPatch, told: dict[str, str], leads: bool) -> None:
    for name in ranks.RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert ranks.leads(ONE | {"devices": 2}) is leads
    assert ranks.leads(ONE)  # a run of its own beside others of the same Slurm step


def test_who_follows_waits_for_a_leader_or_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ranks.PARENT, raising=False)
    answers = iter([False, True])
    assert ranks.follow(tmp_path, lambda: next(answers)) is False  # the leader found it done: nobody will call
    runs.update_status(tmp_path, launch={"name": ranks._launch(), "at": time.time()})
    assert ranks.follow(tmp_path, lambda: False) is True
    monkeypatch.setattr(ranks, "PATIENCE", 0.0)
    with pytest.raises(TrainingError, match=r"trainer\.devices=1 fill paths\.cache first"):
        ranks.follow(tmp_path / "other", lambda: False)


STUCK = """
import pathlib, sys, time
from musicnet_eval import ranks

ranks.GRACE = 0.5
sys.argv = ["musicnet-train", "trainer.devices=2", "data=folder", "data.root=nowhere"]
with ranks.Team(2, pathlib.Path("."), external=False, threads=None, stuck=lambda error: print("told:", error, flush=True)):
    time.sleep(600)
"""


def test_a_leader_that_waits_for_one_that_is_gone_is_ended(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", STUCK], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "told: Process 1 of trainer.devices=2 has ended with exit code 2: error: data.root='nowhere'" in done.stdout
    assert "rank-1.log" in done.stderr


@pytest.mark.slow
def test_two_processes_train_as_one(tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Do a run in two processes, in a sweep and alone, where the second process fails and the run is asked for again."""
    from musicnet_eval.evaluate import evaluate

    (tmp_path / "fail.py").write_text(FAIL)
    common = ["data=folder", f"data.root={tones}", "backbone=test_resnet", *TINY, "data.folds=6", "trainer.max_epochs=3"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2", "paths.data=."]
    failing = ["plugins=[fail]", "+callbacks.fail._target_=fail.Fail"]

    def command(*more: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "musicnet_eval.train", *more, *common, *two, *failing]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)

    in_sweep = command("-m", "hydra/launcher=process", "hydra.launcher.n_jobs=1", "hydra.sweep.dir=sweep")
    assert in_sweep.returncode == 0, in_sweep.stderr
    (tmp_path / "fail").touch()
    failed = command("hydra.run.dir=cut")
    assert failed.returncode == 1
    assert (
        "Process 1 of trainer.devices=2 has ended with exit code 1: failed: ValueError: the disk of rank 1 is gone"
        in failed.stderr
    )
    about = records.read_json(tmp_path / "cut/failed.json")
    assert about["details"] == {"rank": 1, "exit_code": 1}
    again = command("hydra.run.dir=cut")
    assert again.returncode == 0, again.stderr
    assert "training: 3 epochs, 9 steps (6 left); 32-true on 2 processes, this one on cpu" in again.stdout
    assert again.stdout.count("run: ") == 1  # one process speaks

    whole, cut = only_run(tmp_path / "sweep"), tmp_path / "cut"
    record = records.read_result(cut)
    assert record["metrics"] == records.read_result(whole)["metrics"]
    assert {name: record["hardware"][name] for name in ("devices", "nodes", "world_size")} == {
        "devices": 2, "nodes": 1, "world_size": 2,
    }  # fmt: skip
    for file in ("metrics.csv", "predictions.csv", "suspect_labels.csv"):
        assert (cut / file).read_bytes() == (whole / file).read_bytes()
    assert not list(cut.glob("rank-*.log"))

    assert train(*common, "data.batch_size=4", "hydra.run.dir=one") == 0
    steps = {name: [row["step"] for row in records.read_curves(tmp_path / name)] for name in ("one", "cut")}
    assert steps == {"one": [3, 6, 9], "cut": [3, 6, 9]}
    said = records.read_predictions(cut)
    assert [row.song for row in said] == [row.song for row in records.read_predictions(tmp_path / "one")]
    for row, alone in zip(said, records.read_predictions(evaluate(cut, [])), strict=True):
        assert row[:4] == alone[:4]
        assert row.probabilities == pytest.approx(alone.probabilities, abs=2e-6)
    capsys.readouterr()


@pytest.mark.slow
def test_shards_train_as_one_process_does(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train a network in two shards, one of which fails so that the run goes on later, and in one process: the same numbers."""
    from musicnet_eval.evaluate import evaluate

    (tmp_path / "fail.py").write_text(FAIL)
    # A network without batch statistics, whose gradients are the mean over processes; clipping takes the norm over all shards.
    common = [
        "data=folder",
        f"data.root={tones}",
        "backbone=test_convnext",
        *TINY,
        "data.folds=6",
        "trainer.gradient_clip_val=0.5",
    ]
    assert train(*common, "hydra.run.dir=one") == 0
    two = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=2", "paths.data=."]
    words = [*common, *two, "plugins=[fail]", "+callbacks.fail._target_=fail.Fail", "hydra.run.dir=cut"]
    ends = []
    (tmp_path / "fail").touch()
    for _ in range(2):
        command = [sys.executable, "-m", "musicnet_eval.train", *words]
        ends.append(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300))
    assert [end.returncode for end in ends] == [1, 0], ends[1].stderr
    assert "ValueError: the disk of rank 1 is gone" in ends[0].stderr
    assert "2 epochs, 6 steps (3 left); 32-true on 2 processes" in ends[1].stdout

    whole, cut = tmp_path / "one", tmp_path / "cut"
    curves = [records.read_curves(run) for run in (whole, cut)]
    for row, again in zip(*curves, strict=True):
        assert again == pytest.approx(row, abs=1e-4)
    largest = [max(file.numel() for file in _state(run).values()) for run in (whole, cut)]
    assert largest[0] == largest[1]  # checkpoints are those of one device
    for row, again in zip(records.read_predictions(whole), records.read_predictions(evaluate(cut, [])), strict=True):
        assert row[:4] == again[:4]
        assert again.probabilities == pytest.approx(row.probabilities, abs=1e-4)
    capsys.readouterr()


def _state(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    return state
