from __future__ import annotations

import io
from collections.abc import Callable

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musicnet_eval.configs import CONF
from musicnet_eval.errors import ConfigError
from musicnet_eval.spectrograms import Chroma, Cqt, LogMel, LogMelDelta, MelPower, Mfcc, MultiResolution, Pcen, Stack, Stft

RATE = 22050
SMALL = {"sample_rate": RATE, "n_fft": 1024, "hop_length": 256, "n_mels": 40}
MAKE: dict[str, Callable[[], torch.nn.Module]] = {
    "log_mel": lambda: LogMel(**SMALL),
    "mel_power": lambda: MelPower(**SMALL),
    "stft": lambda: Stft(512, 256),
    "mfcc": lambda: Mfcc(20, **SMALL),
    "cqt": lambda: Cqt(RATE, 256, f_min=110.0, n_bins=72),
    "chroma": lambda: Chroma(RATE, 2048, 256),
    "pcen": lambda: Pcen(**SMALL),
    "multi_resolution": lambda: MultiResolution([1024, 2048], sample_rate=RATE, hop_length=256, n_mels=40),
    "log_mel_delta": lambda: LogMelDelta(**SMALL),
    "stack": lambda: Stack({"log_mel": LogMel(**SMALL), "chroma": Chroma(RATE, 2048, 512)}),
}
CHANNELS = {"multi_resolution": 2, "log_mel_delta": 3, "stack": 2}
every = pytest.mark.parametrize("name", MAKE)


def audio(batch: int = 2, seconds: float = 1.0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, round(RATE * seconds), generator=torch.Generator().manual_seed(0))


def sine(frequency: float, seconds: float = 1.0) -> torch.Tensor:
    return torch.sin(2 * torch.pi * frequency * torch.arange(round(RATE * seconds), dtype=torch.float64) / RATE).float()[None]


def decibels(power: np.ndarray) -> np.ndarray:
    """Map power to the image's scale: 0 dB is 1, the floor of -80 dB is -1."""
    return 10 * np.log10(np.maximum(power, 1e-8)) / 40 + 1


def librosa_mel(wave: torch.Tensor, power: float = 2.0) -> np.ndarray:
    """Compute mel bands in float64, a full-scale sine reading 1."""
    mel = librosa.feature.melspectrogram(
        y=wave.numpy().astype(np.float64),
        sr=RATE,
        n_fft=2048,
        hop_length=512,
        n_mels=64,
        htk=False,
        norm=None,
        pad_mode="constant",
        power=power,
        dtype=np.float64,
    )
    return mel * (2 / scipy.signal.get_window("hann", 2048).sum()) ** power


# --- against other libraries, in float64 --------------------------------------------------------------------------------------


def test_every_choice_is_tested() -> None:
    assert set(MAKE) == {file.stem for file in (CONF / "spectrogram").glob("*.yaml")}


def test_log_mel_equals_librosa() -> None:
    wave = audio(1)
    np.testing.assert_allclose(LogMel(RATE, 2048, 512, 64)(wave)[0, 0], decibels(librosa_mel(wave[0])), atol=1e-4)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_mel_power_equals_librosa(power: float) -> None:
    wave = audio(1)
    got = MelPower(RATE, 2048, 512, 64, power=power)(wave)[0, 0]
    np.testing.assert_allclose(got, librosa_mel(wave[0], power), rtol=1e-4)


def test_stft_equals_scipy() -> None:
    wave = audio(1)
    frames = scipy.signal.stft(
        wave[0].numpy().astype(np.float64), nperseg=1024, noverlap=512, window="hann", padded=False, boundary="zeros"
    )[2]
    got = Stft(1024, 512)(wave)[0, 0].numpy()
    want = decibels(4 * np.abs(frames) ** 2)  # SciPy scales by the window's sum; a sine of amplitude 1 then has magnitude 1/2
    count = min(got.shape[1], want.shape[1])
    np.testing.assert_allclose(got[:, :count], want[:, :count], atol=1e-4)


def test_mfcc_equals_librosa() -> None:
    wave = audio(1)
    want = librosa.feature.mfcc(S=decibels(librosa_mel(wave[0])), n_mfcc=20, dct_type=2, norm="ortho")
    np.testing.assert_allclose(Mfcc(20, sample_rate=RATE, n_mels=64)(wave)[0, 0], want, atol=1e-4)


