"""timm's networks, and those registered with it: built for an image's shape, started from weights. Layer 3.

A network that cannot take an image as it is gets it resized: to the next multiples of 32, 28 or 48, which hold the usual patches
and strides, else to the size that it was made for.
"""

from __future__ import annotations

import http.client
import inspect
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.layers.helpers import to_2tuple
from torch import nn

from musicnet_eval.backbones.checks import ScoresError, check
from musicnet_eval.backbones.resizing import resize_input
from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.weights import offline_advice, weight_file

Shape = tuple[int, int, int]
Size = tuple[int, int]
HUB_SECONDS = 3.0  # for which timm's hub may keep a run waiting before its first answer


def timm_network(name: str, options: Mapping[str, Any], given: dict[str, Any], classes: int, shape: Shape) -> nn.Module:
    """Make a network of timm's, or one registered with timm by a plugin or by us.

    Args:
        name: The network's name.
        options: With `pretrained` and `checkpoint_path`.
        given: The options that go to its constructor.
        classes: Number of scores.
        shape: `(K, F, N)` of images.

    Raises:
        ConfigError: An unknown name, an image it cannot take in any size, or weights that do not fit or cannot be had.
    """
    base = name.partition(".")[0]
    if ":" in name or not timm.is_model(base):
        raise ConfigError(f"backbone={name!r} is not a network that timm or a plugin knows; {nearest(name, timm.list_models())}")
    accepted = inspect.signature(timm.model_entrypoint(base)).parameters
    arguments = {"num_classes": classes, "in_chans": shape[0], **given}
    if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return _with_weights(name, options, arguments, shape)
    arguments.setdefault("img_size", shape[1:])
    network = _plain(name, options, {key: value for key, value in arguments.items() if key in accepted or key in given})
    check(name, network, classes, shape)
    return network


def _plain(name: str, options: Mapping[str, Any], arguments: dict[str, Any]) -> nn.Module:
    """Call an own network's function that takes only what it needs."""
    if options.get("pretrained") or options.get("checkpoint_path"):
        raise ConfigError(
            f"backbone={name} takes no weights from here. Load them in its own function, or let it accept **kwargs as timm's do."
        )
    network: nn.Module = timm.model_entrypoint(name)(**arguments)
    return network


def _with_weights(name: str, options: Mapping[str, Any], arguments: dict[str, Any], shape: Shape) -> nn.Module:
    """Find the image size that a network takes, by random weights, and give it those that are asked for."""
    file = weight_file(name, options)
    from_hub = bool(options.get("pretrained")) and file is None
    if from_hub:
        _do_without_hub_if_unreachable()
    network, size = _fitting(name, arguments, shape)
    try:
        if from_hub:
            network = _sized(name, arguments, shape, size, pretrained=True)
        elif file is not None:
            _load_file(network, name, file, arguments)
    except ConfigError:
        raise
    except Exception as error:  # timm, torch and the hub raise what they like; the user needs one sentence
        reason = " ".join(str(error).split())[:300]
        fault = f"from '{file}' do not fit it or cannot be read" if file else "from timm's hub cannot be had"
        raise ConfigError(f"backbone={name}: weights {fault} ({reason}). {offline_advice(name)}") from error
    return network


def _fitting(name: str, arguments: dict[str, Any], shape: Shape) -> tuple[nn.Module, Size]:
    """Build a network for the first of the sizes that it takes; the complaint is that about the image's own size."""
    refusals: list[ConfigError] = []
    for size in _sizes(name, arguments, shape):
        try:
            network = _sized(name, arguments, shape, size, pretrained=False)
            check(name, network, arguments["num_classes"], shape)
        except ScoresError:
            raise
        except ConfigError as error:
            refusals.append(error)
        except TypeError:  # an option that it does not know
            raise
        except Exception as error:  # at construction networks raise what they like
            reason = " ".join(str(error).split())[:300]
            refusals.append(ConfigError(f"backbone={name} cannot be built for an image {size}: {reason}"))
        else:
            return network, size
    if shape[0] != 3 and arguments["in_chans"] == shape[0]:
        _blame_channels(name, {**arguments, "in_chans": 3}, shape)
    raise refusals[0]


def _blame_channels(name: str, arguments: dict[str, Any], shape: Shape) -> None:
    """Say so where a network that was refused would have taken three channels."""
    try:
        _fitting(name, arguments, (3, *shape[1:]))
    except ConfigError:
        return
    raise ConfigError(
        f"backbone={name} takes images of 3 channels only, not of {shape[0]}. Use spectrogram=multi_resolution or "
        "spectrogram=log_mel_delta, which have three, or another backbone."
    )


def _sizes(name: str, arguments: Mapping[str, Any], shape: Shape) -> list[Size]:
    """List the image sizes to try: the image's own, the next multiples of some, the one that the network was made for."""
    if arguments.get("img_size"):
        return [to_2tuple(arguments["img_size"])]
    bins, frames = shape[1:]
    sizes = [(bins, frames), *((-(-bins // step) * step, -(-frames // step) * step) for step in (32, 28, 48))]
    known = timm.models.get_pretrained_cfg(name)
    return list(dict.fromkeys(sizes if known is None else [*sizes, (known.input_size[1], known.input_size[2])]))


def _sized(name: str, arguments: dict[str, Any], shape: Shape, size: Size, *, pretrained: bool) -> nn.Module:
    """Build a network for images of one size, to which it resizes those of another."""
    network = _told_the_size(name, arguments, size, pretrained=pretrained)
    if size != shape[1:]:
        resize_input(network, size)
    return network


def _told_the_size(name: str, arguments: dict[str, Any], size: Size, *, pretrained: bool) -> nn.Module:
    accepted = inspect.signature(timm.model_entrypoint(name.partition(".")[0])).parameters
    known = timm.models.get_pretrained_cfg(name)
    if "img_size" in accepted or "img_size" in arguments or (known is not None and known.fixed_input_size):
        try:
            told: nn.Module = timm.create_model(name, pretrained=pretrained, **{**arguments, "img_size": size})
            return told
        except TypeError as error:
            if "img_size" not in str(error) or "img_size" in arguments:
                raise
    network: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
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
    """Look for the hub once; where it is out of reach let its client use its cache only, without retries."""
    import huggingface_hub.constants as hub

    if not _answers(hub.ENDPOINT, HUB_SECONDS):
        hub.HF_HUB_OFFLINE = True


def _answers(address: str, seconds: float) -> bool:
    """Say whether a server answers in time, whatever it says.

    Asked in a thread that is left behind: the time that a name takes to be found, or one address after the other to be tried, is
    not what a timeout of the library limits.
    """
    answered: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # an answer
        except (OSError, http.client.HTTPException, ValueError):  # nobody there, no web server, no address
            return
        answered.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answered)
