"""`MusicClassifier`: backbone + loss + metrics + optimizer as a LightningModule. Layer 4; knows neither data nor callbacks.

It receives batches that carry an `image`, and `DataFacts`. Training, validation and test share one step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric, MetricCollection

from musicnet_eval import backbones
from musicnet_eval.contracts import Batch, DataFacts
from musicnet_eval.errors import ConfigError
from musicnet_eval.metrics import SongVotes, Votes, mean_metric, segment_metrics, song_metrics, training_metrics

EVAL_SPLITS = ("val", "test")


class MusicClassifier(lightning.LightningModule):
    """Classify images of music.

    Args:
        facts: What the data set is like.
        num_songs: Length of the data set's list of tracks.
        backbone: Name of the network (`backbones.build`).
        backbone_options: Its options.
        loss: `loss(scores, label)`, or a partial that gets `num_classes` and `class_counts` as its signature accepts.
        optimizer: Partial that gets `params`.
        scheduler: Partial that gets `optimizer` and `total_steps` as its signature accepts; None keeps the rate.
        channels_last: Lay the network's weights out channels last: faster on CPUs and on GPUs with mixed precision.

    Shape:
        input: image `[B, K, F, N]`. output: scores `[B, C]`.
    """

    def __init__(
        self,
        facts: DataFacts,
        num_songs: int,
        backbone: str,
        backbone_options: Mapping[str, Any] | None = None,
        loss: Callable[..., Any] | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        classes = len(facts.classes)
        self.facts = facts
        self.backbone = backbones.build(backbone, backbone_options or {}, classes, facts.image_shape)
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        self.loss: nn.Module = finish(loss or nn.CrossEntropyLoss(), num_classes=classes, class_counts=facts.class_counts)
        self.make_optimizer = optimizer or partial(torch.optim.AdamW, lr=1e-3)
        self.make_scheduler = scheduler
        self.train_metrics = training_metrics(classes)
        self.eval_metrics = nn.ModuleDict({split: segment_metrics(split, classes) for split in EVAL_SPLITS})
        self.means = nn.ModuleDict(
            {f"{split}_{name}": mean_metric() for split in ("train", *EVAL_SPLITS) for name in ("loss", "log_loss")}
        )
        self.votes = nn.ModuleDict({split: SongVotes(num_songs, classes) for split in EVAL_SPLITS})
        self.last_votes: dict[str, Votes] = {}
        self.last_training: dict[str, float] = {}  # the last epoch's training metrics, kept over a resume

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.backbone(image)
        return scores

    # --- training ---

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        del batch, batch_idx
        set_progress = getattr(self.loss, "set_progress", None)  # a loss that changes over the training
        if callable(set_progress):
            set_progress(self.global_step / max(1, int(self.trainer.estimated_stepping_batches)))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        del batch_idx
        scores = self(batch["image"])
        loss = self._loss(scores, batch["label"], "train")
        self.train_metrics.update(scores.detach(), batch["label"])
        return loss

    def on_train_epoch_end(self) -> None:
        self.last_training = self._log_and_reset(self.train_metrics, "train")
        self.log("lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["last_training"] = self.last_training

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.last_training = checkpoint["last_training"]

    # --- validation and test: one step ---

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        del batch_idx
        self._eval_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        del batch_idx
        self._eval_step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self._eval_end("val")

    def on_test_epoch_end(self) -> None:
        self._eval_end("test")

    def _eval_step(self, batch: Batch, split: str) -> None:
        scores = self(batch["image"])
        self._loss(scores, batch["label"], split)
        self._metrics(split).update(scores, batch["label"])
        cast(SongVotes, self.votes[split]).update(scores.float().softmax(dim=1), batch["song"], batch["label"])

    def _eval_end(self, split: str) -> None:
        votes = cast(SongVotes, self.votes[split]).gather()
        self.last_votes[split] = votes
        self._log_and_reset(self._metrics(split), split)
        self.log_dict(song_metrics(split, votes.probabilities, votes.labels))

    def _metrics(self, split: str) -> MetricCollection:
        return cast(MetricCollection, self.eval_metrics[split])

    def _loss(self, scores: Tensor, label: Tensor, split: str) -> Tensor:
        """Compute the loss, and note it beside plain cross-entropy: only the latter compares across losses."""
        loss: Tensor = self.loss(scores, label)
        cast(MeanMetric, self.means[f"{split}_loss"]).update(loss.detach(), len(label))
        cast(MeanMetric, self.means[f"{split}_log_loss"]).update(F.cross_entropy(scores.detach().float(), label), len(label))
        return loss

    def _log_and_reset(self, metrics: MetricCollection, split: str) -> dict[str, float]:
        found = dict(metrics.compute())
        metrics.reset()
        for name in ("loss", "log_loss"):
            mean = cast(MeanMetric, self.means[f"{split}_{name}"])
            found[f"{split}/segment/{name}"] = mean.compute()
            mean.reset()
        self.log_dict(found)
        return {name: float(value) for name, value in found.items()}

    # --- optimization ---

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = finish(self.make_optimizer, params=trained)
        if self.make_scheduler is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = finish(self.make_scheduler, optimizer=optimizer, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def finish(part: Any, **facts: Any) -> Any:
    """Finish a partial with those of the run-time facts that its signature accepts; hand anything else back as it is.

    Raises:
        ConfigError: The finished part cannot be made.
    """
    if not isinstance(part, partial):
        return part
    parameters = inspect.signature(part.func).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        return part(**{name: value for name, value in facts.items() if takes_all or name in parameters})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        name = getattr(part.func, "__qualname__", str(part.func))
        raise ConfigError(f"{name} cannot be made ({error}). Mend its arguments in the config group that names it.") from None
