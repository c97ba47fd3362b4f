"""Measure one step of every loss of `conf/loss` beside torch's cross-entropy: part of `bench.py`, or `python loss_steps.py`.

Forward and backward for [256, 16] logits on one CPU thread, without the checks of values, as in a training after its first batch.
The two take turns of five steps; medians of CPU time are compared, since waiting for other programs is no work of a loss.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from musicnet_eval import configs
from musicnet_eval.classifier import finish
from musicnet_eval.losses.pairing import requirement

ROWS, CLASSES, STEPS, LIMIT = 256, 16, 5, 3.0


def every_loss() -> dict[str, nn.Module]:
    """Build every preset, for unequal classes and in the middle of a training."""
    losses = {}
    for file in sorted((configs.CONF / "loss").glob("*.yaml")):
        node = yaml.safe_load(file.read_text(encoding="utf8"))
        loss = finish(configs.build(node, "loss"), num_classes=CLASSES, class_counts=tuple(range(10, 10 + CLASSES)))
        if hasattr(loss, "validate_args"):
            loss.validate_args = False
        if hasattr(loss, "set_progress"):
            loss.set_progress(0.5)
        losses[file.stem] = loss
    return losses


def batch_for(loss: nn.Module) -> tuple[Tensor, Tensor]:
    """Give logits or cosines, and a target, of the kind that the loss takes."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, CLASSES, generator=draw)
    index = torch.randint(CLASSES, (ROWS,), generator=draw)
    many = (torch.rand(ROWS, CLASSES, generator=draw) < 0.2).float()
    scores = torch.tanh(logits) if requirement(loss, "needs_cosines") else logits
    return scores.requires_grad_(), many if requirement(loss, "multilabel") else index


def spent(loss: Any, scores: Tensor, target: Tensor) -> float:
    """Give the CPU time of one step, seconds."""
    began = time.process_time()
    for _ in range(STEPS):
        scores.grad = None
        loss(scores, target).backward()
    return (time.process_time() - began) / STEPS


def measure(rounds: int) -> tuple[str, str, str, bool, dict[str, list[float]], str]:
    """Measure all, and give the fields of one figure: the slowest of them, and every ratio in the note."""
    plain = nn.CrossEntropyLoss()
    plain_batch = batch_for(plain)
    ratios: dict[str, float] = {}
    medians: dict[str, list[float]] = {"bare": [], "ours": []}
    for name, loss in every_loss().items():
        batch = batch_for(loss)
        seconds: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(rounds):
            seconds["bare"].append(spent(plain, *plain_batch))
            seconds["ours"].append(spent(loss, *batch))
        middle = {side: statistics.median(values) for side, values in seconds.items()}
        ratios[name] = middle["ours"] / middle["bare"]
        for side, value in middle.items():
            medians[side].append(value)
    worst = max(ratios, key=ratios.__getitem__)
    note = "; ".join(f"{name} {value:.2f}" for name, value in sorted(ratios.items(), key=lambda item: -item[1]))
    what = f"a step of the slowest loss ({worst}) / cross-entropy's"
    return (
        what,
        f"{ratios[worst]:.2f} ×",
        f"<= {LIMIT:g} ×",
        ratios[worst] <= LIMIT,
        medians,
        f"CPU time; one round a loss: {note}",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(*(field for field in measure(200) if not isinstance(field, dict)), sep="\n")
