"""Metrics song by song: one value a song, whose mean is the metric, so that what is known of means holds for it.

Accuracy, log loss and Brier score are means by themselves. Macro averages of recall, precision and F1 are smooth functions of
counts over songs; of these the value of a song is the metric plus its first-order share in it (the empirical influence function).
Since doubling every count changes nothing, the values average to the metric exactly.

Reference:
    Efron & Tibshirani (1993), An Introduction to the Bootstrap, 21.3: the infinitesimal jackknife.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from musicnet_eval.records import Prediction

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PREFIX = "test/song/"


class Answers(NamedTuple):
    """What a run said of its test songs.

    Shape:
        truth, said: `[S, C]` zeros and ones. chances: `[S, C]` probabilities.
    """

    truth: Floats
    said: Floats
    chances: Floats
    several: bool  # whether songs may carry several labels


def answers(rows: Sequence[Prediction], classes: Sequence[str], *, several: bool) -> Answers:
    """Lay out predictions by song and class."""
    import numpy as np

    index = {name: i for i, name in enumerate(classes)}
    truth, said = np.zeros((2, len(rows), len(classes)))
    for table, texts in ((truth, [row.label for row in rows]), (said, [row.predicted for row in rows])):
        for line, text in zip(table, texts, strict=True):
            line[[index[name] for name in (text.split("|") if several else [text]) if name]] = 1
    chances = np.array([[row.probabilities.get(name, np.nan) for name in classes] for row in rows])
    return Answers(truth, said, chances, several)


def accuracy(x: Answers) -> Floats:
    """Give 1 to songs of which all that is said is right, else 0."""
    right: Floats = (x.truth == x.said).all(axis=1).astype(float)
    return right


def log_loss(x: Answers) -> Floats:
    """Give -log p of the truth, nats; the mean over classes where songs may carry several."""
    import numpy as np

    p = np.where(x.truth > 0, x.chances, 1 - x.chances) if x.several else (x.chances * x.truth).sum(axis=1, keepdims=True)
    loss: Floats = -np.log(np.maximum(p, np.finfo(np.float32).tiny)).mean(axis=1)
    return loss


def brier(x: Answers) -> Floats:
    """Give the squared error of the probabilities, summed over classes; their mean where songs may carry several."""
    squares = (x.chances - x.truth) ** 2
    error: Floats = squares.mean(axis=1) if x.several else squares.sum(axis=1)
    return error


def _macro(x: Answers, over: Floats, factor: float) -> Floats:
    """Linearise the mean over classes of `factor · hits / over`, where `over` counts `[S, C]` like the hits do.

    Classes that are neither present nor said are left out; one that `over` never counts has the value 0.
    """
    import numpy as np

    hits = x.truth * x.said
    counted = (x.truth + x.said).any(axis=0)
    total, below = hits.sum(axis=0), over.sum(axis=0)
    share = total / np.maximum(below, 1)
    first_order = (hits - share * over) / np.maximum(below, 1)
    values: Floats = factor * (share[counted].mean() + len(hits) * first_order[:, counted].mean(axis=1))
    return values


def balanced_accuracy(x: Answers) -> Floats:
    """Linearise the mean recall of the classes that are present."""
    return _macro(x._replace(said=x.said * x.truth.any(axis=0)), x.truth, 1)


VALUES: dict[str, Callable[[Answers], Floats]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1_macro": lambda x: _macro(x, x.truth + x.said, 2),
    "precision_macro": lambda x: _macro(x, x.said, 1),
    "recall_macro": lambda x: _macro(x, x.truth, 1),
    "log_loss": log_loss,
    "brier": brier,
}
UNBOUNDED = ("log_loss", "brier")  # all others lie between 0 and 1
JUDGED = tuple(PREFIX + name for name in VALUES)


def of(metric: str, rows: Sequence[Prediction], classes: Sequence[str], *, several: bool) -> Floats:
    """Give the value of a metric for each song of a run.

    Args:
        metric: One of `JUDGED`.
        rows: The run's predictions of its test songs.
        classes: The run's class names.
        several: Whether songs may carry several labels.

    Raises:
        KeyError: A label is not among the classes.
    """
    return VALUES[metric.removeprefix(PREFIX)](answers(rows, classes, several=several))
