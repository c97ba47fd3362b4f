"""Waveform → image: modules on torchaudio that run on the device, inside `on_after_batch_transfer`. Layer 1.

Every module maps `[B, T]` audio to `[B, K, F, N]` images in float32, whatever the precision of the network: a spectrogram's
dynamic range does not fit half precision. Levels are in decibels relative to full scale, floored so that silence is finite, and
mapped to about [-1, 1]. That an audio file becomes a spectrogram which is classified as an image is the paper's; that it is an
STFT is said by Seo et al. (IEEE Access 12, 2024) of ResNet50_trust; every number below is ours.
"""

from __future__ import annotations

import math

import torch
import torchaudio
from torch import Tensor, nn

from musicnet_eval.errors import ConfigError


class _Levels(nn.Module):
    """Power → level in dB, floored, then centred: 0 dB of power becomes +1 and the floor -1."""

    def __init__(self, floor_db: float) -> None:
        super().__init__()
        if not (math.isfinite(floor_db) and floor_db < 0):
            raise ConfigError(f"spectrogram.floor_db={floor_db} must be a negative level in dB, such as -80.")
        self.floor_db = floor_db

    def forward(self, power: Tensor) -> Tensor:
        level = 10.0 * torch.log10(power.clamp_min(10.0 ** (self.floor_db / 10.0)))
        return level * (-2.0 / self.floor_db) + 1.0


class LogMel(nn.Module):
    """Make log-mel spectrograms: mel-band power in dB, as one-channel images.

    Args:
        sample_rate: Hz.
        n_fft: Window length in samples (Hann).
        hop_length: Samples between frames.
        n_mels: Bands F.
        f_min: Lowest band edge, Hz.
        f_max: Highest band edge, Hz; half the sample rate when None.
        floor_db: Levels below this are set to it, dB re a full-scale sine.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 1, n_mels, 1 + T // hop_length]` float32.

    Reference:
        Triangular filters of height 1 on the mel scale of Slaney, Auditory Toolbox, 1998 (librosa: `htk=False, norm=None`).
    """

    bank: Tensor

    def __init__(
        self,
        sample_rate: int = 22050,
        n_fft: int = 2048,
        hop_length: int = 512,
        n_mels: int = 128,
        f_min: float = 0.0,
        f_max: float | None = None,
        floor_db: float = -80.0,
    ) -> None:
        super().__init__()
        if sample_rate < 1:
            raise ConfigError(f"data.sample_rate={sample_rate} must be a positive number of Hz, such as 22050.")
        top = sample_rate / 2 if f_max is None else f_max
        if not 0 <= f_min < top <= sample_rate / 2:
            raise ConfigError(
                f"spectrogram.f_min={f_min}, f_max={top} must satisfy 0 <= f_min < f_max <= {sample_rate / 2:g} Hz "
                "(half of data.sample_rate)."
            )
        if n_mels < 1 or n_mels > n_fft // 2:
            raise ConfigError(f"spectrogram.n_mels={n_mels} must be 1..{n_fft // 2} (half of spectrogram.n_fft={n_fft}).")
        self.spectrum = _Spectrum(n_fft, hop_length)
        bank = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, f_min, top, n_mels, sample_rate, mel_scale="slaney")
        self.register_buffer("bank", bank.T.contiguous(), persistent=False)
        self.levels = _Levels(floor_db)

    def forward(self, audio: Tensor) -> Tensor:
        with torch.autocast(audio.device.type, enabled=False):
            image: Tensor = self.levels(torch.matmul(self.bank, self.spectrum(audio.float())))
            return image.unsqueeze(1)


class Stft(nn.Module):
    """Make log-magnitude short-time Fourier spectrograms, as one-channel images: all bins from 0 Hz to half the sample rate.

    Args:
        n_fft: Window length in samples (Hann).
        hop_length: Samples between frames.
        floor_db: Levels below this are set to it, dB re a full-scale sine.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 1, n_fft // 2 + 1, 1 + T // hop_length]` float32.
    """

    def __init__(self, n_fft: int = 1024, hop_length: int = 512, floor_db: float = -80.0) -> None:
        super().__init__()
        self.spectrum = _Spectrum(n_fft, hop_length)
        self.levels = _Levels(floor_db)

    def forward(self, audio: Tensor) -> Tensor:
        with torch.autocast(audio.device.type, enabled=False):
            image: Tensor = self.levels(self.spectrum(audio.float()))
            return image.unsqueeze(1)


class _Spectrum(nn.Module):
    """Power spectrum of Hann-windowed frames, scaled so that a full-scale sine in the middle of a bin has power 1 (0 dB)."""

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        if not 16 <= n_fft <= 2**17 or n_fft & (n_fft - 1):
            raise ConfigError(f"spectrogram.n_fft={n_fft} must be a power of two from 16 to {2**17}, such as 1024 or 2048.")
        if not 1 <= hop_length <= n_fft:
            raise ConfigError(f"spectrogram.hop_length={hop_length} must be 1..{n_fft} (spectrogram.n_fft), or audio is skipped.")
        self.n_fft = n_fft
        self.power = torchaudio.transforms.Spectrogram(n_fft=n_fft, hop_length=hop_length, power=2.0, pad_mode="constant")
        self.scale = 4.0 / float(torch.hann_window(n_fft).sum()) ** 2

    def forward(self, audio: Tensor) -> Tensor:
        power: Tensor = self.power(audio)
        return power * self.scale
