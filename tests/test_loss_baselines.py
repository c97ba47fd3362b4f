"""The baselines among the losses against plain loops, calculus and limits; every preset of `conf/loss` built and trained."""

import inspect
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from musicnet_eval.errors import ConfigError
from musicnet_eval.losses import (
    BalancedTrustedLoss,
    ConfidencePenaltyLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    Poly1Loss,
    SymmetricCrossEntropyLoss,
)

BASELINES = [FocalLoss, GeneralizedCrossEntropyLoss, SymmetricCrossEntropyLoss, Poly1Loss, ConfidencePenaltyLoss]
PRESETS = sorted((Path(__file__).parents[1] / "conf/loss").glob("*.yaml"))
COUNTS = (100, 40, 10)
LOGITS = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
INDEX = torch.randint(3, (32,), generator=torch.Generator().manual_seed(1))
SOFT = torch.softmax(torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), dim=1)


def close(got, expected, atol=1e-7):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=got.dtype), atol=atol, rtol=0)


def gradient(loss, logits, target):
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    return leaf.grad


# --- the baselines ------------------------------------------------------------------------------------------------------------
def entropy_like(p, q):
    return -sum(pc * math.log(qc) for pc, qc in zip(p, q, strict=True) if pc > 0)


FORMULAS = [
    (FocalLoss(2.0), lambda y, p: sum(yc * (1 - pc) ** 2 * -math.log(pc) for yc, pc in zip(y, p, strict=True))),
    (FocalLoss(0.5), lambda y, p: sum(yc * (1 - pc) ** 0.5 * -math.log(pc) for yc, pc in zip(y, p, strict=True))),
    (GeneralizedCrossEntropyLoss(0.7), lambda y, p: sum(yc * (1 - pc**0.7) / 0.7 for yc, pc in zip(y, p, strict=True))),
    (
        SymmetricCrossEntropyLoss(0.3, 0.8, log_zero=-4.0),
        lambda y, p: 0.3 * entropy_like(y, p) + 0.8 * entropy_like(p, [max(yc, math.exp(-4)) for yc in y]),
    ),
    (Poly1Loss(1.5), lambda y, p: entropy_like(y, p) + 1.5 * sum(yc * (1 - pc) for yc, pc in zip(y, p, strict=True))),
    (ConfidencePenaltyLoss(0.2), lambda y, p: entropy_like(y, p) - 0.2 * entropy_like(p, p)),
]


