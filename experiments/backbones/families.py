"""timm's families, the smallest member of each, and what becomes of one on a spectrogram: for docs/backbones.md and its test.

A family is a module of timm's (`timm.list_modules()`). Nothing is downloaded: weights are random.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from musicnet_eval import backbones
from musicnet_eval.errors import ConfigError

SHAPE = (1, 128, 130)  # log_mel of 3 s, the default
CLASSES = 10


@dataclass(frozen=True)
class Verdict:
    """What became of a network: `as it is`, `resized to F×N`, or `refused: reason`."""

    said: str
    network: nn.Module | None = None


def families() -> list[str]:
    """List timm's own modules of networks; those of plugins, ours too, are left out."""
    return [name for name in timm.list_modules() if _members(name)]


def _members(family: str) -> list[str]:
    names: list[str] = timm.list_models(module=family)
    return [name for name in names if timm.model_entrypoint(name).__module__ == f"timm.models.{family}"]


def smallest(family: str) -> str:
    """Name a family's member of the fewest parameters, counted without memory for them."""
    return min(_members(family), key=lambda name: (parameters(name), name))


def parameters(name: str) -> int:
    """Count a network's parameters on the device that holds no numbers."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=CLASSES, in_chans=SHAPE[0])
    return sum(parameter.numel() for parameter in network.parameters())


def judge(name: str, **options: Any) -> Verdict:
    """Build a network for the default image, with options of its own, and send two images forward and backward."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's own, of deprecated names
            network = backbones.build(name, options, CLASSES, SHAPE)
    except ConfigError as error:
        return Verdict(f"refused: {error}")
    scores = network(torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)))
    if scores.shape != (2, CLASSES):
        return Verdict(f"refused: gives {tuple(scores.shape)} for two images")
    scores.square().mean().backward()
    learns = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    if not learns or not torch.isfinite(scores).all():
        return Verdict("refused: no gradient, or scores that are no numbers")
    size = backbones.resized_to(network)
    return Verdict("as it is" if size is None else f"resized to {size[0]}×{size[1]}", network)
