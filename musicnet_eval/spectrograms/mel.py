"""Spectrograms in mel bands: `LogMel`, `MelPower`, `Mfcc`, `Pcen`, `LogMelDelta`, `MultiResolution`. Layer 1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn

from musicnet_eval.errors import ConfigError
from musicnet_eval.spectrograms.spectrum import Levels, Spectrum, check_band, check_floor, full_precision, whole


class MelPower(nn.Module):
    """Make mel spectrograms on a linear scale, as one-channel images.

    Args:
        sample_rate: Hz.
        n_fft: Window length in samples (Hann).
        hop_length: Samples between frames.
        n_mels: Bands F; each holds at least one Fourier bin.
        f_min: Lowest band edge, Hz.
        f_max: Highest band edge, Hz; half the sample rate when None.
        power: Exponent of the magnitude: 2 for power, 1 for magnitude.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 1, n_mels, 1 + T // hop_length]` float32, 0 for silence.

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
        power: float = 2.0,
    ) -> None:
        super().__init__()
        top = check_band(sample_rate, f_min, f_max)
        self.spectrum = Spectrum(n_fft, hop_length, power)
        if not whole(n_mels) or not 1 <= n_mels <= n_fft // 2:
            raise ConfigError(f"spectrogram.n_mels={n_mels} must be 1..{n_fft // 2} (half of spectrogram.n_fft={n_fft}).")
        bank = _mel_bank(sample_rate, n_fft, n_mels, f_min, top)
        empty = int((bank.amax(dim=1) == 0).sum())
        if empty:
            raise ConfigError(
                f"spectrogram.n_mels={n_mels} leaves {empty} bands without a Fourier bin ({sample_rate / n_fft:.1f} Hz apart at "
                f"spectrogram.n_fft={n_fft}). Use fewer bands, or n_fft={2 * n_fft} or more."
            )
        self.register_buffer("bank", bank, persistent=False)
        self.parts = _parts(bank)

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        spectrum = self.spectrum(audio)
        bands = [torch.matmul(self.bank[bands, bins], spectrum[:, bins]) for bands, bins in self.parts]
        return torch.cat(bands, dim=1).unsqueeze(1)


def _mel_bank(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> Tensor:
    with warnings.catch_warnings():  # torchaudio warns of empty bands, which are refused above
        warnings.filterwarnings("ignore", message="At least one mel filterbank")
        bank: Tensor = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, f_min, f_max, n_mels, sample_rate, mel_scale="slaney"
        )
    return bank.T.contiguous()


def _parts(bank: Tensor, count: int = 16) -> list[tuple[slice, slice]]:
    """Cut a bank into rows of neighbouring bands, each with the bins that they need: most of a bank is zeros."""
    firsts = range(0, len(bank), count)
    used = [part.amax(dim=0).nonzero() for part in torch.split(bank, count)]
    return [(slice(f, f + count), slice(int(bins[0]), int(bins[-1]) + 1)) for f, bins in zip(firsts, used, strict=True)]


class LogMel(nn.Module):
    """Make log-mel spectrograms: mel-band power in dB, as one-channel images.

    Args:
        sample_rate: Hz.
        n_fft: Window length in samples (Hann).
        hop_length: Samples between frames.
        n_mels: Bands F; each holds at least one Fourier bin.
        f_min: Lowest band edge, Hz.
        f_max: Highest band edge, Hz; half the sample rate when None.
        floor_db: Levels below this are set to it, dB re a full-scale sine.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 1, n_mels, 1 + T // hop_length]` float32 from -1 (floor) to about 1.
    """

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
        self.mel = MelPower(sample_rate, n_fft, hop_length, n_mels, f_min, f_max)
        self.levels = Levels(floor_db)

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        image: Tensor = self.levels(self.mel(audio))
        return image


class Mfcc(nn.Module):
    """Make mel-frequency cepstral coefficients: the cosine transform of log-mel levels over bands, as one-channel images.

    Args:
        n_mfcc: Coefficients F, from the mean level up; at most `n_mels`.
        log_mel: Arguments of `LogMel`.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 1, n_mfcc, 1 + T // hop_length]` float32.

    Reference:
        Davis and Mermelstein, IEEE Trans. ASSP 28(4), 1980; orthonormal DCT-II.
    """

    transform: Tensor

    def __init__(self, n_mfcc: int = 40, **log_mel: Any) -> None:
        super().__init__()
        self.log_mel = LogMel(**log_mel)
        n_mels = self.log_mel.mel.bank.shape[0]
        if not whole(n_mfcc) or not 1 <= n_mfcc <= n_mels:
            raise ConfigError(f"spectrogram.n_mfcc={n_mfcc} must be 1..{n_mels} (spectrogram.n_mels).")
        transform = torchaudio.functional.create_dct(n_mfcc, n_mels, norm="ortho")
        self.register_buffer("transform", transform.T.contiguous(), persistent=False)

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        return torch.matmul(self.transform, self.log_mel(audio))


