"""Softmax losses with margins, on cosines: the network's last layer is then a `backbones.CosineHead`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from musicnet_eval.losses.balanced_trusted import full_precision
from musicnet_eval.losses.baselines import NO_INDEX
from musicnet_eval.losses.checks import check_cosines, check_number, check_reduction


class CosineMarginLoss(nn.Module):
    r"""Ask the label's class for a margin of angle, of cosine, or of both: cross-entropy on scaled cosines.

    With $\cos\theta_c$ between features and class weights, the label's score is
    $s (\cos(\theta_y + m_1) - m_2)$, that of every other class $s \cos\theta_c$; $s$ = `scale`, $m_1$ = `angular_margin`,
    $m_2$ = `cosine_margin`. ArcFace is $m_2 = 0$, CosFace $m_1 = 0$; without margins it is cross-entropy on $s \cos\theta$.

    Where $\theta_y + m_1$ passes $\pi$, $\cos\theta_y - m_1 \sin m_1$ takes the place of the cosine of the sum, which would rise
    again (the original code's rule without "easy margin"; the score still falls there, by a step). At $\cos\theta_y = \pm 1$,
    where the slope of the formula is infinite, it is bounded.

    Authors' follow-up: an angular and a cosine margin together on normalised features and weights is what the abstract of
    AMCM-Softmax tells; that it is this formula, and every number in `conf/loss`, is ours.

    Limits: labels must be single and whole: a margin has no meaning for a mixture, so no mixup. Margins and a large scale make
    probabilities over-confident: calibrate before reading them. A scale near the bound
    $\frac{C-1}{C} \log\frac{(C-1) P}{1-P}$ (6.1 for 10 classes and P = 0.99) cannot reach the probability P; 64 is for thousands
    of identities. The value compares with no other loss: monitor F1.

    Args:
        scale: s, positive. The head multiplies its cosines with it, so that the network's scores are logits as ever.
        angular_margin: m1, radians in [0, pi/2).
        cosine_margin: m2 in [0, 1).
        reduction: `mean`, `sum` or `none`.
        validate_args: False skips the checks of values, which make the CPU wait for a GPU.

    Shape:
        cosines: `[B, C]` in [-1, 1], without scale; target: `[B]` int; output: scalar, or `[B]` with `reduction="none"`.

    Reference:
        Deng, Guo, Xue, Zafeiriou: "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019. Wang et al.:
        "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018. Li et al.: "Combined angular margin and cosine
        margin softmax loss for music classification based on spectrograms", Neural Computing and Applications 34, 2022.
    """

    needs_cosines = True
    takes_soft_targets = False
    multilabel = False

    def __init__(
        self,
        scale: float = 16.0,
        angular_margin: float = 0.0,
        cosine_margin: float = 0.0,
        reduction: str = "mean",
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        self.scale = check_number("scale", scale, lambda v: v > 0, "positive, such as 16")
        self.angular_margin = check_number(
            "angular_margin", angular_margin, lambda v: 0 <= v < math.pi / 2, "in [0, pi/2) radians"
        )
        self.cosine_margin = check_number("cosine_margin", cosine_margin, lambda v: 0 <= v < 1, "in [0, 1)")
        self.reduction, self.validate_args = check_reduction(reduction), validate_args

    def forward(self, cosines: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        check_cosines(cosines, target, values=self.validate_args)
        target = target.long()
        scores: Tensor = _Margins.apply(
            full_precision(cosines), target.unsqueeze(1), self.scale, self.angular_margin, self.cosine_margin
        )
        return F.cross_entropy(scores, target, reduction=self.reduction, ignore_index=NO_INDEX)


class _Margins(torch.autograd.Function):
    """Scaled cosines with the label's moved by the margins, and their slope written out: half the time of recorded steps."""

    @staticmethod
    def forward(ctx: Any, cosines: Tensor, place: Tensor, scale: float, angular: float, additive: float) -> Tensor:
        moved = cosines.gather(1, place)
        slopes = torch.full_like(cosines, scale)
        if angular:
            moved, slope = turned(moved, angular)
            slopes.scatter_(1, place, slope.mul_(scale))
        ctx.save_for_backward(slopes)
        return cosines.scatter(1, place, moved - additive if additive else moved).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return above * slopes, None, None, None, None


def turned(cosine: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Return cos(theta + angle) for cos(theta), with what takes its place where the sum passes pi, and the slope of that."""
    # Where float32 stops telling the cosine from 1 the slope, which goes to infinity, stays as it is.
    theta = cosine.clamp(min=-1.0 + 1e-7, max=1.0 - 1e-7).acos_()
    turn = theta + angle
    value, slope = turn.cos(), turn.sin().div_(theta.sin_())
    beyond = turn > math.pi
    return torch.where(beyond, cosine - angle * math.sin(angle), value), slope.masked_fill_(beyond, 1.0)
