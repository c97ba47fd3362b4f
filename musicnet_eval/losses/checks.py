"""What every loss asks of its arguments (ConfigError, naming `loss.<argument>`) and of its inputs (ValueError)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from musicnet_eval.errors import ConfigError

REDUCTIONS = ("mean", "sum", "none")
ROW_SUM_TOLERANCE = 1e-2  # half-precision mixup rows stay well inside it, a multi-label row does not


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
