"""Steps that mix the rows of a batch, and their labels with them: each row keeps a total label of what went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from musicnet_eval.augment.draws import check_alpha, check_share, drawn_rows, there
from musicnet_eval.errors import ConfigError


class Mixup(nn.Module):
    """Blend two images of the batch, and their labels, by the same shares.

    Args:
        alpha: Of the Beta distribution that the share of the first comes from, above 0: small values blend little, 1 evenly.
        p: Share of the batch.

    Shape:
        image: `[B, K, F, N]`, kept. label: `[B, C]` float, kept.

    Reference:
        Zhang, Cisse, Dauphin, Lopez-Paz: "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """

    on = "image"
    mixes_labels = True

    def __init__(self, alpha: float = 0.3, p: float = 1.0) -> None:
        super().__init__()
        self.alpha = check_alpha("mixup.alpha", alpha)
        self.p = check_share("mixup.p", p)

    def forward(self, image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        rows, others = pairs(image, self.p, generator)
        share = there(generator.beta(self.alpha, self.alpha, len(rows)), image)
        mixed = torch.lerp(image[others], image[rows], share.view(-1, 1, 1, 1))
        return image.index_copy(0, rows, mixed), blend(label, rows, others, share)


class Cutmix(nn.Module):
    """Paste a box of another image of the batch; labels go by the area that each has in the end.

    Args:
        alpha: Of the Beta distribution that the area left comes from, above 0; 1 is even.
        p: Share of the batch.

    Shape:
        image: `[B, K, F, N]`, kept. label: `[B, C]` float, kept.

    Reference:
        Yun et al.: "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019.
    """

    on = "image"
    mixes_labels = True

    def __init__(self, alpha: float = 1.0, p: float = 0.5) -> None:
        super().__init__()
        self.alpha = check_alpha("cutmix.alpha", alpha)
        self.p = check_share("cutmix.p", p)

    def forward(self, image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        rows, others = pairs(image, self.p, generator)
        side = np.sqrt(1.0 - generator.beta(self.alpha, self.alpha, len(rows)))
        bands, frames = (self._inside(image, length, side, generator) for length in image.shape[2:])
        box = bands.unsqueeze(2) & frames.unsqueeze(1)
        pasted = torch.where(box.unsqueeze(1), image[others], image[rows])
        left = 1.0 - box.to(image.dtype).mean(dim=(1, 2))
        return image.index_copy(0, rows, pasted), blend(label, rows, others, left)

    @staticmethod
    def _inside(image: Tensor, length: int, side: np.ndarray[Any, np.dtype[np.float64]], generator: Generator) -> Tensor:
        """Say which places of one dimension lie in the box; a box over the edge is cut there."""
        centre = generator.uniform(0, length, len(side))
        low, high = np.rint(centre - side * length / 2), np.rint(centre + side * length / 2)
        place = torch.arange(length, device=image.device)
        return (place >= there(low, image).unsqueeze(1)) & (place < there(high, image).unsqueeze(1))


class MixAudio(nn.Module):
    """Play two songs of the batch at once, at the level of one.

    Args:
        alpha: Of the Beta distribution that the share of the first comes from, above 0; 1 is even.
        within_class: Mix only songs of the same labels, which stay as they are (a song without such another stays too); else any,
            and labels are blended by the shares.
        p: Share of the batch.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` in stereo; kept. label: `[B, C]` float, or within a class also `[B]` int; kept.

    Reference:
        Tokozume, Ushiku, Harada: "Learning from Between-class Examples for Deep Sound Recognition", ICLR 2018 (eq. 1).
    """

    on = "audio"
    stereo = True

    def __init__(self, alpha: float = 1.0, within_class: bool = False, p: float = 0.5) -> None:
        super().__init__()
        if not isinstance(within_class, bool):
            raise ConfigError(f"augment.mix_audio.within_class={within_class!r} must be true or false.")
        self.alpha = check_alpha("mix_audio.alpha", alpha)
        self.mixes_labels = not within_class
        self.p = check_share("mix_audio.p", p)

    def forward(self, audio: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        rows, others = pairs(audio, self.p, generator)
        share = there(generator.beta(self.alpha, self.alpha, len(rows)), audio)
        if not self.mixes_labels:
            others = classmates(label, generator)[rows]
            share = torch.where(others == rows, 1.0, share)
        first = share.view(-1, *(1,) * (audio.ndim - 1))
        mixed = (first * audio[rows] + (1.0 - first) * audio[others]) * torch.rsqrt(first**2 + (1.0 - first) ** 2)
        return audio.index_copy(0, rows, mixed), blend(label, rows, others, share) if self.mixes_labels else label


def pairs(x: Tensor, p: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw the rows that are mixed, and for each another one, all by the same distance: batches are shuffled already."""
    others = np.roll(np.arange(len(x)), generator.integers(1, max(2, len(x))))
    rows = drawn_rows(len(x), p, generator)
    return there(rows, x), there(others[rows], x)


def classmates(label: Tensor, generator: Generator) -> Tensor:
    """Draw for each row another one of the same labels, or itself where there is none.

    Shape:
        label: `[B]` or `[B, C]`. output: `[B]` int.
    """
    held = label.view(len(label), -1)
    same = (held.unsqueeze(0) == held.unsqueeze(1)).all(dim=2)
    lot = there(generator.uniform(0.1, 1.0, same.shape), label).fill_diagonal_(0.05)
    return torch.where(same, lot, 0.0).argmax(dim=1)


def blend(label: Tensor, rows: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """Blend labels `[B, C]` of some rows with those of others, `share` `[R]` being what stays of the first."""
    mixed = torch.lerp(label[others], label[rows], share.to(label.dtype).unsqueeze(1))
    return label.index_copy(0, rows, mixed)
