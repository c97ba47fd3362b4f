"""Losses for tracks that carry several labels: one sigmoid a class. Binary cross-entropy is torch's own: `conf/loss/bce.yaml`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from musicnet_eval.losses.balanced_trusted import full_precision
from musicnet_eval.losses.checks import check_many_hot, check_number, check_reduction


class AsymmetricLoss(nn.Module):
    r"""Let the many absent labels pull less than the few present ones.

    With $p = \sigma(z)$ and $\bar p = \max(p - m, 0)$ for the `margin` $m$, the loss of one class is
    $-y (1 - p)^{\gamma_+} \log p - (1 - y) \bar p^{\gamma_-} \log(1 - \bar p)$; the mean is over classes and rows.

    Limits: with both gammas and the margin 0 it is binary cross-entropy. An absent label of p below the margin pulls not at all.
    Probabilities come out too high: choose thresholds, or calibrate, on validation data. With gamma_positive above gamma_negative
    the rare labels are the ones neglected.

    Args:
        gamma_positive: Focus on present labels, 0 or more.
        gamma_negative: Focus on absent labels, 0 or more.
        margin: Shift of the probability of absent labels, in [0, 1) (the authors' "clip").
        reduction: `mean`, `sum` or `none`.
        validate_args: False skips the check of target values, which makes the CPU wait for a GPU.

    Shape:
        logits: `[B, C]`; target: `[B, C]` float in [0, 1]; output: scalar, or `[B, C]` with `reduction="none"`.

    Reference:
        Ridnik et al.: "Asymmetric Loss For Multi-Label Classification", ICCV 2021. There the sum is taken, which ties the
        learning rate to the batch size and the number of classes.
    """

    multilabel = True

    def __init__(
        self,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        reduction: str = "mean",
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        self.gamma_positive = check_number("gamma_positive", gamma_positive, lambda v: v >= 0, "0 or more")
        self.gamma_negative = check_number("gamma_negative", gamma_negative, lambda v: v >= 0, "0 or more")
        self.margin = check_number("margin", margin, lambda v: 0 <= v < 1, "in [0, 1) (0: off)")
        self.reduction, self.validate_args = check_reduction(reduction), validate_args

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        check_many_hot(logits, target, values=self.validate_args)
        z, y = full_precision(logits), target.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        loss: Tensor = _Asymmetric.apply(z, y, self.gamma_positive, self.gamma_negative, self.margin)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()


class _Asymmetric(torch.autograd.Function):
    """The loss of each label with its derivative written out: recorded step by step it takes half as long again."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor, gamma_positive: float, gamma_negative: float, margin: float) -> Tensor:
        p, present = torch.sigmoid(z), F.logsigmoid(z)
        q = 1.0 - p
        present_slope = -q
        if gamma_positive:
            weight = power(q, gamma_positive)
            present_slope = (gamma_positive * p * present - q) * weight
            present = present * weight
        if margin:
            rest = (q + margin).clamp_(max=1.0)  # 1 less the shifted probability; never 0, so that its logarithm is finite
            absent, steep = torch.log(rest), (p * q).div_(rest)
            if gamma_negative < 1.0:  # below the margin nothing pulls; from 1 on the weight says so
                steep = steep * (rest < 1.0)
        else:
            rest, absent, steep = q, F.logsigmoid(-z), p
        shifted = (1.0 - rest).clamp_(min=torch.finfo(p.dtype).tiny)  # above 0, for exponents below 1
        weight = power(shifted, gamma_negative)
        pull = weight * steep
        absent_slope = pull.addcdiv((absent * rest).mul_(pull), shifted, value=-gamma_negative)
        ctx.save_for_backward(absent_slope.lerp_(present_slope, y))
        return (absent * weight).lerp_(present, y).neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return above * slope, None, None, None, None


def power(base: Tensor, exponent: float) -> Tensor:
    """Return base^exponent, by squaring as long as the exponent is even: 4 takes a tenth of the time of `torch.pow`."""
    while exponent and exponent % 2 == 0:
        base, exponent = base.square(), exponent / 2
    return base if exponent == 1 else torch.pow(base, exponent)
