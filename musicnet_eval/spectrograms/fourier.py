"""Spectrograms straight from Fourier bins: `Stft` and `Chroma`. Layer 1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musicnet_eval.errors import ConfigError
from musicnet_eval.spectrograms.spectrum import Levels, Spectrum, check_band, full_precision, whole


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
        self.spectrum = Spectrum(n_fft, hop_length)
        self.levels = Levels(floor_db)

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        image: Tensor = self.levels(self.spectrum(audio))
        return image.unsqueeze(1)


class Chroma(nn.Module):
    """Make chromagrams: the power of each pitch class over all octaves, relative to the strongest of its frame.

    Args:
        sample_rate: Hz.
        n_fft: Window length in samples (Hann); long ones tell low pitches apart.
        hop_length: Samples between frames.
        n_chroma: Pitch classes F an octave, from C up; 12 are semitones.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 1, n_chroma, 1 + T // hop_length]` float32 in [0, 1], 0 for silence.

    Reference:
        Ellis, Chroma feature analysis and synthesis, 2007: Gaussian bumps around each pitch class (A = 440 Hz), the middle
        octaves weighing most (librosa: `chroma_stft` with `tuning=0`).
    """

    bank: Tensor

    def __init__(self, sample_rate: int = 22050, n_fft: int = 4096, hop_length: int = 512, n_chroma: int = 12) -> None:
        super().__init__()
        check_band(sample_rate, 0.0, None)
        self.spectrum = Spectrum(n_fft, hop_length)
        if not whole(n_chroma) or not 12 <= n_chroma <= 120 or n_chroma % 12:
            raise ConfigError(f"spectrogram.n_chroma={n_chroma} must be 12, 24, … 120 (semitones and parts of them).")
        self.register_buffer("bank", _chroma_bank(sample_rate, n_fft, n_chroma), persistent=False)

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        chroma = torch.matmul(self.bank, self.spectrum(audio))
        loudest = chroma.amax(dim=1, keepdim=True)
        return (chroma / loudest.clamp_min(torch.finfo(torch.float32).tiny)).unsqueeze(1)


def _chroma_bank(sample_rate: int, n_fft: int, n_chroma: int) -> Tensor:
    """Weigh Fourier bins by their distance from each pitch class, in bins of the octave; columns have norm 1."""
    frequency = torch.arange(1, n_fft, dtype=torch.float64) * (sample_rate / n_fft)
    pitch = n_chroma * torch.log2(frequency / (440.0 / 16))  # steps above A0
    pitch = torch.cat([pitch[:1] - 1.5 * n_chroma, pitch])  # 0 Hz has no pitch: far below the first bin
    width = torch.cat([pitch.diff().clamp_min(1.0), torch.ones(1, dtype=torch.float64)])
    half = n_chroma / 2
    distance = torch.remainder(pitch - torch.arange(n_chroma)[:, None] + half, n_chroma) - half
    bank = torch.exp(-0.5 * (2 * distance / width) ** 2)
    bank /= bank.norm(dim=0)
    bank *= torch.exp(-0.5 * ((pitch / n_chroma - 5.0) / 2.0) ** 2)  # centred five octaves above A0, two octaves wide
    from_c = bank.roll(-3 * (n_chroma // 12), dims=0)
    return from_c[:, : 1 + n_fft // 2].float().contiguous()
