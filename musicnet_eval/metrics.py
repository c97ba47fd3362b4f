"""The numbers a run is judged by. Layer 1.

Keys are `split/level/name`: `val/song/accuracy`, `test/segment/f1_macro`. A segment is what the network sees; a song is what
users count. `SongVotes` gathers a song's segments by their mean probability (ties go to the class that comes first), each segment
counted once however batches and processes are cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_f1_score,
    multiclass_recall,
)


def accuracy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Give the share of songs whose most probable class is theirs."""
    return multiclass_accuracy(probabilities, labels, probabilities.shape[1], average="micro")


def balanced_accuracy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Average the recall of the classes that are present."""
    recall = multiclass_recall(probabilities, labels, probabilities.shape[1], average="none")
    present = torch.bincount(labels, minlength=len(recall)) > 0
    return recall[present].mean()


def f1_macro(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Average F1 over the classes that are present or predicted."""
    return multiclass_f1_score(probabilities, labels, probabilities.shape[1], average="macro")


def log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Average -log p of the true class, nats; p is kept above the smallest float so that one sure mistake stays finite."""
    chosen = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    return -chosen.clamp_min(torch.finfo(probabilities.dtype).tiny).log().mean()


def ece(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Give the expected calibration error, 15 bins of equal width (Guo et al., ICML 2017)."""
    return multiclass_calibration_error(probabilities, labels, probabilities.shape[1], n_bins=15, norm="l1")


# The one list of song metrics; each is `f(probabilities [S, C], labels [S]) -> scalar`.
SONG_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1_macro": f1_macro,
    "log_loss": log_loss,
    "ece": ece,
}


def song_metrics(split: str, probabilities: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Compute every song metric of a split, under its key."""
    return {f"{split}/song/{name}": metric(probabilities, labels) for name, metric in SONG_METRICS.items()}


def monitorable() -> tuple[str, ...]:
    """List the keys that checkpoints may be chosen by: those of validation."""
    segment = ("accuracy", "f1_macro", "loss", "log_loss")
    return (*(f"val/song/{name}" for name in SONG_METRICS), *(f"val/segment/{name}" for name in segment))


def training_metrics(num_classes: int) -> MetricCollection:
    """Give the running segment metrics of the training split: the least that shows over-fitting."""
    return MetricCollection(
        {"accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False)}, prefix="train/segment/"
    )


def segment_metrics(split: str, num_classes: int) -> MetricCollection:
    """Give the segment metrics of validation or test."""
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "f1_macro": MulticlassF1Score(num_classes, average="macro", validate_args=False),
        },
        prefix=f"{split}/segment/",
    )


class Votes(NamedTuple):
    """What a network says of each song: track indices `[S]`, mean probabilities `[S, C]`, true labels `[S]`."""

    songs: Tensor
    probabilities: Tensor
    labels: Tensor


class SongVotes(Metric):
    """Average the class probabilities of each song's segments.

    Args:
        num_songs: Length of the data set's list of tracks; `song` indices are below it.
        num_classes: Number of classes C.

    Shape:
        update: probabilities `[B, C]`, song `[B]`, label `[B]`. `gather` (rather than `compute`, which torchmetrics squeezes when
        there is one song): `Votes` of the songs seen, in index order.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    label: Tensor

    def __init__(self, num_songs: int, num_classes: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(num_songs, num_classes), dist_reduce_fx="sum")  # no doubles: Apple's GPUs have none
        self.add_state("count", torch.zeros(num_songs, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("label", torch.full((num_songs,), -1, dtype=torch.long), dist_reduce_fx="max")

    def update(self, probabilities: Tensor, song: Tensor, label: Tensor) -> None:
        self.total.index_add_(0, song, probabilities)
        self.count.index_add_(0, song, torch.ones_like(song))
        self.label[song] = label

    def compute(self) -> Votes:
        songs = self.count.nonzero().squeeze(1)
        return Votes(songs, self.total[songs] / self.count[songs].unsqueeze(1), self.label[songs])

    def gather(self) -> Votes:
        """Give the votes of all songs seen by all processes, and start anew."""
        songs, probabilities, labels = self.compute()
        self.reset()
        return Votes(songs.reshape(-1), probabilities, labels.reshape(-1))


def mean_metric() -> MeanMetric:
    """Give a running mean for losses, weighted by batch size."""
    return MeanMetric(nan_strategy="disable")
