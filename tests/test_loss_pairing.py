"""What losses say of themselves, which pairings are refused before the training, and what a training does with its loss."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from musicnet_eval.classifier import MusicClassifier
from musicnet_eval.contracts import DataFacts
from musicnet_eval.errors import ConfigError
from musicnet_eval.losses import AsymmetricLoss, AsymmetricSingleLabelLoss, BalancedTrustedLoss, CosineMarginLoss, FocalLoss
from musicnet_eval.losses.pairing import DEFAULTS, check_pairing, cosine_scale, requirement
from tests.conftest import TINY, Command
from tests.test_loss_presets import NoWaiting

ONE = DataFacts(classes=("a", "b", "c"), class_counts=(5, 3, 2), image_shape=(1, 32, 40), sample_rate=8000)
SEVERAL = DataFacts(classes=ONE.classes, class_counts=(5, 3, 2), image_shape=(1, 32, 40), sample_rate=8000, multilabel=True)
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{advice}")
    for advice in ("does not have many workers", "LeafSpec", "logging interval", "Skipping val loop", "Checkpoint directory")
]
ROBUST = partial(BalancedTrustedLoss, trust_strength=1.0, trust_warmup=0.5)


class Mine(nn.Module):
    """A loss of somebody who has never read our table."""

    def forward(self, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return scores.sum() + target.sum()


# --- the vocabulary -----------------------------------------------------------------------------------------------------------
def test_a_foreign_loss_is_refused_nothing() -> None:
    assert {name: requirement(Mine(), name) for name in DEFAULTS} == DEFAULTS
    for multilabel in (False, True):
        check_pairing(Mine(), multilabel=multilabel, mixes_labels=True, endless=True)


def test_what_depends_on_arguments_follows_them() -> None:
    assert not requirement(BalancedTrustedLoss(3, trust_strength=0.0), "needs_progress")
    assert not requirement(BalancedTrustedLoss(3, trust_warmup=0.0), "needs_progress")
    assert requirement(BalancedTrustedLoss(3), "needs_progress")
    assert not requirement(BalancedTrustedLoss(3, class_weight=[1, 2, 3]), "needs_class_counts")
    assert requirement(BalancedTrustedLoss(3, (1, 2, 3), class_weight="inv_freq"), "needs_class_counts")


def test_a_subclass_of_torchs_loss_is_known_too() -> None:
    class Renamed(nn.BCEWithLogitsLoss):
        pass

    assert requirement(Renamed(), "multilabel") is True


def test_a_loss_of_cosines_must_have_a_scale() -> None:
    class Angular(Mine):
        needs_cosines = True
        scale: Any = None

    assert cosine_scale(CosineMarginLoss(24.0)) == 24.0
    assert cosine_scale(FocalLoss()) is None
    with pytest.raises(ConfigError, match="Angular needs cosines, but its `scale` is None"):
        cosine_scale(Angular())


# --- wrong pairings -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("loss", "given", "message"),
    [
        (nn.BCEWithLogitsLoss(), {"multilabel": False}, "every track of this data carries just one. Use loss=cross_entropy"),
        (AsymmetricLoss(), {"multilabel": False}, "loss=asymmetric_single_label"),
        (nn.CrossEntropyLoss(), {"multilabel": True}, "takes one label a track, .* Use loss=bce"),
        (FocalLoss(), {"multilabel": True}, "Use loss=bce"),
        (BalancedTrustedLoss(3), {"multilabel": True}, "Use loss=bce"),
        (CosineMarginLoss(), {"multilabel": True}, "Use loss=bce"),
        (CosineMarginLoss(), {"multilabel": False, "mixes_labels": True}, "mixes the labels of two tracks. Use augment=none"),
        (nn.NLLLoss(), {"multilabel": False, "mixes_labels": True}, "takes whole labels"),
        (BalancedTrustedLoss(3), {"multilabel": False, "endless": True}, "Set trainer.max_epochs"),
    ],
)
def test_wrong_pairings_are_refused(loss: nn.Module, given: dict[str, bool], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_pairing(loss, **given)


@pytest.mark.parametrize(
    ("loss", "given"),
    [
        (nn.BCEWithLogitsLoss(), {"multilabel": True, "mixes_labels": True}),
        (AsymmetricLoss(), {"multilabel": True}),
        (AsymmetricSingleLabelLoss(), {"multilabel": False, "mixes_labels": True}),
        (BalancedTrustedLoss(3), {"multilabel": False, "mixes_labels": True}),
        (BalancedTrustedLoss(3, trust_warmup=0.0), {"multilabel": False, "endless": True}),
        (CosineMarginLoss(), {"multilabel": False, "endless": True}),
    ],
)
def test_right_pairings_are_not(loss: nn.Module, given: dict[str, bool]) -> None:
    check_pairing(loss, **given)


# --- in a training ------------------------------------------------------------------------------------------------------------
def batches(facts: DataFacts = ONE) -> DataLoader[Any]:
    """Give two batches of 4."""
    draw = torch.Generator().manual_seed(0)
    label = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    rows = [
        {"image": torch.randn(1, 32, 40, generator=draw), "label": one, "song": torch.tensor(i)} for i, one in enumerate(label)
    ]
    if facts.multilabel:
        for row in rows:
            row["label"] = nn.functional.one_hot(row["label"], 3).float()
    return DataLoader(rows, batch_size=4)  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: Callback, **given: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
        **{"max_epochs": 4, **given},
    )


class Mixing(nn.Module):
    mixes_labels = True


class Data(lightning.LightningDataModule):
    def __init__(self, augment: nn.Module | None = None) -> None:
        super().__init__()
        self.augment = augment

    def train_dataloader(self) -> DataLoader[Any]:
        return batches()


def test_a_training_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    def fit(facts: DataFacts, loss: Any, augment: nn.Module | None = None, **given: Any) -> None:
        trainer(tmp_path, **given).fit(MusicClassifier(facts, 8, "stats_linear", loss=loss), Data(augment))

    with pytest.raises(ConfigError, match="carries just one"):
        fit(ONE, nn.BCEWithLogitsLoss())
    with pytest.raises(ConfigError, match="carry several"):
        fit(SEVERAL, nn.CrossEntropyLoss())
    with pytest.raises(ConfigError, match="mixes the labels"):
        fit(ONE, CosineMarginLoss(), nn.Sequential(nn.Identity(), Mixing()))  # wherever in the augmentation it is
    with pytest.raises(ConfigError, match="max_epochs=-1"):
        fit(ONE, ROBUST, max_epochs=-1)
    fit(ONE, CosineMarginLoss(angular_margin=0.2), nn.Identity(), max_epochs=1)


class Strengths(Callback):
    """Note the progress that each step was made with."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.seen.append(module.loss.progress.item())


