"""`crnn`: convolutions that hear bands, a recurrent network that hears time. Layer 3."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from timm.models import register_model
from torch import Tensor, nn

from musicnet_eval.backbones.checks import check_least

POOLS = (2, 3, 4, 4)


class CRNN(nn.Module):
    """Classify by four convolutions, which leave few bands and frames, and two recurrent layers over the frames.

    Authors' input: 96 mel bands of 29 s, 1366 frames, of which 14 reach the recurrent layers. More than one band left is
    more features a frame (ours; theirs is always one).

    Args:
        num_classes: Number of scores.
        in_chans: Channels K.
        img_size: `(F, N)`, 96 or more of each.
        maps: Feature maps of the four convolutions.
        hidden: Units of each recurrent layer.
        drop_rate: Dropout before the head.
        block_drop_rate: Dropout after each convolution.

    Shape:
        input: `[B, K, F, N]`. output: `[B, num_classes]`.

    Reference:
        Choi, Fazekas, Sandler and Cho, "Convolutional Recurrent Neural Networks for Music Classification", ICASSP 2017
        (arXiv:1609.04243). Dropout as in the first author's implementation.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        img_size: tuple[int, int],
        maps: Sequence[int],
        hidden: int,
        drop_rate: float,
        block_drop_rate: float,
    ) -> None:
        super().__init__()
        check_least("crnn", img_size, prod(POOLS), prod(POOLS))
        self.norm = nn.BatchNorm2d(in_chans)
        blocks, bins = [], img_size[0]
        for a, b, pool in zip((in_chans, *maps), maps, POOLS, strict=False):
            layers = (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ELU(), nn.MaxPool2d(pool), nn.Dropout(block_drop_rate))
            blocks.append(nn.Sequential(*layers))
            bins //= pool
        self.blocks = nn.Sequential(*blocks)
        self.recurrent = nn.GRU(maps[-1] * bins, hidden, num_layers=2, batch_first=True)
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        frames = self.blocks(self.norm(image)).flatten(1, 2).transpose(1, 2)
        told, _ = self.recurrent(frames)
        scores: Tensor = self.head(self.drop(told[:, -1]))
        return scores


@register_model
def crnn(
    num_classes: int = 50,
    in_chans: int = 1,
    img_size: tuple[int, int] = (96, 1366),
    maps: Sequence[int] = (96, 195, 195, 195),
    hidden: int = 96,
    drop_rate: float = 0.3,
    block_drop_rate: float = 0.1,
) -> CRNN:
    """Make the CRNN of a million parameters; `maps` and `hidden` make the authors' other sizes."""
    return CRNN(num_classes, in_chans, img_size, maps, hidden, drop_rate, block_drop_rate)
