from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model

from musicnet_eval.backbones import StatsLinear, build
from musicnet_eval.errors import ConfigError
from musicnet_eval.weights import PACKAGED, weight_file, weight_hashes


@pytest.mark.parametrize(
    "name", ["stats_linear", "test_resnet", "test_efficientnet", "test_vit", "torchvision/squeezenet1_1", "torchvision/googlenet"]
)
@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 80, 112)])
def test_any_channels_and_shape(name: str, shape: tuple[int, int, int]) -> None:
    network = build(name, {}, num_classes=5, image_shape=shape)
    scores = network(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, 5)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_stats_linear_is_what_it_says() -> None:
    network = StatsLinear(num_classes=2, in_chans=1, img_size=(3, 10)).eval()
    image = torch.randn(4, 1, 3, 10, generator=torch.Generator().manual_seed(0))
    statistics = torch.cat([image.mean(dim=3), image.std(dim=3)], dim=1).flatten(1)
    want = statistics / (1 + network.norm.eps) ** 0.5 @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(image), want)
    torch.testing.assert_close(network(image), network(image.flip(3)))  # deaf to the order of time


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt18", {}, "did you mean 'resnet18'"),
        ("torchvision/alexnett", {}, "did you mean 'torchvision/alexnet'"),
        ("hf-hub:someone/net", {}, "is not a network"),
        ("test_resnet", {"drop_rte": 0.1}, "does not take these backbone_options"),
        ("test_resnet", {"checkpoint_path": "/nowhere.pth"}, "'/nowhere.pth' is not a file"),
        ("stats_linear", {"pretrained": True}, "takes no weights"),
        ("torchvision/alexnet", {"pretrained": True}, "backbone=resnet50"),
    ],
)
def test_refusals(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, options, 3, (1, 64, 64))


def test_an_image_too_small_is_refused_with_its_shape() -> None:
    with pytest.raises(ConfigError, match="cannot take images of 1×8×8"):
        build("torchvision/alexnet", {}, 3, (1, 8, 8))


@register_model
def takes_little(num_classes: int, in_chans: int) -> torch.nn.Module:
    """Make an own network whose function knows nothing of timm's arguments."""
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(in_chans, num_classes))


@register_model
def gives_one_score(num_classes: int, in_chans: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(in_chans, 1))


def test_own_networks() -> None:
    assert build("takes_little", {}, 4, (2, 16, 16))(torch.zeros(3, 2, 16, 16)).shape == (3, 4)
    with pytest.raises(ConfigError, match=r"gives \(1, 1\) for one image; it must give \[1, 4\]"):
        build("gives_one_score", {}, 4, (2, 16, 16))


@pytest.mark.parametrize("kind", ["pth", "safetensors", "nested"])
def test_local_weights_go_in_all_but_the_head(tmp_path: Path, kind: str) -> None:
    source = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save({"state_dict": source.state_dict()} if kind == "nested" else source.state_dict(), path)
    network = build("test_resnet", {"checkpoint_path": str(path)}, 3, (3, 64, 64))
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            torch.testing.assert_close(tensor, source.state_dict()[name], rtol=0, atol=0)
    assert network.state_dict()["fc.weight"].shape[0] == 3
    assert weight_hashes("test_resnet", {"checkpoint_path": str(path)}) != {}


def test_one_channel_equals_three_equal_channels(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "a.pth")
    options = {"checkpoint_path": str(tmp_path / "a.pth")}
    grey, colour = (build("test_resnet", options, 3, (k, 64, 64)).eval() for k in (1, 3))
    colour.get_submodule("fc").load_state_dict(grey.get_submodule("fc").state_dict())
    image = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def test_weights_of_another_network_damage_and_code_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"conv1.0.weight": timm.create_model("test_resnet").state_dict()["conv1.0.weight"]}, tmp_path / "part.pth")
    torch.save({"x": _Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    for name, message in (
        ("other", "do not fit"),
        ("text", "cannot be read"),
        ("evil", "cannot be read"),
        ("part", "lacks 74 of 92"),
    ):
        with pytest.raises(ConfigError, match=message):
            build("test_resnet", {"checkpoint_path": str(tmp_path / f"{name}.pth")}, 3, (1, 64, 64))
    assert not (tmp_path / "ran").exists()


def test_packaged_weights_load_whole() -> None:
    """The package names its tensors otherwise than timm: what counts is that each value arrives."""
    for name in PACKAGED:
        file = weight_file(name, {"pretrained": True})
        assert file is not None, "the extra [demo] is not installed"
        given = list(torch.load(file, weights_only=True).values())
        network = build(name, {"pretrained": True}, 6, (1, 64, 64))
        own = list(network.state_dict().values())
        torch.testing.assert_close(own[0], given[0].sum(dim=1, keepdim=True))  # the stem, summed over colours
        for a, b in zip(own[1:-2], given[1:-2], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("fault", ["refuses", "is silent", "has no address"])
def test_no_weights_from_nowhere(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Without a hub the user hears of it within five seconds and is told what to do, whatever is wrong with the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", huggingface_hub.constants.HF_HUB_OFFLINE)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nowhere")
    given_up = threading.Event()
    if fault == "has no address":  # a resolver may take half a minute to say so

        def resolve(*_: object, **__: object) -> None:
            given_up.wait(30)
            raise socket.gaierror("no such name")

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes calls, and says nothing
        port = 9 if fault == "refuses" else server.getsockname()[1]
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        began = time.monotonic()
        with pytest.raises(ConfigError, match=r"from timm's hub cannot be had(.|\n)*backbone_options.checkpoint_path=FILE"):
            build("test_resnet", {"pretrained": True}, 3, (1, 64, 64))
    assert time.monotonic() - began < 5
    given_up.set()
