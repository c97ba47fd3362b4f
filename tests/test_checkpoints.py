"""A run that was cut in mid-epoch goes on after the batches that are done, and ends with the numbers of one that was not."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from musicnet_eval import records
from tests import test_resume
from tests.conftest import Command

STOP = """
import os, pathlib, signal
import torch
from lightning.pytorch.callbacks import Callback


class Stop(Callback):
    '''Leave once in each attempt, at the given batches (counted over epochs); note every batch that is trained on.'''

    def __init__(self, moments):
        self.moments = list(moments)  # [hook, batch]; "int" and "term" send that signal, others raise as a kill would leave it

    def _at(self, hook, trainer):
        flag = pathlib.Path("stopped")
        done = int(flag.read_text())
        if done < len(self.moments) and self.moments[done] == [hook, trainer.fit_loop.total_batch_idx]:
            flag.write_text(str(done + 1))
            if hook in ("int", "term"):
                os.kill(os.getpid(), signal.SIGINT if hook == "int" else signal.SIGTERM)
            else:
                raise SystemExit(130)

    def on_train_batch_start(self, trainer, module, batch, index):
        self._at("int", trainer)
        self._at("term", trainer)
        self._at("start", trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        with open("batches", "a") as file:
            file.write(f"{trainer.current_epoch}.{index} ")
        self._at("end", trainer)

    def on_validation_end(self, trainer, module):
        self._at("validated", trainer)

    def on_train_end(self, trainer, module):
        torch.save({"weights": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]}, "final.pt")
"""


def overrides(tones: Path) -> list[str]:
    """Give 12 training tracks in 6 batches an epoch, so that there is a middle to be cut in."""
    return [*test_resume.overrides(tones), "data.folds=6", "data.batch_size=2", "trainer.max_epochs=3"]


ERASING = "{_target_: torchvision.transforms.v2.RandomErasing, p: 1}"  # draws from torch's global generator
ALL_AT_ONCE = (
    "data.sampler=balanced",
    "trainer.accumulate_grad_batches=2",  # 3 optimizer steps an epoch
    "augment=[music_strong,mix_audio,cutmix]",
    f"+augment.erase={{_target_: musicnet_eval.augment.OnImage, module: {ERASING}}}",
    "callbacks=[default,ema,early_stopping]",
    "callbacks.ema.decay=0.8",
    "scheduler=one_cycle",
    "optimizer=sgd",
    "run.checkpoint_every_n_steps=1",
)
GRADUAL = ("finetune=gradual", "finetune.epochs_per_stage=1", "scheduler=plateau", "scheduler.patience=0")
WORKERS = ("data.num_workers=2", "trainer.precision=bf16-mixed", "optimizer=muon", "trainer.limit_train_batches=5")
# overrides; when it is cut (batches counted from 0 over the epochs, 6 an epoch); the exit codes; batches done twice
CUTS: dict[str, tuple[tuple[str, ...], list[tuple[str, int]], list[int], str]] = {
    "steps": ((), [("term", 2), ("int", 7), ("validated", 17)], [143, 130, 130], "2.0 2.1 2.2 2.3 2.4 2.5 "),
    "every_second": (("run.checkpoint_every_n_steps=2",), [("end", 0), ("start", 9), ("end", 14)], [130] * 3, "0.0 1.2 2.2 "),
    "all": (ALL_AT_ONCE, [("end", 2), ("term", 6), ("start", 15)], [130, 143, 130], "0.2 2.2 "),
    "gradual": ((*GRADUAL, "run.checkpoint_every_n_steps=1"), [("start", 9), ("term", 12)], [130, 143], ""),
    "workers": ((*WORKERS, "run.checkpoint_every_n_steps=3"), [("end", 8), ("int", 11)], [130, 130], "1.1 1.2 1.3 "),
}


@pytest.mark.parametrize(
    "name", ["steps", *(pytest.param(name, marks=pytest.mark.slow) for name in ("every_second", "all", "gradual", "workers"))]
)
def test_cut_in_mid_epoch_equals_undisturbed(
    tones: Path, train: Command, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given, moments, codes, twice = CUTS[name]
    (tmp_path / "stop_between.py").write_text(STOP)  # a name of its own: modules stay imported from test to test
    listed = ",".join(f"[{hook},{batch}]" for hook, batch in moments)
    command = [
        *overrides(tones),
        *given,
        "plugins=[stop_between]",
        "+callbacks.stop._target_=stop_between.Stop",
        f"+callbacks.stop.moments=[{listed}]",
    ]
    (tmp_path / "stopped").write_text("99")
    assert train(*command, "hydra.run.dir=whole") == 0
    batches, final = (tmp_path / "batches").read_text(), torch.load(tmp_path / "final.pt")
    (tmp_path / "batches").unlink()
    (tmp_path / "stopped").write_text("0")
    for code in codes:
        before = signal.getsignal(signal.SIGTERM)
        assert train(*command, "hydra.run.dir=cut") == code
        assert signal.getsignal(signal.SIGTERM) is before
        assert json.loads((tmp_path / "cut/status.json").read_text())["state"] == "interrupted"
    assert train(*command, "hydra.run.dir=cut") == 0
    assert sorted((tmp_path / "batches").read_text().split()) == sorted((batches + twice).split())
    again = torch.load(tmp_path / "final.pt")
    torch.testing.assert_close(again, final, rtol=0, atol=0)
    whole, cut = (records.read_result(tmp_path / name) for name in ("whole", "cut"))
    assert cut["metrics"] == whole["metrics"]
    assert cut["facts"] == whole["facts"]
    for file in ("predictions.csv", "metrics.csv", "suspect_labels.csv"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    asked = sum(hook in ("int", "term") for hook, _ in moments)
    assert capfd.readouterr().err.count("stops after this step") == asked
