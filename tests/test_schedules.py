from __future__ import annotations

import math

import pytest
import torch

from musicnet_eval.errors import ConfigError
from musicnet_eval.schedules import constant, cosine


def rates(make: object, steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = make(optimizer, total_steps=steps, **options) if make is cosine else make(optimizer)  # type: ignore[operator]
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_cosine_by_formula() -> None:
    got = rates(cosine, 100, warmup_fraction=0.1, final_fraction=0.25)
    want = [2 * (i + 1) / 11 for i in range(10)]
    want += [2 * (0.25 + 0.75 * (1 + math.cos(math.pi * i / 90)) / 2) for i in range(91)]
    assert got == pytest.approx(want)


def test_without_warmup_it_equals_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    want = []
    for _ in range(20):
        want.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(cosine, 20, warmup_fraction=0.0)[:20] == pytest.approx(want)


def test_constant() -> None:
    assert rates(constant, 5) == [2.0] * 6


@pytest.mark.parametrize("options", [{"warmup_fraction": 1.0}, {"warmup_fraction": -0.1}, {"final_fraction": 2.0}])
def test_refusals(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"scheduler.{next(iter(options))}"):
        rates(cosine, 10, **options)
