"""From segments to songs: votes, what is kept of segments, and the temperature of a finished network. Layer 1.

`SongVotes` gathers a song's segments and `SegmentScores` keeps them all, each counted once however batches and processes are cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.metrics.measures import Scored, decide, log_loss, probabilities


class Vote(NamedTuple):
    """How segments make a song: what each one says, how that is gathered, and what comes of it (scores `[N, C]`).

    Args:
        says: Scores → what is gathered, given whether several labels may hold.
        gathers: `sum` or `max`.
        becomes: Gathered values and number of segments → probabilities.
    """

    says: Callable[[Tensor, bool], Tensor]
    gathers: str
    becomes: Callable[[Tensor, Tensor, bool], Tensor]


def _soft(scores: Tensor, multilabel: bool) -> Tensor:
    return probabilities(scores, multilabel=multilabel)


def _normalised(total: Tensor, count: Tensor, multilabel: bool) -> Tensor:
    del count
    return total if multilabel else total / total.sum(dim=1, keepdim=True)


# Ties go to the class that comes first, in all of them.
VOTES = {
    "mean_probability": Vote(_soft, "sum", lambda total, count, _: total / count),
    "mean_logit": Vote(lambda scores, _: scores.float(), "sum", lambda total, count, many: _soft(total / count, many)),
    "majority": Vote(
        lambda scores, many: decide(_soft(scores, many), multilabel=many).float(), "sum", lambda total, count, _: total / count
    ),
    "max": Vote(_soft, "max", _normalised),
}


class Votes(NamedTuple):
    """What a network says of each song: track indices `[S]`, probabilities `[S, C]`, true labels `[S]` or `[S, C]`."""

    songs: Tensor
    probabilities: Tensor
    labels: Tensor


class SongVotes(Metric):
    """Let each song's segments vote.

    Args:
        num_songs: Length of the data set's list of tracks; `song` indices are below it.
        num_classes: Number of classes C.
        vote: A key of `VOTES`: the mean of the segments' probabilities, the mean of their scores, the share of segments that say
            a class, or the highest probability of any segment.
        multilabel: Whether a song may carry several labels.

    Shape:
        update: scores `[B, C]`, song `[B]`, label `[B]` or `[B, C]`. `gather` (rather than `compute`, which torchmetrics squeezes
        when there is one song): `Votes` of the songs seen, in index order.

    Raises:
        ConfigError: No such vote.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    label: Tensor

    def __init__(self, num_songs: int, num_classes: int, vote: str = "mean_probability", *, multilabel: bool = False) -> None:
        super().__init__()
        if vote not in VOTES:
            raise ConfigError(f"model.vote={vote!r} is not a way to vote; {nearest(vote, VOTES)}")
        self.vote, self.multilabel = VOTES[vote], multilabel
        shape = (num_songs, num_classes)  # no doubles: Apple's GPUs have none
        self.add_state("total", torch.zeros(shape), dist_reduce_fx=self.vote.gathers)
        self.add_state("count", torch.zeros(num_songs, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("label", torch.full(shape if multilabel else shape[:1], -1, dtype=torch.long), dist_reduce_fx="max")

    def update(self, scores: Tensor, song: Tensor, label: Tensor) -> None:
        said = self.vote.says(scores, self.multilabel)
        if self.vote.gathers == "sum":
            self.total.index_add_(0, song, said)
        else:
            self.total.scatter_reduce_(0, song.unsqueeze(1).expand_as(said), said, "amax")
        self.count.index_add_(0, song, torch.ones_like(song))
        self.label[song] = label.long()

    def compute(self) -> Votes:
        songs = self.count.nonzero().squeeze(1)
        chances = self.vote.becomes(self.total[songs], self.count[songs].unsqueeze(1), self.multilabel)
        return Votes(songs, chances, self.label[songs])

    def gather(self) -> Votes:
        """Give the votes of all songs seen by all processes, and start anew."""
        songs, chances, labels = self.compute()
        self.reset()
        label_shape = self.label.shape[1:]
        return Votes(songs.reshape(-1), chances.reshape(-1, self.total.shape[1]), labels.reshape(-1, *label_shape))


class Heard(NamedTuple):
    """What a network says of each segment: scores `[N, C]`, the track's index `[N]`, true labels `[N]` or `[N, C]`."""

    scores: Tensor
    songs: Tensor
    labels: Tensor


class SegmentScores(Metric):
    """Keep every segment's scores, song and label, so that the metrics of segments are exact over batches and processes.

    Shape:
        update: scores `[B, C]`, song `[B]`, label `[B]` or `[B, C]`. `gather`: `Heard`, of all segments.
    """

    full_state_update = False
    scores: Any  # lists of tensors; one tensor each after a sync between processes
    songs: Any
    labels: Any

    def __init__(self) -> None:
        super().__init__()
        for name in Heard._fields:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, song: Tensor, label: Tensor) -> None:
        self.scores.append(scores.float())
        self.songs.append(song)
        self.labels.append(label)

    def compute(self) -> Heard:
        return Heard(dim_zero_cat(self.scores), dim_zero_cat(self.songs), dim_zero_cat(self.labels))

    def gather(self) -> Heard:
        """Give what was kept by all processes, and start anew."""
        scores, songs, labels = self.compute()
        self.reset()
        return Heard(scores, songs.reshape(-1), labels.reshape(1) if labels.ndim == 0 else labels)  # torchmetrics squeezes one


def fit_temperature(heard: Heard, vote: str = "mean_probability", *, multilabel: bool = False) -> float:
    """Find the number that scores are divided by so that the songs' probabilities have the least log loss (1: leave them).

    One number for all classes changes no segment's decision, only how sure it is. It is fitted where users count, on songs (ours;
    the reference fits single items), and kept between 1/50 and 50.

    Raises:
        ConfigError: A vote that temperature does not change.

    Reference:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

    if vote == "majority":
        raise ConfigError("model.calibration=temperature changes nothing under model.vote=majority. Use another vote, or none.")
    votes = SongVotes(int(heard.songs.max()) + 1, heard.scores.shape[1], vote, multilabel=multilabel).to(heard.scores.device)

    def loss(log_temperature: float) -> float:
        votes.update(heard.scores / math.exp(log_temperature), heard.songs, heard.labels)
        _, chances, labels = votes.gather()
        return float(log_loss(Scored.of(chances, labels)))

    return math.exp(minimize_scalar(loss, bounds=(-math.log(50), math.log(50)), method="bounded").x)