@pytest.mark.parametrize("n_chroma", [12, 36])
def test_chroma_equals_librosa(n_chroma: int) -> None:
    wave = audio(1)
    want = librosa.feature.chroma_stft(
        y=wave[0].numpy().astype(np.float64),
        sr=RATE,
        n_fft=4096,
        hop_length=512,
        n_chroma=n_chroma,
        tuning=0.0,
        pad_mode="constant",
    )
    np.testing.assert_allclose(Chroma(RATE, 4096, 512, n_chroma)(wave)[0, 0], want, rtol=1e-4)


@pytest.mark.parametrize("seconds", [1.0, 13.0])  # less and more than one block of frames
def test_pcen_equals_librosa(seconds: float) -> None:
    wave = audio(1, seconds) * torch.linspace(0.01, 1, round(RATE * seconds))
    mel = librosa_mel(wave[0], power=1.0)
    frames = 0.4 * RATE / 512
    step = (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)
    begun = (1 - step) * mel[:, :1]  # the recent mean before the first frame is the first frame
    want = librosa.pcen(mel, sr=RATE, hop_length=512, gain=0.98, bias=2, power=0.5, time_constant=0.4, eps=1e-4, zi=begun)
    np.testing.assert_allclose(Pcen(sample_rate=RATE, n_mels=64)(wave)[0, 0], want, rtol=1e-4)


def test_deltas_equal_librosa() -> None:
    wave = audio(1)
    static = decibels(librosa_mel(wave[0]))
    slope = librosa.feature.delta(static, width=9, order=1, mode="nearest")
    want = np.stack([static, slope, librosa.feature.delta(slope, width=9, order=1, mode="nearest")])
    np.testing.assert_allclose(LogMelDelta(9, sample_rate=RATE, n_mels=64)(wave)[0], want, atol=1e-4)


