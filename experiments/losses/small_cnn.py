"""A small convolutional network for the loss study: 60 thousand parameters, seconds a run on one CPU core. A plugin."""

from __future__ import annotations

import torch
from timm.models import register_model
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Four convolutions of stride 2; mean and largest value of each channel over time and frequency; a linear layer.

    Args:
        num_classes: Number of scores.
        in_chans: Channels of the image.
        width: Channels of the first convolution; the others have two, four and four times as many.

    Shape:
        input: image `[B, in_chans, F, N]`. output: scores `[B, num_classes]`.
    """

    def __init__(self, num_classes: int, in_chans: int = 1, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = [nn.BatchNorm2d(in_chans)]
        for before, after in zip((in_chans, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * widths[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.features(image)
        scores: Tensor = self.head(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
        return scores


@register_model
def small_cnn(num_classes: int = 6, in_chans: int = 1, width: int = 16) -> nn.Module:
    """Make a `SmallCNN`."""
    return SmallCNN(num_classes, in_chans, width)
