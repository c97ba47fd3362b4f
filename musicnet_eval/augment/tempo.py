"""Steps on audio that change pitch or tempo: torchaudio's phase vocoder and resampler, song by song.

They cost far more than the others: a small `p` keeps their share of a training step small.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
import torchaudio.functional as AF
from numpy.random import Generator
from torch import Tensor, nn

from musicnet_eval.augment.draws import check_count, check_share, check_span, faded, on_share

FINEST = 128  # greatest denominator of a resampling ratio: within 1 cent, and torchaudio's kernels stay small


class PitchShift(nn.Module):
    """Move audio up or down in pitch at the same tempo.

    Args:
        semitones: Least and greatest shift, -12 to 12 semitones.
        n_fft: Window of the phase vocoder in samples, 64 to 16384; about 0.1 s suits music.
        p: Share of the batch.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` in stereo; kept.
    """

    on = "audio"
    stereo = True

    def __init__(self, semitones: Sequence[float] = (-2.0, 2.0), n_fft: int = 2048, p: float = 0.25) -> None:
        super().__init__()
        self.semitones = check_span("pitch_shift.semitones", semitones, -12, 12, "semitones")
        self.n_fft = check_count("pitch_shift.n_fft", n_fft, 64, 16384)
        self.p = check_share("pitch_shift.p", p)

    def forward(self, audio: Tensor, generator: Generator) -> Tensor:
        return on_share(audio, self.p, generator, self.change)

    def change(self, audio: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        drawn = generator.uniform(*self.semitones, len(audio)).tolist()
        ratios = [Fraction(2.0 ** (semitones / 12.0)).limit_denominator(FINEST) for semitones in drawn]
        return torch.stack([self._shifted(row, ratio) for row, ratio in zip(audio, ratios, strict=True)])

    def _shifted(self, row: Tensor, ratio: Fraction) -> Tensor:
        longer = stretched(row, 1.0 / float(ratio), self.n_fft)
        return fitted(AF.resample(longer, ratio.numerator, ratio.denominator), row.shape[-1])


class TimeStretch(nn.Module):
    """Make audio faster or slower at the same pitch.

    Slowed down, the segment's end is left out; sped up, its beginning comes again.

    Args:
        rate: Least and greatest speed, 0.5 to 2; above 1 is faster.
        n_fft: Window of the phase vocoder in samples, 64 to 16384; about 0.1 s suits music.
        p: Share of the batch.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` in stereo; kept.
    """

    on = "audio"
    stereo = True

    def __init__(self, rate: Sequence[float] = (0.85, 1.15), n_fft: int = 2048, p: float = 0.25) -> None:
        super().__init__()
        self.rate = check_span("time_stretch.rate", rate, 0.5, 2)
        self.n_fft = check_count("time_stretch.n_fft", n_fft, 64, 16384)
        self.p = check_share("time_stretch.p", p)

    def forward(self, audio: Tensor, generator: Generator) -> Tensor:
        return on_share(audio, self.p, generator, self.change)

    def change(self, audio: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        rates = generator.uniform(*self.rate, len(audio)).tolist()
        length = audio.shape[-1]
        parts = [row[..., : round(length * rate)] for row, rate in zip(audio, rates, strict=True)]  # no more than will be heard
        return torch.stack([fitted(stretched(part, rate, self.n_fft), length) for part, rate in zip(parts, rates, strict=True)])


def stretched(row: Tensor, rate: float, n_fft: int) -> Tensor:
    """Play one song `rate` times as fast at its own pitch and level: a phase vocoder alone makes chords 3 dB softer.

    Shape:
        row: `[T]`, or `[channels, T]`. output: the same, `round(T / rate)` long.
    """
    hop = n_fft // 4
    window = torch.hann_window(n_fft, device=row.device)
    advance = torch.linspace(0, torch.pi * hop, n_fft // 2 + 1, device=row.device).unsqueeze(1)
    spectrum = torch.stft(row, n_fft, hop, window=window, pad_mode="constant", return_complex=True)
    spectrum = AF.phase_vocoder(spectrum, rate, advance)
    played = torch.istft(spectrum, n_fft, hop, window=window, length=round(row.shape[-1] / rate))
    lost = torch.sqrt(row.square().mean() / played.square().mean().clamp_min(1e-20))
    return played * lost.clamp_max(2.0)  # no more than 6 dB: rounding errors must not become music


def fitted(row: Tensor, length: int) -> Tensor:
    """Cut a song to a length, or go on from its beginning until it has that length."""
    repeats = -(-length // row.shape[-1])
    return (row if repeats == 1 else torch.cat([faded(row)] * repeats, dim=-1))[..., :length]
