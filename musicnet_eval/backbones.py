"""Networks by name, for images of any number of channels and any shape. Layer 3.

`build` takes any timm name, `torchvision/NAME` for what timm lacks, and any name that a plugin registered with timm's
`@register_model`; `stats_linear`, our yardstick, is registered in just that way. Transfer of ImageNet networks is the paper's
idea; the loading is timm's (stem adapted to the number of channels, head new).
"""

from __future__ import annotations

import inspect
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.weights import offline_advice, weight_file


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
    try:
        if name.startswith("torchvision/"):
            network = _torchvision(name, options, given, num_classes, image_shape)
        else:
            network = _timm(name, options, given, num_classes, image_shape)
    except TypeError as error:
        raise ConfigError(
            f"backbone={name} does not take these backbone_options ({error}). Remove them or mend their names."
        ) from None
    _check(name, network, num_classes, image_shape)
    return network


def _timm(name: str, options: Mapping[str, Any], given: dict[str, Any], classes: int, shape: tuple[int, int, int]) -> nn.Module:
    base = name.partition(".")[0]
    if ":" in name or not timm.is_model(base):
        raise ConfigError(f"backbone={name!r} is not a network that timm or a plugin knows; {nearest(name, timm.list_models())}")
    arguments = {"num_classes": classes, "in_chans": shape[0], **given}
    accepted = inspect.signature(timm.model_entrypoint(base)).parameters
    pretrained_cfg = timm.models.get_pretrained_cfg(name)
    if "img_size" in accepted or (pretrained_cfg is not None and pretrained_cfg.fixed_input_size):
        arguments.setdefault("img_size", shape[1:])
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return _plain(name, options, {key: value for key, value in arguments.items() if key in accepted or key in given})
    return _with_weights(name, options, arguments)


def _plain(name: str, options: Mapping[str, Any], arguments: dict[str, Any]) -> nn.Module:
    """Call an own network's function that takes only what it needs."""
    if options.get("pretrained") or options.get("checkpoint_path"):
        raise ConfigError(
            f"backbone={name} takes no weights from here. Load them in its own function, or let it accept **kwargs as timm's do."
        )
    network: nn.Module = timm.model_entrypoint(name)(**arguments)
    return network


def _with_weights(name: str, options: Mapping[str, Any], arguments: dict[str, Any]) -> nn.Module:
    file = weight_file(name, options)
    from_hub = bool(options.get("pretrained")) and file is None
    if from_hub:
        _do_without_hub_if_unreachable()
    try:
        network: nn.Module = timm.create_model(name, pretrained=from_hub, **arguments)
        if file is not None:
            _load_file(network, name, file, arguments)
    except (TypeError, ConfigError):
        raise
    except Exception as error:  # timm, torch and the hub raise what they like; the user needs one sentence
        reason = " ".join(str(error).split())[:300]
        if not from_hub and file is None:
            raise ConfigError(
                f"backbone={name} cannot be built for an image {arguments.get('img_size', '')}: {reason}"
            ) from error
        fault = f"from '{file}' do not fit it or cannot be read" if file else "from timm's hub cannot be had"
        raise ConfigError(f"backbone={name}: weights {fault} ({reason}). {offline_advice(name)}") from error
    return network


def _load_file(network: nn.Module, name: str, file: Path, arguments: Mapping[str, Any]) -> None:
    """Load all but the head from a local file by timm's own loader, and make sure that nothing else was left out."""
    state = timm.models.load_state_dict(str(file))  # tensors only: timm loads with weights_only=True
    own = network.state_dict()
    if not set(own).intersection(state) and len(own) == len(state):
        # Another naming of the same network (as in the packaged EfficientNet-Lite0): same tensors in the same order.
        state = dict(zip(own, state.values(), strict=True))
    module = sys.modules[timm.model_entrypoint(name.partition(".")[0]).__module__]
    cfg: dict[str, Any] = {**network.pretrained_cfg, "state_dict": state, "num_classes": -1}  # type: ignore[dict-item]  # new head
    missing: list[str] = []
    hook = network.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
        lambda _, keys: missing.extend(keys.missing_keys)
    )
    timm.models.load_pretrained(
        network,
        pretrained_cfg=cfg,
        num_classes=arguments["num_classes"],
        in_chans=arguments["in_chans"],
        filter_fn=getattr(module, "checkpoint_filter_fn", None),
    )
    hook.remove()
    head = cfg.get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    lacking = [key for key in missing if not key.startswith(tuple(f"{h}." for h in heads)) or not heads]
    if lacking:
        raise ConfigError(
            f"backbone_options.checkpoint_path='{file}' lacks {len(lacking)} of {len(own)} tensors of backbone={name} "
            f"(first: {lacking[0]}). It belongs to another network; give the file of this one."
        )


def _do_without_hub_if_unreachable() -> None:
    """Look for the hub once, for 3 s at most; where it is out of reach let its client use its cache only, without retries."""
    import huggingface_hub.constants as hub

    try:
        urllib.request.urlopen(urllib.request.Request(hub.ENDPOINT, method="HEAD"), timeout=3).close()
    except urllib.error.HTTPError:
        return  # it answered
    except OSError:
        hub.HF_HUB_OFFLINE = True


def _torchvision(
    name: str, options: Mapping[str, Any], given: dict[str, Any], classes: int, shape: tuple[int, int, int]
) -> nn.Module:
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
    return network


def _check(name: str, network: nn.Module, num_classes: int, shape: tuple[int, int, int]) -> None:
    """Send one empty image through, so that a network that cannot take it says so now and in one sentence."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            scores = network(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"backbone={name} cannot take images of {shape[0]}×{shape[1]}×{shape[2]} (channels × bins × frames): {reason}. "
            "Use a longer data.segment_seconds, more spectrogram.n_mels, or another backbone."
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(scores, Tensor) or scores.shape != (1, num_classes):
        shown = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ConfigError(f"backbone={name} gives {shown} for one image; it must give [1, {num_classes}] (batch × classes).")


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


class StatsLinear(nn.Module):
    """Classify by the mean and standard deviation of each band over time and one linear layer: the honest yardstick.

    It hears the average spectrum and its spread, neither melody nor rhythm. A network that does not beat it has not shown that it
    hears more. The statistics are standardised by batch norm without scale, so that one learning rate suits all bands.

    Args:
        num_classes: Number of scores.
        in_chans: Channels K.
        img_size: `(F, N)`.

    Shape:
        input: `[B, K, F, N]`. output: `[B, num_classes]`.
    """

    def __init__(self, num_classes: int, in_chans: int, img_size: tuple[int, int]) -> None:
        super().__init__()
        features = 2 * in_chans * img_size[0]
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.head = nn.Linear(features, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(image, dim=3)
        scores: Tensor = self.head(self.norm(torch.cat([mean, deviation], dim=1).flatten(1)))
        return scores


@register_model
def stats_linear(num_classes: int = 10, in_chans: int = 1, img_size: tuple[int, int] = (128, 128)) -> StatsLinear:
    """Make `StatsLinear`; registered with timm, as an own network of yours would be."""
    return StatsLinear(num_classes, in_chans, img_size)
