"""`cnn14`: the convolutional network of PANNs, the common baseline of audio tagging. Layer 3."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models import register_model
from torch import Tensor, nn

from musicnet_eval.backbones.checks import check_least

WIDTHS = (64, 128, 256, 512, 1024, 2048)


def _twice(in_chans: int, out_chans: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for channels in (in_chans, out_chans):
        layers += [nn.Conv2d(channels, out_chans, 3, padding=1, bias=False), nn.BatchNorm2d(out_chans), nn.ReLU()]
    return layers


class Cnn14(nn.Module):
    """Classify by six pairs of 3×3 convolutions, averaged over bands; of frames the mean and the maximum are summed.

    Authors' input: 64 log-mel bands, standardised band by band by a batch norm, at 32 kHz.

    Args:
        num_classes: Number of scores.
        in_chans: Channels K.
        img_size: `(F, N)`, 32 or more of each.
        widths: Channels of the six pairs; the last is also that of the hidden layer.
        drop_rate: Dropout before and after the last hidden layer.
        block_drop_rate: Dropout after each pair of convolutions.

    Shape:
        input: `[B, K, F, N]`. output: `[B, num_classes]`.

    Reference:
        Kong, Cao, Iqbal, Wang, Wang and Plumbley, "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern
        Recognition", IEEE/ACM TASLP 28, 2020 (arXiv:1912.10211).
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int,
        img_size: tuple[int, int],
        widths: Sequence[int],
        drop_rate: float,
        block_drop_rate: float,
    ) -> None:
        super().__init__()
        check_least("cnn14", img_size, 32, 32)
        self.norm = nn.BatchNorm1d(in_chans * img_size[0])
        blocks = []
        for number, (a, b) in enumerate(zip((in_chans, *widths), widths, strict=False)):
            pool = [nn.AvgPool2d(2)] if number < len(widths) - 1 else []
            blocks.append(nn.Sequential(*_twice(a, b), *pool, nn.Dropout(block_drop_rate)))
        self.blocks = nn.Sequential(*blocks)
        self.dense = nn.Sequential(nn.Dropout(drop_rate), nn.Linear(widths[-1], widths[-1]), nn.ReLU(), nn.Dropout(drop_rate))
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        bands = self.norm(image.flatten(1, 2)).unflatten(1, image.shape[1:3])
        frames = self.blocks(bands).mean(dim=2)
        scores: Tensor = self.head(self.dense(frames.amax(dim=2) + frames.mean(dim=2)))
        return scores


@register_model
def cnn14(
    num_classes: int = 527,
    in_chans: int = 1,
    img_size: tuple[int, int] = (64, 1000),
    widths: Sequence[int] = WIDTHS,
    drop_rate: float = 0.5,
    block_drop_rate: float = 0.2,
) -> Cnn14:
    """Make CNN14 with random weights."""
    return Cnn14(num_classes, in_chans, img_size, widths, drop_rate, block_drop_rate)
