"""The numbers a run is judged by. Layer 1.

Keys are `split/level/name`: `val/song/accuracy`, `test/segment/f1_macro`. A segment is what the network sees; a song is what
users count. One list of metrics serves both levels, and songs of one label as well as of several: truth and decision are both a
table of items by classes. One label: the most probable class is said (of equal ones the first). Several labels: every class of
probability 0.5 or more is said. `SongVotes` gathers a song's segments, each counted once however batches and processes are cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_cohen_kappa,
    multiclass_matthews_corrcoef,
)
from torchmetrics.utilities import dim_zero_cat

from musicnet_eval.errors import ConfigError, nearest

BINS = 15  # of the calibration errors, as Guo et al. (ICML 2017) used


def probabilities(scores: Tensor, *, multilabel: bool) -> Tensor:
    """Turn scores `[N, C]` into probabilities: softmax over classes, or a sigmoid for each when several may hold."""
    return scores.float().sigmoid() if multilabel else scores.float().softmax(dim=1)


def decide(chances: Tensor, *, multilabel: bool) -> Tensor:
    """Say which classes are named `[N, C]`: the most probable one, or all of 0.5 and more when several may hold."""
    return chances >= 0.5 if multilabel else F.one_hot(chances.argmax(dim=1), chances.shape[1]).bool()


class Scored(NamedTuple):
    """What is judged: N items (segments or songs), C classes.

    Shape:
        chances: `[N, C]` probabilities. truth: `[N, C]` bool, the labels. said: `[N, C]` bool, the decision.
    """

    chances: Tensor
    truth: Tensor
    said: Tensor
    multilabel: bool

    @classmethod
    def of(cls, chances: Tensor, labels: Tensor) -> Scored:
        """Lay out labels, `[N]` class indices or `[N, C]` several at once, beside probabilities `[N, C]`."""
        multilabel = labels.ndim == 2
        truth = labels > 0.5 if multilabel else F.one_hot(labels, chances.shape[1]).bool()
        return cls(chances, truth, decide(chances, multilabel=multilabel), multilabel)


# --- right and wrong ------------------------------------------------------------------------------------------------------------


def accuracy(x: Scored) -> Tensor:
    """Give the share of items of which everything said is right: with several labels, all of them and no other."""
    return (x.said == x.truth).all(dim=1).float().mean()


def balanced_accuracy(x: Scored) -> Tensor:
    """Average the recall of the classes that are present (one label)."""
    present = x.truth.any(dim=0)
    return ((x.said & x.truth).sum(dim=0)[present] / x.truth.sum(dim=0)[present]).mean()


def top3_accuracy(x: Scored) -> Tensor:
    """Give the share of items whose class is among the three most probable (one label; of equal ones the first count)."""
    own = x.chances[x.truth].unsqueeze(1)
    earlier = torch.arange(x.chances.shape[1], device=own.device) < x.truth.int().argmax(dim=1, keepdim=True)
    ahead = (x.chances > own) | ((x.chances == own) & earlier)
    return (ahead.sum(dim=1) < 3).float().mean()


def _macro(x: Scored, values: Tensor) -> Tensor:
    """Average over the classes that are present or said, as scikit-learn does."""
    return values[(x.truth | x.said).any(dim=0)].mean()


def _weighted(x: Scored, values: Tensor) -> Tensor:
    """Average over the classes by how often they are true."""
    support = x.truth.sum(dim=0)
    return (values * support).sum() / support.sum()


def precision(x: Scored) -> Tensor:
    """Give each class's share of right ones among those said `[C]`; 0 where it is never said."""
    return (x.said & x.truth).sum(dim=0) / x.said.sum(dim=0).clamp_min(1)


def recall(x: Scored) -> Tensor:
    """Give each class's share of said ones among the true `[C]`; 0 where there are none."""
    return (x.said & x.truth).sum(dim=0) / x.truth.sum(dim=0).clamp_min(1)


def f1(x: Scored) -> Tensor:
    """Give each class's harmonic mean of precision and recall `[C]`; 0 where it is neither true nor said."""
    return 2 * (x.said & x.truth).sum(dim=0) / (x.said.sum(dim=0) + x.truth.sum(dim=0)).clamp_min(1)


def mcc(x: Scored) -> Tensor:
    """Give Matthews' correlation of what is said with the truth, -1 to 1 (one label; Gorodkin 2004)."""
    said, truth = x.said.int().argmax(dim=1), x.truth.int().argmax(dim=1)
    return multiclass_matthews_corrcoef(said, truth, x.chances.shape[1], validate_args=False)


def kappa(x: Scored) -> Tensor:
    """Give Cohen's kappa: agreement beyond chance, 1 at most (one label; NaN where a single class is true and said)."""
    said, truth = x.said.int().argmax(dim=1), x.truth.int().argmax(dim=1)
    return multiclass_cohen_kappa(said, truth, x.chances.shape[1], validate_args=False)


# --- ranking --------------------------------------------------------------------------------------------------------------------


