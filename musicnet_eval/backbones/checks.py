"""Whether a network can take an image: asked before the training, by sending one through. Layer 3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musicnet_eval.errors import ConfigError

REMEDY = "Use a longer data.segment_seconds, more spectrogram.n_mels, spectrogram.size=[224,224], or another backbone."


class ScoresError(ConfigError):
    """A network that takes the image but gives no score for each class: another size of image would not mend that."""


def check(name: str, network: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> None:
    """Send one empty image through, so that a network that cannot take it says so now and in one sentence.

    Raises:
        ConfigError: It cannot, or it gives something else than a score for each class.
    """
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            scores = network(torch.zeros(1, *image_shape))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"backbone={name} cannot take images of {shown(image_shape)} (channels × bins × frames): {reason}. {REMEDY}"
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(scores, Tensor) or scores.shape != (1, num_classes):
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ScoresError(f"backbone={name} gives {given} for one image; it must give [1, {num_classes}] (batch × classes).")


def check_least(name: str, img_size: tuple[int, int], bins: int, frames: int) -> None:
    """Refuse an image of which a network's pooling would leave nothing.

    Raises:
        ConfigError: Fewer bins or frames than given.
    """
    if img_size[0] < bins or img_size[1] < frames:
        raise ConfigError(
            f"backbone={name} pools images of {shown(img_size)} (bins × frames) to nothing; it needs {bins}×{frames} at least. "
            f"{REMEDY}"
        )


def shown(sizes: tuple[int, ...]) -> str:
    """Write sizes as people do.

    >>> shown((1, 128, 130))
    '1×128×130'
    """
    return "×".join(map(str, sizes))
