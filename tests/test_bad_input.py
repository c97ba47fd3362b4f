"""What a user gets wrong gives one clear sentence and a non-zero exit code, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY, Command

GOOD = ("data=folder", "backbone=stats_linear", *TINY)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=-1"], "seed=-1 must be a whole number"),
        (["seed=one"], "seed='one' must be a whole number"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0 must be"),
        (["trainer.max_epochs=many"], "trainer.max_epochs='many'"),
        (["num_threads=0"], "num_threads=0"),
        (["data.batch_size=1"], "data.batch_size=1 must be a number from 2"),
        (["data.batch_size=lots"], "data.batch_size='lots'"),
        (["data.sample_rate=-8000"], "data.sample_rate=-8000 must be"),
        (["data.segment_seconds=0"], "data.segment_seconds=0"),
        (["data.segment_seconds=2.0"], "longer than 18 of 18 tracks (shortest: 1.2 s"),
        (["data.segment_seconds=1e9"], "data.segment_seconds=1000000000.0 must be"),
        (["data.fold=7"], "data.fold=7 is outside 0..2"),
        (["data.protocol=random"], "data.protocol='random' is not a protocol"),
        (["data.on_bad_file=ignore"], "data.on_bad_file='ignore'"),
        (["backbone=resnt18"], "did you mean 'resnet18'"),
        (["backbone=7"], "backbone=7 must be a name"),
        (["data.fold=first"], "data.fold='first' must be a whole number"),
        (["data.folds=2"], "data.folds=2 must be a whole number from 3"),
        (["data.pad_short=maybe"], "data.pad_short='maybe' must be true or false"),
        (["run.force=1"], "run.force=1 must be true or false"),
        (["backbone_options.pretrained=yess"], "backbone_options.pretrained='yess' must be true or false"),
        (["+backbone_options.drop_rte=1", "backbone=test_resnet"], "does not take these backbone_options"),
        (["backbone_options.checkpoint_path=no.pth", "backbone=test_resnet"], "'no.pth' is not a file"),
        (["spectrogram.n_fft=1000"], "spectrogram.n_fft=1000"),
        (["spectrogram.n_mels=few"], "spectrogram"),
        (["spectrogram.n_mels=100", "spectrogram.f_max=1000"], "spectrogram.n_mels=100 leaves"),
        (["spectrogram.f_max=9000"], "f_max=9000 must satisfy"),
        (["spectrogram.n_fft=4096", "spectrogram.hop_length=4096"], "Lower spectrogram.hop_length"),
        (["spectrogram.size=[224]"], "spectrogram.size=[224] must be two whole numbers"),
        (["spectrogram.size=[1000000,1]"], "spectrogram.size=[1000000, 1]"),
        (["spectrogram.colormap=virdis"], "did you mean 'viridis'"),
        (["spectrogram.normalize=per_song"], "spectrogram.normalize='per_song' must be one of none, per_example, per_band"),
        (["optimizer.lr=-1"], "Invalid learning rate: -1"),
        (["optimizer._target_=torch.optim.Addam"], "optimizer"),
        (["loss._target_=no.such.Loss"], "no.such.Loss"),
        (["scheduler.warmup_fraction=2"], "scheduler.warmup_fraction=2"),
        (["trainer.precision=12"], "trainer cannot be made"),
        (["optimizer.lr=abc"], "AdamW cannot be made with lr='abc'"),
        (["trainer.devices=2", "tune.lr=true"], "tune.lr does not go with trainer.devices=2. Search with trainer.devices=1"),
        (["trainer.devices=2", "run.on_oom=halve_batch"], "run.on_oom=halve_batch does not go with trainer.devices=2"),
        (
            ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "run.checkpoint_every_n_steps=5"],
            "Use null: each process",
        ),
        (["trainer.devices=2", "+trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn copies a process"),
        (
            ["trainer=fsdp", "trainer.accelerator=cuda"],
            "trainer=fsdp needs GPUs with CUDA, and there is none here. Use trainer=ddp",
        ),
        (["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1"], "trainer=fsdp with one device has nothing to cut"),
        (
            ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "model.channels_last=true"],
            "in another order than its weights. Use model.channels_last=false",
        ),
        (
            ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "optimizer=muon"],
            "optimizer=Muon may look at whole weights, and trainer=fsdp cuts them",
        ),
        (
            ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "callbacks=[default,ema]"],
            "callbacks.ema looks at whole weights, and trainer=fsdp cuts them",
        ),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"], "each host: torchrun, or srun"),
        (["trainer.devices=2", "-m"], "would begin the sweep anew. Use hydra/launcher=process"),
        (
            ["run.checkpoint_every_n_steps=0"],
            "run.checkpoint_every_n_steps=0 must be a whole number from 1 to 1000000000, or null",
        ),
        (
            ["run.checkpoint_every_n_steps=1", "++trainer.val_check_interval=0.5"],
            "with trainer.val_check_interval=0.5 could not go on",
        ),
        (["trainer=gpu"], "trainer cannot be made"),
        (["run.keep_checkpoints=some"], "run.keep_checkpoints='some' must be one of all, best, none"),
        (["monitor=val/song/f2"], "val/song/f2"),
        (["monitor_mode=up"], "monitor_mode='up'"),
        (["plugins=[no_such_module]"], "plugins=[no_such_module] cannot be imported"),
        (["plugins=no_such_module"], "must be a list of module names"),
    ],
)
def test_values(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    code = train(*GOOD, f"data.root={tones}", *overrides)
    shown = capsys.readouterr().err
    assert message in shown
    assert code == (1 if "-m" in overrides else 2)
    assert "Traceback" not in shown
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["losss=cross_entropy"], "losss"),
        (["data.foldd=1"], "foldd"),
        (["loss=cross_entrpy"], "cross_entrpy"),
        (["trainer.max_epoch=3"], "max_epoch"),
    ],
)
def test_what_hydra_refuses(overrides: list[str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "musicnet_eval.train", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=folder"], "data.root must be given"),
        (["data=csv"], "data.manifest must be given"),
        (["data=folder", "data.root=nowhere"], "data.root='nowhere' does not exist"),
        (["data=csv", "data.manifest=nowhere.csv"], "data.manifest='nowhere.csv' does not exist"),
        (["data=folder", "data.root=empty"], "holds no class folders"),
        (["data=folder", "data.root=hollow"], "no audio files"),
        (["data=folder", "data.root=single"], "a comparison needs at least 2"),
        (["data=folder", "data.root=lonely"], "have one track each"),
        (["data=folder", "data.root=text"], "audio files are unusable"),
    ],
)
def test_data_that_cannot_be_used(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow/blues").mkdir(parents=True)
    (tmp_path / "single").mkdir()
    (tmp_path / "single/low").symlink_to(tones / "low")
    for name in ("lonely", "text"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "low").symlink_to(tones / "low")
        (tmp_path / name / "odd").mkdir()
    (tmp_path / "lonely/odd/0.wav").symlink_to(tones / "high/0.wav")
    for number in range(3):
        (tmp_path / f"text/odd/{number}.wav").write_text("this is no audio")
    assert train("backbone=stats_linear", *TINY, *overrides) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_training_that_breaks_leaves_its_traceback(tones: Path, train: Command, tmp_path: Path) -> None:
    (tmp_path / "breaking.py").write_text(
        "import torch\nclass Loss(torch.nn.Module):\n"
        "    def forward(self, scores, label):\n        raise ArithmeticError('at once')\n"
    )
    code = train(*GOOD, f"data.root={tones}", "plugins=[breaking]", "loss._target_=breaking.Loss")
    assert code == 1
    (failed,) = tmp_path.rglob("failed.json")
    record = json.loads(failed.read_text())
    assert record["error"] == "ArithmeticError: at once"
    assert "in forward" in record["traceback"]
    assert record["config"]["loss"]["_target_"] == "breaking.Loss"
    assert json.loads((failed.parent / "status.json").read_text())["state"] == "failed"
    assert not (failed.parent / "result.json").exists()


def test_full_error_shows_the_traceback(
    train: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert train("data=folder", "data.root=nowhere") == 2
    assert "Traceback" in capsys.readouterr().err
