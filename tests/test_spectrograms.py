from __future__ import annotations

import librosa
import numpy as np
import pytest
import scipy.signal
import torch

from musicnet_eval.errors import ConfigError
from musicnet_eval.spectrograms import LogMel, Stft

RATE = 22050


def audio(batch: int = 2, seconds: float = 1.0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, round(RATE * seconds), generator=torch.Generator().manual_seed(0))


def decibels(power: np.ndarray) -> np.ndarray:
    """Map power to the image's scale: 0 dB is 1, the floor of -80 dB is -1."""
    return 10 * np.log10(np.maximum(power, 1e-8)) / 40 + 1


def test_log_mel_equals_librosa() -> None:
    wave = audio()
    got = LogMel(RATE, 2048, 512, 64)(wave).numpy()[:, 0]
    for image, row in zip(got, wave.numpy().astype(np.float64), strict=True):
        power = librosa.feature.melspectrogram(
            y=row, sr=RATE, n_fft=2048, hop_length=512, n_mels=64, htk=False, norm=None, pad_mode="constant"
        )
        np.testing.assert_allclose(image, decibels(power * 4 / scipy.signal.get_window("hann", 2048).sum() ** 2), atol=1e-4)


def test_stft_equals_scipy() -> None:
    wave = audio(1)
    frames = scipy.signal.stft(
        wave[0].numpy().astype(np.float64), nperseg=1024, noverlap=512, window="hann", padded=False, boundary="zeros"
    )[2]
    got = Stft(1024, 512)(wave)[0, 0].numpy()
    want = decibels(4 * np.abs(frames) ** 2)  # SciPy scales by the window's sum; a sine of amplitude 1 then has magnitude 1/2
    count = min(got.shape[1], want.shape[1])
    np.testing.assert_allclose(got[:, :count], want[:, :count], atol=1e-4)


@pytest.mark.parametrize("bin_number", [10, 100, 400])
def test_a_full_scale_sine_reads_zero_decibels_in_its_bin(bin_number: int) -> None:
    time = torch.arange(RATE) / RATE
    image = Stft(1024, 512)(torch.sin(2 * torch.pi * bin_number * RATE / 1024 * time)[None])[0, 0, :, 10]
    assert image.argmax() == bin_number
    assert image.max().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("module", [LogMel(RATE, 1024, 256, 40), Stft(512, 256)])
class TestEvery:
    def test_shape_and_type(self, module: torch.nn.Module) -> None:
        image = module(audio(3).half())
        assert image.dtype == torch.float32
        assert image.shape[:2] == (3, 1)
        assert image.shape[3] == 1 + RATE // 256

    def test_batch_equals_singles(self, module: torch.nn.Module) -> None:
        wave = audio(4)
        torch.testing.assert_close(module(wave), torch.cat([module(row[None]) for row in wave]))

    def test_silence_clipping_and_one_sample_are_finite(self, module: torch.nn.Module) -> None:
        assert (module(torch.zeros(1, RATE)) == -1).all()  # the floor
        assert module(torch.ones(1, RATE) * 1e3).isfinite().all()
        assert module(torch.zeros(1, 1)).isfinite().all()

    def test_full_precision_inside_autocast(self, module: torch.nn.Module) -> None:
        wave = audio(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = module(wave)
        torch.testing.assert_close(inside, module(wave), rtol=0, atol=0)

    def test_ten_times_louder_is_twenty_decibels(self, module: torch.nn.Module) -> None:
        low, high = module(audio() * 0.1), module(audio())
        kept = low > -0.9
        torch.testing.assert_close((high - low)[kept], torch.full_like(low, 0.5)[kept], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_fft": 1000}, "n_fft=1000 must be a power of two"),
        ({"n_fft": -1}, "n_fft=-1"),
        ({"n_fft": 2**30}, "n_fft=1073741824"),
        ({"hop_length": 0}, "hop_length=0"),
        ({"hop_length": 4096}, "hop_length=4096"),
        ({"n_mels": 0}, "n_mels=0"),
        ({"n_mels": 5000}, "n_mels=5000"),
        ({"f_min": 9000.0, "f_max": 8000.0}, "f_min=9000.0"),
        ({"f_max": 20_000.0}, "f_max=20000.0"),
        ({"floor_db": 3.0}, "floor_db=3.0"),
    ],
)
def test_refusals(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogMel(RATE, **options)  # type: ignore[arg-type]