class LogMelDelta(nn.Module):
    """Make three-channel images of log-mel levels, their slope over time, and the slope's slope.

    Args:
        win_length: Frames over which a slope is fitted, odd, 3 or more.
        log_mel: Arguments of `LogMel`.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 3, n_mels, 1 + T // hop_length]` float32.

    Reference:
        Furui, IEEE Trans. ASSP 34(1), 1986: least-squares slopes, here a frame; edges repeat the outermost frame.
    """

    def __init__(self, win_length: int = 9, **log_mel: Any) -> None:
        super().__init__()
        if not whole(win_length) or not 3 <= win_length <= 999 or win_length % 2 == 0:
            raise ConfigError(f"spectrogram.win_length={win_length} must be an odd number of frames from 3 to 999, such as 9.")
        self.log_mel = LogMel(**log_mel)
        self.win_length = win_length

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        static = self.log_mel(audio)
        delta = torchaudio.functional.compute_deltas(static, self.win_length)
        return torch.cat([static, delta, torchaudio.functional.compute_deltas(delta, self.win_length)], dim=1)


class MultiResolution(nn.Module):
    """Make one log-mel channel for each of several window lengths: short ones resolve time, long ones frequency.

    Args:
        n_ffts: Window lengths in samples (Hann), one a channel: three make the input that ImageNet networks were made for.
        log_mel: Arguments of `LogMel` but `n_fft`.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, len(n_ffts), n_mels, 1 + T // hop_length]` float32.
    """

    def __init__(self, n_ffts: Sequence[int] = (1024, 2048, 4096), **log_mel: Any) -> None:
        super().__init__()
        if isinstance(n_ffts, (str, int)) or not 1 <= len(n_ffts) <= 16:
            raise ConfigError(f"spectrogram.n_ffts={n_ffts} must list 1 to 16 window lengths, as in [1024,2048,4096].")
        self.channels = nn.ModuleList(LogMel(n_fft=n_fft, **log_mel) for n_fft in n_ffts)

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        return torch.cat([channel(audio) for channel in self.channels], dim=1)


class Pcen(nn.Module):
    """Make mel spectrograms with per-channel energy normalisation: each band over its own recent mean, then compressed.

    Args:
        time_constant: Of the recent mean, seconds.
        gain: Exponent alpha of the recent mean, 0 to 1: how much of a band's loudness is taken out.
        bias: Delta, added before compression.
        exponent: r of the compression, above 0 and up to 1.
        floor_db: Bands whose recent mean is below this stay faint, dB re a full-scale sine.
        mel_power: Arguments of `MelPower` but `power`: it rests on magnitudes.

    Shape:
        input: `[B, T]` float audio in [-1, 1]. output: `[B, 1, n_mels, 1 + T // hop_length]` float32, 0 for silence.

    Reference:
        Wang et al., Trainable frontend for robust and far-field keyword spotting, ICASSP 2017, equations 1 and 2; the smoother's
        coefficient from the time constant as in Lostanlen et al., IEEE Signal Processing Letters 26(1), 2019.
    """

    BLOCK = 256  # frames smoothed by one product
    blend: Tensor
    carry: Tensor

    def __init__(
        self,
        time_constant: float = 0.4,
        gain: float = 0.98,
        bias: float = 2.0,
        exponent: float = 0.5,
        floor_db: float = -80.0,
        **mel_power: Any,
    ) -> None:
        super().__init__()
        for name, value, top in (("time_constant", time_constant, 60), ("exponent", exponent, 1), ("bias", bias, 1000)):
            if not 0 < value <= top:
                raise ConfigError(f"spectrogram.{name}={value} must be above 0 and no more than {top}.")
        if not 0 <= gain <= 1:
            raise ConfigError(f"spectrogram.gain={gain} must be from 0 (loudness stays) to 1 (it is taken out).")
        check_floor(floor_db)
        self.mel = MelPower(**mel_power, power=1.0)
        self.gain, self.bias, self.exponent = gain, bias, exponent
        self.floor = 10.0 ** (floor_db / 20)
        spectrum = self.mel.spectrum.fourier
        frames = time_constant * mel_power.get("sample_rate", 22050) / spectrum.hop_length
        step = ((1 + 4 * frames**2) ** 0.5 - 1) / (2 * frames**2)
        age = torch.arange(self.BLOCK, dtype=torch.float64)
        ages = age - age[:, None]  # of frame row as seen from frame column
        blend = torch.where(ages >= 0, step * (1 - step) ** ages, 0)
        self.register_buffer("blend", blend.float(), persistent=False)
        self.register_buffer("carry", ((1 - step) ** (age + 1)).float(), persistent=False)

    @full_precision
    def forward(self, audio: Tensor) -> Tensor:
        energy = self.mel(audio)
        calm = energy / (self.floor + self._recent_mean(energy)) ** self.gain
        image: Tensor = (calm + self.bias) ** self.exponent - self.bias**self.exponent
        return image

    def _recent_mean(self, energy: Tensor) -> Tensor:
        """Smooth over time: M[t] = (1 - s) M[t-1] + s E[t], begun by M[-1] = E[0]; a product with all weights for each block."""
        last, smooth = energy[..., :1], []
        for block in torch.split(energy, self.BLOCK, dim=-1):
            count = block.shape[-1]
            smooth.append(block @ self.blend[:count, :count] + last * self.carry[:count])
            last = smooth[-1][..., -1:]
        return torch.cat(smooth, dim=-1)
