"""What all spectrograms rest on: the power spectrum of windowed frames, levels in decibels, and full precision. Layer 1."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from musicnet_eval.errors import ConfigError


def full_precision(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Let a `forward` compute in float32, also within autocast: a spectrogram's dynamic range does not fit half precision."""

    @functools.wraps(forward)
    def exact(self: Any, audio: Tensor) -> Tensor:
        with torch.autocast(audio.device.type, enabled=False):
            return forward(self, audio.float())

    return exact


class Levels(nn.Module):
    """Map power to level in dB, floored, then centred: 0 dB of power becomes +1 and the floor -1.

    Args:
        floor_db: Levels below this are set to it, dB re a full-scale sine.
    """

    def __init__(self, floor_db: float) -> None:
        super().__init__()
        check_floor(floor_db)
        self.floor_db = floor_db

    def forward(self, power: Tensor) -> Tensor:
        level = 10.0 * torch.log10(power.clamp_min(10.0 ** (self.floor_db / 10.0)))
        return level * (-2.0 / self.floor_db) + 1.0


class Spectrum(nn.Module):
    """Take the spectrum of Hann-windowed frames, scaled so that a full-scale sine in the middle of a bin reads 1.

    Args:
        n_fft: Window length in samples.
        hop_length: Samples between frames.
        power: Exponent of the magnitude: 2 for power, 1 for magnitude.

    Shape:
        input: `[B, T]`. output: `[B, n_fft // 2 + 1, 1 + T // hop_length]`.
    """

    def __init__(self, n_fft: int, hop_length: int, power: float = 2.0) -> None:
        super().__init__()
        if not whole(n_fft) or not 16 <= n_fft <= 2**17 or n_fft & (n_fft - 1):
            raise ConfigError(f"spectrogram.n_fft={n_fft} must be a power of two from 16 to {2**17}, such as 1024 or 2048.")
        if not whole(hop_length) or not 1 <= hop_length <= n_fft:
            raise ConfigError(f"spectrogram.hop_length={hop_length} must be 1..{n_fft} (spectrogram.n_fft), or audio is skipped.")
        if not 0.1 <= power <= 4:
            raise ConfigError(f"spectrogram.power={power} must be from 0.1 to 4: 2 is power, 1 magnitude.")
        self.power = power
        self.fourier = torchaudio.transforms.Spectrogram(n_fft=n_fft, hop_length=hop_length, power=None, pad_mode="constant")
        self.fourier.window = self.fourier.window.clone()  # torch's is a part of a longer one, which an exported file cannot hold
        self.scale = 4.0 / float(torch.hann_window(n_fft).sum()) ** 2

    def forward(self, audio: Tensor) -> Tensor:
        bins: Tensor = self.fourier(audio)
        power = (bins.real.square() + bins.imag.square()) * self.scale  # a third of the time of abs(), which takes roots
        return power if self.power == 2 else power ** (self.power / 2)


def whole(value: Any) -> bool:
    """Say whether a config value is a whole number, true and false being none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_floor(floor_db: float) -> None:
    """Refuse a floor that is no negative level.

    Raises:
        ConfigError: A floor of 0 dB or more, or one that is not finite.
    """
    if not (math.isfinite(floor_db) and floor_db < 0):
        raise ConfigError(f"spectrogram.floor_db={floor_db} must be a negative level in dB, such as -80.")


def check_band(sample_rate: int, f_min: float, f_max: float | None) -> float:
    """Refuse a band that does not lie below half the sample rate, and give its upper end in Hz.

    Raises:
        ConfigError: A sample rate below 1, or band edges out of order or range.
    """
    if sample_rate < 1:
        raise ConfigError(f"data.sample_rate={sample_rate} must be a positive number of Hz, such as 22050.")
    top = sample_rate / 2 if f_max is None else f_max
    if not 0 <= f_min < top <= sample_rate / 2:
        raise ConfigError(
            f"spectrogram.f_min={f_min}, f_max={top} must satisfy 0 <= f_min < f_max <= {sample_rate / 2:g} Hz "
            "(half of data.sample_rate)."
        )
    return top
