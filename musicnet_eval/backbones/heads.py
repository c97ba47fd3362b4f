"""Heads for margin losses: a network's last layer replaced by cosines. Layer 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicnet_eval.errors import ConfigError


class CosineHead(nn.Module):
    """Score classes by the angle between features and class weights: scale × cosine, with no bias.

    The scores are logits like those of any other head. A margin loss is given them divided by the scale: cosines. Computed in
    float32 also in mixed precision, which would round cosines near 1. Features of length 0 have the cosine 0 to every class.

    Args:
        in_features: Features D.
        num_classes: Classes C.
        scale: Of the scores, positive; kept with the weights.

    Shape:
        input: `[B, D]`. output: `[B, C]` in [-scale, scale].
    """

    cosine_scale: Tensor

    def __init__(self, in_features: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, in_features)))  # directions without preference
        self.register_buffer("cosine_scale", torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        if torch.is_autocast_enabled(features.device.type):
            with torch.autocast(features.device.type, enabled=False):
                return self.forward(features)
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        weight = self.weight.to(features.dtype)
        # A floor of 1e-6 keeps the gradient finite for features of no length.
        scores: Tensor = F.linear(F.normalize(features, eps=1e-6), F.normalize(weight, eps=1e-6)) * self.cosine_scale.to(
            features.dtype
        )
        return scores


def give_cosine_head(network: nn.Module, name: str, image_shape: tuple[int, int, int], scale: float) -> None:
    """Put a `CosineHead` in the place of the network's last linear layer: the one whose output is the network's.

    It is found by sending noise through, so that timm's, torchvision's and own networks come by the same door.

    Raises:
        ConfigError: The network does not end in one linear layer.
    """
    heard: dict[str, Tensor] = {}

    def listen(layer: str) -> Callable[..., None]:
        return lambda *called: heard.update({layer: called[-1]})

    layers = {layer: module for layer, module in network.named_modules() if isinstance(module, nn.Linear)}
    handles = [module.register_forward_hook(listen(layer)) for layer, module in layers.items()]
    was_training = network.training
    network.eval()
    with torch.no_grad():
        scores = network(torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0)))
    network.train(was_training)
    for handle in handles:
        handle.remove()
    last = [layer for layer, output in heard.items() if output.shape == scores.shape and torch.equal(output, scores)]
    if len(last) != 1:
        raise ConfigError(
            f"backbone={name} does not end in one linear layer, which this loss needs to put a cosine head in its place. "
            "Use another backbone (resnet18, convnext_tiny, …) or a loss without a margin (loss=cross_entropy)."
        )
    head = CosineHead(layers[last[0]].in_features, scores.shape[1], scale)
    parent, _, leaf = last[0].rpartition(".")
    setattr(network.get_submodule(parent), leaf, head)


def fit_head(network: nn.Module, name: str, image_shape: tuple[int, int, int], weights: Mapping[str, Tensor]) -> None:
    """Give a network the head that stored weights belong to: a cosine head where they hold the scale of one."""
    scale = next((value for key, value in weights.items() if key.endswith("cosine_scale")), None)
    if scale is not None:
        give_cosine_head(network, name, image_shape, float(scale))
