"""Known losses of the literature that neither torch nor every supported timm has in a right form: what ours is compared with.

All take one label a track, as `[B]` index or `[B, C]` distribution (mixup), are finite wherever the logits are, and have no
`ignore_index`. They are written with the surprise -log p, of which an index needs one number a row: most of their speed.
Weighted, class-balanced and logit-adjusted cross-entropy are `BalancedTrustedLoss` without trust and smoothing: see `conf/loss`.
In the formulas p = softmax(logits), y is the target distribution (one-hot for an index), C the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicnet_eval.losses.balanced_trusted import full_precision
from musicnet_eval.losses.checks import check_number, check_reduction, check_shapes

NO_INDEX = torch.iinfo(torch.int64).min  # torch ignores rows of -100 unless told otherwise; here such a row is an error


class FocalLoss(nn.Module):
    """Turn the loss towards hard samples: -sum_c y_c (1 - p_c)^gamma log p_c, the softmax form.

    Limits: gamma = 0 is cross-entropy. Less over-confident than cross-entropy, but wrong labels are hard samples too, so it is no
    help against label noise; not proper, so probabilities need calibration.

    Args:
        gamma: Focus, 0 or more; 2 is usual.
        reduction: `mean`, `sum` or `none`.

    Shape:
        logits: `[B, C]`; target: `[B]` int or `[B, C]` float; output: scalar, or `[B]` with `reduction="none"`.

    Reference:
        Lin, Goyal, Girshick, He, Dollár: "Focal Loss for Dense Object Detection", ICCV 2017 (there with sigmoids). For two
        classes it equals torchvision's `sigmoid_focal_loss(z1 - z0, alpha=-1)`; for more, kornia's `focal_loss` without alpha.
    """

    multilabel = False

    def __init__(self, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma = check_number("gamma", gamma, lambda v: v >= 0, "0 or more (0: cross-entropy)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        return reduce(over_target(focus(surprise(logits, target), self.gamma), target), self.reduction)


class GeneralizedCrossEntropyLoss(nn.Module):
    """Bound the loss of each sample: sum_c y_c (1 - p_c^q) / q, between cross-entropy and mean absolute error.

    Limits: q towards 0 is cross-entropy, q = 1 is the absolute error 1 - p_y. Robust against wrong labels; starts slowly with
    many classes (the first pull is weaker by C^-q) and can cost accuracy on unequal classes; probabilities come out too sharp.

    Args:
        q: Robustness in (0, 1]; 0.7 is usual.
        reduction: `mean`, `sum` or `none`.

    Shape:
        logits: `[B, C]`; target: `[B]` int or `[B, C]` float; output: scalar, or `[B]` with `reduction="none"`.

    Reference:
        Zhang, Sabuncu: "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018.
    """

    multilabel = False

    def __init__(self, q: float = 0.7, reduction: str = "mean") -> None:
        super().__init__()
        self.q = check_number("q", q, lambda v: 0 < v <= 1, "in (0, 1] (near 0: cross-entropy, 1: absolute error)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        nats = surprise(logits, target)
        return reduce(over_target(torch.expm1(-self.q * nats) / -self.q, target), self.reduction)


class SymmetricCrossEntropyLoss(nn.Module):
    """Add the reverse cross-entropy: -alpha sum_c y_c log p_c - beta sum_c p_c log y_c, with log 0 taken as `log_zero`.

    Limits: beta = 0 is alpha times cross-entropy; for an index the reverse part is -log_zero (1 - p_y), a scaled absolute error.
    Robust against wrong labels where alpha is small; alpha and beta must be tuned to the data.

    Args:
        alpha: Weight of cross-entropy, 0 or more.
        beta: Weight of the reverse part, 0 or more.
        log_zero: Below 0; soft targets are cut off there too.
        reduction: `mean`, `sum` or `none`.

    Shape:
        logits: `[B, C]`; target: `[B]` int or `[B, C]` float; output: scalar, or `[B]` with `reduction="none"`.

    Reference:
        Wang, Ma, Chen, Luo, Yi, Bailey: "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019.
    """

    multilabel = False

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, lambda v: v >= 0, "0 or more")
        self.beta = check_number("beta", beta, lambda v: v >= 0, "0 or more (0: cross-entropy)")
        self.log_zero = check_number("log_zero", log_zero, lambda v: v < 0, "below 0, such as -4")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        nats = surprise(logits, target)
        if target.is_floating_point():
            reverse = -(torch.exp(-nats) * target.to(nats.dtype).log().clamp(min=self.log_zero)).sum(dim=1)
        else:
            reverse = self.log_zero * torch.expm1(-nats)
        return reduce(self.alpha * over_target(nats, target) + self.beta * reverse, self.reduction)


class Poly1Loss(nn.Module):
    """Shift the first term of cross-entropy's series: sum_c y_c (-log p_c + epsilon (1 - p_c)).

    Limits: epsilon = 0 is cross-entropy; epsilon > 0 makes the network surer, epsilon < 0 less sure; below -1 right answers are
    pushed away.

    Args:
        epsilon: Shift of the first coefficient, -1 or more.
        reduction: `mean`, `sum` or `none`.

    Shape:
        logits: `[B, C]`; target: `[B]` int or `[B, C]` float; output: scalar, or `[B]` with `reduction="none"`.

    Reference:
        Leng et al.: "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", ICLR 2022.
    """

    multilabel = False

    def __init__(self, epsilon: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.epsilon = check_number("epsilon", epsilon, lambda v: v >= -1, "-1 or more (0: cross-entropy)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        nats = surprise(logits, target)
        return reduce(over_target(nats - self.epsilon * torch.expm1(-nats), target), self.reduction)


class ConfidencePenaltyLoss(nn.Module):
    """Reward uncertain outputs: cross-entropy - beta H(p), with the entropy H(p) = -sum_c p_c log p_c in nats.

    Limits: beta = 0 is cross-entropy. Lowers over-confidence, as label smoothing does by the KL divergence in the other
    direction; no help against wrong labels. The value can fall below 0.

    Args:
        beta: Weight of the entropy, 0 or more; 0.1 is usual.
        reduction: `mean`, `sum` or `none`.

    Shape:
        logits: `[B, C]`; target: `[B]` int or `[B, C]` float; output: scalar, or `[B]` with `reduction="none"`.

    Reference:
        Pereyra, Tucker, Chorowski, Kaiser, Hinton: "Regularizing Neural Networks by Penalizing Confident Output Distributions",
        ICLR 2017 workshop.
    """

    multilabel = False

    def __init__(self, beta: float = 0.1, reduction: str = "mean") -> None:
        super().__init__()
        self.beta = check_number("beta", beta, lambda v: v >= 0, "0 or more (0: cross-entropy)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        check_shapes(logits, target, num_classes=logits.shape[-1])
        log_p = F.log_softmax(full_precision(logits), dim=1)
        negative_entropy = (log_p.exp() * log_p).sum(dim=1)
        chosen = (
            -log_p if target.is_floating_point() else F.nll_loss(log_p, target.long(), reduction="none", ignore_index=NO_INDEX)
        )
        return reduce(over_target(chosen, target) + self.beta * negative_entropy, self.reduction)


class AsymmetricSingleLabelLoss(nn.Module):
    """Weigh smoothed cross-entropy by how wrong each class is: the asymmetric loss in its authors' form for one label a track.

    With the smoothed target s = (1 - label_smoothing) y + label_smoothing / C, the loss is
    -sum_c s_c [y_c (1 - p_c)^gamma_positive + (1 - y_c) p_c^gamma_negative] log p_c.

    It is not in the paper, only in its authors' code. Limits: without smoothing it is the focal loss with gamma_positive, and
    gamma_negative does nothing; with both gammas 0 it is label smoothing. At the defaults it is cross-entropy times
    (1 - label_smoothing + label_smoothing / C), plus a weak pull on wrong classes that have become likely.

    Args:
        gamma_positive: Focus on the label's class, 0 or more.
        gamma_negative: Focus on the other classes, 0 or more.
        label_smoothing: Epsilon in [0, 1).
        reduction: `mean`, `sum` or `none`.

    Shape:
        logits: `[B, C]`; target: `[B]` int or `[B, C]` float; output: scalar, or `[B]` with `reduction="none"`.

    Reference:
        Ridnik et al.: "Asymmetric Loss For Multi-Label Classification", ICCV 2021; the single-label form is their code's.
    """

    multilabel = False

    def __init__(
        self, gamma_positive: float = 0.0, gamma_negative: float = 4.0, label_smoothing: float = 0.1, reduction: str = "mean"
    ) -> None:
        super().__init__()
        self.gamma_positive = check_number("gamma_positive", gamma_positive, lambda v: v >= 0, "0 or more")
        self.gamma_negative = check_number("gamma_negative", gamma_negative, lambda v: v >= 0, "0 or more")
        self.label_smoothing = check_number("label_smoothing", label_smoothing, lambda v: 0 <= v < 1, "in [0, 1) (0: off)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        check_shapes(logits, target, num_classes=logits.shape[-1])
        log_p = F.log_softmax(full_precision(logits), dim=1)
        rest = self.label_smoothing / logits.shape[1]
        if target.is_floating_point():
            y, nats = target.to(log_p.dtype), -log_p
            smoothed, negative = (1.0 - self.label_smoothing) * y + rest, torch.exp(self.gamma_negative * log_p) * nats
            return reduce((smoothed * torch.lerp(negative, focus(nats, self.gamma_positive), y)).sum(dim=1), self.reduction)
        # For an index: constant rows for what is added up and for the power of p, which is 0 for the label's own class.
        place, own = target.long().unsqueeze(1), 1.0 - self.label_smoothing + rest
        smoothed = torch.full_like(log_p, rest, requires_grad=False).scatter_(1, place, 0.0 if self.gamma_positive else own)
        power = torch.full_like(log_p, self.gamma_negative, requires_grad=False).scatter_(1, place, 0.0)
        loss = -(smoothed * log_p * torch.exp(power * log_p)).sum(dim=1)
        if self.gamma_positive:
            nats = F.nll_loss(log_p, target.long(), reduction="none", ignore_index=NO_INDEX)
            loss = loss + own * focus(nats, self.gamma_positive)
        return reduce(loss, self.reduction)


def surprise(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log p in float32 or better, after a look at the shapes: `[B]` for an index, `[B, C]` for a distribution."""
    check_shapes(logits, target, num_classes=logits.shape[-1])
    if target.is_floating_point():
        return -F.log_softmax(full_precision(logits), dim=1)
    return F.cross_entropy(full_precision(logits), target.long(), reduction="none", ignore_index=NO_INDEX)


def focus(nats: Tensor, gamma: float) -> Tensor:
    """Weigh the surprise by (1 - p)^gamma."""
    if not gamma:
        return nats
    # 1 - p without cancellation; the floor keeps the gradient finite where gamma < 1 and p rounds to 1
    miss = (-torch.expm1(-nats)).clamp(min=torch.finfo(nats.dtype).tiny)
    return torch.pow(miss, gamma) * nats


def over_target(values: Tensor, target: Tensor) -> Tensor:
    """Average over the target of each row, `[B]`: `[B, C]` values by a distribution, the `[B]` of an index as they are."""
    return (values * target.to(values.dtype)).sum(dim=1) if target.is_floating_point() else values


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """Reduce the losses of a batch by `mean`, `sum` or `none`."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