def _over_classes(x: Scored, metric: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Average one-against-the-rest figures of the classes that some items have and some have not; NaN if there is none."""
    count = x.truth.sum(dim=0)
    defined = ((count > 0) & (count < len(x.truth))).nonzero().flatten().tolist()
    values = [metric(x.chances[:, c], x.truth[:, c].long()) for c in defined]
    return torch.stack(values).mean() if values else torch.tensor(torch.nan)


def roc_auc_macro(x: Scored) -> Tensor:
    """Average over classes the chance that an item of the class is ranked above one that is not of it (area under ROC)."""
    return _over_classes(x, lambda p, y: binary_auroc(p, y, validate_args=False))


def pr_auc_macro(x: Scored) -> Tensor:
    """Average over classes the average precision (area under precision against recall, by steps)."""
    return _over_classes(x, lambda p, y: binary_average_precision(p, y, validate_args=False))


# --- probabilities --------------------------------------------------------------------------------------------------------------


def log_loss(x: Scored) -> Tensor:
    """Average -log p of the true class, nats; with several labels, the binary one over all classes.

    p is kept above the smallest float so that one sure mistake stays finite.
    """
    chosen = torch.where(x.truth, x.chances, 1 - x.chances) if x.multilabel else x.chances[x.truth]
    return -chosen.clamp_min(torch.finfo(x.chances.dtype).tiny).log().mean()


def brier(x: Scored) -> Tensor:
    """Average the squared error of the probabilities: summed over classes (Brier 1950), averaged when several may hold."""
    squares = (x.chances - x.truth.float()).square()
    return squares.mean() if x.multilabel else squares.sum(dim=1).mean()


def _claims(x: Scored) -> tuple[Tensor, Tensor]:
    """List what is claimed and whether it holds: of the class said, or of every class when several may hold."""
    if x.multilabel:
        return x.chances.flatten(), x.truth.flatten().float()
    return x.chances.amax(dim=1), (x.said & x.truth).any(dim=1).float()


def ece(x: Scored) -> Tensor:
    """Give the expected calibration error over 15 bins of equal width (Guo et al., ICML 2017)."""
    claimed, holds = _claims(x)
    place = (claimed * BINS).ceil().long().clamp(1, BINS) - 1  # bins (0, 1/15], (1/15, 2/15], …
    off = torch.zeros(BINS, device=claimed.device).index_add_(0, place, claimed - holds)
    return off.abs().sum() / len(claimed)


def ece_adaptive(x: Scored) -> Tensor:
    """Give the expected calibration error over 15 bins of equally many items (Nixon et al., CVPR workshops 2019)."""
    claimed, holds = _claims(x)
    order = claimed.argsort(stable=True)
    parts = torch.tensor_split((claimed - holds)[order], min(BINS, len(claimed)))
    return torch.stack([part.sum().abs() for part in parts]).sum() / len(claimed)


# The one list of metrics, for segments and for songs; each is `f(Scored) -> scalar`.
METRICS: dict[str, Callable[[Scored], Tensor]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "top3_accuracy": top3_accuracy,
    "precision_macro": lambda x: _macro(x, precision(x)),
    "precision_weighted": lambda x: _weighted(x, precision(x)),
    "recall_macro": lambda x: _macro(x, recall(x)),
    "recall_weighted": lambda x: _weighted(x, recall(x)),
    "f1_macro": lambda x: _macro(x, f1(x)),
    "f1_weighted": lambda x: _weighted(x, f1(x)),
    "mcc": mcc,
    "kappa": kappa,
    "roc_auc_macro": roc_auc_macro,
    "pr_auc_macro": pr_auc_macro,
    "log_loss": log_loss,
    "brier": brier,
    "ece": ece,
    "ece_adaptive": ece_adaptive,
}
ONE_LABEL = ("balanced_accuracy", "top3_accuracy", "mcc", "kappa")  # not defined where a song carries several
OF_PROBABILITIES = ("log_loss", "brier", "ece", "ece_adaptive")  # what calibration is for


def names(*, multilabel: bool) -> tuple[str, ...]:
    """List the metrics that hold for songs of one label, or of several."""
    return tuple(name for name in METRICS if not (multilabel and name in ONE_LABEL))


def compute(prefix: str, chances: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Compute every metric that holds, under `prefix/name`.

    Shape:
        chances: `[N, C]` probabilities. labels: `[N]` class indices, or `[N, C]` when an item may carry several.
    """
    scored = Scored.of(chances, labels)
    return {f"{prefix}/{name}": METRICS[name](scored) for name in names(multilabel=scored.multilabel)}


def monitorable() -> tuple[str, ...]:
    """List the keys that checkpoints may be chosen by: those of validation."""
    return (*(f"val/{level}/{name}" for level in ("song", "segment") for name in METRICS), "val/segment/loss")


# --- gathering ------------------------------------------------------------------------------------------------------------------


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


def right(scores: Tensor, label: Tensor, *, multilabel: bool) -> Tensor:
    """Give the share of items said right while training; a mixture of labels counts as its largest part."""
    if multilabel:
        return ((scores >= 0) == (label > 0.5)).all(dim=1).float().mean()
    return (scores.argmax(dim=1) == (label.argmax(dim=1) if label.ndim == 2 else label)).float().mean()


def running_log_loss(scores: Tensor, label: Tensor, *, multilabel: bool) -> Tensor:
    """Give plain cross-entropy, which compares across losses, whatever the training minimises; nats."""
    if multilabel:
        return F.binary_cross_entropy_with_logits(scores.float(), label.float())
    return F.cross_entropy(scores.float(), label)


def mean_metric() -> MeanMetric:
    """Give a running mean for losses, weighted by batch size."""
    return MeanMetric(nan_strategy="disable")
