"""What is done with images, whatever made them: `FrontEnd` normalises, resizes, colours; `Stack` puts several together. Layer 1.

A front end is the same at training, evaluation and prediction. What it must learn of the training split, mean and spread of each
band, is given to it by `learn` and kept in its buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.spectrograms.spectrum import full_precision, whole

IMAGENET_MEAN, IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue in [0, 1]


class FrontEnd(nn.Module):
    """Turn audio into finished images: a spectrogram, normalised, resized and coloured as told.

    Args:
        spectrogram: Module `[B, T] → [B, K, F, N]`.
        normalize: `none`; `per_example` gives each image and channel mean 0 and deviation 1; `per_band` does so for each band
            over the training split, as learnt; `imagenet` stretches each image to [0, 1] and applies ImageNet's constants.
        size: `[F, N]` to resize to (bilinear, antialiased), each 1 to 4096; None keeps the spectrogram's own.
        colormap: Name of a colour table of matplotlib, for one-channel spectrograms: each image is stretched from its least to
            its greatest value, as when plotted, and coloured (K = 3). None leaves it grey.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, K, F, N]` float32.

    Raises:
        ConfigError: An unknown choice, or a size out of range.
    """

    def __init__(
        self,
        spectrogram: nn.Module,
        normalize: str = "none",
        size: Sequence[int] | None = None,
        colormap: str | None = None,
    ) -> None:
        super().__init__()
        choices = {"none": nn.Identity, "per_example": PerExample, "per_band": PerBand, "imagenet": ImageNet}
        if normalize not in choices:
            raise ConfigError(f"spectrogram.normalize={normalize!r} must be one of {', '.join(choices)}.")
        normalizer = choices[normalize]()
        steps: list[nn.Module] = [] if normalize == "imagenet" else [normalizer]
        steps += [Resize(size)] if size is not None else []
        steps += [Stretch()] if colormap is not None or normalize == "imagenet" else []
        steps += [Colors(colormap)] if colormap is not None else []
        steps += [normalizer] if normalize == "imagenet" else []
        self.spectrogram = spectrogram
        self.finish = nn.Sequential(*steps)
        self.bands = normalizer if isinstance(normalizer, PerBand) else None

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        image: Tensor = self.finish(self.spectrogram(audio))
        return image

    @property
    def must_learn(self) -> bool:
        """True while `per_band` waits for the statistics of the training split."""
        return self.bands is not None and self.bands.mean.numel() == 0

    def learn(self, statistics: Mapping[str, Any]) -> None:
        """Take in the `mean` and `sd` `[K, F]` of each band over the training split."""
        if self.bands is not None:
            self.bands.learn(statistics["mean"], statistics["sd"])

    @property
    def learnt(self) -> dict[str, list[list[float]]] | None:
        """Give what was learnt, as plain numbers for a record; None where nothing was to be."""
        if self.bands is None or self.must_learn:
            return None
        return {"mean": self.bands.mean[..., 0].tolist(), "sd": self.bands.sd[..., 0].tolist()}


class PerExample(nn.Module):
    """Give each image and channel mean 0 and standard deviation 1; a constant one becomes 0."""

    def forward(self, image: Tensor) -> Tensor:
        variance, mean = torch.var_mean(image, dim=(2, 3), correction=0, keepdim=True)
        return (image - mean) / spread(mean, variance.sqrt())


class PerBand(nn.Module):
    """Give each band mean 0 and standard deviation 1 over what was learnt from."""

    mean: Tensor
    sd: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0), persistent=False)  # a run keeps them in its record
        self.register_buffer("sd", torch.empty(0), persistent=False)

    def learn(self, mean: Any, sd: Any) -> None:
        """Take in mean and standard deviation, `[K, F]`."""
        self.mean = torch.as_tensor(mean, dtype=torch.float32)[..., None]
        self.sd = torch.as_tensor(sd, dtype=torch.float32)[..., None]

    def forward(self, image: Tensor) -> Tensor:
        if self.mean.shape[:2] != image.shape[1:3]:
            known = "has learnt nothing yet" if self.mean.numel() == 0 else f"knows {tuple(self.mean.shape[:2])}"
            raise ConfigError(
                f"spectrogram.normalize=per_band {known}, and the image's channels and bands are {tuple(image.shape[1:3])}. "
                "Statistics come from the training split (MusicDataModule.setup) or from a run (load_run)."
            )
        return (image - self.mean) / self.sd


def spread(mean: Tensor, sd: Tensor) -> Tensor:
    """Give the deviation to divide by: 1 where a value is constant but for rounding."""
    return torch.where(sd > 1e-5 * mean.abs() + 1e-12, sd, 1.0)


class Resize(nn.Module):
    """Resize images, bilinear and antialiased.

    Args:
        size: `[F, N]`, each 1 to 4096.
    """

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        listed = not isinstance(size, (str, int)) and len(size) == 2
        if not listed or not all(whole(side) and 1 <= side <= 4096 for side in size):
            raise ConfigError(f"spectrogram.size={size} must be two whole numbers from 1 to 4096, bands and frames: [224,224].")
        self.size = (size[0], size[1])

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[2:] == self.size:
            return image
        return F.interpolate(image, self.size, mode="bilinear", antialias=True)


class Stretch(nn.Module):
    """Map each image and channel to [0, 1], from its least to its greatest value, as plotting does; a constant one becomes 0."""

    def forward(self, image: Tensor) -> Tensor:
        low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
        return (image - low) / spread(high, high - low)


class Colors(nn.Module):
    """Look up one-channel images in [0, 1] in a colour table of matplotlib: red, green and blue in [0, 1].

    Args:
        colormap: Its name, such as viridis or magma.
    """

    table: Tensor

    def __init__(self, colormap: str) -> None:
        super().__init__()
        import matplotlib

        if colormap not in list(matplotlib.colormaps):
            raise ConfigError(
                f"spectrogram.colormap={colormap!r} is no colour table; {nearest(str(colormap), matplotlib.colormaps)}"
            )
        colors = matplotlib.colormaps[colormap](torch.linspace(0, 1, 256).numpy())[:, :3]
        self.register_buffer("table", torch.from_numpy(colors).float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] != 1:
            raise ConfigError(
                f"spectrogram.colormap colours one channel, and the spectrogram has {image.shape[1]}. "
                "Use spectrogram.colormap=null, or a spectrogram of one channel."
            )
        return self.table[(image[:, 0] * 255).round().long()].permute(0, 3, 1, 2)


class ImageNet(nn.Module):
    """Normalise images in [0, 1] as ImageNet networks were trained: three channels as red, green, blue; others as grey."""

    def forward(self, image: Tensor) -> Tensor:
        mean, sd = image.new_tensor(IMAGENET_MEAN), image.new_tensor(IMAGENET_SD)
        if image.shape[1] != 3:
            mean, sd = mean.mean(), sd.mean()
        return (image - mean.view(-1, 1, 1)) / sd.view(-1, 1, 1)


class Stack(nn.Module):
    """Stack the channels of several spectrograms, resized to the shape of the first.

    Args:
        channels: The spectrograms by name, in order; a null leaves one out.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, sum of K, F, N]` float32, F and N of the first.
    """

    def __init__(self, channels: Mapping[str, nn.Module | None]) -> None:
        super().__init__()
        self.channels = nn.ModuleDict({name: module for name, module in channels.items() if module is not None})
        if not self.channels:
            raise ConfigError("spectrogram.channels names no spectrogram; give one or more, as conf/spectrogram/stack.yaml does.")

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        first, *others = (channel(audio) for channel in self.channels.values())
        size = first.shape[2:]
        fitted = [i if i.shape[2:] == size else F.interpolate(i, size, mode="bilinear", antialias=True) for i in others]
        return torch.cat([first, *fitted], dim=1)


def make_images(front: nn.Module, audio: Tensor) -> Tensor:
    """Turn audio into images on the device where it lies; on a CPU one sound at a time, which stays in its cache.

    Args:
        front: Module `[B, T] → [B, K, F, N]`.
        audio: Float, in [-1, 1].

    Shape:
        audio: `[B, T]`, or `[B, 2, T]`. output: `[B, K, F, N]`, or `[B, 2K, F, N]`: the left side's image, then the right one's.
    """
    front = front.to(audio.device)
    sounds = audio.flatten(0, -2)
    with torch.no_grad():
        images: Tensor = torch.cat(
            [front(part) for part in torch.split(sounds, 1 if audio.device.type == "cpu" else len(sounds))]
        )
        return torch.unflatten(images, 0, (len(audio), -1)).flatten(1, 2)
