"""Networks by name, for images of any number of channels and any shape. Layer 3.

`build` takes any timm name, `torchvision/NAME` for what timm lacks, and any name that a plugin registered with timm's
`@register_model`; `stats_linear`, our yardstick, and the networks that music users expect (`short_chunk_cnn`,
`short_chunk_cnn_res`, `cnn14`, `crnn`, `musicnn`, `ast`) are registered in just that way. Transfer of ImageNet networks is the
paper's idea; the loading is timm's (stem adapted to the number of channels, head new). docs/backbones.md lists what goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

# Imported for their names: each registers itself with timm.
from musicnet_eval.backbones import cnn14, crnn, musicnn, short_chunk, spectrogram_transformer  # noqa: F401
from musicnet_eval.backbones.from_timm import timm_network
from musicnet_eval.backbones.from_torchvision import torchvision_network
from musicnet_eval.backbones.heads import CosineHead, fit_head, give_cosine_head
from musicnet_eval.backbones.resizing import resized_to
from musicnet_eval.backbones.stats_linear import StatsLinear
from musicnet_eval.errors import ConfigError

__all__ = ["CosineHead", "StatsLinear", "build", "fit_head", "give_cosine_head", "resized_to"]


def build(name: str, options: Mapping[str, Any], num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Make a network that maps images of one shape to class scores.

    Args:
        name: timm name, `torchvision/NAME`, or a name registered with timm by a plugin.
        options: `pretrained` (start from ImageNet weights), `checkpoint_path` (start from a local file); all others go to the
            network's constructor (`drop_rate=0.2`).
        num_classes: Number of scores, 2 or more.
        image_shape: `(K, F, N)`.

    Shape:
        The network's input: `[B, K, F, N]`. Its output: `[B, num_classes]`.

    Raises:
        ConfigError: An unknown name, an option the network does not take, weights that do not fit or cannot be had, or an image
            that the network cannot take.
    """
    given = {key: value for key, value in options.items() if key not in ("pretrained", "checkpoint_path") and value is not None}
    make = torchvision_network if name.startswith("torchvision/") else timm_network
    try:
        return make(name, options, given, num_classes, image_shape)
    except TypeError as error:
        raise ConfigError(
            f"backbone={name} does not take these backbone_options ({error}). Remove them or mend their names."
        ) from None
