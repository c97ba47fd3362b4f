"""`Cqt`: a spectrogram whose bins are musical pitches. Layer 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from musicnet_eval.errors import ConfigError
from musicnet_eval.spectrograms.spectrum import Levels, check_band, full_precision, whole


class Cqt(nn.Module):
    """Make constant-Q spectrograms: levels of bins that are spaced, and as wide, as musical pitches, as one-channel images.

    Args:
        sample_rate: Hz.
        hop_length: Samples between frames.
        f_min: Centre of the lowest bin, Hz; 32.7 is C1.
        n_bins: Bins F.
        bins_per_octave: 12 are semitones.
        floor_db: Levels below this are set to it, dB re a full-scale sine.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 1, n_bins, 1 + T // hop_length]` float32 from -1 (floor) to about 1.

    Reference:
        Brown, J. Acoust. Soc. Am. 89(1), 1991, by its definition: each octave's frames times its windowed sinusoids. Bandwidth
        from neighbour to neighbour bin (librosa: `vqt(gamma=0)`).
    """

    LONGEST = 2**17  # samples of a window

    def __init__(
        self,
        sample_rate: int = 22050,
        hop_length: int = 512,
        f_min: float = 32.70319566257483,
        n_bins: int = 84,
        bins_per_octave: int = 12,
        floor_db: float = -80.0,
    ) -> None:
        super().__init__()
        check_band(sample_rate, f_min, None)
        if f_min < 1:
            raise ConfigError(f"spectrogram.f_min={f_min} must be 1 Hz or more: bins are spaced by ratios, and 32.7 is C1.")
        if not whole(bins_per_octave) or not 1 <= bins_per_octave <= 120:
            raise ConfigError(f"spectrogram.bins_per_octave={bins_per_octave} must be 1..120; 12 are semitones.")
        if not whole(hop_length) or not 1 <= hop_length <= self.LONGEST:
            raise ConfigError(f"spectrogram.hop_length={hop_length} must be 1..{self.LONGEST} samples, such as 512.")
        step = 2.0 ** (1 / bins_per_octave)
        width = (step - 1 / step) / (step + 1 / step)  # of a bin, over its frequency
        highest = sample_rate / 2 / (1 + width)
        most = 1 + math.floor(bins_per_octave * math.log2(highest / f_min)) if f_min < highest else 0
        if not whole(n_bins) or not 1 <= n_bins <= most:
            raise ConfigError(
                f"spectrogram.n_bins={n_bins} must be 1..{most}: from f_min={f_min:g} up, {bins_per_octave} an octave, no more "
                f"lie below half of data.sample_rate={sample_rate}."
            )
        if sample_rate / (width * f_min) > self.LONGEST:
            raise ConfigError(
                f"spectrogram.f_min={f_min:g} needs windows of {sample_rate / (width * f_min):.0f} samples at "
                f"bins_per_octave={bins_per_octave}; {self.LONGEST} is the most. Raise f_min or use fewer bins_per_octave."
            )
        frequency = f_min * 2.0 ** (torch.arange(n_bins, dtype=torch.float64) / bins_per_octave)
        self.hop_length = hop_length
        self.octaves = nn.ParameterList(
            nn.Parameter(_sinusoids(octave / sample_rate, width), requires_grad=False)
            for octave in torch.split(frequency, bins_per_octave)
        )
        self.levels = Levels(floor_db)

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        image: Tensor = self.levels(torch.cat([self._power(audio, octave) for octave in self.octaves], dim=1))
        return image.unsqueeze(1)

    def _power(self, audio: Tensor, octave: Tensor) -> Tensor:
        reach = octave.shape[0] // 2
        frames = nn.functional.pad(audio, (reach, reach)).unfold(-1, octave.shape[0], self.hop_length)
        cosine, sine = (frames @ octave).transpose(1, 2).chunk(2, dim=1)
        return cosine.square() + sine.square()


def _sinusoids(frequency: Tensor, width: float) -> Tensor:
    """Make the windowed cosines and sines `[samples, 2 × bins]` of one octave, a full-scale sine reading 1.

    Args:
        frequency: Of each bin, cycles a sample.
        width: Of each bin, over its frequency; a window lasts `1 / width` periods.
    """
    length = 1 / (width * frequency[:, None])
    reach = math.ceil(float(length.max()) / 2)
    time = torch.arange(-reach, reach + 1, dtype=torch.float64)
    window = torch.where(time.abs() < length / 2, 1 + torch.cos(2 * torch.pi * time / length), 0)
    window *= 2 / window.sum(dim=1, keepdim=True)
    phase = 2 * torch.pi * frequency[:, None] * time
    return torch.cat([window * torch.cos(phase), window * torch.sin(phase)]).T.float().contiguous()
