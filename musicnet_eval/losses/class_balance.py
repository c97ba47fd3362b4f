"""Class weights and class shares from the counts of the training split."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.losses.checks import check_number

METHODS = ("inv_freq", "effective_num")


def check_counts(class_counts: Iterable[float], num_classes: int) -> Tensor:
    """Return the class counts as `[C]` float64; warn of classes that have none."""
    counts = torch.tensor([float(n) for n in class_counts], dtype=torch.float64)
    if len(counts) != num_classes:
        raise ConfigError(
            f"loss.class_counts has {len(counts)} counts for loss.num_classes={num_classes}. Give one count for each class."
        )
    if not counts.isfinite().all() or (counts < 0).any() or not counts.any():
        raise ConfigError(
            f"loss.class_counts={counts.tolist()} must be finite, 0 or more, not all 0. Give the training items of each class."
        )
    if (counts == 0).any():
        empty = (counts == 0).nonzero().flatten().tolist()
        warnings.warn(f"loss.class_counts is 0 for class {empty}: nothing to learn it from; counted as 1.", stacklevel=3)
    return counts


def make_class_weights(
    class_weight: str | Iterable[float],
    num_classes: int,
    counts: Tensor | None = None,
    *,
    beta: float = 0.999,
    power: float = 1.0,
    max_weight: float | None = None,
) -> Tensor:
    """Make the weight of each class.

    Args:
        class_weight: `inv_freq` (N/n)^power, `effective_num` (1-beta)/(1-beta^n), both scaled to mean 1, or C weights as given.
        num_classes: Number of classes C.
        counts: Training items of each class, needed by the named ways; none counts as one.
        beta: Of `effective_num`, in (0, 1); nearer 1 balances more.
        power: Of `inv_freq`, 0 or more.
        max_weight: Cap on every weight, after the scaling.

    Shape:
        counts: `[C]`.
        output: `[C]` float64.

    Raises:
        ConfigError: an unknown way, missing counts, or a number outside its range.

    Reference:
        Cui, Jia, Lin, Song, Belongie: "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    """
    check_number("beta", beta, lambda v: 0 < v < 1, "in (0, 1), such as 0.999")
    check_number("power", power, lambda v: v >= 0, "0 or more (1: inverse frequency, 0.5: its square root)")
    if max_weight is not None:
        check_number("max_weight", max_weight, lambda v: v > 0, "positive, or null for no cap")
    if isinstance(class_weight, str):
        weights = _counted_weights(class_weight, counts, beta, power)
    else:
        weights = torch.tensor([float(w) for w in class_weight], dtype=torch.float64)
        if len(weights) != num_classes or not weights.isfinite().all() or (weights < 0).any() or not weights.any():
            raise ConfigError(
                f"loss.class_weight={weights.tolist()} must be {num_classes} finite numbers, 0 or more, not all 0. "
                "Give one for each class or use loss.class_weight=effective_num."
            )
    return weights if max_weight is None else weights.clamp(max=max_weight)


def _counted_weights(method: str, counts: Tensor | None, beta: float, power: float) -> Tensor:
    if method not in METHODS:
        raise ConfigError(
            f"loss.class_weight={method!r} is no known way to weigh classes; {nearest(method, METHODS)}. "
            "Use one of these, a list of weights, or loss.class_weight=null."
        )
    if counts is None:
        raise ConfigError(f"loss.class_weight={method} needs class counts. Give loss.class_counts or use loss.class_weight=null.")
    n = counts.clamp(min=1.0)
    weights = (counts.sum() / n) ** power if method == "inv_freq" else (1.0 - beta) / (1.0 - beta**n)
    return weights / weights.mean()


def log_class_prior(counts: Tensor) -> Tensor:
    """Return the log of each class's share; a class without items counts as one item."""
    n = counts.clamp(min=1.0)
    return torch.log(n / n.sum())
