"""Networks that take images of one size only get them resized on their way in. Layer 3.

The resizing is a hook of the network itself: names of its weights, stages and head stay as they are.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class ResizeInput:
    """Resize images before a network sees them, antialiased; a forward pre-hook.

    Args:
        size: `(F, N)` that the network takes.

    Shape:
        input: `[B, K, any, any]`. output: `[B, K, F, N]`.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, network: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
        del network
        return (F.interpolate(given[0], self.size, mode="bilinear", align_corners=False, antialias=True),)


def resize_input(network: nn.Module, size: tuple[int, int]) -> None:
    """Let a network resize every image to a size of its own."""
    network.register_forward_pre_hook(ResizeInput(size))


def resized_to(network: nn.Module) -> tuple[int, int] | None:
    """Say to which size a network resizes images on their way in; None where it takes them as they are."""
    return next((hook.size for hook in network._forward_pre_hooks.values() if isinstance(hook, ResizeInput)), None)
