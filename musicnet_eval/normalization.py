"""Mean and deviation of each band over the training audio, for `spectrogram.normalize=per_band`. Layer 2.

They are computed in one pass and kept beside the decoded cache, for every run that would find the same: the file's name is a hash
of the audio and of what the spectrogram makes of a fixed sound, so that no change of a spectrogram's code or keys goes unnoticed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musicnet_eval.errors import RecordError
from musicnet_eval.records import read_json, write_json

Statistics = dict[str, Any]  # mean and sd: [K][F] numbers


def statistics_of(images: Iterable[Tensor]) -> Statistics:
    """Compute mean and standard deviation of each band, streaming.

    Args:
        images: Batches `[B, K, F, N]`, at least one.

    Returns:
        `mean` and `sd`, each `[K][F]` float32 numbers; a band that is constant but for rounding has sd 1.
    """
    count, mean, squares = 0, torch.zeros(1), torch.zeros(1)
    for image in images:
        values = image.double().transpose(0, 2).transpose(0, 1).flatten(2)  # [K, F, B × N]
        new, own_mean = values.shape[2], values.mean(dim=2)
        shift = own_mean - mean
        squares = squares + (values - own_mean[..., None]).square().sum(dim=2) + shift**2 * count * new / (count + new)
        mean = mean + shift * new / (count + new)
        count += new
    sd = (squares / count).sqrt()
    sd = torch.where(sd > 1e-5 * mean.abs() + 1e-12, sd, 1.0)
    return {"mean": mean.float().tolist(), "sd": sd.float().tolist()}


def statistics_key(spectrogram: nn.Module, samples: int, audio: Iterable[str]) -> str:
    """Name the statistics of a spectrogram over some audio.

    Args:
        spectrogram: Module `[B, T] → [B, K, F, N]`.
        samples: Length of a segment.
        audio: All else that says which audio it is.
    """
    sound = torch.rand(1, samples, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        image = spectrogram(sound).contiguous().numpy()
    digest = hashlib.sha256(repr((samples, image.shape, *audio)).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()[:32]


def kept(file: Path, compute: Callable[[], Statistics]) -> Statistics:
    """Read statistics from their file, or compute and keep them; a damaged file counts as none."""
    with contextlib.suppress(RecordError):
        return read_json(file)
    found = compute()
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next run a pass, and changes nothing
        write_json(file, found)
    return found
