"""The baselines among the losses against plain loops, calculus, limits, torchvision and timm."""

import math

import numpy as np
import pytest
import timm.loss
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from musicnet_eval.errors import ConfigError
from musicnet_eval.losses import (
    AsymmetricSingleLabelLoss,
    BalancedTrustedLoss,
    ConfidencePenaltyLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    Poly1Loss,
    SymmetricCrossEntropyLoss,
)

BASELINES = [
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    SymmetricCrossEntropyLoss,
    Poly1Loss,
    ConfidencePenaltyLoss,
    AsymmetricSingleLabelLoss,
]
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
    (
        AsymmetricSingleLabelLoss(1.5, 2.5, 0.3),
        lambda y, p: sum(
            -(0.7 * yc + 0.1) * (yc * (1 - pc) ** 1.5 + (1 - yc) * pc**2.5) * math.log(pc) for yc, pc in zip(y, p, strict=True)
        ),
    ),
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
        (AsymmetricSingleLabelLoss(gamma_negative=0.0, label_smoothing=0.0), 1.0),
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
    with pytest.raises((IndexError, RuntimeError)):  # -100 is no way out of a batch here, as it is of torch's cross-entropy
        loss()(LOGITS, torch.full((32,), -100))
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
        (AsymmetricSingleLabelLoss, {"gamma_positive": -1.0}),
        (AsymmetricSingleLabelLoss, {"gamma_negative": math.inf}),
        (AsymmetricSingleLabelLoss, {"label_smoothing": 1.0}),
    ],
)
def test_baseline_names_the_key_of_a_wrong_argument(loss, kwargs):
    with pytest.raises(ConfigError, match=rf"loss\.{next(iter(kwargs))}"):
        loss(**kwargs)


# --- against other libraries --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
def test_focal_equals_torchvisions_for_two_classes(gamma):
    """With logits (0, z) the softmax form is the sigmoid form on z; torchvision has only the latter."""
    z, y = LOGITS[:, 0], (INDEX > 0).long()
    expected = sigmoid_focal_loss(z, y.double(), alpha=-1, gamma=gamma, reduction="none")
    close(FocalLoss(gamma, reduction="none")(torch.stack([torch.zeros_like(z), z], dim=1), y), expected)


@pytest.mark.parametrize(("positive", "negative", "smoothing"), [(0.0, 4.0, 0.1), (1.0, 4.0, 0.1), (2.0, 1.0, 0.0)])
def test_asymmetric_loss_of_one_label_equals_timms(positive, negative, smoothing):
    expected = timm.loss.AsymmetricLossSingleLabel(gamma_pos=positive, gamma_neg=negative, eps=smoothing)(LOGITS, INDEX)
    close(AsymmetricSingleLabelLoss(positive, negative, smoothing)(LOGITS, INDEX), expected)


def test_asymmetric_loss_of_one_label_without_smoothing_is_focal():
    close(AsymmetricSingleLabelLoss(2.0, 4.0, 0.0)(LOGITS, INDEX), FocalLoss(2.0)(LOGITS, INDEX))
