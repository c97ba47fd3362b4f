"""Waveform → image: modules that run on the device, inside `on_after_batch_transfer`. Layer 1.

Every module maps `[B, T]` audio to `[B, K, F, N]` images in float32, whatever the precision of the network, with low frequencies
first. Most are levels in decibels relative to a full-scale sine, floored so that silence is finite, and mapped to about [-1, 1].
`FrontEnd` finishes what any of them makes: normalisation, size, colours. That an audio file becomes a spectrogram which is
classified as an image is the paper's; that it is an STFT is said by Seo et al. (IEEE Access 12, 2024) of ResNet50_trust; every
number below is ours.
"""

from musicnet_eval.spectrograms.constant_q import Cqt
from musicnet_eval.spectrograms.fourier import Chroma, Stft
from musicnet_eval.spectrograms.front_end import FrontEnd, Stack, make_images
from musicnet_eval.spectrograms.mel import LogMel, LogMelDelta, MelPower, Mfcc, MultiResolution, Pcen

__all__ = [
    "Chroma",
    "Cqt",
    "FrontEnd",
    "LogMel",
    "LogMelDelta",
    "MelPower",
    "Mfcc",
    "MultiResolution",
    "Pcen",
    "Stack",
    "Stft",
    "make_images",
]
