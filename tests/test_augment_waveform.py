"""Steps on audio, held to powers, spectra and tones that were measured by other means."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicnet_eval.augment import BandFilter, Gain, MixAudio, Noise, PitchShift, Polarity, Shift, TimeStretch

RATE = 22050


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def music(rows: int = 4, seconds: float = 1.0) -> Tensor:
    """Give chords with partials, each row another, at a level of about -20 dB."""
    time = torch.arange(round(seconds * RATE)) / RATE
    tones = [[f * k * 1.1**row for f in (220.0, 277.2, 329.6) for k in (1, 2, 3)] for row in range(rows)]
    return torch.stack([sum((torch.sin(2 * torch.pi * f * time + f) for f in row), torch.zeros(())) for row in tones]) * 0.03


def tone(hertz: float, seconds: float = 2.0) -> Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * RATE)) / RATE).unsqueeze(0)


def pitch(audio: Tensor) -> float:
    """Give the strongest frequency in Hz, from a finely padded spectrum of the middle."""
    middle = audio[len(audio) // 4 : 3 * len(audio) // 4].numpy().astype(float)
    size = 2**20
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), size))
    return float(spectrum.argmax()) * RATE / size


def decibels(audio: Tensor) -> Tensor:
    return 10 * torch.log10(audio.double().square().mean(dim=-1))


def test_gain_is_drawn_between_its_ends() -> None:
    audio = music(200, 0.05)
    gained = decibels(Gain((-12, 6), p=1)(audio, draw())) - decibels(audio)
    assert -12 <= float(gained.min()) < -11
    assert 5 < float(gained.max()) <= 6.001
    torch.testing.assert_close(decibels(Gain((3, 3), p=1)(audio, draw())) - decibels(audio), torch.full((200,), 3.0).double())


def test_polarity_turns_over() -> None:
    assert torch.equal(Polarity(p=1)(music(), draw()), -music())


@pytest.mark.parametrize("snr", [-10.0, 0.0, 10.0, 40.0])
def test_noise_has_the_ratio_of_powers_asked_for(snr: float) -> None:
    audio = music()
    noise = Noise(RATE, (snr, snr), (-6, 3), p=1)(audio, draw()).double() - audio.double()
    torch.testing.assert_close(decibels(audio) - decibels(noise), torch.full((4,), snr).double(), atol=0.02, rtol=0)


@pytest.mark.parametrize("slope", [-6.0, -3.0, 0.0, 3.0])
def test_noise_has_the_colour_asked_for(slope: float) -> None:
    audio = music(1, 20)
    noise = (Noise(RATE, (0, 0), (slope, slope), p=1)(audio, draw()) - audio)[0].numpy()
    frequency, power = scipy.signal.welch(noise, RATE, nperseg=8192)
    band = (frequency > 60) & (frequency < 10_000)
    found = np.polyfit(np.log2(frequency[band]), 10 * np.log10(power[band]), 1)[0]
    assert found == pytest.approx(slope, abs=0.2)
    spectrum = np.abs(np.fft.rfft(noise)) ** 2
    assert spectrum[: 19 * 20].sum() < 1e-6 * spectrum.sum()  # nothing below 20 Hz


def test_rows_get_noise_of_their_own() -> None:
    noise = Noise(RATE, (10, 10), (0, 0), p=1)(music(1).repeat(3, 1), draw()) - music(1)
    correlation = np.corrcoef(noise.numpy())
    assert np.abs(correlation - np.eye(3)).max() < 0.05


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize(("kind", "low", "high"), [("highpass", 500, None), ("lowpass", None, 2000), ("bandpass", 500, 2000)])
def test_filters_pass_tones_as_butterworths_do(kind: str, low: float | None, high: float | None, order: int) -> None:
    step = BandFilter(RATE, low and (low, low), high and (high, high), order, p=1)  # type: ignore[arg-type]
    for hertz in (50.0, 300.0, 500.0, 1000.0, 2000.0, 6000.0):
        audio = tone(hertz, 1.0)
        gain = float(decibels(step(audio, draw())[0]) - decibels(audio[0])) / 20
        expected = 1.0
        for corner, sort in ((low, "highpass"), (high, "lowpass")):
            if corner is not None:
                b, a = scipy.signal.butter(order, 2 * np.pi * corner, sort, analog=True)
                expected *= abs(scipy.signal.freqs(b, a, [2 * np.pi * hertz])[1][0])
        assert 10**gain == pytest.approx(expected, rel=1e-3, abs=1e-6), hertz


def test_filters_do_not_move_music_in_time() -> None:
    click = torch.zeros(1, 4001)
    click[0, 2000] = 1.0
    filtered = BandFilter(RATE, None, (2000, 2000), p=1)(click, draw())[0]
    assert int(filtered.argmax()) == 2000
    torch.testing.assert_close(filtered, filtered.flip(0), atol=1e-6, rtol=0)


def test_shift_rolls_and_fades_where_the_ends_meet() -> None:
    audio = music(1)
    length = audio.shape[-1]
    moved = Shift((0.25, 0.25), p=1)(audio, draw())[0]
    rolled = audio[0].roll(round(length / 4))
    joint = round(length / 4)
    away = torch.ones(length, dtype=torch.bool)
    away[joint - 256 : joint + 256] = False
    torch.testing.assert_close(moved[away], rolled[away])
    assert moved[joint - 1 : joint + 1].abs().max() < 1e-3
    shifts = {int(torch.cat([row, row]).argmax()) for row in Shift(p=1)(torch.eye(5000)[2500].repeat(50, 1), draw())}
    assert len(shifts) > 40
    assert min(shifts) >= 0


@pytest.mark.parametrize("semitones", [-12.0, -5.0, -0.5, 1.0, 2.0, 7.0, 12.0])
def test_pitch_shift_moves_a_tone_by_the_ratio(semitones: float) -> None:
    audio = tone(660.0)
    shifted = PitchShift((semitones, semitones), p=1)(audio, draw())
    assert shifted.shape == audio.shape
    assert 1200 * np.log2(pitch(shifted[0]) / 660.0) == pytest.approx(100 * semitones, abs=3)  # cents
    assert float(decibels(shifted[0]) - decibels(audio[0])) == pytest.approx(0, abs=0.5)


def onset(audio: Tensor) -> float:
    """Give the time in seconds when a sound becomes loud."""
    envelope: NDArray[np.float32] = np.convolve(audio.abs().numpy(), np.ones(256) / 256, "same")
    return float(np.argmax(envelope > 0.5 * envelope.max())) / RATE


@pytest.mark.parametrize("rate", [0.5, 0.85, 1.15, 2.0])
def test_time_stretch_keeps_pitch_and_moves_onsets(rate: float) -> None:
    audio = tone(660.0)
    begins = round(0.4 * RATE)
    audio[0, :begins] = 0
    stretched = TimeStretch((rate, rate), p=1)(audio, draw())[0]
    assert len(stretched) == audio.shape[-1]
    assert onset(stretched) == pytest.approx(0.4 / rate, abs=0.05)
    cents = 1200 * np.log2(pitch(stretched[: round(audio.shape[-1] / rate)]) / 660.0)
    assert cents == pytest.approx(0, abs=3)


def test_pitch_shift_keeps_onsets() -> None:
    audio = music(1, 2.0)
    audio[:, : round(0.8 * RATE)] = 0
    assert onset(PitchShift((3, 3), p=1)(audio, draw())[0]) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("step", [PitchShift((2, 2), p=1), TimeStretch((0.85, 0.85), p=1)])
def test_changing_chords_keep_their_level(step: PitchShift | TimeStretch) -> None:
    chords = torch.cat(list(music(8, 0.25))).unsqueeze(0)  # a phase vocoder alone makes these softer
    kept = chords[:, : round(0.85 * chords.shape[1])] if isinstance(step, TimeStretch) else chords
    assert float(decibels(step(chords, draw())[0]) - decibels(kept[0])) == pytest.approx(0, abs=0.1)


def test_what_is_sped_up_begins_again() -> None:
    audio = tone(660.0) * torch.linspace(1, 0, 2 * RATE)  # loud to soft
    twice = TimeStretch((2, 2), p=1)(audio, draw())[0]
    halves = decibels(twice.view(2, -1))
    assert float(halves[0] - halves[1]) == pytest.approx(0, abs=0.2)


# --- mixing -------------------------------------------------------------------------------------------------------------------


def test_mixed_songs_keep_their_level_and_labels_say_how_much_of_whom() -> None:
    audio = torch.from_numpy(draw(1).standard_normal((6, RATE))).float()
    label = torch.eye(6)
    mixed, soft = MixAudio(p=1)(audio, label, draw())
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))
    coefficients = torch.linalg.lstsq(audio.T, mixed.T).solution.T  # which songs are in each, measured
    shares = coefficients / coefficients.sum(dim=1, keepdim=True)
    torch.testing.assert_close(shares, soft, atol=1e-4, rtol=0)
    assert ((soft > 1e-4).sum(dim=1) == 2).all()
    torch.testing.assert_close(decibels(mixed), decibels(audio), atol=0.2, rtol=0)


@pytest.mark.parametrize("multilabel", [False, True])
def test_within_a_class_labels_stay_and_strangers_are_not_mixed(multilabel: bool) -> None:
    kind = torch.tensor([0, 0, 0, 1, 1, 2])
    label = torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 1]])[kind] if multilabel else kind
    audio = torch.from_numpy(draw(1).standard_normal((6, 2000))).float()
    step = MixAudio(within_class=True, p=1)
    assert not step.mixes_labels
    for seed in range(5):
        mixed, same = step(audio, label, draw(seed))
        assert same is label
        found = torch.linalg.lstsq(audio.T, mixed.T).solution.T.abs() > 1e-4
        assert torch.equal(mixed[5], audio[5])  # alone in its class
        assert (found.sum(dim=1) == torch.tensor([2, 2, 2, 2, 2, 1])).all()
        assert not (found & (kind[:, None] != kind[None])).any()
