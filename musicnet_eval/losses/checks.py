"""What every loss asks of its arguments (ConfigError, naming `loss.<argument>`) and of its inputs (ValueError)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from musicnet_eval.errors import ConfigError

REDUCTIONS = ("mean", "sum", "none")
ROW_SUM_TOLERANCE = 1e-2  # half-precision mixup rows stay well inside it, a multi-label row does not
COSINE_TOLERANCE = 1e-2  # half precision rounds that far


def check_number(name: str, value: float, allowed: Callable[[float], bool], rule: str) -> float:
    """Return the value as float; raise ConfigError unless `loss.<name>` is a finite number that keeps its rule."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not allowed(value):
        raise ConfigError(f"loss.{name}={value!r} breaks a rule: it must be {rule}. Set loss.{name} to such a number.")
    return float(value)


def check_reduction(reduction: str) -> str:
    """Return the reduction; raise ConfigError for an unknown one."""
    if reduction not in REDUCTIONS:
        raise ConfigError(f"loss.reduction={reduction!r} must be one of {', '.join(REDUCTIONS)}. Use loss.reduction=mean.")
    return reduction


def check_shapes(logits: Tensor, target: Tensor, num_classes: int) -> None:
    """Raise ValueError unless logits are `[B, C]` float and the target `[B]` int or `[B, C]` float; waits for no GPU."""
    if not logits.is_floating_point() or logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            f"logits are {list(logits.shape)} {logits.dtype}, but must be floating [B, {num_classes}]. "
            "Use a backbone with one output a class, or mend loss.num_classes."
        )
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise ValueError(f"soft target is {list(target.shape)}, but must be {list(logits.shape)} like the logits.")
    elif target.dtype == torch.bool or target.is_complex() or target.shape != logits.shape[:1]:
        raise ValueError(
            f"target is {list(target.shape)} {target.dtype}, but must be [{logits.shape[0]}] int (class index) "
            f"or {list(logits.shape)} float (distribution)."
        )


def check_values(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Raise ValueError for an index outside the classes, or a row that is no distribution; waits for a GPU."""
    if not target.numel():
        return
    if target.is_floating_point():
        right = ((target.sum(dim=1) - 1.0).abs() <= ROW_SUM_TOLERANCE) & (target >= 0).all(dim=1)  # NaN is neither
        if not right.all():
            raise ValueError(
                f"soft target has the row {target[~right][0].tolist()}, but each must be 0 or more and sum to 1. "
                "Multi-label targets need a loss of independent sigmoids, such as loss._target_=torch.nn.BCEWithLogitsLoss."
            )
        return
    low, high = torch.aminmax(target)
    if int(low) >= 0 and int(high) < num_classes:
        return
    wrong = target[((target < 0) | (target >= num_classes)) & (target != ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"target holds the class index {wrong[0].item()}, but each must lie in 0..{num_classes - 1} "
            f"or be loss.ignore_index={ignore_index}. Mend the labels or loss.num_classes={num_classes}."
        )


def check_many_hot(logits: Tensor, target: Tensor, *, values: bool) -> None:
    """Raise ValueError unless logits and target are `[B, C]` float, the target in [0, 1]; only `values` waits for a GPU."""
    if not logits.is_floating_point() or logits.ndim != 2:
        raise ValueError(f"logits are {list(logits.shape)} {logits.dtype}, but must be floating [B, C].")
    if not target.is_floating_point() or target.shape != logits.shape:
        raise ValueError(
            f"target is {list(target.shape)} {target.dtype}, but must be {list(logits.shape)} float: 1 for each label a track "
            "carries. For one label a track use loss=cross_entropy."
        )
    if values and not ((target >= 0) & (target <= 1)).all():  # NaN is neither
        raise ValueError(
            "target holds a value outside [0, 1]. Give 1 for a label that a track carries, 0 for one that it does not."
        )


def check_cosines(cosines: Tensor, target: Tensor, *, values: bool) -> None:
    """Raise ValueError unless cosines are `[B, C]` float in [-1, 1] and the target `[B]` int; only `values` waits for a GPU."""
    if not cosines.is_floating_point() or cosines.ndim != 2:
        raise ValueError(f"cosines are {list(cosines.shape)} {cosines.dtype}, but must be floating [B, C].")
    if target.is_floating_point():
        raise ValueError("A margin loss takes class indices [B], not distributions [B, C]: a mixture of labels has no margin.")
    if target.dtype == torch.bool or target.is_complex() or target.shape != cosines.shape[:1]:
        raise ValueError(f"target is {list(target.shape)} {target.dtype}, but must be [{cosines.shape[0]}] int (class index).")
    if values and not (cosines.detach().abs() <= 1.0 + COSINE_TOLERANCE).all() and cosines.isfinite().all():
        raise ValueError(
            f"cosines reach {cosines.abs().max().item():.3g}, but must lie in [-1, 1]. "
            "Give the scores of a CosineHead divided by its scale."
        )
    if values and target.numel():
        low, high = torch.aminmax(target)
        if int(low) < 0 or int(high) >= cosines.shape[1]:
            raise ValueError(
                f"target holds indices from {int(low)} to {int(high)}, but each must lie in 0..{cosines.shape[1] - 1}."
            )
