"""Known losses of the literature that neither torch nor every supported timm has in a right form: what ours is compared with.

All take the target as `[B]` index or `[B, C]` distribution (mixup), are finite wherever the logits are, and have no
`ignore_index`. Weighted, class-balanced and logit-adjusted cross-entropy are `BalancedTrustedLoss` without trust and smoothing:
see `conf/loss`. In the formulas p = softmax(logits), y is the target distribution (one-hot for an index), C the classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicnet_eval.losses.balanced_trusted import full_precision
from musicnet_eval.losses.checks import check_number, check_reduction, check_shapes


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
        Lin, Goyal, Girshick, He, Dollár: "Focal Loss for Dense Object Detection", ICCV 2017 (there with sigmoids).
    """

    def __init__(self, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma = check_number("gamma", gamma, lambda v: v >= 0, "0 or more (0: cross-entropy)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        log_p = log_probabilities(logits, target)
        # 1 - p without cancellation; the floor keeps the gradient finite where gamma < 1 and p rounds to 1
        miss = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return reduce(over_target(-(miss**self.gamma) * log_p, target), self.reduction)


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

    def __init__(self, q: float = 0.7, reduction: str = "mean") -> None:
        super().__init__()
        self.q = check_number("q", q, lambda v: 0 < v <= 1, "in (0, 1] (near 0: cross-entropy, 1: absolute error)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        log_p = log_probabilities(logits, target)
        return reduce(over_target(-torch.expm1(self.q * log_p) / self.q, target), self.reduction)


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

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, lambda v: v >= 0, "0 or more")
        self.beta = check_number("beta", beta, lambda v: v >= 0, "0 or more (0: cross-entropy)")
        self.log_zero = check_number("log_zero", log_zero, lambda v: v < 0, "below 0, such as -4")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        log_p = log_probabilities(logits, target)
        p = log_p.exp()
        if target.is_floating_point():
            reverse = -(p * target.to(p.dtype).log().clamp(min=self.log_zero)).sum(dim=1)
        else:
            reverse = -self.log_zero * (1.0 - over_target(p, target))
        return reduce(self.alpha * over_target(-log_p, target) + self.beta * reverse, self.reduction)


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

    def __init__(self, epsilon: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.epsilon = check_number("epsilon", epsilon, lambda v: v >= -1, "-1 or more (0: cross-entropy)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        log_p = log_probabilities(logits, target)
        return reduce(over_target(-log_p - self.epsilon * torch.expm1(log_p), target), self.reduction)


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

    def __init__(self, beta: float = 0.1, reduction: str = "mean") -> None:
        super().__init__()
        self.beta = check_number("beta", beta, lambda v: v >= 0, "0 or more (0: cross-entropy)")
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        log_p = log_probabilities(logits, target)
        negative_entropy = (log_p.exp() * log_p).sum(dim=1)
        return reduce(over_target(-log_p, target) + self.beta * negative_entropy, self.reduction)


def log_probabilities(logits: Tensor, target: Tensor) -> Tensor:
    """Return log p in float32 or better, `[B, C]`, after a look at the shapes."""
    check_shapes(logits, target, num_classes=logits.shape[-1])
    return F.log_softmax(full_precision(logits), dim=1)


def over_target(values: Tensor, target: Tensor) -> Tensor:
    """Average the `[B, C]` values over the target of each row: pick the index, or weigh by the distribution; `[B]`."""
    if target.is_floating_point():
        return (values * target.to(values.dtype)).sum(dim=1)
    return values.gather(1, target.long().unsqueeze(1)).squeeze(1)


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """Reduce the losses of a batch by `mean`, `sum` or `none`."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
