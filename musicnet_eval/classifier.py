"""`MusicClassifier`: backbone + loss + metrics + optimizer as a LightningModule. Layer 4; knows neither data nor callbacks.

It receives batches that carry an `image`, and `DataFacts`. Training, validation and test share one step.
"""

from __future__ import annotations

import inspect
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from musicnet_eval import backbones
from musicnet_eval.contracts import Batch, DataFacts
from musicnet_eval.errors import ConfigError
from musicnet_eval.finetune import Finetune, freeze, scale_rates
from musicnet_eval.losses.pairing import check_pairing, cosine_scale
from musicnet_eval.metrics import (
    Heard,
    SegmentScores,
    SongVotes,
    Votes,
    add_batch,
    compute,
    fit_temperature,
    mean_metric,
    probabilities,
    right,
    running_log_loss,
)

EVAL_SPLITS = ("val", "test")
CALIBRATIONS = ("none", "temperature")


class MusicClassifier(lightning.LightningModule):
    """Classify images of music.

    Args:
        facts: What the data set is like.
        num_songs: Length of the data set's list of tracks.
        backbone: Name of the network (`backbones.build`).
        backbone_options: Its options.
        loss: `loss(scores, label)`, or a partial that gets `num_classes` and `class_counts` as its signature accepts. What it
            needs and takes it says by the attributes of `losses.pairing`.
        optimizer: Partial that gets `params`, in groups by rate and weight decay.
        scheduler: Partial that gets `optimizer` and `total_steps` as its signature accepts; None keeps the rate. It steps with
            the optimizer, or, if it is a `ReduceLROnPlateau` with an attribute `monitor`, once an epoch on that metric.
        calibration: `temperature` divides the finished network's scores by one number, fitted on validation; `none` does not.
        finetune: What of the network learns when, and at which share of the rate; None trains all of it alike.
        vote: How a song's segments make its probabilities (`metrics.VOTES`).
        channels_last: Lay the network's weights out channels last: faster on CPUs and on GPUs with mixed precision.
        compile: Compile the network for training (`torch.compile`); needs a C++ compiler.
        weight_decay_exclude_1d: No weight decay on norms and biases.

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
        vote: str = "mean_probability",
        calibration: str = "none",
        finetune: Finetune | None = None,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002 (the config key, as torch names it)
        weight_decay_exclude_1d: bool = True,
    ) -> None:
        super().__init__()
        classes = len(facts.classes)
        self.facts = facts
        self.backbone = backbones.build(backbone, backbone_options or {}, classes, facts.image_shape)
        self.resized_to = backbones.resized_to(self.backbone)
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        usual = nn.BCEWithLogitsLoss() if facts.multilabel else nn.CrossEntropyLoss()
        self.loss: nn.Module = finish(loss or usual, num_classes=classes, class_counts=facts.class_counts)
        self.cosine_scale = cosine_scale(self.loss)
        if self.cosine_scale is not None:
            backbones.give_cosine_head(self.backbone, backbone, facts.image_shape, self.cosine_scale)
        self.make_optimizer = optimizer or partial(torch.optim.AdamW, lr=1e-3)
        self.make_scheduler = scheduler
        self.finetune = finetune or Finetune()
        self.sizes = {name: parameter.numel() for name, parameter in self.named_parameters()}  # now, that they are whole
        self.flat = tuple(name for name, parameter in self.named_parameters() if parameter.ndim <= 1)
        self.learnable = tuple(name for name, parameter in self.backbone.named_parameters() if parameter.requires_grad)
        self.compiles = compile
        self.weight_decay_exclude_1d = weight_decay_exclude_1d
        self.running = nn.ModuleDict({name: mean_metric() for name in ("accuracy", "log_loss")})
        self.losses = nn.ModuleDict({f"{split}_loss": mean_metric() for split in ("train", *EVAL_SPLITS)})
        self.segments = nn.ModuleDict({split: SegmentScores() for split in EVAL_SPLITS})
        self.votes = nn.ModuleDict(
            {split: SongVotes(num_songs, classes, vote, multilabel=facts.multilabel) for split in EVAL_SPLITS}
        )
        if calibration not in CALIBRATIONS:
            raise ConfigError(f"model.calibration={calibration!r} must be one of {', '.join(CALIBRATIONS)}.")
        self.vote, self.calibration, self.temperature = vote, calibration, 1.0
        self.last_heard: dict[str, Heard] = {}
        self.last_votes: dict[str, Votes] = {}
        self.last_training: dict[str, float] = {}  # the last epoch's training metrics, kept over a resume

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.backbone(image)
        return scores

    # --- training ---

    def setup(self, stage: str) -> None:
        if stage == "fit":
            augment = getattr(getattr(self.trainer, "datamodule", None), "augment", None)
            parts = augment.modules() if isinstance(augment, nn.Module) else [augment]
            check_pairing(
                self.loss,
                multilabel=self.facts.multilabel,
                mixes_labels=any(getattr(part, "mixes_labels", False) for part in parts),
                endless=self.trainer.max_epochs == -1 and self.trainer.max_steps == -1,
            )
            # Here already: processes that average gradients agree before `on_fit_start` on which parameters have any.
            freeze(self.backbone, self.learnable, self.finetune.frozen(self.backbone, 0))

    def on_fit_start(self) -> None:
        if self.finetune.changes and self.trainer.world_size > 1:
            raise ConfigError(
                f"finetune=gradual on trainer.devices={self.trainer.world_size} would leave what is unfrozen later out of step "
                "between processes. Use trainer.devices=1, finetune=full or finetune=head."
            )
        self.backbone.train()  # norms fall silent when the epoch starts; Lightning would warn of them here
        if self.compiles:
            _compile(self.backbone)

    def on_train_epoch_start(self) -> None:
        freeze(self.backbone, self.learnable, self.finetune.frozen(self.backbone, self.current_epoch))

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        del batch, batch_idx
        set_progress = getattr(self.loss, "set_progress", None)  # a loss that changes over the training
        if callable(set_progress):
            # Where nobody knows how long the training is, it is always at its beginning.
            set_progress(min(1.0, self.global_step / max(1.0, float(self.trainer.estimated_stepping_batches))))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        del batch_idx
        scores, label = self(batch["image"]), batch["label"]
        loss = self._loss(scores, label, "train")
        if getattr(self.loss, "validate_args", False):
            # To look at values makes the CPU wait for the device: done for the first batch alone.
            cast(Any, self.loss).validate_args = False
        for name, measure in (("accuracy", right), ("log_loss", running_log_loss)):
            value = measure(scores.detach(), label, multilabel=self.facts.multilabel)
            add_batch(cast(MeanMetric, self.running[name]), value, len(label))
        return {"loss": loss, "scores": scores.detach()}  # callbacks may look at the scores

    def on_train_epoch_end(self) -> None:
        found = {f"train/segment/{name}": _take(metric) for name, metric in self._running().items()}
        self.log_dict(found)
        self.last_training = {name: float(value) for name, value in found.items()}
        self._log_gap()
        group = self.optimizers().param_groups[0]  # type: ignore[union-attr]
        self.log("lr", group["lr"] / group["lr_scale"])
        # Lightning would step these after the epoch's last checkpoint, and a resumed run would go on with another rate.
        for scheduler in self._by_epoch():
            scheduler.step(float(self.trainer.callback_metrics[scheduler.monitor]))

    def _log_gap(self) -> None:
        """Log how much better training segments do than those of validation: over-fitting, epoch by epoch."""
        heard = self.trainer.callback_metrics
        for name, sign in (("accuracy", 1), ("log_loss", -1)):
            if f"val/segment/{name}" in heard:
                self.log(
                    f"gap/segment/{name}", sign * (self.last_training[f"train/segment/{name}"] - heard[f"val/segment/{name}"])
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["last_training"] = self.last_training
        checkpoint["running"] = {name: metric.metric_state for name, metric in self._running().items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.last_training = checkpoint["last_training"]
        for name, metric in self._running().items():  # of an epoch that was cut in its middle
            for state, value in checkpoint["running"][name].items():
                setattr(metric, state, value.to(metric.device))

    def _running(self) -> dict[str, MeanMetric]:
        """Give the means that run over a training epoch."""
        metrics = {**self.running, "loss": self.losses["train_loss"]}
        return cast(dict[str, MeanMetric], metrics)

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
        scores = scores / self.temperature
        cast(SegmentScores, self.segments[split]).update(scores, batch["song"], batch["label"])
        cast(SongVotes, self.votes[split]).update(scores, batch["song"], batch["label"])

    def _eval_end(self, split: str) -> None:
        votes = cast(SongVotes, self.votes[split]).gather()
        heard = cast(SegmentScores, self.segments[split]).gather()
        self.last_votes[split], self.last_heard[split] = votes, heard
        chances = probabilities(heard.scores, multilabel=self.facts.multilabel)
        self.log_dict(compute(f"{split}/segment", chances, heard.labels))
        self.log_dict(compute(f"{split}/song", votes.probabilities, votes.labels))
        self.log(f"{split}/segment/loss", _take(self.losses[f"{split}_loss"]))

    def _loss(self, scores: Tensor, label: Tensor, split: str) -> Tensor:
        scores = scores.float()  # in mixed precision too: half of a float cannot hold small losses
        loss: Tensor = self.loss(scores if self.cosine_scale is None else scores / self.cosine_scale, label)
        add_batch(cast(MeanMetric, self.losses[f"{split}_loss"]), loss.detach(), len(label))
        return loss

    def calibrate(self) -> None:
        """Fit the temperature to what was last heard in validation, as `calibration` says."""
        if self.calibration == "temperature":
            self.temperature *= fit_temperature(self.last_heard["val"], self.vote, multilabel=self.facts.multilabel)

    # --- optimization ---

    def configure_optimizers(self) -> Any:
        groups = self.finetune.parameter_groups(
            self, self.backbone, weight_decay_exclude_1d=self.weight_decay_exclude_1d, flat=self.flat
        )
        optimizer = finish(self.make_optimizer, params=groups)
        scale_rates(optimizer.param_groups)
        if self.make_scheduler is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches  # without an end there is none: a schedule that counts on it says so
        known = {"total_steps": int(steps)} if math.isfinite(steps) else {}
        scheduler = finish(self.make_scheduler, optimizer=optimizer, **known)
        if not isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        if not hasattr(scheduler, "monitor"):
            raise ConfigError("scheduler=ReduceLROnPlateau does not say which metric it follows. Use scheduler=plateau.")
        config = {"scheduler": scheduler, "interval": "epoch", "monitor": scheduler.monitor}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        by_all_shards = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)  # Lightning refuses a norm over shards
        if by_all_shards is not None and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            by_all_shards(gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if scheduler not in self._by_epoch():
            super().lr_scheduler_step(scheduler, metric)

    def _by_epoch(self) -> list[Any]:
        made = (config.scheduler for config in self.trainer.lr_scheduler_configs)
        return [scheduler for scheduler in made if isinstance(scheduler, ReduceLROnPlateau)]

    def trained_parameters(self, epochs: int) -> dict[int, int]:
        """Count the parameters that learn, from each epoch on in which their number changes: epoch → number."""
        counts: dict[int, int] = {}
        for epoch in range(max(1, epochs)):
            frozen = self.finetune.frozen(self.backbone, epoch)
            inside = {name: self.sizes[f"backbone.{name}"] for name in self.learnable}
            beside = sum(size for name, size in self.sizes.items() if not name.startswith("backbone."))
            count = beside + sum(number for name, number in inside.items() if name not in frozen)
            if not counts or count != counts[max(counts)]:
                counts[epoch] = count
        return counts


def _take(mean: nn.Module) -> Tensor:
    """Give a running mean and start it anew."""
    value: Tensor = cast(MeanMetric, mean).compute()
    cast(MeanMetric, mean).reset()
    return value


def _compile(network: nn.Module) -> None:
    """Compile a network's forward in place, where there is a compiler for what torch writes."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"model.compile=true needs a C++ compiler, and '{compiler}' is not on the PATH. Install it, name another in the "
            "environment variable CXX, or use model.compile=false."
        )
    network.compile()


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
        given = ", ".join(f"{key}={value!r}" for key, value in part.keywords.items())
        raise ConfigError(
            f"{name} cannot be made with {given or 'no arguments'} ({error}). Mend them in the config group that names it."
        ) from None
