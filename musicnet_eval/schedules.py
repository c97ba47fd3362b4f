"""Learning-rate schedules. Layer 1. `conf/scheduler` names these or any of torch's that take `total_steps`.

All go by optimizer step but `Plateau`, which goes by epoch. They scale the rate that each parameter group has, `optimizer.lr`
times its share, and their state is in the checkpoint: a resumed run goes on with the same rates bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

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
    return _warmed_up(optimizer, total_steps, warmup_fraction, final_fraction, lambda done: (1 + math.cos(math.pi * done)) / 2)


def linear(optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.1, final_fraction: float = 0.0) -> LambdaLR:
    """Rise linearly to the full rate, then fall along a straight line; arguments as for `cosine`."""
    return _warmed_up(optimizer, total_steps, warmup_fraction, final_fraction, lambda done: 1 - done)


def _warmed_up(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float, final_fraction: float, fall: Callable[[float], float]
) -> LambdaLR:
    if not 0 <= warmup_fraction < 1:
        raise ConfigError(f"scheduler.warmup_fraction={warmup_fraction} must be in [0, 1).")
    if not 0 <= final_fraction <= 1:
        raise ConfigError(f"scheduler.final_fraction={final_fraction} must be in [0, 1].")
    warmup = round(warmup_fraction * total_steps)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1 - final_fraction) * fall(done)

    return LambdaLR(optimizer, scale)


def constant(optimizer: Optimizer) -> LambdaLR:
    """Keep the rate as it is."""
    return LambdaLR(optimizer, lambda _: 1.0)


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    *,
    cycle_momentum: bool = True,
) -> OneCycleLR:
    """Rise along half a cosine to the full rate, then fall far below the start: torch's one-cycle, its peak at `optimizer.lr`.

    Args:
        optimizer: Whose rates to scale; with a momentum or betas where that is to cycle too.
        total_steps: Optimizer steps of the whole training.
        pct_start: Share of the steps that rise, in [0, 1].
        div_factor: Full rate over the first one, above 0.
        final_div_factor: First rate over the last one, above 0.
        cycle_momentum: Let the momentum fall from 0.95 to 0.85 and rise again, against the rate.

    Reference:
        Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2018.
    """
    if not 0 <= pct_start <= 1:
        raise ConfigError(f"scheduler.pct_start={pct_start} must be in [0, 1].")
    for key, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
        if value <= 0:
            raise ConfigError(f"scheduler.{key}={value} must be above 0.")
    return OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=pct_start,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=cycle_momentum,
    )


class Plateau(ReduceLROnPlateau):
    """Lower the rate when a metric of validation has not improved for some epochs: torch's own, that says what it follows.

    Args:
        optimizer: Whose rates to lower.
        monitor: Key of the metric; `conf/scheduler/plateau.yaml` gives the run's `monitor`.
        mode: `max` or `min`: what an improvement is.
        factor: New rate over the old one, in (0, 1).
        patience: Epochs without improvement that are let pass.
        threshold: Least relative improvement that counts.
        min_lr: Lowest rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        monitor: str,
        mode: str = "max",
        factor: float = 0.1,
        patience: int = 5,
        threshold: float = 1e-4,
        min_lr: float = 0.0,
    ) -> None:
        if not 0 < factor < 1:
            raise ConfigError(f"scheduler.factor={factor} must be above 0 and below 1.")
        self.monitor = monitor
        super().__init__(optimizer, mode, factor, patience, threshold, min_lr=min_lr)  # type: ignore[arg-type]
