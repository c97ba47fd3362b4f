from __future__ import annotations

import math

import pytest
import torch

from musicnet_eval.errors import ConfigError
from musicnet_eval.schedules import Plateau, constant, cosine, linear, one_cycle


def rates(make: object, steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = make(optimizer) if make is constant else make(optimizer, total_steps=steps, **options)  # type: ignore[operator]
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


def test_linear_by_formula() -> None:
    got = rates(linear, 50, warmup_fraction=0.2, final_fraction=0.5)
    want = [2 * (i + 1) / 11 for i in range(10)] + [2 * (1 - 0.5 * i / 40) for i in range(41)]
    assert got == pytest.approx(want)


def test_one_cycle_peaks_at_each_groups_rate() -> None:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (2.0, 0.02)]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    scheduler = one_cycle(optimizer, 101, pct_start=0.3, div_factor=10.0, final_div_factor=100.0)
    seen, momenta = [], []
    for _ in range(101):
        seen.append([group["lr"] for group in optimizer.param_groups])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    high, low = zip(*seen, strict=True)
    rise = 0.3 * 101 - 1  # torch's own count of the rising steps
    want = [2 / 10 + (2 - 2 / 10) * (1 - math.cos(math.pi * i / rise)) / 2 for i in range(29)]
    assert high[:29] == pytest.approx(want)
    assert max(high) == pytest.approx(2.0, rel=1e-2)
    assert high[-1] == pytest.approx(2 / 10 / 100)
    assert [a / b for a, b in zip(high, low, strict=True)] == pytest.approx([100] * 101)
    assert (max(momenta), min(momenta)) == pytest.approx((0.95, 0.85), rel=1e-2)


def test_plateau_by_a_plain_list() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = Plateau(optimizer, monitor="val/song/f1_macro", mode="max", factor=0.5, patience=1, min_lr=0.3)
    seen = []
    for value in (0.1, 0.2, 0.2, 0.1, 0.3, 0.0, 0.0, 0.0, 0.0):
        optimizer.step()
        scheduler.step(value)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3])
    assert scheduler.monitor == "val/song/f1_macro"


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (one_cycle, {"pct_start": 1.5}, "pct_start=1.5"),
        (one_cycle, {"div_factor": 0}, "div_factor=0"),
        (linear, {"warmup_fraction": 1.0}, "warmup_fraction=1.0"),
    ],
)
def test_more_refusals(make: object, options: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"scheduler\.{named}"):
        rates(make, 10, **options)


def test_plateau_refuses_a_factor_that_lowers_nothing() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ConfigError, match=r"scheduler\.factor=1"):
        Plateau(optimizer, monitor="val/song/f1_macro", factor=1.0)


@pytest.mark.parametrize("options", [{"warmup_fraction": 1.0}, {"warmup_fraction": -0.1}, {"final_fraction": 2.0}])
def test_refusals(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"scheduler.{next(iter(options))}"):
        rates(cosine, 10, **options)
