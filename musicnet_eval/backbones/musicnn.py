"""`musicnn`: first filters as tall or as long as musical knowledge says, for small data. Layer 3."""

from __future__ import annotations

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

HEIGHTS = (0.4, 0.7)  # of the vertical filters, share of all bands
LENGTHS = (128, 64, 32)  # of the horizontal filters, frames


class _Filters(nn.Module):
    """One kind of first filters; the maximum over bands is kept, `[B, K, F, N]` → `[B, maps, N]`.

    Args:
        in_chans: Channels K.
        maps: Filters.
        kernel: (bands, frames) that a filter sees. Frames are padded, so that none are lost.
    """

    def __init__(self, in_chans: int, maps: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, maps, kernel)
        self.norm = nn.BatchNorm2d(maps)
        self.before, self.after = (kernel[1] - 1) // 2, kernel[1] // 2

    def forward(self, image: Tensor) -> Tensor:
        heard: Tensor = self.norm(F.relu(self.conv(F.pad(image, (self.before, self.after)))))
        return heard.amax(dim=2)


class _Frames(nn.Module):
    """A convolution over seven frames: `[B, in_chans, N]` → `[B, maps, N]`."""

    def __init__(self, in_chans: int, maps: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_chans, maps, 7, padding=3)
        self.norm = nn.BatchNorm1d(maps)

    def forward(self, frames: Tensor) -> Tensor:
        heard: Tensor = self.norm(F.relu(self.conv(frames)))
        return heard


class Musicnn(nn.Module):
    """Classify by vertical filters (timbre), horizontal ones (rhythm), three convolutions over frames, and their statistics.

    Authors' input: 96 log-mel bands of 3 s at 16 kHz, 187 frames; the lengths of filters are in such frames of 16 ms.

    Args:
        num_classes: Number of scores.
        in_chans: Channels K.
        img_size: `(F, N)`, any.
        vertical: Filters of each height.
        horizontal: Filters of each length.
        maps: Feature maps of each convolution over frames.
        hidden: Units of the layer before the head.
        drop_rate: Dropout before and after that layer.

    Shape:
        input: `[B, K, F, N]`. output: `[B, num_classes]`.

    Reference:
        Pons and Serra, "musicnn: Pre-trained convolutional neural networks for music audio tagging", ISMIR 2019, late
        breaking (arXiv:1909.06654); Pons et al., "End-to-end learning for music audio tagging at scale", ISMIR 2018.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        img_size: tuple[int, int],
        vertical: int,
        horizontal: int,
        maps: int,
        hidden: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_chans)
        heights = [max(1, int(share * img_size[0])) for share in HEIGHTS]
        self.front = nn.ModuleList(
            [_Filters(in_chans, vertical, (height, 7)) for height in heights]
            + [_Filters(in_chans, horizontal, (1, length)) for length in LENGTHS]
        )
        width = len(HEIGHTS) * vertical + len(LENGTHS) * horizontal
        self.middle = nn.ModuleList([_Frames(width, maps), _Frames(maps, maps), _Frames(maps, maps)])
        features = 2 * (width + len(self.middle) * maps)
        self.dense = nn.Sequential(
            nn.BatchNorm1d(features),
            nn.Dropout(drop_rate),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.BatchNorm1d(hidden),
            nn.Dropout(drop_rate),
        )
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        image = self.norm(image)
        frames = torch.cat([filters(image) for filters in self.front], dim=1)
        first = self.middle[0](frames)
        second = first + self.middle[1](first)
        third = second + self.middle[2](second)
        told = torch.cat([frames, first, second, third], dim=1)
        scores: Tensor = self.head(self.dense(torch.cat([told.amax(dim=2), told.mean(dim=2)], dim=1)))
        return scores


@register_model
def musicnn(
    num_classes: int = 50,
    in_chans: int = 1,
    img_size: tuple[int, int] = (96, 187),
    vertical: int = 204,
    horizontal: int = 51,
    maps: int = 64,
    hidden: int = 200,
    drop_rate: float = 0.5,
) -> Musicnn:
    """Make musicnn in the authors' size, with random weights."""
    return Musicnn(num_classes, in_chans, img_size, vertical, horizontal, maps, hidden, drop_rate)