@pytest.mark.parametrize(("loss", "formula"), FORMULAS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("target", [INDEX, SOFT], ids=["index", "soft"])
def test_baseline_equals_a_plain_loop(loss, formula, target):
    rows = target if target.is_floating_point() else F.one_hot(target, 3)
    exp = np.exp(LOGITS.numpy())
    expected = [formula(y, p) for y, p in zip(rows.tolist(), (exp / exp.sum(axis=1, keepdims=True)).tolist(), strict=True)]
    close(loss(LOGITS, target), np.mean(expected))


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        (FocalLoss(gamma=0.0), 1.0),
        (GeneralizedCrossEntropyLoss(q=1e-9), 1.0),
        (SymmetricCrossEntropyLoss(alpha=0.5, beta=0.0), 0.5),
        (Poly1Loss(epsilon=0.0), 1.0),
        (ConfidencePenaltyLoss(beta=0.0), 1.0),
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("target", [INDEX, SOFT], ids=["index", "soft"])
def test_baseline_has_cross_entropy_as_its_limit(loss, scale, target):
    close(loss(LOGITS, target), scale * F.cross_entropy(LOGITS, target))


def test_generalized_cross_entropy_ends_at_the_absolute_error():
    expected = (1 - LOGITS.softmax(dim=1)[range(32), INDEX]).mean()
    close(GeneralizedCrossEntropyLoss(q=1.0)(LOGITS, INDEX), expected)


@pytest.mark.parametrize("loss", BASELINES)
def test_baseline_reduces_and_has_the_numerical_gradient(loss):
    each = loss(reduction="none")(LOGITS, INDEX)
    assert each.shape == (32,)
    close(loss(reduction="sum")(LOGITS, INDEX), each.sum())
    close(loss()(LOGITS, INDEX), each.mean())
    close(loss()(LOGITS, F.one_hot(INDEX, 3).double()), each.mean(), 1e-3 if loss is SymmetricCrossEntropyLoss else 1e-7)
    assert torch.autograd.gradcheck(lambda z: loss()(z, INDEX[:6]), LOGITS[:6].clone().requires_grad_())


@pytest.mark.parametrize("loss", [*BASELINES, lambda: FocalLoss(0.5), lambda: BalancedTrustedLoss(3, trust_warmup=0.0)])
def test_extreme_logits_stay_finite(loss):
    logits, target = torch.tensor([[1e3, -1e3, 0.0], [1e3, -1e3, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 1, 2])
    assert loss()(logits, target).isfinite()
    assert gradient(loss(), logits, target).isfinite().all()


@pytest.mark.parametrize("loss", BASELINES)
def test_baseline_computes_half_precision_in_float32(loss):
    logits = LOGITS.bfloat16()
    assert loss()(logits, INDEX) == loss()(logits.float(), INDEX)


@pytest.mark.parametrize("loss", BASELINES)
def test_baseline_tells_of_wrong_inputs(loss):
    with pytest.raises(ValueError, match="must be"):
        loss()(LOGITS, torch.zeros(5, dtype=torch.long))
    with pytest.raises(ConfigError, match=r"loss\.reduction"):
        loss(reduction="median")


@pytest.mark.parametrize(
    ("loss", "kwargs"),
    [
        (FocalLoss, {"gamma": -1.0}),
        (GeneralizedCrossEntropyLoss, {"q": 0.0}),
        (GeneralizedCrossEntropyLoss, {"q": 1.1}),
        (SymmetricCrossEntropyLoss, {"alpha": -1.0}),
        (SymmetricCrossEntropyLoss, {"beta": -1.0}),
        (SymmetricCrossEntropyLoss, {"log_zero": 0.0}),
        (Poly1Loss, {"epsilon": -1.5}),
        (ConfidencePenaltyLoss, {"beta": math.nan}),
    ],
)
def test_baseline_names_the_key_of_a_wrong_argument(loss, kwargs):
    with pytest.raises(ConfigError, match=rf"loss\.{next(iter(kwargs))}"):
        loss(**kwargs)


# --- the presets --------------------------------------------------------------------------------------------------------------
def build(preset, num_classes=3, class_counts=COUNTS):
    """Build `conf/loss/<preset>.yaml` as the classifier does: a partial gets those facts that its signature accepts."""
    loss = instantiate(OmegaConf.load(preset))
    if isinstance(loss, partial):
        facts = {"num_classes": num_classes, "class_counts": class_counts}
        loss = loss(**{name: value for name, value in facts.items() if name in inspect.signature(loss).parameters})
    return loss


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_trains_a_separable_problem(preset):
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(3).repeat(20)
    inputs = F.one_hot(target, 3) * 2.0 + 0.3 * torch.randn(60, 3, generator=generator)
    model, loss = nn.Linear(3, 3), build(preset)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    before = loss(model(inputs), target).item()
    for step in range(30):
        if hasattr(loss, "set_progress"):
            loss.set_progress(step / 30)
        optimizer.zero_grad()
        loss(model(inputs), target).backward()
        optimizer.step()
    assert loss(model(inputs), target).item() < 0.8 * before
    assert (model(inputs).argmax(dim=1) == target).float().mean() > 0.9


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_preset_takes_both_targets_and_opens_with_what_it_is(preset):
    loss = build(preset)
    assert loss(LOGITS.float(), INDEX).isfinite()
    assert loss(LOGITS.float(), SOFT.float()).isfinite()
    assert preset.read_text().startswith("# ")


def test_presets_are_what_their_formulas_say():
    preset = {path.stem: build(path) for path in PRESETS}
    smoothed = partial(F.cross_entropy, LOGITS, INDEX)
    shares = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    close(preset["cross_entropy"](LOGITS, INDEX), smoothed())
    close(preset["balanced_trusted"](LOGITS, INDEX), smoothed(label_smoothing=1e-3))
    close(preset["label_smoothing"](LOGITS, INDEX), smoothed(label_smoothing=0.1))
    close(preset["weighted_cross_entropy"](LOGITS, INDEX), smoothed(weight=1 / shares), 1e-6)
    effective = (1 - 0.999) / (1 - 0.999 ** torch.tensor(COUNTS, dtype=torch.float64))
    close(preset["class_balanced"](LOGITS, INDEX), smoothed(weight=effective), 1e-6)
    close(preset["logit_adjusted"](LOGITS, INDEX), F.cross_entropy(LOGITS + shares.log(), INDEX), 1e-6)


def test_class_weights_may_be_a_list_of_a_config():
    config = OmegaConf.create(
        {"_target_": "musicnet_eval.losses.BalancedTrustedLoss", "num_classes": 3, "class_weight": [1, 2, 3]}
    )
    close(instantiate(config).weight, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.stem.startswith("balanced_trusted")], ids=lambda path: path.stem)
def test_only_the_reconstruction_claims_the_paper(preset):
    opening = preset.read_text().split("_target_")[0]
    assert ("reconstruction" in opening) == (preset.stem == "balanced_trusted")
    assert "Ours, " in opening
