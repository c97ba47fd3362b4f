"""The recipe by keys: precision, clipping, accumulation, freezing, averaged weights, search, early stopping, experiments.

Truth is what a step does to the weights, by hand or by a plain loop.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from musicnet_eval import backbones, configs, records
from musicnet_eval.classifier import MusicClassifier
from musicnet_eval.contracts import DataFacts
from musicnet_eval.errors import ConfigError
from musicnet_eval.finetune import Finetune
from musicnet_eval.trainers import check_monitor, make_trainer
from musicnet_eval.tuning import steepest
from tests.conftest import TINY, Command, only_run

LOOK = """
import torch
from lightning.pytorch.callbacks import Callback
from timm.models import register_model
from torch import nn


class Look(Callback):
    '''Keep the weights before training and after each step, and what a step is made of.'''

    def on_train_start(self, trainer, module):
        self.weights = [self.copy(module)]
        self.images = []
        self.kinds = []
        hook = module.loss.register_forward_hook(lambda m, given, out: self.kinds.append((given[0].dtype, out.dtype)))
        self.deterministic = torch.are_deterministic_algorithms_enabled()

    def copy(self, module):
        return {name: value.detach().clone() for name, value in module.backbone.state_dict().items()}

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.images.append(batch["image"].dtype)
        self.weights.append(self.copy(module))

    def on_train_end(self, trainer, module):
        kept = {"weights": self.weights, "deterministic": self.deterministic}
        kept |= {"images": [str(kind) for kind in self.images], "kinds": [[str(a), str(b)] for a, b in self.kinds]}
        torch.save(kept, "look.pt")


