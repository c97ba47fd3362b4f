"""The numbers a run is judged by. Layer 1.

Keys are `split/level/name`: `val/song/accuracy`, `test/segment/f1_macro`. A segment is what the network sees; a song is what
users count. One list of metrics serves both levels, and songs of one label as well as of several: truth and decision are both a
table of items by classes. One label: the most probable class is said (of equal ones the first). Several labels: every class of
probability 0.5 or more is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_cohen_kappa,
    multiclass_matthews_corrcoef,
)

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
    return {f"{prefix}/{name}": METRICS[name](scored).float() for name in names(multilabel=scored.multilabel)}


def monitorable() -> tuple[str, ...]:
    """List the keys that checkpoints may be chosen by: those of validation."""
    return (*(f"val/{level}/{name}" for level in ("song", "segment") for name in METRICS), "val/segment/loss")


# --- while training ----------------------------------------------------------------------------------------------------------


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
    """Give a running mean of what batches say (`add_batch`). It looks for no NaN: the CPU would wait for the device."""
    return MeanMetric(nan_strategy="disable")


def add_batch(mean: MeanMetric, value: Tensor, size: int) -> None:
    """Add a batch's mean to a running one, as often as the batch has items.

    Args:
        mean: A `mean_metric`.
        value: The batch's mean.
        size: Items in the batch.
    """
    mean.update(value.expand(size))  # weights are lost where NaN is not looked for (torchmetrics#3434)
