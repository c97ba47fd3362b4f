"""Networks of torchvision's that timm lacks, from scratch. Layer 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from musicnet_eval.backbones.checks import check
from musicnet_eval.errors import ConfigError, nearest


def torchvision_network(
    name: str, options: Mapping[str, Any], given: dict[str, Any], classes: int, shape: tuple[int, int, int]
) -> nn.Module:
    """Make a network of torchvision's, its first convolution made anew for another number of channels.

    Raises:
        ConfigError: An unknown name, weights asked for, or an image that it cannot take.
    """
    import torchvision

    short = name.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models)
    if short not in known:
        choices = [f"torchvision/{other}" for other in known]
        raise ConfigError(f"backbone={name!r} is not a classifier that torchvision knows; {nearest(name, choices)}")
    if options.get("pretrained") or options.get("checkpoint_path"):
        raise ConfigError(f"backbone={name} starts from scratch here. For transfer use timm's networks, as in backbone=resnet50.")
    if short in ("googlenet", "inception_v3"):  # their auxiliary heads return several outputs
        given = {"aux_logits": False, "init_weights": True, **given}
    network: nn.Module = torchvision.models.get_model(short, weights=None, num_classes=classes, **given)
    stem, conv = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if conv.in_channels != shape[0]:
        parent, _, leaf = stem.rpartition(".")
        fresh = nn.Conv2d(
            shape[0],
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            bias=conv.bias is not None,
        )
        setattr(network.get_submodule(parent), leaf, fresh)
        if hasattr(network, "transform_input"):
            network.transform_input = False  # type: ignore[assignment]
    check(name, network, classes, shape)
    return network
