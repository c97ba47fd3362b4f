"""Losses: pure functions below, `nn.Module`s above. Between backbone and optimiser in the flow; layer 1.

Every loss is called `loss(logits, target)` with logits `[B, C]` and a target that is `[B]` int (class index) or `[B, C]` float
(rows that sum to 1: mixup, CutMix, annotator shares; where a track has several labels, 0 and 1). Margin losses take cosines in
place of logits, and indices alone. Losses that need run-time facts take `num_classes` and `class_counts` (of the training split)
and say `_partial_: true` in `conf/loss`; plain ones work as they are. What a loss needs and takes it says by class attributes,
listed in `pairing.py`, where wrong pairings are refused. Plain and binary cross-entropy and label smoothing are torch's own.
Half-precision logits are computed in float32, float64 stays float64. `validate_args=False` skips what reads values of tensors.

What is the paper's and what is ours: the formula printed in the paper (Li et al., Multimedia Tools and Applications 81, 2022, DOI
10.1007/s11042-020-10465-9) was not available to us. The smoothing part of `BalancedTrustedLoss`
(`conf/loss/balanced_trusted.yaml`) is a reconstruction from third-party code; its sample trust and its class balance are ours.
"""

from musicnet_eval.losses.balanced_trusted import BalancedTrustedLoss, balanced_trusted_loss, sample_trust
from musicnet_eval.losses.baselines import (
    AsymmetricSingleLabelLoss,
    ConfidencePenaltyLoss,
    FocalLoss,
    GeneralizedCrossEntropyLoss,
    Poly1Loss,
    SymmetricCrossEntropyLoss,
)
from musicnet_eval.losses.class_balance import log_class_prior, make_class_weights
from musicnet_eval.losses.margins import CosineMarginLoss
from musicnet_eval.losses.multilabel import AsymmetricLoss

__all__ = [
    "AsymmetricLoss",
    "AsymmetricSingleLabelLoss",
    "BalancedTrustedLoss",
    "ConfidencePenaltyLoss",
    "CosineMarginLoss",
    "FocalLoss",
    "GeneralizedCrossEntropyLoss",
    "Poly1Loss",
    "SymmetricCrossEntropyLoss",
    "balanced_trusted_loss",
    "log_class_prior",
    "make_class_weights",
    "sample_trust",
]