@register_model
def flat(num_classes=10, in_chans=1, img_size=(8, 8)):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size[0] * img_size[1], num_classes))
"""
STEEP = ("optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0", "scheduler=constant")


@pytest.fixture
def look(tones: Path, train: Command, tmp_path: Path) -> Any:
    """Train on the tones and give what was seen."""
    (tmp_path / "look.py").write_text(LOOK)
    watching = ("plugins=[look]", "+callbacks.look._target_=look.Look")

    def run(*given: str, tiny: Sequence[str] = TINY) -> dict[str, Any]:
        assert train("data=folder", f"data.root={tones}", *tiny, "trainer.max_epochs=1", *watching, *given) == 0
        seen: dict[str, Any] = torch.load("look.pt", weights_only=True)
        return seen

    return run


def change(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((after[name] - value).square().sum()) for name, value in before.items()))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_images_and_losses_stay_float32(look: Any, precision: str) -> None:
    seen = look("backbone=test_resnet", f"trainer.precision={precision}")
    assert set(seen["images"]) == {"torch.float32"}
    assert {kind for pair in seen["kinds"] for kind in pair} == {"torch.float32"}
    assert all(value.dtype in (torch.float32, torch.int64) for value in seen["weights"][-1].values())


def test_half_precision_is_used(look: Any) -> None:
    """The same step in bf16 differs, by about its eight bits."""
    given = ("backbone=flat", *STEEP, "trainer.limit_train_batches=1")
    full, half = (look(*given, f"trainer.precision={kind}", "run.force=true")["weights"] for kind in ("32-true", "bf16-mixed"))
    step, error = change(full[0], full[-1]), change(full[-1], half[-1])
    assert 1e-5 * step < error < 0.05 * step


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_precisions_that_change_weights_are_refused(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.precision={precision} changes the weights.*Use bf16-mixed"):
        make_trainer({"_target_": "lightning.Trainer", "accelerator": "cpu", "precision": precision})


def test_half_floats_on_a_cpu_are_refused() -> None:
    with (
        pytest.warns(UserWarning, match="not supported on CPU"),
        pytest.raises(ConfigError, match=r"trainer\.precision=16-mixed does not work here.*bf16-mixed"),
    ):
        make_trainer({"_target_": "lightning.Trainer", "accelerator": "cpu", "precision": "16-mixed"})


@pytest.mark.slow
def test_clipping_bounds_the_step(look: Any) -> None:
    given = ("backbone=flat", *STEEP, "optimizer.lr=1.0", "trainer.limit_train_batches=1")
    free = look(*given)["weights"]
    clipped = look(*given, "trainer.gradient_clip_val=0.25")["weights"]
    assert change(free[0], free[-1]) > 0.3
    assert change(clipped[0], clipped[-1]) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.slow
def test_accumulated_batches_equal_a_large_one(look: Any) -> None:
    given = ("backbone=flat", *STEEP, "optimizer.lr=0.01")
    whole = look(*given, "data.batch_size=6")["weights"]
    parts = look(*given, "data.batch_size=3", "trainer.accumulate_grad_batches=2")["weights"]
    assert len(parts) == len(whole) + 1
    assert change(whole[0], whole[-1]) > 1e-3
    assert change(whole[-1], parts[-1]) < 1e-5
    assert change(parts[0], parts[1]) == 0


def test_deterministic_mode(look: Any) -> None:
    assert look("backbone=flat", "trainer.deterministic=true")["deterministic"]


def test_drop_rates_reach_the_network() -> None:
    network = backbones.build("resnet10t", {"drop_rate": 0.2, "drop_path_rate": 0.1}, 3, (1, 64, 64))
    assert network.drop_rate == 0.2
    assert max(module.drop_prob for module in network.modules() if isinstance(module, DropPath)) == pytest.approx(0.1)


# --- freezing -----------------------------------------------------------------------------------------------------------------


def test_a_frozen_body_stays_as_it_was(look: Any, tmp_path: Path) -> None:
    seen = look("backbone=test_resnet", "finetune=head", "trainer.max_epochs=2")
    first, last = seen["weights"][0], seen["weights"][-1]
    assert {name for name in first if not first[name].equal(last[name])} == {"fc.weight", "fc.bias"}
    record = records.read_result(only_run(tmp_path / "runs"))
    assert record["facts"]["trainable_parameters"] == {"0": first["fc.weight"].numel() + first["fc.bias"].numel()}
    assert record["parameters"] == sum(
        p.numel() for p in timm.create_model("test_resnet", num_classes=3, in_chans=1).parameters()
    )


@pytest.mark.slow
def test_stages_wake_from_the_head_down(look: Any, tmp_path: Path) -> None:
    stage = ("finetune=gradual", "finetune.epochs_per_stage=1", "finetune.stages=5")
    seen = look("backbone=test_resnet", *stage, "trainer.max_epochs=3")["weights"]
    batches = (len(seen) - 1) // 3

    def moved(epoch: int) -> set[str]:
        before, after = seen[epoch * batches], seen[(epoch + 1) * batches]
        return {name.partition(".")[0] for name in before if not before[name].equal(after[name])}

    assert [moved(epoch) for epoch in range(3)] == [{"fc"}, {"fc", "layer4"}, {"fc", "layer4", "layer3"}]
    counts = records.read_result(only_run(tmp_path / "runs"))["facts"]["trainable_parameters"]
    assert list(counts) == ["0", "1", "2"]
    assert sorted(counts.values()) == list(counts.values())


def test_gradual_unfreezing_is_refused_over_processes() -> None:
    facts = DataFacts(classes=("a", "b"), class_counts=(3, 4), image_shape=(1, 32, 32), sample_rate=8000)
    model = MusicClassifier(facts, 7, "test_resnet", finetune=Finetune(trained_stages=0, epochs_per_stage=1))
    model.trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match=r"finetune=gradual on trainer.devices=2.*finetune=head"):
        model.on_fit_start()


# --- averaged weights, early stopping, schedules ------------------------------------------------------------------------------


def test_the_best_checkpoint_holds_the_average(look: Any, tmp_path: Path) -> None:
    seen = look("backbone=test_resnet", "callbacks=[default,ema]", "callbacks.ema.decay=0.7")["weights"]
    average = dict(seen[1])
    for later in seen[2:]:
        average = {name: 0.7 * value + 0.3 * later[name] for name, value in average.items()}
    (path,) = tmp_path.rglob("best.ckpt")
    state = torch.load(path, weights_only=True)["state_dict"]
    for name, value in average.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(state[f"backbone.{name}"], value, rtol=1e-5, atol=1e-6)
    assert not state["backbone.fc.weight"].equal(seen[-1]["fc.weight"])


def curve(folder: Path, column: str) -> list[float]:
    with (only_run(folder) / "metrics.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_early_stopping_counts_epochs_without_improvement(look: Any, tmp_path: Path) -> None:
    stopping = ("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=2", "trainer.max_epochs=9")
    look("backbone=test_resnet", *stopping, "finetune=head", "optimizer.lr=0")  # nothing can improve
    assert len(curve(tmp_path / "runs", "lr")) == 3


@pytest.mark.slow
def test_the_plateau_lowers_the_rate_by_epoch(look: Any, tmp_path: Path) -> None:
    given = ("scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", "finetune=head", "finetune.head_lr_scale=1e-20")
    look("backbone=test_resnet", *given, "optimizer.lr=0.08", "trainer.max_epochs=4")
    assert curve(tmp_path / "runs", "lr") == pytest.approx([0.08, 0.08, 0.04, 0.02])


@pytest.mark.slow
def test_a_compiled_network_takes_the_same_step(look: Any) -> None:
    given = ("backbone=flat", *STEEP, "trainer.limit_train_batches=1")
    plain, compiled = (look(*given, f"model.compile={switch}")["weights"] for switch in ("false", "true"))
    assert change(plain[0], plain[-1]) > 1e-3
    assert change(plain[-1], compiled[-1]) < 1e-5


# --- search -------------------------------------------------------------------------------------------------------------------


def test_the_rate_is_where_the_loss_falls_fastest_per_decade() -> None:
    rates = [10 ** (-6 + 6 * i / 100) for i in range(100)]
    losses = [1 / (1 + (rate / 1e-3)) + 1e-4 * (-1) ** i for i, rate in enumerate(rates)]  # steepest over log rate at 1e-3
    found = steepest(rates, losses)
    assert found == pytest.approx(1e-3, rel=0.2)
    assert steepest(rates, [math.nan] * 100) is None
    assert steepest(rates, [float(i) for i in range(100)]) is None
    assert steepest(rates[:5], losses[:5]) is None


@pytest.mark.slow
def test_what_is_found_is_used_and_recorded(look: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish = ("tune.lr=true", "tune.lr_steps=40", "tune.batch_size=true", "tune.max_batch_size=4", "data.batch_size=2")
    seen = look("backbone=test_resnet", *wish, "scheduler=constant")
    run = only_run(tmp_path / "runs")
    tuned = records.read_result(run)["facts"]["tuned"]
    assert tuned["data.batch_size"] == 4
    assert curve(tmp_path / "runs", "lr") == pytest.approx([tuned["optimizer.lr"]], rel=1e-5)
    assert len(seen["weights"]) - 1 == 2  # 6 tracks by 4
    assert (run / "pictures/learning-rate.png").is_file()
    assert f"tuned: data.batch_size=4 optimizer.lr={tuned['optimizer.lr']:.4g}" in capsys.readouterr().out
    assert not list(run.rglob(".lr_find*"))


# --- what chooses the best epoch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "mode", "sweeping", "said"),
    [
        ("val/segment/loss", "min", True, "monitor=val/segment/log_loss"),
        ("val/segment/log_loss", "max", False, "monitor_mode=min"),
        ("val/song/f1_macro", "min", False, "monitor_mode=max"),
        ("test/song/f1_macro", "max", False, "no validation metric"),
    ],
)
def test_what_may_not_choose_the_best_epoch(monitor: str, mode: str, sweeping: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_monitor(monitor, mode, sweeping=sweeping)


def test_what_may() -> None:
    check_monitor("val/segment/loss", "min", sweeping=False)
    check_monitor("val/segment/log_loss", "min", sweeping=True)
    check_monitor("val/song/f1_macro", "max", sweeping=True)


def test_a_sweep_by_its_own_loss_is_refused(train: Command, tones: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, "monitor=val/segment/loss", "monitor_mode=min")
    assert train("-m", *given, "loss=cross_entropy,focal") == 1
    assert capsys.readouterr().err.count("in a sweep would choose") == 2


# --- recipes and experiments --------------------------------------------------------------------------------------------------

SMALL = ("trainer.limit_train_batches=1", "trainer.max_epochs=1", "trainer.limit_val_batches=1", "run.keep_checkpoints=none")


@pytest.mark.parametrize("recipe", ["default", "finetune", "scratch"])
@pytest.mark.slow
def test_recipes_train(look: Any, recipe: str) -> None:
    look(f"recipe={recipe}", "backbone=test_resnet", "backbone_options.pretrained=false", *SMALL)


def swept(experiment: str) -> dict[str, list[str]]:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(configs.CONF), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={experiment}"], return_hydra_config=True)
    return {key: str(value).split(",") for key, value in (config.hydra.sweeper.params or {}).items()}


def test_the_paper_table_sweeps_networks_losses_and_seeds() -> None:
    params = swept("paper_table")
    assert params["loss"] == ["cross_entropy", "balanced_trusted"]
    assert len(params["seed"]) >= 3
    assert all(name.startswith("torchvision/") or timm.is_model(name) for name in params["backbone"])


STFT = tuple(given for given in TINY if "n_mels" not in given)
BACKBONES = [*swept("paper_table")["backbone"]]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_networks_of_the_paper_table_take_a_step(look: Any, backbone: str) -> None:
    look("experiment=paper_table", "hydra.mode=RUN", f"backbone={backbone}", "loss=balanced_trusted", *SMALL, tiny=STFT)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["resnet50_trust", "transfer"])
def test_experiments_take_a_step(look: Any, experiment: str) -> None:
    given = ("hydra.mode=RUN", "backbone_options.pretrained=false", *SMALL)
    look(f"experiment={experiment}", *given, tiny=TINY if experiment == "transfer" else STFT)


def test_resnet50_trust_is_what_it_says() -> None:
    config = configs.resolved(configs.compose(["experiment=resnet50_trust"]))
    assert config["backbone"] == "resnet50"
    assert config["backbone_options"]["pretrained"]
    assert config["spectrogram"]["_target_"] == "musicnet_eval.spectrograms.Stft"
    loss = configs.build(config["loss"], "loss")(num_classes=10)
    assert float(loss.trust_factor) == pytest.approx(1e-3)
    assert isinstance(loss, nn.Module)