def cqt_by_its_definition(wave: np.ndarray, hop: int, frequencies: np.ndarray) -> np.ndarray:
    """Sum wave × window × sinusoid around every frame, bin by bin, in float64; a full-scale sine reads 1."""
    step = 2 ** (1 / 12)
    quality = (step**2 + 1) / (step**2 - 1)
    padded = np.pad(wave, 40_000)
    power = np.zeros((len(frequencies), 1 + len(wave) // hop))
    for row, frequency in zip(power, frequencies, strict=True):
        length = quality * RATE / frequency
        time = np.arange(-int(length / 2), int(length / 2) + 1)
        window = 0.5 + 0.5 * np.cos(2 * np.pi * time / length)
        wavelet = window / window.sum() * np.exp(-2j * np.pi * frequency * time / RATE)
        for frame in range(len(row)):
            row[frame] = np.abs(2 * padded[40_000 + frame * hop + time] @ wavelet) ** 2
    return power


def test_cqt_equals_its_definition() -> None:
    wave = audio(1)
    frequencies = librosa.cqt_frequencies(84, fmin=librosa.note_to_hz("C1"))
    want = cqt_by_its_definition(wave[0].numpy().astype(np.float64), 512, frequencies)
    np.testing.assert_allclose(Cqt(RATE)(wave)[0, 0], decibels(want), atol=1e-4)


def test_cqt_agrees_with_librosa() -> None:
    """librosa's filters the audio octave by octave, which is not exact: a tenth of a decibel, where it is not near the floor."""
    time = torch.arange(3 * RATE) / RATE
    wave = 0.3 * torch.sin(2 * torch.pi * 440 * time) + 0.2 * torch.sin(2 * torch.pi * 130.8 * time)
    made = librosa.cqt(wave.numpy(), sr=RATE, hop_length=512, n_bins=84, sparsity=0, scale=False, pad_mode="constant")
    lengths = librosa.filters.wavelet_lengths(freqs=librosa.cqt_frequencies(84, fmin=librosa.note_to_hz("C1")), sr=RATE)[0]
    want = decibels((2 * np.abs(made) / lengths[:, None]) ** 2)[:, 30:100]
    got = Cqt(RATE)(wave[None])[0, 0].numpy()[:, 30:100]
    loud = want > 0
    assert loud.any(axis=1).sum() >= 4
    np.testing.assert_allclose(got[loud], want[loud], atol=0.1 / 40)


def test_resolutions_and_stacks_are_their_parts() -> None:
    wave = audio(1)
    parts = [LogMel(RATE, n_fft, 256, 40)(wave) for n_fft in (1024, 2048)]
    torch.testing.assert_close(MAKE["multi_resolution"]()(wave), torch.cat(parts, dim=1), rtol=0, atol=0)
    stacked = Stack({"a": LogMel(RATE, 1024, 256, 40), "none": None, "b": LogMel(RATE, 2048, 256, 40)})(wave)
    torch.testing.assert_close(stacked, torch.cat(parts, dim=1), rtol=0, atol=0)


# --- physics ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bin_number", [10, 100, 400])
def test_a_full_scale_sine_reads_zero_decibels_in_its_bin(bin_number: int) -> None:
    image = Stft(1024, 512)(sine(bin_number * RATE / 1024))[0, 0, :, 10]
    assert image.argmax() == bin_number
    assert image.max().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("bin_number", [12, 45, 83])
def test_a_full_scale_pitch_reads_zero_decibels_in_its_constant_q_bin(bin_number: int) -> None:
    image = Cqt(RATE)(sine(32.70319566257483 * 2 ** (bin_number / 12), seconds=2))[0, 0, :, 43]
    assert image.argmax() == bin_number
    assert image.max().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", ["log_mel", "mel_power", "pcen", "multi_resolution", "log_mel_delta", "stack"])
@pytest.mark.parametrize("frequency", [300.0, 1000.0, 5000.0])
def test_a_tone_peaks_in_its_mel_band(name: str, frequency: float) -> None:
    centres = librosa.mel_frequencies(42, fmin=0, fmax=RATE / 2)[1:-1]
    image = MAKE[name]()(sine(frequency))[0, 0, :, 40]
    assert abs(int(image.argmax()) - int(np.abs(centres - frequency).argmin())) <= 1
    assert image.max() > image.median()


@pytest.mark.parametrize(("note", "row"), [("A4", 9), ("C3", 0), ("F#5", 6)])
def test_a_note_peaks_in_its_pitch_class(note: str, row: int) -> None:
    assert Chroma(RATE)(sine(librosa.note_to_hz(note)))[0, 0, :, 20].argmax() == row


@pytest.mark.parametrize("name", ["log_mel", "stft", "cqt", "multi_resolution"])
def test_ten_times_louder_is_twenty_decibels(name: str) -> None:
    module = MAKE[name]()
    low, high = module(audio() * 0.1), module(audio())
    kept = low > -0.9
    torch.testing.assert_close((high - low)[kept], torch.full_like(low, 0.5)[kept], atol=1e-4, rtol=0)


def test_chroma_does_not_hear_loudness() -> None:
    torch.testing.assert_close(MAKE["chroma"]()(audio()), MAKE["chroma"]()(audio() * 0.01))


# --- what all of them keep ----------------------------------------------------------------------------------------------------


@every
class TestEvery:
    def test_shape_and_type(self, name: str) -> None:
        image = MAKE[name]()(audio(3).half())
        assert image.dtype == torch.float32
        assert image.shape[:2] == (3, CHANNELS.get(name, 1))
        assert image.shape[3] == 1 + RATE // 256

    def test_batch_equals_singles(self, name: str) -> None:
        module, wave = MAKE[name](), audio(4)
        torch.testing.assert_close(module(wave), torch.cat([module(row[None]) for row in wave]))

    def test_full_precision_inside_autocast(self, name: str) -> None:
        module, wave = MAKE[name](), audio(1)
        for lower in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype=lower):
                inside = module(wave)
            torch.testing.assert_close(inside, module(wave), rtol=0, atol=0)

    def test_silence_is_the_same_everywhere(self, name: str) -> None:
        image = MAKE[name]()(torch.zeros(1, RATE))
        assert (image == image[..., :1]).all()

    @pytest.mark.slow
    def test_export(self, name: str) -> None:
        module, wave = MAKE[name](), audio(2)
        shapes = ({0: torch.export.Dim("B", min=2, max=64)},)
        file = io.BytesIO()
        torch.export.save(torch.export.export(module, (wave,), dynamic_shapes=shapes), file)
        file.seek(0)
        exported = torch.export.load(file).module()
        torch.testing.assert_close(exported(audio(3)), module(audio(3)))

    @settings(deadline=None, max_examples=25)
    @given(
        samples=st.sampled_from([1, 2, 100, 255, 256, 257, 3000]),
        kind=st.sampled_from(["silence", "clipping", "impulse", "constant", "square", "noise"]),
        gain=st.sampled_from([1e-30, 1e-6, 1.0, 1e3]),
    )
    def test_finite_whatever_comes(self, name: str, samples: int, kind: str, gain: float) -> None:
        wave = {
            "silence": torch.zeros(samples),
            "clipping": (10 * torch.sin(torch.arange(samples) / 20)).clamp(-1, 1),
            "impulse": torch.nn.functional.one_hot(torch.tensor(samples // 2), samples).float(),
            "constant": torch.ones(samples),
            "square": (torch.arange(samples) % 2) * 2.0 - 1,
            "noise": torch.randn(samples, generator=torch.Generator().manual_seed(samples)),
        }[kind]
        assert MAKE[name]()(gain * wave[None]).isfinite().all()


# --- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_fft": 1000}, "n_fft=1000 must be a power of two"),
        ({"n_fft": -1}, "n_fft=-1"),
        ({"n_fft": 2**30}, "n_fft=1073741824"),
        ({"n_fft": "long"}, "n_fft=long"),
        ({"hop_length": 0}, "hop_length=0"),
        ({"hop_length": 4096}, "hop_length=4096"),
        ({"n_mels": 0}, "n_mels=0"),
        ({"n_mels": 5000}, "n_mels=5000"),
        ({"n_mels": 12.5}, "n_mels=12.5"),
        (
            {"n_mels": 200, "n_fft": 512},
            r"n_mels=200 leaves \d+ bands without a Fourier bin \(43.1 Hz apart .*n_fft=1024 or more",
        ),
        ({"f_min": 9000.0, "f_max": 8000.0}, "f_min=9000.0"),
        ({"f_max": 20_000.0}, "f_max=20000.0"),
        ({"floor_db": 3.0}, "floor_db=3.0"),
        ({"sample_rate": 0}, "data.sample_rate=0"),
    ],
)
def test_refusals(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogMel(**{"sample_rate": RATE, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MelPower(power=0.0), "power=0.0 must be from 0.1 to 4"),
        (lambda: Mfcc(65, n_mels=64), r"n_mfcc=65 must be 1..64 \(spectrogram.n_mels\)"),
        (lambda: LogMelDelta(4), "win_length=4 must be an odd number"),
        (lambda: MultiResolution([]), r"n_ffts=\[\] must list 1 to 16"),
        (lambda: MultiResolution(1024), "n_ffts=1024 must list"),  # type: ignore[arg-type]
        (lambda: MultiResolution([1024, 1000]), "n_fft=1000 must be a power of two"),
        (lambda: Pcen(time_constant=0.0), "time_constant=0.0 must be above 0"),
        (lambda: Pcen(gain=1.1), "gain=1.1"),
        (lambda: Pcen(floor_db=0.0), "floor_db=0.0"),
        (lambda: Chroma(n_chroma=13), "n_chroma=13 must be 12, 24"),
        (lambda: Cqt(n_bins=102), "n_bins=102 must be 1..100"),
        (lambda: Cqt(f_min=12_000.0), "f_min=12000.0"),
        (lambda: Cqt(f_min=0.0), "f_min=0.0 must be 1 Hz or more"),
        (lambda: Cqt(f_min=1.0, bins_per_octave=24, n_bins=10), "f_min=1 needs windows of"),
        (lambda: Cqt(bins_per_octave=0), "bins_per_octave=0"),
        (lambda: Cqt(hop_length=0), "hop_length=0"),
        (lambda: Stack({"a": None}), "names no spectrogram"),
    ],
)
def test_refusals_of_the_others(make: Callable[[], torch.nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
