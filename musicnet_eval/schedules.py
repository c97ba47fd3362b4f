"""Learning-rate schedules by step. Layer 1. `conf/scheduler` names these or any of torch's that take `total_steps`."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from musicnet_eval.errors import ConfigError


def cosine(optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.1, final_fraction: float = 0.0) -> LambdaLR:
    """Rise linearly to the full rate, then fall along half a cosine.

    Args:
        optimizer: Whose rates to scale.
        total_steps: Optimizer steps of the whole training.
        warmup_fraction: Share of the steps that rise, in [0, 1).
        final_fraction: Rate at the last step over the full rate, in [0, 1].

    Reference:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017 (without restarts).
    """
    if not 0 <= warmup_fraction < 1:
        raise ConfigError(f"scheduler.warmup_fraction={warmup_fraction} must be in [0, 1).")
    if not 0 <= final_fraction <= 1:
        raise ConfigError(f"scheduler.final_fraction={final_fraction} must be in [0, 1].")
    warmup = round(warmup_fraction * total_steps)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, scale)


def constant(optimizer: Optimizer) -> LambdaLR:
    """Keep the rate as it is."""
    return LambdaLR(optimizer, lambda _: 1.0)
