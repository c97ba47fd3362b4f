"""The asymmetric loss against a plain loop, timm and binary cross-entropy."""

import math

import numpy as np
import pytest
import timm.loss
import torch
from torch.nn import functional as F

from musicnet_eval.errors import ConfigError
from musicnet_eval.losses import AsymmetricLoss

DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(20, 6, dtype=torch.float64, generator=DRAW) * 3
MANY = (torch.rand(20, 6, generator=DRAW) < 0.3).double()
SOFT = torch.rand(20, 6, dtype=torch.float64, generator=DRAW)
NUMBERS = [(0.0, 4.0, 0.05), (1.0, 4.0, 0.05), (0.5, 0.5, 0.1), (2.0, 3.0, 0.0), (0.0, 0.0, 0.2), (0.0, 1.0, 0.0)]


def plain_loop(logits, target, positive, negative, margin):
    losses = []
    for z, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        shifted = max(p - margin, 0.0)
        losses.append(-y * (1 - p) ** positive * math.log(p) - (1 - y) * shifted**negative * math.log(1 - shifted))
    return np.array(losses).reshape(logits.shape)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("target", [MANY, SOFT], ids=["hard", "soft"])
def test_it_equals_a_plain_loop(numbers, target):
    expected = torch.tensor(plain_loop(LOGITS, target, *numbers))
    for reduction, wanted in (("none", expected), ("mean", expected.mean()), ("sum", expected.sum())):
        torch.testing.assert_close(AsymmetricLoss(*numbers, reduction=reduction)(LOGITS, target), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_gradient_is_the_numerical_one(numbers):
    loss = AsymmetricLoss(*numbers)
    for target in (MANY, SOFT):
        assert torch.autograd.gradcheck(lambda z, target=target: loss(z, target), LOGITS.clone().requires_grad_())


@pytest.mark.parametrize("numbers", [n for n in NUMBERS if n[0] == int(n[0])])
def test_it_equals_timms(numbers):
    """One row at a time: timm's older releases sum over the batch, newer ones average."""
    positive, negative, margin = numbers
    theirs = timm.loss.AsymmetricLossMultiLabel(gamma_neg=negative, gamma_pos=positive, clip=margin)
    for z, y in zip(LOGITS.split(1), MANY.split(1), strict=True):
        torch.testing.assert_close(
            AsymmetricLoss(*numbers, reduction="sum")(z, y).float(), theirs(z, y).float(), rtol=1e-4, atol=1e-5
        )


def test_binary_cross_entropy_is_its_limit():
    for target in (MANY, SOFT):
        expected = F.binary_cross_entropy_with_logits(LOGITS, target)
        torch.testing.assert_close(AsymmetricLoss(0.0, 0.0, 0.0)(LOGITS, target), expected)


def test_absent_labels_below_the_margin_pull_not_at_all():
    logits = torch.full((1, 2), -3.5, requires_grad=True)  # p = 0.029
    AsymmetricLoss()(logits, torch.zeros(1, 2)).backward()
    assert (logits.grad.abs() < 1e-30).all()


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("size", [30.0, 100.0, 1000.0])
def test_extreme_logits_stay_finite(numbers, size):
    logits = torch.tensor([[size, -size, size, -size]], requires_grad=True)
    loss = AsymmetricLoss(*numbers)(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 3] < -0.2  # a present label that is given up on is still pulled up


@pytest.mark.parametrize(
    ("kwargs", "key"),
    [
        ({"gamma_positive": -1.0}, "gamma_positive"),
        ({"gamma_negative": math.nan}, "gamma_negative"),
        ({"margin": 1.0}, "margin"),
        ({"reduction": "median"}, "reduction"),
    ],
)
def test_wrong_arguments_name_their_key(kwargs, key):
    with pytest.raises(ConfigError, match=rf"loss\.{key}"):
        AsymmetricLoss(**kwargs)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, 3), "must be floating"),
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), "use loss=cross_entropy"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.long), "1 for each label"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "1 for each label"),
        (torch.zeros(1, 2), torch.tensor([[0.0, 1.5]]), r"outside \[0, 1\]"),
        (torch.zeros(1, 2), torch.tensor([[0.0, math.nan]]), r"outside \[0, 1\]"),
    ],
)
def test_wrong_inputs_are_told(logits, target, message):
    with pytest.raises(ValueError, match=message):
        AsymmetricLoss()(logits, target)