def test_a_resumed_training_keeps_the_warmup(tmp_path: Path) -> None:
    def model() -> MusicClassifier:
        torch.manual_seed(0)
        return MusicClassifier(ONE, 8, "stats_linear", loss=ROBUST)

    def keep() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")

    whole, strengths = model(), Strengths()
    trainer(tmp_path, keep(), strengths).fit(whole, batches())
    assert strengths.seen == pytest.approx([step / 8 for step in range(8)])
    stored = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    assert stored["loss.progress"].item() == pytest.approx(3 / 8)
    resumed, again = model(), Strengths()
    trainer(tmp_path, keep(), again).fit(resumed, batches(), ckpt_path=str(tmp_path / "epoch=1.ckpt"), weights_only=True)
    assert again.seen == strengths.seen[4:]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)


def test_an_endless_training_stays_at_its_beginning(tmp_path: Path) -> None:
    loss = partial(BalancedTrustedLoss, trust_strength=0.0, trust_warmup=0.5)  # is told, and does not mind
    seen = Strengths()
    trainer(tmp_path, seen, max_epochs=-1, max_time="00:00:00:02").fit(
        MusicClassifier(ONE, 8, "stats_linear", loss=loss), batches()
    )
    assert seen.seen
    assert set(seen.seen) == {0.0}


@pytest.mark.parametrize(
    ("facts", "loss"),
    [(ONE, ROBUST), (ONE, CosineMarginLoss(angular_margin=0.2)), (SEVERAL, AsymmetricLoss()), (ONE, nn.CrossEntropyLoss())],
)
def test_values_are_looked_at_in_the_first_batch_alone(facts: DataFacts, loss: Any) -> None:
    model = MusicClassifier(facts, 8, "stats_linear", loss=loss)
    first, second = batches(facts)
    bad = {**first, "label": first["label"] + 7}
    if getattr(model.loss, "validate_args", False):
        with pytest.raises(ValueError, match=r"target|label"):
            model.training_step(bad, 0)
    model.training_step(first, 0)["loss"].backward()
    with NoWaiting():
        model.training_step(second, 1)["loss"].backward()


@pytest.mark.slow
def test_the_command_gives_the_reason_and_leaves_no_run(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY)
    for wrong, reason in (
        (("loss=amcm_softmax", "augment=mixup"), "mixes the labels of two tracks"),
        (("loss=bce",), "every track of this data carries just one"),
    ):
        assert train(*small, *wrong) == 2
        assert reason in capsys.readouterr().err
    assert not list(tmp_path.rglob("result.json"))
    assert train(*small, "loss=amcm_softmax", "trainer.max_epochs=1") == 0
