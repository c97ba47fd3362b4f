"""Steps on audio that keep pitch and tempo: level, polarity, noise, position, bands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchaudio.functional as AF
from numpy.random import Generator
from torch import Tensor, nn

from musicnet_eval.augment.draws import check_count, check_share, check_span, faded, noise_source, on_share, uniform

LOWEST = 20.0  # Hz: where noise begins; a steep slope would put nearly all of its power below hearing


class Gain(nn.Module):
    """Make audio louder or softer.

    Args:
        db: Least and greatest gain, -60 to 60 dB.
        p: Share of the batch.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` in stereo; kept.
    """

    on = "audio"
    stereo = True

    def __init__(self, db: Sequence[float] = (-12.0, 6.0), p: float = 0.5) -> None:
        super().__init__()
        self.db = check_span("gain.db", db, -60, 60, "dB")
        self.p = check_share("gain.p", p)

    def forward(self, audio: Tensor, generator: Generator) -> Tensor:
        return on_share(audio, self.p, generator, self.change)

    def change(self, audio: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        return audio * 10.0 ** (uniform(self.db, audio, generator) / 20.0)


class Polarity(nn.Module):
    """Turn audio upside down. No spectrogram of magnitudes shows it; mixtures of songs and networks on waveforms do.

    Args:
        p: Share of the batch.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` in stereo; kept.
    """

    on = "audio"
    stereo = True

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_share("polarity.p", p)

    def forward(self, audio: Tensor, generator: Generator) -> Tensor:
        return on_share(audio, self.p, generator, lambda rows, _: -rows)


class Noise(nn.Module):
    """Add coloured noise at a given ratio of powers; silence stays silent.

    Args:
        sample_rate: Hz.
        snr_db: Least and greatest ratio of the audio's power to the noise's, -20 to 120 dB.
        slope_db: Least and greatest slope of the noise's power spectrum above 20 Hz, -12 to 12 dB an octave: 0 is white, -3 pink,
            -6 brown, 3 blue, 6 violet.
        p: Share of the batch.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` in stereo; kept.
    """

    on = "audio"
    stereo = True

    def __init__(
        self,
        sample_rate: int,
        snr_db: Sequence[float] = (10.0, 40.0),
        slope_db: Sequence[float] = (-6.0, 0.0),
        p: float = 0.5,
    ) -> None:
        super().__init__()
        self.sample_rate = check_count("noise.sample_rate", sample_rate, 1000, 384_000)
        self.snr_db = check_span("noise.snr_db", snr_db, -20, 120, "dB")
        self.slope_db = check_span("noise.slope_db", slope_db, -12, 12, "dB an octave")
        self.p = check_share("noise.p", p)

    def forward(self, audio: Tensor, generator: Generator) -> Tensor:
        return on_share(audio, self.p, generator, self.change)

    def change(self, audio: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        frequency = torch.fft.rfftfreq(audio.shape[-1], 1.0 / self.sample_rate, device=audio.device)
        octaves = (frequency / LOWEST).clamp_min(1e-9).log2()
        shape = torch.where(octaves >= 0, 10.0 ** (uniform(self.slope_db, audio, generator) * octaves / 20.0), 0.0)
        # The spectrum of white Gaussian noise is Gaussian itself: drawn there, it needs one transform instead of two.
        source = noise_source(audio, generator)
        white = torch.randn(shape.shape, dtype=torch.complex64, device=audio.device, generator=source)
        noise = torch.fft.irfft(shape * white, n=audio.shape[-1])
        noisy: Tensor = AF.add_noise(audio, noise, uniform(self.snr_db, audio, generator).squeeze(-1))
        return noisy


class Shift(nn.Module):
    """Move audio in time, what leaves at one end coming in at the other, over a fade of a few milliseconds.

    Args:
        share: Least and greatest shift as a share of the segment, -1 to 1.
        p: Share of the batch.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` in stereo; kept.
    """

    on = "audio"
    stereo = True

    def __init__(self, share: Sequence[float] = (-0.5, 0.5), p: float = 0.5) -> None:
        super().__init__()
        self.share = check_span("shift.share", share, -1, 1)
        self.p = check_share("shift.p", p)

    def forward(self, audio: Tensor, generator: Generator) -> Tensor:
        return on_share(audio, self.p, generator, self.change)

    def change(self, audio: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        shifts = generator.uniform(*self.share, len(audio)) * audio.shape[-1]
        return torch.stack([row.roll(round(shift), dims=-1) for row, shift in zip(faded(audio), shifts.tolist(), strict=True)])


class BandFilter(nn.Module):
    """Cut the lows, the highs, or both: high-pass, low-pass or band-pass, as telephones, small speakers and old records do.

    The magnitude is a Butterworth filter's; the phase is zero. Corners are drawn evenly on a scale of octaves. The segment is
    filtered as a circle, so that a little of its end reaches its beginning.

    Args:
        sample_rate: Hz.
        f_low: Least and greatest corner of the high-pass, 1 to 192000 Hz; None leaves the lows.
        f_high: Least and greatest corner of the low-pass, 1 to 192000 Hz; None leaves the highs. Beyond half the sample rate a
            corner does next to nothing.
        order: Of each filter, 1 to 16: far from the corner it falls by 6 dB an octave times its order.
        p: Share of the batch.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` in stereo; kept.
    """

    on = "audio"
    stereo = True

    def __init__(
        self,
        sample_rate: int,
        f_low: Sequence[float] | None = (30.0, 300.0),
        f_high: Sequence[float] | None = (3000.0, 12_000.0),
        order: int = 2,
        p: float = 0.5,
    ) -> None:
        super().__init__()
        self.sample_rate = check_count("band_filter.sample_rate", sample_rate, 1000, 384_000)
        self.f_low = None if f_low is None else check_span("band_filter.f_low", f_low, 1, 192_000, "Hz, or null")
        self.f_high = None if f_high is None else check_span("band_filter.f_high", f_high, 1, 192_000, "Hz, or null")
        self.order = check_count("band_filter.order", order, 1, 16)
        self.p = check_share("band_filter.p", p)

    def forward(self, audio: Tensor, generator: Generator) -> Tensor:
        return on_share(audio, self.p, generator, self.change)

    def change(self, audio: Tensor, generator: Generator) -> Tensor:
        """Change every row."""
        frequency = torch.fft.rfftfreq(audio.shape[-1], 1.0 / self.sample_rate, device=audio.device)
        gain = torch.ones_like(frequency)
        for span, sign in ((self.f_low, -1), (self.f_high, 1)):
            if span is not None:
                corner = 2.0 ** uniform((math.log2(span[0]), math.log2(span[1])), audio, generator)
                # 1 / inf = 0: a high-pass lets nothing through at 0 Hz
                gain = gain * torch.rsqrt(1.0 + (frequency / corner) ** (2 * self.order * sign))
        filtered: Tensor = torch.fft.irfft(torch.fft.rfft(audio) * gain, n=audio.shape[-1])
        return filtered
