"""The yardstick: what the average spectrum and its spread tell. Layer 3."""

from __future__ import annotations

import torch
from timm.models import register_model
from torch import Tensor, nn


class StatsLinear(nn.Module):
    """Classify by the mean and standard deviation of each band over time and one linear layer: the honest yardstick.

    It hears the average spectrum and its spread, neither melody nor rhythm. A network that does not beat it has not shown that it
    hears more. The statistics are standardised by batch norm without scale, so that one learning rate suits all bands.

    Args:
        num_classes: Number of scores.
        in_chans: Channels K.
        img_size: `(F, N)`.

    Shape:
        input: `[B, K, F, N]`. output: `[B, num_classes]`.
    """

    def __init__(self, num_classes: int, in_chans: int, img_size: tuple[int, int]) -> None:
        super().__init__()
        features = 2 * in_chans * img_size[0]
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.head = nn.Linear(features, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(image, dim=3)
        scores: Tensor = self.head(self.norm(torch.cat([mean, deviation], dim=1).flatten(1)))
        return scores


@register_model
def stats_linear(num_classes: int = 10, in_chans: int = 1, img_size: tuple[int, int] = (128, 128)) -> StatsLinear:
    """Make `StatsLinear`; registered with timm, as an own network of yours would be."""
    return StatsLinear(num_classes, in_chans, img_size)
