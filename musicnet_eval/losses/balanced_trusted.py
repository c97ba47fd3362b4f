"""The balanced trusted loss: the paper's as best known (a reconstruction), and our own trust in samples and class balance."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicnet_eval.errors import ConfigError
from musicnet_eval.losses.checks import check_number, check_reduction, check_shapes, check_values
from musicnet_eval.losses.class_balance import check_counts, log_class_prior, make_class_weights


class BalancedTrustedLoss(nn.Module):
    r"""Weigh the cross-entropy by class balance, label smoothing and trust in each label; every part can be off.

    With logits $z$, target distribution $Y$ (one-hot for an index), class weights $w$, class shares $\pi$ of the training split,
    $\epsilon$ = `trust_factor` and $q$ = `trust_strength` (ramped over the warm-up):

    - likelihood: $a = z + \tau_l \log\pi$, $\log p = \mathrm{log\,softmax}(a)$;
    - trust, detached: $t_i = \exp(q (\log\sum_c Y_{ic} e^{b_{ic}} - \max_c b_{ic}))$ with $b = a - \tau_t \log\pi$; for an index
      this is $(p_y / \max p)^q$: 1 where the model agrees or knows nothing, small where it is sure of another class;
    - sample: $l_i = t_i [(1-\epsilon) \sum_c Y_{ic} w_c (-\log p_{ic}) + \epsilon S_i \frac1C \sum_c (-\log p_{ic})]$ with
      $S_i = \sum_c Y_{ic} w_c$;
    - mean: $\sum_i l_i / \sum_i S_i$ over the rows not ignored. Trust is not in the normaliser: distrust lowers the pull.

    Paper (as best known, from third-party code): `trust_factor = balance_base ** -balance_factor` with base 10 and factor 1 to 5,
    `trust_strength=0`, no class balance; this equals label smoothing. Ours: the trust in samples, its warm-up, the class balance.

    Equal to `F.cross_entropy` with trust off for: index targets with weights; index or soft targets without weights, also with
    smoothing. Different on purpose: soft targets with weights are divided by their weight, not by B, so that one-hot rows equal
    indices; weights with smoothing weigh the whole sample, since weighing the uniform part by class can move the optimum towards
    heavy classes; a batch whose rows are all ignored gives 0, not NaN.

    Limits: trust helps against wrong labels, not against overfitting to right ones, and does not lower over-confidence; with
    `trust_strength > 1` whichever class the network favours first may win, hence the warm-up; smoothing together with trust can
    undo the robustness. A mixture that is predicted just right has a trust below 1: of two classes 0.83 to 1 at strength 1.
    Monitor plain cross-entropy or F1, never this value: distrusted samples have a low loss. With `logit_adjust_tau` the softmax
    of the logits estimates a class-balanced posterior.

    Args:
        num_classes: Number of classes C, 2 or more.
        class_counts: Training items of each class; needed by named class weights and by either tau. None counts as one.
        class_weight: `inv_freq` or `effective_num` (see `make_class_weights`), C weights as given, or None for ones.
        beta: Of `effective_num`, in (0, 1); nearer 1 balances more.
        power: Of `inv_freq`, 0 or more; 0.5 takes the square root.
        max_weight: Cap on every class weight, positive; None for no cap.
        logit_adjust_tau: Strength of logit adjustment; 0 off, 1 the optimum for balanced error.
        trust_factor: Label smoothing's epsilon in [0, 1); None takes it from `balance_factor`, else 0.
        balance_base: Base of the paper-era way to give the trust factor, above 1.
        balance_factor: Exponent of that way, above 0; None where `trust_factor` is given.
        trust_strength: q, 0 or more; 0 off, 1 the largest value that keeps the most probable label the optimum.
        trust_warmup: Share of the training in [0, 1) over which q grows from 0. It follows `set_progress`, which starts at 0:
            a training loop of your own calls that at every step, or sets the warm-up to 0.
        trust_prior_tau: How far the class shares are taken out of the trust; 1 together with logit adjustment.
        ignore_index: Index whose rows count nothing (index targets only).
        reduction: `mean`, `sum` or `none`.
        validate_args: False skips the checks of target values, which make the CPU wait for a GPU.

    Shape:
        logits: `[B, C]`, floating.
        target: `[B]` int or `[B, C]` float.
        output: scalar, or `[B]` with `reduction="none"`.

    Raises:
        ConfigError: an argument outside its range, a part that lacks `class_counts`, or an epsilon that is given twice.
        ValueError: logits or a target of a wrong shape, type or value.

    Reference:
        Smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016. Logit adjustment:
        Menon et al., "Long-tail learning via logit adjustment", ICLR 2021. Class weights: see `make_class_weights`.

    >>> loss = BalancedTrustedLoss(3, trust_warmup=0.0)
    >>> loss.trust(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 2]))
    tensor([0.1353, 1.0000])
    """

    multilabel = False
    weight: Tensor | None
    log_prior: Tensor | None
    progress: Tensor

    def __init__(
        self,
        num_classes: int,
        class_counts: Iterable[float] | None = None,
        *,
        class_weight: str | Iterable[float] | None = None,
        beta: float = 0.999,
        power: float = 1.0,
        max_weight: float | None = None,
        logit_adjust_tau: float = 0.0,
        trust_factor: float | None = None,
        balance_base: float = 10.0,
        balance_factor: float | None = None,
        trust_strength: float = 1.0,
        trust_warmup: float = 0.2,
        trust_prior_tau: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        validate_args: bool = True,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"loss.num_classes={num_classes!r} must be 2 or more. Use a data set with more classes.")
        self.num_classes = num_classes
        self.logit_adjust_tau = check_number("logit_adjust_tau", logit_adjust_tau, math.isfinite, "finite (0: off)")
        self.trust_factor = smoothing_epsilon(trust_factor, balance_base, balance_factor)
        self.trust_strength = check_number("trust_strength", trust_strength, lambda v: v >= 0, "0 or more (0: off)")
        self.trust_warmup = check_number("trust_warmup", trust_warmup, lambda v: 0 <= v < 1, "in [0, 1), a share of the training")
        self.trust_prior_tau = check_number("trust_prior_tau", trust_prior_tau, math.isfinite, "finite (0: off)")
        self.ignore_index, self.reduction, self.validate_args = ignore_index, check_reduction(reduction), validate_args
        self.counted = isinstance(class_weight, str)
        counts = None if class_counts is None else check_counts(class_counts, num_classes)
        ones = [1.0] * num_classes  # also where no weights are asked for, their numbers are checked
        weight = make_class_weights(
            ones if class_weight is None else class_weight, num_classes, counts, beta=beta, power=power, max_weight=max_weight
        )
        log_prior = None if counts is None else log_class_prior(counts).float()
        self.register_buffer("weight", None if class_weight is None else weight.float())
        self.register_buffer("log_prior", log_prior)
        self.register_buffer("progress", torch.zeros((), dtype=torch.float32))
        self._check_parts()

    @property
    def needs_class_counts(self) -> bool:
        """Whether a part that is switched on is made of the class counts."""
        return self.counted or bool(self.logit_adjust_tau or self.trust_prior_tau)

    @property
    def needs_progress(self) -> bool:
        """Whether the trust warms up."""
        return bool(self.trust_strength and self.trust_warmup)

    def _check_parts(self) -> None:
        for key in ("logit_adjust_tau", "trust_prior_tau"):
            if getattr(self, key) and self.log_prior is None:
                raise ConfigError(
                    f"loss.{key}={getattr(self, key)} needs class counts. Give loss.class_counts or use loss.{key}=0."
                )
        if self.weight is not None and self.logit_adjust_tau:
            warnings.warn("loss.class_weight and loss.logit_adjust_tau balance the classes twice; use one.", stacklevel=3)
        if self.trust_strength > 1 and not self.trust_warmup:
            warnings.warn(
                f"loss.trust_strength={self.trust_strength} can collapse without a warm-up; use loss.trust_warmup=0.2.",
                stacklevel=3,
            )

    def set_progress(self, progress: float) -> None:
        """Say which share of the training is done; the warm-up of the trust follows it.

        Args:
            progress: Step / all steps, in [0, 1]. Saved with the state, so that a resumed run keeps its trust.
        """
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress={progress} must lie in [0, 1]: the share of the training that is done.")
        self.progress.fill_(progress)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch; see the class for shapes."""
        self._check_inputs(logits, target)
        return balanced_trusted_loss(
            logits,
            target,
            class_weight=self.weight,
            log_prior=self.log_prior,
            logit_adjust_tau=self.logit_adjust_tau,
            trust_factor=self.trust_factor,
            trust_strength=self._strength(),
            trust_prior_tau=self.trust_prior_tau,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )

    def trust(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the trust in each label at the present progress: `[B]` in [0, 1], detached; 1 for ignored rows."""
        self._check_inputs(logits, target)
        adjusted = adjust_logits(full_precision(logits), self.log_prior, self.logit_adjust_tau - self.trust_prior_tau)
        return sample_trust(adjusted, target, self._strength(), self.ignore_index)

    def _strength(self) -> float | Tensor:
        """Return q at the present progress: a tensor on its device where there is a warm-up, so that nothing waits for a GPU."""
        if not self.needs_progress:
            return self.trust_strength
        return (self.progress * (self.trust_strength / self.trust_warmup)).clamp(max=self.trust_strength)

    def _check_inputs(self, logits: Tensor, target: Tensor) -> None:
        check_shapes(logits, target, self.num_classes)
        if self.validate_args:
            check_values(target, self.num_classes, self.ignore_index)


def balanced_trusted_loss(
    logits: Tensor,
    target: Tensor,
    *,
    class_weight: Tensor | None = None,
    log_prior: Tensor | None = None,
    logit_adjust_tau: float = 0.0,
    trust_factor: float = 0.0,
    trust_strength: float | Tensor = 0.0,
    trust_prior_tau: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Compute the balanced trusted loss; `BalancedTrustedLoss` has the formula, checks its arguments and keeps the warm-up.

    Args:
        logits: Raw outputs of the network.
        target: Class index or distribution.
        class_weight: Weight of each class, None for ones.
        log_prior: Log of the class shares in the training split; needed by either tau.
        logit_adjust_tau: Strength of logit adjustment.
        trust_factor: Label smoothing's epsilon in [0, 1).
        trust_strength: q, 0 or more; 0 leaves the trust out.
        trust_prior_tau: How far the class shares are taken out of the trust.
        ignore_index: Index whose rows count nothing.
        reduction: `mean`, `sum` or `none`.

    Shape:
        logits: `[B, C]`.
        target: `[B]` int or `[B, C]` float.
        class_weight, log_prior: `[C]`.
        output: scalar, or `[B]` with `reduction="none"`.
    """
    logits = full_precision(logits)
    likelihood = adjust_logits(logits, log_prior, logit_adjust_tau)
    class_weight = None if class_weight is None else class_weight.to(logits.dtype)
    if target.is_floating_point():
        loss, scale, total = _soft_cross_entropy(likelihood, target.to(logits.dtype), class_weight, trust_factor)
    else:
        loss, scale, total = _index_cross_entropy(likelihood, target.long(), class_weight, trust_factor, ignore_index)
    # The factors of a sample are all constants for the gradient, so they are multiplied before they meet the graph.
    if isinstance(trust_strength, Tensor) or trust_strength:
        trusted = adjust_logits(logits.detach(), log_prior, logit_adjust_tau - trust_prior_tau)
        trust = label_gap(trusted, target, ignore_index).mul_(trust_strength).neg_().exp_()
        scale = trust if scale is None else trust.mul_(scale)
    if reduction == "none":
        return loss if scale is None else loss * scale
    summed = loss.sum() if scale is None else torch.dot(loss, scale)
    # A batch of ignored rows alone is 0, not NaN.
    return summed if reduction == "sum" else summed / total.clamp(min=torch.finfo(total.dtype).tiny)


def _index_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, epsilon: float, ignore_index: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return smoothed cross-entropy to an index `[B]`, what each row counts (None: 1), and the sum of that."""
    valid = target != ignore_index
    counts: Tensor | None = None
    if epsilon or weight is not None:
        target = torch.where(valid, target, 0)
        counts = valid.to(logits.dtype) if weight is None else weight.index_select(0, target) * valid
    total = valid.sum(dtype=logits.dtype) if counts is None else counts.sum()
    if not epsilon:
        # Here torch gives 0 for ignored rows. Where they were pointed at class 0, their count is 0.
        return F.cross_entropy(logits, target, reduction="none", ignore_index=ignore_index), counts, total
    # The smoothed one-hot row, written out: the same numbers as `label_smoothing=epsilon` in three quarters of its time.
    rest = epsilon / logits.shape[1]
    smoothed = torch.full_like(logits, rest, requires_grad=False).scatter_(1, target.unsqueeze(1), 1.0 - epsilon + rest)
    return F.cross_entropy(logits, smoothed, reduction="none"), counts, total


def _soft_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, epsilon: float) -> tuple[Tensor, None, Tensor]:
    """Return cross-entropy to the weighted, smoothed distribution `[B]`, None (its rows hold the weight), and its sum."""
    weighted = target if weight is None else target * weight
    size = weighted.sum(dim=1)
    if epsilon:
        weighted = (1.0 - epsilon) * weighted + (epsilon / logits.shape[1]) * size.unsqueeze(1)
    return F.cross_entropy(logits, weighted, reduction="none"), None, size.sum()


def sample_trust(logits: Tensor, target: Tensor, strength: float | Tensor, ignore_index: int = -100) -> Tensor:
    """Compute exp(-strength * gap), gap = largest logit - the label's: (p_y / max p)^strength without a softmax; detached.

    Shape:
        logits: `[B, C]`.
        target: `[B]` int or `[B, C]` float (then the label's logit is log sum_c Y_c exp(logit_c)).
        output: `[B]` in [0, 1]; 1 for ignored rows.
    """
    gap = label_gap(logits.detach(), target, ignore_index)
    if not target.is_floating_point():
        gap = gap.masked_fill_(target == ignore_index, 0.0)
    return gap.mul_(strength).neg_().exp_()


def label_gap(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Return how far the label's logit lies below the largest, `[B]`, 0 or more; any such number for ignored rows."""
    best = logits.amax(dim=1)
    if target.is_floating_point():
        gap = best - torch.logsumexp(target.to(logits.dtype).log() + logits, dim=1)
    else:
        gap = F.nll_loss(logits, target.long(), reduction="none", ignore_index=ignore_index).add_(best)  # best - the label's
    return gap.clamp_(min=0.0)  # a soft row may sum to a little over 1


def adjust_logits(logits: Tensor, log_prior: Tensor | None, tau: float) -> Tensor:
    """Add tau times the log class shares; the logits themselves where tau is 0."""
    return logits if log_prior is None or not tau else torch.add(logits, log_prior, alpha=tau)


def full_precision(logits: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32: a log-softmax in half precision loses the third digit."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def smoothing_epsilon(trust_factor: float | None, balance_base: float = 10.0, balance_factor: float | None = None) -> float:
    """Return label smoothing's epsilon, given directly or as `balance_base ** -balance_factor`."""
    check_number("balance_base", balance_base, lambda v: v > 1, "above 1, such as 10")
    if balance_factor is None:
        epsilon = 0.0 if trust_factor is None else trust_factor
        return check_number("trust_factor", epsilon, lambda v: 0 <= v < 1, "in [0, 1), label smoothing's epsilon (0: off)")
    if trust_factor is not None:
        raise ConfigError(
            f"loss.trust_factor={trust_factor} and loss.balance_factor={balance_factor} both give the trust factor; one may. "
            "Use loss.trust_factor=null or loss.balance_factor=null."
        )
    check_number("balance_factor", balance_factor, lambda v: v > 0, "above 0, such as 1 to 5, or null")
    return float(balance_base ** -float(balance_factor))
