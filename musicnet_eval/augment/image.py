"""Steps on images that keep their labels: masks, warps, gains of bands, crops. The same for all channels of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.nn import functional as F

from musicnet_eval.augment.draws import check_count, check_number, check_share, check_span, on_share, there, uniform
from musicnet_eval.errors import ConfigError


class SpecAugment(nn.Module):
    """Warp an image in time, then hide some of its bands and frames.

    Args:
        freq_masks: How many stripes of bands are hidden, 0 to 16.
        freq_share: Greatest width of such a stripe as a share of all bands, 0 to 1; each is drawn from 0 on.
        time_masks: How many stripes of frames are hidden, 0 to 16.
        time_share: Greatest width of such a stripe as a share of all frames, 0 to 1.
        time_warp: Greatest distance that a moment is moved, as a share of all frames, 0 to 0.5; 0 leaves the warp out.
        value: What stands in the stripes: `mean`, that of the image (each channel's own), or a number.
        p: Share of the batch.

    Shape:
        image: `[B, K, F, N]`, kept.

    Reference:
        Park et al.: "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", Interspeech 2019. Widths
        as shares are ours: one setting for images of any size.
    """

    on = "image"

    def __init__(
        self,
        freq_masks: int = 2,
        freq_share: float = 0.2,
        time_masks: int = 2,
        time_share: float = 0.2,
        time_warp: float = 0.0,
        value: float | str = "mean",
        p: float = 1.0,
    ) -> None:
        super().__init__()
        self.freq_masks = check_count("specaugment.freq_masks", freq_masks, 0, 16)
        self.freq_share = check_share("specaugment.freq_share", freq_share)
        self.time_masks = check_count("specaugment.time_masks", time_masks, 0, 16)
        self.time_share = check_share("specaugment.time_share", time_share)
        self.time_warp = check_number("specaugment.time_warp", time_warp, 0, 0.5)
        self.value = value if value == "mean" else _check_value(value)
        self.p = check_share("specaugment.p", p)

    def forward(self, image: Tensor, generator: Generator) -> Tensor:
        return on_share(image, self.p, generator, self.change)

    def change(self, image: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        if self.time_warp:
            image = warp(image, self.time_warp, generator)
        bands = stripes(image, image.shape[2], self.freq_masks, self.freq_share, generator)
        frames = stripes(image, image.shape[3], self.time_masks, self.time_share, generator)
        hidden = bands[:, None, :, None] | frames[:, None, None, :]
        value = image.mean(dim=(2, 3), keepdim=True) if self.value == "mean" else image.new_tensor(self.value)
        return torch.where(hidden, value, image)


class FilterBankJitter(nn.Module):
    """Show the image that another filter bank would have given: bands moved in frequency, and each a little louder or softer.

    Args:
        warp: Greatest distance that a band is moved, as a share of all bands, 0 to 0.5.
        gain: Greatest gain in standard deviations of the image, 0 to 10, so that it fits any spectrogram and normalisation.
        knots: At how many bands, evenly spread, gains are drawn, 2 to 64; they are linear in between.
        p: Share of the batch.

    Shape:
        image: `[B, K, F, N]`, kept.

    Reference:
        Gains after Nam, Kim, Park: "FilterAugment: An Acoustic Environmental Data Augmentation Method", ICASSP 2022; the warp
        after Jaitly, Hinton: "Vocal Tract Length Perturbation (VTLP) improves speech recognition", ICML 2013 workshop. Even knots
        and the unit are ours.
    """

    on = "image"

    def __init__(self, warp: float = 0.05, gain: float = 0.3, knots: int = 6, p: float = 0.5) -> None:
        super().__init__()
        self.warp = check_number("filter_bank_jitter.warp", warp, 0, 0.5)
        self.gain = check_number("filter_bank_jitter.gain", gain, 0, 10, "standard deviations")
        self.knots = check_count("filter_bank_jitter.knots", knots, 2, 64)
        self.p = check_share("filter_bank_jitter.p", p)

    def forward(self, image: Tensor, generator: Generator) -> Tensor:
        return on_share(image, self.p, generator, self.change)

    def change(self, image: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        if self.warp:
            image = warp(image.mT, self.warp, generator).mT.contiguous()
        gain = uniform((-self.gain, self.gain), image, generator, 1, self.knots)
        gain = F.interpolate(gain, image.shape[2], mode="linear", align_corners=True).unsqueeze(3)
        return image + gain * image.std(dim=(1, 2, 3), correction=0, keepdim=True)


class RandomResizedCrop(nn.Module):
    """Cut a box out of an image and enlarge it to the whole: a little higher or lower, faster or slower.

    Args:
        scale: Least and greatest share of the area that is kept, above 0 to 1.
        ratio: Least and greatest ratio of the kept share of frames to that of bands, 0.1 to 10, drawn evenly on a logarithmic
            scale; no side is longer than the image's.
        p: Share of the batch.

    Shape:
        image: `[B, K, F, N]`, kept.

    Reference:
        Szegedy et al.: "Going Deeper with Convolutions", CVPR 2015; on spectrograms
        Niizumi et al.: "BYOL for Audio", IJCNN 2021.
    """

    on = "image"

    def __init__(self, scale: Sequence[float] = (0.6, 1.0), ratio: Sequence[float] = (0.75, 1.333), p: float = 0.5) -> None:
        super().__init__()
        self.scale = check_span("random_resized_crop.scale", scale, 0.01, 1)
        self.ratio = check_span("random_resized_crop.ratio", ratio, 0.1, 10)
        self.p = check_share("random_resized_crop.p", p)

    def forward(self, image: Tensor, generator: Generator) -> Tensor:
        return on_share(image, self.p, generator, self.change)

    def change(self, image: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        area = uniform(self.scale, image, generator, 1)
        ratio = there(self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** generator.random((len(image), 1)), image)
        side = torch.cat([area * ratio, area / ratio], dim=1).sqrt().clamp_max(1.0)  # of frames, of bands
        centre = uniform((-1.0, 1.0), image, generator, 2) * (1.0 - side)
        grid = F.affine_grid(
            torch.cat([torch.diag_embed(side), centre.unsqueeze(2)], dim=2), list(image.shape), align_corners=False
        )
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def stripes(image: Tensor, length: int, count: int, share: float, generator: Generator) -> Tensor:
    """Draw `count` stripes a row, each 0 to `share` of the length wide; true inside.

    Shape:
        output: `[B, length]` bool.
    """
    width = generator.integers(0, int(share * length + 1e-9), (len(image), count), endpoint=True)
    first = generator.integers(0, length - width, endpoint=True)
    place = torch.arange(length, device=image.device)
    inside = (place >= there(first, image).unsqueeze(2)) & (place < there(first + width, image).unsqueeze(2))
    return inside.any(dim=1)


def warp(image: Tensor, share: float, generator: Generator) -> Tensor:
    """Move one place of the last dimension to another, and stretch what lies on both sides; the ends stay where they are.

    Args:
        image: What is warped.
        share: Greatest distance of the move, as a share of the length, 0 to 0.5.
        generator: Of places and distances.

    Shape:
        image: `[B, K, F, N]`, kept.
    """
    last = image.shape[3] - 1
    old = uniform((share, 1.0 - share), image, generator, 1) * last
    new = old + uniform((-share, share), image, generator, 1) * last
    place = torch.arange(last + 1, device=image.device, dtype=image.dtype)
    before = place * old / new.clamp_min(1e-6)
    after = last - (last - place) * (last - old) / (last - new).clamp_min(1e-6)
    source = torch.where(place < new, before, after).clamp(0, last)  # where each place is read from
    low = source.floor().clamp_max(max(last - 1, 0))
    weight = (source - low)[:, None, None, :]
    index = low.long()[:, None, None, :].expand_as(image)
    return torch.lerp(image.gather(3, index), image.gather(3, (index + 1).clamp_max(last)), weight)


def _check_value(value: Any) -> float:
    if isinstance(value, str):
        raise ConfigError(f"augment.specaugment.value={value!r} must be a number, or mean.")
    return check_number("specaugment.value", value, -1e6, 1e6)
