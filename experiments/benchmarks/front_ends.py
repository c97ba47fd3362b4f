"""Time `log_mel` beside torchaudio, librosa and nnAudio on one batch of segments; `bench.py` prints the rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import librosa
import torch
from torch import Tensor
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from musicnet_eval.spectrograms import LogMel, make_images

RATE, N_FFT, HOP, N_MELS = 22050, 2048, 512, 128
# How many times faster, and how near; the mel bank is torchaudio's, which rounds otherwise than that of the other two.
TARGETS = {"torchaudio": (2.0, 1e-5), "librosa": (1.5, 1e-4), "nnAudio": (8.0, 1e-4)}
HOW = {
    "torchaudio": "MelSpectrogram and AmplitudeToDB on the whole batch",
    "librosa": "melspectrogram and power_to_db, segment by segment",
    "nnAudio": "MelSpectrogram on the whole batch, by convolution; levels by torch",
}


def peers() -> dict[str, Callable[[Tensor], Any]]:
    """Give each library's way from audio `[B, T]` to mel levels in dB; nnAudio's where it is installed."""
    mel = MelSpectrogram(RATE, N_FFT, hop_length=HOP, n_mels=N_MELS, norm=None, mel_scale="slaney", pad_mode="constant")
    level = AmplitudeToDB("power")
    options: dict[str, Any] = {"n_mels": N_MELS, "n_fft": N_FFT, "hop_length": HOP, "htk": False, "norm": None}

    def by_librosa(audio: Tensor) -> Any:
        power = (librosa.feature.melspectrogram(y=row, sr=RATE, pad_mode="constant", **options) for row in audio.numpy())
        return [librosa.power_to_db(image, top_db=None) for image in power]

    found: dict[str, Callable[[Tensor], Any]] = {"torchaudio": lambda audio: level(mel(audio)), "librosa": by_librosa}
    try:
        from nnAudio.features.mel import MelSpectrogram as Convolved
    except ImportError:
        return found
    convolved = Convolved(sr=RATE, pad_mode="constant", verbose=False, **options)
    return {**found, "nnAudio": lambda audio: level(convolved(audio))}


def difference(audio: Tensor, other: Callable[[Tensor], Any]) -> float:
    """Give the largest difference of levels over the largest level, above our floor."""
    front = LogMel(RATE, N_FFT, HOP, N_MELS)
    ours = (make_images(front, audio)[:, 0] - 1) * 40  # dB re a full-scale sine
    theirs = torch.stack([torch.as_tensor(image) for image in other(audio)])
    theirs = (theirs + 20 * torch.log10(2 / torch.hann_window(N_FFT).sum())).clamp_min(front.levels.floor_db)
    return float((ours - theirs).abs().max() / ours.abs().max())


def measure(audio: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Let all take turns at the same batch; give what a row of the table says of each peer.

    Args:
        audio: `[B, T]` float, at 22.05 kHz.
        rounds: How often each is timed, after one round that warms up.
    """
    front = LogMel(RATE, N_FFT, HOP, N_MELS)
    ways = {"ours": lambda audio: make_images(front, audio), **peers()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way(audio)
                seconds[name].append(time.perf_counter() - began)
        differences = {name: difference(audio, way) for name, way in peers().items()}
    seconds = {name: values[1:] for name, values in seconds.items()}
    rows = []
    for name, apart in differences.items():
        target, near = TARGETS[name]
        faster = statistics.median(seconds[name]) / statistics.median(seconds["ours"])
        rows.append(
            {
                "what": f"`log_mel`, times faster than {name}",
                "value": f"{faster:.2f} ×",
                "target": f">= {target:g} ×",
                "met": faster >= target and apart < near,
                "rounds": {"ours": seconds["ours"], name: seconds[name]},
                "note": f"{len(audio)} × {audio.shape[1] / RATE:g} s; {HOW[name]}; levels differ by {apart:.0e} of the largest",
            }
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    noise = 0.1 * torch.randn(64, 3 * RATE, generator=torch.Generator().manual_seed(0))
    for row in measure(noise, rounds=7):
        print(row["what"], row["value"], row["target"], "met" if row["met"] else "NOT met", row["note"], sep=" | ")
