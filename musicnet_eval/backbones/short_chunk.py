"""`short_chunk_cnn` and `short_chunk_cnn_res`: seven small convolutions, the strong baseline of music tagging. Layer 3."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from musicnet_eval.backbones.checks import check_least

Block = Callable[[int, int], nn.Module]


def pooled(in_chans: int, out_chans: int) -> nn.Module:
    """Make a 3×3 convolution with batch norm, ReLU and 2×2 max-pooling."""
    conv = nn.Conv2d(in_chans, out_chans, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chans), nn.ReLU(), nn.MaxPool2d(2))


class Residual(nn.Module):
    """Add two 3×3 convolutions, the first with stride 2, to a third that takes the short way.

    Args:
        in_chans: Channels in.
        out_chans: Channels out.

    Shape:
        input: `[B, in_chans, F, N]`. output: `[B, out_chans, ⌈F/2⌉, ⌈N/2⌉]`.
    """

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        first = nn.Conv2d(in_chans, out_chans, 3, stride=2, padding=1)
        second = nn.Conv2d(out_chans, out_chans, 3, padding=1)
        self.long = nn.Sequential(first, nn.BatchNorm2d(out_chans), nn.ReLU(), second, nn.BatchNorm2d(out_chans))
        self.short = nn.Sequential(nn.Conv2d(in_chans, out_chans, 3, stride=2, padding=1), nn.BatchNorm2d(out_chans))

    def forward(self, image: Tensor) -> Tensor:
        return F.relu(self.long(image) + self.short(image))


class ShortChunkCNN(nn.Module):
    """Classify a chunk of a few seconds by seven blocks, each halving the image, and the maximum over what is left.

    Authors' input: 128 mel bands of 3.69 s, 231 frames.

    Args:
        block: Makes a block from its channels in and out.
        num_classes: Number of scores.
        in_chans: Channels K.
        width: Channels of the first two blocks; twice of the next four, four times of the last.
        drop_rate: Dropout before the head.

    Shape:
        input: `[B, K, F, N]`. output: `[B, num_classes]`.

    Reference:
        Won, Ferraro, Bogdanov and Serra, "Evaluation of CNN-based Automatic Music Tagging Models", SMC 2020 (arXiv:2006.00751).
    """

    def __init__(self, block: Block, num_classes: int, in_chans: int, width: int, drop_rate: float) -> None:
        super().__init__()
        widths = [in_chans, width, width, *[2 * width] * 4, 4 * width]
        self.norm = nn.BatchNorm2d(in_chans)
        self.blocks = nn.Sequential(*(block(a, b) for a, b in pairwise(widths)))
        self.dense = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.BatchNorm1d(4 * width), nn.ReLU(), nn.Dropout(drop_rate))
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        features: Tensor = self.blocks(self.norm(image))
        scores: Tensor = self.head(self.dense(features.amax(dim=(2, 3))))
        return scores


@register_model
def short_chunk_cnn(
    num_classes: int = 50, in_chans: int = 1, img_size: tuple[int, int] = (128, 231), width: int = 128, drop_rate: float = 0.5
) -> ShortChunkCNN:
    """Make the short-chunk CNN with max-pooling."""
    check_least("short_chunk_cnn", img_size, 128, 128)
    return ShortChunkCNN(pooled, num_classes, in_chans, width, drop_rate)


@register_model
def short_chunk_cnn_res(
    num_classes: int = 50, in_chans: int = 1, img_size: tuple[int, int] = (128, 231), width: int = 128, drop_rate: float = 0.5
) -> ShortChunkCNN:
    """Make the short-chunk CNN with residual blocks; strides round up, so that any image leaves something."""
    del img_size
    return ShortChunkCNN(Residual, num_classes, in_chans, width, drop_rate)
